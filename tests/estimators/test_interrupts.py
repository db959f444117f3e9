"""Ctrl-C during a fit, a search and partial_fit: the last step is kept, and it goes on up."""

import pickle
import signal
from typing import Any

import numpy as np
import pytest
import torch

from skgpt import GPTTextClassifier
from skgpt.exceptions import InterruptedFitWarning
from skgpt.training.callbacks import StepDone, TrainingCallback
from tests.estimators.test_classifier import make
from tests.helpers import TextData

CLASSES = ["money", "space", "sport"]


class _Interrupt(TrainingCallback):
    def __init__(self, at: int) -> None:
        self.at = at

    def on_step(self, event: StepDone) -> None:
        if event.step == self.at:
            raise KeyboardInterrupt


@pytest.fixture
def interrupt_at(monkeypatch: pytest.MonkeyPatch) -> Any:
    def install(step: int) -> None:
        monkeypatch.setattr(GPTTextClassifier, "_monitors", lambda *a, **k: [_Interrupt(step)])

    return install


@pytest.mark.parametrize("fitted_before", [False, True])
def test_fit__ctrl_c__keeps_the_last_step_warns_and_goes_on_up(
    fitted_before: bool, tiny_llama: str, three_class_data: TextData, interrupt_at: Any
) -> None:
    X, y = three_class_data
    clf = make(tiny_llama, max_epochs=5, batch_size=10)
    if fitted_before:
        clf.fit(["a", "b"], [1, 2])
    interrupt_at(8)  # six steps an epoch
    with (
        pytest.warns(InterruptedFitWarning, match="interrupted after 1 epoch") as caught,
        pytest.raises(KeyboardInterrupt),
    ):
        clf.fit(X, y)
    assert [warning.filename for warning in caught] == [__file__]  # whose call it was
    assert clf.classes_.tolist() == CLASSES
    assert clf.n_iter_ == 1 == len(clf.history_)
    assert clf.predict_proba(X).shape == (60, 3)
    assert np.array_equal(pickle.loads(pickle.dumps(clf)).predict_proba(X), clf.predict_proba(X))
    steps = make(tiny_llama, max_epochs=5, batch_size=10, early_stopping=True)
    with pytest.warns(InterruptedFitWarning), pytest.raises(KeyboardInterrupt):
        steps.fit(X, y)
    assert len(steps.validation_scores_) == 1


def test_fit__ctrl_c_where_warnings_are_errors__is_still_an_interrupt(
    tiny_llama: str, two_class_data: TextData, interrupt_at: Any
) -> None:
    interrupt_at(2)
    clf = make(tiny_llama)
    with pytest.raises(KeyboardInterrupt):  # this suite turns warnings into errors
        clf.fit(*two_class_data)
    assert clf.predict(two_class_data.X).shape == (40,)


def test_grid_search__ctrl_c__stops_the_search(
    tiny_llama: str, two_class_data: TextData, interrupt_at: Any
) -> None:
    from sklearn.model_selection import GridSearchCV

    interrupt_at(2)
    search = GridSearchCV(make(tiny_llama), {"batch_size": [4, 8]}, cv=2)
    with pytest.warns(InterruptedFitWarning), pytest.raises(KeyboardInterrupt):
        search.fit(*two_class_data)
    assert not hasattr(search, "best_score_")


def test_partial_fit__ctrl_c__keeps_the_last_step(
    tiny_llama: str, two_class_data: TextData, interrupt_at: Any
) -> None:
    X, y = two_class_data
    clf = make(tiny_llama).partial_fit(X, y, classes=["money", "sport"])
    before = clf.predict_proba(X)
    interrupt_at(3)
    with pytest.warns(InterruptedFitWarning), pytest.raises(KeyboardInterrupt):
        clf.partial_fit(X, y)
    assert not np.array_equal(clf.predict_proba(X), before)
    assert clf._model.moments is not None and clf._model.moments.step == 8


def test_fit__ctrl_c_inside_the_first_update__keeps_that_update(
    tiny_llama: str, two_class_data: TextData, monkeypatch: pytest.MonkeyPatch
) -> None:
    X, y = two_class_data
    update = torch.optim.AdamW.step

    def pressed(self: Any, *args: Any) -> Any:
        signal.raise_signal(signal.SIGINT)
        return update(self, *args)

    clf = make(tiny_llama)
    with monkeypatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", pressed)
        with pytest.warns(InterruptedFitWarning), pytest.raises(KeyboardInterrupt):
            clf.partial_fit(X, y, classes=["money", "sport"])
    assert clf._model.moments is not None and clf._model.moments.step == 1
    assert len(np.unique(clf.predict_proba(X))) > 1
