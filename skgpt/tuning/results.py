"""The trials of a search as scikit-learn's ``cv_results_``; errors and warnings about them."""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from optuna.trial import FrozenTrial
from scipy.stats import rankdata
from sklearn.exceptions import FitFailedWarning

from skgpt.exceptions import TuningError, warn_user
from skgpt.tuning.space import Space
from skgpt.tuning.trial_store import result_of


def check_trials(trials: Sequence[FrozenTrial]) -> None:
    """Raise TuningError if none of these finished trials is complete."""
    states = Counter(trial.state.name for trial in trials)
    if not states["COMPLETE"]:
        errors = _errors_of(trials)
        why = f" The first error was: {errors[0]}" if errors else ""
        raise TuningError(
            "A search needs a trial that is trained to its end. Of this one's "
            f"{len(trials)}, {states['FAIL']} failed and {states['PRUNED']} were pruned.{why} "
            "See error_score='raise', pruner=None, or a longer `timeout`. What `storage` keeps is "
            "not tried again: for more trials raise `n_trials`, or set another `study_name`."
        )


def warn_of_failed(trials: Sequence[FrozenTrial]) -> None:
    """Warn if some of these finished trials failed."""
    errors = _errors_of(trials)
    if errors:
        (common, n), *_ = Counter(errors).most_common()
        warn_user(
            f"{len(errors)} of {len(trials)} trials failed; {n} of them with: {common} "
            'See cv_results_["error"].',
            FitFailedWarning,
        )


def _errors_of(trials: Sequence[FrozenTrial]) -> list[str]:
    return [result_of(trial)["error"] for trial in trials if trial.state.name == "FAIL"]


def best_trial(trials: Sequence[FrozenTrial]) -> int:
    """Return the place of the trial whose value is the highest; one of them is complete."""
    complete = [i for i, trial in enumerate(trials) if trial.state.name == "COMPLETE"]
    return max(complete, key=lambda i: float(trials[i].values[0]))


def cv_results_of(
    trials: Sequence[FrozenTrial],
    space: Space,
    n_splits: int,
    error_score: float,
    format_results: Callable[..., dict[str, Any]],
) -> dict[str, Any]:
    """Lay finished trials out as ``cv_results_``; at least one of them is complete.

    Trials that were pruned or failed have no score: theirs are nan, or `error_score` for those
    that failed, and they rank behind all others, whatever that is. `format_results` is
    ``BaseSearchCV._format_results`` of the search.
    """
    results = [result_of(trial) for trial in trials]
    complete = np.array([trial.state.name == "COMPLETE" for trial in trials])
    failed = np.array([trial.state.name == "FAIL" for trial in trials])

    # One row per trial and fold; those without scores hold a place, to be filled in below.
    some = results[int(complete.argmax())]
    rows: list[dict[str, Any]] = []
    for result, is_complete in zip(results, complete, strict=True):
        scores = result if is_complete else some
        for i in range(n_splits):
            times = ("fit_time", "score_time")  # none of a trial whose worker died
            row: dict[str, Any] = {t: result[t][i] if result[t] else np.nan for t in times}
            row["test_scores"] = scores["test_scores"][i]
            if some["train_scores"]:
                row["train_scores"] = scores["train_scores"][i]
            rows.append(row)
    more = {
        "trial_state": [trial.state.name for trial in trials],
        "n_epochs": [result["n_epochs"] for result in results],
        "error": [result["error"] for result in results],
    }
    table = format_results([space.params(trial.params) for trial in trials], n_splits, rows, more)

    # Scores and ranks of the trials that have none.
    for name, column in table.items():
        if name.startswith("rank_test_"):
            table[name] = _rank(table[f"mean_{name.removeprefix('rank_')}"], complete)
        elif not name.startswith("param") and ("_test_" in name or "_train_" in name):
            column[~complete] = np.nan
            column[failed] = 0.0 if name.startswith("std_") else error_score
    return table


def _rank(means: NDArray[np.float64], complete: NDArray[np.bool_]) -> NDArray[np.int32]:
    ranks = np.full(len(means), complete.sum() + 1, dtype=np.int32)
    # Of several metrics, those that don't guide the search may be nan: no better than any other.
    known = np.where(np.isnan(means), -np.inf, means)
    ranks[complete] = rankdata(-known[complete], method="min")
    return ranks
