"""How many tokens are run at once, and what happens where those were too many.

A budget follows from the model, the device and its total memory, never from what happens to be
free, so that a fit is the same on a busy machine. Only an out-of-memory error lowers it. How a
batch is cut changes no result beyond rounding, so what failed is done again in smaller parts.
"""

from collections.abc import Callable, Iterator
from functools import wraps
from typing import ParamSpec, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from skgpt.caching import Store, drop_stores_on
from skgpt.data.batching import Rows, micro_batches
from skgpt.device import ran_out, total_memory
from skgpt.exceptions import LowMemoryWarning, NoMemoryError, warn_user
from skgpt.network.network import TextNetwork
from skgpt.trunk.layers import find_blocks

T = TypeVar("T")
P = ParamSpec("P")

# More only spills a CPU's caches, and fills no GPU any better.
_CPU_TOKENS = 2048
_GPU_TOKENS = 65_536
_LEAST_TOKENS = 128
# Of the total memory; the rest is for weights, gradients, moments and kept states.
_SHARE = 4
# Norms, rotations and fp32 copies, beside what goes into matrices and comes out of them.
_OTHER_ACTIVATIONS = 1.5

# What ran out of memory once would do so in each fold; the budget that held is tried at once.
_LOWERED: Store[int] = Store("lowered budgets", 1 << 20)


def token_budget(network: TextNetwork, *, learning: bool, frozen_too: bool = False) -> int:
    """Return how many tokens a micro-batch may hold.

    Parameters
    ----------
    network : TextNetwork
    learning : bool
        Whether what the learning layers compute is kept for a backward pass.
    frozen_too : bool, default=False
        Whether what the frozen layers compute is kept for one as well.

    Returns
    -------
    n_tokens : int
        A function of the model, the device and its total memory.
    """
    cap = _GPU_TOKENS if network.device.type == "cuda" else _CPU_TOKENS
    blocks = find_blocks(network.trunk)
    kept = blocks[network.spec.n_frozen :] if learning and network.learnable else blocks[:1]
    kept = blocks if frozen_too else kept
    values = sum(_values_per_token(module) for module in kept.modules())
    bytes_per_token = max(1, int(values * _OTHER_ACTIVATIONS * network.dtype.itemsize))
    fits = total_memory(network.device) // _SHARE // bytes_per_token
    return max(_LEAST_TOKENS, min(cap, fits))


def _values_per_token(module: nn.Module) -> int:
    """Return how many numbers a module's own matrices take in and give for each token."""
    if isinstance(module, nn.Linear):  # in 4 bits, the weight itself is packed into another shape
        return module.in_features + module.out_features
    return sum(sum(p.shape) for p in module.parameters(recurse=False) if p.ndim == 2)


