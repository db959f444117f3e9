"""Baselines: linear models, scored on the folds of the estimator that is to beat the best of them.

`compare_with_baseline` is for one estimator. A search scores baselines as it does a trial, before
the first one: they take seconds, and an error in one then costs no training.
"""

import html
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.special import expit
from sklearn import get_config
from sklearn.base import (
    BaseEstimator,
    ClassifierMixin,
    RegressorMixin,
    clone,
    is_classifier,
    is_regressor,
)
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import KFold, StratifiedKFold
from sklearn.pipeline import Pipeline
from sklearn.utils.metadata_routing import get_routing_for_object
from sklearn.utils.validation import check_is_fitted, has_fit_parameter

from skgpt._base import BaseGPTText
from skgpt.data.inputs import as_known_container, check_weight, find_columns
from skgpt.data.targets import encode_target, share_right, side_by_side
from skgpt.data.template import fields_of, parse_template
from skgpt.data.values import encode_values
from skgpt.data.weights import ClassWeight, loss_weights
from skgpt.exceptions import BaselineWarning, TuningError, warn_user
from skgpt.training.config import resolve_epochs
from skgpt.tuning.folds import (
    FoldScores,
    Split,
    draw_splits,
    last_step,
    one_scorer,
    path_to_last_step,
    score_folds,
)
from skgpt.tuning.trial import Evaluator
from skgpt.zero_shot import GPTZeroShotClassifier

# Signs are words of their own: an emoji or an exclamation mark says much about a short text.
_WORD = r"\w+|[^\w\s]"
_CERTAIN = 10.0  # the logit of a label that all rows have, or none
# Rows of TF-IDF have norm one, so scikit-learn's default of 1 for C regularises far too strongly:
# on R8 and 20 Newsgroups it costs six to fourteen points, while 300 is level with a linear SVM.
# Which is best depends on the texts; the first wins a draw.
_GRID = [(n_grams, C) for n_grams in ((1, 2), (1, 1)) for C in (300.0, 30.0, 3.0)]
_RIDGE_GRID = [(n_grams, alpha) for n_grams in ((1, 2), (1, 1)) for alpha in (0.3, 1.0, 3.0)]
_FOLDS, _MOST_ROWS = 3, 2000  # that the choice is made on


