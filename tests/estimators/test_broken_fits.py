"""Fits that diverge or are interrupted: what the estimator is afterwards, and what is said."""

import pickle
from typing import Any

import numpy as np
import pytest

from skgpt import GPTTextClassifier
from skgpt.exceptions import DivergedError, InterruptedFitWarning, SkippedStepsWarning
from skgpt.network.network import HEAD
from tests.estimators.dying import interrupted
from tests.helpers import TextData, make, make_text_data
from tests.training.poison import PoisonedLoss

X, y = make_text_data(n_classes=2)


@pytest.fixture
def poison(monkeypatch: pytest.MonkeyPatch) -> Any:
    def install(**at: Any) -> None:
        monkeypatch.setattr(GPTTextClassifier, "_loss", lambda self, target: PoisonedLoss(**at))

    return install


def test_fit__some_steps_skipped__is_fitted_and_warns_once(tiny_llama: str, poison: Any) -> None:
    clf = make(tiny_llama, batch_size=10, max_epochs=3)
    poison(loss_at={2})
    with pytest.raises(SkippedStepsWarning):  # this suite turns warnings into errors
        clf.fit(X, y)
    assert clf.predict(X).shape == (40,)
    poison(loss_at={2, 9})
    with pytest.warns(SkippedStepsWarning, match="^2 optimiser steps") as caught:
        clf.fit(X, y)
    assert [warning.filename for warning in caught] == [__file__]
    assert [record["skipped_steps"] for record in clf.history_] == [1, 0, 1]
    assert clf.predict(X).shape == (40,)


@pytest.mark.parametrize(
    ("method", "early_stopping", "at"),
    [
        ("fit", False, {"loss_at": range(2, 99)}),
        ("fit", True, {"loss_at": range(2, 99)}),
        ("partial_fit", False, {"gradient_at": range(3, 99)}),
    ],
)
def test_fit_and_partial_fit__diverging_in_the_first_epoch__leave_a_fitted_model_as_it_was(
    method: str, early_stopping: bool, at: dict[str, Any], tiny_llama: str, poison: Any
) -> None:
    clf = make(tiny_llama, early_stopping=early_stopping, batch_size=4).fit(X, y)
    before = pickle.dumps(clf)
    poison(**at)
    with pytest.raises(DivergedError, match="as it was before"):
        getattr(clf, method)(X[::-1], y[::-1])
    assert pickle.dumps(clf) == before


def test_fit__diverging_after_a_best_epoch__has_its_weights(tiny_llama: str, poison: Any) -> None:
    settings: dict[str, Any] = {"early_stopping": True, "lr_schedule": "constant"}
    clf = make(tiny_llama, **settings, warmup_ratio=0.0, max_epochs=5, batch_size=6)
    poison(loss_at=range(14, 99))  # six steps an epoch
    with pytest.raises(DivergedError, match=r"`learning_rate` \(.*the best so far"):
        clf.fit(X, y)
    assert clf.n_iter_ == 2 == len(clf.validation_scores_)
    poison()
    expected = make(tiny_llama, **settings, warmup_ratio=0.0, max_epochs=clf.best_iter_)
    expected.set_params(batch_size=6).fit(X, y)
    assert np.array_equal(clf.predict_proba(X), expected.predict_proba(X))


@pytest.mark.parametrize("fitted_before", [False, True])
def test_fit__ctrl_c__keeps_the_last_step_warns_and_goes_on_up(
    fitted_before: bool, tiny_llama: str, three_class_data: TextData
) -> None:
    X, y = three_class_data
    clf = make(tiny_llama, max_epochs=5, batch_size=10)
    if fitted_before:
        clf.fit(["a", "b"], [1, 2])
    with (
        interrupted(clf, 8),  # six steps an epoch
        pytest.warns(InterruptedFitWarning, match="interrupted after 1 epoch") as caught,
    ):
        clf.fit(X, y)
    assert [warning.filename for warning in caught] == [__file__]  # whose call it was
    assert clf.classes_.tolist() == ["money", "space", "sport"]
    assert clf.n_iter_ == 1 == len(clf.history_)
    assert clf.predict_proba(X).shape == (60, 3)
    assert np.array_equal(pickle.loads(pickle.dumps(clf)).predict_proba(X), clf.predict_proba(X))
    steps = make(tiny_llama, max_epochs=5, batch_size=10, early_stopping=True)
    with interrupted(steps, 8):  # also where warnings are errors, as in this suite
        steps.fit(X, y)
    assert len(steps.validation_scores_) == 1


def test_partial_fit__ctrl_c__keeps_the_last_step(tiny_llama: str) -> None:
    clf = make(tiny_llama).partial_fit(X, y, classes=["money", "sport"])
    before = clf.predict_proba(X)
    with interrupted(clf, 3), pytest.warns(InterruptedFitWarning):
        clf.partial_fit(X, y)
    assert not np.array_equal(clf.predict_proba(X), before)
    assert clf._model.moments is not None and clf._model.moments.steps[HEAD] == 8
