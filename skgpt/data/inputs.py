"""Check X and sample_weight: any container of texts becomes plain columns of str, once.

Every element that is read is looked at by itself: numpy and scikit-learn would turn None into the
text "None" without a word. Containers are recognised by their methods, so neither pandas nor polars
is imported; a frame of any other library comes in as a pyarrow Table.
"""

import decimal
import math
import numbers
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from sklearn.utils import check_array

from skgpt._sklearn import check_sample_weight, take_rows
from skgpt.exceptions import (
    InvalidTextError,
    NumbersAsTextWarning,
    import_optional,
    warn_user,
)

_SHAPES = "a list, a 1-D array or a Series of str, or a 2-D array or DataFrame of columns"
# What pandas', polars' and pyarrow's frames have, and hardly anything else.
_KNOWN_FRAMES = ("iloc", "get_columns", "itercolumns")
_LOADS = ("collect", "compute", "read_all", "to_table")  # methods that read a lazy frame
_SHORT_FLOATS = ("float16", "float32", "float", "halffloat")  # numpy's, pandas', polars', pyarrow's
MISSING = ("NAType", "NaTType")  # the classes of pandas.NA and pandas.NaT


@dataclass(frozen=True)
class TextColumns:
    """An X whose columns are known; those of a table are not read yet.

    `columns` are as the container has them, and `X` is what the user passed, or a pyarrow Table in
    the place of a frame that isn't known here. `names` are a frame's column names if all of them
    are str; `n_features` is None where X is 1-D.
    """

    columns: list[Any]
    X: Any
    n_rows: int
    estimator: Any = None
    is_frame: bool = False
    n_features: int | None = None
    names: list[str] | None = None

    def __len__(self) -> int:
        return self.n_rows

    def read(
        self, places: Iterable[int | None] | None = None, *, to_fit: str | None = None
    ) -> list[list[str]]:
        """Return the texts of the columns at these places, all by default, as plain str.

        Those of None, a column that nobody reads, are empty. An InvalidTextError names the row and
        column of what is no text. `to_fit`, an estimator's name, warns of numbers alone.
        """
        places = range(len(self.columns)) if places is None else list(places)
        values = {place: self._values(place) for place in places if place is not None}
        cells = [value for column in values.values() for value in column]
        if cells and not self.is_frame and all(map(_is_number, cells)):
            _check_numbers(np.array([*values.values()]).T, self.estimator)
        texts = {place: self._texts(place, column) for place, column in values.items()}
        if cells and to_fit is not None and not any(isinstance(cell, str) for cell in cells):
            warn_user(
                f"X holds numbers alone. {to_fit} reads each as the text that it is written as, "
                f"{next(iter(texts.values()))[0]!r} for one: pass the texts themselves, without a "
                "vectoriser. For numbers that are measurements, scikit-learn's other estimators "
                "are the right ones.",
                NumbersAsTextWarning,
            )
        blank = [""] * self.n_rows
        return [blank if place is None else texts[place] for place in places]

    def _values(self, place: int) -> list[Any]:
        column = self.columns[place]
        values = column if isinstance(column, list) else _elements(column)
        if not isinstance(values, list) or len(values) != self.n_rows:
            raise _broken_promise(self.X)
        return values

    def _texts(self, place: int, values: list[Any]) -> list[str]:
        column = place if self.names is None else repr(self.names[place])
        return [
            _plain(value) if isinstance(value, str) else _format(value, row, column)
            for row, value in enumerate(values)
        ]


def find_columns(X: Any, *, estimator: Any = None) -> TextColumns:
    """Find the columns of X; an InvalidTextError says what to pass in the place of what has none.

    X is a sequence, a numpy array, a Series, DataFrame, Array or Table of pandas, polars or
    pyarrow, or what `as_known_container` makes one of. Numbers and bools in 2-D input are read as
    text. scikit-learn's own messages name `estimator`.
    """
    if isinstance(X, str | bytes):
        raise InvalidTextError(
            f"X must be {_SHAPES}. Got a single {type(X).__name__}: wrap it in a list, [X]."
        )
    X = as_known_container(X)
    names, is_frame = None, False
    if isinstance(X, Sequence):
        columns, shape = _from_sequence(X)
    elif (found := frame_columns(X)) is not None:
        columns, shape, is_frame = found, X.shape, True
        if not isinstance(shape[0], numbers.Integral):  # a lazy frame's rows aren't counted yet
            raise InvalidTextError(_not_known(X))
        names = frame_names(X)
    else:
        columns, shape = _from_array(X, estimator)
    n_features = int(shape[1]) if len(shape) == 2 else None
    if n_features is None:
        columns = [_check_column(columns[0])]
    elif 0 in shape:
        _check_numbers(np.empty(shape), estimator)
    return TextColumns(columns, X, int(shape[0]), estimator, is_frame, n_features, names)


def as_known_container(X: Any) -> Any:
    """Return a frame of a library that isn't known here as pyarrow's; anything else as it is.

    It is a `datasets.Dataset`, or speaks the Arrow PyCapsule or the dataframe interchange protocol.
    """
    is_1d = len(getattr(X, "shape", ())) == 1
    if isinstance(X, Sequence) or is_1d or any(hasattr(X, name) for name in _KNOWN_FRAMES):
        return X
    if hasattr(X, "with_format") and hasattr(X, "__len__") and not isinstance(X, Mapping):
        return X.with_format("arrow")[:]
    if hasattr(X, "read_all"):  # a stream that can be read once: a second look would find no rows
        raise InvalidTextError(_not_known(X))
    what = f"X as a {type(X).__name__}"
    if hasattr(X, "__arrow_c_stream__"):
        pyarrow = import_optional("pyarrow", what)
        chunks = pyarrow.chunked_array(X)
        is_table = pyarrow.types.is_struct(chunks.type)
        return pyarrow.Table.from_struct_array(chunks) if is_table else chunks
    if hasattr(X, "__dataframe__"):
        return import_optional("pyarrow.interchange", what).from_dataframe(X)
    return X


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


