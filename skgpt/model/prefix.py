"""Frozen layers computed once per text: their hidden states, kept for every epoch of a fit.

Freezing k of L layers alone saves a part of the backward pass; keeping what they return saves
their forward pass too. Whether a model can be cut there is proved on two short texts before it is
relied on, and where it can't the whole trunk runs, slower and no less right.
"""

import logging
from collections.abc import Callable, Iterator
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from skgpt.model.blocks import PROBE_ERRORS, Cut, agree
from skgpt.model.network import TextNetwork, pad_id_of, pad_rows
from skgpt.text.batches import micro_batches
from skgpt.text.tokens import Tokens

Rows = NDArray[np.int64]
Progress = Callable[[int, int], None]

_PROBE_TOKENS = 16
_LOG = logging.getLogger("skgpt")


class Forward(Protocol):
    """Rows of the data set to raw scores, shape (B, K); differentiable in what learns."""

    def __call__(self, rows: Rows) -> Tensor:
        """Return the raw scores of these rows."""
        ...

    def close(self) -> None:
        """The fit is over: leave the network as it was found."""
        ...


class WholeTrunk:
    """Runs every layer on every call."""

    def __init__(self, network: TextNetwork, tokens: Tokens) -> None:
        self.network = network
        self.tokens = tokens
        self.pad_id = pad_id_of(network.source)

    def __call__(self, rows: Rows) -> Tensor:
        """Return the raw scores of these rows."""
        ids_BT, lengths_B = pad_rows(self.tokens, rows, self.pad_id, self.network.device)
        logits_BK: Tensor = self.network(ids_BT, lengths_B)
        return logits_BK

    def close(self) -> None:
        """Nothing was changed."""


class CachedPooled:
    """Only the head learns: the pooled states are kept, and no layer runs again."""

    def __init__(
        self, network: TextNetwork, tokens: Tokens, token_budget: int, progress: Progress
    ) -> None:
        self.network = network
        self.pooled_NH = torch.empty(
            len(tokens), network.source.width, dtype=torch.float32, device=network.device
        )
        pad_id = pad_id_of(network.source)
        with torch.no_grad():
            for part in _parts(tokens, token_budget, progress):
                ids_BT, lengths_B = pad_rows(tokens, part, pad_id, network.device)
                pooled_BH = network.pool(network.hidden(ids_BT, lengths_B), lengths_B)
                self.pooled_NH[torch.from_numpy(part).to(network.device)] = pooled_BH

    def __call__(self, rows: Rows) -> Tensor:
        """Return the raw scores of these rows."""
        return self.network.score(self.pooled_NH[torch.from_numpy(rows).to(self.network.device)])

    def close(self) -> None:
        """Nothing was changed."""


class CachedPrefix:
    """The hidden states behind the frozen layers are kept; only the layers after them run."""

    def __init__(
        self,
        cut: "PrefixCut",
        tokens: Tokens,
        token_budget: int,
        progress: Progress,
    ) -> None:
        self.cut = cut
        self.tokens = tokens
        network = cut.network
        # In the dtype that the residual stream has there, whatever the weights' is.
        self.hidden_TH = torch.empty(
            len(tokens.ids),
            cut.hidden_size,
            dtype=cut.hidden_dtype,
            device=network.device,
        )
        pad_id = pad_id_of(network.source)
        with torch.no_grad():
            for part in _parts(tokens, token_budget, progress):
                hidden_BTH = cut.before(*pad_rows(tokens, part, pad_id, network.device))
                for i, row in enumerate(part):
                    start, end = tokens.offsets[row], tokens.offsets[row + 1]
                    self.hidden_TH[start:end] = hidden_BTH[i, : end - start]

    def __call__(self, rows: Rows) -> Tensor:
        """Return the raw scores of these rows."""
        lengths = self.tokens.lengths[rows]
        shape = (len(rows), int(lengths.max()), self.hidden_TH.shape[1])
        hidden_BTH = self.hidden_TH.new_zeros(shape)
        for i, row in enumerate(rows):
            start, end = self.tokens.offsets[row], self.tokens.offsets[row + 1]
            hidden_BTH[i, : end - start] = self.hidden_TH[start:end]
        lengths_B = torch.from_numpy(lengths).to(hidden_BTH.device)
        return self.cut.network.score(self.cut.after(hidden_BTH, lengths_B))

    def close(self) -> None:
        """Unwrap the network's blocks."""
        self.cut.close()