class Budget:
    """Cuts rows into micro-batches, and into smaller ones where memory runs out.

    Parameters
    ----------
    network : TextNetwork
    n_tokens : int
        Tokens to run at once; fewer, where as many were too many before in this process.
    learning : bool, default=False
        Whether there will be a backward pass, which needs more memory per token.
    """

    def __init__(self, network: TextNetwork, n_tokens: int, *, learning: bool = False) -> None:
        self._network = network
        self._padded = not network.pretrained.capabilities.supports_packing
        depth = (network.spec.n_layers, network.spec.n_frozen)
        self._key = (depth, network.cache_key, learning)
        (lowered,) = _LOWERED.find_many([self._key])
        self.n_tokens = n_tokens if lowered is None else min(n_tokens, lowered)
        self._said = lowered is not None
        self._gave_way = False

    def parts(self, rows: Rows, lengths: NDArray[np.int64]) -> list[Rows]:
        """Cut rows into micro-batches; `lengths` are the tokens of every row of the data set."""
        return micro_batches(rows, lengths, self.n_tokens, padded=self._padded)

    def each(
        self, rows: Rows, lengths: NDArray[np.int64], work: Callable[[Rows], T]
    ) -> Iterator[tuple[Rows, T]]:
        """Do work on micro-batches one by one; where memory runs out, on smaller ones.

        Parameters
        ----------
        rows : ndarray of int64
        lengths : ndarray of int64
            Tokens of every row of the data set.
        work : callable
            From rows to a result, changing nothing else.

        Yields
        ------
        part : ndarray of int64
        result : object

        Raises
        ------
        NoMemoryError
            If memory runs out with one text.
        """
        todo = self.parts(rows, lengths)
        while todo:
            done = _attempt(work, todo[0])
            if done is None:
                self._make_room(lengths[todo[0]])
                todo = self.parts(np.concatenate(todo), lengths)
                continue
            yield todo.pop(0), done[0]
            del done  # or it would be there beside the next one

    def all_or_again(
        self,
        rows: Rows,
        lengths: NDArray[np.int64],
        work: Callable[[Rows], T],
        undo: Callable[[], None],
    ) -> list[T]:
        """Do work on every micro-batch; where memory runs out, undo it and begin again.

        Parameters
        ----------
        rows : ndarray of int64
        lengths : ndarray of int64
            Tokens of every row of the data set.
        work : callable
            From rows to a result; it may leave something behind, such as gradients.
        undo : callable
            Takes away what all work so far has left behind.

        Returns
        -------
        results : list

        Raises
        ------
        NoMemoryError
            If memory runs out with one text.
        """
        while True:
            results: list[T] = []
            for part in self.parts(rows, lengths):
                done = _attempt(work, part)
                if done is None:
                    break
                results.append(done[0])
            else:
                return results
            undo()
            self._make_room(lengths[part])

    def _make_room(self, lengths: NDArray[np.int64]) -> None:
        """Give up what was kept for others; if that was not enough, take half of what was run."""
        device = self._network.device
        enough = not self._gave_way
        if not self._gave_way:
            self._gave_way = True
            drop_stores_on(str(device))
        if device.type == "cuda":
            torch.cuda.empty_cache()  # pieces too small for what is to come
        if not enough:
            self._lower(lengths)

    def _lower(self, lengths: NDArray[np.int64]) -> None:
        """Take half of what was too much, and say so the first time."""
        device = self._network.device
        if len(lengths) == 1:
            raise NoMemoryError(
                f"`max_length` must leave room in the memory of {device} for one text at a time. "
                f"Memory ran out with a text of {lengths[0]} tokens alone: lower max_length, "
                "n_layers, trainable_layers or precision, cut long texts (long_text='cut'), or "
                "free memory that others hold, other fitted estimators among them."
            )
        tried = len(lengths) * int(lengths.max()) if self._padded else int(lengths.sum())
        self.n_tokens = max(1, min(self.n_tokens, tried) // 2)
        _LOWERED.put_many({self._key: self.n_tokens}, lambda n: 1)
        if not self._said:
            self._said = True
            warn_user(
                f"Memory of {device} ran out with {tried} tokens at once; going on with at most "
                f"{self.n_tokens}. Results stay the same to within rounding.",
                LowMemoryWarning,
            )


def needs_memory(work: Callable[P, T]) -> Callable[P, T]:
    """Have a function say what to do where memory runs out whatever the size of a batch."""

    @wraps(work)
    def explained(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return work(*args, **kwargs)
        except RuntimeError as error:
            if not ran_out(error):
                raise
            reason = str(error)
        # Outside: the error itself would keep alive what its frames hold, and a notebook keeps it.
        raise NoMemoryError(
            "The device's memory must hold the model, and in a fit, of the weights that learn, "
            f"their gradients and AdamW's moments as well (16 bytes each). It ran out: {reason} "
            "Lower n_layers or trainable_layers, call skgpt.clear_cache(), or free memory that "
            "others hold, other fitted estimators among them."
        )

    return explained


def _attempt(work: Callable[[Rows], T], part: Rows) -> tuple[T] | None:
    """Return what work made, None if memory ran out: the error would keep the tensors alive."""
    try:
        return (work(part),)
    except RuntimeError as error:
        if not ran_out(error):
            raise
        return None
