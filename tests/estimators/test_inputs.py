"""Whatever holds texts, and templates, through the estimator."""

import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

from skgpt import GPTTextClassifier
from skgpt.exceptions import NumbersAsTextWarning
from tests.helpers import ArrowStream, make, make_text_data

DATA = make_text_data(n_classes=2, n_per_class=8)
TEXTS, LABELS = list(DATA.X), list(DATA.y)
HEADLINES = [f"headline {i % 3}" for i in range(16)]

# What makes a column of texts, or of labels, of a list.
COLUMNS: dict[str, Callable[[list[str]], Any]] = {
    "tuple": tuple,
    "StringDType": lambda values: np.array(values, dtype=np.dtypes.StringDType()),
    "Series with its own index": lambda values: pd.Series(values, index=range(100, 116)),
    "Series of category": lambda values: pd.Series(values, dtype="category"),
    "pandas string array": lambda values: pd.array(values, dtype="string"),
    "pandas Index": pd.Index,
    "polars Series": pl.Series,
    "pyarrow chunked array": lambda values: pa.chunked_array([values]),
    "Arrow stream": lambda values: ArrowStream(pa.chunked_array([values])),
    "Arrow stream of a table": lambda values: ArrowStream(pa.table({"a": values})),
    "(n, 1) object": lambda values: np.array(values, dtype=object)[:, None],
}


def watching(folder: str) -> GPTTextClassifier:
    """Return a classifier that needs rows of X and of y by themselves."""
    return make(folder, max_epochs=2, early_stopping=True, scoring="accuracy")


@pytest.fixture(scope="module")
def expected(tiny_llama: str) -> GPTTextClassifier:
    return watching(tiny_llama).fit(TEXTS, LABELS)


@pytest.mark.first_tier(name=["StringDType", "Series with its own index", "pyarrow chunked array"])
@pytest.mark.parametrize("name", COLUMNS)
@pytest.mark.filterwarnings("ignore:A column-vector y:sklearn.exceptions.DataConversionWarning")
def test_fit_and_predict__any_column_of_texts_and_of_labels__is_the_same(
    name: str, tiny_llama: str, expected: GPTTextClassifier
) -> None:
    X, y = COLUMNS[name](TEXTS), COLUMNS[name](LABELS)
    clf = watching(tiny_llama).fit(X, y)
    assert clf.validation_scores_ == expected.validation_scores_
    assert clf.classes_.tolist() == ["money", "sport"]
    assert np.array_equal(clf.predict_proba(X), expected.predict_proba(TEXTS))
    assert clf.score(X, LABELS) == expected.score(TEXTS, LABELS)


def two_columns(kind: str) -> Any:
    table = {"title": HEADLINES, "body": TEXTS}
    if kind == "pandas":
        return pd.DataFrame(table)
    if kind == "polars":
        return pl.DataFrame(table)
    rows = [list(row) for row in zip(HEADLINES, TEXTS, strict=True)]
    return rows if kind == "lists" else np.array(rows, dtype=object if kind == "object" else str)


@pytest.fixture(scope="module")
def laid_out(tiny_model: Any) -> np.ndarray:
    texts = [f"News: {t}\n{b} {{end}}" for t, b in zip(HEADLINES, TEXTS, strict=True)]
    clf = make(tiny_model("llama"), max_epochs=2, max_length=128)
    return clf.fit(texts, LABELS).predict_proba(texts)


