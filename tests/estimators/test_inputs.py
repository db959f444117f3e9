"""Whatever holds texts, and templates, through the estimator."""

from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pytest
from sklearn.base import clone
from sklearn.compose import ColumnTransformer, make_column_selector
from sklearn.inspection import permutation_importance
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer

from skgpt import GPTTextClassifier
from skgpt.exceptions import InvalidTextError
from tests.helpers import make, make_text_data

DATA = make_text_data(n_classes=2, n_per_class=8)
TEXTS, LABELS = list(DATA.X), list(DATA.y)
HEADLINES = [f"headline {i % 3}" for i in range(16)]

COLUMNS: dict[str, Any] = {
    "list": TEXTS,
    "tuple": tuple(TEXTS),
    "object": np.array(TEXTS, dtype=object),
    "U": np.array(TEXTS),
    "StringDType": np.array(TEXTS, dtype=np.dtypes.StringDType()),
    "Series": pd.Series(TEXTS),
    "Series of object": pd.Series(TEXTS, dtype=object),
    "Series of string": pd.Series(TEXTS, dtype="string"),
    "Series of python string": pd.Series(TEXTS, dtype="string[python]"),
    "Series of pyarrow": pd.Series(TEXTS, dtype="string[pyarrow]"),
    "Series of category": pd.Series(TEXTS, dtype="category"),
    "Series with its own index": pd.Series(TEXTS, index=range(100, 116)),
    "polars Series": pl.Series(TEXTS),
    "polars category": pl.Series(TEXTS, dtype=pl.Categorical),
    "(n, 1) object": np.array(TEXTS, dtype=object)[:, None],
    "(n, 1) U": np.array(TEXTS)[:, None],
    "DataFrame": pd.DataFrame({"text": TEXTS}),
    "polars DataFrame": pl.DataFrame({"text": TEXTS}),
    "lists of one": [[text] for text in TEXTS],
}

Y: dict[str, Any] = {
    "list": LABELS,
    "tuple": tuple(LABELS),
    "U": np.array(LABELS),
    "StringDType": np.array(LABELS, dtype=np.dtypes.StringDType()),
    "object": np.array(LABELS, dtype=object),
    "Series": pd.Series(LABELS, index=range(50, 66)),
    "Series of string": pd.Series(LABELS, dtype="string"),
    "category": pd.Series(LABELS, dtype="category"),
    "polars Series": pl.Series(LABELS),
    "column": np.array(LABELS, dtype=object)[:, None],
}


@pytest.fixture(scope="module")
def expected(tiny_model: Any) -> np.ndarray:
    return make(tiny_model("llama"), max_epochs=2).fit(TEXTS, LABELS).predict_proba(TEXTS)


@pytest.mark.first_tier(name=["U", "Series", "polars Series", "DataFrame"])
@pytest.mark.parametrize("name", COLUMNS)
def test_fit_and_predict__any_column_of_texts__is_the_same(
    name: str, tiny_llama: str, expected: np.ndarray
) -> None:
    clf = make(tiny_llama, max_epochs=2).fit(COLUMNS[name], LABELS)
    assert np.array_equal(clf.predict_proba(COLUMNS[name]), expected)
    assert np.array_equal(clf.predict_proba(TEXTS), expected)
    assert clf.score(COLUMNS[name], LABELS) == clf.score(TEXTS, LABELS)


@pytest.mark.first_tier(name=["StringDType", "category", "polars Series"])
@pytest.mark.parametrize("name", Y)
@pytest.mark.filterwarnings("ignore:A column-vector y:sklearn.exceptions.DataConversionWarning")
def test_fit__any_column_of_labels__is_the_same(
    name: str, tiny_llama: str, expected: np.ndarray
) -> None:
    clf = make(tiny_llama, max_epochs=2).fit(TEXTS, Y[name])
    assert np.array_equal(clf.predict_proba(TEXTS), expected)
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


