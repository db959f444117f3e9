"""The display of errors: exactly those that there are, the worst first, however long the texts."""

from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import Perceptron
from sklearn.naive_bayes import MultinomialNB
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer

from skgpt.plots import ErrorTableDisplay
from tests.helpers import Reader, make, make_text_data

DATA = make_text_data(n_classes=2)
CLASSES = ["a", "b", "c"]
PROB = [[0.9, 0.1, 0.0], [0.1, 0.2, 0.7], [0.5, 0.3, 0.2], [0.2, 0.1, 0.7], [0.0, 0.0, 1.0]]
TRUE = ["a", "b", "b", "b", "a"]


def test_from_predictions__errors__all_of_them_and_the_worst_first() -> None:
    display = ErrorTableDisplay.from_predictions(TRUE, PROB, classes=CLASSES)
    assert display.frame["row"].tolist() == [4, 3, 1, 2]
    assert display.frame["predicted"].tolist() == ["c", "c", "c", "a"]
    assert display.frame["true"].tolist() == ["a", "b", "b", "b"]
    np.testing.assert_allclose(display.frame["confidence"], [1.0, 0.7, 0.7, 0.5])
    np.testing.assert_allclose(display.frame["margin"], [-1.0, -0.6, -0.5, -0.2])
    assert (display.n_errors, display.n_predictions) == (4, 5)


def test_from_predictions__equal_margins__in_the_order_of_rows() -> None:
    display = ErrorTableDisplay.from_predictions([0, 1] * 50, [0.75, 0.25] * 50, n_rows=7)
    assert display.frame["row"].tolist() == [*range(7)]
    assert "worst 7 of 100 errors in 100" in display.ax_.get_title(loc="left")


def test_from_predictions__no_error__says_so() -> None:
    display = ErrorTableDisplay.from_predictions([0, 1], [0.1, 0.9], X=["x", "y"])
    assert len(display.frame) == 0
    assert display.ax_.get_title(loc="left") == "No error in 2 predictions"
    assert "No error" in display._repr_html_()


def test_from_predictions__multilabel__an_error_per_label_of_a_row() -> None:
    true, prob = [[1, 0], [0, 0], [1, 1]], [[0.9, 0.8], [0.2, 0.1], [0.1, 0.7]]
    display = ErrorTableDisplay.from_predictions(true, prob, classes=["red", "blue"])
    assert display.frame["row"].tolist() == [2, 0]
    assert display.frame["label"].tolist() == ["red", "blue"]
    assert display.frame["true"].tolist() == [1, 0]
    np.testing.assert_allclose(display.frame["margin"], [-0.8, -0.6])
    drawn = [text.get_text() for text in display.ax_.texts]
    assert {"◆ not red", "● red", "◆ blue", "● not blue"} <= set(drawn)
    # A label at one half is not predicted, by predict neither.
    display = ErrorTableDisplay.from_predictions([[1, 0], [0, 0]], [[0.5, 0.5], [0.5, 0.4]])
    assert display.frame[["row", "label"]].to_numpy().tolist() == [[0, 0]]


@pytest.mark.parametrize("ours", [True, False], ids=["ours", "a pipeline"])
def test_from_estimator__texts_and_labels__as_predict_says(ours: bool, tiny_llama: str) -> None:
    one_epoch = make(tiny_llama, max_epochs=1, precision="fp32")
    clf = one_epoch if ours else make_pipeline(CountVectorizer(), MultinomialNB())
    clf.fit(DATA.X, DATA.y)
    y = DATA.y[::-1]  # wrong for about one half
    frame = ErrorTableDisplay.from_estimator(clf, DATA.X, y, n_rows=99).frame
    wrong = np.flatnonzero(clf.predict(DATA.X) != y)
    assert sorted(frame["row"]) == wrong.tolist()
    assert frame["text"].tolist() == DATA.X[frame["row"]].tolist()
    assert frame["true"].tolist() == y[frame["row"]].tolist()
    prob = clf.predict_proba(DATA.X).max(axis=1)
    np.testing.assert_allclose(frame["confidence"], prob[frame["row"]], atol=1e-5)


