"""Texts and weights: what is taken as it is, and what is refused, by the number of its row."""

import collections
import datetime as dt
import decimal
import enum
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from scipy import sparse
from sklearn.base import BaseEstimator
from sklearn.utils.validation import validate_data

from skgpt.data.inputs import check_weight, find_columns, rows_of
from skgpt.exceptions import InvalidTextError
from tests.helpers import ArrowStream

TEXTS = ["one", "", "dr\u00e4i \U0001f600"]
OTHERS = ["x", "y", "z"]
String = np.dtypes.StringDType


class ArrayLikeStream(ArrowStream):
    """A frame that also turns into an array, of its rows without their columns' names."""

    shape = (3, 2)

    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        return np.asarray(self.values)


class Interchange:
    """A frame that speaks the dataframe interchange protocol and nothing else."""

    def __init__(self, table: pa.Table) -> None:
        self.table = table

    def __dataframe__(self, **options: Any) -> Any:
        return self.table.__dataframe__(**options)


class Dataset:
    """Like a `datasets.Dataset`: a shape, names, and a `take` that means the first n rows."""

    def __init__(self, table: pa.Table) -> None:
        self.table, self.shape, self.column_names = table, table.shape, table.column_names

    def __len__(self) -> int:
        return len(self.table)

    def with_format(self, name: str) -> Any:
        assert name == "arrow"
        return self.table

    def take(self, n: int) -> Any:
        return Dataset(self.table.slice(0, n))

    def __getitem__(self, key: Any) -> Any:
        return {name: self.table[name].take(key).to_pylist() for name in self.column_names}


class LazyFrame:
    """Like Dask's frames: it doesn't know how many rows it has."""

    iloc, ndim = np.array([TEXTS], dtype=object).T, 2
    shape, compute = (object(), 1), None


class Rows:
    """Has the shape of a table, and gives the names of its columns."""

    shape = (3, 2)

    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        return np.array(["title", "body"], dtype=object)


class Shout(str):
    """A str that says something else when asked for its text."""

    __slots__ = ()

    def __str__(self) -> str:
        return self.upper()


class Member(str, enum.Enum):  # noqa: UP042, its str() differs from StrEnum's
    """What `str` makes "Member.ONE" of."""

    ONE = "one"


def pandas_series(dtype: Any) -> Callable[[list[Any]], Any]:
    return lambda values: pd.Series(values, dtype=dtype)


def polars_series(dtype: Any) -> Callable[[list[Any]], Any]:
    return lambda values: pl.Series("a", values, dtype=dtype)


def polars_enum(values: list[Any]) -> Any:
    return pl.Series(values, dtype=pl.Enum([v for v in values if v is not None]))


SERIES = {
    "list": list,
    "tuple": tuple,
    "deque": collections.deque,
    "numpy": np.array,
    "numpy object": lambda values: np.array(values, dtype=object),
    "numpy StringDType": lambda values: np.array(values, dtype=String(na_object=None)),
    "pandas object": pandas_series(object),
    "pandas string": pandas_series("string"),
    "pandas string[pyarrow]": pandas_series("string[pyarrow]"),
    "pandas arrow": pandas_series(pd.ArrowDtype(pa.string())),
    "pandas category": pandas_series("category"),
    "pandas inferred": pd.Series,
    "pandas index": lambda values: pd.Series(values, index=[7, 3, 0], dtype=object),
    "polars String": polars_series(pl.String),
    "polars Categorical": polars_series(pl.Categorical),
    "polars Enum": polars_enum,
    "pyarrow string": pa.array,
    "pyarrow large_string": lambda values: pa.array(values, pa.large_string()),
    "pyarrow dictionary": lambda values: pa.array(values).dictionary_encode(),
    "Arrow stream": lambda values: ArrowStream(pa.chunked_array([values])),
    "pyarrow chunks": lambda values: pa.chunked_array([values[:1], values[1:]]),
}

