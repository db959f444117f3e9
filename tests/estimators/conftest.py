"""Fixtures for fits that die and go on."""

from typing import Any

import pytest

from skgpt import GPTTextClassifier
from skgpt.training.callbacks import TrainingCallback
from tests.estimators.dying import Dies


@pytest.fixture
def dies_at(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function that has fits die at a step, with a checkpoint after every one."""
    monkeypatch.setattr("skgpt.training.checkpoint._EVERY_SECONDS", 0.0)

    def install(step: int | None) -> None:
        monitors = [] if step is None else [Dies(step)]
        monkeypatch.setattr(GPTTextClassifier, "_training_callbacks", lambda *_: monitors)

    return install


@pytest.fixture
def begins_at(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list that gets the number of steps that each run finds done."""
    begun: list[int] = []

    class Noting(TrainingCallback):
        def on_train_begin(self, config: Any, n_steps: int = 0, history: Any = ()) -> None:
            begun.append(n_steps)

    monkeypatch.setattr(GPTTextClassifier, "_training_callbacks", lambda *_: [Noting()])
    return begun
