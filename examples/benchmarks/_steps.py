"""The first steps of a fit of skgpt, timed like those of the Trainer in `_trainer.py`."""

from typing import Any

from _arms import Clock, Setting
from numpy.typing import NDArray

from skgpt import GPTTextClassifier
from skgpt.network import features
from skgpt.network.layout import Layout
from skgpt.training.callbacks import StepDone, TrainingCallback


class _Done(Exception):
    """Enough steps."""


def time_skgpt(texts: NDArray[Any], topics: NDArray[Any], n_steps: int, setting: Setting) -> Clock:
    """Time S: the first steps of a fit, whose batches are drawn from all over an epoch."""
    clock = Clock(n_steps, setting.device)
    computed = _count_computed()

    class Ticks(TrainingCallback):
        def on_train_begin(self, *_: Any) -> None:
            computed.clear()

        def on_step(self, event: StepDone) -> None:
            clock.tick(event.n_tokens, sum(computed))
            computed.clear()
            if len(clock.ends) == n_steps:
                raise _Done

    class Timed(GPTTextClassifier):
        def _training_callbacks(self) -> list[TrainingCallback]:
            return [Ticks()]

    try:
        setting.classifier(Timed).fit(texts, topics)
    except _Done:
        return clock
    raise AssertionError("the fit was over before the steps were")


def _count_computed() -> list[int]:
    """Have every forward pass note how many tokens its layers run over, padding included."""
    computed: list[int] = []

    class Counting(Layout):
        @classmethod
        def of(cls, *args: Any) -> Layout:
            layout = super().of(*args)
            ends = layout.boundaries
            computed.append(
                sum(ends.lengths) if layout.packed else len(layout.lengths_B) * ends.longest
            )
            return layout

    setattr(features, "Layout", Counting)  # noqa: B010
    return computed
