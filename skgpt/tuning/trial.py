"""One trial: two folds advance together, so that it can be pruned on the way; the others follow.

Each fold fits in a thread of its own, since a fit can't be paused in any other way. Two of them
never run at once: a thread hands over at the end of an epoch and waits for its next turn.
"""

import contextvars
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import sklearn
from numpy.typing import NDArray
from sklearn.base import clone
from sklearn.pipeline import Pipeline

from skgpt._sklearn import check_method_params, fit_and_score, take_rows
from skgpt.caching import searching
from skgpt.device import free_memory, total_memory
from skgpt.exceptions import CALLED_FROM, TuningError, line_of_user
from skgpt.fitting import fit_observer
from skgpt.network.network import TextNetwork
from skgpt.training.callbacks import EpochRecord, FitStopped, History, StepDone, TrainingCallback
from skgpt.training.config import TrainingConfig
from skgpt.training.optimizer import training_bytes
from skgpt.tuning.folds import Split, last_step

# Takes the epoch and the folds' mean score after it; returns whether to prune the trial.
Report = Callable[[int, float], bool]

# So many folds go ahead, and a pruner decides by them: docs/benchmarks.md has the figures.
_AHEAD = 2


@dataclass
class Outcome:
    """What came of a trial: times and scores by fold, no scores unless it is complete."""

    state: Literal["COMPLETE", "PRUNED", "FAIL"]
    value: float = np.nan
    n_epochs: int = 0  # of the fold that made the most
    fit_time: list[float] = field(default_factory=list)  # without waiting for other folds
    score_time: list[float] = field(default_factory=list)
    test_scores: list[Any] = field(default_factory=list)
    train_scores: list[Any] = field(default_factory=list)
    error: Exception | None = None


@dataclass(frozen=True)
class Evaluator:
    """Evaluates parameters: what all trials of a search share."""

    estimator: Any
    X: Any
    y: Any
    splits: Sequence[Split]
    scorer: Any  # returns a number, or a dict of several metrics
    fit_params: Mapping[str, Any]
    score_params: Mapping[str, Any]
    main_metric: str | None = None  # guides the search; None is the first of several
    return_train_score: bool = False
    needs_metric: bool = False  # of several metrics one must be named

    def evaluate(self, params: Mapping[str, Any], report: Report) -> Outcome:
        """Fit and score all folds; an error in one ends the trial.

        The mean score of the first two is reported after each epoch, the last one's only if there
        are others. Whatever ends the trial early stops the folds that still run. After Ctrl-C their
        checkpoints stay, so that the trial can go on from there.
        """
        room = Room(len(self.splits[:_AHEAD]) - 1)
        folds = [
            _Fold(self, params, train, test, room, pauses=number < _AHEAD)
            for number, (train, test) in enumerate(self.splits)
        ]
        error: Exception | None = None
        pruned = for_good = False
        try:
            pruned = _advance(folds, report)
            for_good = True
        except Exception as raised:
            error, for_good = raised, True
        finally:
            for fold in folds:
                fold.stop(for_good=for_good)
        outcome = Outcome(
            "FAIL" if error is not None else "PRUNED" if pruned else "COMPLETE",
            n_epochs=max(fold.n_epochs for fold in folds),
            fit_time=[fold.fit_time for fold in folds],
            score_time=[fold.score_time for fold in folds],
            error=error,
        )
        if outcome.state != "COMPLETE":
            return outcome

        # A score that is not a number can't guide a search.
        scores = [fold.score for fold in folds]
        outcome.value = float(np.mean(scores))
        if np.isnan(outcome.value):
            outcome.state = "FAIL"
            outcome.error = TuningError(
                f"`scoring` must give a number for every fold. It gave {scores}: a metric that "
                "needs every class may find too few rows in a fold; pass another `cv` or `scoring`."
            )
            return outcome
        outcome.test_scores = [fold.result["test_scores"] for fold in folds]
        if self.return_train_score:
            outcome.train_scores = [fold.result["train_scores"] for fold in folds]
        return outcome

    def main_score(self, scores: Any) -> float:
        """Return the score that guides the search, of what the scorer returned."""
        return float(scores[self.metric(scores)] if isinstance(scores, Mapping) else scores)

    def metric(self, scores: Mapping[str, Any]) -> str:
        """Return the name of the metric that guides the search."""
        if self.main_metric is None and self.needs_metric:
            raise TuningError(
                f"`scoring` gives several metrics, {sorted(scores)}: `refit` must be one of them, "
                "a callable, or False. Got True."
            )
        if self.main_metric is not None and self.main_metric not in scores:
            raise TuningError(
                f"`refit` must be one of the metrics of `scoring`, {sorted(scores)}. "
                f"Got {self.main_metric!r}."
            )
        return self.main_metric or next(iter(scores))