def test_template__one_text__may_be_called_text(tiny_llama: str) -> None:
    by_hand = [f"Review: {text}\nSentiment:" for text in TEXTS]
    clf = make(tiny_llama, template="Review: {text}\nSentiment:", max_epochs=1, max_length=128)
    clf.fit(TEXTS, LABELS)
    plain = make(tiny_llama, max_epochs=1, max_length=128).fit(by_hand, LABELS)
    assert np.array_equal(clf.predict_proba(TEXTS), plain.predict_proba(by_hand))


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
def test_template__that_can_not_be__is_refused_before_training(
    template: Any, message: str, tiny_llama: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("skgpt.fitting.train", lambda *a, **k: pytest.fail("training began"))
    with pytest.raises(ValueError, match=message):
        make(tiny_llama, template=template).fit(two_columns("pandas"), LABELS)


def test_pairs_of_sentences__their_order__matters(tiny_llama: str) -> None:
    X = np.array([["rain", "sun"], ["sun", "rain"]] * 8, dtype=object)
    y = [0, 1] * 8
    clf = make(tiny_llama, template="A: {0} B: {1}", trainable_layers="all", max_epochs=25)
    assert clf.fit(X, y).score(X, y) == 1.0


def test_permutation_importance__two_columns__finds_the_one_that_tells(tiny_llama: str) -> None:
    X = two_columns("pandas")
    clf = make(tiny_llama, template="{title}: {body}", trainable_layers="all", max_epochs=20)
    clf.fit(X, LABELS)
    found = permutation_importance(clf, X, LABELS, n_repeats=4, random_state=0)
    assert found.importances_mean[1] > 0.2 > abs(found.importances_mean[0])


def test_column_transformer__before_the_classifier__hands_its_columns_on(tiny_llama: str) -> None:
    X = pd.DataFrame({"id": range(16), "title": HEADLINES, "body": TEXTS})
    keep = ColumnTransformer(
        [("texts", "passthrough", ["title", "body"])], verbose_feature_names_out=False
    ).set_output(transform="pandas")
    clf = make(tiny_llama, template="{title}\n{body}", max_epochs=1)
    pipe = make_pipeline(keep, clf).fit(X, LABELS)
    expected = clone(clf).fit(X[["title", "body"]], LABELS)
    assert np.array_equal(pipe.predict_proba(X), expected.predict_proba(X[["title", "body"]]))


class Scored(GPTTextClassifier):
    """The classifier as a transformer, as a step of feature extraction would use it."""

    def transform(self, X: Any) -> np.ndarray:
        return self.predict_proba(X)


@pytest.mark.parametrize("columns", ["body", ["body"], make_column_selector("body")])
def test_column_transformer__a_branch_of_texts__fits_inside(columns: Any, tiny_llama: str) -> None:
    X = pd.DataFrame({"number": np.arange(16.0), "body": TEXTS})
    options = make(tiny_llama, max_epochs=1).get_params()
    branch = ColumnTransformer(
        [("score", Scored(**options), columns), ("rest", "passthrough", ["number"])]
    )
    out = branch.fit(X, LABELS).transform(X)
    assert out.shape == (16, 3)
    expected = make(tiny_llama, max_epochs=1).fit(TEXTS, LABELS).predict_proba(TEXTS)
    np.testing.assert_allclose(out[:, :2].astype(float), expected, rtol=1e-6)


def test_function_transformer__before_the_classifier__cleans(tiny_llama: str) -> None:
    def strip(X: Any) -> Any:
        return X.str.strip("# ").str.lower()

    X = pd.Series([f"## {text.upper()}" for text in TEXTS])
    clf = make(tiny_llama, max_epochs=1)
    pipe = make_pipeline(FunctionTransformer(strip), clf).fit(X, LABELS)
    expected = clone(clf).fit(strip(X), LABELS)
    assert np.array_equal(pipe.predict_proba(X), expected.predict_proba(strip(X)))


def test_predict__other_columns_than_at_fit__are_refused(tiny_llama: str) -> None:
    for kind in ("pandas", "polars"):
        X = two_columns(kind)
        clf = make(tiny_llama, max_epochs=1).fit(X, LABELS)
        assert clf.feature_names_in_.tolist() == ["title", "body"]
        swapped = X[["body", "title"]]
        with pytest.raises(ValueError, match="feature names"):
            clf.predict(swapped)
        with pytest.raises(ValueError, match=r"columns as at fit|features"):
            clf.predict(TEXTS)


def test_fit__continuous_y__names_the_regressor(tiny_llama: str) -> None:
    with pytest.raises(InvalidTextError, match="GPTTextRegressor"):
        make(tiny_llama).fit(["a", "b", "c"], [0.1, 2.3, 1.7])


def test_rfe_and_its_kin__texts_are_no_table_of_numbers__is_said_clearly(tiny_llama: str) -> None:
    from sklearn.feature_selection import RFE

    with pytest.raises(ValueError, match=r"coef_|feature_importances_|could not convert|numeric"):
        RFE(make(tiny_llama, max_epochs=1)).fit(two_columns("object"), LABELS)


@pytest.mark.parametrize("template", [None, "{0} {1}"])
def test_fit__two_columns_of_one_name__are_refused(template: Any, tiny_llama: str) -> None:
    frame = pd.DataFrame([["a", "b"], ["c", "d"]], columns=["same", "same"])
    with pytest.raises(ValueError, match="Several are called 'same': rename them"):
        make(tiny_llama, template=template).fit(frame, [0, 1])
