"""The state of a training run: its parts, its progress, and what remains after an interrupt."""

import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from skgpt.data.batching import Rows, optimiser_batches
from skgpt.data.splits import Split
from skgpt.data.tokenization import Tokens
from skgpt.device import to_device
from skgpt.exceptions import DivergedError
from skgpt.network.features import TextFeatures
from skgpt.network.microbatches import MicroBatcher
from skgpt.tensor_files import State
from skgpt.training.callbacks import EpochRecord, StepDone
from skgpt.training.checkpoint import Checkpoint
from skgpt.training.config import TrainingConfig
from skgpt.training.early_stopping import EarlyStopping, Validation
from skgpt.training.loss import Loss
from skgpt.training.optimizer import Moments, Optimizer, RunningLoss
from skgpt.training.signals import DeferredSignal, deferred


@dataclass(frozen=True)
class TrainingRows:
    """Rows ready to train on: tokens, targets, weights in the loss, and which are held out.

    Held-out rows are among them, so that frozen layers run over all rows once. Targets and weights
    have shape (N,) or (N, K).
    """

    tokens: Tokens
    target: NDArray[np.int64] | NDArray[np.float32]
    weight: NDArray[np.float64]
    split: Split


@dataclass(frozen=True)
class FitResult:
    """What came of a training run, beside the network.

    `moments` are None before the first update. `interrupt` is what ended the run early, to be
    raised once the estimator is fitted: after Ctrl-C the network is as the last step left it,
    after an error of a scorer or callback, or where training diverged, as the best epoch.
    """

    history: list[EpochRecord]
    validation_scores: list[float]
    best_iteration: int  # the epoch of the highest of them, from 1; 0 where there is none
    moments: Moments | None
    interrupt: KeyboardInterrupt | Exception | None = None
    n_skipped: int = 0  # steps whose loss or gradient was not finite
    n_steps: int = 0
    out_of_time: bool = False


@dataclass
class _EpochProgress:
    """How far a run is: whole epochs, and what there is of the next one so far."""

    epoch: int = 0
    batch: int = 0
    n_tokens: int = 0
    seconds: float = 0.0
    learning_rate: float = 0.0


class TrainingRun:
    """The state of one training run; a context manager that handles interrupts."""

    def __init__(
        self,
        features: TextFeatures,
        rows: TrainingRows,
        loss: Loss,
        config: TrainingConfig,
        validation: Validation,
        moments: Moments | None = None,
        checkpoint: Checkpoint | None = None,
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
        self.out_of_time = False
        self.running_loss = RunningLoss(at_once=self.optimizer.looks_at_once)
        self.interrupt: KeyboardInterrupt | Exception | None = None
        self._error_of_user: Exception | None = None
        self.checkpoint = checkpoint
        self._sigterm: DeferredSignal | None = None
        self._on_exit = ExitStack()
        self._begin_epoch(0)

    def _begin_epoch(self, epoch: int) -> None:
        self.progress = _EpochProgress(epoch)
        self.is_over = epoch >= self.config.n_epochs
        self.running_loss.begin_epoch()

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
        # Divided in fp64: weights may be too small or too large for fp32.
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
        deadline = self.config.deadline
        self.out_of_time = deadline is not None and time.monotonic() >= deadline
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
        if stop or self.out_of_time:
            self.is_over = True
        else:
            self._begin_epoch(self.epoch + 1)

    def _check_steps(self) -> None:
        if self.running_loss.too_many:
            in_a_row = self.running_loss.in_a_row
            raise self._diverged_steps(f"They didn't in {in_a_row} steps in a row")

    def check_learned(self) -> None:
        """Raise if every step was skipped, or if a learned weight is not finite."""
        if self.running_loss.n_steps and not self.optimizer.n_updates:
            raise self._diverged_steps("They did in no step")
        if not self.optimizer.is_finite():  # the last step's harm shows in no loss any more
            what = "What was learned must stay finite. It didn't in the last steps"
            raise diverged(self.config, what)

    def _diverged_steps(self, which: str) -> DivergedError:
        what = "The training loss and its gradient must stay finite"
        return diverged(self.config, f"{what}. {which}, up to step {self.n_steps}")

    def __enter__(self) -> "TrainingRun":
        if self.checkpoint is not None:
            self._sigterm = self._on_exit.enter_context(deferred(signal.SIGTERM))
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> bool:
        """Keep a usable network, whatever ended the run; end the optimizer's run."""
        with self.optimizer, self._on_exit:
            if isinstance(error, KeyboardInterrupt) and self._is_usable():
                self.interrupt = error
            elif error is not None and error is self._error_of_user:
                self.interrupt = self._noted(self._error_of_user)
            elif isinstance(error, DivergedError):
                self.interrupt = self._restored(error)
            return self.interrupt is not None

    @contextmanager
    def user_code(self) -> Iterator[None]:
        """Run a scorer or a callback: if it fails, what was learned before is not lost.

        Unless the error says that it `leaves_nothing`, as that of a pruned trial does.
        """
        try:
            yield
        except Exception as error:
            if not getattr(error, "leaves_nothing", False):
                self._error_of_user = error
            raise

    def _noted(self, error: Exception) -> Exception | None:
        """Restore the best weights if there are any; note in the error what is left, if usable."""
        restored = self.early_stopping.restore_best()
        if not self._is_usable():
            return None
        weights = "of the last step"
        if restored:
            weights = f"of epoch {self.early_stopping.best_epoch}, the best so far"
        error.add_note(f"The estimator is fitted with the weights {weights}.")
        return error

    def _is_usable(self) -> bool:
        return self.optimizer.n_updates > 0 and self.optimizer.is_finite()

    def _restored(self, error: DivergedError) -> DivergedError:
        """Restore the best weights if there are any; return the error with what is left."""
        if self.early_stopping.restore_best() and self._is_usable():
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
            self.running_loss.n_skipped_in_all,
            self.n_steps,
            self.out_of_time and self.n_steps < self.config.n_steps,
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
            early_stopping=self.early_stopping.state(),
            optimizer=self.optimizer.state(),
        )

    def start(self) -> None:
        """Get ready for the first step, or for the next after the state that a checkpoint found."""
        if self.checkpoint is not None and self.checkpoint.found is not None:
            self._load(self.checkpoint.found)
        self._choose_layers()

    def _load(self, state: State) -> None:
        values = state.part("run").values
        self._begin_epoch(values["progress"]["epoch"])
        self.n_steps, self.history = values["n_steps"], values["history"]
        self.progress = _EpochProgress(**values["progress"])
        # Micro-batches as before, where memory had run out: sums are rounded as they are cut.
        self.batcher.n_tokens = min(self.batcher.n_tokens, values["tokens_at_once"])
        for name in ("running_loss", "early_stopping", "optimizer"):
            getattr(self, name).load_state(state.part(name))

    def save(self) -> None:
        """Write the state, if there is a checkpoint."""
        if self.checkpoint is not None:
            self.checkpoint.write(self.state())

    def save_if_due(self) -> None:
        """Write the state if the last is old, or if SIGTERM waits for it, which then goes on."""
        if self._sigterm is not None and self._sigterm.received:
            self.save()
            self._sigterm.deliver()
        elif self.checkpoint is not None and self.checkpoint.is_due():
            self.save()


def diverged(config: TrainingConfig, what: str) -> DivergedError:
    """Return the error for training that diverged, with what to do about it."""
    return DivergedError(
        f"{what}: lower `learning_rate` ({config.learning_rate}) or `head_learning_rate` "
        f"({config.head_learning_rate}), set `max_grad_norm=1.0`, or use precision='fp32'."
    )
