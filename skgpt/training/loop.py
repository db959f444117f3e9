"""The training loop: epochs of optimizer steps, held-out rows scored after each, raw scores."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from types import TracebackType

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from skgpt.data.batching import Rows, optimiser_batches
from skgpt.data.splits import Split
from skgpt.data.tokenization import TextIds
from skgpt.device import to_device
from skgpt.exceptions import DivergedError
from skgpt.network.features import TextFeatures
from skgpt.network.microbatches import MicroBatcher, explain_no_memory
from skgpt.network.network import TextNetwork
from skgpt.training.callbacks import EpochRecord, PredictBar, StepDone, TrainingCallback
from skgpt.training.checkpoint import Checkpoint, State
from skgpt.training.config import TrainingConfig
from skgpt.training.early_stopping import EarlyStopping, Validation
from skgpt.training.loss import Loss
from skgpt.training.optimizer import Moments, NonFiniteSteps, Optimizer, RunningLoss
from skgpt.training.signals import DeferredSigterm, defer_sigterm


@dataclass(frozen=True)
class TrainingRows:
    """Rows ready to train on: tokens, targets, weights in the loss, and which are held out.

    Held-out rows are among them, so that frozen layers run over all rows once. Targets and weights
    have shape (N,) or (N, K).
    """

    tokens: TextIds
    target: NDArray[np.int64] | NDArray[np.float32]
    weight: NDArray[np.float64]
    split: Split


@dataclass(frozen=True)
class FitResult:
    """What came of a training run, beside the network.

    `moments` are None before the first update. `interrupt` is what ended the run early, to be
    raised once the estimator is fitted: after Ctrl-C the network is as the last step left it,
    where training diverged as the best epoch.
    """

    history: list[EpochRecord]
    validation_scores: list[float]
    best_iteration: int  # the epoch of the highest of them, from 1; 0 where there is none
    moments: Moments | None
    interrupt: KeyboardInterrupt | DivergedError | None = None
    n_skipped: int = 0  # steps whose loss or gradient was not finite


@torch.inference_mode(False)  # whatever the caller is in
@torch.enable_grad()
@explain_no_memory()
def train(
    network: TextNetwork,
    rows: TrainingRows,
    *,
    loss: Loss,
    config: TrainingConfig,
    validation: Validation | None = None,
    moments: Moments | None = None,
    callbacks: Sequence[TrainingCallback] = (),
    checkpoint: Checkpoint | None = None,
) -> FitResult:
    """Train a network in place; held-out rows are only ever scored.

    It goes on from `moments` of an earlier run and from the state that `checkpoint` found, and
    writes states there after epochs, every few minutes, and before SIGTERM ends the process.

    Raises DivergedError if several steps in a row, or all, are skipped since their loss or
    gradient is not finite, or a weight does not stay so; StorageError if a checkpoint can't be
    written; NoMemoryError if the device can't hold one text at a time, or what learns;
    KeyboardInterrupt before the first step. Later interrupts are part of the result, and so is a
    divergence where the weights of a best epoch are kept.
    """

    def on_progress(done: int, total: int) -> None:
        for callback in callbacks:
            callback.on_progress(done, total)

    try:
        features = TextFeatures(
            network,
            rows.tokens,
            token_budget=config.token_budget,
            memory_budget=config.memory_budget,
            disk_budget=config.disk_budget,
            progress=on_progress,
        )
        run = TrainingRun(features, rows, loss, config, validation or Validation(), moments)
        with run, defer_sigterm(checkpoint is not None) as sigterm:
            run.start(checkpoint)
            for callback in callbacks:
                callback.on_train_begin(config, run.n_steps, run.history)
            while not run.is_over:
                # One pass over the training rows.
                for callback in callbacks:
                    callback.on_epoch_begin(run.epoch + 1)
                for batch in run.batches():
                    train_step(run, batch)
                    done = run.end_step(batch)
                    for callback in callbacks:
                        callback.on_step(done)
                    run.save_if_due(checkpoint, sigterm)
                record = run.epoch_record()
                # Score the held-out rows, stop or keep the best weights, tell the callbacks.
                if len(rows.split.held_out):
                    run.is_over = evaluate(run, record, checkpoint, sigterm)
                run.history.append(record)  # whole: an interrupt leaves no half of it
                stops = [callback.on_epoch(record) for callback in callbacks]
                run.end_epoch(stop=any(stops))
                if not run.is_over:
                    run.save(checkpoint)
            run.early_stopping.restore_best()
            run.check_learned()
        return run.result()
    finally:
        for callback in callbacks:
            callback.on_train_end()


def train_step(run: "TrainingRun", rows: Rows) -> None:
    """Make one optimizer step: the gradient of the batch's weighted mean loss, then AdamW.

    The loss is the weighted sum over the rows divided by the sum of their weights, however the
    batch is cut into micro-batches. A batch that weighs nothing counts and changes nothing.
    """
    network, optimizer = run.network, run.optimizer
    batch_weight = float(run.row_weight[rows].sum())
    if batch_weight == 0:
        optimizer.skip_step()
        return
    rows = rows[run.row_weight[rows] > 0]  # the others would add nothing to the sum
    losses: list[Tensor] = []
    with network.dropout.seeded(run.config.seed, run.step_of_all_passes):
        for micro_batch in run.batcher.accumulate(rows, run.lengths):
            if micro_batch.starts_over:  # also after memory ran out
                optimizer.zero_grad()
                losses = []
            with micro_batch as part:
                logits_BK = network.score(run.features.pooled(part))
                loss = run.share_of_loss(logits_BK, part, batch_weight)
                optimizer.backward(loss)
                losses.append(loss.detach())
                del logits_BK, loss  # or they would be there beside the next ones
    skipped = optimizer.step(losses)
    run.running_loss.add(losses, batch_weight, skipped)


@torch.no_grad()
def evaluate(
    run: "TrainingRun",
    record: EpochRecord,
    checkpoint: Checkpoint | None = None,
    sigterm: DeferredSigterm | None = None,
) -> bool:
    """Score the held-out rows as they stand, into the record; say whether to stop for it."""
    rows = run.rows.split.held_out
    weight = float(run.row_weight[rows].sum())
    place_of = np.empty(len(run.lengths), dtype=np.int64)
    place_of[rows] = np.arange(len(rows))
    logits_NK = np.empty((len(rows), run.network.spec.n_outputs), dtype=np.float32)
    loss = 0.0
    batcher = MicroBatcher(run.network, run.config.token_budget)
    for micro_batch in batcher.map(rows, run.lengths):
        with micro_batch as part:
            logits_BK = run.network.score(run.features.pooled(part))
            part_loss = float(run.share_of_loss(logits_BK, part, weight))
            logits_NK[place_of[part]] = logits_BK.cpu().numpy()
        if not micro_batch.failed:
            loss += part_loss
            run.save_if_due(checkpoint, sigterm)
    if not (np.isfinite(loss) and np.isfinite(logits_NK).all()):
        raise diverged(
            run.config,
            "The raw scores must stay finite. Those of the held-out rows didn't in epoch "
            f"{record['epoch']}",
        )
    scorer = run.validation.scorer
    score = -loss if scorer is None else float(scorer(logits_NK))
    record["validation_loss"], record["validation_score"] = loss, score
    counts = record["epoch"] > run.config.head_first_epochs
    return run.early_stopping.update(score, counts=counts)


@explain_no_memory()
def raw_scores(
    network: TextNetwork,
    tokens: TextIds,
    token_budget: int,
    memory_budget: int,
    bar: PredictBar | None = None,
) -> NDArray[np.float32]:
    """Return the raw scores of every text, shape (N, K).

    A text that is there several times runs once, and frozen layers don't run again for texts that
    they have seen in this process, unless their states would take more than `memory_budget` bytes.
    """
    texts, first = tokens.distinct()
    rows = np.array(sorted(first.values()), dtype=np.int64)
    logits_NK = np.empty((len(tokens), network.spec.n_outputs), dtype=np.float32)
    with torch.no_grad(), bar or PredictBar(verbose=0) as shown:
        features = TextFeatures(
            network,
            tokens,
            token_budget=token_budget,
            memory_budget=memory_budget,
            progress=shown.frozen,
        )
        done, total = 0, int(features.lengths[rows].sum())
        for micro_batch in MicroBatcher(network, token_budget).map(rows, features.lengths):
            with micro_batch as part:
                logits_NK[part] = network.score(features.pooled(part)).cpu().numpy()
                done += int(features.lengths[part].sum())
                shown.scored(done, total)
    return logits_NK[[first[text] for text in texts]]


@dataclass
class _EpochProgress:
    """How far a run is: whole epochs, and what there is of the next one so far."""

    epoch: int = 0
    batch: int = 0
    n_tokens: int = 0
    seconds: float = 0.0
    learning_rate: float = 0.0


class TrainingRun:
    """The state of one training run; a context manager that decides what an interrupt leaves."""

    def __init__(
        self,
        features: TextFeatures,
        rows: TrainingRows,
        loss: Loss,
        config: TrainingConfig,
        validation: Validation,
        moments: Moments | None = None,
    ) -> None:
        self.network = features.network
        self.features = features
        self.rows = rows
        self.lengths = features.lengths
        self.row_weight = rows.weight if rows.weight.ndim == 1 else rows.weight.sum(axis=1)
        target = torch.from_numpy(np.ascontiguousarray(rows.target))
        self.target_N = target.to(self.network.device)
        self.loss = loss
        self.config = config
        self.validation = validation
        self.batcher = MicroBatcher(self.network, config.token_budget, learning=True)
        self.optimizer = Optimizer(self.network, config, moments)
        self.early_stopping = EarlyStopping(self.network, validation.rule)
        self.history: list[EpochRecord] = []
        self.n_steps = 0
        self.non_finite = NonFiniteSteps()
        self.interrupt: KeyboardInterrupt | DivergedError | None = None
        self._begin_epoch(0)

    def _begin_epoch(self, epoch: int) -> None:
        self.progress = _EpochProgress(epoch)
        self.is_over = epoch >= self.config.n_epochs
        at_once = self.optimizer.looks_at_once
        self.running_loss = RunningLoss(self.non_finite, at_once=at_once)

    @property
    def epoch(self) -> int:
        """Whole epochs so far."""
        return self.progress.epoch

    @property
    def step_of_all_passes(self) -> int:
        """The step among those of all passes, so that partial_fit draws dropout as fit does."""
        return self.config.first_epoch * self.config.steps_per_epoch + self.n_steps

    def batches(self) -> Iterator[Rows]:
        """Yield the batches that the epoch has left, each row of the training rows in one."""
        config, progress = self.config, self.progress
        head_alone = self._choose_layers()
        self._began = time.perf_counter() - progress.seconds
        if progress.batch == 0:
            rate = 0.0 if head_alone else config.learning_rate * self.optimizer.lr_factor
            progress.learning_rate = rate
        epoch = config.first_epoch + progress.epoch
        order = optimiser_batches(config.n_rows, config.batch_size, config.seed, epoch)
        for places in islice(order, progress.batch, None):
            yield self.rows.split.train[places]

    def _choose_layers(self) -> bool:
        """Say whether the head alone learns in this epoch: nothing else gets a gradient then."""
        head_alone = self.epoch < self.config.head_first_epochs
        if head_alone:
            self.features.freeze_trunk()
        else:
            self.features.unfreeze_trunk()
        return head_alone

    def share_of_loss(self, logits_BK: Tensor, part: Rows, weight: float) -> Tensor:
        """Return what some rows add to a mean over rows of this weight in all."""
        device = self.network.device
        # Divided in fp64: weights may be so small or so large that fp32 has no word for them.
        share = to_device((self.rows.weight[part] / weight).astype(np.float32), device)
        return self.loss.total(logits_BK, self.target_N[to_device(part, device)], share)

    def end_step(self, rows: Rows) -> StepDone:
        """Count a step over these rows; return what callbacks are told of it."""
        self.n_steps += 1
        self._check_steps()
        n_tokens = int(self.lengths[rows].sum())
        self.progress.batch += 1
        self.progress.n_tokens += n_tokens
        self.progress.seconds = time.perf_counter() - self._began
        return StepDone(self.n_steps, self.epoch + 1, n_tokens, self.running_loss.mean)

    def epoch_record(self) -> EpochRecord:
        """Return the record of the epoch whose steps are done."""
        loss = self.running_loss.mean()
        self._check_steps()
        self.optimizer.check_scale()
        seconds = time.perf_counter() - self._began
        return {
            "epoch": self.epoch + 1,
            "loss": loss,
            "learning_rate": self.progress.learning_rate,
            "seconds": seconds,
            "tokens_per_second": self.progress.n_tokens / seconds,
            "skipped_steps": self.running_loss.n_skipped,
        }

    def end_epoch(self, *, stop: bool) -> None:
        """Go on to the next epoch, unless this was the last or something wants to stop."""
        stop = stop or self.is_over
        if not stop:
            self._begin_epoch(self.epoch + 1)
        self.is_over = stop or self.is_over

    def _check_steps(self) -> None:
        if self.non_finite.too_many:
            in_a_row = self.non_finite.in_a_row
            raise self._diverged_steps(f"They didn't in {in_a_row} steps in a row")

    def check_learned(self) -> None:
        """Raise if no step was any good, or if what was learned ran off to infinity."""
        if self.non_finite.n_steps and not self.optimizer.n_updates:
            raise self._diverged_steps("They did in no step")
        if not self.optimizer.is_finite():  # the last step's harm shows in no loss any more
            what = "What was learned must stay finite. It didn't in the last steps"
            raise diverged(self.config, what)

    def _diverged_steps(self, which: str) -> DivergedError:
        what = "The training loss and its gradient must stay finite"
        return diverged(self.config, f"{what}. {which}, up to step {self.n_steps}")

    def __enter__(self) -> "TrainingRun":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        """Keep what Ctrl-C or a divergence leaves, if it is any good; end the optimizer's run."""
        with self.optimizer:
            if isinstance(error, KeyboardInterrupt) and self._is_any_good():
                self.interrupt = error
            elif isinstance(error, DivergedError):
                self.interrupt = self._restored(error)
            return self.interrupt is not None

    def _is_any_good(self) -> bool:
        return self.optimizer.n_updates > 0 and self.optimizer.is_finite()

    def _restored(self, error: DivergedError) -> DivergedError:
        """Restore the best weights if there are any; return the error with what is left."""
        if self.early_stopping.has_weights:
            self.early_stopping.restore_best()
            if self._is_any_good():
                return DivergedError(
                    f"{error} The estimator is fitted with the weights of epoch "
                    f"{self.early_stopping.best_epoch}, the best so far."
                )
        raise DivergedError(f"{error} The estimator is as it was before this fit.") from error

    def result(self) -> FitResult:
        """Return what came of the run."""
        self.running_loss.read()
        return FitResult(
            self.history,
            self.early_stopping.scores,
            self.early_stopping.best_epoch,
            self.optimizer.moments(),
            self.interrupt,
            self.non_finite.total,
        )

    # Checkpoints: everything that a run is, by the names of its parts.

    def state(self) -> State:
        """Return what to go on from."""
        self.running_loss.read()
        values = {
            "n_steps": self.n_steps,
            "history": self.history,
            "progress": vars(self.progress),
            "tokens_at_once": self.batcher.n_tokens,
        }
        return State.of(
            run=State(values=values),
            running_loss=self.running_loss.state(),
            non_finite=self.non_finite.state(),
            early_stopping=self.early_stopping.state(),
            optimizer=self.optimizer.state(),
        )

    def start(self, checkpoint: Checkpoint | None) -> None:
        """Get ready for the first step, or for the next after the state that a checkpoint found."""
        if checkpoint is not None and checkpoint.found is not None:
            self._load(checkpoint.found)
        self._choose_layers()

    def _load(self, state: State) -> None:
        values = state.part("run").values
        self._begin_epoch(values["progress"]["epoch"])
        self.n_steps, self.history = values["n_steps"], values["history"]
        self.progress = _EpochProgress(**values["progress"])
        # Micro-batches as before, where memory had run out: sums are rounded as they are cut.
        self.batcher.n_tokens = min(self.batcher.n_tokens, values["tokens_at_once"])
        for name in ("running_loss", "non_finite", "early_stopping", "optimizer"):
            getattr(self, name).load_state(state.part(name))

    def save(self, checkpoint: Checkpoint | None) -> None:
        """Write the state."""
        if checkpoint is not None:
            checkpoint.write(self.state())

    def save_if_due(self, checkpoint: Checkpoint | None, sigterm: DeferredSigterm | None) -> None:
        """Write the state if the last is old, or if SIGTERM waits for it, which then goes on."""
        if sigterm is not None and sigterm.received:
            self.save(checkpoint)
            sigterm.deliver()
        elif checkpoint is not None and checkpoint.is_due():
            self.save(checkpoint)


def diverged(config: TrainingConfig, what: str) -> DivergedError:
    """Return the error for training that ran off to infinity, with what to do about it."""
    return DivergedError(
        f"{what}: lower `learning_rate` ({config.learning_rate}) or `head_learning_rate` "
        f"({config.head_learning_rate}), set `max_grad_norm=1.0`, or use precision='fp32'."
    )
