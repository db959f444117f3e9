"""With trainable_layers=0 the head is solved for, whatever the rows weigh and however they come."""

from typing import Any

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import MultiLabelBinarizer, StandardScaler

from skgpt.network.features import TextFeatures
from skgpt.training.loss import CrossEntropy
from tests.helpers import make, make_text_data

X, Y = make_text_data(3)
INDICATOR = MultiLabelBinarizer().fit_transform([{label, X[i][0]} for i, label in enumerate(Y)])
ALONE = {"trainable_layers": 0, "precision": "fp32"}
EXACT = {"rtol": 0, "atol": 2e-3}  # of probabilities: L-BFGS stops near the minimum


def states_of(clf: Any) -> Any:
    """Return the pooled states of X."""
    tokens = clf._model.tokenise([list(X)])
    features = TextFeatures(
        clf._model.network, tokens, token_budget=4096, memory_budget=1 << 30, shared=False
    )
    return features.pooled(np.arange(len(X))).numpy().astype(np.float64)


@pytest.mark.parametrize("weighted", [False, True])
def test_fit__head_alone__is_scikit_learns_regression_on_scaled_states(
    tiny_llama: str, weighted: bool
) -> None:
    weight = np.random.default_rng(0).uniform(0.5, 2, len(X)) if weighted else np.ones(len(X))
    clf = make(tiny_llama, **ALONE).fit(X, Y, sample_weight=weight)
    states = states_of(clf)
    scaled = StandardScaler(with_mean=False).fit(states, sample_weight=weight).transform(states)
    options = {"C": 1 / CrossEntropy.penalty, "fit_intercept": False, "tol": 1e-8}
    theirs = LogisticRegression(**options, max_iter=5000)
    theirs.fit(scaled, Y, sample_weight=weight / weight.sum())
    np.testing.assert_allclose(clf.predict_proba(X), theirs.predict_proba(scaled), **EXACT)
    assert [record["epoch"] for record in clf.history_] == [1]


def test_fit__head_alone__weight_two_is_the_row_twice_and_the_scale_is_nothing(
    tiny_llama: str,
) -> None:
    weight = np.where(np.arange(len(X)) % 4 == 0, 2.0, 1.0)
    twice = np.repeat(np.arange(len(X)), weight.astype(int))
    heavy, repeated, scaled = (
        make(tiny_llama, **ALONE).fit(X[rows], Y[rows], sample_weight=given).predict_proba(X)
        for rows, given in [
            (np.arange(len(X)), weight),
            (twice, None),
            (np.arange(len(X)), 1e6 * weight),
        ]
    )
    np.testing.assert_allclose(heavy, repeated, **EXACT)
    np.testing.assert_allclose(heavy, scaled, **EXACT)


def test_fit__head_alone__multilabel__each_label_by_itself(tiny_llama: str) -> None:
    together = make(tiny_llama, **ALONE).fit(X, INDICATOR).predict_proba(X)
    for labels in ([0, 1], [1, 2]):
        apart = make(tiny_llama, **ALONE).fit(X, INDICATOR[:, labels]).predict_proba(X)
        np.testing.assert_allclose(together[:, labels], apart, **EXACT)


def test_fit__head_alone__sees_no_held_out_row(tiny_llama: str) -> None:
    rows, others = np.arange(40), np.arange(40, 60)
    alone = make(tiny_llama, **ALONE).fit(X[rows], Y[rows])
    beside = make(tiny_llama, **ALONE, early_stopping=True)
    beside.fit(X[rows], Y[rows], X_val=X[others], y_val=Y[others])
    np.testing.assert_array_equal(alone.predict_proba(X), beside.predict_proba(X))
    assert beside.validation_scores_ == [beside.history_[0]["validation_score"]]


def test_fit__head_alone__goes_on_to_the_same_head_and_to_layers_that_learn(
    tiny_llama: str,
) -> None:
    clf = make(tiny_llama, **ALONE, warm_start=True).fit(X, Y)
    first = clf.predict_proba(X)
    np.testing.assert_allclose(clf.fit(X, Y).predict_proba(X), first, **EXACT)
    clf.partial_fit(X[:8], Y[:8])  # steps, as ever
    assert np.abs(clf.predict_proba(X) - first).max() > 1e-4
    clf.set_params(trainable_layers=1).fit(X, Y)
    assert clf.trainable_layers_ == 1 and clf.score(X, Y) > 0.8
