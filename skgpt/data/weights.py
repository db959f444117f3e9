"""What each row, or each label of each row, weighs in the loss."""

import numbers
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skgpt.data.targets import ClassTarget, LabelSets, Target
from skgpt.exceptions import InvalidTextError

ClassWeight = Mapping[Any, float] | list[Mapping[int, float]] | str | None

_HUGE = 1e100  # sums of weights below it stay finite


def loss_weights(
    target: Target,
    sample_weight: NDArray[np.float64],
    class_weight: ClassWeight,
    train: NDArray[np.int64],
) -> NDArray[np.float64]:
    """Multiply the weights of rows by the weights of their classes.

    "balanced" is scikit-learn's, ``sum(w) / (n_classes * sum(w of the class))``, computed on the
    training rows with their sample weights, so that a row of weight 2 counts as that row twice. In
    a multilabel target each label is balanced by itself, its rows with it against those without.

    Parameters
    ----------
    target : ClassTarget or LabelSets
        Of all rows.
    sample_weight : ndarray of shape (n,)
        Weights of all rows, >= 0.
    class_weight : dict, "balanced", list of dict or None
        A dict of weights by class; for a multilabel target a list with a dict
        ``{0: weight, 1: weight}`` per label. What is not named weighs 1.
    train : ndarray of int64
        Numbers of the training rows. Held-out rows are weighted by what these say; a class that
        they don't hold weighs nothing when balanced, a label of which they hold one value weighs 1.

    Returns
    -------
    weight : ndarray of shape (n,), or (n, n_labels) for a multilabel target
        Of all rows.

    Raises
    ------
    InvalidTextError
        If `class_weight` is not of the kind that the target needs, holds something other than
        weights, or names labels that y doesn't hold while others have no weight; or if the weights
        of the training rows all come to zero.
    """
    sample_weight = _with_finite_sums(sample_weight)
    with np.errstate(over="ignore"):  # found out below
        if isinstance(target, LabelSets):
            weight = sample_weight[:, np.newaxis] * _of_elements(
                target.codes, sample_weight, class_weight, train
            )
        else:
            weight = sample_weight * _of_classes(target, sample_weight, class_weight, train)
    if not np.any(weight[train] > 0):
        raise InvalidTextError(
            "sample_weight times class_weight must be above zero for at least one training row. "
            "It is zero for all of them."
        )
    if not np.isfinite(weight).all():
        raise InvalidTextError(
            "sample_weight times class_weight must be finite. It overflows: divide either by a "
            "constant, only their ratios count."
        )
    return _with_finite_sums(weight)


def _with_finite_sums(weight: NDArray[np.float64]) -> NDArray[np.float64]:
    """Make huge weights smaller, by a power of two, which changes no digit: only ratios count."""
    largest = float(weight.max())
    if largest < _HUGE:
        return weight
    return np.ldexp(weight, -np.frexp(largest)[1])


def _of_classes(
    target: ClassTarget,
    sample_weight: NDArray[np.float64],
    class_weight: ClassWeight,
    train: NDArray[np.int64],
) -> NDArray[np.float64]:
    """Return the weight of each row's class."""
    n_classes = len(target.classes)
    if class_weight is None:
        return np.ones(len(target.codes))
    if isinstance(class_weight, Mapping):
        per_class = _by_name(target.classes.tolist(), class_weight)
    elif _is_balanced(class_weight):
        weight = sample_weight[train]
        totals = np.bincount(target.codes[train], weights=weight, minlength=n_classes)
        per_class = np.zeros(n_classes)
        present = totals > 0  # a class whose rows all weigh nothing has nothing to balance
        per_class[present] = weight.sum() / (present.sum() * totals[present])
    else:
        raise InvalidTextError(
            "class_weight must be a dict of weights by class, 'balanced' or None where each text "
            f"has one class. Got {class_weight!r}."
        )
    return per_class[target.codes]


def _by_name(classes: list[Any], class_weight: Mapping[Any, float]) -> NDArray[np.float64]:
    # A label that y lacks is no mistake by itself: a fold may be without a rare class.
    unknown = [label for label in class_weight if label not in classes]
    without = [label for label in classes if label not in class_weight]
    if unknown and without:
        raise InvalidTextError(
            f"class_weight must name labels of y. {unknown} are not among {classes}, and {without} "
            "have no weight: check the spelling and the type."
        )
    _check_values(class_weight, "class_weight")
    return np.array([float(class_weight.get(label, 1.0)) for label in classes])


def _of_elements(
    codes: NDArray[np.float32],
    sample_weight: NDArray[np.float64],
    class_weight: ClassWeight,
    train: NDArray[np.int64],
) -> NDArray[np.float64]:
    """Return the weight of the value that each label has in each row."""
    n_labels = codes.shape[1]
    if class_weight is None:
        return np.ones(codes.shape)
    if isinstance(class_weight, list | tuple):
        without, with_label = _by_label(n_labels, class_weight)
    elif _is_balanced(class_weight):
        weight, learned = sample_weight[train], codes[train]
        totals = np.stack([weight @ (1 - learned), weight @ learned])
        both = np.all(totals > 0, axis=0)
        without, with_label = np.divide(
            weight.sum(), 2 * totals, out=np.ones_like(totals), where=both
        )
    else:
        raise InvalidTextError(
            "class_weight must be a list with a dict {0: weight, 1: weight} per label, 'balanced' "
            f"or None for a multilabel y. Got {class_weight!r}: pass a list of {n_labels} dicts."
        )
    return np.where(codes == 1, with_label, without)


def _by_label(n_labels: int, class_weight: Any) -> NDArray[np.float64]:
    """Return the weights of zero and of one, shape (2, n_labels)."""
    if len(class_weight) != n_labels:
        raise InvalidTextError(
            f"class_weight must hold a dict {{0: weight, 1: weight}} per label, {n_labels} in all. "
            f"Got {len(class_weight)}."
        )
    for label, weights in enumerate(class_weight):
        if not isinstance(weights, Mapping) or not all(key in (0, 1) for key in weights):
            raise InvalidTextError(
                "class_weight must hold a dict {0: weight, 1: weight} per label: of the rows "
                f"without it and of those with it. Got {weights!r} for label {label}."
            )
        _check_values(weights, f"class_weight[{label}]")
    return np.array(
        [[float(weights.get(value, 1.0)) for weights in class_weight] for value in (0, 1)]
    )


def _check_values(weights: Mapping[Any, Any], what: str) -> None:
    bad = {
        key: value
        for key, value in weights.items()
        if not (isinstance(value, numbers.Real) and 0 <= float(value) < float("inf"))
    }
    if bad:
        raise InvalidTextError(f"{what} must hold finite weights >= 0. Got {bad}.")


def _is_balanced(class_weight: Any) -> bool:
    return isinstance(class_weight, str) and class_weight == "balanced"
