"""The gallery's page on a rare topic: what it draws is what it computed."""

from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pytest

from tests.examples_run import page_of

page = page_of("plot_imbalanced_classes")


def test_imbalanced_example__costs__are_those_of_the_counts(page: dict[str, Any]) -> None:
    n = len(page["y_test"])
    for name, (found, missed, alarms) in page["counts"].items():
        assert found + missed == page["y_test"].sum()
        expected = 100 * (page["MISSED"] * missed + page["FALSE_ALARM"] * alarms) / n
        assert page["costs"][name] == pytest.approx(expected)
    (bars,) = page["figures"][1].axes[0].containers
    assert list(bars.datavalues) == list(page["costs"].values())


def test_imbalanced_example__points__lie_on_the_curve(page: dict[str, Any]) -> None:
    y = np.array([0, 1, 0, 1, 1])
    proba = np.array([0.1, 0.3, 0.6, 0.7, 0.9])
    _, ax = plt.subplots()
    page["plot_lines"](y, proba, {"half": 0.5, "low": 0.2}, ax)
    half, low = ax.lines[1], ax.lines[2]
    np.testing.assert_allclose(half.get_xydata(), [[100 * 2 / 3, 100 * 2 / 3]])
    np.testing.assert_allclose(low.get_xydata(), [[100, 75]])


def test_imbalanced_example__threshold__is_what_predict_goes_by(page: dict[str, Any]) -> None:
    tuned, scores = page["tuned"], page["proba"]
    assert page["lines"]["tuned threshold"] == tuned.best_threshold_
    # The same recipe and rows as the plain model, which is the one it was refitted as.
    chosen = (scores >= tuned.best_threshold_).astype(int)
    found = int(np.sum((chosen == 1) & (page["y_test"] == 1)))
    assert found == page["counts"]["tuned threshold"][0]


def test_imbalanced_example__prices__give_the_line_without_a_fit(page: dict[str, Any]) -> None:
    fixed = page["fixed"]
    assert fixed.estimator_.estimator is page["plain"]
    # Where the expected costs of both answers are the same.
    line = fixed.threshold
    assert line * page["MISSED"] == pytest.approx((1 - line) * page["FALSE_ALARM"])
    expected = (page["proba"] >= line).astype(int)
    np.testing.assert_array_equal(fixed.predict(page["X_test"]), expected)
