"""Arbitrary texts, labels, weights and containers: a fit, or an error that is ours to give."""

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from scipy import sparse
from sklearn.exceptions import DataConversionWarning

from tests.helpers import make

N_EXAMPLES = [12, pytest.param(80, marks=pytest.mark.thorough)]


def arbitrary(**strategies: Any) -> Any:
    """Make a test of a check of drawn values and a model's folder: few draws, or thorough."""

    def decorate(check: Any) -> Any:
        @pytest.mark.parametrize("n_examples", N_EXAMPLES)
        def test(n_examples: int, tiny_llama: str) -> None:
            @settings(
                max_examples=n_examples,
                deadline=None,
                derandomize=True,  # the same in every run: a failure is nobody's bad luck
                suppress_health_check=[HealthCheck.too_slow],
            )
            @given(**strategies)
            def run(**drawn: Any) -> None:
                check(folder=tiny_llama, **drawn)

            run()

        return test

    return decorate


# Surrogates, control characters, private planes: everything that a str can hold.
def column_of(values: list[Any]) -> Any:
    column = np.empty(len(values), dtype=object)
    column[:] = values
    return column


LABELS = st.one_of(
    st.lists(st.integers(-3, 3), min_size=4, max_size=4),
    st.lists(st.booleans(), min_size=4, max_size=4),
    st.lists(st.sampled_from(["a", "b", "", "ü"]), min_size=4, max_size=4),
    st.lists(st.floats(), min_size=4, max_size=4),
    st.lists(st.one_of(st.none(), st.integers(0, 1), st.text(max_size=2)), min_size=1, max_size=5),
    st.lists(st.lists(st.integers(0, 2), min_size=2, max_size=3), min_size=4, max_size=4),
)
LABEL_CONTAINERS: dict[str, Callable[[list[Any]], Any]] = {
    "list": list,
    "array": np.array,
    "object": column_of,
    "series": pd.Series,
    "sparse": lambda rows: sparse.csr_array(np.array(rows)),
}


def check_fitted(clf: Any, X: Any, n: int) -> None:
    proba = clf.predict_proba(X)
    assert proba.shape == (n, len(clf.classes_))
    assert np.isfinite(proba).all() and (proba >= 0).all() and (proba <= 1).all()
    predicted = clf.predict(X)
    if predicted.ndim == 1:
        np.testing.assert_allclose(proba.sum(axis=1), 1, rtol=1e-5)
        assert set(predicted.tolist()) <= set(clf.classes_.tolist())
    else:
        assert np.array_equal(predicted, clf.decision_function(X) > 0)
    assert np.isfinite(clf.predict_log_proba(X)).all()


@arbitrary(labels=LABELS, how=st.sampled_from([*LABEL_CONTAINERS]), early=st.booleans())
def test_fit__whatever_is_in_y__fits_or_says_what_is_wrong(
    labels: list[Any], how: str, early: bool, folder: str
) -> None:
    if how in ("array", "sparse"):  # numpy makes no table of rows of unequal lengths
        assume(len({len(row) if isinstance(row, list) else 0 for row in labels}) == 1)
        assume(how == "array" or isinstance(labels[0], list))
    y = LABEL_CONTAINERS[how](labels)
    clf = make(folder, max_epochs=1, trainable_layers=0, early_stopping=early)
    X = ["one", "two", "three", "four"]
    try:
        clf.fit(X, y)
    except ValueError:
        assert not hasattr(clf, "classes_")
    else:
        check_fitted(clf, X, 4)


@arbitrary(
    chunks=st.lists(
        st.tuples(st.integers(0, 3), st.sampled_from([None, "abc", "abcd", "ab", "cbad"])),
        min_size=1,
        max_size=5,
    )
)
def test_partial_fit__any_course_of_classes__keeps_the_columns_in_order(
    chunks: list[tuple[int, str | None]], folder: str
) -> None:
    clf = make(folder, trainable_layers=0)
    known: list[str] = []
    for label, classes in chunks:
        given_classes = None if classes is None else list(classes)
        allowed = sorted(set(given_classes)) if given_classes else known
        legal = bool(allowed) and set(known) <= set(allowed) and "abcd"[label] in allowed
        try:
            clf.partial_fit(["a text"], ["abcd"[label]], classes=given_classes)
        except ValueError:
            assert not legal
        else:
            assert legal
            known = allowed
        assert getattr(clf, "classes_", np.array([])).tolist() == known
    if known:
        check_fitted(clf, ["a text", "another"], 2)


@pytest.fixture(autouse=True)
def _columns_are_fine() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DataConversionWarning)  # y as a column: scikit-learn's own
        warnings.filterwarnings("ignore", "invalid value encountered in cast", RuntimeWarning)
        yield
