"""What a training run is given, and what comes of it.

Errors of training that ran off to infinity: what didn't stay finite, and what to do about it.

Token ids to raw scores, without gradients.

The one training loop: batches through the network, gradients added up, a step, and again.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from skgpt.data.batching import Rows, optimiser_batches
from skgpt.data.splits import Split
from skgpt.data.tokenization import TextIds
from skgpt.device import to_device
from skgpt.exceptions import DivergedError
from skgpt.network.features import Forward, HeadAlone, Progress, forward_over
from skgpt.network.microbatches import Budget, needs_memory
from skgpt.network.network import TextNetwork
from skgpt.training.callbacks import EpochRecord, Monitor, PredictBar, StepDone
from skgpt.training.checkpoint import Checkpoint, State
from skgpt.training.config import TrainingPlan
from skgpt.training.early_stopping import Best, Watched
from skgpt.training.loss import Loss
from skgpt.training.optimizer import Looking, Moments, Optimiser, RunningLoss, Skips
from skgpt.training.signals import Terminations


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
    tokens : Tokens or Windows
        Of all rows, held-out ones included, so that frozen layers run over all of them once.
    target : ndarray of shape (N,) or (N, K)
    weight : ndarray of shape (N,) or (N, K)
        Of the rows, or of their single outputs, in the loss.
    split : Split
    """

    tokens: TextIds
    target: NDArray[np.int64] | NDArray[np.float32]
    weight: NDArray[np.float64]
    split: Split


def of_steps(plan: TrainingPlan, in_a_row: int, step: int) -> DivergedError:
    """Return the error for steps that were skipped.

    Parameters
    ----------
    plan : TrainingPlan
    in_a_row : int
        How many, one after the other; 0 for all that there were.
    step : int
        The last of them.
    """
    which = f"They didn't in {in_a_row} steps in a row" if in_a_row else "They did in no step"
    what = "The training loss and its gradient must stay finite"
    return _error(plan, f"{what}. {which}, up to step {step}")


def of_weights(plan: TrainingPlan) -> DivergedError:
    """Return the error for weights, which the last steps' losses may not have shown."""
    return _error(plan, "What was learned must stay finite. It didn't in the last steps")


def of_scores(plan: TrainingPlan, epoch: int) -> DivergedError:
    """Return the error for the raw scores, or the loss, of held-out rows after an epoch."""
    return _error(
        plan,
        f"The raw scores must stay finite. Those of the held-out rows didn't in epoch {epoch}",
    )


def _error(plan: TrainingPlan, what: str) -> DivergedError:
    return DivergedError(
        f"{what}: lower `learning_rate` ({plan.learning_rate}) or `head_learning_rate` "
        f"({plan.head_learning_rate}), set `max_grad_norm=1.0`, or use precision='fp32'."
    )


