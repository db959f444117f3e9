"""early_stopping, X_val, scoring and groups, through the estimator."""

from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pytest
import sklearn
from sklearn.base import clone
from sklearn.metrics import log_loss, make_scorer, roc_auc_score
from sklearn.model_selection import GroupKFold, cross_validate
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer

from skgpt import GPTTextClassifier
from tests.estimators.test_classifier import make
from tests.helpers import TextData, make_text_data

FLAT: dict[str, Any] = {"lr_schedule": "constant", "warmup_ratio": 0.0, "precision": "fp32"}


def held_out_rows(clf: GPTTextClassifier, data: TextData, **options: Any) -> np.ndarray:
    """Return the rows that a fit held out: those that a scorer is shown."""
    seen: list[Any] = []

    def scorer(estimator: Any, X: Any, y: Any) -> float:
        seen.append(np.asarray(X))
        return 0.0

    clone(clf).set_params(early_stopping=True, scoring=scorer).fit(data.X, data.y, **options)
    assert all(np.array_equal(rows, seen[0]) for rows in seen)
    return np.flatnonzero(np.isin(data.X, seen[0]))


@pytest.mark.parametrize("scoring", [None, "accuracy", "neg_log_loss"])
def test_early_stopping__rows_held_out__equal_the_same_rows_as_x_val(
    scoring: Any, tiny_llama: str
) -> None:
    data = make_text_data(n_classes=3)
    X, y = data
    clf = make(tiny_llama, early_stopping=True, scoring=scoring, max_epochs=6, **FLAT)
    held = held_out_rows(clf, data)
    assert len(held) == 6
    assert sorted(y[held]) == sorted([*"abc"]) or len(set(y[held])) == 3  # stratified
    rest = np.setdiff1d(np.arange(len(X)), held)
    one = clone(clf).fit(X, y)
    two = clone(clf).fit(X[rest], y[rest], X_val=X[held], y_val=y[held])
    np.testing.assert_allclose(one.predict_proba(X), two.predict_proba(X), rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(one.validation_scores_, two.validation_scores_, rtol=1e-3)
    assert one.best_iter_ == two.best_iter_ == 1 + int(np.argmax(one.validation_scores_))
    assert one.n_iter_ == len(one.history_) == len(one.validation_scores_)


def test_early_stopping__labels_of_held_out_rows__teach_nothing(tiny_llama: str) -> None:
    # All labels of the held-out rows are changed: were one trained on, the weights would differ.
    data = make_text_data(n_classes=3)
    clf = make(tiny_llama, early_stopping=True, n_iter_no_change=99, trainable_layers="all")
    held = held_out_rows(clf, data)
    rest = np.setdiff1d(np.arange(len(data.X)), held)
    names = np.unique(data.y)
    other = data.y.copy()
    other[held] = names[(np.searchsorted(names, other[held]) + 1) % 3]
    last = clf.set_params(early_stopping=False)  # keeps the last weights, watches all the same
    fits = [
        clone(last).fit(data.X[rest], data.y[rest], X_val=data.X[held], y_val=labels[held])
        for labels in (data.y, other)
    ]
    assert np.array_equal(fits[0].predict_proba(data.X), fits[1].predict_proba(data.X))
    assert fits[0].validation_scores_ != fits[1].validation_scores_


def test_early_stopping__best_epoch__has_the_weights_of_a_fit_that_long(tiny_llama: str) -> None:
    X, y = make_text_data(n_classes=2)
    scores = iter([0.0, 0.1, 0.8, 0.2, 0.2, 0.2])  # the first is asked before training
    clf = make(tiny_llama, scoring=lambda *_: next(scores), **FLAT)
    clf.set_params(early_stopping=True, max_epochs=9).fit(
        X[:30], y[:30], X_val=X[30:], y_val=y[30:]
    )
    assert (clf.n_iter_, clf.best_iter_) == (4, 2)
    two = make(tiny_llama, max_epochs=2, **FLAT).fit(X[:30], y[:30])
    np.testing.assert_allclose(clf.predict_proba(X), two.predict_proba(X), rtol=1e-3, atol=1e-5)


def test_x_val__without_early_stopping__is_scored_and_stops_nothing(tiny_llama: str) -> None:
    X, y = make_text_data(n_classes=2)
    clf = make(tiny_llama, max_epochs=4, trainable_layers="all", scoring="accuracy")
    watched = clone(clf).fit(X[:30], y[:30], X_val=X[30:], y_val=y[30:])
    plain = clone(clf).fit(X[:30], y[:30])
    assert np.array_equal(watched.predict_proba(X), plain.predict_proba(X))
    assert watched.n_iter_ == len(watched.validation_scores_) == 4
    assert watched.validation_scores_[-1] == watched.score(X[30:], y[30:])
    assert not hasattr(plain, "validation_scores_")
    assert not hasattr(watched.fit(X, y), "validation_scores_")


@pytest.mark.parametrize("weighted", [False, True])
def test_scoring__by_name__is_what_the_fitted_estimator_scores(
    weighted: bool, tiny_llama: str
) -> None:
    X, y = make_text_data(n_classes=2)
    weight = np.linspace(0.1, 3, 10) if weighted else None
    clf = make(tiny_llama, max_epochs=3, scoring="neg_log_loss", precision="fp32")
    clf.fit(X[:30], y[:30], X_val=X[30:], y_val=y[30:], sample_weight_val=weight)
    proba = clf.predict_proba(X[30:])
    expected = -log_loss(y[30:], proba, sample_weight=weight, labels=clf.classes_)
    assert clf.validation_scores_[-1] == pytest.approx(expected, rel=1e-4)
    # Without class weights and smoothing, that is the loss it trains on.
    assert clf.history_[-1]["validation_loss"] == pytest.approx(-expected, rel=1e-4)


def test_scoring__a_callable__may_predict_other_texts_too(tiny_llama: str) -> None:
    X, y = make_text_data(n_classes=2)
    shapes = []

    def scorer(estimator: Any, X_val: Any, y_val: Any) -> float:
        shapes.append(estimator.predict_proba(X[:7]).shape)
        assert estimator.classes_.tolist() == ["money", "sport"]
        return float(estimator.score(X_val, y_val))

    make(tiny_llama, early_stopping=True, scoring=scorer, max_epochs=2).fit(X, y)
    assert shapes == [(7, 2)] * 3


def test_scoring__make_scorer__works(tiny_llama: str) -> None:
    X, y = make_text_data(n_classes=2)
    scorer = make_scorer(roc_auc_score, response_method="decision_function")
    clf = make(tiny_llama, early_stopping=True, scoring=scorer, max_epochs=2).fit(X, y)
    assert all(0 <= score <= 1 for score in clf.validation_scores_)


def test_scoring__a_scorer_that_fails__is_named_before_training(
    tiny_llama: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    X, y = make_text_data(n_classes=3)
    monkeypatch.setattr("skgpt.fitting.train", lambda *a, **k: pytest.fail("training began"))
    clf = make(tiny_llama, early_stopping=True)
    for scoring, reason in [
        ("roc_auc", "multi_class"),
        ("r2", "could not convert"),
        (lambda estimator: 0.0, "positional argument"),
        (lambda *_: "high", "could not convert"),
    ]:
        with pytest.raises(ValueError, match=f"`scoring` must be able to score.*{reason}"):
            clf.set_params(scoring=scoring).fit(X, y)
    with pytest.raises(ValueError, match="scoring"):
        clf.set_params(scoring="acuracy").fit(X, y)


def test_groups__with_early_stopping__are_held_out_whole(tiny_llama: str) -> None:
    data = make_text_data(n_classes=2)
    groups = np.array([f"author {i % 8}" for i in range(len(data.X))])
    held = held_out_rows(make(tiny_llama, max_epochs=1), data, groups=groups)
    rest = np.setdiff1d(np.arange(len(data.X)), held)
    assert len(held) and not set(groups[held]) & set(groups[rest])
    assert set(data.y[rest]) == set(data.y)


def test_weight_zero__with_early_stopping__is_never_held_out(tiny_llama: str) -> None:
    data = make_text_data(n_classes=2)
    weight = (np.arange(40) % 2).astype(float)
    seen: list[Any] = []

    def scorer(estimator: Any, X: Any, y: Any, sample_weight: Any) -> float:
        seen.append(sample_weight)
        return float(np.isin(X, data.X[1::2]).all())

    clf = make(tiny_llama, early_stopping=True, scoring=scorer, max_epochs=1)
    clf.fit(data.X, data.y, sample_weight=weight)
    assert clf.validation_scores_ == [1.0]
    assert (seen[-1] > 0).all()


@pytest.mark.parametrize(
    "container", [list, np.asarray, pd.Series, pl.Series, lambda X: pd.DataFrame({"t": X})]
)
def test_early_stopping__any_container__hands_the_scorer_rows_of_its_kind(
    container: Any, tiny_llama: str
) -> None:
    X, y = make_text_data(n_classes=2)
    kinds = []

    def scorer(estimator: Any, X_val: Any, y_val: Any) -> float:
        kinds.append((type(X_val), len(X_val), len(y_val)))
        return float(estimator.score(X_val, y_val))

    given = container(list(X))
    make(tiny_llama, early_stopping=True, scoring=scorer, max_epochs=1).fit(given, list(y))
    assert kinds == [(type(given), 4, 4)] * 2


BAD = [
    ({"X_val": ["a"]}, "`X_val` needs its labels"),
    ({"y_val": ["a"]}, "`y_val` belongs to `X_val`"),
    ({"sample_weight_val": [1.0]}, "`sample_weight_val` belongs to `X_val`"),
    ({"X_val": ["a"], "y_val": ["other"]}, "other"),
    ({"X_val": ["a"], "y_val": ["money", "sport"]}, r"\[1, 2\]"),
    ({"X_val": [None], "y_val": ["money"]}, "Row 0 is None"),
    ({"X_val": [["a", "b"]], "y_val": ["money"]}, "columns as at fit"),
    ({"X_val": ["a"], "y_val": ["money"], "sample_weight_val": [0.0]}, "zero"),
    ({"groups": [1, 2]}, r"one label per text. Got shape \(2,\) for 40"),
    ({"groups": np.zeros(40)}, "group"),
    ({"groups": set(range(40))}, "Got a set"),
    ({"groups": "a" * 40}, "Got a str"),
    ({"X_val": ["a", None], "y_val": ["money"]}, "In `X_val`: .*Row 1 is None"),
    (
        {"X_val": ["a"], "y_val": ["money"], "sample_weight_val": [-1.0]},
        "In `sample_weight_val`: Negative",
    ),
]


@pytest.mark.parametrize(("options", "message"), BAD)
def test_fit__bad_validation_data__is_refused_before_training(
    options: dict[str, Any],
    message: str,
    tiny_llama: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    X, y = make_text_data(n_classes=2)
    monkeypatch.setattr("skgpt.fitting.train", lambda *a, **k: pytest.fail("training began"))
    with pytest.raises(ValueError, match=message):
        make(tiny_llama, early_stopping=True).fit(X, y, **options)


def test_pipeline__transform_input__cleans_x_val_too(tiny_llama: str) -> None:
    X, y = make_text_data(n_classes=2)

    def upper(texts: Any) -> list[str]:
        return [text.upper() for text in texts]

    clf = make(tiny_llama, max_epochs=2, scoring="accuracy")
    with sklearn.config_context(enable_metadata_routing=True):
        inner = clone(clf).set_fit_request(X_val=True, y_val=True)
        pipe = make_pipeline(FunctionTransformer(upper), inner, transform_input=["X_val"])
        pipe.fit(X[:30], y[:30], X_val=X[30:], y_val=y[30:])
    by_hand = clone(clf).fit(upper(X[:30]), y[:30], X_val=upper(X[30:]), y_val=y[30:])
    assert np.array_equal(pipe.predict_proba(X), by_hand.predict_proba(upper(X)))
    assert pipe[-1].validation_scores_ == by_hand.validation_scores_


def test_routing__groups__go_to_the_splitter_alone_unless_asked_for(tiny_llama: str) -> None:
    X, y = make_text_data(n_classes=2)
    groups = np.arange(40) % 4
    seen = []

    class Told(GPTTextClassifier):
        def fit(self, X: Any, y: Any, sample_weight: Any = None, **options: Any) -> Any:
            seen.append(options.get("groups"))
            return super().fit(X, y, sample_weight, **options)

    with sklearn.config_context(enable_metadata_routing=True):
        clf = make(tiny_llama, max_epochs=1, early_stopping=True)
        options: dict[str, Any] = {"cv": GroupKFold(2), "params": {"groups": groups}}
        cross_validate(clf, X, y, error_score="raise", **options)
        assert clf.get_metadata_routing().fit.requests["groups"] is False
        told = clone(clf).set_fit_request(groups=True)
        assert told.get_metadata_routing().fit.requests["groups"] is True
        cross_validate(told, X, y, error_score="raise", **options)
