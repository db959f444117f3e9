"""From whatever a user passes as X and sample_weight to a checked list of texts and weights.

Every element is looked at by itself: numpy and scikit-learn would turn a ``None`` into the text
"None" without a word.
"""

import math
import numbers
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.utils import check_array

from skgpt.exceptions import InvalidTextError
from skgpt.sklearn_compat import check_sample_weight

_SHAPES = "a list, a 1-D array or a Series of str, or a 2-D array or DataFrame of columns"


def check_texts(X: Any, *, estimator: Any = None) -> list[str]:
    """Check X and return one text per row.

    Parameters
    ----------
    X : array-like of shape (n,) or (n, n_columns)
        Texts. The columns of 2-D input are joined with a blank line, numbers formatted as text.
    estimator : object, default=None
        Named in scikit-learn's own error messages.

    Returns
    -------
    texts : list of str, length n

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
        X = _sequence_to_array(X)
    n_dims = getattr(X, "ndim", None)
    if n_dims is None and hasattr(X, "__array__"):
        X = np.asarray(X)
        n_dims = X.ndim
    if n_dims == 1:
        return _check_column(X)
    if n_dims == 2:
        return _check_table(X, estimator)
    if n_dims is None:
        raise InvalidTextError(
            f"X must be {_SHAPES}. Got {type(X).__name__}: pass list(X) if it can be iterated."
        )
    raise InvalidTextError(
        f"X must be {_SHAPES}. Got an array with {n_dims} dimensions. Reshape your data."
    )


def n_columns(X: Any) -> int | None:
    """Return the number of columns of texts that `check_texts` took; None for a plain column."""
    if isinstance(X, Sequence):
        X = _sequence_to_array(X)
    if getattr(X, "ndim", None) is None:
        X = np.asarray(X)
    return int(X.shape[1]) if X.ndim == 2 else None


def _sequence_to_array(X: Sequence[Any]) -> NDArray[Any]:
    first = next((row for row in X if isinstance(row, list | tuple | np.ndarray)), None)
    if first is not None:
        for i, row in enumerate(X):
            if not isinstance(row, list | tuple | np.ndarray) or len(row) != len(first):
                raise InvalidTextError(
                    f"X must be {_SHAPES}. Its rows must be of one kind and length: row {i} is "
                    f"{_describe(row)}, another {_describe(first)}. {_cure(row)}"
                )
        table = np.asarray(X)
        return np.asarray(X, dtype=object) if table.dtype.kind in "US" else table
    column = np.empty(len(X), dtype=object)
    column[:] = X
    return column


def _check_column(X: Any) -> list[str]:
    dtype = getattr(X, "dtype", None)
    if isinstance(X, np.ndarray) and X.dtype.kind in "biufcmM" and len(X):
        raise InvalidTextError(_not_texts(f"a 1-D array of {dtype}"))
    values = np.asarray(X, dtype=object)
    if len(values) == 0:
        raise InvalidTextError(
            "X must hold at least one text. Found array with 0 sample(s) (shape=(0,)) while a "
            "minimum of 1 is required."
        )
    if all(_is_number(value) for value in values):
        raise InvalidTextError(_not_texts("a 1-D sequence of numbers"))
    for row, value in enumerate(values):
        if not isinstance(value, str):
            raise InvalidTextError(
                f"Every row of X must be a str. Row {row} is {_describe(value)}. {_cure(value)}"
            )
    return [str(value) for value in values]


def _check_table(X: Any, estimator: Any) -> list[str]:
    if not hasattr(X, "dtypes") and getattr(X, "dtype", None) is not None:
        kind = getattr(X.dtype, "kind", "O")
        if kind in "biufc" or not isinstance(X, np.ndarray):
            # Numbers and sparse matrices: scikit-learn's own words for NaN, inf, complex, empty.
            X = check_array(X, dtype=None, estimator=estimator, input_name="X")
    table = np.asarray(X, dtype=object)
    if table.shape[0] == 0 or table.shape[1] == 0:
        check_array(np.empty(table.shape), estimator=estimator, input_name="X")
    return [
        "\n\n".join(_cell(value, row, column) for column, value in enumerate(values))
        for row, values in enumerate(table)
    ]


def _cell(value: Any, row: int, column: int) -> str:
    if isinstance(value, str):
        return str(value)
    if isinstance(value, bool | np.bool_):
        return str(bool(value))
    if _is_number(value) and math.isfinite(value):
        # The shortest digits that say which number it is; 20240131.0 is as good as 20240131.
        return str(int(value)) if value == int(value) and abs(value) < 1e15 else str(value)
    raise InvalidTextError(
        f"Every cell of X must be a str or a finite number. Row {row}, column {column} is "
        f"{_describe(value)}. {_cure(value)}"
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool | np.bool_)


def _describe(value: Any) -> str:
    text = repr(value)
    return f"{text[:60]}{'...' if len(text) > 60 else ''} ({type(value).__name__})"


def _cure(value: Any) -> str:
    if isinstance(value, bytes):
        return "Decode bytes first, as in value.decode('utf-8')."
    if isinstance(value, numbers.Number) and value == value:
        return "Turn numbers into texts with str(), or pass them as a column of a 2-D X."
    return "Drop the row, or put a text there ('' is a legal text)."


def _not_texts(what: str) -> str:
    return (
        f"Expected 2D array, got 1D array instead, or texts: X must be {_SHAPES}. Got {what}. "
        "Reshape your data either using array.reshape(-1, 1) if your data has a single column "
        "or array.reshape(1, -1) if it contains a single row; texts must be str."
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
    rows = np.empty((n, 1))  # scikit-learn reads only the number of rows off it
    weight = check_sample_weight(sample_weight, rows, dtype=np.float64, ensure_non_negative=True)
    if not np.any(weight > 0):
        raise InvalidTextError(
            "sample_weight must hold at least one weight above zero. All of them are zero."
        )
    return np.asarray(weight, dtype=np.float64)
