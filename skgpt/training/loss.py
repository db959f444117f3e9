"""Loss and inverse link as one value: what is trained and what is promised belong together."""

from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_softmax, softmax
from torch import Tensor
from torch.nn import functional as F


class Loss(Protocol):
    """A loss over raw scores and its inverse link."""

    def total(self, logits_BK: Tensor, target_B: Tensor, weight_B: Tensor) -> Tensor:
        """Return the weighted sum of the losses of the rows."""
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
