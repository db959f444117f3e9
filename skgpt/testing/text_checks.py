"""Checks on texts that scikit-learn doesn't have; each works on any text estimator.

A check takes an estimator, fits fresh clones of it, raises an AssertionError when a promise is
broken and SkipTest when the estimator makes no such promise.
"""

import pickle
import random
import re
import sys
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any
from unittest import SkipTest

import numpy as np
from numpy.typing import NDArray
from sklearn.base import clone, is_classifier, is_regressor
from sklearn.utils import get_tags

Outputs = Mapping[str, NDArray[Any]]  # by the method that gave them

# What float32 arithmetic may differ by when the same texts share a batch with others.
_TOLERANCE = 1e-4
_SCORES = ("decision_function", "predict_proba", "transform")
_BAD_ROW = 7
_N_TEXTS = 24

# The labels are not in sorted order, so classes_ in order of appearance is found out.
_TOPICS = {
    "wheat": "the harvest of grain in tonnes",
    "money": "the bank lowers its rate of interest",
    "crude": "barrels of oil from the new well",
}


def _problem(estimator: Any) -> tuple[list[str], NDArray[Any]]:
    """Return texts of different lengths, and a target that their words give away."""
    tags = get_tags(estimator)
    binary = tags.classifier_tags is not None and not tags.classifier_tags.multi_class
    labels = list(_TOPICS)[: 2 if binary else 3]
    drawn = [labels[row % len(labels)] for row in range(_N_TEXTS)]
    texts = [
        f"{label} report {'ABCDEFGH'[row // 3]}" + f" {_TOPICS[label]}" * (row % 4)
        for row, label in enumerate(drawn)
    ]
    if is_regressor(estimator):
        return texts, np.array([labels.index(label) / 2 for label in drawn])
    return texts, np.array(drawn, dtype=object)


def _fresh(estimator: Any) -> Any:
    copy = clone(estimator)
    if "random_state" in copy.get_params():
        copy.set_params(random_state=0)
    return copy


def _fitted(estimator: Any) -> Any:
    return _fresh(estimator).fit(*_problem(estimator))


def _outputs(fitted: Any, X: Any) -> Outputs:
    """Return what each prediction method that the estimator has says of X."""
    outputs = {}
    for method in ("predict", *_SCORES):
        if hasattr(fitted, method):
            output = getattr(fitted, method)(X)
            outputs[method] = np.asarray(output.toarray() if hasattr(output, "toarray") else output)
    assert outputs, f"the estimator must have one of predict, {', '.join(_SCORES)}."
    return outputs


def _assert_same(got: Outputs, expected: Outputs, when: str, *, to_the_bit: bool = True) -> None:
    """Compare to the bit, or scores within the tolerance.

    Labels count only where no score stands behind them: with a tolerance, ties flip.
    """
    has_scores = any(method in expected for method in _SCORES)
    for method, values in expected.items():
        if to_the_bit:
            same = np.array_equal(got[method], values)
        elif values.dtype.kind == "f":
            same = np.allclose(got[method], values, rtol=_TOLERANCE, atol=_TOLERANCE)
        else:
            same = has_scores or np.array_equal(got[method], values)
        assert same, (
            f"{method} must give the same values {when}. "
            f"Got {_first_difference(got[method], values)}."
        )


_assert_close = partial(_assert_same, to_the_bit=False)


def _first_difference(got: NDArray[Any], expected: NDArray[Any]) -> str:
    if got.shape != expected.shape:
        return f"shape {got.shape} for {expected.shape}"
    differs = (got != expected).reshape(len(got), -1).any(axis=1)
    row = int(np.flatnonzero(differs)[0])
    return f"{got[row]} for {expected[row]} in row {row} ({differs.sum()} rows differ)"


def _assert_refuses(call: Callable[[], Any], what: str, *, row: int | None = None) -> None:
    try:
        call()
    except (ValueError, TypeError) as error:
        if row is not None and not re.search(rf"\b{row}\b", str(error)):
            raise AssertionError(
                f"the error for {what} must name row {row}. Got: {error}"
            ) from error
    except Exception as error:
        raise AssertionError(
            f"{what} must raise ValueError or TypeError. Got {type(error).__name__}: {error}"
        ) from error
    else:
        raise AssertionError(f"{what} must raise ValueError or TypeError. Nothing was raised.")


def _skip_unless(applies: bool, reason: str) -> None:
    if not applies:
        raise SkipTest(reason)


def check_text_tags(estimator: Any) -> None:
    """Tags say that texts are taken."""
    assert get_tags(estimator).input_tags.string, (
        "a text estimator must set input_tags.string = True in __sklearn_tags__. Got False."
    )


