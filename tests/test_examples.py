"""The gallery's pages, run on a tiny model and made-up news: plots show what was computed."""

import runpy
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.metrics import confusion_matrix

from skgpt.exceptions import BaselineWarning

EXAMPLES = Path(__file__).parent.parent / "examples"
Page = dict[str, Any]
Run = Callable[[str], Page]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    """Return a function that runs an example in its small mode, and returns names and figures."""
    monkeypatch.setenv("SKGPT_EXAMPLES_SMALL", "1")
    monkeypatch.syspath_prepend(EXAMPLES)
    for module in ("_data", "_small"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    monkeypatch.setattr(plt, "show", lambda: None)
    plt.switch_backend("agg")
    plt.close("all")  # those of other tests

    def run(name: str) -> Page:
        names = runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="example")
        return {**names, "figures": [plt.figure(number) for number in plt.get_fignums()]}

    yield run
    plt.close("all")


def bars(ax: Any) -> list[list[float]]:
    """Return the values of each set of bars."""
    return [list(container.datavalues) for container in ax.containers]


def test_gallery__each_page__has_a_test() -> None:
    tested = {name.split("__")[0].replace("test_", "plot_") for name in globals()}
    assert {path.stem for path in EXAMPLES.glob("plot_*.py")} <= tested


def test_calibration__its_plots__show_the_probabilities_of_all_messages(run: Run) -> None:
    page = run("plot_calibration")
    clf, before, after = page["clf"], page["before"], page["after"]
    scores = clf.decision_function(page["X_test"]) / clf.calibration_["temperature"]
    assert_allclose(after, np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True), rtol=1e-4)

    (ax,) = page["figures"][0].axes
    for name, proba in (("before", before), ("after", after)):
        (line,) = [line for line in ax.lines if line.get_label() == name]
        sure, right = np.asarray(line.get_xydata()).T
        assert sure.mean() == pytest.approx(100 * proba.max(axis=1).mean())
        assert right.mean() == pytest.approx(100 * page["is_right"].mean())

    (filed,) = page["figures"][1].axes
    assert bars(filed) == np.array(list(page["filed"].values())).T.tolist()


def test_explanations__its_plots__show_the_planted_labels_that_are_found(run: Run) -> None:
    page = run("plot_explanations")
    assert_allclose(page["sums"], page["scores"], atol=1e-3)
    differs = np.flatnonzero(page["given"] != page["train"].topics)
    assert differs.tolist() == page["planted"].tolist()

    assert len(page["figures"]) == 3  # the long table is not one of them
    (ax,) = page["figures"][-1].axes
    rows = page["errors"]["row"].to_numpy()
    expected = [np.isin(rows[:n], page["planted"]).sum() for n in range(len(rows) + 1)]
    assert_array_equal(ax.lines[0].get_ydata(), expected)
    assert page["errors"]["margin"].is_monotonic_increasing


def test_imbalanced_classes__its_plots__show_costs_and_thresholds(run: Run) -> None:
    page = run("plot_imbalanced_classes")
    y_test, missed_costs, alarm_costs = page["y_test"], page["MISSED"], page["FALSE_ALARM"]
    for name, (found, missed, alarms) in page["counts"].items():
        assert found + missed == y_test.sum()
        expected = 100 * (missed_costs * missed + alarm_costs * alarms) / len(y_test)
        assert page["costs"][name] == pytest.approx(expected)
    assert bars(page["figures"][1].axes[0]) == [list(page["costs"].values())]
    # The threshold from prices: where the expected costs of both answers are the same.
    line = page["fixed"].threshold
    assert line * missed_costs == pytest.approx((1 - line) * alarm_costs)


def test_news_pipeline__its_plot__is_of_the_predictions(run: Run) -> None:
    page = run("plot_news_pipeline")
    (figure,) = page["figures"]
    drawn = np.asarray(figure.axes[0].images[0].get_array())
    expected = confusion_matrix(page["test"].topics, page["predicted"], normalize="true")
    assert_allclose(drawn, expected)
    assert not page["path"].exists()


def test_how_many_labels__its_curves__are_the_accuracies_of_fits(run: Run) -> None:
    page = run("plot_how_many_labels")
    (ax,) = page["figures"][0].axes
    asked, *curves = ax.lines
    test = page["test"]
    predicted = page["zero_shot"].predict(test.texts)
    assert_allclose(asked.get_ydata(), 100 * np.mean(predicted == test.topics))
    assert len(curves) == len(page["MODELS"])
    for line in curves:
        sizes, scores = np.asarray(line.get_xydata()).T
        assert sizes.tolist() == page["SIZES"]
        assert_allclose(scores, [page["found"][line.get_label(), n] for n in sizes])


