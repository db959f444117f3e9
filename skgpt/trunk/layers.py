"""The stack of blocks in a trunk: find it, shorten it, and step into the middle of it.

Stepping in is done at one place, the block after which the hidden states are taken or put back.
Everything that the model does around its blocks (positions, scaling, masks, rotations, the final
norm) stays its own code, so nothing here knows an architecture.
"""

import copy
import logging
import threading
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from skgpt.exceptions import ModelNotSupportedError


def find_blocks(trunk: Any) -> nn.ModuleList:
    """Return the module list that holds the trunk's blocks.

    Parameters
    ----------
    trunk : transformers.PreTrainedModel

    Returns
    -------
    blocks : torch.nn.ModuleList
        As long as ``config.num_hidden_layers``; where several are, the one with most weights.

    Raises
    ------
    ModelNotSupportedError
        If there is none.
    """
    depth = trunk.config.num_hidden_layers
    lists = [m for m in trunk.modules() if isinstance(m, nn.ModuleList) and len(m) == depth]
    if not lists:
        raise ModelNotSupportedError(
            f"The model must keep its {depth} blocks in one torch.nn.ModuleList. "
            f"{type(trunk).__name__} has none of that length: use another model."
        )
    return max(lists, key=lambda blocks: sum(p.numel() for p in blocks.parameters()))


def truncate(trunk: Any, n_layers: int) -> None:
    """Keep only the first `n_layers` blocks; what follows the blocks (a final norm) stays."""
    blocks = find_blocks(trunk)
    del blocks[n_layers:]
    trunk.config.num_hidden_layers = n_layers
    layer_types = getattr(trunk.config, "layer_types", None)
    if layer_types:  # one setting per block, read by position in the forward pass
        with suppress(AttributeError):  # some configurations derive it and take no other
            trunk.config.layer_types = list(layer_types[:n_layers])


def agree(a: Tensor, b: Tensor, tolerance: float) -> bool:
    """Say whether hidden states are the same, dimension by dimension.

    A few dimensions of a trunk are a hundred times larger than the rest; measured against those,
    the rest could be anything.

    Parameters
    ----------
    a, b : Tensor of shape (..., H)
    tolerance : float
        Relative to each dimension's largest value and to the middle one of all.
    """
    size = b.abs().reshape(-1, b.shape[-1])
    scale = torch.maximum(size.amax(0), size.median())
    return bool(((a - b).abs() <= tolerance * scale).all())


# What a forward pass of a stranger's can raise when it is entered in the middle.
PROBE_ERRORS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
)
_LOG = logging.getLogger("skgpt")


class _Crossing(threading.local):
    """What goes in or comes out at the cut; each thread has its own, for predictions at once."""

    put: Tensor | None = None
    take: bool = False
    taken: Tensor | None = None


class SplitTrunk:
    """A cut through a trunk after its first `k` blocks.

    The trunk works as before outside `run_lower` and `run_upper`, in other threads too. It must be
    its caller's own (a copy of a shared one), since its blocks are given another class.

    Parameters
    ----------
    trunk : transformers.PreTrainedModel
    k : int
        1 <= k <= number of blocks.
    """

    def __init__(self, trunk: Any, k: int) -> None:
        self.trunk = trunk
        self._crossing = _Crossing()
        blocks: Any = find_blocks(trunk)
        self._blocks = blocks[:k]
        self._kinds = [type(block) for block in self._blocks]
        # As wide as what goes into the trunk, which OPT's blocks are not always.
        self._embedding_dim = trunk.get_input_embeddings().weight.shape[1]
        for block in self._blocks:
            kind: Any = type(block)
            block.__class__ = _splittable(kind)
            block._crossing = self._crossing
            block._is_last = block is self._blocks[-1]

    def close(self) -> None:
        """Put the trunk back as it was."""
        for block, kind in zip(self._blocks, self._kinds, strict=True):
            block.__class__ = kind
            del block._crossing, block._is_last

    def run_lower(self, **inputs: Any) -> Tensor:
        """Run the trunk and return the hidden states after block k, shape (B, T, H)."""
        self._crossing.take = True
        try:
            self.trunk(**inputs)
            taken = self._crossing.taken
        finally:
            self._crossing.take = False
            self._crossing.taken = None
        assert taken is not None
        return taken

    def run_upper(self, hidden_BTH: Tensor, **inputs: Any) -> Tensor:
        """Run what follows block k on these hidden states; return the last hidden states."""
        self.get_ready()
        # What goes in at the bottom is forgotten at the cut: it only has to have the right shape.
        bottom_BTE = hidden_BTH.new_zeros(*hidden_BTH.shape[:2], self._embedding_dim)
        self._crossing.put = hidden_BTH
        try:
            last: Tensor = self.trunk(inputs_embeds=bottom_BTE, **inputs).last_hidden_state
        finally:
            self._crossing.put = None
        return last

    @torch.no_grad()
    def get_ready(self) -> None:
        """Have every block learn what it returns behind its hidden states, by running once."""
        if self._blocks[0]._n_returned is not None:
            return
        device = self.trunk.get_input_embeddings().weight.device
        self.trunk(input_ids=torch.tensor([[2, 3]], device=device))


