"""How the rows of a data set become raw scores: through every layer, or only those that learn.

Freezing k of L layers alone saves a part of the backward pass; keeping what they return saves
their forward pass too. Whether a model can be cut there is proved on two short texts before it is
relied on, and where it can't the whole trunk runs, slower and no less right.
"""

import logging
from abc import ABC, abstractmethod

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from skgpt.caches import Store
from skgpt.exceptions import CacheError
from skgpt.model.blocks import PROBE_ERRORS, agree
from skgpt.model.device import to_device
from skgpt.model.frozen import (
    Kept,
    Progress,
    before,
    computation,
    hidden_states,
    pooled_states,
    prefix_of,
)
from skgpt.model.layout import Layout, Rows, ids_of
from skgpt.model.memory import Budget
from skgpt.model.network import TextNetwork
from skgpt.text.tokens import Tokens

_PROBE_TOKENS = 16
_LOG = logging.getLogger("skgpt")
_PROOFS: Store[bool] = Store("proofs", 1 << 20)


class Forward(ABC):
    """Rows of the data set to raw scores; differentiable in what learns."""

    network: TextNetwork

    @abstractmethod
    def pooled(self, rows: Rows) -> Tensor:
        """Return the pooled states of these rows, shape (B, H), fp32."""

    def own_tensors(self) -> list[Tensor]:
        """Return what it has on the device and shares with nobody, beside the network's."""
        return []

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
        layout = Layout.of(self.tokens.lengths[rows], self.network.source, self.network.device)
        ids_T = ids_of(self.tokens, rows, self.network.device)
        return self.network.pooled(ids_T, layout)


class CachedPooled(Forward):
    """Only the head learns: the pooled states are kept, and no layer runs again."""

    def __init__(
        self, network: TextNetwork, tokens: Tokens, token_budget: int, progress: Progress
    ) -> None:
        self.network = network
        self.pooled_NH = pooled_states(network, tokens, token_budget, progress)

    def own_tensors(self) -> list[Tensor]:
        """Return the pooled states, which are copies."""
        return [self.pooled_NH]

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
        network.get_ready()

    def pooled(self, rows: Rows) -> Tensor:
        """Return the pooled states of these rows."""
        network = self.network
        layout = Layout.of(self.lengths[rows], network.source, network.device)
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
        network.get_ready()

    @torch.no_grad()
    def run_frozen(self, rows: Rows) -> int:
        """Run the frozen layers over these rows; return the bytes that would be kept of them."""
        if self._compute is None:
            return 0
        network = self.network
        layout = Layout.of(self._tokens.lengths[rows], network.source, network.device)
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
        layout = Layout.of(self._tokens.lengths[rows], network.source, network.device)
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

    def own_tensors(self) -> list[Tensor]:
        """Return what is computed once, and what it was computed from."""
        pooled = [] if self._pooled_NH is None else [self._pooled_NH]
        return [*pooled, *self._forward.own_tensors()]

    @torch.no_grad()
    def pooled(self, rows: Rows) -> Tensor:
        """Return the pooled states of these rows; no gradient reaches what they come from."""
        if self._pooled_NH is None:
            with self.network.noise.off():  # as where they are computed once
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
    except CacheError as error:  # another program may fill the disk at any time
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
    if not network.source.resident:
        return _is_exact(network, tokens)
    spec = network.spec
    key = (spec.n_layers, spec.n_frozen, network.upstream)
    return _PROOFS.get_or_make(key, lambda: _is_exact(network, tokens), lambda proof: 1)


@torch.no_grad()
def _is_exact(network: TextNetwork, tokens: Tokens) -> bool:
    """Say whether both parts together equal the whole trunk, on two of these texts."""
    by_length = np.argsort(tokens.lengths, kind="stable")
    rows = np.unique(by_length[[0, len(by_length) // 2]])
    heads = [tokens.row(int(row))[:_PROBE_TOKENS] for row in rows]
    layout = Layout.of(np.array([len(ids) for ids in heads]), network.source, network.device)
    ids_T = torch.from_numpy(np.concatenate(heads)).to(network.device)
    whole = network.pool(network.hidden(ids_T, layout), layout)
    try:
        cut = network.after(before(prefix_of(network), network, ids_T, layout), layout)
    except PROBE_ERRORS as error:  # an architecture that can't be entered in the middle
        _LOG.info("%s can't be cut: %r", type(network.trunk).__name__, error)
        return False
    # The same operations in the same precision: as good as equal, or not the same.
    return agree(cut, whole, 1e-5 if network.dtype == torch.float32 else 1e-2)
