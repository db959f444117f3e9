"""The gallery's examples, run on a tiny model and made-up news, and what their plots show."""

from collections import Counter
from collections.abc import Iterator
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import optuna
import pytest
from matplotlib.figure import Figure

from skgpt.exceptions import BaselineWarning
from tests.examples_run import run_example


@pytest.fixture(scope="module")
def tuned() -> Iterator[dict[str, Any]]:
    """Run the example of a search with Optuna."""
    with pytest.MonkeyPatch.context() as patch:
        with pytest.warns(BaselineWarning, match="The baseline wins"):  # a model that knows nothing
            names = run_example("plot_tune_with_optuna", patch)
        yield names
        plt.close("all")


def states_of(tuned: dict[str, Any]) -> Counter[str]:
    return Counter(map(str, tuned["search"].cv_results_["trial_state"]))


def test_tuning_example__the_second_call__repeats_no_trial(tuned: dict[str, Any]) -> None:
    first, search = tuned["first"].cv_results_, tuned["search"].cv_results_
    assert (len(first["params"]), len(search["params"])) == (3, 10)
    assert search["params"][:3] == first["params"]
    # To the microsecond: these are the times of the same fits.
    np.testing.assert_array_equal(search["mean_fit_time"][:3], first["mean_fit_time"])
    assert set(states_of(tuned)) == {"COMPLETE", "PRUNED"}
    assert not tuned["journal"].exists()


def test_tuning_example__plots__four_with_names_on_their_axes(tuned: dict[str, Any]) -> None:
    figures: list[Figure] = tuned["figures"]
    assert len(figures) == 4
    for figure in figures:
        for ax in figure.axes:
            assert ax.get_title()
            assert ax.get_xlabel() or all(tick.get_text() for tick in ax.get_xticklabels())


def test_tuning_example__history__shows_every_trial_and_the_best(tuned: dict[str, Any]) -> None:
    (ax,) = tuned["figures"][0].axes
    search = tuned["search"]
    shown = {points.get_label(): np.asarray(points.get_offsets()) for points in ax.collections}
    counts = {str(label): len(points) for label, points in shown.items()}
    assert counts == {
        "complete": states_of(tuned)["COMPLETE"],
        "pruned": states_of(tuned)["PRUNED"],
    }
    (best,) = ax.lines
    assert np.asarray(best.get_ydata())[-1] == pytest.approx(100 * search.best_score_)
    scores = search.cv_results_["mean_test_score"]
    numbers, heights = shown["complete"].T
    np.testing.assert_allclose(heights, 100 * scores[numbers.astype(int)])


def test_tuning_example__curves__are_as_long_as_their_trials(tuned: dict[str, Any]) -> None:
    (ax,) = tuned["figures"][1].axes
    curves = ax.lines[0:20:2]  # behind each comes the mark at its end
    lengths = [len(np.asarray(curve.get_xdata())) for curve in curves]
    assert lengths == tuned["search"].cv_results_["n_epochs"].tolist()
    assert len(set(lengths)) > 1
    assert [curve.get_linewidth() for curve in curves].index(3) == tuned["search"].best_index_


def test_tuning_example__importances__one_bar_per_parameter_that_add_up(
    tuned: dict[str, Any],
) -> None:
    (ax,) = tuned["figures"][2].axes
    (bars,) = ax.containers
    assert len(bars) == len(tuned["space"])
    assert sum(bars.datavalues) == pytest.approx(1)


def test_tuning_example__comparison__is_what_was_measured(tuned: dict[str, Any]) -> None:
    folds, test = tuned["figures"][3].axes
    report = tuned["report"]
    drawn = np.array([line.get_ydata() for line in folds.lines])
    np.testing.assert_allclose(drawn.T, 100 * np.array([report.baseline_scores, report.scores]))
    (bars,) = test.containers
    assert list(bars.datavalues) == list(tuned["judged"].values())
    assert len(bars) == 3


def test_tuning_example__a_trial_that_failed_at_once__is_shown_at_the_bottom(
    tuned: dict[str, Any],
) -> None:
    make, state = optuna.trial.create_trial, optuna.trial.TrialState
    trials = [
        make(state=state.COMPLETE, value=0.8, intermediate_values={1: 0.6}),
        make(state=state.FAIL),
        make(state=state.PRUNED, intermediate_values={1: 0.4, 2: 0.5}),
    ]
    for number, trial in enumerate(trials):
        trial.number = number
    _, (history, curves) = plt.subplots(2)
    tuned["plot_history"](trials, history)
    tuned["plot_curves"](trials, 0, 2, curves)
    shown = {points.get_label(): points.get_offsets() for points in history.collections}
    np.testing.assert_allclose(shown["failed"], [[1, 50]])
    np.testing.assert_allclose(shown["pruned"], [[2, 50]])
    assert {text.get_text() for text in history.get_legend().get_texts()} == {
        *("complete", "pruned", "failed", "best")
    }