def _from_sequence(X: Sequence[Any]) -> tuple[list[Any], tuple[int, ...]]:
    """Return the columns of a sequence of texts, which is one, or of rows, and the shape."""
    first = next((row for row in X if is_row(row)), None)
    if first is None:
        if len(X) and isinstance(X[0], Mapping):
            raise InvalidTextError(
                f"X must be {_SHAPES}. Row 0 is {_describe(X[0])}. {_cure(X[0])}"
            )
        return [list(X)], (len(X),)
    for i, row in enumerate(X):
        if not is_row(row) or len(row) != len(first):
            raise InvalidTextError(
                f"X must be {_SHAPES}. Its rows must be of one kind and length: row {i} is "
                f"{_describe(row)}, another {_describe(first)}. Give every row as many texts."
            )
    return [list(column) for column in zip(*X, strict=True)], (len(X), len(first))


def _from_array(X: Any, estimator: Any) -> tuple[list[Any], tuple[int, ...]]:
    """Return the columns of a 1-D array, which is one, or of a 2-D one, and the shape."""
    if isinstance(X, np.ma.MaskedArray):  # else what lies under the mask would come through
        hidden, X = np.ma.getmaskarray(X), np.array(X.data, dtype=object)
        X[hidden] = None
    if not hasattr(X, "__array__") and not hasattr(X, "dtype"):  # a sparse array has a dtype alone
        raise InvalidTextError(_not_known(X))
    if getattr(getattr(X, "dtype", None), "names", None):
        raise InvalidTextError(
            f"X must be {_SHAPES}. Got an array of records: make a DataFrame, pandas.DataFrame(X)."
        )
    shape = getattr(X, "shape", None)
    if not isinstance(shape, tuple):
        shape = np.asarray(X).shape
    if len(shape) == 1:
        values = _elements(X)
        if not isinstance(values, list):  # a 1-D sparse array has no elements to look at
            raise InvalidTextError(_not_texts(f"a {type(X).__name__}"))
        return [values], (len(values),)
    if len(shape) != 2:
        raise InvalidTextError(
            f"X must be {_SHAPES}. Got an array with {len(shape)} dimensions. Reshape your data."
        )
    array = X if hasattr(X, "dtype") else np.asarray(X)
    if not isinstance(array, np.ndarray) or array.dtype.kind in "biufc":
        array = _check_numbers(array, estimator, ensure_all_finite=False)  # some may go unread
    if array.shape != shape:
        raise _broken_promise(X)
    return list(array.T), shape


def frame_columns(X: Any) -> list[Any] | None:
    """Return the columns of a DataFrame or Table as they are stored; None for anything else."""
    if hasattr(X, "iloc") and getattr(X, "ndim", None) == 2:  # pandas, where names may repeat
        return [X.iloc[:, i] for i in range(X.shape[1])]
    if hasattr(X, "get_columns"):  # polars
        return list(X.get_columns())
    if hasattr(X, "itercolumns"):  # pyarrow
        return list(X.itercolumns())
    return None


def frame_names(X: Any) -> list[str] | None:
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


def _check_numbers(X: Any, estimator: Any, *, ensure_all_finite: bool = True) -> Any:
    """Check numbers and sparse matrices: scikit-learn's own words for NaN, inf, complex, empty."""
    return check_array(
        X, dtype=None, estimator=estimator, input_name="X", ensure_all_finite=ensure_all_finite
    )


def _plain(value: str) -> str:
    """Return the text of a str or of a subclass, whatever its ``str()`` says."""
    return value if type(value) is str else str.__str__(value)


def _format(value: Any, row: int, column: int | str) -> str:
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
    if isinstance(value, Mapping):
        return "Make a DataFrame of such rows: pandas.DataFrame(X)."
    if value is None or isinstance(value, numbers.Number) or type(value).__name__ in MISSING:
        return "Drop the row, or put a text there ('' is a legal text)."
    return "Put a text there, for example with str(), or drop the row."


def _not_known(X: Any) -> str:
    return f"X must be {_SHAPES}. Got {type(X).__name__}: {_container_cure(X)}"


def _container_cure(X: Any) -> str:
    for method in _LOADS:
        if hasattr(X, method):
            return f"call X.{method}() first."
    if isinstance(X, Mapping):
        for name, value in X.items():
            if hasattr(value, "column_names") or hasattr(value, "columns"):
                return f"pass one of its tables, as in X[{name!r}]."
        return "make a DataFrame of its columns, or a list of its texts."
    if hasattr(X, "column_names"):
        return "make a DataFrame of its rows, pandas.DataFrame(list(X))."
    return "pass list(X) if it can be iterated."


def _broken_promise(X: Any) -> InvalidTextError:
    return InvalidTextError(
        f"X must be {_SHAPES}. Got a {type(X).__name__} that has the shape {tuple(X.shape)} and "
        "other values than these: make a DataFrame or a list of its texts."
    )


def _not_texts(what: str) -> str:
    return (
        f"Expected 2D array, got 1D array instead, or texts: X must be {_SHAPES}. Got {what}. "
        "Numbers are no texts: pass the texts themselves, without a vectoriser. (Reshape your data "
        "to 2-D, array.reshape(-1, 1), only for a column of numbers that is to be read as text.)"
    )
