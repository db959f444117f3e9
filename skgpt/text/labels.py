"""Labels out of whatever holds them: their elements as they are, of one plain type."""

import numbers
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from skgpt.exceptions import InvalidTextError


def missing_rows(labels: NDArray[Any]) -> NDArray[np.int64]:
    """Return where a 1-D array holds None, NaN, NaT, NA or an infinity."""
    if labels.dtype.kind in "fmM":
        return np.flatnonzero(~np.isfinite(labels))
    if labels.dtype.kind != "O":
        return np.empty(0, dtype=np.int64)
    return np.flatnonzero(
        [
            label is None
            or type(label).__name__ in ("NAType", "NaTType")
            or (isinstance(label, numbers.Real) and not np.isfinite(float(label)))
            for label in labels
        ]
    )


def is_row(entry: Any) -> bool:
    """Say whether an element of a list is a row of several."""
    return isinstance(entry, list | tuple) or (isinstance(entry, np.ndarray) and entry.ndim > 0)


def elements(y: Any, what: str) -> Any:
    """Return y as an array that holds its elements as they are.

    numpy would turn a NaN among strings into the label "nan", and a number into its digits.
    """
    if isinstance(y, list | tuple):
        if any(is_row(label) for label in y):
            if all(is_row(label) and len(label) == 1 for label in y):
                return np.asarray(y)  # a column
            raise InvalidTextError(
                f"{what} must be a 1d array or list: one label per text. Its first entry is "
                f"{y[0]!r} ({type(y[0]).__name__}); several labels per text are a binary "
                "indicator, as scikit-learn's MultiLabelBinarizer makes it."
            )
        labels = np.empty(len(y), dtype=object)
        labels[:] = y
        return labels
    if sparse.issparse(y):
        return y.toarray()
    # pandas' own string, integer and category types become plain objects, missing ones included;
    # so do numpy's own strings of any length, which scikit-learn has no word for.
    y = as_numpy(y)
    return y.astype(object) if isinstance(y, np.ndarray) and y.dtype.kind == "T" else y


def as_numpy(y: Any) -> Any:
    """Return a Series, array or the like as a numpy array."""
    # pyarrow's arrays have a to_numpy that refuses to copy, and most of them must be.
    is_others = hasattr(y, "to_numpy") and not hasattr(y, "to_pylist")
    return y.to_numpy() if is_others else np.asarray(y)


def narrow(labels: NDArray[Any], *, of_list: bool, what: str) -> NDArray[Any]:
    """Refuse missing labels and give objects of one plain type that type.

    Strings in an object array stay objects, those of a list don't, as in the rest of scikit-learn.
    """
    for row in missing_rows(labels):
        raise InvalidTextError(
            f"Input {what} contains NaN, infinity or a missing label: row {row} is "
            f"{labels[row]!r}. Every row needs a label: drop the rows without one."
        )
    if labels.dtype != object:
        return labels
    kinds = {plain_type(label) for label in labels}
    if len(kinds) > 1 and not kinds <= {int, float}:
        raise InvalidTextError(_of_one_type(labels, what))
    if others := sorted(kind.__name__ for kind in kinds - {str, bool, int, float}):
        raise InvalidTextError(  # as everywhere in scikit-learn, and in its words
            f"Unknown label type: unknown. The labels in {what} must be str, int or bool. Got "
            f"{', '.join(others)}: convert them, for example with [str(label) for label in y]; "
            "several labels per text are a binary indicator (MultiLabelBinarizer)."
        )
    if of_list and kinds <= {str}:  # the text of an enum's member, not what str() makes of it
        return np.array([str.__str__(label) for label in labels])
    if kinds <= {bool} or kinds <= {int, float}:
        return np.array(labels.tolist())
    return labels


def unique(labels: NDArray[Any], what: str) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Return the distinct labels, sorted, and the place of each among them."""
    try:
        found, codes = np.unique(labels, return_inverse=True)
    except TypeError as error:
        raise InvalidTextError(_of_one_type(labels, what)) from error
    return found, codes.astype(np.int64).reshape(-1)


def plain_type(label: Any) -> type:
    """Return the plain type that a label is of."""
    if isinstance(label, str):
        return str
    if isinstance(label, bool | np.bool_):
        return bool
    if isinstance(label, numbers.Integral):
        return int
    return float if isinstance(label, numbers.Real) else type(label)


def _of_one_type(labels: NDArray[Any], what: str) -> str:
    kinds = sorted({type(label).__name__ for label in labels})
    return (
        f"The labels in {what} must be of one type, so that they can be sorted. Got {kinds}: "
        "convert them, for example with [str(label) for label in y]."
    )