def _advance(folds: "Sequence[_Fold]", report: Report) -> bool:
    """Run all folds to their ends; return whether the trial was pruned on the way."""
    ahead, others = folds[:_AHEAD], folds[_AHEAD:]
    if _advance_together(ahead, report):
        return True
    n_epochs = max(fold.n_epochs for fold in ahead)
    if others and n_epochs and report(n_epochs, float(np.mean([fold.score for fold in ahead]))):
        return True
    for fold in others:
        fold.advance()
    return False


def _advance_together(folds: "Sequence[_Fold]", report: Report) -> bool:
    """Run folds to their ends, an epoch at a time; return whether the trial was pruned."""
    while running := [fold for fold in folds if not fold.over]:
        # A fold that resumed from a checkpoint may be ahead: the others catch up with it.
        epoch = min(fold.n_epochs for fold in running) + 1
        for fold in running:
            if fold.n_epochs < epoch:
                fold.advance()
        running = [fold for fold in folds if not fold.over]
        abreast = bool(running) and all(fold.n_epochs == epoch for fold in running)
        # A fold that has stopped early counts with its last score.
        if abreast and report(epoch, float(np.mean([fold.score for fold in folds]))):
            return True
    return False


def drop_tracebacks(error: BaseException) -> None:
    """Drop the tracebacks of an error and its causes: their frames keep networks alive."""
    links: list[BaseException | None] = [error]
    while links:
        link = links.pop()
        if link is not None and link.__traceback__ is not None:
            link.__traceback__ = None
            links += [link.__cause__, link.__context__]


@dataclass
class Room:
    """Whether the folds of a trial fit on a GPU together; the first fold finds out for all."""

    n_others: int
    _is_short: bool | None = None

    def is_short_for(self, network: TextNetwork) -> bool:
        """Say whether the folds must run one after the other.

        Half of the device is left out: micro-batches and cached states may take a quarter each.
        """
        if self._is_short is None:
            device = network.device
            self._is_short = False
            if device.type == "cuda":
                needed = self.n_others * training_bytes(network, keeps_best=True)
                self._is_short = free_memory(device) - total_memory(device) // 2 < needed
        return self._is_short


