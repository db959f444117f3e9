"""early_stopping where it was broken once: odd containers, scorers, threads, interrupts."""

import gc
import pickle
import threading
import warnings
import weakref
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from scipy import sparse
from sklearn.base import clone

from skgpt.exceptions import DivergedError, InterruptedFitWarning
from tests.estimators.test_classifier import make
from tests.estimators.test_early_stopping import held_out_rows
from tests.helpers import TextData, make_text_data

EXTENSION_ARRAYS = {
    "pandas string array": lambda values: pd.array(list(values), dtype="string"),
    "values of a column": lambda values: pd.DataFrame({"c": list(values)})["c"].values,
    "pandas Index": pd.Index,
    "pyarrow array": pa.array,
    "pyarrow chunked array": lambda values: pa.chunked_array([list(values)]),
    "StringDType": lambda values: np.array(list(values), dtype=np.dtypes.StringDType()),
}


@pytest.mark.parametrize("scoring", [None, "accuracy"])
@pytest.mark.parametrize("kind", EXTENSION_ARRAYS)
def test_early_stopping__arrays_of_others__as_x_and_y_are_like_lists(
    kind: str, scoring: Any, tiny_llama: str
) -> None:
    X, y = make_text_data(n_classes=2)
    make_array = EXTENSION_ARRAYS[kind]
    clf = make(tiny_llama, early_stopping=True, scoring=scoring, max_epochs=1)
    expected = clone(clf).fit(list(X), list(y))
    for given in [(make_array(X), list(y)), (list(X), make_array(y))]:
        other = clone(clf).fit(*given)
        assert other.validation_scores_ == expected.validation_scores_
        assert np.array_equal(other.predict_proba(X), expected.predict_proba(X))


@pytest.mark.parametrize("form", ["csr", "csc", "coo", "bsr", "dia", "lil", "dok"])
@pytest.mark.parametrize("container", ["array", "matrix"])
def test_early_stopping__sparse_y_of_any_format__is_like_dense(
    form: str, container: str, tiny_llama: str
) -> None:
    X, _ = make_text_data(n_classes=2)
    Y = np.column_stack([np.arange(40) % 2, np.arange(40) % 3 == 0]).astype(int)
    clf = make(tiny_llama, early_stopping=True, scoring="f1_macro", max_epochs=1)
    make_sparse = getattr(sparse, f"{form}_{container}")
    one, two = clone(clf).fit(X, Y), clone(clf).fit(X, make_sparse(Y))
    assert np.array_equal(one.predict_proba(X), two.predict_proba(X))
    assert one.validation_scores_ == two.validation_scores_


@pytest.mark.parametrize("random_state", [None, np.random.RandomState(0)])
def test_warm_start__random_state_none__holds_out_the_same_rows_again(
    random_state: Any, tiny_llama: str
) -> None:
    data = make_text_data(n_classes=2)
    seen: list[Any] = []

    def scorer(estimator: Any, X: Any, y: Any) -> float:
        seen.append(set(map(str, X)))
        return 0.0

    clf = make(tiny_llama, warm_start=True, early_stopping=True, scoring=scorer, max_epochs=1)
    clf.set_params(random_state=random_state, validation_fraction=0.3)
    X = [f"{text} {i}" for i, text in enumerate(data.X)]
    clf.fit(X, data.y)
    first = seen[-1]
    clf = pickle.loads(pickle.dumps(clf.set_params(scoring="accuracy"))).set_params(scoring=scorer)
    clf.fit(X, data.y)
    assert seen[-1] == first
    clf.set_params(warm_start=False).fit(X, data.y)
    assert seen[-1] != first  # anew, so drawn anew


def test_groups__with_rows_that_weigh_nothing__stay_together(tiny_llama: str) -> None:
    data = make_text_data(n_classes=2)
    X = np.array([f"{text} {i}" for i, text in enumerate(data.X)], dtype=object)
    groups = np.repeat(np.arange(10), 4)
    weight = np.ones(40)
    weight[:6] = 0.0  # of what is left, rows and groups stand at other places
    held = held_out_rows(
        make(tiny_llama, max_epochs=1, validation_fraction=0.3),
        TextData(X, data.y),
        groups=groups,
        sample_weight=weight,
    )
    rest = np.setdiff1d(np.flatnonzero(weight), held)
    assert len(held) and not set(groups[held]) & set(groups[rest])