def test_ratings__its_plots__show_predictions_beside_ratings(run: Run) -> None:
    page = run("plot_ratings")
    y_new = page["y_new"]
    for ax, (name, numbers) in zip(page["figures"][0].axes, page["predicted"].items(), strict=True):
        assert_allclose(ax.collections[0].get_offsets(), np.column_stack([y_new, numbers]))
        assert f"{page['scores'][name][1]:.2f}" in ax.get_title()
    assert_allclose(page["predicted"]["GPTTextRegressor"], page["gpt"].predict(page["X_new"]))
    # Of the rows that say how much wider, eight of ten and no more lie inside the wider interval.
    beyond = page["beyond"][page["for_width"]]
    assert np.sum(beyond <= page["more"]) == np.ceil(0.8 * (len(beyond) + 1))
    assert_allclose(page["sums"], page["gpt"].predict(page["X_new"][page["shown"]]), atol=1e-3)


def test_text_beside_columns__its_plot__shows_the_share_of_each_genre_that_is_found(
    run: Run,
) -> None:
    page = run("plot_text_beside_columns")
    test, predicted = page["test"], page["predicted"]
    drawn = bars(page["figures"][0].axes[0])
    for heights, (name, found) in zip(drawn, predicted.items(), strict=True):
        is_right = found == test["genre"]
        assert heights == pytest.approx(list(100 * is_right.groupby(test["genre"]).mean()))
        assert page["right"][name] == pytest.approx(100 * is_right.mean())
    # The language model's features, and the other columns with their types.
    features = page["beside"].transform(test)
    assert features.shape[1] == 3 + len(page["OTHERS"])
    assert (features.dtypes == "category").sum() == 2


def test_two_columns__its_plots__show_accuracies_and_shares_of_each_column(run: Run) -> None:
    page = run("plot_two_columns")
    accuracies, test = page["accuracies"], page["test"]
    assert bars(page["figures"][0].axes[0]) == [list(accuracies.values())]
    predicted = page["fitted"]["title"].predict(test[["title"]])
    assert accuracies["title"] == pytest.approx(100 * np.mean(predicted == test["topic"]))

    title, body = np.array(bars(page["figures"][1].axes[0]))
    assert np.all(np.diff(title) <= 0)
    assert_allclose(title, sorted(page["shares"]["title"], reverse=True))
    assert_allclose(title + body, 100)


def test_tune_with_optuna__its_plots__show_every_trial_once(run: Run) -> None:
    with pytest.warns(BaselineWarning, match="The baseline, .* wins"):  # a model that knows nothing
        page = run("plot_tune_with_optuna")
    first, search = page["first"].cv_results_, page["search"]
    results, report = search.cv_results_, page["report"]

    # The second call repeats no trial.
    assert (len(first["params"]), len(results["params"])) == (3, 10)
    assert results["params"][:3] == first["params"]
    states = Counter(map(str, results["trial_state"]))
    assert set(states) == {"COMPLETE", "PRUNED"}
    assert not page["file"].exists()

    history, curves, _, (folds, test) = (figure.axes for figure in page["figures"])
    # History: every trial, and the best so far.
    shown = {dots.get_label(): np.asarray(dots.get_offsets()) for dots in history[0].collections}
    counts = {label: len(dots) for label, dots in shown.items()}
    assert counts == {"complete": states["COMPLETE"], "pruned": states["PRUNED"]}
    numbers, heights = shown["complete"].T
    assert_allclose(heights, 100 * results["mean_test_score"][numbers.astype(int)])

    # Curves as long as their trials; behind each comes the mark at its end.
    lines = curves[0].lines[0:20:2]
    lengths = [len(np.asarray(line.get_xdata())) for line in lines]
    assert lengths == results["n_epochs"].tolist()
    assert len(set(lengths)) > 1

    drawn = np.array([line.get_ydata() for line in folds.lines])
    assert_allclose(drawn.T, 100 * np.array([report.baseline_scores, report.scores]))
    assert bars(test) == [list(page["judged"].values())]
    assert len(page["judged"]) == 3
