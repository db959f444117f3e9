"""The display of a text's attributions: every word is there, in lines that fit, and stays text."""

from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt

from skgpt import GPTTextClassifier
from skgpt.plots import TokenAttributionDisplay
from skgpt.plots.token_attribution import _is_light, _rgb
from tests.estimators.test_explain import DATA, fitted
from tests.helpers import Reader

WORDS = ["$x$", "<script>alert(1)</script>", "&amp;", *["word"] * 60, "\ud83d\x00"]
VALUES = np.linspace(-2, 2, len(WORDS))


@pytest.fixture(scope="module")
def clf(tiny_llama: str) -> GPTTextClassifier:
    return fitted(tiny_llama)


def test_html__markup_in_a_word__stays_text() -> None:
    display = TokenAttributionDisplay(WORDS, VALUES, class_name="<i>", baseline=0.0)
    reader = Reader()
    reader.feed(display._repr_html_())
    assert reader.tags == {"div", "span", "br"}
    assert set(WORDS[:3]) <= set(reader.texts)
    assert "<i>" in "".join(reader.texts)


@pytest.mark.parametrize("own", [True, False], ids=["own figure", "given axes"])
def test_plot__many_words__each_inside_the_axes_and_apart(own: bool) -> None:
    ax = None if own else plt.subplots(1, 2, figsize=(8, 2))[1][0]
    display = TokenAttributionDisplay(WORDS, VALUES).plot(ax=ax)
    figure = display.figure_
    figure.draw_without_rendering()
    frame = display.ax_.get_window_extent()
    boxes = [text.get_window_extent() for text in display.texts_]
    assert len(boxes) == len(WORDS)
    slack = 3  # pixels
    for box in boxes:
        assert frame.x0 - slack <= box.x0 and box.x1 <= frame.x1 + slack
        assert frame.y0 - slack <= box.y0 and box.y1 <= frame.y1 + slack
    for left, right in pairwise(boxes):
        assert left.x1 <= right.x0 or right.y1 <= left.y0 + slack
    assert ax is None or display.ax_ is ax


def test_colours__all_values__zero_white_and_letters_readable() -> None:
    assert _rgb(0.0) == (255, 255, 255)
    assert _rgb(1.0)[2] > _rgb(1.0)[0] and _rgb(-1.0)[0] > _rgb(-1.0)[2]
    assert _is_light(_rgb(0.1)) and not _is_light(_rgb(1.0))


def test_from_estimator__one_text__its_words_and_their_sum(clf: GPTTextClassifier) -> None:
    display = TokenAttributionDisplay.from_estimator(clf, str(DATA.X[0]))
    assert [text.get_text() for text in display.texts_] == DATA.X[0].split()
    table = clf.explain(DATA.X[:2])
    same = TokenAttributionDisplay.from_predictions(table, text=0)
    np.testing.assert_allclose(same.values, display.values, atol=1e-6)
    np.testing.assert_allclose(np.sum(same.values), table[table["text"] == 0]["value"].sum())


def test_from_predictions__several_labels__shows_the_one_of_the_highest_score() -> None:
    both = {"text": 0, "column": 0, "word_start": 0, "word": "goal"}
    labels = {"class": ["moved", "high"], "value": [2.0, 0.5], "baseline": [-3.0, 1.0]}
    table = pd.DataFrame({**both, **labels})
    assert TokenAttributionDisplay.from_predictions(table).class_name == "high"


def test_display__what_it_cannot_show__is_refused(clf: GPTTextClassifier) -> None:
    with pytest.raises(ValueError, match="one text"):
        TokenAttributionDisplay.from_estimator(clf, DATA.X[:2])
    with pytest.raises(ValueError, match="one text"):
        TokenAttributionDisplay.from_estimator(clf, ["", "of which one has no words"])
    with pytest.raises(ValueError, match="no words"):
        TokenAttributionDisplay.from_estimator(clf, "")
    table = clf.explain(DATA.X[:1])
    with pytest.raises(ValueError, match="class_name"):
        TokenAttributionDisplay.from_predictions(table, class_name="weather")
    with pytest.raises(ValueError, match="baseline"):
        TokenAttributionDisplay.from_predictions(table.drop(columns="baseline"))
