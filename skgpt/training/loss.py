"""Loss and inverse link as one value: what is trained and what is promised belong together."""

from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import log_softmax, softmax
from torch import Tensor
from torch.nn import functional as F


class Loss(Protocol):
    """A loss over raw scores and its inverse link."""

    def total(self, logits_BK: Tensor, target_B: Tensor, weight_B: Tensor) -> Tensor:
        """Return the weighted sum of the losses of the rows; the caller divides, once."""
        ...

    def probabilities(self, logits_NK: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return what the raw scores mean."""
        ...


class CrossEntropy:
    """Softmax cross-entropy over class codes."""

    def total(self, logits_BK: Tensor, target_B: Tensor, weight_B: Tensor) -> Tensor:
        """Return the weighted sum of the rows' cross-entropies.

        Parameters
        ----------
        logits_BK : Tensor of shape (B, K)
        target_B : Tensor of shape (B,), int64
            Class codes.
        weight_B : Tensor of shape (B,)

        Returns
        -------
        total : Tensor, scalar
        """
        return (F.cross_entropy(logits_BK, target_B, reduction="none") * weight_B).sum()

    def probabilities(self, logits_NK: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return class probabilities, shape (N, K)."""
        return np.asarray(softmax(logits_NK, axis=1), dtype=np.float32)

    def log_probabilities(self, logits_NK: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return logarithms of class probabilities, finite however sure the model is."""
        return np.asarray(log_softmax(logits_NK, axis=1), dtype=np.float32)


def as_tensors(
    target: NDArray[np.int64], weight: NDArray[np.float64], device: torch.device
) -> tuple[Tensor, Tensor]:
    """Return targets and weights on the device, weights in fp32."""
    return (
        torch.from_numpy(np.ascontiguousarray(target)).to(device),
        torch.from_numpy(weight.astype(np.float32)).to(device),
    )