@needs_memory
def raw_scores(
    network: TextNetwork,
    tokens: TextIds,
    token_budget: int,
    memory_budget: int,
    bar: PredictBar | None = None,
) -> NDArray[np.float32]:
    """Return the raw scores of every text, shape (N, K).

    A text that is there several times runs once, and layers that are frozen don't run again for
    texts that they have seen in this process.

    Parameters
    ----------
    network : TextNetwork
    tokens : Tokens or Windows
    token_budget : int
        Tokens to run at once.
    memory_budget : int
        Bytes that the states behind frozen layers may take; above that all layers run.
    bar : PredictBar, default=None
        Shows how far it is; None shows nothing.

    Returns
    -------
    logits_NK : ndarray of shape (N, K), float32
    """
    texts, first = tokens.distinct()
    logits_NK = np.empty((len(tokens), network.spec.n_outputs), dtype=np.float32)
    rows = np.array(sorted(first.values()), dtype=np.int64)
    with torch.no_grad(), bar or PredictBar(verbose=0) as shown:
        forward = forward_over(
            network,
            tokens,
            token_budget=token_budget,
            memory_budget=memory_budget,
            progress=shown.frozen,
        )
        lengths = tokens.lengths
        done, total = 0, int(lengths[rows].sum())
        budget = Budget(network, token_budget)
        for part, logits_BK in budget.each(rows, lengths, lambda part: forward(part).cpu()):
            logits_NK[part] = logits_BK.numpy()
            done += int(lengths[part].sum())
            shown.scored(done, total)
    return logits_NK[[first[text] for text in texts]]


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
    checkpoint: Checkpoint | None = None,
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
    checkpoint : Checkpoint, default=None
        What is found there is gone on from, and the state is written there at the end of every
        epoch, every few minutes, and before SIGTERM ends the process. None writes nothing.

    Returns
    -------
    result : FitResult

    Raises
    ------
    DivergedError
        If several steps in a row, or all, are skipped since their loss or gradient is not finite,
        or if a weight that learns does not stay so. Where the weights of a best epoch are kept,
        it is part of the result.
    StorageError
        If a checkpoint can't be written.
    NoMemoryError
        If the device can't hold one text at a time, or what learns.
    KeyboardInterrupt
        Before the first optimiser step; later it is part of the result.
    """

    def told(done: int, total: int) -> None:
        for monitor in monitors:
            monitor.prefix(done, total)

    try:
        forward = forward_over(
            network,
            rows.tokens,
            token_budget=plan.token_budget,
            memory_budget=plan.memory_budget,
            disk_budget=plan.disk_budget,
            progress=told,
        )
        watched = watched or Watched()
        run = _Run(network, forward, rows, loss, plan, watched, moments, monitors, told, checkpoint)
        try:
            with run.terminations:
                return run.whole()
        finally:
            run.optimiser.release()
    finally:
        for monitor in monitors:
            monitor.end()


@dataclass
class _Place:
    """Where a run is: epochs done, and what there is of the next one so far."""

    epoch: int = 0
    batch: int = 0
    n_tokens: int = 0
    seconds: float = 0.0
    learning_rate: float = 0.0


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
        checkpoint: Checkpoint | None,
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
        self.checkpoint = checkpoint
        self.terminations = Terminations(wanted=checkpoint is not None)
        self.budget = Budget(network, plan.token_budget, learning=True)
        self.looking = Looking.at(network.device)
        self.optimiser = Optimiser(network, plan, moments, self.looking)
        self.best = Best(network, watched.rule)
        self.history: list[EpochRecord] = []
        self.n_steps = 0
        self.place = _Place()
        self.skips = Skips()
        self.running = RunningLoss(self.skips, self.looking)

    def whole(self) -> FitResult:
        """Run every epoch, or as many as the rule, a monitor, Ctrl-C or the numbers allow."""
        interrupt: KeyboardInterrupt | DivergedError | None = None
        try:
            if self.checkpoint is not None and self.checkpoint.found is not None:
                self._go_on_from(self.checkpoint.found)
            self._choose_layers(self.place.epoch)
            for monitor in self.monitors:
                monitor.start(self.plan, self.n_steps, self.history)
            for epoch in range(self.place.epoch, self.plan.n_epochs):
                if self._epoch_is_last(epoch):
                    break
                self.place, self.running = _Place(epoch + 1), RunningLoss(self.skips, self.looking)
                if epoch + 1 < self.plan.n_epochs:
                    self._save()
            self.best.put_back()
            self._check_end()
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

    def _state(self) -> State:
        self.running.read()
        values = {
            "n_steps": self.n_steps,
            "history": self.history,
            "place": vars(self.place),
            "tokens_at_once": self.budget.n_tokens,
        }
        return State.of(
            run=State(values=values),
            running=self.running.state(),
            skips=self.skips.state(),
            best=self.best.state(),
            optimiser=self.optimiser.state(),
        )

    def _go_on_from(self, state: State) -> None:
        values = state.part("run").values
        self.n_steps, self.history = values["n_steps"], values["history"]
        self.place = _Place(**values["place"])
        # Micro-batches as before, where memory had run out: sums are rounded as they are cut.
        self.budget.n_tokens = min(self.budget.n_tokens, values["tokens_at_once"])
        for name in ("running", "skips", "best", "optimiser"):
            getattr(self, name).go_on_from(state.part(name))

    def _save(self) -> None:
        if self.checkpoint is not None:
            self.checkpoint.write(self._state())

    def _heed(self) -> None:
        """Write a checkpoint if it is time to, or if SIGTERM is waiting for it."""
        if self.terminations.asked:
            self._save()
            self.terminations.hand_on()
        elif self.checkpoint is not None and self.checkpoint.is_due():
            self._save()

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
        place, plan, train = self.place, self.plan, self.split.train
        head_alone = self._choose_layers(epoch)
        began = time.perf_counter() - place.seconds
        if place.batch == 0:
            rate = 0.0 if head_alone else plan.learning_rate * self.optimiser.lr_factor
            place.learning_rate = rate
        order = optimiser_batches(plan.n_rows, plan.batch_size, plan.seed, plan.first_epoch + epoch)
        for places in islice(order, place.batch, None):
            rows = train[places]
            self._step(rows)
            self.n_steps += 1
            self._check_steps()
            step_tokens = int(self.lengths[rows].sum())
            place.batch += 1
            place.n_tokens += step_tokens
            place.seconds = time.perf_counter() - began
            event = StepDone(self.n_steps, epoch + 1, step_tokens, self.running.mean)
            for monitor in self.monitors:
                monitor.step(event)
            self._heed()
        loss = self.running.mean()
        self._check_steps()
        seconds = time.perf_counter() - began
        return {
            "epoch": epoch + 1,
            "loss": loss,
            "learning_rate": place.learning_rate,
            "seconds": seconds,
            "tokens_per_second": place.n_tokens / seconds,
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
        if self.skips.too_many:
            raise of_steps(self.plan, self.skips.in_a_row, self.n_steps)

    def _check_end(self) -> None:
        """Raise if no step was any good, or if what was learned ran off to infinity."""
        if self.skips.n_steps and not self.optimiser.n_updates:
            raise of_steps(self.plan, 0, self.n_steps)
        if not self.optimiser.is_finite():  # the last step's harm shows in no loss any more
            raise of_weights(self.plan)

    def _step(self, rows: Rows) -> None:
        """Make one optimiser step."""
        batch_weight = float(self.row_weight[rows].sum())
        if batch_weight == 0:
            self.optimiser.skip()
            return
        # Rows that weigh nothing add nothing to the sum, so they need not be run.
        rows = rows[self.row_weight[rows] > 0]

        def learn_from(part: Rows) -> Tensor:
            share = self._share_of_loss(self.forward(part), part, batch_weight)
            self.optimiser.backward(share)
            return share.detach()

        # Among all passes' steps, so that partial_fit draws as fit does.
        step = self.plan.first_epoch * self.plan.steps_per_epoch + self.n_steps
        with self.network.dropout.seeded(self.plan.seed, step):
            shares = self.budget.all_or_again(rows, self.lengths, learn_from, self.optimiser.forget)
        skipped = self.optimiser.step(shares)
        self.running.add(shares, batch_weight, skipped)

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
            self._heed()
        assert logits_NK is not None
        if not (np.isfinite(loss) and np.isfinite(logits_NK).all()):
            raise of_scores(self.plan, record["epoch"])
        judge = self.watched.judge
        score = -loss if judge is None else float(judge(logits_NK))
        record["validation_loss"], record["validation_score"] = loss, score
        counts = record["epoch"] > self.plan.head_first_epochs
        return self.best.is_over(score, counts=counts)