@dataclass(frozen=True, eq=False)
class BaselineReport:
    """What came of a comparison on the same folds.

    Parameters
    ----------
    scores : ndarray of shape (n_folds,)
        The estimator's, higher is better.
    baseline_scores : ndarray of shape (n_folds,)
        The baseline's; of several, those of the best in the mean.
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
    baseline_name : str
        What the baseline is.
    others : dict of str to float
        Mean scores of the other baselines.
    n_texts : int
        Rows that were trained on, in the mean of the folds.
    n_epochs : int
        Passes over them that the estimator made; with early stopping at most. 0 is not known.

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
    baseline_name: str = "baseline"
    others: dict[str, float] = field(default_factory=dict)
    n_texts: int = 0
    n_epochs: int = 0

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
            return f"{self.name} and the baseline, {self.baseline_name}, are level."
        who = self.name if self.winner == "estimator" else f"The baseline, {self.baseline_name},"
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
        fields = vars(self).items()
        return {
            **{k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in fields},
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
        return [[self.scoring, self.name, self.baseline_name, "difference"], *rows]

    def _summary(self) -> list[str]:
        others = [f"{name}: {mean:.4f}" for name, mean in self.others.items()]
        return [self.verdict, *([f"Other baselines: {', '.join(others)}."] if others else [])]

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
        return "\n".join([*lines, *self._summary()])

    def _repr_html_(self) -> str:
        head, *rows = ([html.escape(cell) for cell in row] for row in self._table())
        titles = "".join(f"<th>{cell}</th>" for cell in head)
        body = "".join(
            f"<tr><th>{row[0]}</th>{''.join(f'<td>{cell}</td>' for cell in row[1:])}</tr>"
            for row in rows
        )
        return (
            f"<table><thead><tr>{titles}</tr></thead><tbody>{body}</tbody></table>"
            f"<p>{html.escape(' '.join(self._summary()))}</p>"
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
    """Score an estimator and linear models on the same folds; the best of these is to be beaten.

    They take seconds; where a fine-tuned GPT is no better, one of them is the one to use. They have
    the estimator's template, class weights and sample weights, and the same steps before them where
    the estimator is a Pipeline.

    Parameters
    ----------
    estimator : estimator
        A classifier or regressor of texts, unfitted or fitted (clones of it are fitted):
        `GPTTextClassifier` or `GPTTextRegressor`, or a Pipeline that ends in one.
    X : array-like of shape (n,) or (n, n_columns)
        Texts, as in `fit`.
    y : array-like of shape (n,), (n, n_labels) or (n, n_outputs)
        Labels, an indicator, columns of labels, or numbers.
    cv : int, splitter, iterable of (train, test) or None, default=None
        As in `cross_validate`: None is five folds, stratified for a classifier. Drawn once, for
        both.
    scoring : str, callable or None, default=None
        A scorer, higher is better. None is the estimator's own ``score``, the accuracy or
        R²; errors are negative, as in "neg_mean_absolute_error".
    groups : array-like of shape (n,), default=None
        For splitters that keep groups whole.
    sample_weight : array-like of shape (n,), default=None
        Weights of the rows in both fits; scores are not weighted. With metadata routing on, the
        estimator must have said whether its ``fit`` and ``score`` want them, or the scorer has.
    baseline : str, estimator, list of these or None, default=None
        What is to be beaten. "tfidf" is a logistic regression, one label against the others, on
        words or on words and pairs of words, their counts taken by their logarithm; its n-grams and
        C are chosen by cross-validation within the training rows. For a regressor it is ridge
        regression, chosen likewise. "frozen" is the estimator's own model of which nothing but the
        head learns, "minilm-l6" the same with that encoder, which is fetched once. "zero-shot" is
        `GPTZeroShotClassifier` with the estimator's model, and its template if that ends in words:
        for labels that are words, one per text. It learns nothing, so weights don't count there.
        None is "tfidf" and, for skgpt's own estimators, "frozen". Words are not set apart by spaces
        in every language: for those pass a Pipeline that begins with a TfidfVectorizer of
        characters.
    n_jobs : int or None, default=None
        Folds of the estimator that are fitted at once.

    Returns
    -------
    report : BaselineReport
        Scores and seconds per fold, the mean difference and its standard deviation; `print` it.

    Raises
    ------
    ValueError
        If the estimator is neither classifier nor regressor, if `baseline` is not as described, if
        `scoring` names several scores, or if a score is not a number. The baselines are fitted
        first, so most of what is wrong with the data is found before the estimator is trained.

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
    if not (is_classifier(estimator) or is_regressor(estimator)):
        raise TuningError(
            "`estimator` must be a classifier or a regressor of texts, or a Pipeline that ends in "
            f"one. Got {type(estimator).__name__}: the baseline knows labels and numbers only."
        )
    scorer = one_scorer(estimator, scoring)
    X = as_known_container(X)
    splits = draw_splits(estimator, X, y, cv, groups=groups)
    theirs = {}
    for name, rival in rivals_of(estimator, baseline).items():
        weight = sample_weight if has_fit_parameter(last_step(rival), "sample_weight") else None
        theirs[name] = score_folds(rival, X, y, splits, scorer, weight)
        _check_scores(theirs[name], name)
    ours = score_folds(estimator, X, y, splits, scorer, sample_weight, n_jobs)
    last, n_epochs = last_step(estimator), 0
    if isinstance(last, BaseGPTText) and last.trainable_layers != 0:
        n_epochs = resolve_epochs(last.max_epochs, _mean_size(splits), last.batch_size)
    report = compare_scores(estimator, ours, theirs, splits, scoring, n_epochs)
    warn_unless_won(report)
    return report


