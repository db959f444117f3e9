"""The gallery's page on a title and a body: what it draws is what it computed."""

from typing import Any

import numpy as np
import pytest

from tests.examples_run import page_of

page = page_of("plot_two_columns")


def test_columns_example__bars__are_the_accuracies(page: dict[str, Any]) -> None:
    (ax,) = page["figures"][0].axes
    (bars,) = ax.containers
    assert list(bars.datavalues) == list(page["accuracies"].values())
    test = page["test"]
    predicted = page["fitted"]["title"].predict(test[["title"]])
    assert page["accuracies"]["title"] == pytest.approx(100 * np.mean(predicted == test["topic"]))


def test_columns_example__shares__add_up_and_are_drawn_from_high_to_low(
    page: dict[str, Any],
) -> None:
    np.testing.assert_allclose(page["shares"].sum(axis=1), 100)
    (ax,) = page["figures"][1].axes
    title, body = ax.containers
    heights = np.asarray(title.datavalues)
    assert np.all(np.diff(heights) <= 0)
    np.testing.assert_allclose(heights + np.asarray(body.datavalues), 100)


def test_columns_example__diamonds__are_each_articles_own_part_of_the_tokens(
    page: dict[str, Any],
) -> None:
    (ax,) = page["figures"][1].axes
    (diamonds,) = ax.lines
    order = page["shares"].sort_values("title", ascending=False).index
    tokens = page["tokens"]
    expected = [
        100 * np.mean(tokens.loc[tokens["text"] == text, "column"] == "title") for text in order
    ]
    np.testing.assert_allclose(diamonds.get_ydata(), expected)
