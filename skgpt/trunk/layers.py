"""The stack of blocks in a trunk: find it, shorten it, and split it in two.

Everything that a model does around its blocks (positions, scaling, masks, rotations, the final
norm) stays its own code, so nothing here knows an architecture.
"""

import copy
import logging
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from skgpt.exceptions import ModelNotSupportedError

_LOG = logging.getLogger("skgpt")

# What an unknown model's forward pass can raise when it is used in a way it wasn't made for.
PROBE_ERRORS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
)


def find_blocks(trunk: Any) -> nn.ModuleList:
    """Return the module list that holds the trunk's blocks, the largest of the right length."""
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
        with suppress(AttributeError):  # some configurations derive it and can't be set
            trunk.config.layer_types = list(layer_types[:n_layers])


def copy_with_tensors(trunk: Any, tensors: Mapping[str, Tensor]) -> Any:
    """Copy a module tree, with these tensors as its parameters and buffers."""
    memo: dict[int, Any] = {
        id(p): nn.Parameter(tensors[name], requires_grad=False)
        for name, p in trunk.named_parameters()
    }
    memo |= {id(buffer): tensors[name] for name, buffer in trunk.named_buffers()}
    return copy.deepcopy(trunk, memo)


def agree(a: Tensor, b: Tensor, tolerance: float) -> bool:
    """Say whether hidden states (..., H) are the same, dimension by dimension.

    A few dimensions of a trunk are a hundred times larger than the rest: measured against those,
    the rest could be anything. So each is measured against its own largest value, or the median.
    """
    size = b.abs().reshape(-1, b.shape[-1])
    scale = torch.maximum(size.amax(0), size.median())
    return bool(((a - b).abs() <= tolerance * scale).all())


class _Crossing(threading.local):
    """Which blocks run; per thread, since predictions may run at once."""

    first: int = 0  # the blocks before it are skipped
    hidden: Tensor | None = None  # the states that it is given then
    stops: bool = False  # at the split


class _Reached(Exception):
    """Ends a forward pass at the split, with the hidden states there."""

    def __init__(self, hidden_BTH: Tensor) -> None:
        super().__init__()
        self.hidden_BTH = hidden_BTH


class SplitTrunk:
    """A trunk that can be run up to its block k, or from there on.

    The trunk works as before outside `run_lower`, `run_between` and `run_upper`, in other threads
    too. It must be its caller's own (a copy of a shared one), since its blocks are given another
    class.
    """

    def __init__(self, trunk: Any, k: int) -> None:
        self.trunk = trunk
        self._crossing = _Crossing()
        blocks: Any = find_blocks(trunk)
        self._blocks = blocks[:k]
        # Of what goes into the trunk: OPT's blocks may be wider.
        self._embedding_dim = trunk.get_input_embeddings().weight.shape[1]
        for number, block in enumerate(self._blocks):
            kind: Any = type(block)
            block.__class__ = _split_class(kind)
            block._crossing = self._crossing
            block._number = number
            block._is_last = block is self._blocks[-1]

    def run_lower(self, **inputs: Any) -> Tensor:
        """Run the trunk up to block k; return the hidden states after it, shape (B, T, H)."""
        self._crossing.stops = True
        try:
            self.trunk(**inputs)
        except _Reached as reached:
            return reached.hidden_BTH
        finally:
            self._crossing.stops = False
        raise RuntimeError("the block before the split was not run")

    def run_between(self, hidden_BTH: Tensor, j: int, **inputs: Any) -> Tensor:
        """Run the blocks after block j on the states behind it; return those behind block k."""
        with self._entered(hidden_BTH, j) as embedded_BTE:
            return self.run_lower(inputs_embeds=embedded_BTE, **inputs)

    def run_upper(self, hidden_BTH: Tensor, **inputs: Any) -> Tensor:
        """Run what follows block k on these hidden states; return the last hidden states."""
        with self._entered(hidden_BTH, len(self._blocks)) as embedded_BTE:
            last: Tensor = self.trunk(inputs_embeds=embedded_BTE, **inputs).last_hidden_state
        return last

    @contextmanager
    def _entered(self, hidden_BTH: Tensor, j: int) -> Iterator[Tensor]:
        """Have passes of the body skip j blocks; gives what goes in below, of the right shape."""
        self._learn_return_types()
        self._crossing.first, self._crossing.hidden = j, hidden_BTH
        try:
            yield hidden_BTH.new_zeros(*hidden_BTH.shape[:2], self._embedding_dim)
        finally:
            self._crossing.first, self._crossing.hidden = 0, None

    @torch.no_grad()
    def _learn_return_types(self) -> None:
        """Run the trunk once, if need be: a skipped block must return as many values as it does."""
        if self._blocks[0]._n_returned is None:
            device = self.trunk.get_input_embeddings().weight.device
            self.trunk(input_ids=torch.tensor([[2, 3]], device=device))


class _SplitBlock(nn.Module):
    """The forward pass of a block up to the split; it is mixed into the block's own class."""

    _crossing: _Crossing
    _number: int
    _is_last: bool
    _n_returned: int | None = None  # 0 for a tensor, n for a tuple of n; of every block of a class

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        crossing = self._crossing
        if self._number >= crossing.first:
            output = super().forward(*args, **kwargs)
            type(self)._n_returned = len(output) if isinstance(output, tuple) else 0
            if self._is_last and crossing.stops:
                raise _Reached(output[0] if isinstance(output, tuple) else output)
            return output
        # Skipped: hand the input on. The last one that is skipped hands on the given states.
        hidden = args[0] if args else kwargs["hidden_states"]
        if self._number == crossing.first - 1:
            hidden = crossing.hidden
        return (hidden, *[None] * (self._n_returned - 1)) if self._n_returned else hidden


@cache
def _split_class(kind: Any) -> type:
    return type(kind.__name__, (_SplitBlock, kind), {})


def parameters_after_blocks(trunk: Any) -> frozenset[str]:
    """Return the names of the parameters that act after the trunk's last block.

    They are those with a gradient when only what follows the blocks is run, wherever the
    architecture keeps its final norm. Empty if the trunk, which must be the caller's own, can't be
    split there; that is logged.
    """
    split = SplitTrunk(trunk, len(find_blocks(trunk)))
    try:
        with torch.no_grad():
            hidden = split.run_lower(input_ids=torch.tensor([[2, 3]]))
        floating = [(n, p) for n, p in trunk.named_parameters() if p.is_floating_point()]
        parameters = {name: p.requires_grad_() for name, p in floating}
        with torch.enable_grad():
            total = split.run_upper(hidden).float().sum()
        if not total.requires_grad:
            return frozenset()
        grads = torch.autograd.grad(total, list(parameters.values()), allow_unused=True)
        named = zip(parameters, grads, strict=True)
        return frozenset(name for name, grad in named if grad is not None)
    except PROBE_ERRORS as error:
        _LOG.info("%s can't be split after its blocks: %r", type(trunk).__name__, error)
        return frozenset()