def compare_scores(
    estimator: Any,
    ours: FoldScores,
    theirs: Mapping[str, FoldScores],
    splits: Sequence[Split],
    scoring: Any = None,
    n_epochs: int = 0,
) -> BaselineReport:
    """Compare the scores of an estimator and of the best baseline; each must be a number."""
    means = {rival: float(np.mean(scores)) for rival, (scores, _) in theirs.items()}
    best = max(means, key=lambda rival: means[rival])
    name = type(last_step(estimator)).__name__
    _check_scores(ours, name)
    if scoring is None:
        scoring = "r2" if is_regressor(estimator) else "accuracy"
    elif not isinstance(scoring, str):
        scoring = getattr(scoring, "__name__", repr(scoring))
    return BaselineReport(
        scores=ours.scores,
        baseline_scores=theirs[best].scores,
        seconds=ours.seconds,
        baseline_seconds=theirs[best].seconds,
        test_to_train=float(np.mean([len(test) / len(train) for train, test in splits])),
        scoring=scoring,
        name=name,
        baseline_name=best,
        others={rival: mean for rival, mean in means.items() if rival != best},
        n_texts=_mean_size(splits),
        n_epochs=n_epochs,
    )


def _mean_size(splits: Sequence[Split]) -> int:
    return round(np.mean([len(train) for train, _ in splits]))


def _check_scores(result: FoldScores, of: str) -> None:
    missing = np.flatnonzero(np.isnan(result.scores))
    if len(missing):
        raise TuningError(
            f"`scoring` must give a number on every fold. For {of} it gives none on fold "
            f"{missing[0]}: a metric that needs every class finds too few rows there. Take fewer "
            "folds, stratified ones, or another `scoring`."
        )


def warn_unless_won(report: BaselineReport | None) -> None:
    """Warn if the estimator did no better than the baseline, or has no scores to compare."""
    if report is None:
        warn_user(
            "The trial that `refit` chose has no scores to compare with the baseline, as it was "
            "pruned or failed: have it choose among those whose trial_state is COMPLETE.",
            BaselineWarning,
        )
    elif report.winner != "estimator":
        epochs = f", for {report.n_epochs} epochs" if report.n_epochs else ""
        warn_user(
            f"{report.verdict} Each fold had {report.n_texts} texts to train on{epochs}. The "
            f"baseline took {report.baseline_seconds.sum():.1f} s, {report.name} "
            f"{report.seconds.sum():.0f} s: label more texts, try other parameters, or use the "
            "baseline.",
            BaselineWarning,
        )


# --- The baselines of a search


def score_baselines(evaluator: Evaluator, baseline: Any) -> dict[str, FoldScores]:
    """Evaluate baselines as a search does a trial: on the same rows, by the same scorer."""
    last = last_step(evaluator.estimator)
    if not isinstance(last, BaseGPTText):
        raise TuningError(
            "`baseline` needs skgpt's classifier or regressor, or a Pipeline that ends in one. Got "
            f"one that ends in {type(last).__name__}: pass baseline=False."
        )
    theirs = {}
    rivals = rivals_of(evaluator.estimator, None if baseline is True else baseline)
    for name, rival in rivals.items():
        of_baseline = replace(
            evaluator,
            estimator=rival,
            fit_params=_fit_params_of(rival, evaluator.fit_params),
            return_train_score=False,
        )
        found = of_baseline.evaluate({}, lambda epoch, score: False)
        if found.error is not None:
            raise TuningError(
                "With `baseline`, linear models must be fitted and scored on every fold before the "
                f"search begins. {name} failed with {type(found.error).__name__}: {found.error} "
                "Mend that, or pass baseline=False."
            ) from found.error
        theirs[name] = _by_fold(evaluator, found.test_scores, found.fit_time, found.score_time)
    return theirs