@pytest.mark.filterwarnings("ignore:A column-vector y")
def test_from_predictions__labels_in_a_column__are_classes() -> None:
    prob = [[0.9, 0.1], [0.8, 0.2]]
    column = ErrorTableDisplay.from_predictions([["z"], ["a"]], prob, classes=["z", "a"])
    plain = ErrorTableDisplay.from_predictions(["z", "a"], prob, classes=["z", "a"])
    pd.testing.assert_frame_equal(column.frame, plain.frame)
    assert column.frame["row"].tolist() == [1]


def test_from_estimator__a_pipeline_with_more_than_texts__shows_what_there_is() -> None:
    X = pd.DataFrame({"text": ["a goal", "a bank", "a goal"], "stars": [1.5, None, 2.0]})
    y = ["sport", "money", "money"]
    texts = FunctionTransformer(lambda X: X["text"])
    pipe = make_pipeline(texts, CountVectorizer(), MultinomialNB()).fit(X, y)
    frame = ErrorTableDisplay.from_estimator(pipe, X, ["sport", "sport", "sport"]).frame
    assert set(frame["text"]) <= {"a goal | 1.5", "a bank", "a goal | 2.0"}
    assert "a bank" in set(frame["text"])


def test_plot__long_texts_and_names__stay_inside_the_figure_and_apart() -> None:
    names = [f"{'a long name ' * 9}{i}" for i in range(3)]
    X = ["word " * 500, "x" * 500, "", "$a_b\x00 \ud83d", "<b>"]
    true = [names[CLASSES.index(label)] for label in TRUE]
    display = ErrorTableDisplay.from_predictions(true, PROB, X=X, classes=names)
    figure = display.figure_
    figure.draw_without_rendering()
    boxes = [label.get_window_extent() for label in display.ax_.get_yticklabels()]
    beside = [text.get_window_extent() for text in display.ax_.texts]
    for box in (*boxes, *beside):
        assert box.x0 >= 0 and box.x1 <= figure.bbox.x1 + 1
        assert box.y0 >= 0 and box.y1 <= figure.bbox.y1 + 1
    for upper, lower in pairwise(boxes):
        assert upper.y0 > lower.y1
    said = {text.get_text() for text in display.ax_.texts}
    assert len([text for text in said if text[0] == "◆"]) == 3  # the heading, and both told apart
    assert display.frame["text"].tolist() == [
        X[row] if row != 3 else "$a_b\x00 \ufffd" for row in display.frame["row"]
    ]


def test_html__markup__stays_text() -> None:
    X = pd.DataFrame({"title": ["<script>"] * 5, "body": ["&amp;"] * 5})
    display = ErrorTableDisplay.from_predictions(TRUE, PROB, X=X, classes=["a", "b", "c"])
    reader = Reader()
    reader.feed(display._repr_html_())
    assert reader.tags == {"div", "table", "thead", "tbody", "tr", "th", "td"}
    assert "<script> | &amp;" in reader.texts


@pytest.mark.parametrize(
    ("true", "prob", "more", "message"),
    [
        (TRUE[:3], PROB, {"classes": CLASSES}, "inconsistent numbers"),
        (TRUE, PROB, {}, "a column for each of 2 classes"),
        (["z", *TRUE[1:]], PROB, {"classes": CLASSES}, "first in row 0"),
        ([0, 1], [0.5, 3.2], {}, "Row 1 holds"),
        (TRUE, TRUE, {}, "must hold probabilities, as predict_proba"),
        ([[0, 1]], [np.array([[0.5, 0.5]])] * 2, {}, "list of arrays"),
        ([0], np.zeros((1, 1, 1)), {}, r"shape \(1, 1, 1\)"),
        (TRUE, PROB, {"X": ["x"], "classes": CLASSES}, "Found 1 and 5"),
        (TRUE, PROB, {"classes": CLASSES, "n_rows": 0}, "`n_rows` must be an int >= 1"),
    ],
)
def test_from_predictions__what_does_not_fit__is_refused(
    true: Any, prob: Any, more: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        ErrorTableDisplay.from_predictions(true, prob, **more)


def test_display__without_a_column_or_probabilities__is_refused() -> None:
    with pytest.raises(ValueError, match="lacks margin"):
        ErrorTableDisplay(pd.DataFrame(columns=["row", "true", "predicted", "confidence"])).plot()
    with pytest.raises(ValueError, match="predict_proba"):
        ErrorTableDisplay.from_estimator(Perceptron(), DATA.X, DATA.y)
