"""Steps whose loss or gradient is not finite: who finds out when, and how many are too many."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from skgpt.training.run_state import State

# One bad batch, or a passing spike, is got over; weights that make five of them don't come back.
_MOST_IN_A_ROW = 5
_STEPS_UNREAD = 64
_NUMBERS_UNREAD = 512


@dataclass(frozen=True)
class Looking:
    """When the host looks at what a step has come to.

    Where a look means to wait for the device, the device itself skips the step, and the host reads
    of many steps at a time.

    Parameters
    ----------
    at_once : bool
        After each step.
    """

    at_once: bool

    @classmethod
    def at(cls, device: torch.device) -> "Looking":
        """Return how to look on a device: later only on CUDA, whose AdamW can skip by itself."""
        return cls(at_once=device.type != "cuda")

    def is_due(self, n_steps: int, n_numbers: int) -> bool:
        """Say whether to read, with as many steps and numbers not read yet."""
        return self.at_once or n_steps >= _STEPS_UNREAD or n_numbers >= _NUMBERS_UNREAD


class Skips:
    """Counts skipped steps over a whole run.

    Attributes
    ----------
    n_steps : int
        Those that were noted, skipped or not.
    total : int
        Skipped ones.
    in_a_row : int
        Up to the last step that was noted, or that made them too many.
    """

    def __init__(self) -> None:
        self.n_steps = 0
        self.total = 0
        self.in_a_row = 0

    def note(self, skipped: bool) -> None:
        """Count a step; they come in order."""
        self.n_steps += 1
        self.total += skipped
        if not self.too_many:  # which a later step that was good would hide
            self.in_a_row = self.in_a_row + 1 if skipped else 0

    def state(self) -> State:
        """Return what to go on from."""
        return State(values=dict(vars(self)))

    def go_on_from(self, state: State) -> None:
        """Take over what `state` returned."""
        vars(self).update(state.values)

    @property
    def too_many(self) -> bool:
        """Whether there ever were so many in a row that the run is lost."""
        return self.in_a_row >= _MOST_IN_A_ROW


def not_finite(numbers: Sequence[Tensor]) -> Tensor:
    """Return 1.0 if one of some scalars is not finite, else 0.0: a scalar of their device."""
    return (~torch.isfinite(torch.stack(list(numbers))).all()).float()


class RunningLoss:
    """The mean of the loss over an epoch so far, without the steps that were skipped.

    To read it after each step, the host would wait for the device instead of preparing the next.

    Parameters
    ----------
    skips : Skips
        Told of every step, when it is read.
    looking : Looking
    """

    def __init__(self, skips: Skips, looking: Looking) -> None:
        self.skips = skips
        self.looking = looking
        self.n_skipped = 0
        self._total = 0.0
        self._weight = 0.0
        self._waiting: list[tuple[list[Tensor], float]] = []
        self._n_numbers = 0

    def add(self, shares: Sequence[Tensor], weight: float, skipped: Tensor) -> None:
        """Add a step.

        Parameters
        ----------
        shares : sequence of Tensor
            Of its mean loss, scalars.
        weight : float
            Of its rows.
        skipped : Tensor
            Scalar; 1.0 if it was skipped, else 0.0.
        """
        self._waiting.append(([skipped, *shares], weight))
        self._n_numbers += 1 + len(shares)
        if self.looking.is_due(len(self._waiting), self._n_numbers):
            self.read()

    def read(self) -> None:
        """Read what came of the steps since the last time."""
        if not self._waiting:
            return
        values = torch.stack([t for tensors, _ in self._waiting for t in tensors]).tolist()
        waiting, self._waiting, self._n_numbers = self._waiting, [], 0
        place = 0
        for tensors, weight in waiting:
            skipped, *shares = values[place : place + len(tensors)]
            place += len(tensors)
            self.skips.note(bool(skipped))
            self.n_skipped += bool(skipped)
            if not skipped:
                self._total += sum(shares) * weight
                self._weight += weight

    def mean(self) -> float:
        """Return the weighted mean over all rows so far.

        It is 0 where they weigh nothing, and NaN where every step was skipped.
        """
        self.read()
        if self._weight:
            return self._total / self._weight
        return float("nan") if self.n_skipped else 0.0

    def state(self) -> State:
        """Return what to go on from."""
        self.read()
        values = {"n_skipped": self.n_skipped, "total": self._total, "weight": self._weight}
        return State(values=values)

    def go_on_from(self, state: State) -> None:
        """Take over what `state` returned."""
        values = state.values
        self.n_skipped, self._total = values["n_skipped"], values["total"]
        self._weight = values["weight"]
