"""The gallery's page on explanations and wrong labels: what it draws is what it computed."""

from typing import Any

import numpy as np

from tests.examples_run import page_of

page = page_of("plot_explanations")


def test_explanations_example__values_and_baseline__add_up_to_the_score(
    page: dict[str, Any],
) -> None:
    np.testing.assert_allclose(page["sums"], page["scores"], atol=1e-3)


def test_explanations_example__planted_labels__differ_from_the_true_ones_there_alone(
    page: dict[str, Any],
) -> None:
    differs = np.flatnonzero(page["given"] != page["train"].topics)
    assert differs.tolist() == page["planted"].tolist()


def test_explanations_example__curve__counts_planted_rows_from_the_worst_on(
    page: dict[str, Any],
) -> None:
    assert len(page["figures"]) == 3  # the long table is not one of them
    (ax,) = page["figures"][-1].axes
    found, anyhow = ax.lines[0], ax.lines[1]
    rows = page["errors"]["row"].to_numpy()
    expected = [np.isin(rows[:n], page["planted"]).sum() for n in range(len(rows) + 1)]
    np.testing.assert_array_equal(found.get_ydata(), expected)
    slope = page["n_planted"] / len(page["given"])
    np.testing.assert_allclose(anyhow.get_ydata(), slope * np.arange(len(rows) + 1))
    assert page["errors"]["margin"].is_monotonic_increasing
