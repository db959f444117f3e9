"""GPTSearchCV: a scikit-learn search whose trials are an Optuna study."""

import time
from collections.abc import Mapping, Sequence
from numbers import Integral, Real
from os import PathLike, fspath
from typing import Any, Self

import numpy as np
from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler
from optuna.storages import BaseStorage
from sklearn.base import clone
from sklearn.utils import indexable

from skgpt._sklearn import (
    DOC_LINK,
    BaseSearchCV,
    Interval,
    StrOptions,
    check_method_params,
    fit_context,
    have_it_raise,
)
from skgpt.data.inputs import as_known_container
from skgpt.exceptions import ContinuationError, TuningError, suggests_names
from skgpt.fitting import draw_seed
from skgpt.tuning.baseline import compare_trial, score_baselines, warn_unless_won
from skgpt.tuning.folds import draw_splits
from skgpt.tuning.results import best_trial, check_trials, cv_results_of, warn_of_failed
from skgpt.tuning.space import Space, check_names, default_space
from skgpt.tuning.study import PRUNERS, Storage, copied_to_memory, name_of, study_key
from skgpt.tuning.trial import Evaluator
from skgpt.tuning.trial_store import result_of
from skgpt.tuning.workers import Job, run

_SHARED = {
    name: constraint
    for name, constraint in BaseSearchCV._parameter_constraints.items()
    if name != "pre_dispatch"
}


