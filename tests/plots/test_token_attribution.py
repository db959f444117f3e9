"""The display of texts' attributions: every word is there, in lines that fit, and stays text."""

from itertools import pairwise
from typing import Any

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


def frame_of(words: list[str], values: Any, **columns: Any) -> pd.DataFrame:
    given = {"text": 0, "class": "sport", "column": 0, "baseline": 0.5, **columns}
    frame = pd.DataFrame({"word_start": np.arange(len(words)), "value": values, **given})
    frame["word"] = pd.Series(words, dtype=object)
    return frame


@pytest.fixture(scope="module")
def clf(tiny_llama: str) -> GPTTextClassifier:
    return fitted(tiny_llama)


def test_html__markup_in_a_word__stays_text() -> None:
    display = TokenAttributionDisplay(frame_of(WORDS, VALUES, **{"class": "<i>"}))
    reader = Reader()
    reader.feed(display._repr_html_())
    assert reader.tags == {"div", "span", "br"}
    assert set(WORDS[:3]) <= set(reader.texts)
    assert "<i>" in "".join(reader.texts)


@pytest.mark.parametrize("own", [True, False], ids=["own figure", "given axes"])
def test_plot__many_words__each_inside_the_axes_and_apart(own: bool) -> None:
    ax = None if own else plt.subplots(1, 2, figsize=(8, 2))[1][0]
    display = TokenAttributionDisplay(frame_of(WORDS, VALUES)).plot(ax=ax)
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


@pytest.mark.parametrize("way", [1, -1], ids=["for", "against"])
def test_colours__one_value_larger_by_far__the_others_keep_theirs(way: int) -> None:
    values = np.linspace(-1, 1, 20)
    plain = TokenAttributionDisplay(frame_of(WORDS[:20], values)).plot()
    assert plain._end == 1 and plain._beyond == (False, False)
    values[0] = way * 15
    display = TokenAttributionDisplay(frame_of(WORDS[:20], values)).plot()
    fill = [text.get_bbox_patch().get_facecolor() for text in display.texts_]
    strongest = [c / 255 for c in _rgb(way)]
    assert fill[0][:3] == pytest.approx(strongest)
    assert min(fill[-1][:3]) < 0.7  # white is 1
    assert display._beyond == (way < 0, way > 0)
    assert ("or less", "or more")[way > 0] in display._repr_html_()
    few = TokenAttributionDisplay(frame_of(WORDS[:20], [0.0] * 19 + [1.0]))
    assert few._end == 1  # the only one that says something


def test_from_estimator__several_texts__each_with_its_caption_and_its_words(
    clf: GPTTextClassifier,
) -> None:
    X = ["a late goal", "", "the bank's profit", "rocket"]
    display = TokenAttributionDisplay.from_estimator(clf, X, target="sport")
    words = [word for text in X for word in text.split()]
    assert [text.get_text() for text in display.texts_] == words
    said = " ".join(text.get_text() for text in display.ax_.texts)
    page = display._repr_html_()
    for text, score in zip((0, 2, 3), clf.decision_function(X)[[0, 2, 3], 2], strict=True):
        assert f"Text {text}: What speaks for sport" in said
        assert f"Its score is {score:.2f}:" in said
        assert f"Text {text}: What speaks for sport" in page
    one = TokenAttributionDisplay.from_predictions(clf.explain(X, target="sport"), text=2)
    assert [text.get_text() for text in one.texts_] == X[2].split()


def test_from_estimator__one_text__its_words_and_their_sum(clf: GPTTextClassifier) -> None:
    display = TokenAttributionDisplay.from_estimator(clf, str(DATA.X[0]))
    assert [text.get_text() for text in display.texts_] == DATA.X[0].split()
    table = clf.explain(DATA.X[:2])
    same = TokenAttributionDisplay.from_predictions(table, text=0)
    values = same.frame["value"].to_numpy()
    np.testing.assert_allclose(values, display.frame["value"].to_numpy(), atol=1e-6)
    np.testing.assert_allclose(values.sum(), table[table["text"] == 0]["value"].sum())


def test_from_predictions__several_labels__each_by_itself_or_the_one_asked_for() -> None:
    table = pd.concat([frame_of(["goal"], [2.0]), frame_of(["goal"], [0.5], **{"class": "high"})])
    both = TokenAttributionDisplay.from_predictions(table)
    assert len(both.texts_) == 2
    one = TokenAttributionDisplay.from_predictions(table, class_name="high")
    assert one.frame["value"].tolist() == [0.5]


def test_display__what_it_cannot_show__is_refused(clf: GPTTextClassifier) -> None:
    with pytest.raises(ValueError, match=r"up to 50 texts\. Got 51"):
        TokenAttributionDisplay.from_estimator(clf, ["a goal"] * 51)
    with pytest.raises(ValueError, match="no words"):
        TokenAttributionDisplay.from_estimator(clf, "")
    table = clf.explain(DATA.X[:1])
    with pytest.raises(ValueError, match=r"none of text=\[3\]"):
        TokenAttributionDisplay.from_predictions(table, text=[0, 3])
    with pytest.raises(ValueError, match="class_name"):
        TokenAttributionDisplay.from_predictions(table, class_name="weather")
    with pytest.raises(ValueError, match="baseline"):
        TokenAttributionDisplay.from_predictions(table.drop(columns="baseline"))
