"""What observes a fit: the callbacks' protocol, bars and lines.

All that is shown goes to stderr, so that what a program prints stays clean.
"""

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NotRequired, TypedDict

from tqdm.auto import tqdm

from skgpt.training.config import TrainingConfig


class EpochRecord(TypedDict):
    """One entry of ``history_``.

    Epochs count from 1 in each call; `partial_fit` adds those of earlier calls afterwards, and
    `fit` what a lack of time cut.
    """

    epoch: int
    loss: float
    learning_rate: float
    seconds: float
    tokens_per_second: float
    skipped_steps: int
    validation_loss: NotRequired[float]
    validation_score: NotRequired[float]
    cut_short: NotRequired[str]


History = list[EpochRecord]


@dataclass(frozen=True)
class StepDone:
    """What callbacks are told after each optimiser step; steps and epochs count from 1.

    `n_tokens` are those of the step's rows. `mean_loss` returns the weighted mean of the loss over
    the epoch so far: to call it costs a wait for the device.
    """

    step: int
    epoch: int
    n_tokens: int
    mean_loss: Callable[[], float]


class FitStopped(BaseException):
    """Raised by a callback to end a fit at once; nothing comes of it, the estimator is as it was.

    `for_good` says that nobody will want to go on from there: its checkpoint is then removed. Not
    an `Exception`, as who catches those takes a fit for one that failed.
    """

    def __init__(self, *, for_good: bool) -> None:
        super().__init__("the fit was stopped by a callback")
        self.for_good = for_good


class TrainingCallback:
    """Told of a fit as it goes; every method does nothing unless a subclass says otherwise."""

    def on_progress(self, done: int, total: int) -> None:
        """Frozen layers have run over `done` of `total` tokens."""

    def on_train_begin(self, config: TrainingConfig, n_steps: int, history: History) -> None:
        """The first step is about to begin; or the next, of a run that was broken off."""

    def on_epoch_begin(self, epoch: int) -> None:
        """An epoch is about to begin; 1 is the first."""

    def on_step(self, event: StepDone) -> None:
        """A step is done."""

    def on_epoch(self, record: EpochRecord) -> bool:
        """An epoch is done; return True to end the fit here."""
        return False

    def on_train_end(self) -> None:
        """The fit is over, well or not."""


_SHOW_SECONDS = 0.2
_SHORT_SECONDS = 1.0  # a prediction that takes no longer shows nothing
_BAR = "{desc} {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]"


def shows_bars() -> bool:
    """Say whether a bar can be drawn: in a terminal, or in a notebook that has widgets.

    Elsewhere, as in a log file, each step of a bar would be one more piece of text.
    """
    # Not tqdm's own `disable=None`: a notebook's output is no terminal.
    if any(cls.__module__ == "tqdm.notebook" for cls in tqdm.__mro__):
        return True
    if not (_is_open(sys.stderr) and hasattr(sys.stderr, "isatty") and sys.stderr.isatty()):
        return False
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns > 0  # some don't know their width
    except (AttributeError, OSError, ValueError):
        return True


def fit_progress(verbose: int) -> list[TrainingCallback]:
    """Return what shows a fit: nothing for 0.

    Where a bar can be drawn, 1 shows one and 2 a line per epoch as well; elsewhere both show lines.
    """
    if not verbose:
        return []
    if not shows_bars():
        return [EpochLines()]
    return [ProgressBar(), EpochLines()] if verbose > 1 else [ProgressBar()]


