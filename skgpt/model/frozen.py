"""Frozen layers: what they return for a text is computed once and kept for every later use.

Epochs, folds, trials, a refit and predict all ask for the same texts behind the same layers. The
states are kept per text, keyed by its token ids and everything upstream of them, in a store that
is shared by the process and forgets the least recently used. They are what the layers return to
within rounding: how texts share a batch may move the last digit.
"""

from collections.abc import Callable, Hashable, Iterator, Sequence
from functools import cache

import numpy as np
import torch
from torch import Tensor

from skgpt.caches import Store
from skgpt.model.blocks import Cut
from skgpt.model.device import prefix_budget, total_memory
from skgpt.model.layout import Layout, Rows, ids_of
from skgpt.model.network import TextNetwork, pad_id_of
from skgpt.text.batches import micro_batches
from skgpt.text.tokens import Tokens

Progress = Callable[[int, int], None]
Compute = Callable[[Tensor, Layout], Sequence[Tensor]]  # ids and layout to one tensor per text

# Their bytes are those of the shared tensors that they keep alive.
_PREFIXES: Store[Cut] = Store("prefixes", total_memory(torch.device("cpu")) // 4)


@cache
def _states(device: str) -> Store[Tensor]:
    """Return the store of the states that lie on a device."""
    # Half of what a single fit may hold: these outlive it.
    return Store(f"states on {device}", prefix_budget(torch.device(device)) // 2)


def hidden_states(
    network: TextNetwork, tokens: Tokens, token_budget: int, progress: Progress
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
    """
    cut = prefix_of(network)

    def compute(ids_T: Tensor, layout: Layout) -> Sequence[Tensor]:
        return before(cut, network, ids_T, layout).split(layout.lengths)

    where = ("hidden", network.spec.n_frozen)
    return _of_texts(network, where, tokens, compute, token_budget, progress)


def pooled_states(
    network: TextNetwork, tokens: Tokens, token_budget: int, progress: Progress
) -> Tensor:
    """Return the pooled states of a network none of whose layers learns, shape (N, H), fp32."""

    def compute(ids_T: Tensor, layout: Layout) -> Sequence[Tensor]:
        return network.pool(network.hidden(ids_T, layout), layout).unbind()

    where = ("pooled", network.spec.n_frozen, network.spec.pooling)
    return torch.stack(_of_texts(network, where, tokens, compute, token_budget, progress))


def prefix_of(network: TextNetwork) -> Cut:
    """Return a trunk of the frozen layers alone, which is the same for all networks like it."""
    source, n = network.source, network.spec.n_frozen

    def make() -> Cut:
        return Cut(source.copy_trunk(n, network.dtype, network.device), n)

    if not source.resident:
        return make()
    key = (source.identity, n, network.dtype, str(network.device))
    return _PREFIXES.get_or_make(key, make, _bytes_of)


def _bytes_of(cut: Cut) -> int:
    return sum(p.numel() * p.element_size() for p in cut.trunk.parameters())


def before(cut: Cut, network: TextNetwork, ids_T: Tensor, layout: Layout) -> Tensor:
    """Run the frozen layers: token ids to hidden states, shape (T, H)."""
    laid_out = layout.lay(ids_T, pad_id_of(network.source))
    return layout.flat(cut.take(input_ids=laid_out, **layout.inputs()))


@torch.no_grad()
def _of_texts(
    network: TextNetwork,
    where: tuple[Hashable, ...],
    tokens: Tokens,
    compute: Compute,
    token_budget: int,
    progress: Progress,
) -> list[Tensor]:
    """Return what is computed of each text, from the store where it is there."""
    ids = [tokens.row(i).tobytes() for i in range(len(tokens))]
    first = {text: row for row, text in reversed([*enumerate(ids)])}  # of each distinct text
    states: dict[bytes, Tensor] = {}
    upstream = (*where, network.source.identity, network.dtype)
    store = _states(str(network.device))
    if network.source.resident:
        found = store.find_many([(text, upstream) for text in first])
        states = {t: s for t, s in zip(first, found, strict=True) if s is not None}
    missing = np.array([row for text, row in first.items() if text not in states], dtype=np.int64)
    for part in _parts(network, missing, tokens, token_budget, progress):
        layout = Layout.of(tokens.lengths[part], network.source, network.device)
        computed = compute(ids_of(tokens, part, network.device), layout)
        # Copies: a slice would keep the whole batch alive for one text.
        states |= {ids[row]: own.clone() for row, own in zip(part, computed, strict=True)}
    if network.source.resident:
        new = {(ids[row], upstream): states[ids[row]] for row in missing}
        store.put_many(new, lambda state: state.numel() * state.element_size())
    return [states[text] for text in ids]


def _parts(
    network: TextNetwork, rows: Rows, tokens: Tokens, token_budget: int, progress: Progress
) -> Iterator[Rows]:
    done, total = 0, int(tokens.lengths[rows].sum())
    padded = not network.source.proof.packs
    for part in micro_batches(rows, tokens.lengths, token_budget, padded=padded):
        yield part
        done += int(tokens.lengths[part].sum())
        progress(done, total)
