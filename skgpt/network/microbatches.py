"""How many tokens run at once, and what happens when that was too many for the device's memory.

The token budget follows from the model, the device and its total memory, never from what happens
to be free, so that a fit is the same on a busy machine. Only an out-of-memory error lowers it. How
a batch is cut changes no result beyond rounding, so what failed is run again in smaller parts. On a
CPU as many micro-batches run at once as there are threads, each on one of them.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain, takewhile
from traceback import clear_frames
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from skgpt.caching import Store, drop_stores_on
from skgpt.data.batching import Progress, Rows, micro_batches, no_progress
from skgpt.device import ran_out, total_memory
from skgpt.exceptions import LowMemoryWarning, NoMemoryError, warn_user
from skgpt.network.network import TextNetwork
from skgpt.network.workers import in_order, n_threads
from skgpt.trunk.layers import find_blocks

Made = TypeVar("Made")

# More only spills a CPU's caches, and fills no GPU any better.
_CPU_TOKENS = 2048
_WORKER_TOKENS = 1024  # of each, where there are several
_GPU_TOKENS = 65_536
_LEAST_TOKENS = 128
# Of the total memory; the rest is for weights, gradients, moments and cached states.
_SHARE = 4
_GRADIENT_SHARE = 8  # each worker that learns has gradients of its own
# Norms, rotations and fp32 copies, beside what goes into matrices and comes out of them.
_OTHER_ACTIVATIONS = 1.5

# What ran out of memory once would do so in each fold; the budget that held is tried at once.
_LOWERED: Store[int] = Store("micro-batch sizes", 1 << 20)


def token_budget(network: TextNetwork, *, learning: bool, frozen_too: bool = False) -> int:
    """Return how many tokens may run at once, in one micro-batch or in those of all workers.

    `learning` says that the activations of the learning layers are kept for a backward pass,
    `frozen_too` that those of the frozen layers are as well.
    """
    cap = max(_CPU_TOKENS, _WORKER_TOKENS * n_threads(network.device))
    if network.device.type == "cuda":
        cap = _GPU_TOKENS
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


class MicroBatcher:
    """Runs rows in micro-batches within a token budget, and in smaller ones out of memory.

    `learning` says that there is a backward pass, which needs more memory per token. `n_tokens` may
    run at once; `n_workers` None is as many as the device, these tokens and gradients allow.
    """

    def __init__(
        self,
        network: TextNetwork,
        n_tokens: int,
        *,
        learning: bool = False,
        n_workers: int | None = None,
    ) -> None:
        self._network = network
        self._learning = learning
        self._most_workers = n_workers
        self._padded = not network.pretrained.capabilities.supports_packing
        depth = (network.spec.n_layers, network.spec.n_frozen)
        self._key = (depth, network.cache_key, learning)
        (lowered,) = _LOWERED.find_many([self._key])
        self.n_tokens = n_tokens if lowered is None else min(n_tokens, lowered)
        self._warned = lowered is not None
        self._dropped_caches = False

    @property
    def n_workers(self) -> int:
        """How many micro-batches run at once, each in a thread of its own."""
        network, n = self._network, self._most_workers or n_threads(self._network.device)
        if n > 1 and self._learning and network.learnable:
            fit_in = total_memory(network.device) // _GRADIENT_SHARE // gradient_bytes(network)
            n = min(n, fit_in)
        return max(1, min(n, self.n_tokens // _LEAST_TOKENS))

    def split(self, rows: Rows, lengths: NDArray[np.int64]) -> list[Rows]:
        """Cut rows into micro-batches; `lengths` are the tokens of every row of the data set."""
        in_all = int(lengths[rows].sum())
        return micro_batches(
            rows,
            lengths,
            max(1, self.n_tokens // self.n_workers),
            padded=self._padded,
            n_workers=max(1, min(self.n_workers, in_all // _LEAST_TOKENS)),
        )

    def map(
        self,
        work: Callable[[Rows], Made],
        rows: Rows,
        lengths: NDArray[np.int64],
        progress: Progress = no_progress,
    ) -> Iterator[tuple[Rows, Made]]:
        """Yield the rows of each micro-batch with what `work`, which threads call, makes of them.

        They come in the order of `split`, whichever is made first. What runs out of memory comes
        in smaller parts.
        """
        todo = self.split(rows, lengths)
        done, total = 0, int(lengths[rows].sum())
        while todo:
            try:
                for made in self._run(work, todo, lengths):
                    yield todo[0], made
                    del made  # or it would be there beside the next
                    done += int(lengths[todo.pop(0)].sum())
                    progress(done, total)
            except Exception as error:
                if not ran_out(error):
                    raise
                clear_frames(error.__traceback__)  # they hold what the layers have computed
                failed = lengths[todo[0]]
            else:
                return
            self._make_room(failed)
            todo = self.split(np.concatenate(todo), lengths)

    def _run(
        self, work: Callable[[Rows], Made], parts: list[Rows], lengths: NDArray[np.int64]
    ) -> Iterator[Made]:
        """Return what `work` makes of each part; texts above a worker's share run alone."""
        n_workers = self.n_workers
        alone = [*takewhile(lambda part: self._is_alone(lengths[part]), parts)]
        beside = parts[len(alone) :]
        if len(beside) < 2 or n_workers < 2:
            return map(work, [*parts])
        # Gradients are as large as weights, so none wait.
        n_ahead = 0 if self._learning else n_workers
        n_workers = min(n_workers, len(beside))
        return chain(map(work, alone), in_order(work, beside, n_workers, n_ahead))

    def _is_alone(self, lengths: NDArray[np.int64]) -> bool:
        return self._size(lengths) > self.n_tokens // self.n_workers

    def _size(self, lengths: NDArray[np.int64]) -> int:
        """Return how many tokens a micro-batch computes, padding included."""
        return int(len(lengths) * lengths.max() if self._padded else lengths.sum())

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
        device, n_workers = self._network.device, self.n_workers
        if self._is_alone(lengths):
            n_workers = 1
        if len(lengths) == 1 and n_workers == 1:
            raise NoMemoryError(
                f"`max_length` must leave room in the memory of {device} for one text at a time. "
                f"Memory ran out with a text of {lengths[0]} tokens alone: lower max_length, "
                "n_layers, trainable_layers or precision, cut long texts (long_text='cut'), or "
                "free memory that others hold, other fitted estimators among them."
            )
        tried = n_workers * self._size(lengths)
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


def gradient_bytes(network: TextNetwork) -> int:
    """Return the bytes of what a backward pass returns for the weights that learn."""
    return sum(tensor.numel() for tensor in network.learnable.values()) * network.dtype.itemsize


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
