"""scikit-learn's callbacks: how they are told of a fit, and why they don't get into copies."""

from collections.abc import Sequence
from typing import Any, Self

import numpy as np

from skgpt._sklearn import CallbackSupportMixin
from skgpt.data.inputs import rows_of
from skgpt.estimators.pickling import PicklableNetwork
from skgpt.fitting import FitData, Given
from skgpt.network.network import TextNetwork
from skgpt.training.callbacks import EpochRecord, TrainingCallback
from skgpt.training.config import TrainingConfig
from skgpt.training.loop import FitResult

# What scikit-learn puts on an estimator for the length of a fit.
_OF_A_FIT = ("_callback_fit_ctx", "_skl_callbacks_to_teardown", "_parent_callback_ctx")


class CallbackEstimator(CallbackSupportMixin, PicklableNetwork):
    """An estimator with ``set_callbacks``, where scikit-learn has that (from 1.9 on).

    Callbacks may copy or pickle the estimator in the middle of its fit: such a copy is not in a
    fit, and does not drag along the tasks of the search that it is part of.
    """

    def __copy__(self) -> Self:
        shallow = super().__copy__()
        _leave_fit(shallow.__dict__)
        return shallow

    def __getstate__(self) -> dict[str, Any]:
        """Return what goes into a pickle; the callbacks do, as in scikit-learn's estimators."""
        state = super().__getstate__()
        _leave_fit(state)
        return state


def _leave_fit(state: dict[str, Any]) -> None:
    for name in _OF_A_FIT:
        state.pop(name, None)


class SklearnCallbacks(TrainingCallback):
    """Tells an estimator's scikit-learn callbacks of a fit, one subtask per epoch.

    Until scikit-learn 1.8 there are none, and nothing is done. Whatever a callback may ask for is
    made only if it does.

    A callback's ``fitted_estimator`` predicts with the weights of that very epoch, also with
    `early_stopping`, where the fit itself ends with those of the best one.

    Parameters
    ----------
    estimator : BaseGPTText
        Its fit begins here, for the callbacks: they are set up, and told so.
    network : TextNetwork
        In training.
    given : Given
    data : FitData
    n_epochs : int
        At most as many will be run.
    earlier : list of EpochRecord, default=None
        The epochs of a fit that this one goes on from.
    """

    def __init__(
        self,
        estimator: Any,
        network: TextNetwork,
        given: Given,
        data: FitData,
        n_epochs: int,
        earlier: list[EpochRecord] | None = None,
    ) -> None:
        self.estimator = estimator
        self.network = network
        self.given = given
        self.data = data
        self.earlier = earlier
        self.history: list[EpochRecord] = []
        self._of_fit: Any = None
        self._of_epoch: Any = None
        if hasattr(estimator, "_init_callback_context"):
            self._of_fit = estimator._init_callback_context(max_subtasks=n_epochs)
            self._of_fit.call_on_fit_task_begin(**self._offer())

    def on_train_begin(
        self, config: TrainingConfig, n_steps: int = 0, history: Sequence[EpochRecord] = ()
    ) -> None:
        """Take over the epochs of a run that was broken off; nothing is told of them again."""
        self.history = list(history)

    def on_epoch_begin(self, epoch: int) -> None:
        """Begin a subtask."""
        if self._of_fit is not None:
            self._of_epoch = self._of_fit.subcontext(task_name="epoch")
            self._of_epoch.call_on_fit_task_begin(
                **self._offer(), reconstruction_attributes=self._so_far
            )

    def on_epoch(self, record: EpochRecord) -> bool:
        """End the subtask; return whether a callback wants the fit to end with it."""
        self.history.append(record)
        if self._of_epoch is None:
            return False
        return bool(
            self._of_epoch.call_on_fit_task_end(
                **self._offer(), reconstruction_attributes=self._so_far
            )
        )

    def fitted(self) -> None:
        """End the fit's own task; the estimator has been given its attributes."""
        if self._of_fit is not None:
            self._of_fit.call_on_fit_task_end(**self._offer(), reconstruction_attributes={})

    def _offer(self) -> dict[str, Any]:
        """Return what every hook may ask for; scikit-learn calls what is callable, if one does."""
        given, data = self.given, self.data

        def rows(values: Any) -> Any:
            own = given.X_val is None and len(data.split.held_out) > 0
            return rows_of(values, data.split.train) if own else values

        def metadata() -> dict[str, Any] | None:
            # Weights only, like scikit-learn's own: a ScoringMonitor passes all on to its metrics.
            if given.sample_weight is None:
                return None
            return {"sample_weight": data.sample_weight[data.split.train]}

        return {
            "estimator": self.estimator,
            "X": lambda: rows(given.X),
            "y": lambda: rows(given.y),
            "metadata": metadata,
        }

    def _so_far(self) -> dict[str, Any]:
        """Return the attributes that make a copy of the estimator one whose fit ended here."""
        network = self.network
        still = TextNetwork(network.pretrained, network.spec, network.dtype, network.device)
        still.take_over(network)
        scores = [r["validation_score"] for r in self.history if "validation_score" in r]
        best = int(np.argmax(scores)) + 1 if scores else 0
        result = FitResult(list(self.history), scores, best, None)
        view = self.estimator._as_fitted(still, self.data, result, self.earlier)
        # All of them at once: set one by one, those of an earlier fit would stay between them.
        return {"__dict__": vars(view)}
