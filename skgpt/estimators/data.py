"""What a fit is given, checked whole before anything is trained."""

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.utils.validation import validate_data

from skgpt.data.inputs import TextColumns, check_texts, check_weight, rows_of
from skgpt.data.splits import Split, all_rows, given_rows, group_codes, hold_out
from skgpt.data.targets import Target, join
from skgpt.data.template import Template, parse_template
from skgpt.exceptions import InvalidTextError

COLUMN_ATTRIBUTES = ("n_features_in_", "feature_names_in_")

Encode = Callable[[Any, int, Any, str], Target]  # y, rows, known classes or None, y's name


@dataclass(frozen=True)
class Given:
    """What the caller of `fit` passed, as it came.

    Parameters
    ----------
    X, y, sample_weight : array-like
    X_val, y_val, sample_weight_val : array-like or None
    groups : array-like or None
    """

    X: Any
    y: Any
    sample_weight: Any = None
    X_val: Any = None
    y_val: Any = None
    sample_weight_val: Any = None
    groups: Any = None


@dataclass(frozen=True)
class HeldOut:
    """The held-out rows as a scorer is to be given them: X of the user's kind, y an array."""

    X: Any
    y: Any
    sample_weight: NDArray[np.float64] | None


@dataclass(frozen=True)
class FitData:
    """Checked data of one fit: the rows to train on, and behind them those passed as `X_val`.

    Parameters
    ----------
    columns : list of list of str
        The texts, column by column.
    template : Template
    target : Target
    sample_weight : ndarray of shape (n,)
    split : Split
    held_out : HeldOut or None
    attributes : dict
        ``n_features_in_`` and ``feature_names_in_``, as far as X says them.
    split_seed : int
        What the held-out rows were, or would be, drawn from.
    """

    columns: list[list[str]]
    template: Template
    target: Target
    sample_weight: NDArray[np.float64]
    split: Split
    held_out: HeldOut | None
    attributes: dict[str, Any]
    split_seed: int


def check_fit_data(
    estimator: Any,
    given: Given,
    encode: Encode,
    *,
    classes: Any = None,
    columns: dict[str, Any] | None = None,
    seed: int,
) -> FitData:
    """Check everything that a fit is given, and draw what it holds out.

    Parameters
    ----------
    estimator : BaseGPTText
        For its parameters; nothing is set on it.
    given : Given
    encode : callable
        Checks y.
    classes : ndarray, default=None
        The classes, where they are known already.
    columns : dict, default=None
        `COLUMN_ATTRIBUTES` of an earlier call, which X must match.
    seed : int
        Of the rows to hold out.

    Returns
    -------
    data : FitData

    Raises
    ------
    ValueError
        If something is not as `fit` describes it.
    """
    texts = check_texts(given.X, estimator=estimator)
    attributes = column_attributes(estimator, texts)
    if columns is not None:
        check_columns_match(columns, texts, estimator=estimator)
        attributes = columns
    n = len(texts)
    template = parse_template(estimator.template, len(texts.cells), texts.names)
    target = encode(given.y, n, classes, "y")
    weight = check_weight(given.sample_weight, n)
    data = FitData(texts.cells, template, target, weight, all_rows(n), None, attributes, seed)
    if given.X_val is not None:
        return _with_validation_data(data, estimator, given, encode)
    for name in ("y_val", "sample_weight_val"):
        if getattr(given, name) is not None:
            raise InvalidTextError(f"`{name}` belongs to `X_val`, which is None: pass both.")
    return _with_held_out_rows(data, estimator, given) if estimator._holds_out else data


def trained_on(
    data: FitData, goes_on_from: Mapping[str, Any] | None = None
) -> dict[str, Any] | None:
    """Count the rows that are trained on, and those of each label.

    Parameters
    ----------
    data : FitData
    goes_on_from : mapping, default=None
        The attributes of an estimator whose calls before are counted too, if there were any.

    Returns
    -------
    counts : dict or None
        ``rows``, and ``labels``: for each label, as text, its rows. None if the calls before
        didn't count theirs, as those in older pickles.
    """
    before: Mapping[str, Any] | None = {"rows": 0, "labels": {}}
    if goes_on_from is not None and "_fitted_with" in goes_on_from:
        before = goes_on_from["_fitted_with"].get("trained_on")
    if before is None:
        return None
    codes = data.target.codes[data.split.train]
    if data.target.is_multilabel:
        each = codes.sum(axis=0)
    else:
        each = np.bincount(codes, minlength=data.target.width)
    names = map(str, data.target.classes.tolist())
    return {
        "rows": before["rows"] + len(codes),
        "labels": {
            name: before["labels"].get(name, 0) + int(n)
            for name, n in zip(names, each, strict=True)
        },
    }