@cache
def _splittable(kind: Any) -> type:
    return type(kind.__name__, (_SplitBlock, kind), {})


class _SplitBlock(nn.Module):
    """The forward pass of a block before a cut; it is mixed into the block's own class."""

    _crossing: _Crossing
    _is_last: bool
    _n_returned: int | None = None  # 0 where it is a tensor, not a tuple

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        crossing = self._crossing
        if crossing.put is None:
            output = super().forward(*args, **kwargs)
            self._n_returned = len(output) if isinstance(output, tuple) else 0
            if self._is_last and crossing.take:
                crossing.taken = output[0] if isinstance(output, tuple) else output
            return output
        # A skipped block hands on what it was given; the last one before the cut answers with
        # the states that were put in, so whatever came before it is forgotten.
        hidden = crossing.put if self._is_last else (args[0] if args else kwargs["hidden_states"])
        return (hidden, *[None] * (self._n_returned - 1)) if self._n_returned else hidden


def parameters_after_blocks(trunk: Any) -> set[str]:
    """Return the names of the parameters that act after the trunk's last block.

    They are found by what has a gradient when hidden states are put in behind the last block,
    wherever the architecture keeps its final norm.

    Parameters
    ----------
    trunk : transformers.PreTrainedModel

    Returns
    -------
    names : set of str
        Empty if the trunk can't be entered behind its blocks, which is logged.
    """
    named = dict(trunk.named_parameters())
    before = {name: p.requires_grad for name, p in named.items()}
    split = SplitTrunk(trunk, len(find_blocks(trunk)))
    try:
        with torch.no_grad():
            ids = torch.tensor([[2, 3]], device=next(iter(named.values())).device)
            hidden = split.run_lower(input_ids=ids)
        for p in named.values():
            p.requires_grad_(p.is_floating_point())
        with torch.enable_grad():
            total = split.run_upper(hidden).float().sum()
        if not total.requires_grad:
            return set()
        learnable = {name: p for name, p in named.items() if p.requires_grad}
        grads = torch.autograd.grad(total, list(learnable.values()), allow_unused=True)
        return {name for name, grad in zip(learnable, grads, strict=True) if grad is not None}
    except PROBE_ERRORS as error:
        _LOG.info("%s can't be entered behind its blocks: %r", type(trunk).__name__, error)
        return set()
    finally:
        split.close()
        for name, p in named.items():
            p.requires_grad_(before[name])


def copy_around(trunk: Any, tensors: Mapping[str, Tensor]) -> Any:
    """Copy a module tree, with these tensors in the places of its parameters and buffers."""
    memo: dict[int, Any] = {
        id(p): nn.Parameter(tensors[name], requires_grad=False)
        for name, p in trunk.named_parameters()
    }
    memo |= {id(buffer): tensors[name] for name, buffer in trunk.named_buffers()}
    return copy.deepcopy(trunk, memo)
