"""Whatever holds texts, and templates, through the estimator."""

from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from sklearn.base import clone
from sklearn.preprocessing import LabelEncoder

from skgpt import GPTTextClassifier
from tests.helpers import make, make_text_data

DATA = make_text_data(n_classes=2, n_per_class=8)
TEXTS, LABELS = list(DATA.X), list(DATA.y)
HEADLINES = [f"headline {i % 3}" for i in range(16)]

COLUMNS: dict[str, Any] = {
    "tuple": tuple(TEXTS),
    "U": np.array(TEXTS),
    "StringDType": np.array(TEXTS, dtype=np.dtypes.StringDType()),
    "Series with its own index": pd.Series(TEXTS, index=range(100, 116)),
    "Series of category": pd.Series(TEXTS, dtype="category"),
    "pandas string array": pd.array(TEXTS, dtype="string"),
    "values of a column": pd.DataFrame({"c": TEXTS})["c"].values,
    "pandas Index": pd.Index(TEXTS),
    "polars Series": pl.Series(TEXTS),
    "polars category": pl.Series(TEXTS, dtype=pl.Categorical),
    "pyarrow array": pa.array(TEXTS),
    "pyarrow chunked array": pa.chunked_array([TEXTS]),
    "(n, 1) object": np.array(TEXTS, dtype=object)[:, None],
    "DataFrame": pd.DataFrame({"text": TEXTS}),
    "polars DataFrame": pl.DataFrame({"text": TEXTS}),
    "lists of one": [[text] for text in TEXTS],
}
LABELS_AS: dict[str, Any] = {
    "tuple": tuple(LABELS),
    "StringDType": np.array(LABELS, dtype=np.dtypes.StringDType()),
    "Series with its own index": pd.Series(LABELS, index=range(50, 66)),
    "Series of category": pd.Series(LABELS, dtype="category"),
    "pandas string array": pd.array(LABELS, dtype="string"),
    "pandas Index": pd.Index(LABELS),
    "polars Series": pl.Series(LABELS),
    "pyarrow array": pa.array(LABELS),
    "pyarrow chunked array": pa.chunked_array([LABELS]),
    "(n, 1) object": np.array(LABELS, dtype=object)[:, None],
}


def watching(folder: str) -> GPTTextClassifier:
    """Return a classifier that needs rows of X and of y by themselves."""
    return make(folder, max_epochs=2, early_stopping=True, scoring="accuracy")


@pytest.fixture(scope="module")
def expected(tiny_llama: str) -> GPTTextClassifier:
    return watching(tiny_llama).fit(TEXTS, LABELS)


@pytest.mark.first_tier(name=["U", "Series with its own index", "pyarrow chunked array"])
@pytest.mark.parametrize("name", COLUMNS)
def test_fit_and_predict__any_column_of_texts__is_the_same(
    name: str, tiny_llama: str, expected: GPTTextClassifier
) -> None:
    clf = watching(tiny_llama).fit(COLUMNS[name], LABELS)
    assert clf.validation_scores_ == expected.validation_scores_
    assert np.array_equal(clf.predict_proba(COLUMNS[name]), expected.predict_proba(TEXTS))
    assert np.array_equal(clf.predict_proba(TEXTS), expected.predict_proba(COLUMNS[name]))
    assert clf.score(COLUMNS[name], LABELS) == expected.score(TEXTS, LABELS)


@pytest.mark.first_tier(name=["StringDType", "Series of category", "polars Series"])
@pytest.mark.parametrize("name", LABELS_AS)
@pytest.mark.filterwarnings("ignore:A column-vector y:sklearn.exceptions.DataConversionWarning")
def test_fit__any_column_of_labels__is_the_same(
    name: str, tiny_llama: str, expected: GPTTextClassifier
) -> None:
    clf = watching(tiny_llama).fit(TEXTS, LABELS_AS[name])
    assert clf.validation_scores_ == expected.validation_scores_
    assert np.array_equal(clf.predict_proba(TEXTS), expected.predict_proba(TEXTS))
    assert clf.classes_.tolist() == ["money", "sport"]
    assert set(clf.predict(TEXTS).tolist()) <= {"money", "sport"}


@pytest.mark.parametrize(
    "labels",
    [[7, -3], [True, False], [2.0, 5.0], [10**12, 4], ["b", "a"], [np.int8(3), np.int8(1)]],
)
def test_fit__labels_of_any_type__come_back_as_they_were(labels: Any, tiny_llama: str) -> None:
    y = [labels[0] if label == "sport" else labels[1] for label in LABELS]
    clf = make(tiny_llama, max_epochs=12, trainable_layers="all").fit(TEXTS, y)
    assert clf.classes_.tolist() == sorted(labels)
    assert clf.classes_.dtype == clf.predict(TEXTS).dtype == LabelEncoder().fit(y).classes_.dtype
    assert clf.predict(TEXTS).tolist() == y


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


def test_columns__without_a_template__are_joined_with_a_blank_line(tiny_llama: str) -> None:
    by_hand = [f"{t}\n\n{b}" for t, b in zip(HEADLINES, TEXTS, strict=True)]
    clf = make(tiny_llama, max_epochs=1, max_length=128)
    joined = clone(clf).fit(two_columns("pandas"), LABELS).predict_proba(two_columns("pandas"))
    assert np.array_equal(joined, clf.fit(by_hand, LABELS).predict_proba(by_hand))


def test_template__a_long_text__keeps_what_stands_behind_it(tiny_llama: str) -> None:
    # Two rows that differ behind a long text only: with the end cut off they would be one.
    long = "x" * 500
    X = pd.DataFrame({"body": [long, long], "title": ["goal", "bank"]})
    options: dict[str, Any] = {"max_epochs": 1, "max_length": 64}
    clf = make(tiny_llama, template="{body} // {title}", **options).fit(X, [0, 1])
    proba = clf.predict_proba(X)
    assert not np.array_equal(proba[0], proba[1])
    end_cut = make(tiny_llama, **options).fit([long + " // goal", long + " // bank"], [0, 1])
    proba = end_cut.predict_proba([long + " // goal", long + " // bank"])
    assert np.array_equal(proba[0], proba[1])


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{titel}", r"titel.*title.*body|titel"),
        ("{2}", "2"),
        ("{}", r"\{"),
        ("{title.upper}", "title"),
        ("{title!r}", "title"),
        ("no field", "field"),
        ("{title", "brace|expected"),
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


@pytest.mark.parametrize("template", [None, "{0} {1}"])
def test_fit__two_columns_of_one_name__are_refused(template: Any, tiny_llama: str) -> None:
    frame = pd.DataFrame([["a", "b"], ["c", "d"]], columns=["same", "same"])
    with pytest.raises(ValueError, match="Several are called 'same': rename them"):
        make(tiny_llama, template=template).fit(frame, [0, 1])
