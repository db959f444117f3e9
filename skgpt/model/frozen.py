"""Frozen layers: what they return for a text is computed once and kept for every later use.

Epochs, folds, trials, a refit and predict all ask for the same texts behind the same layers. The
states are kept per text, keyed by its token ids and everything upstream of them, in a store that
is shared by the process and forgets the least recently used. They are what the layers return to
within rounding: how texts share a batch may move the last digit.
"""

from collections.abc import Callable, Hashable, Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from skgpt.caches import Store
from skgpt.model.blocks import Cut
from skgpt.model.device import prefix_budget, total_memory
from skgpt.model.layout import Layout, Rows, ids_of
from skgpt.model.memory import Budget
from skgpt.model.network import TextNetwork, pad_id_of
from skgpt.model.spill import Spill, disk_room
from skgpt.text.tokens import Tokens

Progress = Callable[[int, int], None]
Compute = Callable[[Tensor, Layout], Sequence[Tensor]]  # ids and layout to one tensor per text
Kept = Literal["hidden", "pooled"]  # what is kept of each text

# Their bytes are those of the shared tensors that they keep alive.
_PREFIXES: Store[Cut] = Store("prefixes", total_memory(torch.device("cpu")) // 4)


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
    CacheError
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
    cut = prefix_of(network)
    return lambda ids_T, layout: before(cut, network, ids_T, layout).split(layout.lengths)


def prefix_of(network: TextNetwork) -> Cut:
    """Return a trunk of the frozen layers alone, which is the same for all networks like it."""
    n = network.spec.n_frozen

    def make() -> Cut:
        return Cut(network.base_trunk(n), n)

    if not network.source.resident:
        return make()
    return _PREFIXES.get_or_make((n, network.upstream), make, _bytes_of)


def _bytes_of(cut: Cut) -> int:
    return sum(p.numel() * p.element_size() for p in cut.trunk.parameters())


def before(cut: Cut, network: TextNetwork, ids_T: Tensor, layout: Layout) -> Tensor:
    """Run the frozen layers: token ids to hidden states, shape (T, H)."""
    laid_out = layout.lay(ids_T, pad_id_of(network.source))
    return layout.flat(cut.take(input_ids=laid_out, **layout.inputs()))


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
        self.upstream = (*where, *network.upstream)
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
        if not self.network.source.resident:
            return
        in_memory = _states(str(self.network.device))
        for store in (in_memory, _states_on_disk()):
            texts = [text for text in texts if text not in self.found]
            states = store.find_many([(text, self.upstream) for text in texts])
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
            layout = Layout.of(lengths[part], self.network.source, device)
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
        if self.network.source.resident:
            new = {(text, self.upstream): state for text, state in states.items()}
            store.put_many(new, lambda state: state.nbytes)


def _copy(state: Tensor) -> Tensor:
    return state.clone()  # a slice would keep the whole batch alive for one text
