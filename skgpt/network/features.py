"""Token ids of a data set to pooled states, from the highest level that can be computed once.

Freezing k of L layers alone saves a part of the backward pass; keeping what they return saves their
forward pass too. Epochs, folds, trials, a refit and predict ask for the same texts behind the same
layers, so states are kept per text, keyed by its token ids and everything upstream of them, in
stores that the process shares. They are what the layers return to within rounding: how texts share
a batch may move the last digit. Whether a trunk can be split is probed on two short texts first;
where it can't, all layers run each time.
"""

import logging
import math
import mmap
import shutil
import tempfile
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import suppress
from enum import Enum
from functools import partial
from pathlib import Path
from typing import IO

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from skgpt.caching import Store, keeps_texts
from skgpt.data.batching import Progress, Rows, no_progress
from skgpt.data.tokenization import Tokens, ranges
from skgpt.device import prefix_budget, ran_out, to_device
from skgpt.exceptions import StorageError
from skgpt.network.layout import Layout, ids_of
from skgpt.network.microbatches import MicroBatcher
from skgpt.network.network import TextNetwork, mean_of_each
from skgpt.pretrained.default_models import cache_errors, cache_folder
from skgpt.trunk.layers import PROBE_ERRORS, agree


class CacheLevel(Enum):
    """What of each text is computed once; from there on layers run each time."""

    TOKENS = "tokens"
    HIDDEN = "hidden"  # states behind the frozen layers
    POOLED = "pooled"  # no layer learns


class TextFeatures:
    """Rows of a data set to pooled states, differentiable in what learns.

    A row is a text, or the mean of a text's windows; a window runs as a text of its own. `tokens`
    are those of all rows that will be asked for. States may take `memory_budget` bytes of the
    device's memory and `disk_budget` beyond that. `level` is chosen unless given. With
    ``shared=False`` the stores neither give nor keep states.
    """

    def __init__(
        self,
        network: TextNetwork,
        tokens: Tokens,
        *,
        token_budget: int,
        memory_budget: int,
        disk_budget: int = 0,
        progress: Progress = no_progress,
        level: CacheLevel | None = None,
        shared: bool = True,
    ) -> None:
        self.network = network
        self.lengths = tokens.lengths
        self._first_window = None if tokens.window_offsets is None else tokens.first
        self._texts = tokens.run
        self._text_lengths = self._texts.lengths
        self._token_budget = token_budget
        self._memory_budget = memory_budget
        self._progress = progress
        self._trunk_learns = True
        self._hidden: list[Tensor] = []
        self._pooled_NH: Tensor | None = None
        self.level = level or cache_level(network, self._texts, memory_budget, disk_budget)
        cache = _StateCache(network, self._texts, self.level, shared=shared)
        if level is None and not keeps_texts() and not cache.holds_any():
            self.level = CacheLevel.TOKENS  # states that nobody will ask for again save nothing
        if self.level is CacheLevel.POOLED:
            states_NH = torch.stack(cache.states(token_budget, progress))
            self._pooled_NH = self._text_means(states_NH, np.arange(len(self.lengths)))
        elif self.level is CacheLevel.HIDDEN:
            try:
                self._hidden = cache.states(token_budget, progress, memory_budget)
            except StorageError as error:  # another program may fill the disk at any time
                # As text: a handler that keeps records would keep the error's states alive.
                _LOG.warning("%s All layers run instead, each time.", str(error))
                self.level = CacheLevel.TOKENS

    def pooled(self, rows: Rows) -> Tensor:
        """Return the pooled states of these rows, shape (B, H), fp32."""
        if self._pooled_NH is not None:
            return self._pooled_NH[to_device(rows, self.network.device)]
        with torch.set_grad_enabled(self._trunk_learns and torch.is_grad_enabled()):
            if self._first_window is None:
                return self._run(rows)
            windows = ranges(self._first_window, rows)
            return self._text_means(self._run_windows(windows), rows)

    @torch.no_grad()
    def pooled_array(self, rows: Rows) -> NDArray[np.float32]:
        """Return the pooled states of any number of rows, shape (n, H), in the CPU's memory."""
        states_NH = np.empty((len(rows), self.network.head.in_features), dtype=np.float32)
        batcher = MicroBatcher(self.network, self._token_budget)
        progress = self._progress if self._pooled_NH is None else no_progress
        for part, states_BH in batcher.map(
            lambda part: self.pooled(rows[part]).cpu(),
            np.arange(len(rows)),
            self.lengths[rows],
            progress,
        ):
            states_NH[part] = states_BH.numpy()
        return states_NH

    def freeze_trunk(self) -> None:
        """Stop gradients at the pooled states; compute those once, if memory has room for them."""
        self._trunk_learns = False
        device = self.network.device
        shape = (len(self.lengths), self.network.head.in_features)
        if self._pooled_NH is not None or shape[0] * shape[1] * 4 > self._memory_budget:
            return
        # All rows in one order, whatever batches they will be in: a fit that goes on from a
        # checkpoint is given the same to the last bit.
        pooled_NH = torch.empty(shape, device=device)
        batcher = MicroBatcher(self.network, self._token_budget)
        everything = np.arange(shape[0])
        for part, pooled_BH in batcher.map(self.pooled, everything, self.lengths, self._progress):
            pooled_NH[to_device(part, device)] = pooled_BH
        self._pooled_NH = pooled_NH

    def unfreeze_trunk(self) -> None:
        """Let gradients reach what learns in the trunk again."""
        self._trunk_learns = True
        if self.level is not CacheLevel.POOLED:
            self._pooled_NH = None

    def _run(self, texts: Rows) -> Tensor:
        """Run texts, or windows, through the layers above the cache."""
        network = self.network
        layout = Layout.of(self._text_lengths[texts], network.pretrained, network.device)
        if self.level is CacheLevel.TOKENS:
            return network.pooled(ids_of(self._texts, texts, network.device), layout)
        # Those on disk come to the device only now.
        states = [self._hidden[text].to(network.device) for text in texts]
        return network.pooled_from_hidden(torch.cat(states), layout)

    def _run_windows(self, windows: Rows) -> Tensor:
        """Run windows; without gradients within the token budget, however long a text is."""
        if torch.is_grad_enabled() and self.network.learnable:
            return self._run(windows)
        device = self.network.device
        states_WH = torch.empty((len(windows), self.network.head.in_features), device=device)
        batcher = MicroBatcher(self.network, self._token_budget)
        lengths = self._text_lengths[windows]
        with torch.no_grad():
            for part, states_BH in batcher.map(
                lambda part: self._run(windows[part]), np.arange(len(windows)), lengths
            ):
                states_WH[to_device(part, device)] = states_BH
        return states_WH

    def _text_means(self, states_WH: Tensor, rows: Rows) -> Tensor:
        """Return the mean state of each row's windows."""
        if self._first_window is None:
            return states_WH
        counts = np.diff(self._first_window)[rows]
        return mean_of_each(states_WH, to_device(counts, states_WH.device), counts.tolist())


