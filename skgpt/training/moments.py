"""What an optimiser remembers between steps, kept from one call of partial_fit to the next."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from skgpt.model.serial import check_seal, from_bytes, sealed, to_bytes

HEAD = "head.weight"


@dataclass(frozen=True)
class Moments:
    """AdamW's running means of the gradients and of their squares.

    Parameters
    ----------
    step : int
        Updates so far.
    scale : float
        fp16's loss scale; 1 in other precisions.
    means, squares : dict of str to Tensor
        fp32, by the name of the parameter: those of the trunk, and ``head.weight``.
    """

    step: int
    scale: float
    means: dict[str, Tensor]
    squares: dict[str, Tensor]

    def grown(self, rows: NDArray[np.int64], n_rows: int) -> "Moments":
        """Return the moments of a head with more rows: the old ones move, new ones start at zero.

        Parameters
        ----------
        rows : ndarray of int64
            Where each old row of the head goes.
        n_rows : int
            Rows of the new head.
        """
        return Moments(
            self.step,
            self.scale,
            {**self.means, HEAD: _spread(self.means[HEAD], rows, n_rows)},
            {**self.squares, HEAD: _spread(self.squares[HEAD], rows, n_rows)},
        )

    def pack(self) -> dict[str, Any]:
        """Return them as numbers, one uint8 array and a hash of it all."""
        tensors = {f"means.{name}": t for name, t in self.means.items()}
        tensors |= {f"squares.{name}": t for name, t in self.squares.items()}
        return sealed({"step": self.step, "scale": self.scale, "tensors": to_bytes(tensors)})

    @classmethod
    def unpack(cls, state: dict[str, Any], device: torch.device) -> "Moments":
        """Make them again from what `pack` returned."""
        check_seal(state, "The optimiser's moments in a saved model")
        tensors = {name: t.to(device) for name, t in from_bytes(state["tensors"]).items()}
        halves = [
            {k.removeprefix(half): t for k, t in tensors.items() if k.startswith(half)}
            for half in ("means.", "squares.")
        ]
        return cls(state["step"], state["scale"], *halves)


def _spread(tensor: Tensor, rows: NDArray[np.int64], n_rows: int) -> Tensor:
    spread = tensor.new_zeros(n_rows, tensor.shape[1])
    spread[torch.from_numpy(rows).to(tensor.device)] = tensor
    return spread
