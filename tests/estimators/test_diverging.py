"""Fits whose numbers run off: what the estimator is afterwards, and what its user is told."""

import pickle
from typing import Any

import numpy as np
import pytest

from skgpt import GPTTextClassifier
from skgpt.exceptions import DivergedError, SkippedStepsWarning
from tests.helpers import TextData, make
from tests.training.poison import PoisonedLoss


@pytest.fixture
def poison(monkeypatch: pytest.MonkeyPatch) -> Any:
    def install(**at: Any) -> None:
        monkeypatch.setattr(GPTTextClassifier, "_loss", lambda self, target: PoisonedLoss(**at))

    return install


def test_fit__some_steps_skipped__is_fitted_and_warns_once_with_their_number(
    tiny_llama: str, two_class_data: TextData, poison: Any
) -> None:
    X, y = two_class_data
    clf = make(tiny_llama, batch_size=10, max_epochs=3)
    poison(loss_at={2, 9})
    with pytest.warns(SkippedStepsWarning, match="^2 optimiser steps") as caught:
        clf.fit(X, y)
    assert [warning.filename for warning in caught] == [__file__]
    assert [record["skipped_steps"] for record in clf.history_] == [1, 0, 1]
    assert clf.predict(X).shape == (40,)


def test_fit__some_steps_skipped_where_warnings_are_errors__is_fitted_all_the_same(
    tiny_llama: str, two_class_data: TextData, poison: Any
) -> None:
    clf = make(tiny_llama, batch_size=10)
    poison(loss_at={2})
    with pytest.raises(SkippedStepsWarning):  # this suite turns warnings into errors
        clf.fit(*two_class_data)
    assert clf.predict(two_class_data.X).shape == (40,)


@pytest.mark.parametrize("early_stopping", [False, True])
def test_fit__diverging_in_the_first_epoch__leaves_a_fitted_model_as_it_was(
    early_stopping: bool, tiny_llama: str, two_class_data: TextData, poison: Any
) -> None:
    X, y = two_class_data
    clf = make(tiny_llama, early_stopping=early_stopping, batch_size=4).fit(X, y)
    before = pickle.dumps(clf)
    poison(loss_at=range(2, 99))
    with pytest.raises(DivergedError, match="as it was before"):
        clf.fit(X[::-1], y[::-1])
    assert pickle.dumps(clf) == before


def test_fit__diverging_after_a_best_epoch__is_fitted_with_its_weights_and_goes_on_up(
    tiny_llama: str, two_class_data: TextData, poison: Any
) -> None:
    X, y = two_class_data
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


def test_partial_fit__diverging__leaves_the_model_as_it_was(
    tiny_llama: str, two_class_data: TextData, poison: Any
) -> None:
    X, y = two_class_data
    clf = make(tiny_llama, batch_size=4).partial_fit(X, y, classes=["money", "sport"])
    before = clf.predict_proba(X)
    poison(gradient_at=range(3, 99))
    with pytest.raises(DivergedError, match="as it was before"):
        clf.partial_fit(X, y)
    assert np.array_equal(clf.predict_proba(X), before)
    assert clf.n_iter_ == 1
