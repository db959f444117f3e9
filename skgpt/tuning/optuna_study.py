"""For people with an Optuna study of their own: a callback that prunes, and an objective."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

import numpy as np
import optuna
from optuna.pruners import WilcoxonPruner
from optuna.storages import InMemoryStorage
from optuna.study import StudyDirection
from optuna.trial import BaseTrial
from sklearn.base import clone

from skgpt._sklearn import HAS_CALLBACKS
from skgpt.data.inputs import as_known_container
from skgpt.exceptions import IdlePrunerWarning, MissingPackageError, TuningError, warn_user
from skgpt.tuning.folds import draw_splits, one_scorer, score_folds
from skgpt.tuning.space import Space, check_names, draw

# The Wilcoxon test of n folds is below 0.1 from n = 4 on, and after the last fold nothing is saved.
_FOLDS_FOR_WILCOXON = 5


class _FitPruned(optuna.TrialPruned):
    """Ends a fit on purpose: the estimator is as it was, as no one wants a pruned one."""

    leaves_nothing = True


class PruningCallback:
    """A scikit-learn callback that reports every epoch to an Optuna trial, and ends a hopeless fit.

    ``clf.set_callbacks(PruningCallback(trial))`` has ``clf.fit`` raise `optuna.TrialPruned` after
    the epoch in which the study's pruner gives the trial up; the estimator is then as it was
    before. The step that is reported is the epoch, 1 for the first. One fit per trial: in a
    cross-validation every fold would report the same steps, which is an error; `objective` prunes
    between folds.

    Parameters
    ----------
    trial : optuna.Trial
        Clones and copies of the estimator report to this very trial.
    monitor : str, default="validation_score"
        What is reported, as it stands in ``history_``: ``validation_score`` or ``validation_loss``,
        which need `early_stopping` or `X_val`; or ``loss``, of the training. The study must have
        the fitting direction: losses are minimised, scores maximised.

    Raises
    ------
    ImportError
        If scikit-learn is older than 1.9, which has no callbacks.
    ValueError
        If there is no such thing to monitor, or the study has another direction.

    Notes
    -----
    Inside of `cross_validate` and scikit-learn's searches pass ``error_score="raise"``, or they
    take a pruned trial for a failed fit. Worker processes need a study whose storage they can reach
    as well (a journal file, a database); with a study in memory the callback says so there.

    Examples
    --------
    >>> from skgpt import GPTTextClassifier
    >>> from skgpt.tuning import PruningCallback
    >>> def train(trial):
    ...     rate = trial.suggest_float("learning_rate", 1e-5, 1e-3, log=True)
    ...     clf = GPTTextClassifier(learning_rate=rate).set_callbacks(PruningCallback(trial))
    ...     clf.fit(texts, labels, X_val=new_texts, y_val=new_labels)
    ...     return clf.validation_scores_[-1]
    """

    def __init__(self, trial: BaseTrial, monitor: str = "validation_score") -> None:
        if not HAS_CALLBACKS:
            raise MissingPackageError(
                "PruningCallback needs scikit-learn 1.9 or newer, whose estimators have callbacks: "
                "upgrade it, or prune between folds with skgpt.tuning.objective."
            )
        wanted = {
            "validation_score": StudyDirection.MAXIMIZE,
            "validation_loss": StudyDirection.MINIMIZE,
            "loss": StudyDirection.MINIMIZE,
        }
        if monitor not in wanted:
            raise TuningError(f"`monitor` must be one of {', '.join(wanted)}. Got {monitor!r}.")
        _check_direction(trial, wanted[monitor], f"`monitor={monitor!r}`")
        self.trial: BaseTrial | None = trial
        self.monitor = monitor
        self._last_step = 0

    def setup(self, estimator: Any, context: Any) -> None:
        """Check, before anything is trained, that the trial can be reported to.

        Parameters
        ----------
        estimator, context : object
            Of the fit that begins.

        Raises
        ------
        ValueError
            If the trial is of a study in another process's memory, or had its fit.
        """
        if self.trial is None:
            raise TuningError(
                "A PruningCallback reports to a trial of a study in memory, which this process "
                "doesn't have: it came here in a pickle. Give the study a storage (a journal file, "
                "a database), or remove the callback with estimator.set_callbacks()."
            )
        if self._last_step and not hasattr(estimator, "history_"):
            raise self._used_up()

    def on_fit_task_begin(self, estimator: Any, context: Any) -> None:
        """Do nothing, as `teardown` does: there is something to report at epochs' ends only.

        Parameters
        ----------
        estimator, context : object
            Not used.
        """

    teardown = on_fit_task_begin

    def on_fit_task_end(self, estimator: Any, context: Any, *, fitted_estimator: Any) -> None:
        """Report an epoch.

        Parameters
        ----------
        estimator, context, fitted_estimator : object
            Of the task that ended; all but epochs are passed over.

        Raises
        ------
        optuna.TrialPruned
            If the study's pruner gives the trial up.
        """
        if context.task_name != "epoch" or self.trial is None:
            return
        record = fitted_estimator.history_[-1]
        if self.monitor not in record:
            raise TuningError(
                f"`monitor={self.monitor!r}` needs rows that are scored after every epoch: set "
                "early_stopping=True, or pass X_val and y_val to fit."
            )
        step = int(record["epoch"])
        if step <= self._last_step:
            raise self._used_up()
        self._last_step = step
        self.trial.report(float(record[self.monitor]), step)
        if self.trial.should_prune():
            raise _FitPruned(f"Pruned after epoch {step}.")

    def _used_up(self) -> TuningError:
        return TuningError(
            "A PruningCallback is for one fit of one trial: Optuna takes each step once, and what "
            "another fit reports (of another fold, perhaps) would be lost. Make one per trial; for "
            "cross-validation use skgpt.tuning.objective or GPTSearchCV."
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self  # a copied trial would report to a copied study

    def __getstate__(self) -> dict[str, Any]:
        state = dict(self.__dict__)
        study = getattr(self.trial, "study", None)
        # In another process that would be a study of its own, whose reports nobody sees.
        if study is not None and isinstance(study._storage, InMemoryStorage):
            state["trial"] = None
        return state


def objective(
    estimator: Any,
    X: Any,
    y: Any,
    space: Mapping[str, Any] | Sequence[Mapping[str, Any]],
    cv: Any = None,
    scoring: str | Callable[..., float] | None = None,
    *,
    groups: Any = None,
    sample_weight: Any = None,
) -> Callable[[BaseTrial], float]:
    """Return a function for ``study.optimize``: the mean score of a cross-validation.

    The folds are drawn once and come in turn. After each of them the trial may be pruned; the step
    that is reported is the number of the fold, 0 for the first. With a `WilcoxonPruner`, which
    compares trials fold by fold, it is the fold's own score; every other pruner is told the mean so
    far. To prune by epochs across all folds, use `GPTSearchCV`.

    Parameters
    ----------
    estimator : estimator
        `GPTTextClassifier`, or a Pipeline that ends in one. Clones of it are fitted.
    X : array-like of shape (n,) or (n, n_columns)
        Texts, as in `fit`.
    y : array-like of shape (n,), or of shape (n, n_labels)
        Labels, or an indicator.
    space : dict or list of dict
        What may vary, as in `GPTSearchCV`: from names of parameters as for `set_params`,
        ``lora__rank`` and a Pipeline's ``clf__learning_rate`` among them, to Optuna distributions,
        lists of values, or scipy distributions.
    cv : int, splitter, iterable of (train, test) or None, default=None
        As in `cross_validate`: None is five stratified folds.
    scoring : str, callable or None, default=None
        A scorer, higher is better: the study's direction must be "maximize". None is the
        estimator's own ``score``, the accuracy.
    groups : array-like of shape (n,), default=None
        For splitters that keep groups whole.
    sample_weight : array-like of shape (n,), default=None
        Weights of the rows in the fits; scores are not weighted.

    Returns
    -------
    objective : callable
        Takes a trial, returns the mean score. The trial's ``fold_scores`` are among its user
        attributes.

    Raises
    ------
    ValueError
        If the space names a parameter that the estimator doesn't have, or something that is no
        distribution; if `scoring` names several scores; and, when it is called, if the study
        doesn't maximise one score.

    Warns
    -----
    IdlePrunerWarning
        In the first trial, if the study has a `WilcoxonPruner`, which can save nothing with fewer
        than five folds.

    Examples
    --------
    >>> import optuna
    >>> from optuna.distributions import FloatDistribution
    >>> from skgpt import GPTTextClassifier
    >>> from skgpt.tuning import objective
    >>> study = optuna.create_study(direction="maximize", pruner=optuna.pruners.WilcoxonPruner())
    >>> space = {"learning_rate": FloatDistribution(1e-5, 1e-3, log=True)}
    >>> study.optimize(
    ...     objective(GPTTextClassifier(), texts, labels, space, cv=5), n_trials=20
    ... )  # doctest: +SKIP
    """
    drawn_from = Space(space, "space")
    check_names(space, estimator, "space")
    scorer = one_scorer(estimator, scoring)
    X = as_known_container(X)
    splits = draw_splits(estimator, X, y, cv, groups=groups)

    def mean_score(trial: BaseTrial) -> float:
        _check_direction(trial, StudyDirection.MAXIMIZE, "A scorer")
        by_fold = _prunes_by_fold(trial, len(splits))
        candidate = clone(estimator).set_params(
            **drawn_from.params(draw(trial, drawn_from.distributions))
        )
        scores: list[float] = []
        for number, split in enumerate(splits):
            result = score_folds(candidate, X, y, [split], scorer, sample_weight)
            scores.append(float(result.scores[0]))
            trial.set_user_attr("fold_scores", list(scores))
            trial.report(scores[-1] if by_fold else float(np.mean(scores)), number)
            # After the last fold nothing is left to save.
            if number + 1 < len(splits) and trial.should_prune():
                raise optuna.TrialPruned(f"Pruned after {number + 1} of {len(splits)} folds.")
        return float(np.mean(scores))

    return mean_score


def _prunes_by_fold(trial: BaseTrial, n_folds: int) -> bool:
    study = getattr(trial, "study", None)  # a FixedTrial has none
    if study is None or not isinstance(study.pruner, WilcoxonPruner):
        return False
    if n_folds < _FOLDS_FOR_WILCOXON and trial.number == 0:
        warn_user(
            f"A WilcoxonPruner can save nothing with {n_folds} folds: it compares fold by fold, "
            "and by default needs four that are all worse, and one left to save. Take "
            f"{_FOLDS_FOR_WILCOXON} folds or more, or another pruner.",
            IdlePrunerWarning,
        )
    return True


def _check_direction(trial: BaseTrial, wanted: StudyDirection, what: str) -> None:
    study = getattr(trial, "study", None)  # a FixedTrial has none
    if study is not None and study.directions != [wanted]:
        found = ", ".join(direction.name.lower() for direction in study.directions)
        raise TuningError(
            f"{what} needs a study of one direction, {wanted.name.lower()!r}. Got {found!r}: "
            f"create it with optuna.create_study(direction={wanted.name.lower()!r})."
        )
