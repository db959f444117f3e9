"""From whatever a user passes as X and sample_weight to checked columns of texts and weights.

Every element is looked at by itself: numpy and scikit-learn would turn a ``None`` into the text
"None" without a word. Containers are known by what they offer, so that neither pandas nor polars
nor pyarrow is ever imported.
"""

import decimal
import math
import numbers
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.utils import check_array

from skgpt._sklearn import check_sample_weight
from skgpt.exceptions import InvalidTextError

_SHAPES = "a list, a 1-D array or a Series of str, or a 2-D array or DataFrame of columns"
_SHORT_FLOATS = ("float16", "float32", "float", "halffloat")  # numpy's, pandas', polars', pyarrow's
_MISSING = ("NAType", "NaTType")  # the classes of pandas.NA and pandas.NaT


def check_columns(X: Any, *, estimator: Any = None) -> list[list[str]]:
    """Check X and return its columns, one text per row in each.

    Parameters
    ----------
    X : array-like of shape (n,) or (n, n_columns)
        Texts: a sequence, a numpy array, or a Series, DataFrame, Array or Table of pandas, polars
        or pyarrow. Numbers and bools in 2-D input are formatted as text.
    estimator : object, default=None
        Named in scikit-learn's own error messages.

    Returns
    -------
    columns : list of list of str, n_columns times n
        Plain str throughout; one column for 1-D input.

    Raises
    ------
    InvalidTextError
        If there is no row, or a row holds something other than a text; it names the row.
    """
    if isinstance(X, str | bytes):
        raise InvalidTextError(
            f"X must be {_SHAPES}. Got a single {type(X).__name__}: wrap it in a list, [X]."
        )
    if isinstance(X, Sequence):
        return _check_sequence(X, estimator)
    if isinstance(X, np.ma.MaskedArray):  # else what lies under the mask would come through
        hidden, X = np.ma.getmaskarray(X), np.array(X.data, dtype=object)
        X[hidden] = None
    frame = _frame_columns(X)
    if frame is not None:
        return _check_cells([_values(column) for column in frame], X.shape, estimator)
    shape = _shape(X)
    if shape is None:
        raise InvalidTextError(f"X must be {_SHAPES}. Got {type(X).__name__}: {_container_cure(X)}")
    if len(shape) == 1:
        return [_check_column(X)]
    if len(shape) == 2:
        return _check_array(X, estimator)
    raise InvalidTextError(
        f"X must be {_SHAPES}. Got an array with {len(shape)} dimensions. Reshape your data."
    )


def n_columns(X: Any) -> int | None:
    """Return the number of columns of an X that `check_columns` took; None for 1-D input."""
    if isinstance(X, Sequence):
        return len(X[0]) if _is_row(X[0]) else None
    shape = _shape(X)
    return int(shape[1]) if shape is not None and len(shape) == 2 else None


def column_names(X: Any) -> list[str] | None:
    """Return the names of a DataFrame's or Table's columns; None unless all of them are str.

    The same as scikit-learn's ``feature_names_in_``, which scikit-learn 1.7 doesn't find for the
    frames of polars 2.
    """
    if _frame_columns(X) is None:
        return None
    names = list(X.column_names if hasattr(X, "column_names") else X.columns)
    if not all(isinstance(name, str) for name in names):
        return None
    return [str.__str__(name) for name in names]


def _frame_columns(X: Any) -> list[Any] | None:
    """Return the columns of a DataFrame or Table as they are stored; None for anything else."""
    if hasattr(X, "iloc") and getattr(X, "ndim", None) == 2:  # pandas, where names may repeat
        return [X.iloc[:, i] for i in range(X.shape[1])]
    if hasattr(X, "get_columns"):  # polars
        return list(X.get_columns())
    if hasattr(X, "itercolumns"):  # pyarrow
        return list(X.itercolumns())
    return None


def _shape(X: Any) -> tuple[int, ...] | None:
    shape = getattr(X, "shape", None)
    if isinstance(shape, tuple):
        return shape
    return np.asarray(X).shape if hasattr(X, "__array__") else None


