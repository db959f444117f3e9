"""Texts in windows: the mean of a text's pooled windows is what the head is given.

A window is run as a text of its own, so whatever holds for texts (packing, frozen states that are
kept, proofs) holds for windows, and nothing below knows of them.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from skgpt.model.device import to_device
from skgpt.model.frozen import Progress
from skgpt.model.layout import Rows
from skgpt.model.memory import Budget
from skgpt.model.network import TextNetwork, mean_of_each
from skgpt.model.prefix import CachedPooled, Forward, choose_forward
from skgpt.text.windows import TextIds, Windows, run_by_trunk


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

    def own_tensors(self) -> list[Tensor]:
        """Return those of what runs the windows."""
        return self._forward.own_tensors()

    def pooled(self, rows: Rows) -> Tensor:
        """Return the mean of the pooled states of each of these rows' windows."""
        windows = self._windows.of(rows)
        learning = torch.is_grad_enabled() and self.network.masters
        states_WH = self._states(windows) if learning else self._states_in_parts(windows)
        return _means(states_WH, self._windows.counts[rows])

    def _states(self, windows: Rows) -> Tensor:
        with self.network.noise.over(windows, self._lengths[windows]):
            return self._forward.pooled(windows)

    @torch.no_grad()
    def _states_in_parts(self, windows: Rows) -> Tensor:
        width = self.network.head.in_features
        states_WH = torch.empty((len(windows), width), device=self.network.device)
        budget = Budget(self.network, self._token_budget)
        places = np.arange(len(windows))
        for part, states in budget.each(
            places, self._lengths[windows], lambda part: self._states(windows[part])
        ):
            states_WH[to_device(part, self.network.device)] = states
        return states_WH


def _means(states_WH: Tensor, counts: NDArray[np.int64]) -> Tensor:
    counts_B = to_device(counts, states_WH.device)
    return mean_of_each(states_WH, counts_B, counts.tolist())