@dataclass(eq=False)
class _Fold(TrainingCallback):
    """The fit of one fold, which runs an epoch at a time.

    As a callback of its fit it hands over after each epoch but the last, which the end of the fit
    follows. Unless it `pauses`, or where the GPU is short of memory, the fit runs to its end
    instead. `score` is that of the test rows after the last finished epoch, by the metric that
    guides the search; `result` is what `fit_and_score` returned, once the fold is over.
    """

    evaluator: Evaluator
    params: Mapping[str, Any]
    train: NDArray[np.int64]
    test: NDArray[np.int64]
    room: Room
    pauses: bool
    n_epochs: int = 0
    score: float = np.nan
    over: bool = False
    result: dict[str, Any] = field(default_factory=dict)
    fit_time: float = 0.0
    score_time: float = 0.0
    _error: BaseException | None = None
    _stop_for_good: bool | None = None  # None until `stop` was called
    _elsewhere: float = 0.0  # seconds in which other folds ran, or this one was scored
    _thread: threading.Thread | None = None
    _candidate: Any = None
    _n_planned: int = 0  # epochs of the fit

    def __post_init__(self) -> None:
        self._my_turn = threading.Semaphore(0)
        self._handed_over = threading.Semaphore(0)

    def advance(self) -> None:
        """Run until the next pause or the end of the fit; raise what it raises."""
        if self._thread is None:
            # Context variables and scikit-learn's configuration are the calling thread's.
            context, config = contextvars.copy_context(), sklearn.get_config()
            context.run(CALLED_FROM.set, line_of_user())
            self._thread = threading.Thread(
                target=context.run, args=(self._run, config), daemon=True, name="skgpt-fold"
            )
            self._thread.start()
        else:
            self._my_turn.release()
        self._handed_over.acquire()
        if self._error is not None:
            raise self._error

    def stop(self, *, for_good: bool) -> None:
        """End the fit wherever it is, and wait until it has; for good removes its checkpoint."""
        if self._thread is not None:
            self._stop_for_good = for_good
            self._my_turn.release()
            self._thread.join()
        self._candidate = self._error = None  # a traceback would keep the network

    def _run(self, config: dict[str, Any]) -> None:
        began = time.perf_counter()
        try:
            with sklearn.config_context(**config), fit_observer(self._watch), searching():
                self._fit_and_score()
        except BaseException as error:
            self._error = None if isinstance(error, FitStopped) else error
            self.fit_time = time.perf_counter() - began - self._elsewhere
        finally:
            self.over = True
            self._candidate = None  # other folds may need its memory
            self._handed_over.release()

    def _fit_and_score(self) -> None:
        evaluator = self.evaluator
        self._candidate = clone(evaluator.estimator)
        self.result = fit_and_score(
            self._candidate,
            evaluator.X,
            evaluator.y,
            scorer=evaluator.scorer,
            train=self.train,
            test=self.test,
            verbose=0,
            parameters=dict(self.params),
            fit_params=evaluator.fit_params,
            score_params=evaluator.score_params,
            return_train_score=evaluator.return_train_score,
            return_times=True,
            error_score="raise",
        )
        self.score = evaluator.main_score(self.result["test_scores"])
        self.fit_time = self.result["fit_time"] - self._elsewhere
        self.score_time += self.result["score_time"]

    # What the fit's thread calls.

    def _watch(self, estimator: Any, fitted: Callable[[], Any]) -> TrainingCallback | None:
        # Other estimators may be fitted on the way: earlier steps, or parts of the last one.
        if last_step(self._candidate) is not estimator:
            return None
        self._fitted = fitted
        return self

    def on_train_begin(self, config: TrainingConfig, n_steps: int, history: History) -> None:
        self._n_planned = config.n_epochs

    def on_progress(self, done: int, total: int) -> None:
        self._check_stopped()

    def on_step(self, event: StepDone) -> None:
        self._check_stopped()

    def _check_stopped(self) -> None:
        if self._stop_for_good is not None:
            raise FitStopped(for_good=self._stop_for_good)

    def on_epoch(self, record: EpochRecord) -> bool:
        """Hand over, unless the fit is about to end, or is to run to its end."""
        n_epochs = record["epoch"]
        if self.pauses and n_epochs < self._n_planned:
            fitted = self._fitted()
            if not self.room.is_short_for(fitted._model.network):
                self._hand_over(n_epochs, fitted)
        self.n_epochs = n_epochs
        return False

    def _hand_over(self, n_epochs: int, fitted: Any) -> None:
        """Score an epoch that has ended, and wait for the next turn.

        `fitted` is the last step with the weights as they are now.
        """
        began = time.perf_counter()
        self._check_stopped()
        evaluator = self.evaluator
        X = take_rows(evaluator.X, self.test)
        y = () if evaluator.y is None else (take_rows(evaluator.y, self.test),)
        params = check_method_params(evaluator.X, params=evaluator.score_params, indices=self.test)
        candidate = _with_fitted_last_step(self._candidate, fitted)
        self.score = evaluator.main_score(evaluator.scorer(candidate, X, *y, **params))
        self.score_time += time.perf_counter() - began
        self.n_epochs = n_epochs
        self._handed_over.release()
        self._my_turn.acquire()
        self._elsewhere += time.perf_counter() - began
        self._check_stopped()


def _with_fitted_last_step(estimator: Any, fitted: Any) -> Any:
    """Return a Pipeline in the middle of its fit as one whose last step is fitted already."""
    if not isinstance(estimator, Pipeline):
        return fitted
    whole = clone(estimator)
    name, last = estimator.steps[-1]
    whole.steps = [*estimator.steps[:-1], (name, _with_fitted_last_step(last, fitted))]
    return whole