def check_text_containers(estimator: Any) -> None:
    """A list, tuple, object array, U array or Series of the same texts gives the same result."""
    texts, y = _problem(estimator)
    fitted = _fitted(estimator)
    expected = _outputs(fitted, texts)
    containers: dict[str, Any] = {
        "a tuple": tuple(texts),
        "an object array": np.array(texts, dtype=object),
        "a U array": np.array(texts),
    }
    try:
        import pandas as pd
    except ImportError:
        pass
    else:  # not the default index: rows must be taken by position
        containers["a pandas Series"] = pd.Series(texts, index=range(_N_TEXTS, 0, -1))
    for name, X in containers.items():
        _assert_close(_outputs(fitted, X), expected, f"for {name} as for a list")
        refitted = _fresh(estimator).fit(X, y)
        _assert_close(_outputs(refitted, texts), expected, f"after a fit on {name} as on a list")


def check_text_bad_rows(estimator: Any) -> None:
    """A missing value, a number or bytes among the texts is an error that names the row."""
    texts, y = _problem(estimator)
    fitted = _fitted(estimator)
    method = next(m for m in ("predict", *_SCORES) if hasattr(fitted, m))
    for bad in (None, float("nan"), 3.5, b"bytes"):
        X = np.array(texts, dtype=object)
        X[_BAD_ROW] = bad
        fit = partial(_fresh(estimator).fit, list(X), y)
        _assert_refuses(fit, f"fit with {bad!r} among the texts", row=_BAD_ROW)
        predict = partial(getattr(fitted, method), X)
        _assert_refuses(predict, f"{method} with {bad!r} among the texts", row=_BAD_ROW)


def check_text_odd_texts(estimator: Any) -> None:
    """Empty texts, lone surrogates, emoji and control characters are texts like any other."""
    texts, y = _problem(estimator)
    odd = ["", " \n\t", "\ud800", "\U0001f469\u200d\U0001f680\ufe0f", "a\x00b", "<s></s>[SEP]"]
    fitted_on_odd = _fresh(estimator).fit([*odd, *texts[len(odd) :]], y)
    for fitted in (fitted_on_odd, _fitted(estimator)):
        for method, values in _outputs(fitted, odd).items():
            assert len(values) == len(odd), (
                f"{method} must return one row per text. Got {len(values)} for {len(odd)}."
            )
            assert values.dtype.kind != "f" or np.isfinite(values).all(), (
                f"{method} must be finite for odd texts. Got {values}."
            )


def check_text_single_string(estimator: Any) -> None:
    """A single str as X is refused, not read letter by letter."""
    _, y = _problem(estimator)
    text = "abcdefghijklmnopqrstuvwxyz"[: len(y)]
    _assert_refuses(lambda: _fresh(estimator).fit(text, y), "fit on a single str")
    fitted = _fitted(estimator)
    _assert_refuses(lambda: _outputs(fitted, text), "predicting a single str")


def check_text_lengths_differ(estimator: Any) -> None:
    """X and y of different lengths are refused."""
    takes_target = is_classifier(estimator) or is_regressor(estimator)
    _skip_unless(takes_target, "the estimator takes no target")
    texts, y = _problem(estimator)
    fit = partial(_fresh(estimator).fit, texts, y[:-1])
    _assert_refuses(fit, "fit with one label less than texts")


def check_text_label_order(estimator: Any) -> None:
    """classes_ are sorted, whatever the order of the labels, and predictions are among them."""
    _skip_unless(is_classifier(estimator), "the estimator is not a classifier")
    texts, labels = _problem(estimator)
    expected = sorted(set(labels))
    for y in (labels, list(labels), labels.astype(str)):
        fitted = _fresh(estimator).fit(texts, y)
        assert list(fitted.classes_) == expected, (
            f"classes_ must be the sorted labels {expected}. Got {list(fitted.classes_)}."
        )
        strange = set(fitted.predict(texts)) - set(expected)
        assert not strange, f"predict must return labels of classes_. Got {strange}."


def check_text_probabilities(estimator: Any) -> None:
    """predict_proba has a column per class and sums to one, and predict is its argmax."""
    _skip_unless(is_classifier(estimator), "the estimator is not a classifier")
    texts, _ = _problem(estimator)
    fitted = _fitted(estimator)
    _skip_unless(hasattr(fitted, "predict_proba"), "the estimator has no predict_proba")
    probabilities = np.asarray(fitted.predict_proba(texts))
    shape = (len(texts), len(fitted.classes_))
    assert probabilities.shape == shape, (
        f"predict_proba must have shape {shape}. Got {probabilities.shape}."
    )
    assert (probabilities >= 0).all(), "predict_proba must not be negative."
    sums = probabilities.sum(axis=1)
    assert np.allclose(sums, 1, atol=1e-5), f"predict_proba must sum to one. Got {sums}."
    best = np.asarray(fitted.classes_)[probabilities.argmax(axis=1)]
    assert np.array_equal(np.asarray(fitted.predict(texts)), best), (
        "predict must be the argmax of predict_proba."
    )


