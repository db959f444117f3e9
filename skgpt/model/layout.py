"""How the texts of a micro-batch lie in the trunk's tensors: end to end, or side by side.

Everything outside the trunk sees tokens end to end, (T, H). Laid out for the trunk they are one
row of T tokens, so that nothing but tokens is computed, or, for architectures that can't tell
texts in a row apart, B rows that are padded on the right.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from skgpt.model.attention import Boundaries
from skgpt.model.sources import Source
from skgpt.text.tokens import Tokens

Rows = NDArray[np.int64]


@dataclass(frozen=True)
class Layout:
    """The texts of a micro-batch.

    Parameters
    ----------
    boundaries : Boundaries
    lengths_B : Tensor of shape (B,), int64
        Tokens of each text, on the device.
    packed : bool
        Whether the trunk takes them end to end.
    masked : bool
        Whether padding has to be masked.
    """

    boundaries: Boundaries
    lengths_B: Tensor
    packed: bool
    masked: bool

    @classmethod
    def of(cls, lengths: Rows, source: Source, device: torch.device) -> "Layout":
        """Make the layout of texts of these lengths for a model.

        Parameters
        ----------
        lengths : ndarray of shape (B,), int64
        source : Source
        device : torch.device
        """
        boundaries = Boundaries.of(lengths.tolist(), device)
        return cls(
            boundaries,
            torch.from_numpy(lengths).to(device),
            source.proof.packs,
            source.proof.needs_mask,
        )

    @property
    def within_BT(self) -> Tensor:
        """Where a padded layout holds tokens, shape (B, longest)."""
        at = torch.arange(self.boundaries.longest, device=self.lengths_B.device)
        return at[None, :] < self.lengths_B[:, None]

    @property
    def ends_B(self) -> Tensor:
        """The place of each text's last token among all T."""
        return self.boundaries.cumulative_B1[1:].long() - 1

    def inputs(self) -> dict[str, Any]:
        """Return what the trunk needs beside tokens."""
        if self.packed:
            starts = self.boundaries.cumulative_B1[:-1].long()
            at = torch.arange(int(sum(self.boundaries.lengths)), device=self.lengths_B.device)
            positions = at - torch.repeat_interleave(starts, self.lengths_B, output_size=len(at))
            return {"position_ids": positions[None], "boundaries": self.boundaries}
        return {"attention_mask": self.within_BT.long()} if self.masked else {}

    def lay(self, values_T: Tensor, fill: int = 0) -> Tensor:
        """Lay out one value (or vector) per token for the trunk, padding filled.

        Parameters
        ----------
        values_T : Tensor of shape (T,) or (T, H)
        fill : int, default=0

        Returns
        -------
        laid_out : Tensor of shape (1, T) or (B, longest), or with H behind
        """
        if self.packed:
            return values_T[None]
        shape = (len(self.lengths_B), self.boundaries.longest, *values_T.shape[1:])
        laid_out = values_T.new_full(shape, fill)
        laid_out[self.within_BT] = values_T
        return laid_out

    def flat(self, hidden: Tensor) -> Tensor:
        """Return the trunk's hidden states end to end, shape (T, H)."""
        return hidden[0] if self.packed else hidden[self.within_BT]


def ids_of(tokens: Tokens, rows: Rows, device: torch.device) -> Tensor:
    """Return the ids of some texts end to end, shape (T,)."""
    return torch.from_numpy(np.concatenate([tokens.row(int(row)) for row in rows])).to(device)
