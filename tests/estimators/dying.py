"""Fits that are watched, or die in the middle, in the test's own process."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from skgpt import GPTTextClassifier
from skgpt.training.callbacks import StepDone, TrainingCallback


class AfterSteps(TrainingCallback):
    """Calls a function after the steps of these numbers, or after each."""

    def __init__(self, call: Callable[[], object], *steps: int) -> None:
        self.call, self.steps = call, steps

    def on_step(self, event: StepDone) -> None:
        if not self.steps or event.step in self.steps:
            self.call()


@contextmanager
def watched(clf: GPTTextClassifier, call: Callable[[], object], *steps: int) -> Iterator[None]:
    """Have fits of this estimator call a function after some of their steps."""
    clf._training_callbacks = lambda *_: [AfterSteps(call, *steps)]  # type: ignore[method-assign]
    try:
        yield
    finally:
        del clf._training_callbacks


def raising(error: BaseException | type[BaseException]) -> Callable[[], object]:
    def fail() -> None:
        raise error

    return fail


def broken_off(clf: GPTTextClassifier, X: Any, y: Any, *, step: int = 3, **options: Any) -> None:
    """Fit, and die at this step as of a fault of something else."""
    fails = raising(MemoryError("of somebody else"))
    with watched(clf, fails, step), pytest.raises(MemoryError, match="somebody else"):
        clf.fit(X, y, **options)


@contextmanager
def interrupted(clf: GPTTextClassifier, step: int) -> Iterator[None]:
    """Press Ctrl-C after this step of a fit, which is to come through."""
    with pytest.raises(KeyboardInterrupt), watched(clf, raising(KeyboardInterrupt), step):
        yield


def checkpoints_in(root: Path) -> list[Path]:
    return sorted(root.rglob("*.safetensors"))


def folders_in(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir() if path.is_dir())
