"""The one training loop: batches through the network, gradients added up, a step, and again."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from skgpt.exceptions import DivergedError
from skgpt.model.device import to_device
from skgpt.model.frozen import Progress
from skgpt.model.memory import Budget, needs_memory
from skgpt.model.network import TextNetwork
from skgpt.model.prefix import Forward, HeadAlone, choose_forward
from skgpt.text.batches import Rows, optimiser_batches
from skgpt.text.split import Split
from skgpt.text.tokens import Tokens
from skgpt.training.loss import Loss
from skgpt.training.moments import Moments
from skgpt.training.optimise import Optimiser
from skgpt.training.plan import TrainingPlan
from skgpt.training.skips import Looking, RunningLoss, Skips
from skgpt.training.stopping import Best, Watched
from skgpt.training.watch import EpochRecord, Monitor, StepDone

_CURE = (
    "lower `learning_rate` ({0}) or `head_learning_rate` ({1}), set `max_grad_norm=1.0`, or use "
    "precision='fp32'."
)


@dataclass(frozen=True)
class FitResult:
    """What came of a training run, beside the network.

    Parameters
    ----------
    history : list of EpochRecord
        One entry per finished epoch.
    validation_scores : list of float
        Of each finished epoch; empty where nothing is held out.
    best_iteration : int
        The epoch of the highest of them, from 1; 0 where there is none.
    moments : Moments or None
        The optimiser's memory, to go on from; None before the first update.
    interrupt : KeyboardInterrupt, DivergedError or None
        What ended the run early, to be raised once the estimator is fitted. After Ctrl-C the
        network is as the last optimiser step left it; where training diverged, as the best epoch.
    n_skipped : int
        Steps that changed nothing, since their loss or gradient was not finite.
    """

    history: list[EpochRecord]
    validation_scores: list[float]
    best_iteration: int
    moments: Moments | None
    interrupt: KeyboardInterrupt | DivergedError | None = None
    n_skipped: int = 0


@dataclass(frozen=True)
class TrainingRows:
    """Rows ready to train on: token ids, targets, weights, and which of them are held out.

    Parameters
    ----------
    tokens : Tokens
        Of all rows, held-out ones included, so that frozen layers run over all of them once.
    target : ndarray of shape (N,) or (N, K)
    weight : ndarray of shape (N,) or (N, K)
        Of the rows, or of their single outputs, in the loss.
    split : Split
    """

    tokens: Tokens
    target: NDArray[np.int64] | NDArray[np.float32]
    weight: NDArray[np.float64]
    split: Split


@torch.inference_mode(False)  # whatever the caller is in
@torch.enable_grad()
@needs_memory
def fit_network(
    network: TextNetwork,
    rows: TrainingRows,
    *,
    loss: Loss,
    plan: TrainingPlan,
    watched: Watched | None = None,
    moments: Moments | None = None,
    monitors: Sequence[Monitor] = (),
) -> FitResult:
    """Train a network in place.

    The loss of a batch is the weighted sum over its rows divided by the sum of their weights,
    however it is cut into micro-batches. A batch whose rows all weigh nothing counts as a step
    and changes nothing; so does one whose loss or gradient is not finite. Held-out rows are only
    ever scored.

    Parameters
    ----------
    network : TextNetwork
    rows : TrainingRows
    loss : Loss
    plan : TrainingPlan
    watched : Watched, default=None
        What the held-out rows are for; None watches their loss and stops nothing.
    moments : Moments, default=None
        Of an earlier run, to go on from.
    monitors : sequence of Monitor

    Returns
    -------
    result : FitResult

    Raises
    ------
    DivergedError
        If several steps in a row, or all, are skipped since their loss or gradient is not finite,
        or if a weight that learns does not stay so. Where the weights of a best epoch are kept,
        it is part of the result.
    NoMemoryError
        If the device can't hold one text at a time, or what learns.
    KeyboardInterrupt
        Before the first optimiser step; later it is part of the result.
    """

    def told(done: int, total: int) -> None:
        for monitor in monitors:
            monitor.prefix(done, total)

    try:
        forward = choose_forward(
            network,
            rows.tokens,
            token_budget=plan.token_budget,
            memory_budget=plan.memory_budget,
            disk_budget=plan.disk_budget,
            progress=told,
        )
        watched = watched or Watched()
        run = _Run(network, forward, rows, loss, plan, watched, moments, monitors, told)
        try:
            return run.whole()
        finally:
            run.optimiser.release()
    finally:
        for monitor in monitors:
            monitor.end()


class _Run:
    """A training run under way."""

    def __init__(
        self,
        network: TextNetwork,
        forward: Forward,
        rows: TrainingRows,
        loss: Loss,
        plan: TrainingPlan,
        watched: Watched,
        moments: Moments | None,
        monitors: Sequence[Monitor],
        told: Progress,
    ) -> None:
        self.network = network
        self.every_layer = self.forward = forward
        self.told = told
        self.split = rows.split
        self.lengths = rows.tokens.lengths
        self.weight = rows.weight
        self.row_weight = rows.weight if rows.weight.ndim == 1 else rows.weight.sum(axis=1)
        self.target_N = torch.from_numpy(np.ascontiguousarray(rows.target)).to(network.device)
        self.device = network.device
        self.loss = loss
        self.plan = plan
        self.watched = watched
        self.monitors = monitors
        self.budget = Budget(network, plan.token_budget, learning=True)
        self.looking = Looking.at(network.device)
        self.optimiser = Optimiser(network, plan, moments, self.looking)
        self.best = Best(network, watched.rule)
        self.history: list[EpochRecord] = []
        self.n_steps = 0
        self.skips = Skips()
        self.running = RunningLoss(self.skips, self.looking)

    def whole(self) -> FitResult:
        """Run every epoch, or as many as the rule, a monitor, Ctrl-C or the numbers allow."""
        interrupt: KeyboardInterrupt | DivergedError | None = None
        try:
            self._choose_layers(0)
            for monitor in self.monitors:
                monitor.start(self.plan)
            for epoch in range(self.plan.n_epochs):
                if self._epoch_is_last(epoch):
                    break
            self._check_updates()
            self.best.put_back()
            self._check_weights()  # the last step's harm shows in no loss any more
        except KeyboardInterrupt as error:
            if not self._is_any_good():
                raise
            interrupt = error
        except DivergedError as error:
            interrupt = self._diverged(error)
        self.running.read()
        return FitResult(
            self.history,
            self.best.scores,
            self.best.iteration,
            self.optimiser.moments(),
            interrupt,
            self.skips.total,
        )

    def _is_any_good(self) -> bool:
        return self.optimiser.n_updates > 0 and self.optimiser.is_finite()

    def _diverged(self, error: DivergedError) -> DivergedError:
        """Put the best weights back if there are any; return the error with what is left."""
        if self.best.is_kept:
            self.best.put_back()
            if self._is_any_good():
                return DivergedError(
                    f"{error} The estimator is fitted with the weights of epoch "
                    f"{self.best.iteration}, the best so far."
                )
        raise DivergedError(f"{error} The estimator is as it was before this fit.") from error

    def _epoch_is_last(self, epoch: int) -> bool:
        for monitor in self.monitors:
            monitor.epoch_begin(epoch + 1)
        record = self._pass(epoch)
        over = len(self.split.held_out) > 0 and self._validate(record)
        self.history.append(record)  # whole: an interrupt between leaves no half of it
        asked = [monitor.epoch(record) for monitor in self.monitors]  # every one is to be told
        return over or any(asked)

    def _pass(self, epoch: int) -> EpochRecord:
        """Make one pass over the rows."""
        head_alone = self._choose_layers(epoch)
        began = time.perf_counter()
        n_tokens, self.running = 0, RunningLoss(self.skips, self.looking)
        rate = 0.0 if head_alone else self.plan.learning_rate * self.optimiser.lr_factor
        plan, train = self.plan, self.split.train
        order = optimiser_batches(plan.n_rows, plan.batch_size, plan.seed, plan.first_epoch + epoch)
        for places in order:
            rows = train[places]
            self._step(rows)
            self.n_steps += 1
            self._check_steps()
            step_tokens = int(self.lengths[rows].sum())
            n_tokens += step_tokens
            event = StepDone(self.n_steps, epoch + 1, step_tokens, self.running.mean)
            for monitor in self.monitors:
                monitor.step(event)
        loss = self.running.mean()
        self._check_steps()
        seconds = time.perf_counter() - began
        return {
            "epoch": epoch + 1,
            "loss": loss,
            "learning_rate": rate,
            "seconds": seconds,
            "tokens_per_second": n_tokens / seconds,
            "skipped_steps": self.running.n_skipped,
        }

    def _choose_layers(self, epoch: int) -> bool:
        """Have the epoch's rows run through what learns in it; say whether that is the head alone.

        Nothing but its weights gets a gradient then, so AdamW leaves everything else alone.
        """
        plan, alone = self.plan, epoch < self.plan.head_first_epochs
        if not alone:
            self.forward = self.every_layer
        elif self.forward is self.every_layer:
            self.forward = HeadAlone(
                self.every_layer,
                self.lengths,
                token_budget=plan.token_budget,
                memory_budget=plan.memory_budget,
                progress=self.told,
            )
        return alone

    def _check_steps(self) -> None:
        """Raise if too many steps in a row were skipped."""
        if self.skips.too_many:
            raise self._of_steps(f"They didn't in {self.skips.in_a_row} steps in a row")

    def _check_updates(self) -> None:
        """Raise if the run is over and no step of it was any good."""
        if self.skips.n_steps and not self.optimiser.n_updates:
            raise self._of_steps("They did in no step")

    def _of_steps(self, what: str) -> DivergedError:
        return DivergedError(
            f"The training loss and its gradient must be finite. {what} up to step "
            f"{self.n_steps}: {self._cure()}"
        )

    def _check_weights(self) -> None:
        """Raise if a weight ran off to infinity."""
        if not self.optimiser.is_finite():
            raise DivergedError(
                f"What was learned must stay finite. It didn't in the last steps: {self._cure()}"
            )

    def _cure(self) -> str:
        return _CURE.format(self.plan.learning_rate, self.plan.head_learning_rate)

    def _step(self, rows: Rows) -> None:
        """Make one optimiser step."""
        batch_weight = float(self.row_weight[rows].sum())
        if batch_weight == 0:
            self.optimiser.skip()
            return
        # Rows that weigh nothing add nothing to the sum, so they need not be run.
        rows = rows[self.row_weight[rows] > 0]

        def learn_from(part: Rows) -> Tensor:
            with self.network.noise.at(self._draws(), part, self.lengths[part]):
                logits_BK = self.forward(part)
            share = self._share_of_loss(logits_BK, part, batch_weight)
            self.optimiser.backward(share)
            return share.detach()

        shares = self.budget.all_or_again(rows, self.lengths, learn_from, self.optimiser.forget)
        skipped = self.optimiser.step(shares)
        self.running.add(shares, batch_weight, skipped)

    def _draws(self) -> tuple[int, ...]:
        """Return what dropout is drawn from: the seed, and where in all passes the step is."""
        return (self.plan.seed, self.plan.first_epoch * self.plan.steps_per_epoch + self.n_steps)

    def _share_of_loss(self, logits_BK: Tensor, part: Rows, weight: float) -> Tensor:
        """Return what some rows add to a mean over rows of this weight in all."""
        # Divided in fp64: weights may be so small or so large that fp32 has no word for them.
        share = to_device((self.weight[part] / weight).astype(np.float32), self.device)
        target = self.target_N[to_device(part, self.device)]
        return self.loss.total(logits_BK, target, share)

    @torch.no_grad()
    def _validate(self, record: EpochRecord) -> bool:
        """Score the held-out rows as they stand; say whether to stop for it."""
        rows = self.split.held_out
        weight = float(self.row_weight[rows].sum())
        place_of = np.empty(len(self.lengths), dtype=np.int64)
        place_of[rows] = np.arange(len(rows))
        logits_NK, loss = None, 0.0
        budget = Budget(self.network, self.plan.token_budget)
        for part, logits_BK in budget.each(rows, self.lengths, self.forward):
            loss += float(self._share_of_loss(logits_BK, part, weight))
            if logits_NK is None:
                logits_NK = np.empty((len(rows), logits_BK.shape[1]), dtype=np.float32)
            logits_NK[place_of[part]] = logits_BK.cpu().numpy()
        assert logits_NK is not None
        if not (np.isfinite(loss) and np.isfinite(logits_NK).all()):
            raise DivergedError(
                f"The raw scores must stay finite. Those of the held-out rows didn't in epoch "
                f"{record['epoch']}: {self._cure()}"
            )
        judge = self.watched.judge
        score = -loss if judge is None else float(judge(logits_NK))
        record["validation_loss"], record["validation_score"] = loss, score
        counts = record["epoch"] > self.plan.head_first_epochs
        return self.best.is_over(score, counts=counts)
