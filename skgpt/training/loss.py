"""Losses: those of classes, each with its inverse link to probabilities, and those of numbers.

Raw scores come in fp32; probabilities are fp64, as those of scikit-learn's own classifiers. What
averages or compares them takes them to add up to one to more digits than fp32 has.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import expit, log_expit, log_softmax, softmax
from torch import Tensor
from torch.nn import functional as F

# Of the head that is solved for: of its squared weights, beside the mean loss. scikit-learn's C is
# one over this and the number of rows. docs/decisions/recipe.md has the figures.
_PENALTY_OF_CLASSES = 0.1
_PENALTY_OF_NUMBERS = 1.5

_SMALLEST = np.finfo(np.float64).tiny
_LARGEST = np.nextafter(1.0, 0.0)


class _ByColumn:
    """A loss whose raw scores are one for each column of a target, or all of its only one."""

    def spread(self, values_J: Tensor) -> Tensor:
        """Repeat what each column of a target has for each of its scores."""
        return values_J


@dataclass(frozen=True)
class CrossEntropy(_ByColumn):
    """Softmax cross-entropy over class codes.

    `label_smoothing` is the share of the target that is spread evenly over all classes.
    """

    label_smoothing: float = 0.0
    penalty = _PENALTY_OF_CLASSES

    def total(self, logits_BK: Tensor, target_B: Tensor, weight_B: Tensor) -> Tensor:
        """Return the weighted sum of the rows' cross-entropies; the target is class codes."""
        losses_B = F.cross_entropy(
            logits_BK, target_B, reduction="none", label_smoothing=self.label_smoothing
        )
        return (losses_B * weight_B).sum()

    def probabilities(self, logits_NK: NDArray[np.floating]) -> NDArray[np.float64]:
        """Return class probabilities, shape (N, K)."""
        return np.asarray(softmax(logits_NK.astype(np.float64), axis=1))

    def log_probabilities(self, logits_NK: NDArray[np.floating]) -> NDArray[np.float64]:
        """Return logarithms of class probabilities, finite however sure the model is."""
        return np.asarray(log_softmax(logits_NK.astype(np.float64), axis=1))


@dataclass(frozen=True)
class BinaryCrossEntropy(_ByColumn):
    """Sigmoid cross-entropy over the labels of a multilabel target, each by itself.

    `label_smoothing` is the share of a label's target that is spread evenly over its two values.
    """

    label_smoothing: float = 0.0
    penalty = _PENALTY_OF_CLASSES

    def total(self, logits_BK: Tensor, target_BK: Tensor, weight_BK: Tensor) -> Tensor:
        """Return the weighted sum of the elements' cross-entropies; the target is 0 or 1."""
        smooth_BK = target_BK * (1 - self.label_smoothing) + self.label_smoothing / 2
        losses_BK = F.binary_cross_entropy_with_logits(logits_BK, smooth_BK, reduction="none")
        return (losses_BK * weight_BK).sum()

    def probabilities(self, logits_NK: NDArray[np.floating]) -> NDArray[np.float64]:
        """Return the probability of each label, shape (N, K), above 0 and below 1 always."""
        return np.asarray(np.clip(expit(logits_NK.astype(np.float64)), _SMALLEST, _LARGEST))

    def log_probabilities(self, logits_NK: NDArray[np.floating]) -> NDArray[np.float64]:
        """Return logarithms of the labels' probabilities, finite however sure the model is."""
        return np.asarray(log_expit(logits_NK.astype(np.float64)))


@dataclass(frozen=True)
class JointCrossEntropy:
    """Softmax cross-entropies of several outputs, each over scores of its own: `sizes` of them.

    Their probabilities are those of `CrossEntropy`, output by output.
    """

    sizes: tuple[int, ...]
    label_smoothing: float = 0.0
    penalty = _PENALTY_OF_CLASSES

    def total(self, logits_BK: Tensor, target_BJ: Tensor, weight_BJ: Tensor) -> Tensor:
        """Return the weighted sum of the elements' cross-entropies; the target is class codes."""
        own = CrossEntropy(self.label_smoothing)
        outputs = zip(
            logits_BK.split(self.sizes, dim=1),
            target_BJ.unbind(1),
            weight_BJ.unbind(1),
            strict=True,
        )
        return torch.stack([own.total(*output) for output in outputs]).sum()

    def spread(self, values_J: Tensor) -> Tensor:
        """Repeat what each column of a target has for each of its scores."""
        return values_J.repeat_interleave(torch.tensor(self.sizes))


# In deviations of y. Where the model explains half of the variance, an error of one is 1.4 of its
# own deviations, about where Huber (1964) has it.
_HUBER_DELTA = 1.0
# The kink of the quantile loss is rounded by so much, so that L-BFGS finds the minimum.
_KINK = 0.01


@dataclass(frozen=True)
class ErrorLoss(_ByColumn):
    """Loss of the difference between standardised numbers and raw scores.

    The quantile loss is the quantile Huber loss (Dabney and others 2018) with a narrow kink.
    """

    kind: Literal["squared_error", "huber", "quantile"] = "squared_error"
    quantile: float = 0.5
    penalty = _PENALTY_OF_NUMBERS

    def total(self, scores_BK: Tensor, target_BK: Tensor, weight_BK: Tensor) -> Tensor:
        """Return the weighted sum of the elements' losses."""
        if self.kind == "squared_error":
            return ((target_BK - scores_BK).square() / 2 * weight_BK).sum()
        delta = _HUBER_DELTA if self.kind == "huber" else _KINK
        losses_BK = F.huber_loss(scores_BK, target_BK, reduction="none", delta=delta) / delta
        if self.kind == "quantile":
            too_low_BK = target_BK > scores_BK
            losses_BK = losses_BK * torch.where(too_low_BK, self.quantile, 1 - self.quantile)
        return (losses_BK * weight_BK).sum()


Loss = CrossEntropy | BinaryCrossEntropy | JointCrossEntropy | ErrorLoss
