"""Tensors in files instead of memory: read through the page cache, gone when the process is.

The files have no name on disk once they are open (on Windows: until they are closed), so nothing
is left behind however the process ends.

Frozen layers: what they return for a text is computed once and kept for every later use.

Epochs, folds, trials, a refit and predict all ask for the same texts behind the same layers. The
states are kept per text, keyed by its token ids and everything upstream of them, in a store that
is shared by the process and forgets the least recently used. They are what the layers return to
within rounding: how texts share a batch may move the last digit.

How the rows of a data set become raw scores: through every layer, or only those that learn.

Freezing k of L layers alone saves a part of the backward pass; keeping what they return saves
their forward pass too. Whether a model can be cut there is proved on two short texts before it is
relied on, and where it can't the whole trunk runs, slower and no less right.

Texts in windows: the mean of a text's pooled windows is what the head is given.

A window is run as a text of its own, so whatever holds for texts (packing, frozen states that are
kept, proofs) holds for windows, and nothing below knows of them.
"""

import logging
import mmap
import shutil
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from skgpt.caching import Store
from skgpt.data.tokenization import TextIds, Tokens, Windows, run_by_trunk
from skgpt.device import prefix_budget, to_device, total_memory
from skgpt.exceptions import StorageError
from skgpt.network.layout import Layout, Rows, ids_of
from skgpt.network.microbatches import Budget
from skgpt.network.network import TextNetwork, mean_of_each, pad_id_of
from skgpt.pretrained.default_models import cache_folder
from skgpt.trunk.layers import PROBE_ERRORS, SplitTrunk, agree

# A mapped file stays open, and its space is taken until nothing in it is in use: neither many
# files nor large ones.
_FILE_BYTES = 2**30


class Spill:
    """Takes tensors of one dtype and writes them into files of the cache folder.

    A context manager, which closes what is still being written.

    Raises
    ------
    StorageError
        From any method, if the folder can't be written to, or is full.
    """

    def __init__(self) -> None:
        self._file: IO[bytes] | None = None
        self._shapes: list[torch.Size] = []  # of what is in the file
        self._mapped: list[Tensor] = []

    def __enter__(self) -> "Spill":
        return self

    def __exit__(self, *raised: object) -> None:
        if self._file is not None:
            with suppress(OSError):  # a full disk, which has been told already
                self._file.close()

    def add(self, tensor: Tensor) -> None:
        """Write a tensor, which must not be empty."""
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        with _as_cache_error():
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
        with _as_cache_error():
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


@contextmanager
def _as_cache_error() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StorageError(f"States can't be kept in {_folder()}: {error}") from error


def _folder() -> Path:
    return cache_folder() / "states"


Progress = Callable[[int, int], None]
Compute = Callable[[Tensor, Layout], Sequence[Tensor]]  # ids and layout to one tensor per text
Kept = Literal["hidden", "pooled"]  # what is kept of each text

