"""What watches a fit: the history, the monitors' protocol, a word about very long fits."""

import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NotRequired, TypedDict

from skgpt.exceptions import SlowFitWarning
from skgpt.training.parking import Parking
from skgpt.training.plan import TrainingPlan

_SLOW_SECONDS = 600.0
# The estimate is made once steps have been timed for this long, so that a first slow step or a
# short one at the end of an epoch can't raise a false alarm.
_MEASURE_STEPS = 5
_MEASURE_SECONDS = 10.0
_LONG_SECONDS = 30.0


class EpochRecord(TypedDict):
    """One entry of ``history_``; the last two where rows are held out."""

    epoch: int
    loss: float
    learning_rate: float
    seconds: float
    tokens_per_second: float
    skipped_steps: int
    validation_loss: NotRequired[float]
    validation_score: NotRequired[float]


@dataclass(frozen=True)
class StepDone:
    """What monitors are told after each optimiser step.

    Parameters
    ----------
    step : int
        Steps done, this one included.
    epoch : int
        1 is the first.
    n_tokens : int
        Tokens in the step's rows.
    mean_loss : callable
        Returns the weighted mean of the loss over the epoch so far. To call it costs a wait for
        the device.
    """

    step: int
    epoch: int
    n_tokens: int
    mean_loss: Callable[[], float]


class FitStopped(BaseException):
    """Raised by a monitor to end a fit at once, in the middle of whatever it does.

    Nothing comes of that fit: the estimator is as it was. Not an `Exception`, as who catches those
    takes a fit for one that failed.

    Parameters
    ----------
    for_good : bool
        Whether nobody will want to go on from there; its checkpoint is then removed.
    """

    def __init__(self, *, for_good: bool) -> None:
        super().__init__("the fit was stopped by what watches it")
        self.for_good = for_good


class Monitor:
    """Told of a fit as it goes; every method does nothing unless a subclass says otherwise."""

    def prefix(self, done: int, total: int) -> None:
        """Frozen layers have run over `done` of `total` tokens."""

    def may_park(self, parking: Parking) -> None:
        """What takes the run's own tensors off the device, for whoever has it wait for others.

        They may be taken off in `epoch`, and must be back when it returns. Forget it in `end`, as
        it keeps the run alive.
        """

    def start(
        self, plan: TrainingPlan, n_steps: int = 0, history: Sequence[EpochRecord] = ()
    ) -> None:
        """The first step is about to begin; or the next, of a run that was broken off."""

    def epoch_begin(self, epoch: int) -> None:
        """An epoch is about to begin; 1 is the first."""

    def step(self, event: StepDone) -> None:
        """A step is done."""

    def epoch(self, record: EpochRecord) -> bool:
        """An epoch is done; return True to end the fit here."""
        return False

    def end(self) -> None:
        """The fit is over, well or not."""


class SlowFitNotice(Monitor):
    """Warns once, from the first measured steps, when a fit will take more than ten minutes.

    Parameters
    ----------
    advice : str
        What would make it shorter.
    clock : callable, default=time.perf_counter
        Seconds; tests pass their own.
    """

    def __init__(self, advice: str, clock: Callable[[], float] = time.perf_counter) -> None:
        self.advice = advice
        self.clock = clock
        self._began = clock()
        self._first: float | None = None
        self._plan: TrainingPlan | None = None
        self._first_step = 1
        self._said = False

    def prefix(self, done: int, total: int) -> None:
        """Estimate from the frozen layers alone, where they alone take that long."""
        spent = self.clock() - self._began
        if done < total and spent >= _MEASURE_SECONDS:
            self._judge(spent * total / done, "at least ")

    def start(
        self, plan: TrainingPlan, n_steps: int = 0, history: Sequence[EpochRecord] = ()
    ) -> None:
        """Note the plan."""
        self._plan = plan
        self._first = None
        self._first_step = n_steps + 1

    def step(self, event: StepDone) -> None:
        """Estimate, once enough steps were timed; the first is left out, it warms things up."""
        if self._said or self._plan is None:
            return
        if self._first is None:
            self._first = self.clock()
            return
        now = self.clock()
        n_timed = event.step - self._first_step
        timed = now - self._first
        # Long steps are much of a kind: two of them tell, and nobody waits for five in silence.
        if timed < _MEASURE_SECONDS or (n_timed < _MEASURE_STEPS and timed < _LONG_SECONDS):
            return
        per_step = (now - self._first) / n_timed
        left = per_step * (self._plan.n_steps - event.step)
        self._judge(now - self._began + left, "about ")

    def _judge(self, seconds: float, how: str) -> None:
        if self._said or seconds <= _SLOW_SECONDS:
            return
        self._said = True
        warnings.warn(
            f"This fit will take {how}{seconds / 60:.0f} minutes. To shorten it: {self.advice}.",
            SlowFitWarning,
            stacklevel=2,
        )
