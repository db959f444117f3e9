"""The gallery's page on calibration: what it draws is what it computed."""

from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pytest

from tests.examples_run import page_of

page = page_of("plot_calibration")


def test_calibration_example__scores_over_the_temperature__are_its_probabilities(
    page: dict[str, Any],
) -> None:
    clf = page["clf"]
    scores = clf.decision_function(page["X_test"]) / clf.calibration_["temperature"]
    expected = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(page["after"], expected, rtol=1e-4)


def test_calibration_example__curves__are_of_all_messages(page: dict[str, Any]) -> None:
    (ax,) = page["figures"][0].axes
    for name, proba in (("before", page["before"]), ("after", page["after"])):
        (line,) = [line for line in ax.lines if line.get_label() == name]
        sure, right = np.asarray(line.get_xydata()).T
        # Thirty messages in ten groups of three.
        assert sure.mean() == pytest.approx(100 * proba.max(axis=1).mean())
        assert right.mean() == pytest.approx(100 * page["is_right"].mean())
        assert np.all(np.diff(sure) >= 0)


def test_calibration_example__bars__count_what_is_filed(page: dict[str, Any]) -> None:
    _, ax = plt.subplots()
    page["plot_filed"]({"before": np.array([5, 3]), "after": np.array([4, 1])}, ax)
    right, wrong = ax.containers
    assert [bar.get_width() for bar in right] == [5, 4]
    assert [bar.get_width() for bar in wrong] == [3, 1]
    assert [bar.get_x() for bar in wrong] == [5, 4]
    (drawn,) = page["figures"][1].axes
    for bars, column in zip(
        drawn.containers, np.array(list(page["filed"].values())).T, strict=True
    ):
        assert [bar.get_width() for bar in bars] == column.tolist()
