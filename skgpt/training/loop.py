"""The one training loop: batches through the network, gradients added up, a step, and again."""

import time
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from skgpt.exceptions import DivergedError
from skgpt.model.network import TextNetwork
from skgpt.model.prefix import Forward, Rows, forward_for_training
from skgpt.text.batches import micro_batches, optimiser_batches
from skgpt.text.tokens import Tokens
from skgpt.training.loss import Loss
from skgpt.training.optimise import Optimiser
from skgpt.training.plan import TrainingPlan
from skgpt.training.watch import EpochRecord, Monitor, StepDone


@torch.inference_mode(False)  # whatever the caller is in
@torch.enable_grad()
def fit_network(
    network: TextNetwork,
    tokens: Tokens,
    target: NDArray[np.int64],
    weight: NDArray[np.float64],
    *,
    loss: Loss,
    plan: TrainingPlan,
    monitors: Sequence[Monitor] = (),
) -> list[EpochRecord]:
    """Train a network in place.

    The loss of a batch is the weighted sum over its rows divided by the sum of their weights,
    however it is cut into micro-batches. A batch whose rows all weigh nothing counts as a step
    and changes nothing.

    Parameters
    ----------
    network : TextNetwork
    tokens : Tokens
        Of the rows to train on.
    target : ndarray of shape (N,)
    weight : ndarray of shape (N,)
    loss : Loss
    plan : TrainingPlan
    monitors : sequence of Monitor

    Returns
    -------
    history : list of EpochRecord

    Raises
    ------
    DivergedError
        If the loss, or a weight that learns, does not stay finite.
    """

    def told(done: int, total: int) -> None:
        for monitor in monitors:
            monitor.prefix(done, total)

    try:
        forward = forward_for_training(
            network,
            tokens,
            token_budget=plan.token_budget,
            memory_budget=plan.memory_budget,
            progress=told,
        )
        for monitor in monitors:
            monitor.start(plan)
        run = _Run(network, forward, tokens, target, weight, loss, plan, monitors)
        try:
            history = [run.epoch(i) for i in range(plan.n_epochs)]
            run.check_weights()  # the last step's harm shows in no loss any more
            return history
        finally:
            run.optimiser.release()
            forward.close()
    finally:
        for monitor in monitors:
            monitor.end()


class _Run:
    """A training run under way."""

    def __init__(
        self,
        network: TextNetwork,
        forward: Forward,
        tokens: Tokens,
        target: NDArray[np.int64],
        weight: NDArray[np.float64],
        loss: Loss,
        plan: TrainingPlan,
        monitors: Sequence[Monitor],
    ) -> None:
        self.forward = forward
        self.lengths = tokens.lengths
        self.weight = weight
        self.target_N = torch.from_numpy(np.ascontiguousarray(target)).to(network.device)
        self.device = network.device
        self.loss = loss
        self.plan = plan
        self.monitors = monitors
        self.optimiser = Optimiser(network, plan)
        self.n_steps = 0

    def epoch(self, epoch: int) -> EpochRecord:
        """Make one pass over the rows."""
        began = time.perf_counter()
        n_tokens, total, total_weight = 0, 0.0, 0.0
        rate = self.plan.learning_rate * self.optimiser.lr_factor
        plan = self.plan
        for rows in optimiser_batches(plan.n_rows, plan.batch_size, plan.seed, epoch):
            total += self._step(rows)
            total_weight += float(self.weight[rows].sum())
            self.n_steps += 1
            step_tokens = int(self.lengths[rows].sum())
            n_tokens += step_tokens
            mean = total / total_weight if total_weight else 0.0
            event = StepDone(self.n_steps, epoch + 1, mean, step_tokens)
            for monitor in self.monitors:
                monitor.step(event)
        if not np.isfinite(total):
            raise DivergedError(
                f"The training loss must stay finite. In epoch {epoch + 1} it came to {total}: "
                "lower `learning_rate` or `head_learning_rate`, set `max_grad_norm=1.0`, or use "
                "precision='fp32'. The estimator is as it was before this fit."
            )
        seconds = time.perf_counter() - began
        record: EpochRecord = {
            "epoch": epoch + 1,
            "loss": total / total_weight,
            "learning_rate": rate,
            "seconds": seconds,
            "tokens_per_second": n_tokens / seconds,
        }
        for monitor in self.monitors:
            monitor.epoch(record)
        return record

    def check_weights(self) -> None:
        """Raise if a weight ran off to infinity."""
        if not self.optimiser.is_finite():
            raise DivergedError(
                "What was learned must stay finite. It didn't in the last steps: lower "
                "`learning_rate` or `head_learning_rate`, or set `max_grad_norm=1.0`. The "
                "estimator is as it was before this fit."
            )

    def _step(self, rows: Rows) -> float:
        """Make one optimiser step; return the weighted sum of the rows' losses."""
        batch_weight = float(self.weight[rows].sum())
        if batch_weight == 0:
            self.optimiser.skip()
            return 0.0
        # Rows that weigh nothing add nothing to the sum, so they need not be run.
        rows = rows[self.weight[rows] > 0]
        means: list[Tensor] = []
        for part in micro_batches(rows, self.lengths, self.plan.token_budget):
            # Divided in fp64: weights may be so small or so large that fp32 has no word for them.
            share = (self.weight[part] / batch_weight).astype(np.float32)
            share_B = torch.from_numpy(share).to(self.device)
            part_loss = self.loss.total(self.forward(part), self.target_N[part], share_B)
            self.optimiser.backward(part_loss)
            means.append(part_loss.detach())
        self.optimiser.step()
        return sum(float(mean) for mean in means) * batch_weight
