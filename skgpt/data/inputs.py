"""Check X and sample_weight: any container of texts becomes plain columns of str, once.

Every element is looked at by itself: numpy and scikit-learn would turn None into the text "None"
without a word. Containers are recognised by their methods, so neither pandas nor polars nor
pyarrow is imported.
"""

import decimal
import math
import numbers
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from sklearn.utils import check_array

from skgpt._sklearn import check_sample_weight, take_rows
from skgpt.exceptions import InvalidTextError

_SHAPES = "a list, a 1-D array or a Series of str, or a 2-D array or DataFrame of columns"
_SHORT_FLOATS = ("float16", "float32", "float", "halffloat")  # numpy's, pandas', polars', pyarrow's
MISSING = ("NAType", "NaTType")  # the classes of pandas.NA and pandas.NaT


@dataclass(frozen=True)
class TextColumns:
    """The checked texts of an X.

    `cells` holds plain str, column by column, and `X` is what the user passed. `names` are a
    frame's column names if all of them are str; `n_features` is None where X is 1-D.
    """

    cells: list[list[str]]
    X: Any
    n_features: int | None = None
    names: list[str] | None = None

    def __len__(self) -> int:
        return len(self.cells[0])


def check_texts(X: Any, *, estimator: Any = None) -> TextColumns:
    """Check X; an InvalidTextError names the row and column of what is no text.

    X is a sequence, a numpy array, or a Series, DataFrame, Array or Table of pandas, polars or
    pyarrow. Numbers and bools in 2-D input are formatted as text. scikit-learn's own messages name
    `estimator`.
    """
    if isinstance(X, str | bytes):
        raise InvalidTextError(
            f"X must be {_SHAPES}. Got a single {type(X).__name__}: wrap it in a list, [X]."
        )
    names = None
    if isinstance(X, Sequence):
        values, shape = _from_sequence(X, estimator)
    elif (columns := _frame_columns(X)) is not None:
        values, shape = [_elements(column) for column in columns], X.shape
        names = _frame_names(X)
    else:
        values, shape = _from_array(X, estimator)
    if len(shape) == 1:
        return TextColumns([_check_column(values)], X)
    if 0 in shape:
        _check_numbers(np.empty(shape), estimator)
    cells = [
        [
            _plain(value) if isinstance(value, str) else _format(value, row, column)
            for row, value in enumerate(in_column)
        ]
        for column, in_column in enumerate(values)
    ]
    return TextColumns(cells, X, n_features=int(shape[1]), names=names)