# Which level, and whether a trunk can be split.

_PROBE_TOKENS = 16
_LOG = logging.getLogger("skgpt")
_PROOFS: Store[bool] = Store("splits of layers", 1 << 20)


def cache_level(
    network: TextNetwork, tokens: Tokens, memory_budget: int, disk_budget: int = 0
) -> CacheLevel:
    """Return the highest level that the layers that learn, and the budgets, allow."""
    hidden_size = network.trunk.config.hidden_size
    if network.spec.trainable_layers == 0:
        fits = len(tokens) * hidden_size * 4 <= memory_budget
        return CacheLevel.POOLED if fits else CacheLevel.TOKENS
    too_large = len(tokens.ids) * hidden_size * 4 > memory_budget + disk_budget
    if network.spec.n_frozen == 0 or too_large or not _can_be_split(network, tokens):
        return CacheLevel.TOKENS
    return CacheLevel.HIDDEN


def _can_be_split(network: TextNetwork, tokens: Tokens) -> bool:
    if not network.pretrained.shared:
        return _probe_split(network, tokens)
    spec = network.spec
    key = (spec.n_layers, spec.n_frozen, network.cache_key)
    return _PROOFS.get_or_make(key, lambda: _probe_split(network, tokens), lambda proof: 1)


@torch.no_grad()
def _probe_split(network: TextNetwork, tokens: Tokens) -> bool:
    """Say whether both parts together equal the whole trunk, on two of these texts."""
    by_length = np.argsort(tokens.lengths, kind="stable")
    rows = np.unique(by_length[[0, len(by_length) // 2]])
    heads = [tokens.row(int(row))[:_PROBE_TOKENS] for row in rows]
    lengths = np.array([len(ids) for ids in heads])
    layout = Layout.of(lengths, network.pretrained, network.device)
    ids_T = torch.from_numpy(np.concatenate(heads)).to(network.device)
    whole = network.pooled(ids_T, layout)
    try:
        split = network.pooled_from_hidden(network.run_frozen(ids_T, layout), layout)
    except PROBE_ERRORS as error:  # an architecture that can't be entered in the middle
        _LOG.info("%s can't be split: %r", type(network.trunk).__name__, error)
        return False
    # The same operations in the same precision: as good as equal, or not the same.
    return agree(split, whole, 1e-5 if network.dtype == torch.float32 else 1e-2)


# The states of each text: in memory, on disk, or computed now.

_TENSOR_BYTES = 400  # of a tensor beside its numbers, measured


def uncached_rows(network: TextNetwork, tokens: Tokens, level: CacheLevel) -> Rows:
    """Return the rows whose states would have to be computed, one for each distinct text."""
    return _StateCache(network, tokens, level, shared=True).uncached()


class _StateCache:
    """The states of the texts of a data set: from the stores, or computed and put into them."""

    def __init__(
        self, network: TextNetwork, tokens: Tokens, level: CacheLevel, *, shared: bool
    ) -> None:
        self.network = network
        self.tokens = tokens
        self.level = level
        self.shared = shared and network.pretrained.shared
        self.upstream = self._behind(network.spec.n_frozen)
        device = network.device
        self.memory: Store[Tensor] = Store.named(
            f"states on {device}", lambda: prefix_budget(device), share=7 / 8
        )
        self.disk: Store[Tensor] = Store.named("states on disk", disk_room)
        self.ids, self.first = tokens.distinct()
        self.memory_left: float = math.inf  # bytes
        self.found: dict[bytes, Tensor] = {}
        self.on_disk: list[bytes] = []

    def states(
        self, token_budget: int, progress: Progress, memory_budget: float = math.inf
    ) -> list[Tensor]:
        """Return the state of each text: (length, H) or, pooled, (H,).

        Beyond `memory_budget` bytes of the device's memory they lie on disk, as tensors on the
        CPU; a StorageError says that the disk is full or can't be written to.
        """
        self.memory_left = memory_budget
        batcher = MicroBatcher(self.network, token_budget)
        with DiskCache() as disk, torch.no_grad():
            for rows, n_run, known in self._begun(self.uncached()):
                run = partial(self._run, n_run=n_run, known=known)
                for part, states in batcher.map(run, rows, self.tokens.lengths, progress):
                    self._put(part, states, disk)
                    del states  # or they would be there beside the next ones
            self._share(self.disk, dict(zip(self.on_disk, disk.tensors(), strict=True)))
        return [self.found[text] for text in self.ids]

    def holds_any(self) -> bool:
        """Say whether the stores hold the state of any of the texts."""
        keys = [(text, self.upstream) for text in self.first]
        return self.shared and any(store.holds_any(keys) for store in (self.memory, self.disk))

    def uncached(self) -> Rows:
        """Find what the stores hold; return the rows, one for each distinct text, of the rest."""
        texts = list(self.first)
        for store in (self.memory, self.disk) if self.shared else ():
            texts = [text for text in texts if text not in self.found]
            known = self._find(store, texts, self.network.spec.n_frozen)
            self.found |= known
            if store is self.memory:
                self.memory_left -= sum(state.nbytes for state in known.values())
        new = [row for text, row in self.first.items() if text not in self.found]
        return np.array(new, dtype=np.int64)

    def _behind(self, n_frozen: int) -> tuple[Hashable, ...]:
        """Return everything upstream of states behind so many layers."""
        where: tuple[Hashable, ...] = (self.level.value, n_frozen)
        if self.level is CacheLevel.POOLED:
            where = (*where, self.network.spec.pooling)
        # The device too: what lies on disk may come from any.
        return (*where, *self.network.cache_key)

    def _begun(self, rows: Rows) -> Iterator[tuple[Rows, int, dict[bytes, Tensor]]]:
        """Yield rows, the number of layers that they have run through, and the states behind these.

        A search over depths finds what its shallower trials kept.
        """
        shares = self.shared and self.level is CacheLevel.HIDDEN
        for n_run in range(self.network.spec.n_frozen - 1, 0, -1) if shares else ():
            for store in (self.memory, self.disk):
                if known := self._find(store, [self.ids[row] for row in rows], n_run):
                    begun = np.array([self.ids[row] in known for row in rows])
                    yield rows[begun], n_run, known
                    rows = rows[~begun]
        yield rows, 0, {}

    def _find(self, store: Store[Tensor], texts: list[bytes], n_run: int) -> dict[bytes, Tensor]:
        """Return the states of some texts behind so many layers, as far as a store has them."""
        upstream = self._behind(n_run)
        keys = [(text, upstream) for text in texts]
        if n_run < self.network.spec.n_frozen and not store.holds_any(keys):
            return {}  # nobody missed them
        states = zip(texts, store.find_many(keys), strict=True)
        return {text: state for text, state in states if state is not None}

    def _run(self, rows: Rows, n_run: int, known: dict[bytes, Tensor]) -> Sequence[Tensor]:
        """Run texts up to the level of the cache: one tensor per text."""
        network = self.network
        layout = Layout.of(self.tokens.lengths[rows], network.pretrained, network.device)
        if n_run:
            states = [known[self.ids[row]].to(network.device) for row in rows]
            hidden_TH = network.run_frozen_after(torch.cat(states), n_run, layout)
            return hidden_TH.split(layout.lengths)
        ids_T = ids_of(self.tokens, rows, network.device)
        if self.level is CacheLevel.POOLED:
            return network.pooled(ids_T, layout).unbind()
        return network.run_frozen(ids_T, layout).split(layout.lengths)

    def _put(self, rows: Rows, states: Sequence[Tensor], disk: "DiskCache") -> None:
        """Put the states of some rows into memory or, where that has no room, onto the disk."""
        in_memory = {}
        for row, state in zip(rows, states, strict=True):
            copy = self._copy(state)
            if copy is None:
                disk.add(state)
                self.on_disk.append(self.ids[row])
            else:
                in_memory[self.ids[row]] = copy
        self._share(self.memory, in_memory)

    def _copy(self, state: Tensor) -> Tensor | None:
        """Return a copy of a state; None if there is no room for one."""
        if state.nbytes > self.memory_left:
            return None
        try:
            copy = state.clone()  # a slice would keep the whole batch alive
        except RuntimeError as error:
            if not ran_out(error):
                raise
            self.memory_left = 0  # the rest goes to disk, as what learns will need memory too
            return None
        self.memory_left -= copy.nbytes
        return copy

    def _share(self, store: Store[Tensor], states: Mapping[bytes, Tensor]) -> None:
        self.found |= states
        if self.shared and keeps_texts():
            new = {(text, self.upstream): state for text, state in states.items()}
            store.put_many(new, lambda state: state.nbytes + _TENSOR_BYTES)


# A mapped file stays open, and its space is taken until nothing in it is in use: neither many
# files nor large ones.
_FILE_BYTES = 2**30


class DiskCache:
    """Writes tensors of one dtype into files of the cache folder, and maps them into memory.

    The files have no name once they are open (on Windows: until they are closed), so nothing is
    left behind however the process ends. A StorageError says that the folder is full or can't be
    written to.
    """

    def __init__(self) -> None:
        self._file: IO[bytes] | None = None
        self._shapes: list[torch.Size] = []  # of what is in the file
        self._mapped: list[Tensor] = []

    def __enter__(self) -> "DiskCache":
        return self

    def __exit__(self, *raised: object) -> None:
        if self._file is not None:
            with suppress(OSError):  # a full disk, which has been told already
                self._file.close()

    def add(self, tensor: Tensor) -> None:
        """Write a tensor, which must not be empty."""
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        with cache_errors():
            if self._file is None:
                folder = _folder()
                folder.mkdir(parents=True, exist_ok=True)
                self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115
            # Written, not mapped and filled: a full disk is an error here and a crash there.
            self._file.write(flat.view(torch.uint8).numpy().data)
            self._shapes.append(tensor.shape)
            self._dtype = tensor.dtype
            if self._file.tell() >= _FILE_BYTES:
                self._map()

    def tensors(self) -> list[Tensor]:
        """Return all tensors, in order, as they lie on disk; on the CPU."""
        with cache_errors():
            self._map()
        return self._mapped

    def _map(self) -> None:
        if self._file is None:
            return
        with self._file as file:
            file.flush()
            # Copy on write, since torch has no tensors that can't be written to.
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        whole = torch.frombuffer(mapped, dtype=self._dtype)
        pieces = whole.split([shape.numel() for shape in self._shapes])
        of_shapes = zip(pieces, self._shapes, strict=True)
        self._mapped += [piece.view(shape) for piece, shape in of_shapes]
        self._file, self._shapes = None, []


def disk_room() -> int:
    """Return how many bytes a fit may put on disk: half of what is free; 0 where there is none."""
    with suppress(OSError):  # a folder that can't be asked is one that can't be written to
        existing = _folder()
        while not existing.exists() and existing != existing.parent:
            existing = existing.parent
        return shutil.disk_usage(existing).free // 2
    return 0


def _folder() -> Path:
    return cache_folder() / "states"
