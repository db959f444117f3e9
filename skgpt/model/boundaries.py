"""Where the texts of a packed row begin and end, and what a token of one sees."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from skgpt.model.device import to_device


@dataclass(frozen=True)
class Boundaries:
    """Where the texts of a packed row begin and end; made once a batch, not once a layer.

    Parameters
    ----------
    lengths : tuple of int
        Tokens of each text.
    cumulative_B1 : Tensor of shape (B + 1,), int32
        Where each text begins, on the device, and where the last one ends.
    longest : int
    ends_only : bool, default=False
        Whether the last block need return nothing but the last token of each text.
    """

    lengths: tuple[int, ...]
    cumulative_B1: Tensor
    longest: int
    ends_only: bool = False

    @property
    def ends_B(self) -> Tensor:
        """The place of each text's last token among all T."""
        return self.cumulative_B1[1:].long() - 1

    @cached_property  # every layer asks
    def places_2T(self) -> tuple[Tensor, Tensor]:
        """Which text each token is of, and its place there."""
        starts_B1 = self.cumulative_B1.long()
        n_tokens = sum(self.lengths)
        texts_T = torch.repeat_interleave(starts_B1.diff(), output_size=n_tokens)
        return texts_T, torch.arange(n_tokens, device=starts_B1.device) - starts_B1[texts_T]

    @classmethod
    def of(cls, lengths: Sequence[int], device: torch.device) -> "Boundaries":
        """Make the boundaries of texts of these lengths."""
        ends = np.cumsum([0, *lengths], dtype=np.int32)
        return cls(tuple(lengths), to_device(ends, device), max(lengths))


def sees(query: Tensor, key: Tensor, causal: bool, window: int | None) -> Tensor:
    """Say which keys a query sees, by their places in the text."""
    back = query - key
    seen = back >= 0 if causal else torch.ones_like(back, dtype=torch.bool)
    return seen if window is None else seen & (back.abs() < window)
