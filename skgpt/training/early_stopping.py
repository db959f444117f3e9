"""Held-out rows: what is watched on them, when a fit stops for it, and the best weights so far."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from skgpt.exceptions import InvalidTextError
from skgpt.network.network import TextNetwork
from skgpt.training.checkpoint import State
from skgpt.training.signals import uninterrupted

# Raw scores of the held-out rows, shape (n_held_out, n_outputs), to a score; higher is better.
Judge = Callable[[NDArray[np.float32]], float]


@dataclass(frozen=True)
class StoppingRule:
    """When a fit is over before its last epoch.

    Parameters
    ----------
    n_iter_no_change : int
        Epochs in a row without an improvement.
    tol : float
        What the score must rise by to be an improvement.
    """

    n_iter_no_change: int
    tol: float


@dataclass(frozen=True)
class Watched:
    """What is watched on held-out rows.

    Parameters
    ----------
    judge : callable or None
        Raw scores of the held-out rows to a score, higher is better. None watches minus the
        validation loss.
    rule : StoppingRule or None
        None scores every epoch and stops nothing.
    """

    judge: Judge | None = None
    rule: StoppingRule | None = None


@dataclass
class Best:
    """The scores of the epochs so far, and the weights of the best one.

    Parameters
    ----------
    network : TextNetwork
    rule : StoppingRule or None
    """

    network: TextNetwork
    rule: StoppingRule | None
    scores: list[float] = field(default_factory=list)
    iteration: int = 0
    _to_beat: float = -np.inf
    _without: int = 0
    _weights: dict[str, Tensor] = field(default_factory=dict)

    def is_over(self, score: float, *, counts: bool = True) -> bool:
        """Note the score of an epoch, keep its weights if it is the best; say whether to stop.

        An epoch that doesn't count stops nothing, and is none of those without an improvement.
        """
        self.scores.append(score)
        if np.isnan(score):
            raise InvalidTextError(
                f"`scoring` must give a number on the held-out rows. It gave {score} in epoch "
                f"{len(self.scores)}: a metric that needs every class may find too few rows there; "
                "raise `validation_fraction`, pass X_val and y_val, or choose another `scoring`."
            )
        if self.iteration == 0 or score > self.scores[self.iteration - 1]:
            self.iteration = len(self.scores)
            if self.rule is not None:
                self._keep()
        if self.rule is None:
            return False
        # As in scikit-learn's MLPClassifier: a rise of less than tol is kept, but buys no time.
        self._without = 0 if score >= self._to_beat + self.rule.tol else self._without + 1
        self._to_beat = max(self._to_beat, score)
        if not counts:
            self._without = 0
            return False
        return self._without >= self.rule.n_iter_no_change

    @property
    def is_kept(self) -> bool:
        """Whether there are weights to put back."""
        return bool(self._weights)

    @torch.no_grad()
    def _keep(self) -> None:
        learned = {**self.network.learnable, "": self.network.head.weight}
        for name, tensor in learned.items():
            if name in self._weights:
                self._weights[name].copy_(tensor)
            else:
                self._weights[name] = tensor.detach().clone()

    @torch.no_grad()
    def put_back(self) -> None:
        """Give the network the weights of the best epoch, if they were kept."""
        if not self._weights:
            return
        with uninterrupted():
            for name, tensor in {**self.network.learnable, "": self.network.head.weight}.items():
                tensor.copy_(self._weights[name])
            self.network.refresh()

    def state(self) -> State:
        """Return what to go on from."""
        values = {
            "scores": self.scores,
            "iteration": self.iteration,
            "to_beat": float(self._to_beat),
            "without": self._without,
        }
        return State(self._weights, values)

    def go_on_from(self, state: State) -> None:
        """Take over what `state` returned."""
        values, device = state.values, self.network.device
        self.scores, self.iteration = values["scores"], values["iteration"]
        self._to_beat, self._without = values["to_beat"], values["without"]
        self._weights = {k: t.to(device, copy=True) for k, t in state.tensors.items()}