def test_class_weight__nothing_for_all_that_is_held_out__is_refused(tiny_llama: str) -> None:
    X, y = make_text_data(n_classes=2)
    clf = make(tiny_llama, class_weight={"money": 1.0, "sport": 0.0})
    with pytest.raises(ValueError, match="held-out rows must weigh something"):
        clf.fit(X, y, X_val=X[y == "sport"], y_val=y[y == "sport"])


@pytest.mark.parametrize("scoring", [lambda e, X, y: e.score(X, y), "rand_score", "accuracy"])
def test_scoring__with_weights__gives_them_to_scorers_that_take_them(
    scoring: Any, tiny_llama: str
) -> None:
    X, y = make_text_data(n_classes=2)
    weight = np.linspace(0.1, 3, 10)
    clf = make(tiny_llama, max_epochs=1, scoring=scoring, precision="fp32")
    clf.fit(X[:30], y[:30], X_val=X[30:], y_val=y[30:], sample_weight_val=weight)
    if scoring == "accuracy":
        assert clf.validation_scores_[-1] == clf.score(X[30:], y[30:], weight)
    elif callable(scoring):
        assert clf.validation_scores_[-1] == clf.score(X[30:], y[30:])


def test_scoring__no_number_even_for_right_predictions__is_refused_before_training(
    tiny_llama: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    X, y = make_text_data(n_classes=2)
    clf = make(tiny_llama, scoring=lambda *_: float("nan"))
    monkeypatch.setattr("skgpt.fitting.train", lambda *a, **k: pytest.fail("training began"))
    with pytest.raises(ValueError, match="even where all of them are predicted right"):
        clf.fit(X[:30], y[:30], X_val=X[30:], y_val=y[30:])


@pytest.mark.parametrize("scoring", [None, "roc_auc"])
def test_early_stopping__weights_that_run_off__are_called_that(
    scoring: Any, tiny_llama: str
) -> None:
    X, y = make_text_data(n_classes=2)
    rates: dict[str, Any] = {"learning_rate": 1e38, "head_learning_rate": 1e38}
    clf = make(tiny_llama, early_stopping=True, scoring=scoring, max_grad_norm=None, **rates)
    with pytest.raises(DivergedError, match="raw scores must stay finite"):
        clf.set_params(batch_size=64, trainable_layers="all", warmup_ratio=0.0).fit(X, y)
    assert not hasattr(clf, "classes_")


def test_scoring__fitted_and_let_go__frees_the_network_at_once(tiny_llama: str) -> None:
    X, y = make_text_data(n_classes=2)
    clf = make(tiny_llama, early_stopping=True, scoring="accuracy", max_epochs=1)
    gc.collect()
    gc.disable()
    try:
        networks = []
        for _ in range(3):
            clf = clone(clf).fit(X, y)
            networks.append(weakref.ref(clf._model.network))
        del clf
        assert [network() for network in networks] == [None] * 3
    finally:
        gc.enable()


def test_scoring__fits_in_threads__leave_the_warning_filters_alone(tiny_llama: str) -> None:
    X, y = make_text_data(n_classes=2)
    before = list(warnings.filters)
    first, second = threading.Event(), threading.Event()

    def overlapping(own: threading.Event, other: threading.Event) -> Any:
        def scorer(estimator: Any, X: Any, y: Any) -> float:
            own.set()
            other.wait(10)
            return 0.0

        return make(tiny_llama, early_stopping=True, scoring=scorer, max_epochs=1)

    with ThreadPoolExecutor(2) as threads:
        fits = [overlapping(first, second), overlapping(second, first)]
        assert len(list(threads.map(lambda clf: clf.fit(X, y), fits))) == 2
    assert list(warnings.filters) == before


def test_fit__ctrl_c_while_the_first_epoch_is_scored__leaves_no_half_epoch(
    tiny_llama: str,
) -> None:
    X, y = make_text_data(n_classes=2)
    asked = iter([0.0])  # before training; then comes Ctrl-C

    def scorer(estimator: Any, X: Any, y: Any) -> float:
        for score in asked:
            return score
        raise KeyboardInterrupt

    clf = make(tiny_llama, early_stopping=True, scoring=scorer)
    with pytest.warns(InterruptedFitWarning), pytest.raises(KeyboardInterrupt):
        clf.fit(X, y)
    assert clf.n_iter_ == 0 and clf.history_ == []
    assert not hasattr(clf, "best_iter_") and not hasattr(clf, "validation_scores_")
    assert clf.predict(X).shape == (40,)
