"""The gallery's pages, run on a tiny model and made-up news: plots show what was computed."""

import runpy
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import optuna
import pytest
from sklearn.metrics import confusion_matrix

from skgpt.exceptions import BaselineWarning

EXAMPLES = Path(__file__).parent.parent / "examples"
Page = dict[str, Any]


@pytest.fixture(scope="module")
def page(request: pytest.FixtureRequest) -> Iterator[Page]:
    """Run an example in its small mode; return its names, and its figures as "figures"."""
    name = request.param
    # In a search the baseline beats a model that knows nothing.
    warns = name == "plot_tune_with_optuna"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SKGPT_EXAMPLES_SMALL", "1")
        patch.setenv("PIP_NO_INDEX", "1")
        patch.syspath_prepend(EXAMPLES)
        for module in ("_data", "_small"):
            patch.delitem(sys.modules, module, raising=False)
        patch.setattr(plt, "show", lambda: None)
        plt.switch_backend("agg")
        plt.close("all")  # those of other tests
        with pytest.warns(BaselineWarning, match="baseline wins") if warns else nullcontext():
            names = runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="example")
        yield {**names, "figures": [plt.figure(number) for number in plt.get_fignums()]}
        plt.close("all")


def of(name: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("page", [name], indirect=True, ids=str)


def bars(ax: Any) -> list[list[float]]:
    """Return the values of each set of bars."""
    return [list(container.datavalues) for container in ax.containers]


def test_gallery__every_page__has_tests() -> None:
    marks = [mark for test in globals().values() for mark in getattr(test, "pytestmark", [])]
    tested = {mark.args[1][0] for mark in marks if mark.args[0] == "page"}
    assert tested == {path.stem for path in EXAMPLES.glob("plot_*.py")}


# ---- plot_calibration


@of("plot_calibration")
def test_calibration__scores_over_the_temperature__are_its_probabilities(page: Page) -> None:
    clf = page["clf"]
    scores = clf.decision_function(page["X_test"]) / clf.calibration_["temperature"]
    expected = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(page["after"], expected, rtol=1e-4)


@of("plot_calibration")
def test_calibration__curves__are_of_all_messages(page: Page) -> None:
    (ax,) = page["figures"][0].axes
    for name, proba in (("before", page["before"]), ("after", page["after"])):
        (line,) = [line for line in ax.lines if line.get_label() == name]
        sure, right = np.asarray(line.get_xydata()).T
        # Thirty messages in ten groups of three.
        assert sure.mean() == pytest.approx(100 * proba.max(axis=1).mean())
        assert right.mean() == pytest.approx(100 * page["is_right"].mean())
        assert np.all(np.diff(sure) >= 0)


@of("plot_calibration")
def test_calibration__bars__count_what_is_filed(page: Page) -> None:
    _, ax = plt.subplots()
    page["plot_filed"]({"before": np.array([5, 3]), "after": np.array([4, 1])}, ax)
    assert bars(ax) == [[5, 4], [3, 1]]
    assert [bar.get_x() for bar in ax.containers[1]] == [5, 4]
    (drawn,) = page["figures"][1].axes
    assert bars(drawn) == np.array(list(page["filed"].values())).T.tolist()


# ---- plot_explanations


@of("plot_explanations")
def test_explanations__values_and_baseline__add_up_to_the_score(page: Page) -> None:
    np.testing.assert_allclose(page["sums"], page["scores"], atol=1e-3)


@of("plot_explanations")
def test_explanations__planted_labels__differ_from_the_true_ones_there_alone(page: Page) -> None:
    differs = np.flatnonzero(page["given"] != page["train"].topics)
    assert differs.tolist() == page["planted"].tolist()


@of("plot_explanations")
def test_explanations__curve__counts_planted_rows_from_the_worst_on(page: Page) -> None:
    assert len(page["figures"]) == 3  # the long table is not one of them
    (ax,) = page["figures"][-1].axes
    found, anyhow = ax.lines[0], ax.lines[1]
    rows = page["errors"]["row"].to_numpy()
    expected = [np.isin(rows[:n], page["planted"]).sum() for n in range(len(rows) + 1)]
    np.testing.assert_array_equal(found.get_ydata(), expected)
    slope = page["n_planted"] / len(page["given"])
    np.testing.assert_allclose(anyhow.get_ydata(), slope * np.arange(len(rows) + 1))
    assert page["errors"]["margin"].is_monotonic_increasing


# ---- plot_imbalanced_classes


@of("plot_imbalanced_classes")
def test_imbalanced__costs__are_those_of_the_counts(page: Page) -> None:
    n = len(page["y_test"])
    for name, (found, missed, alarms) in page["counts"].items():
        assert found + missed == page["y_test"].sum()
        expected = 100 * (page["MISSED"] * missed + page["FALSE_ALARM"] * alarms) / n
        assert page["costs"][name] == pytest.approx(expected)
    assert bars(page["figures"][1].axes[0]) == [list(page["costs"].values())]


@of("plot_imbalanced_classes")
def test_imbalanced__points__lie_on_the_curve(page: Page) -> None:
    y = np.array([0, 1, 0, 1, 1])
    proba = np.array([0.1, 0.3, 0.6, 0.7, 0.9])
    _, ax = plt.subplots()
    page["plot_lines"](y, proba, {"half": 0.5, "low": 0.2}, ax)
    half, low = ax.lines[1], ax.lines[2]
    np.testing.assert_allclose(half.get_xydata(), [[100 * 2 / 3, 100 * 2 / 3]])
    np.testing.assert_allclose(low.get_xydata(), [[100, 75]])


@of("plot_imbalanced_classes")
def test_imbalanced__threshold__is_what_predict_goes_by(page: Page) -> None:
    tuned, scores = page["tuned"], page["proba"]
    assert page["lines"]["tuned threshold"] == tuned.best_threshold_
    # The same recipe and rows as the plain model, which is the one it was refitted as.
    chosen = (scores >= tuned.best_threshold_).astype(int)
    found = int(np.sum((chosen == 1) & (page["y_test"] == 1)))
    assert found == page["counts"]["tuned threshold"][0]


@of("plot_imbalanced_classes")
def test_imbalanced__prices__give_the_line_without_a_fit(page: Page) -> None:
    fixed = page["fixed"]
    assert fixed.estimator_.estimator is page["plain"]
    # Where the expected costs of both answers are the same.
    line = fixed.threshold
    assert line * page["MISSED"] == pytest.approx((1 - line) * page["FALSE_ALARM"])
    expected = (page["proba"] >= line).astype(int)
    np.testing.assert_array_equal(fixed.predict(page["X_test"]), expected)


# ---- plot_news_pipeline


@of("plot_news_pipeline")
def test_pipeline__matrix__is_of_the_predictions(page: Page) -> None:
    (figure,) = page["figures"]
    drawn = np.asarray(figure.axes[0].images[0].get_array())
    expected = confusion_matrix(page["test"].topics, page["predicted"], normalize="true")
    np.testing.assert_allclose(drawn, expected)
    np.testing.assert_allclose(drawn.sum(axis=1), 1)


@of("plot_news_pipeline")
def test_pipeline__opened_again__predicts_the_same(page: Page) -> None:
    texts = page["test"].texts[:5]
    again, first = page["again"], page["gpt"]
    np.testing.assert_array_equal(again.predict_proba(texts), first.predict_proba(texts))
    assert not page["path"].exists()


@of("plot_news_pipeline")
def test_pipeline__clean__takes_the_sign_off_alone(page: Page) -> None:
    cleaned = page["without_sign_off"](np.array(["a reuter b reuter", "c"], dtype=object))
    assert cleaned.tolist() == ["a reuter b", "c"]


# ---- plot_training_set_size


@of("plot_training_set_size")
def test_size__curves__are_the_accuracies_found(page: Page) -> None:
    (figure,) = page["figures"]
    for name, ax in zip(page["SIZES"], figure.axes, strict=True):
        assert len(ax.lines) == 2
        for line in ax.lines:
            sizes, scores = np.asarray(line.get_xydata()).T
            assert sizes.tolist() == page["SIZES"][name]
            expected = [page["found"][name, line.get_label(), size][0] for size in sizes]
            np.testing.assert_allclose(scores, expected)


@of("plot_training_set_size")
def test_size__judge__is_the_score_of_a_fit_on_these_rows(page: Page) -> None:
    train, test = page["sample_news"]("r8", 300, seed=1), page["test_texts"]("r8")
    predicted = page["linear"].fit(train.texts, train.topics).predict(test.texts)
    accuracy, seconds = page["judge"](page["linear"], train, test)
    assert accuracy == pytest.approx(100 * np.mean(predicted == test.topics))
    assert seconds > 0


# ---- plot_two_columns


@of("plot_two_columns")
def test_columns__bars__are_the_accuracies(page: Page) -> None:
    (ax,) = page["figures"][0].axes
    assert bars(ax) == [list(page["accuracies"].values())]
    test = page["test"]
    predicted = page["fitted"]["title"].predict(test[["title"]])
    assert page["accuracies"]["title"] == pytest.approx(100 * np.mean(predicted == test["topic"]))


@of("plot_two_columns")
def test_columns__shares__add_up_and_are_drawn_from_high_to_low(page: Page) -> None:
    np.testing.assert_allclose(page["shares"].sum(axis=1), 100)
    title, body = np.array(bars(page["figures"][1].axes[0]))
    assert np.all(np.diff(title) <= 0)
    np.testing.assert_allclose(title + body, 100)


@of("plot_two_columns")
def test_columns__diamonds__are_each_articles_own_part_of_the_tokens(page: Page) -> None:
    (ax,) = page["figures"][1].axes
    (diamonds,) = ax.lines
    order = page["shares"].sort_values("title", ascending=False).index
    tokens = page["tokens"]
    expected = [
        100 * np.mean(tokens.loc[tokens["text"] == text, "column"] == "title") for text in order
    ]
    np.testing.assert_allclose(diamonds.get_ydata(), expected)


# ---- plot_tune_with_optuna


def states_of(page: Page) -> Counter[str]:
    return Counter(map(str, page["search"].cv_results_["trial_state"]))


@of("plot_tune_with_optuna")
def test_tuning__the_second_call__repeats_no_trial(page: Page) -> None:
    first, search = page["first"].cv_results_, page["search"].cv_results_
    assert (len(first["params"]), len(search["params"])) == (3, 10)
    assert search["params"][:3] == first["params"]
    # To the microsecond: these are the times of the same fits.
    np.testing.assert_array_equal(search["mean_fit_time"][:3], first["mean_fit_time"])
    assert set(states_of(page)) == {"COMPLETE", "PRUNED"}
    assert not page["journal"].exists()


@of("plot_tune_with_optuna")
def test_tuning__plots__four_with_names_on_their_axes(page: Page) -> None:
    assert len(page["figures"]) == 4
    for ax in [ax for figure in page["figures"] for ax in figure.axes]:
        assert ax.get_title()
        assert ax.get_xlabel() or all(tick.get_text() for tick in ax.get_xticklabels())


@of("plot_tune_with_optuna")
def test_tuning__history__shows_every_trial_and_the_best(page: Page) -> None:
    (ax,) = page["figures"][0].axes
    search = page["search"]
    shown = {points.get_label(): np.asarray(points.get_offsets()) for points in ax.collections}
    states = states_of(page)
    counts = {label: len(points) for label, points in shown.items()}
    assert counts == {"complete": states["COMPLETE"], "pruned": states["PRUNED"]}
    (best,) = ax.lines
    assert np.asarray(best.get_ydata())[-1] == pytest.approx(100 * search.best_score_)
    numbers, heights = shown["complete"].T
    scores = search.cv_results_["mean_test_score"][numbers.astype(int)]
    np.testing.assert_allclose(heights, 100 * scores)


@of("plot_tune_with_optuna")
def test_tuning__curves__are_as_long_as_their_trials(page: Page) -> None:
    (ax,) = page["figures"][1].axes
    curves = ax.lines[0:20:2]  # behind each comes the mark at its end
    lengths = [len(np.asarray(curve.get_xdata())) for curve in curves]
    assert lengths == page["search"].cv_results_["n_epochs"].tolist()
    assert len(set(lengths)) > 1
    assert [curve.get_linewidth() for curve in curves].index(3) == page["search"].best_index_


@of("plot_tune_with_optuna")
def test_tuning__importances__one_bar_per_parameter_that_add_up(page: Page) -> None:
    (heights,) = bars(page["figures"][2].axes[0])
    assert len(heights) == len(page["space"])
    assert sum(heights) == pytest.approx(1)


@of("plot_tune_with_optuna")
def test_tuning__comparison__is_what_was_measured(page: Page) -> None:
    folds, test = page["figures"][3].axes
    report = page["report"]
    drawn = np.array([line.get_ydata() for line in folds.lines])
    np.testing.assert_allclose(drawn.T, 100 * np.array([report.baseline_scores, report.scores]))
    assert bars(test) == [list(page["judged"].values())]
    assert len(page["judged"]) == 3


@of("plot_tune_with_optuna")
def test_tuning__a_trial_that_failed_at_once__is_shown_at_the_bottom(page: Page) -> None:
    make, state = optuna.trial.create_trial, optuna.trial.TrialState
    trials = [
        make(state=state.COMPLETE, value=0.8, intermediate_values={1: 0.6}),
        make(state=state.FAIL),
        make(state=state.PRUNED, intermediate_values={1: 0.4, 2: 0.5}),
    ]
    for number, trial in enumerate(trials):
        trial.number = number
    _, (history, curves) = plt.subplots(2)
    page["plot_history"](trials, history)
    page["plot_curves"](trials, 0, 2, curves)
    shown = {points.get_label(): points.get_offsets() for points in history.collections}
    np.testing.assert_allclose(shown["failed"], [[1, 50]])
    np.testing.assert_allclose(shown["pruned"], [[2, 50]])
    legend = {text.get_text() for text in history.get_legend().get_texts()}
    assert legend == {"complete", "pruned", "failed", "best"}
