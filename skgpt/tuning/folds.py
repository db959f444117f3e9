"""Folds that several candidates share: data, drawn once, and how an estimator is scored on it."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn import get_config
from sklearn.base import is_classifier
from sklearn.metrics import check_scoring
from sklearn.model_selection import check_cv, cross_validate
from sklearn.pipeline import Pipeline

from skgpt._base import BaseGPTText
from skgpt.caching import searching
from skgpt.data.inputs import find_columns
from skgpt.data.targets import has_columns
from skgpt.exceptions import TuningError
from skgpt.fit_data import lay_out

Split = tuple[NDArray[np.int64], NDArray[np.int64]]  # rows to train on, rows to score


class FoldScores(NamedTuple):
    """A score for each fold, and the seconds that it took to fit and to score."""

    scores: NDArray[np.float64]
    seconds: NDArray[np.float64]


def score_folds(
    estimator: Any,
    X: Any,
    y: Any,
    splits: Sequence[Split],
    scorer: Any,
    sample_weight: Any = None,
    n_jobs: int | None = None,
) -> FoldScores:
    """Fit clones on these folds and score them; all errors are raised."""
    params = None
    if sample_weight is not None:
        # With metadata routing, each step has said itself what it takes.
        prefix = "" if get_config()["enable_metadata_routing"] else path_to_last_step(estimator)
        params = {f"{prefix}sample_weight": sample_weight}
    with searching():
        result = cross_validate(
            estimator,
            X,
            y,
            cv=splits,
            scoring=scorer,
            params=params,
            n_jobs=n_jobs,
            error_score="raise",
        )
    return FoldScores(
        np.asarray(result["test_score"], dtype=np.float64),
        np.asarray(result["fit_time"] + result["score_time"]),
    )


def draw_splits(estimator: Any, X: Any, y: Any, cv: Any, **params: Any) -> list[Split]:
    """Draw the folds that all candidates are scored on; `cv` as in `cross_validate`."""
    if isinstance(estimator, BaseGPTText):
        # An error of a fold's fit would number the rows within that fold.
        texts = find_columns(X, estimator=estimator)
        template = lay_out(estimator, len(texts.columns), texts.names)
        texts.read(template.places(len(texts.columns)))
        estimator._encode_target(y, len(texts), None, "y")
    # It stratifies by no y of several columns, and fails at sorting labels of several types.
    stratified = is_classifier(estimator) and not has_columns(y)
    splitter = check_cv(cv, y, classifier=stratified)
    found = splitter.split(X, y, **params)
    splits = [(np.asarray(train), np.asarray(test)) for train, test in found]
    if not splits:
        raise TuningError(f"`cv` must give at least one fold. {splitter!r} gives none.")
    return splits


def one_scorer(estimator: Any, scoring: str | Callable[..., float] | None) -> Any:
    """Return the scorer of `scoring`, which must be a single one; None is ``estimator.score``."""
    if scoring is not None and not isinstance(scoring, str) and not callable(scoring):
        raise TuningError(
            "`scoring` must be one scorer: its name, a callable(estimator, X, y) or None. Got "
            f"{scoring!r}: pass the one that decides."
        )
    return check_scoring(estimator, scoring)


def last_step(estimator: Any) -> Any:
    """Return the last step of a Pipeline, however nested, or the estimator itself."""
    while isinstance(estimator, Pipeline):
        estimator = estimator.steps[-1][1]
    return estimator


def path_to_last_step(estimator: Any) -> str:
    """Return the prefix of the last step's parameters: ``""`` or ``clf__``."""
    path = ""
    while isinstance(estimator, Pipeline):
        name, estimator = estimator.steps[-1]
        path += f"{name}__"
    return path
