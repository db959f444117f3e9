"""Fixtures for fits that die and go on, and for those that must not begin."""

from collections.abc import Callable
from typing import Any

import pytest

from skgpt import GPTTextClassifier
from skgpt.training.callbacks import TrainingCallback
from tests.helpers import Fitted


@pytest.fixture
def every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have fits write a checkpoint after every step."""
    monkeypatch.setattr("skgpt.training.checkpoint._EVERY_SECONDS", 0.0)


@pytest.fixture
def begins_at(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list that gets the number of steps that each run finds done."""
    begun: list[int] = []

    class Noting(TrainingCallback):
        def on_train_begin(self, config: Any, n_steps: int = 0, history: Any = ()) -> None:
            begun.append(n_steps)

    monkeypatch.setattr(GPTTextClassifier, "_training_callbacks", lambda *_: [Noting()])
    return begun


@pytest.fixture
def no_training(fitted_model: Callable[[str], Fitted], monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail a test in which training begins, but for the model that it may be refused on."""
    fitted_model("two classes")
    monkeypatch.setattr("skgpt.fitting.train", lambda *a, **k: pytest.fail("training began"))
