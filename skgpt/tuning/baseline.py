"""The baseline guard: whether a GPT is worth it, or TF-IDF with a linear model does as well."""

import html
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from sklearn import get_config
from sklearn.base import clone, is_classifier
from sklearn.pipeline import Pipeline
from sklearn.utils.metadata_routing import get_routing_for_object

from skgpt.exceptions import BaselineWarning, TuningError, warn_user
from skgpt.tuning.folds import FoldScores, draw_folds, last_step, one_scorer
from skgpt.tuning.linear import LinearTextClassifier


@dataclass(frozen=True, eq=False)
class BaselineReport:
    """What came of a comparison on the same folds.

    Parameters
    ----------
    scores : ndarray of shape (n_folds,)
        The estimator's, higher is better.
    baseline_scores : ndarray of shape (n_folds,)
        The baseline's.
    seconds : ndarray of shape (n_folds,)
        What the estimator took to fit and score each fold.
    baseline_seconds : ndarray of shape (n_folds,)
        What the baseline took.
    test_to_train : float
        Rows that are judged for each row that is trained on.
    scoring : str
        What the scores are.
    name : str
        The estimator's.

    Notes
    -----
    Training sets of different folds overlap, so the scores' differences are not independent, and
    their variance over the folds says too little. `std` is the standard deviation of the mean
    difference with the correction of Nadeau and Bengio, "Inference for the Generalization Error"
    (2003): the variance over the folds times ``1 / n_folds + n_test / n_train``.
    """

    scores: NDArray[np.float64]
    baseline_scores: NDArray[np.float64]
    seconds: NDArray[np.float64] = field(repr=False)
    baseline_seconds: NDArray[np.float64] = field(repr=False)
    test_to_train: float
    scoring: str = "score"
    name: str = "estimator"

    @property
    def difference(self) -> float:
        """The mean difference, the estimator's scores less the baseline's."""
        return float(np.mean(self.scores - self.baseline_scores))

    @property
    def std(self) -> float:
        """The standard deviation of the mean difference; NaN with a single fold."""
        n = len(self.scores)
        if n < 2:
            return math.nan
        spread = float(np.var(self.scores - self.baseline_scores, ddof=1))
        return math.sqrt(spread * (1 / n + self.test_to_train))

    @property
    def n_std(self) -> float:
        """The mean difference in standard deviations; infinite if all folds agree on it."""
        if self.std == 0:
            return math.copysign(math.inf, self.difference) if self.difference else 0.0
        return self.difference / self.std

    @property
    def winner(self) -> Literal["estimator", "baseline"] | None:
        """Whose mean score is higher; None if they are the same."""
        if self.difference == 0:
            return None
        return "estimator" if self.difference > 0 else "baseline"

    @property
    def verdict(self) -> str:
        """Who won, by how much and how sure that is, in a sentence."""
        if self.winner is None:
            return f"{self.name} and the baseline are level."
        who = self.name if self.winner == "estimator" else "The baseline"
        sure = ""
        if not math.isnan(self.n_std):
            sure = f", {abs(self.n_std):.1f} standard deviations"
            if abs(self.n_std) < 1:
                sure += ", which may be chance"
        return f"{who} wins by {abs(self.difference):.4f} ({self.scoring}){sure}."

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain numbers, lists and texts, fit for JSON.

        Returns
        -------
        report : dict
        """
        return {
            "name": self.name,
            "scoring": self.scoring,
            "scores": self.scores.tolist(),
            "baseline_scores": self.baseline_scores.tolist(),
            "seconds": self.seconds.tolist(),
            "baseline_seconds": self.baseline_seconds.tolist(),
            "test_to_train": self.test_to_train,
            "difference": self.difference,
            "std": self.std,
            "n_std": self.n_std,
            "winner": self.winner,
        }

    def to_frame(self) -> Any:
        """Return the folds as a pandas DataFrame.

        Returns
        -------
        frame : DataFrame
            A row per fold: ``score``, ``baseline_score``, ``difference``, ``seconds``,
            ``baseline_seconds``.
        """
        import pandas as pd

        return pd.DataFrame(
            {
                "score": self.scores,
                "baseline_score": self.baseline_scores,
                "difference": self.scores - self.baseline_scores,
                "seconds": self.seconds,
                "baseline_seconds": self.baseline_seconds,
            }
        ).rename_axis("fold")

    def _table(self) -> list[list[str]]:
        folds = zip(self.scores, self.baseline_scores, strict=True)
        rows = [
            [f"fold {number}", f"{own:.4f}", f"{other:.4f}", f"{own - other:+.4f}"]
            for number, (own, other) in enumerate(folds)
        ]
        means = (self.scores.mean(), self.baseline_scores.mean())
        rows.append(["mean", *(f"{mean:.4f}" for mean in means), f"{self.difference:+.4f}"])
        seconds = (self.seconds.sum(), self.baseline_seconds.sum())
        rows.append(["seconds", *(f"{total:.1f}" for total in seconds), ""])
        return [[self.scoring, self.name, "baseline", "difference"], *rows]

    def __str__(self) -> str:
        table = self._table()
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        lines = [
            "  ".join(
                cell.ljust(width) if place == 0 else cell.rjust(width)
                for place, (cell, width) in enumerate(zip(row, widths, strict=True))
            ).rstrip()
            for row in table
        ]
        return "\n".join([*lines, self.verdict])

    def _repr_html_(self) -> str:
        head, *rows = ([html.escape(cell) for cell in row] for row in self._table())
        titles = "".join(f"<th>{cell}</th>" for cell in head)
        body = "".join(
            f"<tr><th>{row[0]}</th>{''.join(f'<td>{cell}</td>' for cell in row[1:])}</tr>"
            for row in rows
        )
        return (
            f"<table><thead><tr>{titles}</tr></thead><tbody>{body}</tbody></table>"
            f"<p>{html.escape(self.verdict)}</p>"
        )


def compare_with_baseline(
    estimator: Any,
    X: Any,
    y: Any,
    *,
    cv: Any = None,
    scoring: str | Callable[..., float] | None = None,
    groups: Any = None,
    sample_weight: Any = None,
    baseline: Any = None,
    n_jobs: int | None = None,
) -> BaselineReport:
    """Score an estimator and a linear model on TF-IDF on the same folds.

    The baseline is a logistic regression, one label against the others, on words and pairs of
    words, their counts taken by their logarithm. It takes seconds; where a fine-tuned GPT is no
    better, it is the one to use. It has the estimator's template, class weights and sample weights,
    and the same steps before it where the estimator is a Pipeline.

    Parameters
    ----------
    estimator : estimator
        A classifier of texts, unfitted or fitted (clones of it are fitted): `GPTTextClassifier`, or
        a Pipeline that ends in one.
    X : array-like of shape (n,) or (n, n_columns)
        Texts, as in `fit`.
    y : array-like of shape (n,), or of shape (n, n_labels)
        Labels, or an indicator.
    cv : int, splitter, iterable of (train, test) or None, default=None
        As in `cross_validate`: None is five stratified folds. Drawn once, for both.
    scoring : str, callable or None, default=None
        A scorer, higher is better. None is the estimator's own ``score``, the accuracy.
    groups : array-like of shape (n,), default=None
        For splitters that keep groups whole.
    sample_weight : array-like of shape (n,), default=None
        Weights of the rows in both fits; scores are not weighted. With metadata routing on, the
        estimator must have said whether its ``fit`` and ``score`` want them, or the scorer has.
    baseline : estimator or None, default=None
        Another model to beat. None is the one above; words are not set apart by spaces in every
        language, and for those a TfidfVectorizer of characters is a better one.
    n_jobs : int or None, default=None
        Folds of the estimator that are fitted at once.

    Returns
    -------
    report : BaselineReport
        Scores and seconds per fold, the mean difference and its standard deviation; `print` it.

    Raises
    ------
    ValueError
        If the estimator is no classifier, if `scoring` names several scores, or if a score is not
        a number. The baseline is fitted first, so most of what is wrong with the data is found
        before the estimator is trained.

    Warns
    -----
    BaselineWarning
        If the estimator's mean score is no higher than the baseline's.

    Examples
    --------
    >>> from skgpt import GPTTextClassifier
    >>> from skgpt.tuning import compare_with_baseline
    >>> report = compare_with_baseline(GPTTextClassifier(), texts, labels)  # doctest: +SKIP
    >>> print(report.verdict)  # doctest: +SKIP
    GPTTextClassifier wins by 0.0213 (accuracy), 2.6 standard deviations.
    """
    if not is_classifier(estimator):
        raise TuningError(
            "`estimator` must be a classifier of texts, or a Pipeline that ends in one. Got "
            f"{type(estimator).__name__}: the baseline knows labels only."
        )
    scorer = one_scorer(estimator, scoring)
    folds = draw_folds(estimator, X, y, cv, groups, sample_weight)
    rival = baseline_for(estimator) if baseline is None else clone(baseline)
    theirs = folds.score(rival, scorer)
    _check_scores(theirs, "the baseline")
    ours = folds.score(estimator, scorer, n_jobs=n_jobs)
    report = compare_scores(estimator, ours, theirs, folds.test_to_train, scoring)
    warn_unless_won(report)
    return report


def compare_scores(
    estimator: Any, ours: FoldScores, theirs: FoldScores, test_to_train: float, scoring: Any = None
) -> BaselineReport:
    """Compare scores that there are already, as after a search.

    Parameters
    ----------
    estimator : estimator
        What is compared with the baseline; it is not fitted.
    ours, theirs : FoldScores
        Its own and the baseline's, on the same folds.
    test_to_train : float
        Rows that are judged for each row that is trained on.
    scoring : str, callable or None
        What the scores are.

    Returns
    -------
    report : BaselineReport

    Raises
    ------
    TuningError
        If a score is not a number.
    """
    _check_scores(ours, _name_of(estimator))
    return BaselineReport(
        scores=ours.scores,
        baseline_scores=theirs.scores,
        seconds=ours.seconds,
        baseline_seconds=theirs.seconds,
        test_to_train=test_to_train,
        scoring=_called(scoring),
        name=_name_of(estimator),
    )


def warn_unless_won(report: BaselineReport) -> None:
    """Warn if the estimator of a report did no better than the baseline.

    Parameters
    ----------
    report : BaselineReport

    Warns
    -----
    BaselineWarning
    """
    if report.winner != "estimator":
        warn_user(
            f"{report.verdict} The baseline took {report.baseline_seconds.sum():.1f} s, "
            f"{report.name} {report.seconds.sum():.0f} s: try other parameters (more epochs, "
            "another pooling or learning rate), or use the baseline.",
            BaselineWarning,
        )


def baseline_for(estimator: Any) -> Any:
    """Return the unfitted model that an estimator has to beat.

    Parameters
    ----------
    estimator : estimator
        A classifier of texts, or a Pipeline that ends in one; its other steps are cloned.

    Returns
    -------
    baseline : LinearTextClassifier or Pipeline
    """
    last = last_step(estimator)
    linear = LinearTextClassifier(
        template=getattr(last, "template", None), class_weight=getattr(last, "class_weight", None)
    )
    if get_config()["enable_metadata_routing"]:
        _ask_like(last, linear)
    return _in_place_of_last(estimator, linear)


def _ask_like(last: Any, linear: LinearTextClassifier) -> None:
    """Have the baseline want weights where the estimator does, under the name it has for them."""
    asked = get_routing_for_object(last)
    # Of one that has not said what it wants, it is for scikit-learn to complain.
    for method, unsaid in (("fit", True), ("score", False)):
        wanted = getattr(asked, method).requests if hasattr(asked, method) else {}
        said = wanted.get("sample_weight")
        getattr(linear, f"set_{method}_request")(sample_weight=unsaid if said is None else said)


def _in_place_of_last(estimator: Any, linear: LinearTextClassifier) -> Any:
    if not isinstance(estimator, Pipeline):
        return linear
    copied = clone(estimator)
    name, last = copied.steps[-1]
    copied.steps[-1] = (name, _in_place_of_last(last, linear))
    return copied


def _check_scores(result: FoldScores, of: str) -> None:
    missing = np.flatnonzero(np.isnan(result.scores))
    if len(missing):
        raise TuningError(
            f"`scoring` must give a number on every fold. For {of} it gives none on fold "
            f"{missing[0]}: a metric that needs every class finds too few rows there. Take fewer "
            "folds, stratified ones, or another `scoring`."
        )


def _name_of(estimator: Any) -> str:
    return type(last_step(estimator)).__name__


def _called(scoring: Any) -> str:
    if scoring is None:
        return "accuracy"
    return scoring if isinstance(scoring, str) else getattr(scoring, "__name__", repr(scoring))
