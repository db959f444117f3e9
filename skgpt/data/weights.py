"""What each row, or each label of each row, weighs in the loss."""

import numbers
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skgpt.data.targets import Target
from skgpt.exceptions import InvalidTextError

ClassWeight = Mapping[Any, float] | list[Mapping[Any, float]] | str | None
Weights = NDArray[np.float64]

_HUGE = 1e100  # sums of weights below it stay finite


def loss_weights(
    target: Target, sample_weight: Weights, class_weight: ClassWeight, train: NDArray[np.int64]
) -> Weights:
    """Multiply the weights of all rows by the weights of their classes; returns `codes`' shape.

    "balanced" is scikit-learn's, ``sum(w) / (n_classes * sum(w of the class))``, computed on the
    training rows with their sample weights, so that a row of weight 2 counts as that row twice. In
    a multilabel target each label is balanced by itself, its rows with it against those without; of
    several outputs each column is.
    Held-out rows weigh what their class weighs in training: a class without training rows weighs
    nothing when balanced, a label of one value there weighs 1.
    """
    sample_weight = with_finite_sums(sample_weight)
    with np.errstate(over="ignore"):  # checked below
        of_target = _label_weights if target.is_multilabel else _class_weights
        if target.is_multioutput:
            of_target = _output_weights
        weight = (sample_weight * of_target(target, sample_weight, class_weight, train).T).T
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
    return with_finite_sums(weight)


def with_finite_sums(weight: Weights) -> Weights:
    """Make huge weights smaller, by a power of two, which changes no digit: only ratios count."""
    largest = float(weight.max())
    if largest < _HUGE:
        return weight
    return np.ldexp(weight, -np.frexp(largest)[1])


def _class_weights(
    target: Target, sample_weight: Weights, class_weight: ClassWeight, train: NDArray[np.int64]
) -> Weights:
    """Return the weight of each row's class."""
    if class_weight is None:
        return np.ones(len(target.codes))
    if isinstance(class_weight, Mapping):
        per_class = _by_name(target.classes.tolist(), class_weight)
    elif _is_balanced(class_weight):
        weight = sample_weight[train]
        totals = np.bincount(target.codes[train], weights=weight, minlength=target.width)
        per_class = np.zeros(target.width)
        present = totals > 0  # a class whose rows all weigh nothing has nothing to balance
        per_class[present] = weight.sum() / (present.sum() * totals[present])
    else:
        raise InvalidTextError(
            "class_weight must be a dict of weights by class, 'balanced' or None where each text "
            f"has one class. Got {class_weight!r}."
        )
    return per_class[target.codes]


def _output_weights(
    target: Target, sample_weight: Weights, class_weight: ClassWeight, train: NDArray[np.int64]
) -> Weights:
    """Return the weight of the class that each row has in each column."""
    outputs = target.outputs
    each: Any = class_weight
    if class_weight is None or _is_balanced(class_weight):
        each = [class_weight] * len(outputs)
    if not isinstance(each, list | tuple) or len(each) != len(outputs):
        raise InvalidTextError(
            "class_weight must be a list with a dict of weights by class for each column of y, "
            f"'balanced' or None. Got {class_weight!r} for {len(outputs)} columns."
        )
    columns = zip(outputs, each, strict=True)
    return np.stack([_class_weights(o, sample_weight, own, train) for o, own in columns], axis=1)


def _by_name(classes: list[Any], class_weight: Mapping[Any, float]) -> Weights:
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


def _label_weights(
    target: Target, sample_weight: Weights, class_weight: ClassWeight, train: NDArray[np.int64]
) -> Weights:
    """Return the weight of the value, 0 or 1, that each label has in each row."""
    codes, n_labels = target.codes, target.width
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


def _by_label(n_labels: int, class_weight: Any) -> Weights:
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