def compare_trial(
    evaluator: Evaluator, result: Mapping[str, Any], theirs: Mapping[str, FoldScores], scoring: Any
) -> BaselineReport:
    """Compare a complete trial with the baselines; `scoring` as the search was given it."""
    scores = result["test_scores"]
    ours = _by_fold(evaluator, scores, result["fit_time"], result["score_time"])
    if isinstance(scores[0], Mapping):
        scoring = evaluator.metric(scores[0])
    n_epochs = result["n_epochs"]
    return compare_scores(evaluator.estimator, ours, theirs, evaluator.splits, scoring, n_epochs)


def _fit_params_of(rival: Any, fit_params: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parameters of `fit` that the baseline takes too; X_val, say, TF-IDF doesn't."""
    if isinstance(last_step(rival), BaseGPTText):
        return dict(fit_params)
    if isinstance(rival, Pipeline) and get_config()["enable_metadata_routing"]:
        taken = set(get_routing_for_object(rival).consumes("fit", fit_params))
    else:
        path = path_to_last_step(rival)
        taken = {name for name in fit_params if not name.startswith(path)}
        if has_fit_parameter(last_step(rival), "sample_weight"):
            taken.add(f"{path}sample_weight")
    return {name: value for name, value in fit_params.items() if name in taken}


def _by_fold(
    evaluator: Evaluator, scores: list[Any], fit_time: list[float], score_time: list[float]
) -> FoldScores:
    main_scores = np.array([evaluator.main_score(score) for score in scores])
    return FoldScores(main_scores, np.add(fit_time, score_time))


# --- The models

_NAMES = {
    "tfidf": "TF-IDF + linear model",
    "frozen": "frozen states + linear model",
    "minilm-l6": "frozen minilm-l6 + linear model",
    "zero-shot": "zero-shot",
}


def rivals_of(estimator: Any, baseline: Any) -> dict[str, Any]:
    """Return the unfitted models that an estimator has to beat, by their names."""
    last = last_step(estimator)
    if baseline is None:
        learns = isinstance(last, BaseGPTText) and last.trainable_layers != 0
        baseline = ["tfidf", "frozen"] if learns else ["tfidf"]
    rivals = {}
    for each in baseline if isinstance(baseline, list | tuple) else [baseline]:
        if hasattr(each, "fit"):
            rivals[type(last_step(each)).__name__] = clone(each)
        elif not (isinstance(each, str) and each in _NAMES):
            raise TuningError(
                f"`baseline` must be an estimator or one of {', '.join(_NAMES)}, or a list of "
                f"these. Got {each!r}."
            )
        elif each == "tfidf":
            rivals[_NAMES[each]] = tfidf_rival(estimator)
        elif not isinstance(last, BaseGPTText) or (each == "zero-shot" and is_regressor(last)):
            ours = "classifier" if each == "zero-shot" else "classifier or regressor"
            raise TuningError(
                f"`baseline={each!r}` needs skgpt's {ours}, or a Pipeline that ends in one. Got "
                f"one that ends in {type(last).__name__}: use 'tfidf'."
            )
        elif each == "zero-shot":
            rivals[_NAMES[each]] = _zero_shot_rival(estimator)
        else:
            rivals[_NAMES[each]] = _frozen_rival(estimator, each)
    if not rivals:
        raise TuningError(f"`baseline` must name a model to beat. Got {baseline!r}.")
    return rivals


def _frozen_rival(estimator: Any, which: str) -> Any:
    """Return the estimator with a head that learns alone, on its own model or on the encoder."""
    head = clone(last_step(estimator))
    quiet = {"early_stopping": False, "warm_start": False, "checkpoint_dir": None, "verbose": 0}
    head.set_params(trainable_layers=0, lora=None, **quiet)
    if which == "minilm-l6":
        if hasattr(head, "label_words"):  # of a language-model head, which an encoder lacks
            head.set_params(label_words=None)
        own = {"n_layers": "auto", "pooling": "auto", "attention": "auto"}
        length = min(head.max_length, 512)  # the positions that it has
        head.set_params(model=which, revision=None, max_length=length, **own)
    return _in_place_of_last_step(estimator, head)


def _zero_shot_rival(estimator: Any) -> Any:
    """Return the estimator's own model untrained, asked for the labels' words behind a prompt."""
    last = last_step(estimator)
    prompted = GPTZeroShotClassifier(last.model)
    shared = prompted.get_params().keys() & last.get_params(deep=False).keys()
    given = {name: getattr(last, name) for name in shared - {"template", "verbose"}}
    prompted.set_params(**{name: value for name, value in given.items() if value != "auto"})
    if last.template is not None:
        names = fields_of(last.template)
        layout = parse_template(last.template.rstrip(), len(names), names, joins=True)
        if layout.words[-1]:  # it ends in words, behind which a label's can be asked for
            prompted.set_params(template=last.template)
    return _in_place_of_last_step(estimator, prompted)


def tfidf_rival(estimator: Any) -> Any:
    """Return the model on TF-IDF, behind the same earlier steps."""
    last = last_step(estimator)
    template = getattr(last, "template", None)
    linear = (
        LinearTextRegressor(template=template)
        if is_regressor(last)
        else LinearTextClassifier(template, class_weight=getattr(last, "class_weight", None))
    )
    if get_config()["enable_metadata_routing"]:
        _request_like(last, linear)
    return _in_place_of_last_step(estimator, linear)


def _request_like(last: Any, linear: Any) -> None:
    """Have the baseline request weights where the estimator does, by the name it has for them."""
    routing = get_routing_for_object(last)
    # If the estimator has not said what it wants, scikit-learn complains about the estimator.
    for method, unsaid in (("fit", True), ("score", False)):
        requests = getattr(routing, method).requests if hasattr(routing, method) else {}
        said = requests.get("sample_weight")
        getattr(linear, f"set_{method}_request")(sample_weight=unsaid if said is None else said)


def _in_place_of_last_step(estimator: Any, linear: Any) -> Any:
    if not isinstance(estimator, Pipeline):
        return linear
    copied = clone(estimator)
    name, last = copied.steps[-1]
    copied.steps[-1] = (name, _in_place_of_last_step(last, linear))
    return copied


class LinearTextClassifier(ClassifierMixin, BaseEstimator):
    """Logistic regression on TF-IDF of words and pairs of words, each class against the others.

    Whether there are pairs, and how strong the penalty is, three folds of the rows decide.
    It reads the texts that `GPTTextClassifier` reads, and its rows, classes and labels weigh what
    they weigh there. scikit-learn's OneVsRestClassifier takes no weights without metadata routing,
    and none by label.
    """

    def __init__(self, template: str | None = None, class_weight: ClassWeight = None) -> None:
        self.template = template
        self.class_weight = class_weight

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Fit TF-IDF and a regression for each class or label; two classes need but one."""
        texts = _texts_of(X, self)
        rows = np.arange(len(texts))
        target = encode_target(y, len(texts), name=type(self).__name__)
        sample_weight = check_weight(sample_weight, len(texts))
        weight = loss_weights(target, sample_weight, self.class_weight, rows)
        present = target.truth(rows) > 0
        if target.width == 2 and target.codes.ndim == 1:
            present = present[:, 1:]
        self.sizes_ = [output.width for output in target.outputs]
        if target.is_multioutput:
            weight = np.repeat(weight, self.sizes_, axis=1)
        weight = np.broadcast_to(weight.reshape(len(texts), -1), present.shape)

        self.classes_ = target.classes
        self.multilabel_ = target.is_multilabel
        self.n_grams_, self.C_ = self._chosen(np.array(texts, dtype=object), present, weight)
        self.vectorizer_ = _vectorizer(self.n_grams_)
        self.models_ = _fit_each(self.vectorizer_.fit_transform(texts), present, weight, self.C_)
        return self

    def _chosen(
        self, texts: NDArray[np.object_], present: NDArray[np.bool_], weight: NDArray[np.float64]
    ) -> tuple[tuple[int, int], float]:
        """Return the n-grams and C of the highest accuracy on folds of the rows, by weight."""
        rows = np.flatnonzero(weight.any(axis=1))
        rows = np.random.default_rng(0).permutation(rows)[:_MOST_ROWS]
        if len(rows) < 2 * _FOLDS:
            return _GRID[0]
        stratified = not (self.multilabel_ or isinstance(self.classes_, list))
        splitter = StratifiedKFold(_FOLDS) if stratified else KFold(_FOLDS)
        strata = present.argmax(axis=1) if present.shape[1] > 1 else present[:, 0]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of classes with a row or two
            folds = [(rows[a], rows[b]) for a, b in splitter.split(rows, strata[rows])]
        right = np.zeros(len(_GRID))
        for train, test in folds:
            for n_grams in dict.fromkeys(n_grams for n_grams, _ in _GRID):
                vectorizer = _vectorizer(n_grams)
                features = vectorizer.fit_transform(texts[train])
                others = vectorizer.transform(texts[test])
                for place in [i for i, (each, _) in enumerate(_GRID) if each == n_grams]:
                    models = _fit_each(features, present[train], weight[train], _GRID[place][1])
                    logits = np.stack([m.decision_function(others) for m in models], axis=1)
                    predicted = logits > 0
                    if not self.multilabel_ and logits.shape[1] > 1:
                        parts = self._by_output(logits)
                        predicted = np.hstack([p == p.max(axis=1, keepdims=True) for p in parts])
                    right[place] += (weight[test] * (predicted == present[test])).sum()
        return _GRID[int(right.argmax())]

    def _logits(self, X: Any) -> NDArray[np.float64]:
        check_is_fitted(self)
        features = self.vectorizer_.transform(_texts_of(X, self))
        return np.stack([model.decision_function(features) for model in self.models_], axis=1)

    def _by_output(self, logits_NK: NDArray[np.float64]) -> list[NDArray[np.float64]]:
        return np.split(logits_NK, np.cumsum(self.sizes_)[:-1], axis=1)

    def decision_function(self, X: Any) -> Any:
        """Return the logits: of shape (n,) for two classes, else (n, n_classes or n_labels).

        Of several outputs it is a list of the latter, as is what `predict_proba` returns.
        """
        logits = self._logits(X)
        if isinstance(self.classes_, list):
            return self._by_output(logits)
        return logits if self.multilabel_ or logits.shape[1] > 1 else logits[:, 0]

    def predict_proba(self, X: Any) -> Any:
        """Return each label's probability, or each class's own over the sum of them."""
        own = expit(self._logits(X))
        if self.multilabel_:
            return own
        if own.shape[1] == 1:
            return np.hstack([1 - own, own])
        parts = [part / part.sum(axis=1, keepdims=True) for part in self._by_output(own)]
        return parts if isinstance(self.classes_, list) else parts[0]

    def predict(self, X: Any) -> NDArray[Any]:
        """Return labels out of ``classes_``, or an indicator."""
        logits = self._logits(X)
        if isinstance(self.classes_, list):
            columns = zip(self.classes_, self._by_output(logits), strict=True)
            return side_by_side([classes[part.argmax(axis=1)] for classes, part in columns])
        if self.multilabel_:
            return (logits > 0).astype(np.int64)
        codes = logits.argmax(axis=1) if logits.shape[1] > 1 else (logits[:, 0] > 0).astype(int)
        return np.asarray(self.classes_[codes])

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """Return the accuracy, as `GPTTextClassifier.score`."""
        check_is_fitted(self)
        if isinstance(self.classes_, list):
            return share_right(y, self.predict(X), sample_weight)
        return float(super().score(X, y, sample_weight))

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.string = True
        tags.classifier_tags.multi_label = True
        tags.target_tags.multi_output = True
        return tags


class LinearTextRegressor(RegressorMixin, BaseEstimator):
    """Ridge regression on TF-IDF of words and pairs of words.

    Whether there are pairs, and how strong the penalty is, three folds of the rows decide. It reads
    the texts that `GPTTextRegressor` reads, and its rows weigh what they weigh there.
    """

    def __init__(self, template: str | None = None) -> None:
        self.template = template

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Fit TF-IDF and a ridge regression."""
        texts = _texts_of(X, self)
        values = encode_values(y, len(texts), name=type(self).__name__).labels
        weight = check_weight(sample_weight, len(texts))
        weight = weight / weight.max()
        self.model_ = Pipeline([("tfidf", _vectorizer((1, 2))), ("ridge", Ridge())])
        if np.count_nonzero(weight) >= 2 * _FOLDS:
            self.model_.set_params(**self._chosen(texts, values, weight))
        self.model_.fit(texts, values, ridge__sample_weight=weight)
        return self

    def _chosen(
        self, texts: list[str], values: NDArray[np.float64], weight: NDArray[np.float64]
    ) -> dict[str, Any]:
        """Return the n-grams and the penalty of the least squared error on folds of the rows."""
        rows = np.random.default_rng(0).permutation(np.flatnonzero(weight))[:_MOST_ROWS]
        errors = np.zeros(len(_RIDGE_GRID))
        for train, test in KFold(_FOLDS).split(rows):
            train, test = rows[train], rows[test]
            for n_grams in dict.fromkeys(n_grams for n_grams, _ in _RIDGE_GRID):
                vectorizer = _vectorizer(n_grams)
                features = vectorizer.fit_transform([texts[row] for row in train])
                others = vectorizer.transform([texts[row] for row in test])
                for place in [i for i, (each, _) in enumerate(_RIDGE_GRID) if each == n_grams]:
                    model = Ridge(alpha=_RIDGE_GRID[place][1])
                    model.fit(features, values[train], sample_weight=weight[train])
                    squares = (model.predict(others) - values[test]) ** 2
                    errors[place] += weight[test] @ squares.reshape(len(test), -1).sum(axis=1)
        n_grams, alpha = _RIDGE_GRID[int(errors.argmin())]
        return {"tfidf__ngram_range": n_grams, "ridge__alpha": alpha}

    def predict(self, X: Any) -> NDArray[np.float64]:
        """Return numbers."""
        check_is_fitted(self)
        return np.asarray(self.model_.predict(_texts_of(X, self)))

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.string = True
        tags.target_tags.multi_output = True
        return tags


def _texts_of(X: Any, linear: Any) -> list[str]:
    """Return the texts that a baseline's template makes of X."""
    texts = find_columns(X, estimator=linear)
    # What a prompt calls {text} may be several columns.
    template = parse_template(linear.template, len(texts.columns), texts.names, joins=True)
    cells = texts.read(template.places(len(texts.columns)))
    return [template.render(row) for row in zip(*cells, strict=True)]


def _vectorizer(n_grams: tuple[int, int]) -> TfidfVectorizer:
    return TfidfVectorizer(ngram_range=n_grams, sublinear_tf=True, token_pattern=_WORD)


def _fit_each(
    features: sparse.csr_array,
    present_NK: NDArray[np.bool_],
    weight_NK: NDArray[np.float64],
    C: float,
) -> list[LogisticRegression]:
    columns = zip(present_NK.T, weight_NK.T, strict=True)
    return [_fit_one(features, *column, C) for column in columns]


def _fit_one(
    features: sparse.csr_array, present: NDArray[np.bool_], weight: NDArray[np.float64], C: float
) -> LogisticRegression:
    model = LogisticRegression(solver="liblinear", C=C)
    seen = present[weight > 0]
    if seen.all() or not seen.any():  # in a small fold, or where all rows of a class weigh nothing
        model.classes_ = np.array([False, True])
        model.coef_ = np.zeros((1, features.shape[1]))
        model.intercept_ = np.array([_CERTAIN if seen.any() else -_CERTAIN])
        return model
    # A mean of one, so that only the ratios of weights count, as they do for the network.
    return model.fit(features, present, sample_weight=weight / weight.mean())