def _with_validation_data(data: FitData, estimator: Any, given: Given, encode: Encode) -> FitData:
    if given.y_val is None:
        raise InvalidTextError("`X_val` needs its labels, `y_val`, which is None: pass both.")
    with _about("X_val"):
        texts = check_texts(given.X_val, estimator=estimator)
    check_columns_match(data.attributes, texts, of="X_val", estimator=estimator)
    n, n_val = len(data.columns[0]), len(texts)
    target = encode(given.y_val, n_val, data.target.classes, "y_val")
    with _about("sample_weight_val"):
        weight = check_weight(given.sample_weight_val, n_val)
    given_weight = None if given.sample_weight_val is None else weight
    return replace(
        data,
        columns=[a + b for a, b in zip(data.columns, texts.cells, strict=True)],
        target=join(data.target, target),
        sample_weight=np.concatenate([data.sample_weight, weight]),
        split=given_rows(n, n_val),
        held_out=HeldOut(given.X_val, target.labels, given_weight),
    )


@contextmanager
def _about(name: str) -> Iterator[None]:
    """Say in an error of a check that it speaks of another argument than usual."""
    try:
        yield
    except ValueError as error:
        raise InvalidTextError(f"In `{name}`: {error}") from error


def _with_held_out_rows(data: FitData, estimator: Any, given: Given) -> FitData:
    # A row that weighs nothing is as good as left out, and no use among the held-out rows.
    weighty = np.flatnonzero(data.sample_weight > 0)
    groups = None
    if given.groups is not None:
        groups = group_codes(given.groups, len(data.target))[weighty]
    strata = data.target.codes[weighty]
    fraction, seed = estimator.validation_fraction, data.split_seed
    held = weighty[hold_out(strata, fraction, seed, groups).held_out]
    return replace(
        data,
        split=Split(np.setdiff1d(np.arange(len(data.sample_weight)), held), held),
        held_out=HeldOut(
            rows_of(given.X, held),
            data.target.labels[held],
            None if given.sample_weight is None else data.sample_weight[held],
        ),
    )


def column_attributes(estimator: Any, texts: TextColumns) -> dict[str, Any]:
    """Return what scikit-learn would set for the columns of X, on a copy that is thrown away."""
    names = texts.names or []
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise InvalidTextError(
            f"The columns of X must have different names. Several are called {twice[0]!r}: rename "
            "them, or pass X.to_numpy()."
        )
    probe = copy.copy(estimator)
    for name in COLUMN_ATTRIBUTES:
        probe.__dict__.pop(name, None)
    validate_data(probe, texts.X, skip_check_array=True)
    return {name: probe.__dict__[name] for name in COLUMN_ATTRIBUTES if name in probe.__dict__}


def columns_of_fit(fitted: Any) -> dict[str, Any]:
    """Return those of `COLUMN_ATTRIBUTES` that an estimator has."""
    return {name: getattr(fitted, name) for name in COLUMN_ATTRIBUTES if hasattr(fitted, name)}


def check_columns_match(
    fitted: Mapping[str, Any], texts: TextColumns, *, of: str = "X", estimator: Any
) -> None:
    """Check that X has the columns of the fit; one column and a plain list are the same.

    Parameters
    ----------
    fitted : mapping
        Holds `COLUMN_ATTRIBUTES`, as far as the fitted X said them.
    texts : TextColumns
    of : str
        Its name, for error messages.
    estimator : estimator
        Named in scikit-learn's error messages.

    Raises
    ------
    ValueError
        If the number of columns or their names differ.
    """
    expected, found = fitted.get("n_features_in_"), texts.n_features
    if found is not None and expected is not None:
        probe = copy.copy(estimator)
        probe.__dict__.update(fitted)
        validate_data(probe, texts.X, reset=False, skip_check_array=True)
    elif (found or 1) != (expected or 1):
        raise InvalidTextError(
            f"{of} must have as many columns as at fit: {expected or 'one text per row'}. Got "
            f"{found or 'one text per row'}."
        )
