"""Labels to the array that the loss wants, and back; class weights to weights of rows."""

import numbers
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.utils import column_or_1d
from sklearn.utils.multiclass import check_classification_targets, type_of_target

from skgpt.exceptions import InvalidTextError


@dataclass(frozen=True)
class ClassTarget:
    """Class labels as codes.

    Parameters
    ----------
    classes : ndarray of shape (n_classes,)
        The labels, sorted.
    codes : ndarray of shape (n,), int64
        For every row the position of its label in `classes`.
    """

    classes: NDArray[Any]
    codes: NDArray[np.int64]

    @property
    def width(self) -> int:
        """Number of raw scores per text."""
        return len(self.classes)


def encode_classes(y: Any, n: int, *, name: str) -> ClassTarget:
    """Check class labels and turn them into codes.

    Parameters
    ----------
    y : array-like of shape (n,)
        Labels: str, int, bool or object.
    n : int
        Number of rows of X.
    name : str
        The estimator's name, for error messages.

    Returns
    -------
    target : ClassTarget

    Raises
    ------
    InvalidTextError
        If y is missing, has another length than X, holds a missing label, is continuous, or
        holds only one class.
    """
    if y is None:
        raise InvalidTextError(f"{name} requires y to be passed, but the target y is None.")
    is_array = hasattr(y, "__len__") or hasattr(y, "__array__")
    if isinstance(y, str | bytes | set | dict) or not is_array:
        raise InvalidTextError(
            f"y must be a list, an array or a Series of labels, one per text. Got a "
            f"{type(y).__name__}."
        )
    labels = _narrow(column_or_1d(_elements(y), warn=True), of_list=isinstance(y, list | tuple))
    if len(labels) != n:
        raise InvalidTextError(
            "X and y must have one label per text. Found input variables with inconsistent "
            f"numbers of samples: [{n}, {len(labels)}]."
        )
    try:
        classes, codes = np.unique(labels, return_inverse=True)
    except TypeError as error:
        raise InvalidTextError(_of_one_type(labels)) from error
    if type_of_target(labels, input_name="y").startswith("continuous"):
        raise InvalidTextError(
            f"Unknown label type: continuous. {name} expects class labels (str, int or bool) in "
            "y and got continuous numbers: bin them into classes, or use a regressor."
        )
    check_classification_targets(labels)
    if len(classes) < 2:
        raise InvalidTextError(
            f"{name} needs samples of at least 2 classes in y, but the data contains only one "
            f"class: {classes.tolist()[0]!r}."
        )
    return ClassTarget(classes, codes.astype(np.int64).reshape(-1))


def _elements(y: Any) -> Any:
    """Return y as an array that holds its elements as they are.

    numpy would turn a NaN among strings into the label "nan", and a number into its digits.
    """
    if isinstance(y, list | tuple):
        if any(isinstance(label, list | tuple | np.ndarray) for label in y):
            if all(isinstance(label, list | tuple | np.ndarray) and len(label) == 1 for label in y):
                return np.asarray(y)  # a column
            raise InvalidTextError(
                f"y must be a 1d array or list: one label per text. Its first entry is {y[0]!r} "
                f"({type(y[0]).__name__}); several labels per text are not supported."
            )
        labels = np.empty(len(y), dtype=object)
        labels[:] = y
        return labels
    # pandas' own string, integer and category types become plain objects, missing ones included.
    return y.to_numpy() if hasattr(y, "to_numpy") else y


def _narrow(labels: NDArray[Any], *, of_list: bool) -> NDArray[Any]:
    """Refuse missing labels and give objects of one plain type that type.

    Strings in an object array stay objects, those of a list don't, as in the rest of scikit-learn.
    """
    for row in _missing(labels):
        raise InvalidTextError(
            f"Input y contains NaN, infinity or a missing label: row {row} is {labels[row]!r}. "
            "Every row needs a label: drop the rows without one."
        )
    if labels.dtype != object:
        return labels
    kinds = {_kind(label) for label in labels}
    if len(kinds) > 1 and str in kinds:
        raise InvalidTextError(_of_one_type(labels))
    if kinds <= {bool} or kinds <= {int, float} or (of_list and kinds <= {str}):
        return np.array(labels.tolist())
    return labels


def _missing(labels: NDArray[Any]) -> NDArray[np.int64]:
    if labels.dtype.kind == "f":
        return np.flatnonzero(~np.isfinite(labels))
    if labels.dtype.kind != "O":
        return np.empty(0, dtype=np.int64)
    return np.flatnonzero(
        [
            label is None
            or type(label).__name__ == "NAType"
            or (isinstance(label, numbers.Real) and not np.isfinite(float(label)))
            for label in labels
        ]
    )


def _kind(label: Any) -> type:
    if isinstance(label, str):
        return str
    if isinstance(label, bool | np.bool_):
        return bool
    if isinstance(label, numbers.Integral):
        return int
    return float if isinstance(label, numbers.Real) else type(label)


def _of_one_type(labels: NDArray[Any]) -> str:
    kinds = sorted({type(label).__name__ for label in labels})
    return (
        f"The labels in y must be of one type, so that they can be sorted. Got {kinds}: convert "
        "them, for example with [str(label) for label in y]."
    )


def row_weights(
    target: ClassTarget,
    sample_weight: NDArray[np.float64],
    class_weight: Mapping[Any, float] | str | None,
) -> NDArray[np.float64]:
    """Multiply the weights of rows by the weights of their classes.

    "balanced" is computed on these rows with their sample weights, so that a row of weight 2
    counts as that row twice: ``sum(w) / (n_classes * sum(w of the class))``.

    Parameters
    ----------
    target : ClassTarget
    sample_weight : ndarray of shape (n,)
    class_weight : dict, "balanced" or None

    Returns
    -------
    weight : ndarray of shape (n,)

    Raises
    ------
    InvalidTextError
        If `class_weight` names labels that y doesn't hold while others have no weight, or if every
        row's weight comes to zero.
    """
    if class_weight is None:
        return sample_weight
    if isinstance(class_weight, Mapping):
        per_class = _dict_weights(target, class_weight)
    else:
        totals = np.bincount(target.codes, weights=sample_weight, minlength=target.width)
        per_class = np.zeros(target.width)
        present = totals > 0  # a class whose rows all weigh nothing has nothing to balance
        per_class[present] = sample_weight.sum() / (present.sum() * totals[present])
    weight = sample_weight * per_class[target.codes]
    if not np.any(weight > 0):
        raise InvalidTextError(
            "sample_weight times class_weight must be above zero for at least one row. It is "
            "zero for all of them."
        )
    return np.asarray(weight, dtype=np.float64)


def _dict_weights(target: ClassTarget, class_weight: Mapping[Any, float]) -> NDArray[np.float64]:
    classes = target.classes.tolist()
    # A label that y lacks is no mistake by itself: a fold may be without a rare class.
    unknown = [label for label in class_weight if label not in classes]
    without = [label for label in classes if label not in class_weight]
    if unknown and without:
        raise InvalidTextError(
            f"class_weight must name labels of y. {unknown} are not among {classes}, and {without} "
            "have no weight: check the spelling and the type."
        )
    bad = {k: v for k, v in class_weight.items() if not _is_weight(v)}
    if bad:
        raise InvalidTextError(f"class_weight must hold finite weights >= 0. Got {bad}.")
    return np.array([float(class_weight.get(label, 1.0)) for label in classes])


def _is_weight(value: Any) -> bool:
    return isinstance(value, numbers.Real) and 0 <= float(value) < float("inf")