TABLES = {
    "lists": lambda a, b: [list(row) for row in zip(a, b, strict=True)],
    "tuple of tuples": lambda a, b: tuple(zip(a, b, strict=True)),
    "arrays": lambda a, b: [np.array(row, dtype=object) for row in zip(a, b, strict=True)],
    "numpy": lambda a, b: np.array([a, b]).T,
    "numpy object": lambda a, b: np.array([a, b], dtype=object).T,
    "numpy StringDType": lambda a, b: np.array([a, b], dtype=String(na_object=None)).T,
    "pandas": lambda a, b: pd.DataFrame({"a": a, "b": b}),
    "pandas mixed": lambda a, b: pd.DataFrame(
        {"a": pd.Series(a, dtype="category"), "b": pd.Series(b, dtype="string")}
    ),
    "pandas same name": lambda a, b: pd.concat(
        [pd.Series(a), pd.Series(b)], axis=1, keys=["a"] * 2
    ),
    "polars": lambda a, b: pl.DataFrame({"a": a, "b": b}),
    "polars mixed": lambda a, b: pl.DataFrame(
        {"a": pl.Series(a, dtype=pl.Categorical), "b": polars_enum(b)}
    ),
    "pyarrow table": lambda a, b: pa.table({"a": a, "b": b}),
    "Arrow stream": lambda a, b: ArrowStream(pa.table({"a": a, "b": b})),
    "Arrow stream of polars": lambda a, b: ArrowStream(pl.DataFrame({"a": a, "b": b})),
    "Arrow stream and array": lambda a, b: ArrayLikeStream(pa.table({"a": a, "b": b})),
    "interchange": lambda a, b: Interchange(pa.table({"a": a, "b": b})),
    "Dataset": lambda a, b: Dataset(pa.table({"a": a, "b": b})),
    "pyarrow batch": lambda a, b: pa.record_batch({"a": a, "b": b}),
}


def cells_of(X: Any) -> list[list[str]]:
    return find_columns(X).read()


def validated(X: Any) -> Any:
    """Return an estimator with the attributes that scikit-learn sets for X."""
    estimator = BaseEstimator()
    validate_data(estimator, X, skip_check_array=True)
    return estimator


def assert_plain(columns: list[list[str]]) -> None:
    assert {type(columns)} | {type(column) for column in columns} == {list}
    assert {type(text) for column in columns for text in column} == {str}


@pytest.mark.parametrize("make", SERIES.values(), ids=SERIES)
def test_find_columns__any_column__gives_the_texts_in_order(make: Callable[..., Any]) -> None:
    texts = find_columns(make(TEXTS))
    assert texts.read() == [TEXTS]
    assert_plain(texts.read())
    assert (len(texts), texts.n_features, texts.names) == (3, None, None)
    assert texts.n_features == getattr(validated(make(TEXTS)), "n_features_in_", None)
    with pytest.raises(InvalidTextError, match=r"Row 1 is .*Drop the row"):
        cells_of(make(["one", None, "three"]))


@pytest.mark.parametrize("make", TABLES.values(), ids=TABLES)
def test_find_columns__any_table__gives_its_columns(make: Callable[..., Any]) -> None:
    texts = find_columns(make(TEXTS, OTHERS))
    assert texts.read() == [TEXTS, OTHERS]
    assert_plain(texts.read())
    assert (len(texts), texts.n_features) == (3, 2)
    with pytest.raises(InvalidTextError, match=r"Row 2, column (1|'[ab]') is .*Drop the row"):
        cells_of(make(TEXTS, ["x", "y", None]))


@pytest.mark.parametrize(
    "name", ["Arrow stream", "Arrow stream and array", "interchange", "Dataset"]
)
def test_find_columns__a_frame_that_is_not_known__has_its_names(name: str) -> None:
    assert find_columns(TABLES[name](TEXTS, OTHERS)).names == ["a", "b"]


def test_find_columns__some_are_not_read__may_hold_anything() -> None:
    odd = [dt.date(2026, 1, 1), None, ["list"]]
    frame = pd.DataFrame({"odd": odd, "text": TEXTS, "gap": [np.nan] * 3})
    array = np.array([[1.0, np.nan], [2.5, np.inf]])
    assert find_columns(frame).read([None, 1, None]) == [[""] * 3, TEXTS, [""] * 3]
    assert find_columns(frame.to_numpy().tolist()).read([None, 1]) == [[""] * 3, TEXTS]
    assert find_columns(array).read([0, None])[0] == ["1", "2.5"]
    with pytest.raises(ValueError, match="NaN"):
        find_columns(array).read([None, 1])
    with pytest.raises(InvalidTextError, match=r"Row 0, column 'odd' is datetime.date"):
        find_columns(frame).read([0, 1, None])


