"""Labels to the array that the loss wants: classes to codes, label sets to an indicator matrix."""

import reprlib
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from sklearn.utils import column_or_1d
from sklearn.utils.multiclass import check_classification_targets

from skgpt.exceptions import InvalidTextError
from skgpt.text.labels import as_numpy, elements, is_row, missing_rows, narrow, plain_type, unique

_AT_MOST = 10  # labels spelt out in a message


@dataclass(frozen=True)
class ClassTarget:
    """Class labels as codes: one class per text.

    Parameters
    ----------
    classes : ndarray of shape (n_classes,)
        The labels, sorted.
    codes : ndarray of shape (n,), int64
        Each row's label as its position in `classes`.
    """

    classes: NDArray[Any]
    codes: NDArray[np.int64]

    is_multilabel = False

    def __len__(self) -> int:
        return len(self.codes)

    @property
    def width(self) -> int:
        """Number of raw scores per text."""
        return len(self.classes)

    @property
    def labels(self) -> NDArray[Any]:
        """The label of each row, shape (n,)."""
        return np.asarray(self.classes[self.codes])

    def truth(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return raw scores, shape (len(rows), n_classes), that say what is true of these rows."""
        return np.eye(self.width, dtype=np.float32)[self.codes[rows]]


@dataclass(frozen=True)
class LabelSets:
    """Label sets as an indicator: any number of labels per text, none included.

    Parameters
    ----------
    classes : ndarray of shape (n_labels,)
        The numbers of the columns.
    codes : ndarray of shape (n, n_labels), float32
        One where a row has a label, zero where not.
    """

    classes: NDArray[Any]
    codes: NDArray[np.float32]

    is_multilabel = True

    def __len__(self) -> int:
        return len(self.codes)

    @property
    def width(self) -> int:
        """Number of raw scores per text."""
        return len(self.classes)

    @property
    def labels(self) -> NDArray[np.int64]:
        """The indicator of each row's labels, shape (n, n_labels)."""
        return self.codes.astype(np.int64)

    def truth(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return raw scores, shape (len(rows), n_labels), that say what is true of these rows."""
        return 2 * self.codes[rows] - 1


Target = ClassTarget | LabelSets
T = TypeVar("T", bound=Target)


def encode_target(
    y: Any, n: int, *, name: str, classes: NDArray[Any] | None = None, what: str = "y"
) -> Target:
    """Check class labels or a multilabel indicator and turn them into numbers.

    Parameters
    ----------
    y : array-like of shape (n,) or (n, 1), or {array-like, sparse} of shape (n, n_labels)
        Labels (str, int, bool or object), or a binary indicator of two or more columns. A label
        that never occurs and a row without labels are fine.
    n : int
        Number of rows of X.
    name : str
        The estimator's name, for error messages.
    classes : ndarray of shape (n_classes,), default=None
        Classes that are known already, sorted; y may hold any of them, a single one included.
        Whether they are classes or the columns of an indicator is for the caller to compare.
    what : str, default="y"
        What messages call y.

    Returns
    -------
    target : ClassTarget or LabelSets

    Raises
    ------
    InvalidTextError
        If y is missing, has another length than X, holds a missing label, is continuous, holds
        only one class, is 2-D without being a binary indicator, or does not fit `classes`.
    """
    _check_is_array(y, name, what)
    table = _table(y, what)
    if table is None:
        return _encode_classes(y, n, name, classes, what)
    codes = _indicator(table, what)
    _check_length(len(codes), n, what)
    known = np.arange(codes.shape[1])
    if classes is not None and not np.array_equal(known, classes):
        raise InvalidTextError(
            f"{what} must fit what {name} was fitted on: the classes {_some(classes.tolist())}. "
            f"Got a multilabel indicator of {len(known)} columns: pass labels of the same kind, "
            "or fit anew."
        )
    return LabelSets(known, codes)


def is_indicator(y: Any) -> bool:
    """Say whether y has several columns."""
    return _table(y, "y") is not None


def check_classes(classes: Any, *, name: str) -> NDArray[Any]:
    """Check what a user names as all the classes there are.

    Parameters
    ----------
    classes : array-like of shape (n_classes,)
        Labels in any order; one that is there twice counts once, as in scikit-learn.
    name : str
        The estimator's name, for error messages.

    Returns
    -------
    classes : ndarray of shape (n_classes,)
        Sorted.

    Raises
    ------
    InvalidTextError
        If it is not 1-D, holds a missing label, labels of several types or continuous numbers, or
        fewer than two classes.
    """
    what = "`classes`"
    _check_is_array(classes, name, what)
    labels = np.asarray(elements(classes, what))
    if labels.ndim != 1:
        raise InvalidTextError(f"{what} must be 1-D: a label each. Got shape {labels.shape}.")
    labels = narrow(labels, of_list=isinstance(classes, list | tuple), what=what)
    found, _ = unique(labels, what)
    if len(found) < 2:
        raise InvalidTextError(
            f"{what} must name at least 2 classes, all that {name} will ever see. Got "
            f"{found.tolist()}."
        )
    if _is_continuous(found):
        raise InvalidTextError(
            f"Unknown label type: continuous. {what} must be labels: str, int or bool. Got "
            f"{_some(found.tolist())}."
        )
    return found


def join(first: T, second: T) -> T:
    """Put the rows of one target behind those of another with the same classes."""
    same_kind = first.is_multilabel == second.is_multilabel
    if not (same_kind and np.array_equal(first.classes, second.classes)):
        raise InvalidTextError(
            "Targets that are joined must be of one kind and have the same classes. Got "
            f"{type(first).__name__} with {_some(first.classes.tolist())} and "
            f"{type(second).__name__} with {_some(second.classes.tolist())}."
        )
    codes: Any = np.concatenate([first.codes, second.codes])
    return replace(first, codes=codes)


def _check_is_array(y: Any, name: str, what: str) -> None:
    if y is None:
        raise InvalidTextError(
            f"{name} requires {what} to be passed, but the target {what} is None."
        )
    if sparse.issparse(y):  # first: some formats are a dict
        return
    is_array = hasattr(y, "__len__") or hasattr(y, "__array__")
    if isinstance(y, str | bytes | set | dict) or not is_array:
        raise InvalidTextError(
            f"{what} must be a list, an array or a Series of labels, one per text. Got a "
            f"{type(y).__name__}."
        )


def _check_length(n_labels: int, n: int, what: str) -> None:
    if n_labels != n:
        texts = {"y_val": "X_val"}.get(what, "X")
        raise InvalidTextError(
            f"{texts} and {what} must have one label per text. Found input "
            f"variables with inconsistent numbers of samples: [{n}, {n_labels}]."
        )


def _table(y: Any, what: str) -> Any:
    """Return y as an array or sparse matrix if it is 2-D with several columns, else None."""
    if isinstance(y, list | tuple):
        widths = {len(row) if is_row(row) else -1 for row in y}
        if len(widths) != 1 or widths <= {-1, 1}:
            return None
        try:
            y = np.asarray(y)
        except ValueError as error:
            raise InvalidTextError(_not_binary(what, "multiclass", y[0], 0)) from error
    elif not sparse.issparse(y):
        y = as_numpy(y)
    return y if y.ndim == 2 and y.shape[1] != 1 else None


def _indicator(table: Any, what: str) -> NDArray[np.float32]:
    """Return a 2-D y as zeros and ones; refuse anything else, with the place of it."""
    if sparse.issparse(table):
        table = table.tocsr(copy=True)
        table.sum_duplicates()
        row_of, values = table.tocoo().coords[0], table.data
    else:
        row_of, values = np.repeat(np.arange(len(table)), table.shape[1]), table.ravel()
    if table.shape[1] == 0:
        raise InvalidTextError(f"{what} must hold labels. Got an array of shape {table.shape}.")
    for at in missing_rows(values):
        raise InvalidTextError(
            f"Input {what} contains NaN, infinity or a missing label: row {row_of[at]} holds "
            f"{values[at]!r}. Put 0 there if the text does not have the label, or drop the row."
        )
    if values.dtype == object and {plain_type(value) for value in values} <= {bool, int, float}:
        values = values.astype(np.float64)
    is_number = values.dtype.kind in "biuf"
    wrong = (values != 0) & (values != 1) if is_number else np.ones(values.shape, dtype=bool)
    for at in np.flatnonzero(wrong):
        whole = values.dtype.kind != "f" or np.all(values == np.floor(values))
        kind = "multiclass" if whole else "continuous"
        raise InvalidTextError(_not_binary(what, kind, values[at], row_of[at]))
    if sparse.issparse(table):
        return np.asarray(table.astype(np.float32).toarray())
    return values.astype(np.float32).reshape(table.shape)


def _not_binary(what: str, kind: str, value: Any, row: int) -> str:
    cure = {
        "multiclass": "For several targets per text use sklearn.multioutput.MultiOutputClassifier.",
        "continuous": "Numbers are for a regressor; GPTTextRegressor is planned.",
    }
    return (
        f"Unknown label type: {kind}-multioutput. {what} must hold one label per text, or be a "
        "binary indicator of 0 and 1 with a column per label, as scikit-learn's "
        f"MultiLabelBinarizer makes it. Row {row} holds {reprlib.repr(value)}. {cure[kind]}"
    )


def _encode_classes(
    y: Any, n: int, name: str, classes: NDArray[Any] | None, what: str
) -> ClassTarget:
    labels = column_or_1d(elements(y, what), warn=True)
    labels = narrow(labels, of_list=isinstance(y, list | tuple), what=what)
    _check_length(len(labels), n, what)
    found, codes = unique(labels, what)
    if _is_continuous(labels):
        raise InvalidTextError(
            f"Unknown label type: continuous. {name} expects class labels (str, int or bool) in "
            f"{what} and got continuous numbers: bin them into classes. A regressor, "
            "GPTTextRegressor, is planned."
        )
    if classes is not None:
        return ClassTarget(classes, _positions(found, classes, codes, name, what)[codes])
    check_classification_targets(labels)
    if len(found) < 2:
        raise InvalidTextError(
            f"{name} needs samples of at least 2 classes in y, but the data contains only one "
            f"class: {found.tolist()[0]!r}."
        )
    return ClassTarget(found, codes)


def _positions(
    found: NDArray[Any], classes: NDArray[Any], codes: NDArray[np.int64], name: str, what: str
) -> NDArray[np.int64]:
    """Return where in `classes` each label that was found is."""
    known = {label: position for position, label in enumerate(classes.tolist())}
    positions = np.array([known.get(label, -1) for label in found.tolist()], dtype=np.int64)
    for row in np.flatnonzero(positions[codes] < 0):
        unknown = [label for label in found.tolist() if label not in known]
        raise InvalidTextError(
            f"{what} must hold classes that {name} knows: {_some(list(known))}. Got "
            f"{_some(unknown)}, first in row {row}: correct or drop such rows, or fit anew "
            "(partial_fit learns new classes where `classes` names them beside the known ones)."
        )
    return positions


def _is_continuous(labels: NDArray[Any]) -> bool:
    return labels.dtype.kind == "f" and bool(np.any(labels != np.trunc(labels)))


def _some(labels: list[Any]) -> str:
    more = f" and {len(labels) - _AT_MOST} more" if len(labels) > _AT_MOST else ""
    return f"{labels[:_AT_MOST]}{more}"