def _values(column: Any) -> list[Any]:
    """Return the elements as Python objects.

    The dtype is asked for because numpy would else make one fixed width of all texts, or digits
    of what is missing.
    """
    values: list[Any] = np.asarray(_short(column), dtype=object).tolist()
    return values


def _short(values: Any) -> Any:
    """Return fp32 and fp16 as the fp64 of the digits they are written with: 0.1, not 0.1000000015.

    Anything else comes back as it is.
    """
    if str(getattr(values, "dtype", getattr(values, "type", ""))).lower() not in _SHORT_FLOATS:
        return values
    array = np.asarray(values)
    return array.astype(str).astype(np.float64) if array.dtype.kind == "f" else values


def _is_row(value: Any) -> bool:
    return isinstance(value, list | tuple) or (isinstance(value, np.ndarray) and value.ndim > 0)


def _check_sequence(X: Sequence[Any], estimator: Any) -> list[list[str]]:
    first = next((row for row in X if _is_row(row)), None)
    if first is None:
        return [_check_column(X)]
    for i, row in enumerate(X):
        if not _is_row(row) or len(row) != len(first):
            raise InvalidTextError(
                f"X must be {_SHAPES}. Its rows must be of one kind and length: row {i} is "
                f"{_describe(row)}, another {_describe(first)}. Give every row as many texts."
            )
    if len(first) and all(_is_number(value) for row in X for value in row):
        _check_numbers(np.asarray(X), estimator)
    columns = [list(column) for column in zip(*X, strict=True)]
    return _check_cells(columns, (len(X), len(first)), estimator)


def _check_column(X: Any) -> list[str]:
    values = list(X) if isinstance(X, Sequence) else _values(X)
    if not isinstance(values, list):  # a 1-D sparse array has no elements to look at
        raise InvalidTextError(_not_texts(f"a {type(X).__name__}"))
    if len(values) == 0:
        raise InvalidTextError(
            "X must hold at least one text. Found array with 0 sample(s) (shape=(0,)) while a "
            "minimum of 1 is required."
        )
    # A column of nothing but NaN is what a file with an empty column of texts is read as.
    if all(map(_is_number, values)) and any(value == value for value in values):
        raise InvalidTextError(_not_texts("a 1-D sequence of numbers"))
    for row, value in enumerate(values):
        if not isinstance(value, str):
            raise InvalidTextError(
                f"Every row of X must be a str. Row {row} is {_describe(value)}. {_cure(value)}"
            )
    return [_plain(value) for value in values]


def _check_array(X: Any, estimator: Any) -> list[list[str]]:
    if not hasattr(X, "dtype"):
        X = np.asarray(X)
    kind = getattr(X.dtype, "kind", "O")
    if kind in "biufc" or not isinstance(X, np.ndarray):
        X = _short(_check_numbers(X, estimator))
    return _check_cells(np.asarray(X, dtype=object).T.tolist(), X.shape, estimator)


def _check_numbers(X: Any, estimator: Any) -> Any:
    """Check numbers and sparse matrices: scikit-learn's own words for NaN, inf, complex, empty."""
    return check_array(X, dtype=None, estimator=estimator, input_name="X")


def _check_cells(
    columns: list[list[Any]], shape: tuple[int, int], estimator: Any
) -> list[list[str]]:
    if 0 in shape:
        _check_numbers(np.empty(shape), estimator)
    return [
        [
            _plain(value) if isinstance(value, str) else _cell(value, row, column)
            for row, value in enumerate(values)
        ]
        for column, values in enumerate(columns)
    ]


def _plain(value: str) -> str:
    """Return the text of a str or of a subclass, whatever that makes of ``str()``."""
    return value if type(value) is str else str.__str__(value)


def _cell(value: Any, row: int, column: int) -> str:
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
    if value is None or isinstance(value, numbers.Number) or type(value).__name__ in _MISSING:
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


def check_weight(sample_weight: Any, n: int) -> NDArray[np.float64]:
    """Check sample weights and return one weight per row.

    Parameters
    ----------
    sample_weight : array-like of shape (n,), float, or None
        None means a weight of one for every row.
    n : int
        Number of rows.

    Returns
    -------
    weight : ndarray of shape (n,), float64

    Raises
    ------
    ValueError
        If a weight is negative, not finite, missing, or if all of them are zero.
    """
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