@pytest.mark.parametrize("library", [pd.DataFrame, pl.DataFrame, pa.table])
def test_find_columns__a_frame__names_are_what_scikit_learn_finds(library: Any) -> None:
    X = library({"title": ["a"], "body": ["b"]})
    texts, estimator = find_columns(X), validated(X)
    assert texts.n_features == estimator.n_features_in_ == 2
    assert texts.names == ["title", "body"]
    # scikit-learn 1.7 finds none in polars 2, which has dropped the interchange protocol.
    assert list(getattr(estimator, "feature_names_in_", ["title", "body"])) == texts.names


@pytest.mark.parametrize(
    "X",
    [pd.DataFrame([["a", "b"]]), pd.DataFrame({"a": ["x"], 1: ["y"]}), [["a"]], np.array([["a"]])],
)
def test_find_columns__names_that_are_not_all_str__are_none(X: object) -> None:
    assert find_columns(X).names is None


@pytest.mark.parametrize(
    "make",
    [
        *(list, pd.Series, pl.Series, pa.array),
        lambda values: np.array(values, dtype=object),
        lambda values: pd.DataFrame({"a": values}, index=[7, 3, 0]),
        lambda values: pl.DataFrame({"a": values}),
    ],
)
def test_rows_of__some_rows__are_in_the_same_container(make: Callable[..., Any]) -> None:
    X = make(TEXTS)
    taken = rows_of(X, np.array([2, 0]))
    assert type(taken) is type(X)
    assert cells_of(taken) == [[TEXTS[2], TEXTS[0]]]
    assert find_columns(taken).names == find_columns(X).names


@pytest.mark.parametrize(
    "X",
    [
        np.ma.array(["one", "hidden"], mask=[False, True]),
        np.array([np.nan, np.nan]),
        pl.Series([None, None]),
        pa.nulls(2),
        np.array(["one", np.nan], dtype=String(na_object=np.nan)),
        np.array(["one", pd.NA], dtype=String(na_object=pd.NA)),
        np.array([["one"], [pd.NA]], dtype=String(na_object=pd.NA)),
    ],
    ids=["masked", "all nan", "polars Null", "pyarrow null", "nan", "NA", "NA in a table"],
)
def test_find_columns__missing_in_an_odd_way__is_named(X: object) -> None:
    with pytest.raises(InvalidTextError, match=r"Row \d(, column 0)? is .*Drop the row"):
        cells_of(X)


def test_find_columns__odd_str__give_the_text_that_they_are() -> None:
    column = [np.str_("a"), Shout("b"), Member.ONE, "half \ud800"]
    for columns in (cells_of(column), cells_of([[text] for text in column])):
        assert columns == [["a", "b", "one", "half \ud800"]]
        assert_plain(columns)


def test_find_columns__one_long_text__is_not_the_width_of_all() -> None:
    texts = ["x" * 200_000] + ["y"] * 199
    for X in ([[text, text] for text in texts], pl.Series(texts), pl.DataFrame({"a": texts})):
        tracemalloc.start()
        cells_of(X)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 10_000_000  # a numpy array of fixed width has 160 million bytes


def numbers_as(library: Any) -> Any:
    return library(
        {
            "text": ["x", "y"],
            "int": [1, 2**60 + 1],
            "float": [2.0, 0.125],
            "bool": [True, False],
            "decimal": [decimal.Decimal("1.25"), decimal.Decimal("3.50")],
        }
    )


@pytest.mark.parametrize("library", [pd.DataFrame, pl.DataFrame, pa.table])
def test_find_columns__numbers_in_a_frame__are_the_same_text(library: Callable[..., Any]) -> None:
    assert cells_of(numbers_as(library)) == [
        ["x", "y"],
        ["1", "1152921504606846977"],
        ["2", "0.125"],
        ["True", "False"],
        ["1.25", "3.50"],
    ]


def test_find_columns__categories_of_numbers__are_numbers() -> None:
    codes = pd.Series([20, 10, 20], dtype="category")
    assert cells_of(pd.DataFrame({"a": OTHERS, "b": codes}))[1] == ["20", "10", "20"]
    with pytest.raises(InvalidTextError, match="Reshape your data"):
        cells_of(codes)


def test_find_columns__a_date__is_refused_with_what_to_do() -> None:
    frame = pd.DataFrame({"a": ["x"], "when": pd.to_datetime(["2024-01-31"])})
    with pytest.raises(InvalidTextError, match=r"Row 0, column 'when' is Timestamp.*str\(\)"):
        cells_of(frame)