class PrefixCut:
    """A network cut behind its frozen layers: what runs once, and what runs in every epoch.

    Parameters
    ----------
    network : TextNetwork
        With at least one frozen layer and one that learns.
    """

    hidden_dtype: torch.dtype
    hidden_size: int

    def __init__(self, network: TextNetwork) -> None:
        self.network = network
        n_frozen = network.spec.n_frozen
        self._after = Cut(network.trunk, n_frozen)
        trunk = network.source.copy_trunk(n_frozen, network.dtype, network.device)
        self._before = Cut(trunk, n_frozen)

    def close(self) -> None:
        """Unwrap the network's blocks."""
        self._before.close()
        self._after.close()

    def before(self, ids_BT: Tensor, lengths_B: Tensor) -> Tensor:
        """Return the hidden states behind the frozen layers, shape (B, T, H)."""
        inputs = self.network.trunk_inputs(lengths_B, ids_BT.shape[1])
        return self._before.take(input_ids=ids_BT, **inputs)

    def after(self, hidden_BTH: Tensor, lengths_B: Tensor) -> Tensor:
        """Return the pooled states of hidden states behind the frozen layers, shape (B, H)."""
        inputs = self.network.trunk_inputs(lengths_B, hidden_BTH.shape[1])
        return self.network.pool(self._after.put(hidden_BTH, **inputs), lengths_B)

    @torch.no_grad()
    def is_exact(self, tokens: Tokens) -> bool:
        """Say whether both parts together equal the whole trunk, on two of these texts."""
        by_length = np.argsort(tokens.lengths, kind="stable")
        rows = np.unique(by_length[[0, len(by_length) // 2]])
        heads = [tokens.row(int(row))[:_PROBE_TOKENS] for row in rows]
        offsets = np.concatenate([[0], np.cumsum([len(ids) for ids in heads])])
        probe = Tokens(np.concatenate(heads), offsets)
        ids_BT, lengths_B = pad_rows(
            probe, np.arange(len(rows)), pad_id_of(self.network.source), self.network.device
        )
        whole = self.network.pool(self.network.hidden(ids_BT, lengths_B), lengths_B)
        try:
            hidden_BTH = self.before(ids_BT, lengths_B)
            self.hidden_dtype, self.hidden_size = hidden_BTH.dtype, hidden_BTH.shape[-1]
            cut = self.after(hidden_BTH, lengths_B)
        except PROBE_ERRORS as error:  # an architecture that can't be entered in the middle
            _LOG.info("%s can't be cut: %r", type(self.network.trunk).__name__, error)
            return False
        # The same operations in the same precision: as good as equal, or not the same.
        return agree(cut, whole, 1e-5 if self.network.dtype == torch.float32 else 1e-2)


def _parts(tokens: Tokens, token_budget: int, progress: Progress) -> Iterator[Rows]:
    rows = np.arange(len(tokens), dtype=np.int64)
    done, total = 0, len(tokens.ids)
    for part in micro_batches(rows, tokens.lengths, token_budget):
        yield part
        done += int(tokens.lengths[part].sum())
        progress(done, total)


def forward_for_training(
    network: TextNetwork,
    tokens: Tokens,
    *,
    token_budget: int,
    memory_budget: int,
    progress: Progress,
) -> Forward:
    """Choose how the rows of a fit are run: with what is frozen computed once, if it can be.

    Parameters
    ----------
    network : TextNetwork
    tokens : Tokens
        Of all rows that the fit will ask for.
    token_budget : int
        Padded tokens to run at once.
    memory_budget : int
        Bytes that the kept states may take; above that every layer runs every time.
    progress : callable
        Told (tokens done, tokens in all) while the states are computed.

    Returns
    -------
    forward : Forward
    """
    hidden_size = network.trunk.config.hidden_size
    if network.spec.trainable_layers == 0:
        if len(tokens) * hidden_size * 4 <= memory_budget:
            return CachedPooled(network, tokens, token_budget, progress)
        return WholeTrunk(network, tokens)
    if network.spec.n_frozen == 0 or len(tokens.ids) * hidden_size * 4 > memory_budget:
        return WholeTrunk(network, tokens)
    cut = PrefixCut(network)
    if not cut.is_exact(tokens):
        cut.close()
        return WholeTrunk(network, tokens)
    return CachedPrefix(cut, tokens, token_budget, progress)
