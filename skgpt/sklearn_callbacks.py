"""scikit-learn's callbacks: a fit reports each epoch to those that `set_callbacks` was given."""

from collections.abc import Callable
from typing import Any

from skgpt.training.callbacks import EpochRecord, History, TrainingCallback
from skgpt.training.config import TrainingConfig


class SklearnCallbacks(TrainingCallback):
    """Tells an estimator's scikit-learn callbacks of a fit: a task, with a subtask per epoch.

    Before scikit-learn 1.9 there are no callbacks, and this does nothing. `offer` makes what a
    callback may ask for, X, y and metadata, and is called only if one asks. `snapshot` returns the
    ``__dict__`` of the estimator as if its fit had ended with these epochs, so a callback's
    ``fitted_estimator`` predicts with the weights of its epoch, also with `early_stopping`.
    """

    def __init__(
        self,
        estimator: Any,
        n_epochs: int,
        offer: dict[str, Callable[[], Any]],
        snapshot: Callable[[History], dict[str, Any]],
    ) -> None:
        self.offer = {"estimator": estimator, **offer}
        self.snapshot = snapshot
        self.history: History = []
        self._fit_task: Any = None
        self._epoch_task: Any = None
        if hasattr(estimator, "_init_callback_context"):
            self._fit_task = estimator._init_callback_context(max_subtasks=n_epochs)
            self._fit_task.call_on_fit_task_begin(**self.offer)

    def on_train_begin(self, config: TrainingConfig, n_steps: int, history: History) -> None:
        """Take over the epochs of a resumed run; callbacks don't hear of them again."""
        self.history = list(history)

    def on_epoch_begin(self, epoch: int) -> None:
        """Begin a subtask."""
        if self._fit_task is not None:
            self._epoch_task = self._fit_task.subcontext(task_name="epoch")
            self._epoch_task.call_on_fit_task_begin(
                **self.offer, reconstruction_attributes=self._attributes
            )

    def on_epoch(self, record: EpochRecord) -> bool:
        """End the subtask; return whether a callback wants the fit to end with it."""
        self.history.append(record)
        if self._epoch_task is None:
            return False
        return bool(
            self._epoch_task.call_on_fit_task_end(
                **self.offer, reconstruction_attributes=self._attributes
            )
        )

    def fitted(self) -> None:
        """End the fit's own task; the estimator has its fitted attributes."""
        if self._fit_task is not None:
            self._fit_task.call_on_fit_task_end(**self.offer, reconstruction_attributes={})

    def _attributes(self) -> dict[str, Any]:
        # All at once: one by one, those of an earlier fit would stay between them.
        return {"__dict__": self.snapshot(list(self.history))}
