"""A loss that is not finite, or has no finite gradient, in the steps that a test names."""

from collections.abc import Collection

import torch
from torch import Tensor

from skgpt.training.loss import CrossEntropy


class PoisonedLoss(CrossEntropy):
    """Cross-entropy, but for some of the calls that want a gradient; 1 is the first.

    Parameters
    ----------
    loss_at, gradient_at : collection of int
        Where the loss is not finite, and where only its gradient isn't.
    held_out_at : collection of int
        Calls without a gradient where the loss is not finite.
    """

    def __init__(
        self,
        loss_at: Collection[int] = (),
        gradient_at: Collection[int] = (),
        held_out_at: Collection[int] = (),
    ) -> None:
        super().__init__()
        self.__dict__["at"] = {"loss": loss_at, "gradient": gradient_at, "held_out": held_out_at}
        self.__dict__["calls"] = {"step": 0, "held_out": 0}

    def total(self, logits_BK: Tensor, target_B: Tensor, weight_B: Tensor) -> Tensor:
        """Return the loss, or what a test wants instead."""
        total = super().total(logits_BK, target_B, weight_B)
        kind = "step" if torch.is_grad_enabled() else "held_out"
        self.calls[kind] += 1
        call = self.calls[kind]
        if call in self.at["held_out" if kind == "held_out" else "loss"]:
            return total * float("nan")
        if kind == "step" and call in self.at["gradient"]:
            logits_BK.register_hook(lambda grad: grad * float("inf"))
        return total