def check_text_rows_independent(estimator: Any) -> None:
    """What is said of a text depends neither on the order of the rows nor on the other rows."""
    is_deterministic = not get_tags(estimator).non_deterministic
    _skip_unless(is_deterministic, "the estimator's tags say that it is not deterministic")
    texts, _ = _problem(estimator)
    fitted = _fitted(estimator)
    expected = _outputs(fitted, texts)
    order = np.random.default_rng(0).permutation(_N_TEXTS)
    for rows, when in [
        (order, "in another order of rows"),
        *((np.array([row]), "for a row alone") for row in (0, _BAD_ROW, _N_TEXTS - 1)),
    ]:
        got = _outputs(fitted, [texts[row] for row in rows])
        _assert_close(got, {method: values[rows] for method, values in expected.items()}, when)


def check_text_same_seed(estimator: Any) -> None:
    """Two clones with the same random_state predict the same, bit for bit."""
    _skip_unless("random_state" in estimator.get_params(), "the estimator has no random_state")
    texts, _ = _problem(estimator)
    first, second = (_outputs(_fitted(estimator), texts) for _ in range(2))
    _assert_same(second, first, "from two clones with the same random_state")


def check_text_pickle(estimator: Any) -> None:
    """A fitted estimator predicts the same, bit for bit, after pickle."""
    texts, _ = _problem(estimator)
    fitted = _fitted(estimator)
    expected = _outputs(fitted, texts)
    restored = pickle.loads(pickle.dumps(fitted))
    _assert_same(_outputs(restored, texts), expected, "after pickle")
    _assert_same(_outputs(fitted, texts), expected, "after it was pickled")


def check_text_global_random_state(estimator: Any) -> None:
    """With an int as random_state, the global generators are neither drawn from nor seeded."""
    _skip_unless("random_state" in estimator.get_params(), "the estimator has no random_state")
    texts, _ = _problem(estimator)
    _fitted(estimator)  # lazy imports are done now, and have drawn what they draw
    # Or a second fit with the same seed would leave no trace.
    random.random()
    np.random.random_sample()
    if "torch" in sys.modules:
        sys.modules["torch"].rand(1)
    before = global_random_states()
    _outputs(_fitted(estimator), texts)
    after = global_random_states()
    changed = [name for name in before if after[name] != before[name]]
    assert not changed, (
        "fit and predict must leave the global random state alone when random_state is an int. "
        f"Changed: {', '.join(changed)}."
    )


def global_random_states() -> dict[str, Any]:
    """Return the states of the global generators of random, numpy and, if loaded, torch."""
    _, keys, *rest = np.random.get_state()
    states: dict[str, Any] = {
        "random": random.getstate(),
        "numpy": (np.asarray(keys).tobytes(), *rest),
    }
    torch = sys.modules.get("torch")
    if torch is not None:
        states["torch"] = torch.get_rng_state().numpy().tobytes()
        if torch.cuda.is_initialized():
            cuda_states = torch.cuda.get_rng_state_all()
            states["torch.cuda"] = [state.numpy().tobytes() for state in cuda_states]
    return states


def check_text_input_unchanged(estimator: Any) -> None:
    """Fitting and predicting work on read-only arrays, and write to none of their arguments."""
    texts, y = _problem(estimator)
    X_array, y_array = np.array(texts, dtype=object), y.copy()
    X_list, y_list = list(texts), list(y)
    X_array.setflags(write=False)
    y_array.setflags(write=False)
    _outputs(_fresh(estimator).fit(X_array, y_array), X_array)
    _outputs(_fresh(estimator).fit(X_list, y_list), X_list)
    unchanged = X_list == texts and y_list == list(y)
    assert unchanged, "fit and predict must not write to the lists that they are given."


def check_text_failed_fit(estimator: Any) -> None:
    """A fit that fails on its input leaves a fitted estimator as it was."""
    texts, y = _problem(estimator)
    fitted = _fitted(estimator)
    expected = _outputs(fitted, texts)
    bad: list[Any] = list(reversed(texts))
    bad[_BAD_ROW] = None
    # Another target, so that one which is stored before the texts are looked at shows.
    other = y + (1 if is_regressor(estimator) else " else")
    _assert_refuses(partial(fitted.fit, bad, other), "fit with None among the texts")
    _assert_same(_outputs(fitted, texts), expected, "after a second fit that failed")


TEXT_CHECKS: dict[str, Callable[[Any], None]] = {
    name: check for name, check in globals().items() if name.startswith("check_text_")
}