# Their bytes are those of the shared tensors that they keep alive.
_PREFIXES: Store[SplitTrunk] = Store("prefixes", total_memory(torch.device("cpu")) // 4)


def _states(device: str) -> Store[Tensor]:
    """Return the store of the states that lie in the memory of a device."""
    return Store.named(f"states on {device}", lambda: prefix_budget(torch.device(device)))


def _states_on_disk() -> Store[Tensor]:
    return Store.named("states on disk", disk_room)


def hidden_states(
    network: TextNetwork,
    tokens: Tokens,
    token_budget: int,
    progress: Progress,
    memory_budget: int | None = None,
) -> list[Tensor]:
    """Return the hidden states behind the frozen layers, a (length, H) tensor for each text.

    Parameters
    ----------
    network : TextNetwork
        With at least one frozen layer.
    tokens : Tokens
    token_budget : int
        Tokens to run at once.
    progress : callable
        Told (tokens done, tokens in all).
    memory_budget : int, default=None
        Bytes of them in the device's memory; what comes after lies on disk, as tensors on the
        CPU. None for all in memory.

    Raises
    ------
    StorageError
        If the disk is full or can't be written to.
    """
    return _Texts(network, "hidden", tokens, memory_budget).states(token_budget, progress)


def pooled_states(
    network: TextNetwork, tokens: Tokens, token_budget: int, progress: Progress
) -> Tensor:
    """Return the pooled states of a network none of whose layers learns, shape (N, H), fp32."""
    return torch.stack(_Texts(network, "pooled", tokens, None).states(token_budget, progress))


def unknown_rows(network: TextNetwork, tokens: Tokens, kept: Kept) -> Rows:
    """Return the rows whose states would have to be computed, one for each distinct text."""
    return _Texts(network, kept, tokens, None).unknown()


def computation(network: TextNetwork, kept: Kept) -> Compute:
    """Return what runs the frozen layers over texts: token ids to what is kept of each text."""
    if kept == "pooled":
        return lambda ids_T, layout: network.pooled(ids_T, layout).unbind()
    split = prefix_of(network)
    return lambda ids_T, layout: before(split, network, ids_T, layout).split(layout.lengths)


def prefix_of(network: TextNetwork) -> SplitTrunk:
    """Return a trunk of the frozen layers alone, which is the same for all networks like it."""
    n = network.spec.n_frozen

    def make() -> SplitTrunk:
        return SplitTrunk(network.base_trunk(n), n)

    if not network.pretrained.shared:
        return make()
    return _PREFIXES.get_or_make((n, network.cache_key), make, _bytes_of)


def _bytes_of(split: SplitTrunk) -> int:
    return sum(p.numel() * p.element_size() for p in split.trunk.parameters())


def before(split: SplitTrunk, network: TextNetwork, ids_T: Tensor, layout: Layout) -> Tensor:
    """Run the frozen layers: token ids to hidden states, shape (T, H)."""
    laid_out = layout.lay(ids_T, pad_id_of(network.pretrained))
    return layout.flat(split.run_lower(input_ids=laid_out, **layout.inputs()))


class _Texts:
    """What is computed of each text: from the stores where it is there, and into them."""

    def __init__(
        self,
        network: TextNetwork,
        kept: Kept,
        tokens: Tokens,
        memory_budget: int | None,
    ) -> None:
        self.network = network
        self.tokens = tokens
        self.kept = kept
        where: tuple[Hashable, ...] = (kept, network.spec.n_frozen)
        if kept == "pooled":
            where = (*where, network.spec.pooling)
        # The device too: what lies on disk may come from any.
        self.cache_key = (*where, *network.cache_key)
        self.ids, self.first = tokens.distinct()
        self.left = memory_budget
        self.found: dict[bytes, Tensor] = {}
        self.spill = Spill()
        self.spilled: list[bytes] = []

    def states(self, token_budget: int, progress: Progress) -> list[Tensor]:
        """Return what is computed of each text."""
        new = self.unknown()
        with self.spill:
            self._compute(new, token_budget, progress)
        return [self.found[text] for text in self.ids]

    def unknown(self) -> Rows:
        """Find what the stores hold; return the rows, one for each distinct text, of the rest."""
        self._find(list(self.first))
        new = [row for text, row in self.first.items() if text not in self.found]
        return np.array(new, dtype=np.int64)

    def _find(self, texts: list[bytes]) -> None:
        if not self.network.pretrained.shared:
            return
        in_memory = _states(str(self.network.device))
        for store in (in_memory, _states_on_disk()):
            texts = [text for text in texts if text not in self.found]
            states = store.find_many([(text, self.cache_key) for text in texts])
            known = {t: state for t, state in zip(texts, states, strict=True) if state is not None}
            self.found |= known
            if self.left is not None and store is in_memory:
                self.left -= sum(state.nbytes for state in known.values())

    @torch.no_grad()
    def _compute(self, rows: Rows, token_budget: int, progress: Progress) -> None:
        lengths, device = self.tokens.lengths, self.network.device
        done, total = 0, int(lengths[rows].sum())
        compute = computation(self.network, self.kept)

        def work(part: Rows) -> Sequence[Tensor]:
            layout = Layout.of(lengths[part], self.network.pretrained, device)
            return compute(ids_of(self.tokens, part, device), layout)

        for part, computed in Budget(self.network, token_budget).each(rows, lengths, work):
            rows_of_part = zip(part, computed, strict=True)
            kept = {self.ids[row]: self._kept(state) for row, state in rows_of_part}
            self._share(_states(str(device)), {t: s for t, s in kept.items() if s is not None})
            self._spill({t: s for t, s in zip(kept, computed, strict=True) if kept[t] is None})
            done += int(lengths[part].sum())
            progress(done, total)
        self._share(_states_on_disk(), dict(zip(self.spilled, self.spill.tensors(), strict=True)))

    def _kept(self, state: Tensor) -> Tensor | None:
        """Return a copy of a state; None if there is no room for one."""
        if self.left is not None and state.nbytes > self.left:
            return None
        try:
            copy = _copy(state)
        except torch.OutOfMemoryError:
            self.left = 0  # the rest goes to disk, as what learns will need memory too
            return None
        self.left = None if self.left is None else self.left - copy.nbytes
        return copy

    def _spill(self, states: dict[bytes, Tensor]) -> None:
        for text, state in states.items():
            self.spill.add(state)
            self.spilled.append(text)

    def _share(self, store: Store[Tensor], states: dict[bytes, Tensor]) -> None:
        self.found |= states
        if self.network.pretrained.shared:
            new = {(text, self.cache_key): state for text, state in states.items()}
            store.put_many(new, lambda state: state.nbytes)


def _copy(state: Tensor) -> Tensor:
    return state.clone()  # a slice would keep the whole batch alive for one text


_PROBE_TOKENS = 16
_LOG = logging.getLogger("skgpt")
_PROOFS: Store[bool] = Store("proofs", 1 << 20)


class Forward(ABC):
    """Rows of the data set to raw scores; differentiable in what learns."""

    network: TextNetwork

    @abstractmethod
    def pooled(self, rows: Rows) -> Tensor:
        """Return the pooled states of these rows, shape (B, H), fp32."""

    def __call__(self, rows: Rows) -> Tensor:
        """Return the raw scores of these rows, shape (B, K)."""
        return self.network.score(self.pooled(rows))


class WholeTrunk(Forward):
    """Runs every layer on every call."""

    def __init__(self, network: TextNetwork, tokens: Tokens) -> None:
        self.network = network
        self.tokens = tokens

    def pooled(self, rows: Rows) -> Tensor:
        """Return the pooled states of these rows."""
        layout = Layout.of(self.tokens.lengths[rows], self.network.pretrained, self.network.device)
        ids_T = ids_of(self.tokens, rows, self.network.device)
        return self.network.pooled(ids_T, layout)


class CachedPooled(Forward):
    """Only the head learns: the pooled states are kept, and no layer runs again."""

    def __init__(
        self, network: TextNetwork, tokens: Tokens, token_budget: int, progress: Progress
    ) -> None:
        self.network = network
        self.pooled_NH = pooled_states(network, tokens, token_budget, progress)

    def pooled(self, rows: Rows) -> Tensor:
        """Return the pooled states of these rows."""
        return self.pooled_NH[to_device(rows, self.network.device)]


class CachedPrefix(Forward):
    """The hidden states behind the frozen layers are kept; only the layers after them run."""

    def __init__(
        self,
        network: TextNetwork,
        tokens: Tokens,
        token_budget: int,
        progress: Progress,
        memory_budget: int,
    ) -> None:
        self.network = network
        self.lengths = tokens.lengths
        # In the dtype that the residual stream has there, whatever the weights' is.
        self.states = hidden_states(network, tokens, token_budget, progress, memory_budget)

    def pooled(self, rows: Rows) -> Tensor:
        """Return the pooled states of these rows."""
        network = self.network
        layout = Layout.of(self.lengths[rows], network.pretrained, network.device)
        # Those on disk come to the device only now.
        states = [self.states[row].to(network.device) for row in rows]
        return network.after(torch.cat(states), layout)


class OnTrial(Forward):
    """Runs rows as a fit would, and keeps nothing for others: what a fit costs is measured so.

    Parameters
    ----------
    network : TextNetwork
    tokens : Tokens
    kept : {"hidden", "pooled"} or None
        What a fit keeps of each text; None runs every layer on every call.
    """

    def __init__(self, network: TextNetwork, tokens: Tokens, kept: Kept | None) -> None:
        self.network = network
        self._tokens = tokens
        self._kept = kept
        self._compute = computation(network, kept) if kept else None
        self._whole = WholeTrunk(network, tokens)
        self._states: dict[int, Tensor] = {}

    @torch.no_grad()
    def run_frozen(self, rows: Rows) -> int:
        """Run the frozen layers over these rows; return the bytes that would be kept of them."""
        if self._compute is None:
            return 0
        network = self.network
        layout = Layout.of(self._tokens.lengths[rows], network.pretrained, network.device)
        states = self._compute(ids_of(self._tokens, rows, network.device), layout)
        for row, state in zip(rows.tolist(), states, strict=True):
            self._states[row] = state.clone()
        return sum(state.nbytes for state in states)

    def pooled(self, rows: Rows) -> Tensor:
        """Return the pooled states of these rows, through which the frozen layers have run."""
        if self._kept is None:
            return self._whole.pooled(rows)
        states = [self._states[row] for row in rows.tolist()]
        if self._kept == "pooled":
            return torch.stack(states)
        network = self.network
        layout = Layout.of(self._tokens.lengths[rows], network.pretrained, network.device)
        return network.after(torch.cat(states), layout)


class HeadAlone(Forward):
    """The head learns and nothing else does for now: what it is given is computed once.

    Parameters
    ----------
    forward : Forward
        Whose layers stand still for as long as this one is used.
    lengths : ndarray of shape (N,)
        Tokens of every row of the data set.
    token_budget : int
        Tokens to run at once.
    memory_budget : int
        Bytes that the pooled states may take; where they take more, the layers run every time.
    progress : callable
        Told (tokens done, tokens in all).
    """

    def __init__(
        self,
        forward: Forward,
        lengths: NDArray[np.int64],
        *,
        token_budget: int,
        memory_budget: int,
        progress: Progress,
    ) -> None:
        self.network = forward.network
        self._forward = forward
        self._pooled_NH: Tensor | None = None
        device = self.network.device
        shape = (len(lengths), self.network.head.in_features)
        if shape[0] * shape[1] * 4 > memory_budget:
            return
        # All rows in one order, whatever batches they will be in: a fit that goes on from a
        # checkpoint is given the same to the last bit.
        done, total = 0, int(lengths.sum())
        with torch.no_grad():
            self._pooled_NH = torch.empty(shape, device=device)
            budget = Budget(self.network, token_budget)
            for part, pooled_BH in budget.each(np.arange(len(lengths)), lengths, forward.pooled):
                self._pooled_NH[to_device(part, device)] = pooled_BH
                done += int(lengths[part].sum())
                progress(done, total)

    @torch.no_grad()
    def pooled(self, rows: Rows) -> Tensor:
        """Return the pooled states of these rows; no gradient reaches what they come from."""
        if self._pooled_NH is None:
            return self._forward.pooled(rows)
        return self._pooled_NH[to_device(rows, self.network.device)]


def choose_forward(
    network: TextNetwork,
    tokens: Tokens,
    *,
    token_budget: int,
    memory_budget: int,
    progress: Progress,
    disk_budget: int = 0,
) -> Forward:
    """Choose how the rows of a data set are run: with what is frozen computed once, if it can be.

    Parameters
    ----------
    network : TextNetwork
    tokens : Tokens
        Of all rows that will be asked for.
    token_budget : int
        Tokens to run at once.
    memory_budget : int
        Bytes of the device's memory that the kept states may take.
    progress : callable
        Told (tokens done, tokens in all) while the states are computed.
    disk_budget : int, default=0
        Bytes that may lie on disk beyond that. Where both are too little, every layer runs every
        time.

    Returns
    -------
    forward : Forward
    """
    kept = what_is_kept(network, tokens, memory_budget, disk_budget)
    if kept is None:
        return WholeTrunk(network, tokens)
    if kept == "pooled":
        return CachedPooled(network, tokens, token_budget, progress)
    try:
        return CachedPrefix(network, tokens, token_budget, progress, memory_budget)
    except StorageError as error:  # another program may fill the disk at any time
        # As text: a handler that keeps records would keep the error's states alive.
        _LOG.warning("%s All layers run instead, each time.", str(error))
        return WholeTrunk(network, tokens)


def what_is_kept(
    network: TextNetwork, tokens: Tokens, memory_budget: int, disk_budget: int = 0
) -> Kept | None:
    """Say what of each text is computed once; None where every layer runs every time.

    Parameters
    ----------
    network, tokens, memory_budget, disk_budget
        As in `choose_forward`.
    """
    hidden_size = network.trunk.config.hidden_size
    if network.spec.trainable_layers == 0:
        return "pooled" if len(tokens) * hidden_size * 4 <= memory_budget else None
    too_large = len(tokens.ids) * hidden_size * 4 > memory_budget + disk_budget
    if network.spec.n_frozen == 0 or too_large or not _can_be_cut(network, tokens):
        return None
    return "hidden"


def _can_be_cut(network: TextNetwork, tokens: Tokens) -> bool:
    if not network.pretrained.shared:
        return _is_exact(network, tokens)
    spec = network.spec
    key = (spec.n_layers, spec.n_frozen, network.cache_key)
    return _PROOFS.get_or_make(key, lambda: _is_exact(network, tokens), lambda proof: 1)


@torch.no_grad()
def _is_exact(network: TextNetwork, tokens: Tokens) -> bool:
    """Say whether both parts together equal the whole trunk, on two of these texts."""
    by_length = np.argsort(tokens.lengths, kind="stable")
    rows = np.unique(by_length[[0, len(by_length) // 2]])
    heads = [tokens.row(int(row))[:_PROBE_TOKENS] for row in rows]
    layout = Layout.of(np.array([len(ids) for ids in heads]), network.pretrained, network.device)
    ids_T = torch.from_numpy(np.concatenate(heads)).to(network.device)
    whole = network.pool(network.hidden(ids_T, layout), layout)
    try:
        cut = network.after(before(prefix_of(network), network, ids_T, layout), layout)
    except PROBE_ERRORS as error:  # an architecture that can't be entered in the middle
        _LOG.info("%s can't be cut: %r", type(network.trunk).__name__, error)
        return False
    # The same operations in the same precision: as good as equal, or not the same.
    return agree(cut, whole, 1e-5 if network.dtype == torch.float32 else 1e-2)


def forward_over(
    network: TextNetwork,
    tokens: TextIds,
    *,
    token_budget: int,
    memory_budget: int,
    progress: Progress,
    disk_budget: int = 0,
) -> Forward:
    """Choose how the rows of a data set are run, whether each is one text or several windows.

    Parameters
    ----------
    network : TextNetwork
    tokens : Tokens or Windows
        Of all rows that will be asked for.
    token_budget, memory_budget, progress, disk_budget
        As of `choose_forward`.

    Returns
    -------
    forward : Forward
    """
    forward = choose_forward(
        network,
        run_by_trunk(tokens),
        token_budget=token_budget,
        memory_budget=memory_budget,
        progress=progress,
        disk_budget=disk_budget,
    )
    if not isinstance(tokens, Windows):
        return forward
    if isinstance(forward, CachedPooled):  # nothing will change them any more
        forward.pooled_NH = _means(forward.pooled_NH, tokens.counts)
        return forward
    return Averaged(forward, tokens, token_budget)


class Averaged(Forward):
    """Runs the windows of texts, and averages the pooled states of each text's.

    Parameters
    ----------
    forward : Forward
        Whose rows are the windows.
    windows : Windows
    token_budget : int
        Tokens to run at once where no gradient is wanted, however long a text is. Where one is,
        the windows of all texts that are asked for have to be there together.
    """

    def __init__(self, forward: Forward, windows: Windows, token_budget: int) -> None:
        self.network = forward.network
        self._forward = forward
        self._windows = windows
        self._lengths = windows.each.lengths
        self._token_budget = token_budget

    def pooled(self, rows: Rows) -> Tensor:
        """Return the mean of the pooled states of each of these rows' windows."""
        windows = self._windows.of(rows)
        learning = torch.is_grad_enabled() and self.network.learnable
        states_WH = self._forward.pooled(windows) if learning else self._in_parts(windows)
        return _means(states_WH, self._windows.counts[rows])

    @torch.no_grad()
    def _in_parts(self, windows: Rows) -> Tensor:
        width = self.network.head.in_features
        states_WH = torch.empty((len(windows), width), device=self.network.device)
        budget = Budget(self.network, self._token_budget)
        places = np.arange(len(windows))
        for part, states in budget.each(
            places, self._lengths[windows], lambda part: self._forward.pooled(windows[part])
        ):
            states_WH[to_device(part, self.network.device)] = states
        return states_WH


def _means(states_WH: Tensor, counts: NDArray[np.int64]) -> Tensor:
    counts_B = to_device(counts, states_WH.device)
    return mean_of_each(states_WH, counts_B, counts.tolist())