class GPTSearchCV(BaseSearchCV):
    """Search over the parameters of a text estimator, and prune the trials that look hopeless.

    The first two folds of a trial advance together, epoch by epoch. After each, the mean of their
    scores is reported to an Optuna study, whose pruner may end the trial; the other folds follow if
    it doesn't. With `storage`, a search goes on
    after its process was killed, and several processes may work on it.

    Parameters
    ----------
    estimator : estimator
        A `GPTTextClassifier`, or a Pipeline whose last step is one. Others are searched over as
        well, but not pruned, since nothing is known of their epochs.
    param_distributions : dict, list of dict or None, default=None
        From parameter names (``clf__lora__rank`` reaches into a Pipeline's step) to Optuna
        distributions, lists of values (ranges and arrays too), or scipy distributions. Of several
        dicts, each trial takes one. None takes ``default_space(estimator)``.
    n_trials : int, default=20
        Trials in all, those of earlier calls and of other workers on the same study included.
    timeout : float or None, default=None
        Seconds after which no further trial is begun. None is no limit.
    cv : int, cross-validation generator or iterable, default=None
        As in scikit-learn's searches; None makes 5 folds, stratified for a classifier. Rows are
        assigned to folds once for all trials. With `storage`, a generator that shuffles needs an
        int as its random_state.
    scoring : str, callable, list, tuple or dict, default=None
        As in scikit-learn's searches; None is the estimator's own ``score``.
    refit : bool, str or callable, default=True
        Whether to fit the best parameters on everything at the end; of several metrics, the name
        of the one that counts. With a callable or False the first one guides the search.
    pruner : {"median", "percentile", "halving", "hyperband"}, pruner or None, default="median"
        What ends trials early. By name, with settings that fit a few epochs: "median" and
        "percentile" (the best quarter stays) begin with the fourth trial and the second epoch;
        "halving" and "hyperband" keep half at each rung. Or any Optuna pruner; None prunes
        nothing.
    sampler : optuna.samplers.BaseSampler or None, default=None
        What draws the parameters. None is TPE, seeded by `random_state` and the trial's number.
        A copy is used.
    storage : str, path-like, optuna.storages.BaseStorage or None, default=None
        Where the study is stored: a path becomes an SQLite file, whatever its ending;
        ``postgresql://...`` and the like are databases' URLs. None keeps it in memory. Workers
        that die are noticed in a file or database that is named so; in an Optuna storage that you
        pass, if it has heartbeats.
    study_name : str or None, default=None
        None makes a name of a hash of data, folds, space and parameters, so that searches that
        differ share a storage and don't meet.
    n_jobs : int or None, default=None
        Processes that work on trials, through joblib. None is one, this one, unless in a
        `joblib.parallel_config` context.
    error_score : "raise" or float, default=nan
        What a trial scores in which something fails; it then counts as failed, whatever the
        score, and ``cv_results_["error"]`` says why. "raise" ends the search.
    return_train_score : bool, default=False
        Whether to score the training rows as well.
    baseline : bool, str or list, default=False
        Whether to score linear models on the same folds, before the trials, and to warn if the best
        trial does no better than the best of these; True, or which, as in `compare_with_baseline`.
        They have the template, class weights and steps of `estimator`, as they are there, and the
        row weights that are passed; TF-IDF has nothing else that is passed for the last step alone.
    random_state : int, RandomState instance or None, default=None
        Seeds the sampler, if that is None. Pass an int for the same trials in each call; the
        estimator has a `random_state` of its own.
    verbose : int, default=0
        1 shows a progress bar, 2 a line per trial as well; the lines alone where no bar can be
        drawn, as in a log file. All of it goes to stderr.

    Attributes
    ----------
    cv_results_ : dict of str to array of length n_trials
        As of scikit-learn's searches, in order of trials, and ``trial_state`` ("COMPLETE",
        "PRUNED" or "FAIL"), ``n_epochs`` (of the fold that made the most) and ``error``.
        The scores of trials that were pruned are nan; `study_` knows what they had reached.
    best_estimator_ : estimator
        Fitted on everything; only with `refit`.
    best_score_ : float
        Mean score over the folds of the best parameters.
    best_params_ : dict
    best_index_ : int
        Where they are in `cv_results_`.
    scorer_ : function or dict
    n_splits_ : int
    refit_time_ : float
        Seconds.
    multimetric_ : bool
    study_ : optuna.study.Study
        For Optuna's plots and importances. A trial whose worker died is there as failed; unless
        the third worker died of its parameters, it is not in `cv_results_`. A pickle has a copy
        in memory.
    baseline_ : BaselineReport or None
        Only with `baseline`: the scores of `best_index_` on each fold beside the best one's. Of
        several metrics it is the one that `refit` names; with a callable or False, the first one,
        and with no `best_index_` the best by that. None if a callable chose a trial without scores.
    classes_ : ndarray of shape (n_classes,)
        Of the best estimator.
    n_features_in_ : int
    feature_names_in_ : ndarray

    References
    ----------
    Akiba et al., "Optuna: A Next-generation Hyperparameter Optimization Framework" (2019).

    Examples
    --------
    >>> from optuna.distributions import FloatDistribution
    >>> from skgpt import GPTTextClassifier
    >>> from skgpt.tuning import GPTSearchCV
    >>> search = GPTSearchCV(
    ...     GPTTextClassifier(trainable_layers=2),
    ...     {"learning_rate": FloatDistribution(1e-5, 1e-3, log=True), "n_layers": [8, 16]},
    ...     n_trials=20,
    ...     storage="search.db",
    ... )
    >>> search.fit(X, y).best_params_  # doctest: +SKIP
    """

    _parameter_constraints: dict[str, list[Any]] = {
        **_SHARED,
        "param_distributions": [Mapping, list, tuple, None],
        "n_trials": [Interval(Integral, 1, None, closed="left")],
        "timeout": [Interval(Real, 0, None, closed="neither"), None],
        "pruner": [StrOptions(set(PRUNERS)), BasePruner, None],
        "sampler": [BaseSampler, None],
        "storage": [str, PathLike, BaseStorage, None],
        "study_name": [str, None],
        "baseline": ["boolean", str, list],
        "random_state": ["random_state"],
    }

    _doc_link_module = "skgpt"
    _doc_link_template = f"{DOC_LINK}skgpt.tuning.{{estimator_name}}.html"

    @suggests_names
    def __init__(
        self,
        estimator: Any,
        param_distributions: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None,
        *,
        n_trials: int = 20,
        timeout: float | None = None,
        cv: Any = None,
        scoring: Any = None,
        refit: Any = True,
        pruner: str | BasePruner | None = "median",
        sampler: BaseSampler | None = None,
        storage: Storage = None,
        study_name: str | None = None,
        n_jobs: int | None = None,
        error_score: Any = np.nan,
        return_train_score: bool = False,
        baseline: bool | str | list[Any] = False,
        random_state: int | np.random.RandomState | None = None,
        verbose: int = 0,
    ) -> None:
        self.estimator = estimator
        self.param_distributions = param_distributions
        self.n_trials = n_trials
        self.timeout = timeout
        self.cv = cv
        self.scoring = scoring
        self.refit = refit
        self.pruner = pruner
        self.sampler = sampler
        self.storage = storage
        self.study_name = study_name
        self.n_jobs = n_jobs
        self.error_score = error_score
        self.return_train_score = return_train_score
        self.baseline = baseline
        self.random_state = random_state
        self.verbose = verbose

    def __getstate__(self) -> dict[str, Any]:
        state = dict(super().__getstate__())
        if "study_" in state:  # or what was fitted could be opened only where its storage is
            state["study_"] = copied_to_memory(state["study_"])
        if isinstance(self.storage, PathLike):  # a path's class is that of one operating system
            state["storage"] = fspath(self.storage)
        return state

    @fit_context(prefer_skip_nested_validation=False)
    def fit(self, X: Any, y: Any = None, **params: Any) -> Self:
        """Search, and fit the best parameters on everything.

        Parameters
        ----------
        X : array-like of shape (n,) or (n, n_columns)
            Texts, as the estimator takes them.
        y : array-like of shape (n,) or (n, n_labels)
            Labels.
        **params : dict
            Passed on to the estimator's `fit`, the scorers and the splitter, as in scikit-learn's
            searches. ``groups`` goes to the splitter; what has as many rows as X is cut like X.

        Returns
        -------
        self : GPTSearchCV

        Raises
        ------
        ValueError
            If a parameter is not as described here, if `study_name` names the study of other data
            or settings, if the baseline can't be scored (which comes first), or if no trial came to
            its end; the search is then as it was before.
        OSError
            If `storage` can't be opened.
        KeyboardInterrupt
            After Ctrl-C. With `storage`, the same call goes on from there.

        Warns
        -----
        BaselineWarning
            With `baseline`, if the best trial's mean score is no higher.
        FitFailedWarning
            If some trials failed.
        """
        if getattr(self, "_skl_callbacks", None):
            raise TuningError(
                "GPTSearchCV calls no callbacks of its own: set them on its estimator."
            )
        X = as_known_container(X)  # rows are taken out of it
        deadline = np.inf if self.timeout is None else time.time() + self.timeout
        evaluator, refit_metric = self._evaluator(X, y, params)
        given: Any = self.param_distributions
        given = default_space(self.estimator) if given is None else given
        space = Space(given)
        job = self._job(evaluator, space, deadline)
        check_names(given, evaluator.estimator)

        # The baseline comes before the trials, so that an error in it loses none.
        theirs = score_baselines(evaluator, self.baseline) if self.baseline else None
        study = run(job, self.n_jobs)
        trials = job.trial_store(study).finished()
        check_trials(trials)

        # Results, the best of them and its comparison with the baseline.
        n_splits = len(evaluator.splits)
        error_score = np.nan if self.error_score == "raise" else self.error_score
        results = cv_results_of(trials, space, n_splits, error_score, self._format_results)
        complete = next(trial for trial in trials if trial.state.name == "COMPLETE")
        first = result_of(complete)["test_scores"][0]
        multimetric = isinstance(first, Mapping)
        if multimetric and callable(self.scoring):
            self._check_refit_for_multimetric(first)
            refit_metric = self.refit
        attributes = {
            "n_splits_": n_splits,
            "multimetric_": multimetric,
            "scorer_": getattr(evaluator.scorer, "_scorers", evaluator.scorer),
            "cv_results_": results,
            "study_": study,
            **self._best(results, refit_metric, multimetric=multimetric),
        }
        if theirs is not None:
            # Without a best trial, the best one by the metric that guided the search.
            chosen = trials[attributes.get("best_index_", best_trial(trials))]
            attributes["baseline_"] = None
            if chosen.state.name == "COMPLETE":
                attributes["baseline_"] = compare_trial(
                    evaluator, result_of(chosen), theirs, self.scoring
                )
        if self.refit:
            attributes |= self._refitted(attributes["best_params_"], X, y, evaluator.fit_params)
        self._set_fitted(attributes)

        # Warnings come last, since they may be errors.
        try:
            warn_of_failed(trials)
        finally:
            if theirs is not None:
                warn_unless_won(attributes["baseline_"])
        return self

    def _evaluator(self, X: Any, y: Any, params: dict[str, Any]) -> tuple[Evaluator, Any]:
        """Return what evaluates trials, and the metric for the refit."""
        scorer, refit_metric = self._get_scorers()
        X, y = indexable(X, y)
        params = check_method_params(X, params=params)
        routed = self._get_routed_params_for_fit(params)
        splits = draw_splits(self.estimator, X, y, self.cv, **routed.splitter.split)
        evaluator = Evaluator(
            estimator=clone(self.estimator),
            X=X,
            y=y,
            splits=splits,
            scorer=have_it_raise(scorer),
            fit_params=dict(routed.estimator.fit),
            score_params=dict(routed.scorer.score),
            main_metric=self.refit if isinstance(self.refit, str) else None,
            return_train_score=self.return_train_score,
            needs_metric=self.refit is True,
        )
        return evaluator, refit_metric

    def _job(self, evaluator: Evaluator, space: Space, deadline: float) -> Job:
        key: dict[str, Any] | None = None
        try:
            key = study_key(evaluator, self.scoring, space)
        except ContinuationError:  # a lambda, say, which no other process could tell from another
            if self.storage is not None:
                raise
        name = self.study_name or ("skgpt" if key is None else name_of(key))
        return Job(
            evaluator=evaluator,
            param_distributions=space.given,
            storage=self.storage,
            study_name=name,
            key=key,
            sampler=self.sampler,
            pruner=self.pruner,
            seed=draw_seed(self.random_state),
            n_trials=int(self.n_trials),
            deadline=float(deadline),
            raises=self.error_score == "raise",
            verbose=int(self.verbose),
        )

    def _best(
        self, results: dict[str, Any], refit_metric: Any, *, multimetric: bool
    ) -> dict[str, Any]:
        if not self.refit and multimetric:
            return {}
        index = self._select_best_index(self.refit, refit_metric, results)
        best = {"best_index_": index, "best_params_": results["params"][index]}
        if not callable(self.refit):
            best["best_score_"] = results[f"mean_test_{refit_metric}"][index]
        return best

    def _refitted(
        self, params: dict[str, Any], X: Any, y: Any, fit_params: Mapping[str, Any]
    ) -> dict[str, Any]:
        best = clone(self.estimator).set_params(**clone(params, safe=False))
        began = time.time()
        labels = () if y is None else (y,)
        try:
            best.fit(X, *labels, **fit_params)
        except BaseException as error:  # the search's result must not be lost with the fit
            error.add_note(f"The trials had ended; the best parameters are {params!r}.")
            raise
        attributes = {"best_estimator_": best, "refit_time_": time.time() - began}
        if hasattr(best, "feature_names_in_"):
            attributes["feature_names_in_"] = best.feature_names_in_
        return attributes

    def _set_fitted(self, attributes: dict[str, Any]) -> None:
        """Set all fitted attributes at once; those of an earlier fit go."""
        parameters = self.get_params(deep=False)
        others = {k: v for k, v in vars(self).items() if k in parameters or not k.endswith("_")}
        self.__dict__ = {**others, **attributes}
