"""What training takes here and now: a step and a pass of the frozen layers, measured once.

Everything is counted per token of a micro-batch as the fit will have them, so that a fit's time is
a sum of products. What is measured on is thrown away, and no store keeps what was computed.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import numpy as np
import torch
from torch import Tensor

from skgpt.model.device import to_device
from skgpt.model.frozen import Kept
from skgpt.model.memory import Budget, needs_memory
from skgpt.model.network import TextNetwork
from skgpt.model.prefix import Forward, OnTrial
from skgpt.model.windows import Averaged
from skgpt.text.batches import Rows, optimiser_batches
from skgpt.text.windows import Windows, run_by_trunk
from skgpt.training.loss import Loss
from skgpt.training.optimise import Optimiser
from skgpt.training.plan import TrainingPlan
from skgpt.training.run_data import TrainingRows

# What is over sooner is measured several times: a clock and a scheduler tell little of 1 ms.
_LEAST_SECONDS = 0.1


@dataclass(frozen=True)
class Rates:
    """What was measured.

    Parameters
    ----------
    frozen : float
        Seconds per token through the layers that are computed once; 0.0 where none are.
    forward : float
        Seconds per token through all other layers, without a gradient.
    learning : float
        Seconds per token through them and back.
    update : float
        Seconds of an optimiser's update.
    head_learning, head_update : float, default=0.0
        The same where the head learns alone in front of the others.
    states : float, default=0.0
        Bytes that are kept of each token.
    activations : float, default=0.0
        Bytes per token that are held for the way back.
    """

    frozen: float
    forward: float
    learning: float
    update: float
    head_learning: float = 0.0
    head_update: float = 0.0
    states: float = 0.0
    activations: float = 0.0


@torch.inference_mode(False)  # whatever the caller is in
@torch.enable_grad()
@needs_memory
def measure(
    network: TextNetwork, rows: TrainingRows, kept: Kept | None, *, loss: Loss, plan: TrainingPlan
) -> Rates:
    """Measure what a training run is made of.

    Parameters
    ----------
    network : TextNetwork
        Of nobody's: it is trained by a few steps.
    rows : TrainingRows
    kept : {"hidden", "pooled"} or None
        What the run keeps of each text.
    loss : Loss
    plan : TrainingPlan

    Returns
    -------
    rates : Rates

    Raises
    ------
    NoMemoryError
        If the device can't hold one text at a time, or what learns.
    """
    trial = _Trial(network, rows, kept, loss, plan)
    try:
        return trial.rates()
    finally:
        trial.optimiser.release()


class _Trial:
    """Rows that stand for all, and what they are run through."""

    def __init__(
        self,
        network: TextNetwork,
        rows: TrainingRows,
        kept: Kept | None,
        loss: Loss,
        plan: TrainingPlan,
    ) -> None:
        self.network = network
        self.loss = loss
        self.plan = plan
        self.tokens = rows.tokens
        self.lengths = rows.tokens.lengths
        self.weight = rows.weight
        self.target_N = torch.from_numpy(np.ascontiguousarray(rows.target)).to(network.device)
        self.each = run_by_trunk(rows.tokens)
        self.on_trial = OnTrial(network, self.each, kept)
        self.forward = self._of_texts(self.on_trial)
        self.passing = Budget(network, plan.token_budget)
        self.stepping = Budget(network, plan.token_budget, learning=True)
        self.optimiser = Optimiser(network, plan)
        self._own = {_place(t) for t in [*network.parameters(), *network.buffers()]}
        self._held = 0.0
        batch = next(optimiser_batches(plan.n_rows, plan.batch_size, plan.seed, plan.first_epoch))
        # Parts are sorted by length and have as many tokens each, so one half of all tokens is in
        # texts longer than those of the middle part.
        self.of_pass = _middle(self.passing.parts(np.arange(len(self.lengths)), self.lengths))
        self.of_step = _middle(self.stepping.parts(rows.split.train[batch], self.lengths))

    def rates(self) -> Rates:
        """Measure everything, each after something smaller of the kind that warms it up."""
        self._run_frozen(self.on_trial, self.of_step)
        sizes: list[int] = []
        frozen = self._seconds(
            lambda: sizes.append(self._run_frozen(self.on_trial, self.of_pass)), self.passing
        )
        few = self.of_step[-max(1, len(self.of_step) // 8) :]  # the shortest
        self._score(few)
        forward = self._seconds(lambda: self._score(self.of_pass), self.passing)
        self._step(self.forward, few)
        self._held = 0.0  # few texts have more filler
        learning, update = self._measured_step(self.forward)
        held = self._held
        head_learning = head_update = 0.0
        if self.plan.head_first_epochs:
            pooled = OnTrial(self.network, self.each, "pooled")
            self._run_frozen(pooled, self.of_step)
            alone = self._of_texts(pooled)
            self._step(alone, few)
            head_learning, head_update = self._measured_step(alone)
        per_pass, per_step = self._n_tokens(self.of_pass), self._n_tokens(self.of_step)
        return Rates(
            frozen=frozen / per_pass if sizes[-1] else 0.0,
            forward=forward / per_pass,
            learning=learning / per_step,
            update=update,
            head_learning=head_learning / per_step,
            head_update=head_update,
            states=sizes[-1] / per_pass,
            activations=held,
        )

    def _of_texts(self, forward: OnTrial) -> Forward:
        """Return what runs texts by running their windows, where they are in windows."""
        if isinstance(self.tokens, Windows):
            return Averaged(forward, self.tokens, self.plan.token_budget)
        return forward

    def _n_tokens(self, rows: Rows) -> int:
        return int(self.lengths[rows].sum())

    def _run_frozen(self, forward: OnTrial, rows: Rows) -> int:
        """Run the frozen layers; return the bytes of what would be kept."""
        windows = self.tokens.of(rows) if isinstance(self.tokens, Windows) else rows
        parts = self.passing.each(windows, self.each.lengths, forward.run_frozen)
        return sum(size for _, size in parts)

    @torch.no_grad()
    def _score(self, rows: Rows) -> None:
        for _ in self.passing.each(rows, self.lengths, lambda part: self.forward(part).cpu()):
            pass

    def _step(self, forward: Forward, rows: Rows) -> tuple[float, float]:
        """Make an optimiser step; return the seconds of its gradient and of its update."""
        weight = max(float(self.weight[rows].sum()), np.finfo(np.float64).tiny)

        def learn_from(part: Rows) -> Tensor:
            noise = self.network.noise.at((self.plan.seed, 0), part, self.lengths[part])
            held = _Held(self._own)
            with noise, held:
                logits_BK = forward(part)
            self._held = max(self._held, held.n_bytes / self._n_tokens(part))
            share = to_device((self.weight[part] / weight).astype(np.float32), self.network.device)
            target = self.target_N[to_device(part, self.network.device)]
            loss = self.loss.total(logits_BK, target, share)
            self.optimiser.backward(loss)
            return loss.detach()

        began = self._now()
        shares = self.stepping.all_or_again(rows, self.lengths, learn_from, self.optimiser.forget)
        learned = self._now()
        self.optimiser.step(shares)
        return learned - began, self._now() - learned

    def _measured_step(self, forward: Forward) -> tuple[float, float]:
        """Return the seconds of a step's gradient and of its update."""
        done: list[tuple[float, float]] = []
        self._seconds(lambda: done.append(self._step(forward, self.of_step)), self.stepping)
        learning, update = zip(*done, strict=True)
        return median(learning), median(update)

    def _seconds(self, work: Callable[[], object], budget: Budget) -> float:
        """Return how long work takes, without what ran out of memory and was done again."""
        taken: list[float] = []
        while sum(taken) < _LEAST_SECONDS:
            n_tokens, began = budget.n_tokens, self._now()
            work()
            if budget.n_tokens == n_tokens:
                taken.append(self._now() - began)
        return median(taken)

    def _now(self) -> float:
        if self.network.device.type == "cuda":
            torch.cuda.synchronize(self.network.device)
        elif self.network.device.type == "mps":
            torch.mps.synchronize()
        return time.perf_counter()


class _Held(torch.autograd.graph.saved_tensors_hooks):
    """Counts the bytes that a graph built inside holds for the way back.

    Parameters
    ----------
    own : set of int
        Where memory begins that is there anyway, as that of weights.
    """

    def __init__(self, own: set[int]) -> None:
        super().__init__(self._note, lambda tensor: tensor)
        self.n_bytes = 0
        self._seen = set(own)

    def _note(self, tensor: Tensor) -> Tensor:
        if (at := _place(tensor)) not in self._seen:
            self._seen.add(at)
            self.n_bytes += tensor.untyped_storage().nbytes()
        return tensor


def _place(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _middle(parts: list[Rows]) -> Rows:
    return parts[len(parts) // 2]
