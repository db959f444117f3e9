"""The baseline guard of a search: judged on its folds before the trials, met by the best one after.

It takes seconds, so it comes first: whatever is wrong with it is found before anything is trained.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from optuna.trial import FrozenTrial
from sklearn import get_config
from sklearn.base import is_classifier
from sklearn.pipeline import Pipeline
from sklearn.utils.metadata_routing import get_routing_for_object

from skgpt._base import BaseGPTText
from skgpt.exceptions import BaselineWarning, TuningError, warn_user
from skgpt.tuning.baseline import BaselineReport, baseline_for, compare_scores, warn_unless_won
from skgpt.tuning.folds import Folds, FoldScores, last_step, path_to_last
from skgpt.tuning.trial import Evaluation, evaluate
from skgpt.tuning.trial_store import result_of


def judge_baseline(work: Evaluation) -> FoldScores:
    """Fit and score the baseline as a trial is: on the same rows, by the same scorer.

    Parameters
    ----------
    work : Evaluation
        The search's.

    Returns
    -------
    scores : FoldScores
        By the metric that counts.

    Raises
    ------
    TuningError
        If there is no baseline for the estimator, or something fails on the way.
    """
    last = last_step(work.estimator)
    if not (is_classifier(work.estimator) and isinstance(last, BaseGPTText)):
        raise TuningError(
            "`baseline=True` needs skgpt's classifier, or a Pipeline that ends in it. Got one that "
            f"ends in {type(last).__name__}: pass baseline=False."
        )
    rival = baseline_for(work.estimator)
    as_a_trial = replace(
        work,
        estimator=rival,
        fit_params=_for_baseline(rival, work.fit_params),
        return_train_score=False,
    )
    outcome = evaluate(as_a_trial, {}, lambda epoch, score: False)
    if outcome.error is not None:
        raise TuningError(
            "With `baseline=True`, a linear model must be fitted and scored on every fold before "
            f"the search begins. That failed with {type(outcome.error).__name__}: {outcome.error} "
            "Mend that, or pass baseline=False."
        ) from outcome.error
    return _by_fold(work, outcome.test_scores, outcome.fit_time, outcome.score_time)


def meet_baseline(
    work: Evaluation, trial: FrozenTrial, theirs: FoldScores, scoring: Any
) -> BaselineReport | None:
    """Compare a trial that has ended with the baseline.

    Parameters
    ----------
    work : Evaluation
    trial : optuna.trial.FrozenTrial
    theirs : FoldScores
        The baseline's.
    scoring : object
        As the search was given it.

    Returns
    -------
    report : BaselineReport or None
        None if the trial was not trained to its end, so that it has no scores.
    """
    if trial.state.name != "COMPLETE":
        return None
    result = result_of(trial)
    scores = result["test_scores"]
    ours = _by_fold(work, scores, result["fit_time"], result["score_time"])
    called = work.metric(scores[0]) if isinstance(scores[0], Mapping) else scoring
    test_to_train = Folds(work.X, work.y, list(work.splits)).test_to_train
    return compare_scores(work.estimator, ours, theirs, test_to_train, called)


def warn_unless_better(report: BaselineReport | None) -> None:
    """Warn if the best trial did no better than the baseline, or can't be compared.

    Parameters
    ----------
    report : BaselineReport or None

    Warns
    -----
    BaselineWarning
    """
    if report is not None:
        warn_unless_won(report)
        return
    warn_user(
        "The trial that `refit` chose has no scores to compare with the baseline, as it was pruned "
        "or failed: have it choose among those whose trial_state is COMPLETE.",
        BaselineWarning,
    )


def _for_baseline(rival: Any, fit_params: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is passed to `fit`, less what is for the estimator's last step alone."""
    if isinstance(rival, Pipeline) and get_config()["enable_metadata_routing"]:
        taken = set(get_routing_for_object(rival).consumes("fit", fit_params))
    else:
        path = path_to_last(rival)
        taken = {name for name in fit_params if not name.startswith(path)}
        taken.add(f"{path}sample_weight")
    return {name: value for name, value in fit_params.items() if name in taken}


def _by_fold(
    work: Evaluation, scores: list[Any], fit_time: list[float], score_time: list[float]
) -> FoldScores:
    return FoldScores(
        np.array([work.main(score) for score in scores]), np.add(fit_time, score_time)
    )