def check_weight(sample_weight: Any, n: int) -> NDArray[np.float64]:
    """Return a weight for each of n rows, ones for None; refuse negative ones and all zeros."""
    if sample_weight is None:
        return np.ones(n)
    if not isinstance(sample_weight, numbers.Number):
        try:
            sample_weight = np.asarray(sample_weight, dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise InvalidTextError(f"sample_weight must hold numbers alone: {error}") from error
    rows = np.empty((n, 1))  # scikit-learn reads only the number of rows off it
    weight = check_sample_weight(sample_weight, rows, dtype=np.float64, ensure_non_negative=True)
    if not np.any(weight > 0):
        raise InvalidTextError(
            "sample_weight must hold at least one weight above zero. All of them are zero."
        )
    return np.asarray(weight, dtype=np.float64)


def rows_of(values: Any, rows: NDArray[np.int64]) -> Any:
    """Return some rows of an X, y or sample_weight in the container that the user passed."""
    if sparse.issparse(values):
        values = values.tocsr()  # not every format can be indexed
    elif hasattr(values, "take") and not hasattr(values, "iloc"):  # pandas' Index and arrays, ...
        return values.take(rows)
    elif not hasattr(values, "__getitem__"):  # can only be turned into an array
        values = np.asarray(values)
    return take_rows(values, rows)


def _from_sequence(X: Sequence[Any], estimator: Any) -> tuple[list[Any], tuple[int, ...]]:
    """Return the elements of a 1-D sequence, or the columns of one of rows, and the shape."""
    first = next((row for row in X if is_row(row)), None)
    if first is None:
        return list(X), (len(X),)
    for i, row in enumerate(X):
        if not is_row(row) or len(row) != len(first):
            raise InvalidTextError(
                f"X must be {_SHAPES}. Its rows must be of one kind and length: row {i} is "
                f"{_describe(row)}, another {_describe(first)}. Give every row as many texts."
            )
    if len(first) and all(_is_number(value) for row in X for value in row):
        _check_numbers(np.asarray(X), estimator)
    return [list(column) for column in zip(*X, strict=True)], (len(X), len(first))


def _from_array(X: Any, estimator: Any) -> tuple[list[Any], tuple[int, ...]]:
    """Return the elements of a 1-D array, or the columns of a 2-D one, and the shape."""
    if isinstance(X, np.ma.MaskedArray):  # else what lies under the mask would come through
        hidden, X = np.ma.getmaskarray(X), np.array(X.data, dtype=object)
        X[hidden] = None
    shape = getattr(X, "shape", None)
    if not isinstance(shape, tuple):
        if not hasattr(X, "__array__"):
            raise InvalidTextError(
                f"X must be {_SHAPES}. Got {type(X).__name__}: {_container_cure(X)}"
            )
        shape = np.asarray(X).shape
    if len(shape) == 1:
        values = _elements(X)
        if not isinstance(values, list):  # a 1-D sparse array has no elements to look at
            raise InvalidTextError(_not_texts(f"a {type(X).__name__}"))
        return values, shape
    if len(shape) != 2:
        raise InvalidTextError(
            f"X must be {_SHAPES}. Got an array with {len(shape)} dimensions. Reshape your data."
        )
    if not hasattr(X, "dtype"):
        X = np.asarray(X)
    if not isinstance(X, np.ndarray) or X.dtype.kind in "biufc":
        X = _check_numbers(X, estimator)
    return _elements(X.T), shape


def _frame_columns(X: Any) -> list[Any] | None:
    """Return the columns of a DataFrame or Table as they are stored; None for anything else."""
    if hasattr(X, "iloc") and getattr(X, "ndim", None) == 2:  # pandas, where names may repeat
        return [X.iloc[:, i] for i in range(X.shape[1])]
    if hasattr(X, "get_columns"):  # polars
        return list(X.get_columns())
    if hasattr(X, "itercolumns"):  # pyarrow
        return list(X.itercolumns())
    return None


def _frame_names(X: Any) -> list[str] | None:
    """Return the names of a frame's columns; None unless all of them are str."""
    names = list(X.column_names if hasattr(X, "column_names") else X.columns)
    return [*map(_plain, names)] if all(isinstance(name, str) for name in names) else None


def _elements(values: Any) -> Any:
    """Return the elements as a list of Python objects.

    As objects, because numpy would else give all texts one fixed width. fp32 and fp16 become the
    fp64 of the digits they are written with: 0.1, not 0.1000000015.
    """
    if str(getattr(values, "dtype", getattr(values, "type", ""))).lower() in _SHORT_FLOATS:
        array = np.asarray(values)
        values = array.astype(str).astype(np.float64) if array.dtype.kind == "f" else values
    return np.asarray(values, dtype=object).tolist()


def _check_column(values: list[Any]) -> list[str]:
    if len(values) == 0:
        raise InvalidTextError(
            "X must hold at least one text. Found array with 0 sample(s) (shape=(0,)) while a "
            "minimum of 1 is required."
        )
    # An empty column of texts is read from a file as NaN alone: that is no column of numbers.
    if all(map(_is_number, values)) and any(value == value for value in values):
        raise InvalidTextError(_not_texts("a 1-D sequence of numbers"))
    for row, value in enumerate(values):
        if not isinstance(value, str):
            raise InvalidTextError(
                f"Every row of X must be a str. Row {row} is {_describe(value)}. {_cure(value)}"
            )
    return [_plain(value) for value in values]


def _check_numbers(X: Any, estimator: Any) -> Any:
    """Check numbers and sparse matrices: scikit-learn's own words for NaN, inf, complex, empty."""
    return check_array(X, dtype=None, estimator=estimator, input_name="X")


def _plain(value: str) -> str:
    """Return the text of a str or of a subclass, whatever its ``str()`` says."""
    return value if type(value) is str else str.__str__(value)


def _format(value: Any, row: int, column: int) -> str:
    """Return a number or bool as text; refuse anything else."""
    if isinstance(value, bool | np.bool_):
        return str(bool(value))
    if isinstance(value, numbers.Integral):
        return str(int(value))
    if _is_number(value) and math.isfinite(value):
        # The shortest digits that say which number it is; 20240131.0 is as good as 20240131.
        return str(int(value)) if value == int(value) and abs(value) < 1e15 else str(value)
    raise InvalidTextError(
        f"Every cell of X must be a str or a finite number. Row {row}, column {column} is "
        f"{_describe(value)}. {_cure(value)}"
    )


def is_row(value: Any) -> bool:
    """Say whether an element of a sequence is a sequence itself: a row of a table."""
    return isinstance(value, list | tuple) or (isinstance(value, np.ndarray) and value.ndim > 0)


def _is_number(value: Any) -> bool:
    is_real = isinstance(value, numbers.Real | decimal.Decimal)
    return is_real and not isinstance(value, bool | np.bool_)


def _describe(value: Any) -> str:
    text = repr(value)
    return f"{text[:60]}{'...' if len(text) > 60 else ''} ({type(value).__name__})"


def _cure(value: Any) -> str:
    if isinstance(value, bytes):
        return "Decode bytes first, as in value.decode('utf-8')."
    if isinstance(value, numbers.Number) and value == value:
        return "Turn numbers into texts with str(), or pass them as a column of a 2-D X."
    if value is None or isinstance(value, numbers.Number) or type(value).__name__ in MISSING:
        return "Drop the row, or put a text there ('' is a legal text)."
    return "Put a text there, for example with str(), or drop the row."


def _container_cure(X: Any) -> str:
    if hasattr(X, "collect"):
        return "call X.collect() first."
    if isinstance(X, Mapping):
        return "make a DataFrame of its columns, or a list of its texts."
    return "pass list(X) if it can be iterated."


def _not_texts(what: str) -> str:
    return (
        f"Expected 2D array, got 1D array instead, or texts: X must be {_SHAPES}. Got {what}. "
        "Numbers are no texts: pass the texts themselves, without a vectoriser. (Reshape your data "
        "to 2-D, array.reshape(-1, 1), only for a column of numbers that is to be read as text.)"
    )
