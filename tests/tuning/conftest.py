"""Spies on the classifier's own fits."""

from collections.abc import Callable
from typing import Any
from unittest.mock import create_autospec

import pytest

from skgpt import GPTTextClassifier
from skgpt.training.callbacks import TrainingCallback


@pytest.fixture
def fits(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a spy that notes each call of the classifier's `fit`."""
    spy = create_autospec(GPTTextClassifier.fit, side_effect=GPTTextClassifier.fit)
    monkeypatch.setattr(GPTTextClassifier, "fit", spy)
    return spy


@pytest.fixture
def at_epochs(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Return a function that has all fits call these when an epoch begins and ends."""

    def use(begin: Callable[[int], Any] = id, end: Callable[[Any], Any] = id) -> None:
        class Watching(TrainingCallback):
            def on_epoch_begin(self, epoch: int) -> None:
                begin(epoch)

            def on_epoch(self, record: Any) -> bool:
                end(record)
                return False

        monkeypatch.setattr(GPTTextClassifier, "_training_callbacks", lambda *_: [Watching()])

    return use
