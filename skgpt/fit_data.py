"""The inputs of a fit: checked whole before anything is trained, with rows held out.

It stands apart from fitting.py so that what a fit does fits on a screen there.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skgpt.data.inputs import as_known_container, check_weight, find_columns, rows_of
from skgpt.data.splits import Split, all_rows, group_codes, hold_out
from skgpt.data.template import Template, parse_template
from skgpt.data.values import AnyTarget
from skgpt.exceptions import InvalidTextError
from skgpt.fitted_model import column_attributes, match_columns
from skgpt.label_words import lay_out_prompt


@dataclass(frozen=True)
class FitInputs:
    """What the caller of `fit` passed, as it came but for frames that aren't known here."""

    X: Any
    y: Any
    sample_weight: Any = None
    X_val: Any = None
    y_val: Any = None
    sample_weight_val: Any = None
    groups: Any = None

    def __post_init__(self) -> None:
        # Rows are taken out of it later on.
        for name in ("X", "X_val"):
            object.__setattr__(self, name, as_known_container(getattr(self, name)))


@dataclass(frozen=True)
class HeldOut:
    """The held-out rows as a scorer gets them: X of the user's kind, y an array."""

    X: Any
    y: Any
    sample_weight: NDArray[np.float64] | None


@dataclass(frozen=True)
class FitData:
    """The checked data of a fit: the rows of X, and behind them those of `X_val`.

    `cells` holds the texts, column by column, empty ones where the template reads none; `columns`
    the attributes that scikit-learn sets for X. `loss_weight` is `sample_weight` times the weights
    of the classes.
    """

    cells: list[list[str]]
    template: Template
    target: AnyTarget
    sample_weight: NDArray[np.float64]
    loss_weight: NDArray[np.float64]
    split: Split
    held_out: HeldOut | None
    columns: dict[str, Any]
    split_seed: int


def check_inputs(
    estimator: Any,
    inputs: FitInputs,
    split_seed: int,
    *,
    known: Any = None,
    columns: Mapping[str, Any] | None = None,
    weigh: bool = True,
) -> FitData:
    """Check everything that a fit is given, before anything is trained, and hold out rows.

    A fit that goes on passes the seed that its rows were held out by, as others have been trained
    on already, and what is `known` of y, its classes, say; its X must match `columns`.
    """
    name = type(estimator).__name__
    texts = find_columns(inputs.X, estimator=name)
    n, width, names = len(texts), len(texts.columns), texts.names
    if columns is None:
        found = column_attributes(texts, name)
    else:
        found = dict(columns)
        width, names = found.get("n_features_in_", 1), found.get("feature_names_in_")
    template = lay_out(estimator, width, names)
    cells = texts.read(match_columns(found, template, texts, name=name), to_fit=name)
    target = estimator._encode_target(inputs.y, n, known, "y")
    weight = check_weight(inputs.sample_weight, n)
    data = FitData(cells, template, target, weight, weight, all_rows(n), None, found, split_seed)

    # Rows to hold out: those of X_val, or some of X.
    if inputs.X_val is not None:
        data = _with_validation_rows(data, estimator, inputs)
    else:
        for argument in ("y_val", "sample_weight_val"):
            if getattr(inputs, argument) is not None:
                raise InvalidTextError(
                    f"`{argument}` belongs to `X_val`, which is None: pass both."
                )
        if holds_out(estimator):
            data = _with_held_out_rows(data, estimator, inputs)

    target = data.target.learned_on(data.split.train, data.sample_weight)
    data = replace(data, target=target)
    if not weigh:  # class weights are for labels that nobody knows yet
        return replace(data, loss_weight=np.ones_like(data.target.codes, dtype=np.float64))
    weight = estimator._loss_weights(data.target, data.sample_weight, data.split)
    return replace(data, loss_weight=weight)


def lay_out(estimator: Any, n_columns: int, names: Sequence[str] | None) -> Template:
    """Return an estimator's template over these columns."""
    prompted = getattr(estimator, "label_words", None) is not None
    return (lay_out_prompt if prompted else parse_template)(estimator.template, n_columns, names)


def holds_out(estimator: Any) -> bool:
    """Say whether a fit that gets no `X_val` holds rows out."""
    return bool(estimator.early_stopping or getattr(estimator, "calibrate", False))


def _with_validation_rows(data: FitData, estimator: Any, inputs: FitInputs) -> FitData:
    if inputs.y_val is None:
        raise InvalidTextError("`X_val` needs its labels, `y_val`, which is None: pass both.")
    name = type(estimator).__name__
    with _about("X_val"):
        texts = find_columns(inputs.X_val, estimator=name)
    places = match_columns(data.columns, data.template, texts, of="X_val", name=name)
    with _about("X_val"):
        cells = texts.read(places)
    n, n_val = len(data.target), len(texts)
    target = estimator._encode_target(inputs.y_val, n_val, data.target.known, "y_val")
    with _about("sample_weight_val"):
        weight = check_weight(inputs.sample_weight_val, n_val)
    given_weight = None if inputs.sample_weight_val is None else weight
    return replace(
        data,
        cells=[a + b for a, b in zip(data.cells, cells, strict=True)],
        target=data.target.join(target),
        sample_weight=np.concatenate([data.sample_weight, weight]),
        split=Split(np.arange(n), np.arange(n, n + n_val)),
        held_out=HeldOut(inputs.X_val, target.labels, given_weight),
    )


@contextmanager
def _about(name: str) -> Iterator[None]:
    """Say in an error of a check which argument it is about."""
    try:
        yield
    except ValueError as error:
        raise InvalidTextError(f"In `{name}`: {error}") from error


def _with_held_out_rows(data: FitData, estimator: Any, inputs: FitInputs) -> FitData:
    # A row that weighs nothing is as good as left out, and no use among the held-out rows.
    weighty = np.flatnonzero(data.sample_weight > 0)
    groups = None
    if inputs.groups is not None:
        groups = group_codes(inputs.groups, len(data.target))[weighty]
    strata = data.target.strata[weighty]
    split = hold_out(strata, estimator.validation_fraction, data.split_seed, groups)
    held = weighty[split.held_out]
    return replace(
        data,
        split=Split(np.setdiff1d(np.arange(len(data.sample_weight)), held), held),
        held_out=HeldOut(
            rows_of(inputs.X, held),
            data.target.labels[held],
            None if inputs.sample_weight is None else data.sample_weight[held],
        ),
    )