class _WorkBar:
    """A bar of the tokens or texts of some work, which is gone once it is closed."""

    def __init__(self, *, shown: bool = True, delay: float = 0.0) -> None:
        self._shown = shown  # not tqdm's own `disable`, which starts a thread all the same
        self._options = {"delay": delay, "unit_scale": True, "dynamic_ncols": True}
        self._bar: Any = None
        self._shows = ("", 0)

    def move(self, name: str, done: int, total: int, unit: str = " tok") -> None:
        """Show how far the work of this name is, in place of what was shown before."""
        if not self._shown:
            return
        if (name, total) != self._shows:
            self.close()
            self._shows = (name, total)
        if self._bar is None:
            self._bar = tqdm(total=total, desc=name, unit=unit, leave=False, **self._options)
        self._bar.update(done - self._bar.n)

    def close(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None


class ProgressBar(TrainingCallback):
    """A tqdm bar with epoch, loss, validation score, tokens per second and the time left."""

    def __init__(self) -> None:
        self._frozen = _WorkBar()
        self._bar: Any = None
        self._n_epochs = 0
        self._shown = 0.0
        self._epoch_began = 0.0
        self._n_tokens = 0  # of the epoch so far
        self._score: float | None = None

    def on_progress(self, done: int, total: int) -> None:
        """Show how far the frozen layers are."""
        self._frozen.move("frozen layers", done, total)

    def on_train_begin(self, config: TrainingConfig, n_steps: int, history: History) -> None:
        """Open the bar of the steps, with those that are done already."""
        self.on_train_end()
        self._n_epochs = config.n_epochs
        self._score = history[-1].get("validation_score") if history else None
        steps = {"total": config.n_steps, "initial": n_steps}
        self._bar = tqdm(**steps, desc="fit", bar_format=_BAR, dynamic_ncols=True)

    def on_epoch_begin(self, epoch: int) -> None:
        """Measure anew, so that the time between epochs doesn't count."""
        self._epoch_began, self._n_tokens = time.perf_counter(), 0

    def on_step(self, event: StepDone) -> None:
        """Move on by one step."""
        self._n_tokens += event.n_tokens
        now = time.perf_counter()
        if now - self._shown >= _SHOW_SECONDS:
            self._shown = now
            speed = self._n_tokens / max(now - self._epoch_began, 1e-9)
            self._show(event.epoch, event.mean_loss(), speed)
        self._bar.update()

    def on_epoch(self, record: EpochRecord) -> bool:
        """Show the whole epoch's loss, and what the held-out rows say."""
        self._score = record.get("validation_score")
        self._show(record["epoch"], record["loss"], record["tokens_per_second"])
        self._bar.refresh()
        return False

    def on_train_end(self) -> None:
        """Close the bars."""
        self._frozen.close()
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _show(self, epoch: int, loss: float, speed: float) -> None:
        self._bar.set_description_str(f"epoch {epoch}/{self._n_epochs}", refresh=False)
        score = "" if self._score is None else f", score {self._score:.3f}"
        said = f"loss {loss:.3f}{score}, {tqdm.format_sizeof(speed)} tok/s"
        self._bar.set_postfix_str(said, refresh=False)


class EpochLines(TrainingCallback):
    """A line per epoch; beside a bar it stands above it."""

    def __init__(self) -> None:
        self._n_epochs = self._n_of_head = 0
        self._done = 0
        self._began = 0.0

    def on_train_begin(self, config: TrainingConfig, n_steps: int, history: History) -> None:
        """Note how many epochs there will be."""
        self._n_epochs, self._n_of_head = config.n_epochs, config.head_first_epochs
        self._done, self._began = 0, time.perf_counter()

    def on_epoch(self, record: EpochRecord) -> bool:
        """Write the line."""
        self._done += 1
        n_left = self._n_epochs - record["epoch"]
        time_left = ""
        # Epochs of the head alone say nothing of how long the others take.
        if n_left and record["epoch"] > self._n_of_head:
            seconds = (time.perf_counter() - self._began) / self._done * n_left
            time_left = f", {tqdm.format_interval(seconds)} left"
        elif record["epoch"] == self._n_of_head:
            self._done, self._began = 0, time.perf_counter()
        held_out = ""
        if "validation_score" in record:
            held_out = (
                f", validation loss {record['validation_loss']:.4f}, "
                f"score {record['validation_score']:.4f}"
            )
        write_line(
            f"epoch {record['epoch']}/{self._n_epochs}: loss {record['loss']:.4f}{held_out}, "
            f"{record['seconds']:.1f} s, {record['tokens_per_second']:.0f} tokens/s{time_left}"
        )
        return False


@contextmanager
def work_bar(verbose: int) -> Iterator[_WorkBar]:
    """Give a bar of work that takes more than a second; at the end of it it is gone."""
    bar = _WorkBar(shown=bool(verbose) and shows_bars(), delay=_SHORT_SECONDS)
    try:
        yield bar
    finally:
        bar.close()


def write_line(line: str) -> None:
    """Write a line to stderr, above a bar if there is one."""
    if _is_open(sys.stderr):
        tqdm.write(line, file=sys.stderr)
        if hasattr(sys.stderr, "flush"):
            sys.stderr.flush()  # a log file is to be read while the fit goes on


def _is_open(file: Any) -> bool:
    """Say whether anything can be written: pythonw has no stderr, and services close theirs."""
    return file is not None and not getattr(file, "closed", False)
