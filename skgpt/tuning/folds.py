"""One estimator on one fold after the other: the same folds, weights and scorer for all."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn import get_config
from sklearn.base import is_classifier
from sklearn.metrics import check_scoring
from sklearn.model_selection import check_cv, cross_validate
from sklearn.pipeline import Pipeline

from skgpt._base import BaseGPTText
from skgpt.data.inputs import check_texts
from skgpt.exceptions import TuningError

Fold = tuple[NDArray[np.int64], NDArray[np.int64]]  # rows to train on, rows to judge


class FoldScores(NamedTuple):
    """A score for each fold, and the seconds that it took to fit and to score."""

    scores: NDArray[np.float64]
    seconds: NDArray[np.float64]


@dataclass(frozen=True)
class Folds:
    """Data and how it is divided, drawn once.

    Parameters
    ----------
    X : array-like
    y : array-like
    rows : list of (train, test)
    sample_weight : array-like or None
    """

    X: Any
    y: Any
    rows: list[Fold]
    sample_weight: Any = None

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def test_to_train(self) -> float:
        """Rows that are judged for each row that is trained on, the mean over the folds."""
        return float(np.mean([len(test) / len(train) for train, test in self.rows]))

    def score(
        self, estimator: Any, scorer: Any, numbers: slice = slice(None), n_jobs: int | None = None
    ) -> FoldScores:
        """Fit clones on some of the folds and score them; whatever goes wrong is raised.

        Parameters
        ----------
        estimator : estimator
        scorer : callable
        numbers : slice
            Of the folds; all of them by default.
        n_jobs : int or None
            As in `cross_validate`.

        Returns
        -------
        results : FoldScores
        """
        result = cross_validate(
            estimator,
            self.X,
            self.y,
            cv=self.rows[numbers],
            scoring=scorer,
            params=self._params(estimator),
            n_jobs=n_jobs,
            error_score="raise",
        )
        return FoldScores(
            np.asarray(result["test_score"], dtype=np.float64),
            np.asarray(result["fit_time"] + result["score_time"]),
        )

    def _params(self, estimator: Any) -> dict[str, Any] | None:
        if self.sample_weight is None:
            return None
        # With metadata routing, each step has said itself what it wants.
        prefix = "" if get_config()["enable_metadata_routing"] else path_to_last(estimator)
        return {f"{prefix}sample_weight": self.sample_weight}


def check_rows(estimator: Any, X: Any, y: Any) -> None:
    """Check texts and labels as the estimator's `fit` does, if it is one of ours.

    In a fold the rows have other numbers, and there a user would look for what is wrong in vain.

    Raises
    ------
    InvalidTextError
        As the estimator's `fit`.
    """
    if isinstance(estimator, BaseGPTText):
        n_rows = len(check_texts(X, estimator=estimator))
        estimator._encode_target(y, n_rows, None, "y")


def draw_folds(
    estimator: Any, X: Any, y: Any, cv: Any, groups: Any = None, sample_weight: Any = None
) -> Folds:
    """Draw the folds that every candidate is scored on.

    Parameters
    ----------
    estimator : estimator
        A classifier's folds are stratified.
    X, y : array-like
    cv : int, splitter, iterable or None
        As in `cross_validate`; None is 5 folds.
    groups : array-like or None
        For splitters that keep groups whole.
    sample_weight : array-like or None

    Returns
    -------
    folds : Folds
    """
    check_rows(estimator, X, y)
    splitter = check_cv(cv, y, classifier=is_classifier(estimator))
    rows = list(splitter.split(X, y, groups))
    if not rows:
        raise TuningError(f"`cv` must give at least one fold. {splitter!r} gives none.")
    return Folds(X, y, rows, sample_weight)


def one_scorer(estimator: Any, scoring: str | Callable[..., float] | None) -> Any:
    """Return the scorer of `scoring`, which must be a single one.

    Parameters
    ----------
    estimator : estimator
    scoring : str, callable or None
        None is the estimator's own ``score``.

    Returns
    -------
    scorer : callable

    Raises
    ------
    TuningError
        If it names several scores.
    """
    if scoring is not None and not isinstance(scoring, str) and not callable(scoring):
        raise TuningError(
            "`scoring` must be one scorer: its name, a callable(estimator, X, y) or None. Got "
            f"{scoring!r}: pass the one that decides."
        )
    return check_scoring(estimator, scoring)


def last_step(estimator: Any) -> Any:
    """Return what an estimator ends in: the last step of a Pipeline, or itself."""
    while isinstance(estimator, Pipeline):
        estimator = estimator.steps[-1][1]
    return estimator


def path_to_last(estimator: Any) -> str:
    """Return what stands before the names of the last step's parameters: ``""`` or ``clf__``."""
    path = ""
    while isinstance(estimator, Pipeline):
        name, estimator = estimator.steps[-1]
        path += f"{name}__"
    return path