@pytest.mark.parametrize(
    ("kind", "named"),
    [
        *[("pandas", True), ("pandas", False), ("polars", True)],
        *[("lists", False), ("object", False), ("U", False)],
    ],
)
def test_template__columns__equal_texts_laid_out_by_hand(
    kind: str, named: bool, tiny_llama: str, laid_out: np.ndarray
) -> None:
    template = "News: {title}\n{body} {{end}}" if named else "News: {0}\n{1} {{end}}"
    X = two_columns(kind)
    clf = make(tiny_llama, template=template, max_epochs=2, max_length=128).fit(X, LABELS)
    assert np.array_equal(clf.predict_proba(X), laid_out)
    assert clf.n_features_in_ == 2
    assert hasattr(clf, "feature_names_in_") == (kind in ("pandas", "polars"))


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{titel}", r"titel.*title.*body|titel"),
        (3, "template"),
        ("words " * 100 + "{title}", "max_length"),
    ],
)
@pytest.mark.usefixtures("no_training")
def test_template__that_can_not_be__is_refused_before_training(
    template: Any, message: str, tiny_llama: str
) -> None:
    with pytest.raises(ValueError, match=message):
        make(tiny_llama, template=template).fit(two_columns("pandas"), LABELS)


def test_template__columns_that_nobody_reads__make_no_difference(tiny_llama: str) -> None:
    text = pd.DataFrame({"text": TEXTS})
    odd = {"day": pd.date_range("2026-01-01", periods=16), "gap": None, "lists": [[1]] * 16}
    frame = pd.DataFrame({**odd, "text": TEXTS})
    clf = make(tiny_llama, template="{text}", max_epochs=2, early_stopping=True, scoring="accuracy")
    expected = clf.fit(text, LABELS).predict_proba(text)
    assert np.array_equal(clf.predict_proba(frame), expected)
    clf.fit(frame, LABELS, X_val=text, y_val=LABELS)  # held-out rows by name too
    clf.fit(frame, LABELS)
    assert clf.feature_names_in_.tolist() == ["day", "gap", "lists", "text"]
    for X in (frame, frame[["text", "gap"]], text, pa.table({"text": TEXTS}), TEXTS):
        assert np.array_equal(pickle.loads(pickle.dumps(clf)).predict_proba(X), expected)
    assert set(clf.explain(text)["column"]) == {"text"}
    with pytest.raises(ValueError, match=r"one column 'text', which the template reads. Got .*gap"):
        clf.predict(frame[["gap"]])
    with pytest.raises(ValueError, match="Row 3, column 'text' is "):
        clf.predict(frame.assign(text=[*TEXTS[:3], None, *TEXTS[4:]]))


def test_partial_fit__without_columns_that_nobody_reads__goes_on(tiny_llama: str) -> None:
    frame = pd.DataFrame({"gap": None, "text": TEXTS})
    states = []
    for second in (frame, frame[["text"]]):
        clf = make(tiny_llama, template="{text}")
        clf.partial_fit(frame, LABELS, classes=["money", "sport"]).partial_fit(second, LABELS)
        states.append(clf.predict_proba(frame))
    assert np.array_equal(*states)


@pytest.mark.parametrize("template", [None, "{0} {1}"])
def test_fit__two_columns_of_one_name__are_refused(template: Any, tiny_llama: str) -> None:
    frame = pd.DataFrame([["a", "b"], ["c", "d"]], columns=["same", "same"])
    with pytest.raises(ValueError, match="Several are called 'same': rename them"):
        make(tiny_llama, template=template).fit(frame, [0, 1])


@pytest.mark.usefixtures("no_training")
@pytest.mark.parametrize(
    "X",
    [
        [[1.5, 2], [3, 4]],
        np.eye(2),
        np.eye(2, dtype=bool),
        pd.DataFrame({"a": [0.5, 1.0]}),
        pl.DataFrame({"a": [1, 2]}),
    ],
    ids=["rows", "array", "bools", "pandas", "polars"],
)
def test_fit__numbers_alone__warns_before_training(X: Any, tiny_llama: str) -> None:
    with pytest.raises(NumbersAsTextWarning, match="without a vectoriser"):  # an error in tests
        make(tiny_llama).fit(X, [0, 1])


def test_fit__numbers_beside_texts__does_not_warn(tiny_llama: str) -> None:
    rows = [[1, "a goal"], [2, "a bank"]] * 4
    clf = make(tiny_llama, max_epochs=1).fit(rows, [0, 1] * 4)
    assert clf.predict([[5, "a goal"]]).shape == (1,)
