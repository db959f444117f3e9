"""Held-out rows: how they are scored, when a fit stops for it, and the best weights so far."""

import signal
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from skgpt.network.network import TextNetwork
from skgpt.tensor_files import State
from skgpt.training.signals import deferred

# Raw scores of the held-out rows, shape (n_held_out, n_outputs), to a score to maximise.
ValidationScorer = Callable[[NDArray[np.float32]], float]


@dataclass(frozen=True)
class StoppingRule:
    """A fit is over after `n_iter_no_change` epochs without a rise of the score by `tol`."""

    n_iter_no_change: int
    tol: float


@dataclass(frozen=True)
class Validation:
    """What the held-out rows are for; without a scorer they are scored by minus their loss."""

    scorer: ValidationScorer | None = None
    rule: StoppingRule | None = None  # None stops nothing


@dataclass
class EarlyStopping:
    """The scores of the epochs so far and, under a rule, the weights of the best one."""

    network: TextNetwork
    rule: StoppingRule | None
    scores: list[float] = field(default_factory=list)
    best_epoch: int = 0  # from 1; 0 before the first
    _to_beat: float = -np.inf
    _n_without: int = 0
    _weights: dict[str, Tensor] = field(default_factory=dict)

    def update(self, score: float, *, counts: bool = True) -> bool:
        """Note the score of an epoch, keep its weights if it is the best; say whether to stop.

        An epoch that doesn't count stops nothing, and is none of those without an improvement. A
        score that is not a number is no improvement.
        """
        self.scores.append(score)
        is_first = self.best_epoch == 0 and not np.isnan(score)
        if is_first or score > self.scores[self.best_epoch - 1]:
            self.best_epoch = len(self.scores)
            if self.rule is not None:
                self._keep_weights()
        if self.rule is None:
            return False
        # As in scikit-learn's MLPClassifier: a rise of less than tol is the best so far,
        # but doesn't reset the count.
        rises = score >= self._to_beat + self.rule.tol
        self._n_without = 0 if rises or not counts else self._n_without + 1
        self._to_beat = float(np.fmax(self._to_beat, score))
        return counts and self._n_without >= self.rule.n_iter_no_change

    @torch.no_grad()
    def _keep_weights(self) -> None:
        for name, tensor in self.network.learned.items():
            if name in self._weights:
                self._weights[name].copy_(tensor)
            else:
                self._weights[name] = tensor.detach().clone()

    @torch.no_grad()
    def restore_best(self) -> bool:
        """Give the network the weights of the best epoch; say whether they were kept."""
        if not self._weights:
            return False
        with deferred(signal.SIGINT):
            for name, tensor in self.network.learned.items():
                tensor.copy_(self._weights[name])
            self.network.refresh()
        return True

    def state(self) -> State:
        """Return what to go on from."""
        values = {
            "scores": self.scores,
            "best_epoch": self.best_epoch,
            "to_beat": float(self._to_beat),
            "n_without": self._n_without,
        }
        return State(self._weights, values)

    def load_state(self, state: State) -> None:
        """Go on from what `state` returned."""
        values, device = state.values, self.network.device
        self.scores, self.best_epoch = values["scores"], values["best_epoch"]
        self._to_beat, self._n_without = values["to_beat"], values["n_without"]
        self._weights = {k: t.to(device, copy=True) for k, t in state.tensors.items()}
