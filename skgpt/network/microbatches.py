"""How many tokens run at once, and what happens when that was too many for the device's memory.

The token budget follows from the model, the device and its total memory, never from what happens
to be free, so that a fit is the same on a busy machine. Only an out-of-memory error lowers it. How
a batch is cut changes no result beyond rounding, so what failed is run again in smaller parts.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from traceback import clear_frames

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from skgpt.caching import Store, drop_stores_on
from skgpt.data.batching import Progress, Rows, micro_batches, no_progress
from skgpt.device import ran_out, total_memory
from skgpt.exceptions import LowMemoryWarning, NoMemoryError, warn_user
from skgpt.network.network import TextNetwork
from skgpt.trunk.layers import find_blocks

# More only spills a CPU's caches, and fills no GPU any better.
_CPU_TOKENS = 2048
_GPU_TOKENS = 65_536
_LEAST_TOKENS = 128
# Of the total memory; the rest is for weights, gradients, moments and cached states.
_SHARE = 4
# Norms, rotations and fp32 copies, beside what goes into matrices and comes out of them.
_OTHER_ACTIVATIONS = 1.5

# What ran out of memory once would do so in each fold; the budget that held is tried at once.
_LOWERED: Store[int] = Store("micro-batch sizes", 1 << 20)


def token_budget(network: TextNetwork, *, learning: bool, frozen_too: bool = False) -> int:
    """Return how many tokens a micro-batch may hold.

    `learning` says that the activations of the learning layers are kept for a backward pass,
    `frozen_too` that those of the frozen layers are as well.
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


@dataclass
class MicroBatch:
    """One micro-batch to run in a ``with`` block, which catches a lack of memory.

    ``starts_over`` says that it is the first of its batch: forget what earlier attempts left.
    """

    rows: Rows
    starts_over: bool = False
    failed: bool = False

    def __enter__(self) -> Rows:
        return self.rows

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> bool:
        if not isinstance(error, Exception) or not ran_out(error):
            return False
        clear_frames(error.__traceback__)  # they hold what the layers have computed
        self.failed = True
        return True


class MicroBatcher:
    """Cuts rows into micro-batches within a token budget, and into smaller ones out of memory.

    `learning` says that there will be a backward pass, which needs more memory per token.
    """

    def __init__(self, network: TextNetwork, n_tokens: int, *, learning: bool = False) -> None:
        self._network = network
        self._padded = not network.pretrained.capabilities.supports_packing
        depth = (network.spec.n_layers, network.spec.n_frozen)
        self._key = (depth, network.cache_key, learning)
        (lowered,) = _LOWERED.find_many([self._key])
        self.n_tokens = n_tokens if lowered is None else min(n_tokens, lowered)
        self._warned = lowered is not None
        self._dropped_caches = False

    def split(self, rows: Rows, lengths: NDArray[np.int64]) -> list[Rows]:
        """Cut rows into micro-batches; `lengths` are the tokens of every row of the data set."""
        return micro_batches(rows, lengths, self.n_tokens, padded=self._padded)

    def map(
        self, rows: Rows, lengths: NDArray[np.int64], progress: Progress = no_progress
    ) -> Iterator[MicroBatch]:
        """Yield micro-batches whose results stand for themselves; one that fails comes smaller."""
        todo = self.split(rows, lengths)
        done, total = 0, int(lengths[rows].sum())
        while todo:
            batch = MicroBatch(todo[0])
            yield batch
            if batch.failed:
                self._make_room(lengths[todo[0]])
                todo = self.split(np.concatenate(todo), lengths)
            else:
                done += int(lengths[todo.pop(0)].sum())
                progress(done, total)

    def accumulate(self, rows: Rows, lengths: NDArray[np.int64]) -> Iterator[MicroBatch]:
        """Yield micro-batches whose results add up; if one fails, all rows come again, smaller."""
        done = False
        while not done:
            for i, part in enumerate(self.split(rows, lengths)):
                batch = MicroBatch(part, starts_over=i == 0)
                yield batch
                if batch.failed:
                    self._make_room(lengths[part])
                    break
            else:
                done = True

    def _make_room(self, lengths: NDArray[np.int64]) -> None:
        """Drop the caches on the device; if memory still runs out, halve the micro-batch."""
        device = self._network.device
        if self._dropped_caches:
            self._lower(lengths)
        else:
            self._dropped_caches = True
            drop_stores_on(str(device))
        if device.type == "cuda":
            torch.cuda.empty_cache()  # pieces too small for what is to come

    def _lower(self, lengths: NDArray[np.int64]) -> None:
        """Allow half of the tokens that were too many, and warn the first time."""
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
        if not self._warned:
            self._warned = True
            lora = self._network.spec.lora
            drawn = " and what dropout draws" if lora is not None and lora.dropout else ""
            warn_user(
                f"Memory of {device} ran out with {tried} tokens at once; going on with at most "
                f"{self.n_tokens}. Results stay the same to within rounding{drawn}.",
                LowMemoryWarning,
            )


@contextmanager
def explain_no_memory() -> Iterator[None]:
    """Say what to do where memory runs out in the body whatever the size of a micro-batch."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not ran_out(error):
            raise
        # A notebook keeps the error, and the error what its frames hold.
        clear_frames(error.__traceback__)
        raise NoMemoryError(
            "The device's memory must hold the model, and in a fit, of the weights that learn, "
            f"their gradients and AdamW's moments as well (16 bytes each). It ran out: {error} "
            "Lower n_layers or trainable_layers, call skgpt.clear_cache(), or free memory that "
            "others hold, other fitted estimators among them."
        ) from None
