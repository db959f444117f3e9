"""Several labels per text: what it learns, what it promises, what it refuses."""

from typing import Any

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.metrics import accuracy_score, roc_auc_score
from sklearn.utils import get_tags

from skgpt import GPTTextClassifier
from tests.helpers import make, make_text_data

LABELS = ["money", "space", "sport"]


def multilabel_data() -> tuple[np.ndarray, np.ndarray]:
    """Return texts made of one, two or no texts of a class each, and their indicator."""
    X, y = make_text_data(n_classes=3)
    rng = np.random.default_rng(0)
    texts, indicator = [], np.zeros((60, 3), dtype=int)
    for i in range(60):
        rows = rng.choice(60, size=i % 3, replace=False)
        texts.append(" ".join([*X[rows], "the report"]))
        for row in rows:
            indicator[i, LABELS.index(y[row])] = 1
    return np.array(texts, dtype=object), indicator


X, Y = multilabel_data()


@pytest.fixture(scope="module")
def fitted(tiny_model: Any) -> GPTTextClassifier:
    return make(tiny_model("llama"), trainable_layers="all", max_epochs=40).fit(X, Y)


def test_fit__an_indicator__learns_and_predictions_agree(fitted: GPTTextClassifier) -> None:
    assert fitted.classes_.tolist() == [0, 1, 2]
    proba, scores, predicted = (
        getattr(fitted, name)(X) for name in ("predict_proba", "decision_function", "predict")
    )
    assert proba.shape == scores.shape == predicted.shape == (60, 3)
    assert ((proba > 0) & (proba < 1)).all()
    assert np.array_equal(predicted, (proba > 0.5).astype(int))
    assert np.array_equal(predicted, (scores > 0).astype(int))
    assert predicted.dtype.kind == "i"
    np.testing.assert_allclose(fitted.predict_log_proba(X), np.log(proba), rtol=1e-4, atol=1e-6)
    assert fitted.score(X, Y) == accuracy_score(Y, predicted) > 0.7  # every label right
    assert roc_auc_score(Y, proba) > 0.9
    weight = np.arange(60.0)
    expected = accuracy_score(Y, predicted, sample_weight=weight)
    assert fitted.score(X, Y, sample_weight=weight) == expected
    assert get_tags(fitted).classifier_tags.multi_label


def test_fit__two_labels__is_not_taken_for_two_classes(tiny_llama: str) -> None:
    clf = make(tiny_llama, max_epochs=1).fit(X, Y[:, :2])
    assert clf.decision_function(X).shape == clf.predict(X).shape == (60, 2)
    assert clf.fit(X, Y[:, 0]).decision_function(X).shape == (60,)


def test_early_stopping__an_indicator__is_watched(tiny_llama: str) -> None:
    clf = make(tiny_llama, early_stopping=True, validation_fraction=0.2, max_epochs=3)
    assert len(clone(clf).fit(X, Y).validation_scores_) >= 1
    by_score = clone(clf).set_params(scoring="accuracy", n_iter_no_change=9).fit(X, Y)
    assert all(0 <= score <= 1 for score in by_score.validation_scores_)
    held = clone(clf).fit(X[:40], Y[:40], X_val=X[40:], y_val=Y[40:])
    assert len(held.validation_scores_) >= 1


def test_partial_fit__an_indicator__needs_no_classes(tiny_llama: str) -> None:
    options: dict[str, Any] = {"lr_schedule": "constant", "warmup_ratio": 0.0}
    clf = make(tiny_llama, **options).partial_fit(X, Y)
    assert np.array_equal(
        clf.partial_fit(X, Y).predict_proba(X),
        make(tiny_llama, max_epochs=2, **options).fit(X, Y).predict_proba(X),
    )
    with pytest.raises(ValueError, match=r"the classes \[0, 1, 2\]. Got a .* of 2 columns"):
        clf.partial_fit(X, Y[:, :2])
    with pytest.raises(ValueError, match=r"of the same kind|indicator"):
        clf.partial_fit(X, Y[:, 0])
    assert clf.n_iter_ == 2