def test_find_columns__numbers__keep_the_digits_that_tell_them_apart() -> None:
    for X in (np.array([[1.0, 0.125], [2.0, 1e9]]), [[1.0, 0.125], [2.0, 1e9]]):
        assert cells_of(X) == [["1", "2"], ["0.125", "1000000000"]]
    columns = cells_of([[20240131.0, 1234567.89], [20240132.0, 1234568.11]])
    assert columns == [["20240131", "20240132"], ["1234567.89", "1234568.11"]]
    assert cells_of([[10**400, 0.5], [2**60 + 1, 1.5]])[0] == [str(10**400), str(2**60 + 1)]


@pytest.mark.parametrize("bad", [None, float("nan"), pd.NA, 3, 2.5, True, b"bytes", ["list"]])
def test_find_columns__a_bad_row_or_cell__is_named(bad: object) -> None:
    column = np.array(["fine", "also fine", "x"], dtype=object)
    column[1] = bad
    with pytest.raises(InvalidTextError, match=r"Row 1 is "):
        cells_of(column)
    if not isinstance(bad, int | float) or bad != bad:  # numbers and bools are formatted
        with pytest.raises(InvalidTextError, match=r"Row 1, column 'b' is "):
            cells_of(pd.DataFrame({"a": ["x"] * 3, "b": column}, dtype=object))


@pytest.mark.parametrize(
    ("X", "message"),
    [
        ("a text", "wrap it in a list"),
        ([], "at least one text"),
        ([1, 2, 3], "Reshape your data"),
        (np.zeros((2, 2, 2)), "Reshape your data"),
        ([["a", "b"], ["c"]], "row 1 is"),
        ([["a", "b"], "ab"], "row 1 is 'ab'"),
        (np.array([[1.0, np.nan]]), "NaN"),
        (np.zeros((3, 0)), "0 feature"),
        (np.array("a"), "0 dimensions"),
        ([[], []], "0 feature"),
        ([np.array("a")], "Row 0 is array"),
        ([["a", ["b"]]], r"Row 0, column 1 is \['b'\]"),
        ([[1.0], [np.nan]], "NaN"),
        (pl.DataFrame({"a": []}), "0 sample"),
        (pl.Series([["a"], ["b"]]), "Row 0 is array"),
        (pa.array([1, 2]), "Reshape your data"),
        (pl.LazyFrame({"a": TEXTS}), r"X.collect\(\)"),
        (LazyFrame(), r"X.compute\(\)"),
        (pa.table({"a": TEXTS}).to_reader(), r"X.read_all\(\)"),
        ({"a": TEXTS}, "make a DataFrame"),
        ({"train": pa.table({"a": TEXTS})}, r"pass one of its tables, as in X\['train'\]"),
        ([{"a": "one"}, {"a": "two"}], r"Row 0 is .*pandas.DataFrame\(X\)"),
        (pd.DataFrame({"a": ["x"]}).to_records(), r"array of records: .*pandas.DataFrame\(X\)"),
        (Rows(), r"Got a Rows that has the shape \(3, 2\) and other values"),
        ({"a", "b"}, r"Got set: pass list\(X\)"),
        ((t for t in TEXTS), r"Got generator: pass list\(X\)"),
        (None, "Got NoneType"),
    ],
)
def test_find_columns__not_a_column_of_texts__says_what_to_do(X: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        cells_of(X)


def test_find_columns__sparse__is_refused() -> None:
    with pytest.raises(TypeError, match=r"[Ss]parse"):
        cells_of(sparse.csr_matrix(np.eye(3)))
    with pytest.raises(InvalidTextError, match="Got a coo_array"):
        cells_of(sparse.coo_array(np.ones(3)))


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        ([1.0, -1.0, 1.0], "[Nn]egative"),
        (0.0, "zero"),
        (["a", "b", "c"], "sample_weight must hold numbers alone"),
        ([1.0, 2.0], "expected"),
        ([1.0, np.nan, 1.0], "NaN"),
        ([[1.0], [1.0], [1.0]], "1D"),
    ],
)
def test_check_weight__unusable__is_refused(weight: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_weight(weight, 3)


@pytest.mark.parametrize(
    "container",
    [
        np.asarray,
        pl.DataFrame,
        lambda table: pd.DataFrame(table).convert_dtypes(),
        lambda table: pa.table({"a": table[:, 0], "b": table[:, 1]}),
    ],
)
def test_find_columns__numbers_in_fp32__keep_the_digits_they_have(container: Any) -> None:
    table = np.array([[9.99, 1.0], [0.1, -2.5]], dtype=np.float32)
    assert cells_of(container(table)) == [["9.99", "0.1"], ["1", "-2.5"]]
