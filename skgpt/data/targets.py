"""Labels of any container to the codes that the loss takes: classes, or sets of labels.

Labels are looked at one by one, as numpy would turn a NaN among strings into the label "nan".
"""

import numbers
import reprlib
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from sklearn.utils import column_or_1d
from sklearn.utils.multiclass import check_classification_targets

from skgpt.data.inputs import (
    MISSING,
    as_known_container,
    frame_columns,
    frame_names,
    is_row,
)
from skgpt.exceptions import InvalidTextError

_AT_MOST = 10  # labels spelt out in a message

Classes = Any  # an array of labels, or a list of one for each of several outputs


@dataclass(frozen=True)
class Target:
    """A checked y: one class per text, or one in each of several columns, or any number of labels.

    `codes` are the classes' positions in the sorted `classes`, shape (n,); of several columns, the
    outputs, shape (n, n_columns), and `classes` is a list. For label sets they are 1 where a text
    has a label and 0 where not, shape (n, n_labels), float, and `classes` are the numbers of the
    columns.
    """

    classes: Classes
    codes: NDArray[Any]

    def __len__(self) -> int:
        return len(self.codes)

    @property
    def is_multioutput(self) -> bool:
        """Whether a text has a class in each of several columns."""
        return isinstance(self.classes, list)

    @property
    def is_multilabel(self) -> bool:
        """Whether a text may have any number of labels."""
        return self.codes.ndim == 2 and not self.is_multioutput

    @cached_property
    def outputs(self) -> list["Target"]:
        """The columns of several outputs, each a target of its own; else the target itself."""
        if not isinstance(self.classes, list):
            return [self]
        return [Target(*column) for column in zip(self.classes, self.codes.T, strict=True)]

    @property
    def width(self) -> int:
        """Number of raw scores per text."""
        return sum(len(output.classes) for output in self.outputs)

    @property
    def known(self) -> Classes:
        """What the targets of later fits have to go by."""
        return self.classes

    @property
    def plain_known(self) -> list[list[Any]]:
        """The same as plain values, output by output."""
        return [output.classes.tolist() for output in self.outputs]

    @property
    def meaning(self) -> dict[str, Any]:
        """What a fitted model keeps of y: the fields of its record."""
        return {"classes": self.classes, "multilabel": self.is_multilabel}

    @property
    def labels(self) -> NDArray[Any]:
        """The label of each row, shape (n,) or (n, n_columns), or an indicator of int."""
        if isinstance(self.classes, list):
            return side_by_side([output.labels for output in self.outputs])
        return self.codes.astype(np.int64) if self.is_multilabel else self.classes[self.codes]

    @property
    def strata(self) -> NDArray[Any]:
        """What held-out rows are stratified by: class codes, or an indicator of all labels."""
        return self.truth(np.arange(len(self))) > 0 if self.is_multioutput else self.codes

    def truth(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return raw scores, shape (len(rows), width), that predict the labels of these rows."""
        if self.is_multioutput:
            return np.hstack([output.truth(rows) for output in self.outputs])
        codes = self.codes[rows]
        return 2 * codes - 1 if self.is_multilabel else np.eye(self.width, dtype=np.float32)[codes]

    def count(self, rows: NDArray[np.int64]) -> dict[str, int]:
        """Return how many of these rows have each label, by its text."""
        if isinstance(self.classes, list):
            parts = [output.count(rows).items() for output in self.outputs]
            return {f"{j}: {label}": n for j, part in enumerate(parts) for label, n in part}
        codes = self.codes[rows]
        each = codes.sum(0) if self.is_multilabel else np.bincount(codes, minlength=self.width)
        return {str(k): int(n) for k, n in zip(self.classes.tolist(), each, strict=True)}

    def learned_on(self, rows: NDArray[np.int64], weight: NDArray[np.float64]) -> "Target":
        """Return the target of a fit on these rows: the same, as classes are what they are."""
        return self

    def join(self, other: "Target") -> "Target":
        """Put the rows of another target, of the same classes, behind these."""
        same_kind = self.is_multilabel == other.is_multilabel
        if not same_kind or self.plain_known != other.plain_known:
            raise InvalidTextError(
                "Targets that are joined must be of one kind and have the same classes. Got "
                f"{_spelt(self.classes)} and {_spelt(other.classes)}."
            )
        return replace(self, codes=np.concatenate([self.codes, other.codes]))


def encode_target(
    y: Any, n: int, *, name: str, classes: Classes | None = None, what: str = "y"
) -> Target:
    """Check class labels, columns of them or an indicator of n rows, and turn them into codes.

    Labels are str, int or bool. Two or more columns of zeros and ones alone, dense or sparse, are
    an indicator; a label that never occurs and a row without labels are fine. Of other columns,
    each is an output. Where `classes` are known already, y may hold any of them, a single one
    included, and they say what its columns are. Messages name the estimator, `name`, and call y
    `what`.
    """
    y = as_known_container(y)
    check_is_array(y, name, what)
    table = _table(y, what)
    if table is None:
        if isinstance(classes, list):
            raise _other_kind(name, classes, what, "one label per text")
        return _encode_classes(y, n, name, classes, what)
    check_length(table.shape[0], n, what)
    width = table.shape[1]
    if isinstance(classes, list) or not _is_binary(table):
        if classes is not None and not (isinstance(classes, list) and len(classes) == width):
            raise _other_kind(name, classes, what, f"{width} columns of labels")
        return _encode_columns(_columns(y, table, what), n, name, classes)
    known = np.arange(width)
    if classes is not None and not np.array_equal(known, classes):
        raise _other_kind(name, classes, what, f"a multilabel indicator of {width} columns")
    return Target(known, _indicator(table, what))


def has_columns(y: Any) -> bool:
    """Say whether y has several columns."""
    return _table(as_known_container(y), "y") is not None


def is_indicator(y: Any) -> bool:
    """Say whether y has several columns, of zeros and ones alone."""
    table = _table(as_known_container(y), "y")
    return table is not None and _is_binary(table)


def check_classes(classes: Any, *, name: str, what: str = "`classes`") -> NDArray[Any]:
    """Check and sort the classes that a user names for the estimator `name`: two or more.

    A label that is there twice counts once, as in scikit-learn. Messages call them `what`.
    """
    check_is_array(classes, name, what)
    labels = np.asarray(_elements(classes, what))
    if labels.ndim != 1:
        raise InvalidTextError(
            f"{what} must be 1-D: it names the classes. Got shape {labels.shape}: pass a list of "
            "labels, as in ['negative', 'positive']."
        )
    labels = _of_plain_type(labels, of_list=isinstance(classes, list | tuple), what=what)
    found, _ = _unique(labels, what)
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


def names_outputs(classes: Any) -> bool:
    """Say whether the classes that a user names are a list for each of several outputs."""
    several = isinstance(classes, list | tuple) and len(classes) > 1
    return several and all(hasattr(c, "__len__") and not isinstance(c, str) for c in classes)


def side_by_side(columns: list[NDArray[Any]]) -> NDArray[Any]:
    """Put columns of labels into one array, of objects where they are of several kinds."""
    if len({column.dtype.kind for column in columns}) > 1:
        columns = [column.astype(object) for column in columns]
    return np.stack(columns, axis=1)


def share_right(y: Any, predicted: NDArray[Any], sample_weight: Any = None) -> float:
    """Return the share of rows, by weight, that are predicted right in every column."""
    y = as_known_container(y)
    check_is_array(y, "score", "y")
    table = _table(y, "y")
    if table is None or table.shape != predicted.shape:
        raise InvalidTextError(
            f"y must have a row per text and a column per output, the shape {predicted.shape}. Got "
            f"{'one column' if table is None else table.shape}."
        )
    right = np.ones(len(predicted), dtype=bool)
    for (what, column), own in zip(_columns(y, table, "y"), predicted.T, strict=True):
        labels = _of_plain_type(_elements(column, what), of_list=False, what=what)
        right &= np.asarray(labels, dtype=object) == own.astype(object)
    return float(np.average(right, weights=sample_weight))


def missing_rows(labels: NDArray[Any]) -> NDArray[np.int64]:
    """Return where a 1-D array holds None, NaN, NaT, NA or an infinity."""
    if labels.dtype.kind in "fmM":
        return np.flatnonzero(~np.isfinite(labels))
    if labels.dtype.kind != "O":
        return np.empty(0, dtype=np.int64)
    return np.flatnonzero(
        [
            label is None
            or type(label).__name__ in MISSING
            or (isinstance(label, numbers.Real) and not np.isfinite(float(label)))
            for label in labels
        ]
    )


def as_numpy(y: Any) -> Any:
    """Return a Series, array or the like as a numpy array."""
    # pyarrow's arrays have a to_numpy that refuses to copy, and most of them must be copied.
    has_to_numpy = hasattr(y, "to_numpy") and not hasattr(y, "to_pylist")
    return y.to_numpy() if has_to_numpy else np.asarray(y)


# Classes


def _encode_classes(y: Any, n: int, name: str, classes: NDArray[Any] | None, what: str) -> Target:
    labels = column_or_1d(_elements(y, what), warn=True)
    labels = _of_plain_type(labels, of_list=isinstance(y, list | tuple), what=what)
    check_length(len(labels), n, what)
    found, codes = _unique(labels, what)
    if _is_continuous(labels):
        raise InvalidTextError(
            f"Unknown label type: continuous. {name} expects class labels (str, int or bool) in "
            f"{what} and got continuous numbers: bin them into classes, or use "
            "GPTTextRegressor."
        )
    if classes is not None:
        return Target(classes, _positions(found, classes, codes, name, what)[codes])
    check_classification_targets(labels)
    if len(found) < 2:
        raise InvalidTextError(
            f"{name} needs samples of at least 2 classes in {what}, but the data contains only one "
            f"class: {found.tolist()[0]!r}."
        )
    return Target(found, codes)


def _elements(y: Any, what: str) -> Any:
    """Return y as an array that holds its elements as they are."""
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
    # so do numpy's own strings of any length, which scikit-learn doesn't know.
    y = as_numpy(y)
    return y.astype(object) if isinstance(y, np.ndarray) and y.dtype.kind == "T" else y


def _of_plain_type(labels: NDArray[Any], *, of_list: bool, what: str) -> NDArray[Any]:
    """Refuse missing labels; give objects of one plain type that type.

    Strings in an object array stay objects, those of a list don't, as in the rest of scikit-learn.
    """
    for row in missing_rows(labels):
        raise InvalidTextError(
            f"Input {what} contains NaN, infinity or a missing label: row {row} is "
            f"{labels[row]!r}. Every row needs a label: drop the rows without one."
        )
    if labels.dtype != object:
        return labels
    kinds = {_plain_type(label) for label in labels}
    if len(kinds) > 1 and not kinds <= {int, float}:
        raise InvalidTextError(_of_one_type(labels, what))
    if others := sorted(kind.__name__ for kind in kinds - {str, bool, int, float}):
        raise InvalidTextError(  # as everywhere in scikit-learn, and in its words
            f"Unknown label type: unknown. The labels in {what} must be str, int or bool. Got "
            f"{', '.join(others)}: convert them, for example with [str(label) for label in y]; "
            "several labels per text are a binary indicator (MultiLabelBinarizer)."
        )
    _check_is_distinct(labels, kinds, what)
    if of_list and kinds <= {str}:  # the text of an enum's member, not what str() makes of it
        return np.array([str.__str__(label) for label in labels])
    if kinds <= {bool} or kinds <= {int, float}:
        return np.array(labels.tolist())
    return labels


def _check_is_distinct(labels: NDArray[Any], kinds: set[type], what: str) -> None:
    """Refuse labels that numpy's own types would take for others."""
    for row, label in enumerate(labels):
        if kinds <= {str} and str.__str__(label).endswith("\0"):
            raise InvalidTextError(
                f"The labels in {what} must not end in a null character, which numpy drops. Row "
                f"{row} is {label!r}: strip it, as in label.rstrip('\\0')."
            )
        if int in kinds and not -(2**63) <= label < 2**63:
            raise InvalidTextError(
                f"The labels in {what} must fit into 64 bits where they are numbers. Row {row} is "
                f"{label!r}: turn them into texts, [str(label) for label in y]."
            )


def _unique(labels: NDArray[Any], what: str) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Return the distinct labels, sorted, and the position of each label among them."""
    try:
        found, codes = np.unique(labels, return_inverse=True)
    except TypeError as error:
        raise InvalidTextError(_of_one_type(labels, what)) from error
    return found, codes.astype(np.int64).reshape(-1)


def _positions(
    found: NDArray[Any], classes: NDArray[Any], codes: NDArray[np.int64], name: str, what: str
) -> NDArray[np.int64]:
    """Return the position in `classes` of each label that was found."""
    known = {label: position for position, label in enumerate(classes.tolist())}
    positions = np.array([known.get(label, -1) for label in found.tolist()], dtype=np.int64)
    for row in np.flatnonzero(positions[codes] < 0):
        unknown = [label for label in found.tolist() if label not in known]
        advice = "name known ones"
        if what != "`target`":
            advice = (
                "correct or drop such rows, or fit anew (partial_fit learns new classes where "
                "`classes` names them beside the known ones)"
            )
        raise InvalidTextError(
            f"{what} must hold classes that {name} knows: {_some(list(known))}. Got "
            f"{_some(unknown)}, first in row {row}: {advice}."
        )
    return positions


def _plain_type(label: Any) -> type:
    if isinstance(label, str):
        return str
    if isinstance(label, bool | np.bool_):
        return bool
    if isinstance(label, numbers.Integral):
        return int
    return float if isinstance(label, numbers.Real) else type(label)


# Several columns


def _encode_columns(
    columns: list[tuple[str, Any]], n: int, name: str, classes: list[NDArray[Any]] | None
) -> Target:
    known = [None] * len(columns) if classes is None else classes
    outputs = [
        _encode_classes(column, n, name, own, what)
        for (what, column), own in zip(columns, known, strict=True)
    ]
    codes = np.stack([output.codes for output in outputs], axis=1)
    return Target([output.classes for output in outputs], codes)


def _columns(y: Any, table: Any, what: str) -> list[tuple[str, Any]]:
    """Return the columns of a y, each with its own types, and what messages call them."""
    names: Any = range(table.shape[1])
    if isinstance(y, list | tuple):
        columns = [list(column) for column in zip(*y, strict=True)]
    elif (found := frame_columns(y)) is not None:
        columns, names = found, frame_names(y) or names
    else:
        columns = list((table.toarray() if sparse.issparse(table) else table).T)
    return [
        (f"column {name!r} of {what}", column) for name, column in zip(names, columns, strict=True)
    ]


def _is_binary(table: Any) -> bool:
    """Say whether a table holds zeros and ones alone, as an indicator does; some may be missing.

    One that is sparse is an indicator or a mistake.
    """
    if sparse.issparse(table):
        return True
    values = table.ravel()
    values = np.delete(values, missing_rows(values))
    if values.dtype == object and not {*map(_plain_type, values)} <= {bool, int, float}:
        return False
    return values.dtype.kind in "biufO" and bool(np.all((values == 0) | (values == 1)))


# Label sets


def _table(y: Any, what: str) -> Any:
    """Return y as an array or sparse matrix if it is 2-D with several columns, else None."""
    if isinstance(y, list | tuple):
        widths = {len(row) if is_row(row) else -1 for row in y}
        if len(widths) != 1 or widths <= {-1, 1}:
            return None
        for i, row in enumerate(y):
            if nested := [cell for cell in row if is_row(cell)]:
                raise InvalidTextError(
                    f"{what} must hold one label in each column. Row {i} holds "
                    f"{reprlib.repr(nested[0])}: several labels per text are a binary indicator, "
                    "as scikit-learn's MultiLabelBinarizer makes it."
                )
        y = np.asarray(y)
    elif not sparse.issparse(y):
        y = as_numpy(y)
    return y if y.ndim == 2 and y.shape[1] != 1 else None


def _indicator(table: Any, what: str) -> NDArray[np.float32]:
    """Return a 2-D y as zeros and ones; an error names the row of anything else."""
    # The values as a flat array, and the row of each.
    if sparse.issparse(table):
        table = table.tocsr(copy=True)
        table.sum_duplicates()
        row_of, values = table.tocoo().coords[0], table.data
    else:
        row_of, values = np.repeat(np.arange(len(table)), table.shape[1]), table.ravel()
    if table.shape[1] == 0:
        raise InvalidTextError(f"{what} must hold labels. Got an array of shape {table.shape}.")
    # Refuse missing values, and all but 0 and 1.
    for at in missing_rows(values):
        raise InvalidTextError(
            f"Input {what} contains NaN, infinity or a missing label: row {row_of[at]} holds "
            f"{values[at]!r}. Put 0 there if the text does not have the label, or drop the row."
        )
    if values.dtype == object and {_plain_type(value) for value in values} <= {bool, int, float}:
        values = values.astype(np.float64)
    is_number = values.dtype.kind in "biuf"
    wrong = (values != 0) & (values != 1) if is_number else np.ones(values.shape, dtype=bool)
    for at in np.flatnonzero(wrong):
        raise InvalidTextError(
            f"{what} must be a binary indicator of 0 and 1 with a column per label where it is "
            "sparse or the fitted y was one, as scikit-learn's MultiLabelBinarizer makes it. Row "
            f"{row_of[at]} holds {reprlib.repr(values[at])}. Several columns of classes must be "
            "dense."
        )
    if sparse.issparse(table):
        return np.asarray(table.astype(np.float32).toarray())
    return values.astype(np.float32).reshape(table.shape)


# Checks and messages of all


def check_is_array(y: Any, name: str, what: str) -> None:
    """Refuse what holds no labels, or numbers, one by one."""
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


def check_length(n_labels: int, n: int, what: str) -> None:
    """Check that there are as many as texts."""
    if n_labels != n:
        texts = {"y_val": "X_val"}.get(what, "X")
        raise InvalidTextError(
            f"{texts} and {what} must have one label per text. Found input "
            f"variables with inconsistent numbers of samples: [{n}, {n_labels}]."
        )


def _other_kind(name: str, classes: Classes, what: str, got: str) -> InvalidTextError:
    return InvalidTextError(
        f"{what} must fit what {name} was fitted on: the classes {_spelt(classes)}. Got {got}: "
        "pass labels of the same kind, or fit anew."
    )


def _is_continuous(labels: NDArray[Any]) -> bool:
    return labels.dtype.kind == "f" and bool(np.any(labels != np.trunc(labels)))


def _of_one_type(labels: NDArray[Any], what: str) -> str:
    kinds = sorted({type(label).__name__ for label in labels})
    return (
        f"The labels in {what} must be of one type, so that they can be sorted. Got {kinds}: "
        "convert them, for example with [str(label) for label in y]."
    )


def _spelt(classes: Classes) -> str:
    outputs = classes if isinstance(classes, list) else [classes]
    return " and ".join(_some(output.tolist()) for output in outputs)


def _some(labels: list[Any]) -> str:
    more = f" and {len(labels) - _AT_MOST} more" if len(labels) > _AT_MOST else ""
    return f"{labels[:_AT_MOST]}{more}"
