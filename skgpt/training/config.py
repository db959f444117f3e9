"""Everything that a training run needs, decided before it starts."""

import math
from dataclasses import dataclass
from typing import Literal

from skgpt.network.network import NetworkSpec

Schedule = Literal["linear", "cosine", "constant"]

# "auto" epochs: small data needs more passes, not a higher learning rate; and in any case enough
# for this many optimiser steps. docs/decisions/recipe.md has the figures.
_MIN_EPOCHS = 3
_MAX_EPOCHS = 24
_MIN_STEPS = 100
_PASSES = 40

# "auto" rates, by what learns. Weights in front of which nothing moves stand twice as much as all,
# but not an encoder's; adapters start from nothing. docs/decisions/recipe.md has the figures.
_RATE_OF_LAST_LAYERS = 2e-4
_RATE_OF_ALL = 1e-4
_RATE_OF_ADAPTERS = 1e-3
_RATE_OF_HEAD = 1e-3
# A head that starts from words says much already, and higher rates wash that out.
_RATE_BEHIND_PROMPT = 3e-5
_RATE_OF_ADAPTERS_BEHIND_PROMPT = 3e-4
_RATE_OF_WORDS = 3e-5


@dataclass(frozen=True)
class TrainingConfig:
    """A training run, decided; the seed is its only randomness.

    `n_epochs` counts all passes; in the first `head_first_epochs` of them the head alone learns.
    The learning rates are the peaks of the schedule. `token_budget` is per micro-batch; the
    memory and disk budgets are bytes for the states behind frozen layers. `first_epoch` is the
    number of the first pass, which its order is drawn from: a fit that goes on where others
    stopped doesn't repeat their orders. With `solves_head` the one step is to the head that is
    best. No step begins after the `deadline`, in seconds of `time.monotonic`, but the first.
    """

    n_rows: int
    n_epochs: int
    batch_size: int
    learning_rate: float
    head_learning_rate: float
    weight_decay: float
    warmup_ratio: float
    schedule: Schedule
    max_grad_norm: float | None
    token_budget: int
    memory_budget: int
    seed: int
    first_epoch: int = 0
    disk_budget: int = 0
    head_first_epochs: int = 0
    solves_head: bool = False
    deadline: float | None = None

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps in one pass."""
        return math.ceil(self.n_rows / self.batch_size)

    @property
    def n_steps(self) -> int:
        """Optimizer steps in all."""
        return self.n_epochs * self.steps_per_epoch

    def lr_factor(self, step: int) -> float:
        """Return what the peak learning rates are multiplied with at a step; 0 is the first.

        While the head learns alone the factor is 1; then it rises over the warm-up to 1 and falls
        towards 0.
        """
        step -= self.head_first_epochs * self.steps_per_epoch
        if step < 0:
            return 1.0
        n_steps = self.n_steps - self.head_first_epochs * self.steps_per_epoch
        warmup = int(self.warmup_ratio * n_steps)
        if step < warmup:
            return (step + 1) / (warmup + 1)
        if self.schedule == "constant":
            return 1.0
        done = (step - warmup) / max(1, n_steps - warmup)
        if self.schedule == "linear":
            return 1.0 - done
        return 0.5 * (1.0 + math.cos(math.pi * done))


def resolve_rate(learning_rate: float | str, spec: NetworkSpec, *, causal: bool) -> float:
    """Turn the `learning_rate` parameter into the trunk's peak rate, by what of it learns."""
    if learning_rate != "auto":
        return float(learning_rate)
    if spec.lora is not None:
        return _RATE_OF_ADAPTERS_BEHIND_PROMPT if spec.prompted else _RATE_OF_ADAPTERS
    if spec.prompted:
        return _RATE_BEHIND_PROMPT
    gentle = spec.trainable_layers == "all" or not causal
    return _RATE_OF_ALL if gentle else _RATE_OF_LAST_LAYERS


def resolve_head_rate(head_learning_rate: float | str, spec: NetworkSpec) -> float:
    """Turn the `head_learning_rate` parameter into the head's peak rate."""
    if head_learning_rate != "auto":
        return float(head_learning_rate)
    return _RATE_OF_WORDS if spec.prompted else _RATE_OF_HEAD


def resolve_epochs(max_epochs: int | str, n_rows: int, batch_size: int) -> int:
    """Turn the `max_epochs` parameter into a number of passes.

    "auto" is 40 over the cube root of `n_rows`, or as many as make 100 optimiser steps if that is
    more; at least 3 and at most 24.
    """
    if max_epochs != "auto":
        return int(max_epochs)
    steps_per_epoch = math.ceil(n_rows / batch_size)
    wanted = max(round(_PASSES / n_rows ** (1 / 3)), math.ceil(_MIN_STEPS / steps_per_epoch))
    return min(_MAX_EPOCHS, max(_MIN_EPOCHS, wanted))
