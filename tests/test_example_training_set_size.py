"""The gallery's page on training-set size: what it draws is what it computed."""

from typing import Any

import numpy as np
import pytest

from tests.examples_run import page_of

page = page_of("plot_training_set_size")


def test_size_example__curves__are_the_accuracies_found(page: dict[str, Any]) -> None:
    (figure,) = page["figures"]
    for name, ax in zip(page["SIZES"], figure.axes, strict=True):
        assert len(ax.lines) == 2
        for line in ax.lines:
            sizes, scores = np.asarray(line.get_xydata()).T
            assert sizes.tolist() == page["SIZES"][name]
            expected = [page["found"][name, line.get_label(), size][0] for size in sizes]
            np.testing.assert_allclose(scores, expected)


def test_size_example__judge__is_the_score_of_a_fit_on_these_rows(page: dict[str, Any]) -> None:
    train, test = page["sample_news"]("r8", 300, seed=1), page["test_texts"]("r8")
    model = page["linear"].fit(train.texts, train.topics)
    predicted = model.predict(test.texts)
    accuracy, seconds = page["judge"](page["linear"], train, test)
    assert accuracy == pytest.approx(100 * np.mean(predicted == test.topics))
    assert seconds > 0
