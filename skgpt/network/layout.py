"""How the texts of a micro-batch lie in the trunk's tensors: end to end, or side by side.

Everything outside the trunk sees tokens end to end, (T, H). Laid out for the trunk they are one
row of T tokens, so that nothing but tokens is computed, or, for architectures that can't tell
texts in a row apart, B rows that are padded on the right.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from skgpt.data.batching import Rows
from skgpt.data.tokenization import Tokens
from skgpt.device import to_device
from skgpt.pretrained.loading import PretrainedModel
from skgpt.trunk.attention import Boundaries

_STEP = 64


@dataclass(frozen=True)
class Layout:
    """The texts of a micro-batch: `packed` end to end, or side by side, with a mask if `masked`.

    Packed on a CPU, `boundaries` has some filler behind the texts, as one more of them;
    `lengths_B`, the tokens of each text on the device, has not.
    """

    boundaries: Boundaries
    lengths_B: Tensor
    packed: bool
    masked: bool

    @classmethod
    def of(
        cls,
        lengths: Rows,
        pretrained: PretrainedModel,
        device: torch.device,
        **context: Any,
    ) -> "Layout":
        """Make the layout of texts of these lengths for a model.

        `context` is a `prefix` or a `tree_MM` of `Boundaries`, for a model that is capable of it.
        """
        can = pretrained.capabilities
        texts = lengths.tolist()
        filler = _filler(sum(texts)) if can.supports_packing and device.type == "cpu" else 0
        boundaries = Boundaries.of([*texts, filler] if filler else texts, device)
        return cls(
            boundaries=replace(boundaries, **context),
            lengths_B=to_device(lengths, device),
            packed=can.supports_packing,
            masked=can.needs_mask,
        )

    @property
    def lengths(self) -> tuple[int, ...]:
        """Tokens of each text."""
        return self.boundaries.lengths[: len(self.lengths_B)]

    @property
    def ends_B(self) -> Tensor:
        """The position of each text's last token among all T."""
        return self.boundaries.ends_B[: len(self.lengths_B)]

    @property
    def within_BT(self) -> Tensor:
        """Where a padded layout holds tokens, shape (B, longest)."""
        at = torch.arange(self.boundaries.longest, device=self.lengths_B.device)
        return at[None, :] < self.lengths_B[:, None]

    def inputs(self, *, ends_only: bool = False) -> dict[str, Any]:
        """Return what the trunk needs beside tokens; `ends_only` is for packed ones alone."""
        if self.packed:
            boundaries = replace(self.boundaries, ends_only=ends_only)
            return {"position_ids": self.boundaries.positions_T[None], "boundaries": boundaries}
        return {"attention_mask": self.within_BT.long()} if self.masked else {}

    def lay(self, values_T: Tensor, fill: int = 0) -> Tensor:
        """Lay out a value (or vector) per token for the trunk: (1, T) or (B, longest), H behind."""
        if self.packed:
            n_filler = sum(self.boundaries.lengths) - len(values_T)
            if n_filler:
                filler = values_T.new_full((n_filler, *values_T.shape[1:]), fill)
                values_T = torch.cat([values_T, filler])
            return values_T[None]
        shape = (len(self.lengths_B), self.boundaries.longest, *values_T.shape[1:])
        laid_out = values_T.new_full(shape, fill)
        laid_out[self.within_BT] = values_T
        return laid_out

    def flat(self, hidden: Tensor) -> Tensor:
        """Return the trunk's hidden states end to end, shape (T, H)."""
        return hidden[0, : sum(self.lengths)] if self.packed else hidden[self.within_BT]


def _filler(n_tokens: int) -> int:
    """Return how many tokens to fill up with, so that few widths occur.

    oneDNN compiles and keeps a kernel for each shape of a product it sees: with every number of
    tokens a process would grow by some hundred MB, and wait for the compiler in each step.
    """
    step = _STEP if n_tokens > 8 * _STEP else _STEP // 4
    return -n_tokens % step


def ids_of(tokens: Tokens, rows: Rows, device: torch.device) -> Tensor:
    """Return the ids of some texts end to end, shape (T,)."""
    return to_device(np.concatenate([tokens.row(int(row)) for row in rows]), device)
