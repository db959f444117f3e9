"""One trial: its folds advance together, epoch by epoch, so that it can be judged on the way.

Each fold fits in a thread of its own, as a fit can't be left in the middle any other way. Never do
two of them run at once: a thread hands over at the end of an epoch and waits to be called on.
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
from skgpt.device import free_memory, total_memory
from skgpt.exceptions import TuningError
from skgpt.fitting import fit_observer
from skgpt.network.network import TextNetwork
from skgpt.training.callbacks import EpochRecord, FitStopped, StepDone, TrainingCallback
from skgpt.training.config import TrainingConfig
from skgpt.training.optimizer import training_bytes
from skgpt.tuning.space import final_of

# Told the epoch and the folds' mean score after it; says whether to give the trial up.
Report = Callable[[int, float], bool]


@dataclass(frozen=True)
class Evaluation:
    """What a trial's parameters are judged by: the same for all trials of a search.

    Parameters
    ----------
    estimator : estimator
        Cloned for each fold.
    X, y : array-like
    splits : sequence of (train, test)
        Row numbers of each fold.
    scorer : callable
        Of one metric, or of several, which returns a dict.
    fit_params, score_params : mapping
        Passed on to `fit` and to the scorer, those with a value per row cut like X.
    main_metric : str or None
        Of several metrics, the one that a trial is judged by; None is the first.
    return_train_score : bool
    needs_metric : bool, default=False
        Whether several metrics are an error where none of them was named.
    """

    estimator: Any
    X: Any
    y: Any
    splits: Sequence[tuple[NDArray[np.int64], NDArray[np.int64]]]
    scorer: Any
    fit_params: Mapping[str, Any]
    score_params: Mapping[str, Any]
    main_metric: str | None = None
    return_train_score: bool = False
    needs_metric: bool = False

    def main(self, scores: Any) -> float:
        """Return the score that counts, of what the scorer returned."""
        return float(scores[self.metric(scores)] if isinstance(scores, Mapping) else scores)

    def metric(self, scores: Mapping[str, Any]) -> str:
        """Return the name of the metric that counts."""
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


@dataclass
class Outcome:
    """What came of a trial.

    Parameters
    ----------
    state : {"COMPLETE", "PRUNED", "FAIL"}
    value : float
        The mean over the folds of the score that counts; nan unless complete.
    n_epochs : int
        That a fold made, at most.
    fit_time, score_time : list of float
        Seconds of each fold, without those that it waited for others.
    test_scores, train_scores : list
        What the scorer returned for each fold; empty unless complete.
    error : Exception or None
    """

    state: Literal["COMPLETE", "PRUNED", "FAIL"]
    value: float = np.nan
    n_epochs: int = 0
    fit_time: list[float] = field(default_factory=list)
    score_time: list[float] = field(default_factory=list)
    test_scores: list[Any] = field(default_factory=list)
    train_scores: list[Any] = field(default_factory=list)
    error: Exception | None = None


@dataclass
class Room:
    """Whether the folds of a trial fit on a GPU together; the first one finds out for all."""

    n_others: int
    _is_short: bool | None = None

    def is_short_for(self, network: TextNetwork) -> bool:
        """Say whether the folds must run one after the other.

        Half of the device is left out: micro-batches and kept states may take a quarter each.
        """
        if self._is_short is None:
            device = network.device
            self._is_short = False
            if device.type == "cuda":
                needed = self.n_others * training_bytes(network, keeps_best=True)
                self._is_short = free_memory(device) - total_memory(device) // 2 < needed
        return self._is_short


def evaluate(work: Evaluation, params: Mapping[str, Any], report: Report) -> Outcome:
    """Fit and score all folds with these parameters.

    What a fold raises ends the trial: the others are not trained any further.

    Parameters
    ----------
    work : Evaluation
    params : mapping of str to object
        The trial's.
    report : callable
        Told after each epoch but the last.

    Returns
    -------
    outcome : Outcome
    """
    room = Room(len(work.splits) - 1)
    folds = [Fold(work, params, train, test, room) for train, test in work.splits]
    error: Exception | None = None
    for_good = False
    try:
        pruned = _advance_together(folds, report)
        for_good = True
    except Exception as raised:
        pruned, error, for_good = False, raised, True
    finally:  # also after Ctrl-C, which somebody may want to go on from
        for fold in folds:
            fold.stop(for_good=for_good)
    outcome = Outcome(
        "FAIL" if error is not None else "PRUNED" if pruned else "COMPLETE",
        n_epochs=max(fold.n_epochs for fold in folds),
        fit_time=[fold.fit_time for fold in folds],
        score_time=[fold.score_time for fold in folds],
        error=error,
    )
    if outcome.state == "COMPLETE":
        outcome.value = float(np.mean([fold.score for fold in folds]))
        outcome.test_scores = [fold.result["test_scores"] for fold in folds]
        if work.return_train_score:
            outcome.train_scores = [fold.result["train_scores"] for fold in folds]
    if np.isnan(outcome.value) and outcome.state == "COMPLETE":
        outcome.state = "FAIL"
        outcome.error = TuningError(
            "`scoring` must give a number for every fold. It gave "
            f"{[fold.score for fold in folds]}: a metric that needs every class may find too few "
            "rows in a fold; pass another `cv` or `scoring`."
        )
    return outcome


def _advance_together(folds: "Sequence[Fold]", report: Report) -> bool:
    """Run all folds to their ends; return whether the trial was given up on the way."""
    while running := [fold for fold in folds if not fold.over]:
        # Those that went on from a checkpoint may be ahead: the others catch up with them.
        epoch = min(fold.n_epochs for fold in running) + 1
        for fold in running:
            if fold.n_epochs < epoch:
                fold.advance()
        running = [fold for fold in folds if not fold.over]
        abreast = bool(running) and all(fold.n_epochs == epoch for fold in running)
        # A fold that has ended early has its last score.
        if abreast and report(epoch, float(np.mean([fold.score for fold in folds]))):
            return True
    return False


def forget_frames(error: BaseException) -> None:
    """Drop the tracebacks of an error and of those before it, which keep networks alive."""
    links: list[BaseException | None] = [error]
    while links:
        link = links.pop()
        if link is not None and link.__traceback__ is not None:
            link.__traceback__ = None
            links += [link.__cause__, link.__context__]


class Fold:
    """A fold's fit, which runs an epoch at a time.

    Parameters
    ----------
    work : Evaluation
    params : mapping of str to object
    train, test : ndarray of int
        Row numbers.
    room : Room
        On the device, for all folds of the trial: where it is short, the fit runs to its end.

    Attributes
    ----------
    n_epochs : int
        Finished ones.
    score : float
        Of the test rows after the last epoch, by the metric that counts; nan before there is one.
    over : bool
    result : dict
        Once it is over, what `fit_and_score` returned.
    """

    def __init__(
        self,
        work: Evaluation,
        params: Mapping[str, Any],
        train: NDArray[np.int64],
        test: NDArray[np.int64],
        room: Room,
    ) -> None:
        self.work = work
        self.params = params
        self.train, self.test = train, test
        self.room = room
        self.n_epochs = 0
        self.score = np.nan
        self.over = False
        self.result: dict[str, Any] = {}
        self.fit_time = self.score_time = 0.0
        self._error: BaseException | None = None
        self._stop: dict[str, bool] | None = None  # how, once it is to
        self._elsewhere = 0.0  # seconds that others ran, or that scoring took
        self._called_on = threading.Semaphore(0)
        self._handed_over = threading.Semaphore(0)
        self._thread: threading.Thread | None = None
        self._candidate: Any = None

    def advance(self) -> None:
        """Run until the end of the next epoch, or of the fit; raise what it raises."""
        if self._thread is None:
            # What is set for the caller's thread is set for this one.
            context, config = contextvars.copy_context(), sklearn.get_config()
            self._thread = threading.Thread(
                target=context.run, args=(self._run, config), daemon=True, name="skgpt-fold"
            )
            self._thread.start()
        else:
            self._called_on.release()
        self._handed_over.acquire()
        if self._error is not None:
            raise self._error

    def stop(self, *, for_good: bool) -> None:
        """End the fit if it has not ended, wherever it is, and wait until it has.

        Parameters
        ----------
        for_good : bool
            Whether nobody will want to go on from its checkpoint.
        """
        if self._thread is not None:
            self._stop = {"for_good": for_good}
            self._called_on.release()
            self._thread.join()
        self._candidate = self._error = None  # a traceback would keep the network

    def _run(self, config: dict[str, Any]) -> None:
        began = time.perf_counter()
        try:
            with sklearn.config_context(**config), fit_observer(self._watch):
                self._fit_and_score()
        except FitStopped:
            self.fit_time = time.perf_counter() - began - self._elsewhere
        except BaseException as error:
            self._error = error
            self.fit_time = time.perf_counter() - began - self._elsewhere
        finally:
            self.over = True
            self._candidate = None  # the others may need the memory of what it has learned
            self._handed_over.release()

    def _fit_and_score(self) -> None:
        work = self.work
        self._candidate = clone(work.estimator)
        self.result = fit_and_score(
            self._candidate,
            work.X,
            work.y,
            scorer=work.scorer,
            train=self.train,
            test=self.test,
            verbose=0,
            parameters=dict(self.params),
            fit_params=work.fit_params,
            score_params=work.score_params,
            return_train_score=work.return_train_score,
            return_times=True,
            error_score="raise",
        )
        self.score = work.main(self.result["test_scores"])
        self.fit_time = self.result["fit_time"] - self._elsewhere
        self.score_time += self.result["score_time"]

    def _watch(self, estimator: Any, fitted: Callable[[], Any]) -> TrainingCallback | None:
        # Others may be fitted on the way: other steps, or what the last one is made of.
        is_ours = final_of(self._candidate)[1] is estimator
        return _FoldMonitor(self, fitted) if is_ours else None

    def heed(self) -> None:
        """Called from the fit's thread, often: end it if it is to be stopped."""
        if self._stop is not None:
            raise FitStopped(**self._stop)

    def hand_over(self, n_epochs: int, fitted: Any) -> None:
        """Called from the fit's thread at the end of an epoch: score it, and wait for a call.

        Parameters
        ----------
        n_epochs : int
            Finished ones.
        fitted : estimator
            The last step as it is now.
        """
        began = time.perf_counter()
        self.heed()
        self.score = self._score_of(fitted)
        self.score_time += time.perf_counter() - began
        self.n_epochs = n_epochs
        self._handed_over.release()
        self._called_on.acquire()
        self._elsewhere += time.perf_counter() - began
        self.heed()

    def _score_of(self, fitted: Any) -> float:
        work = self.work
        X = take_rows(work.X, self.test)
        y = () if work.y is None else (take_rows(work.y, self.test),)
        params = check_method_params(work.X, params=work.score_params, indices=self.test)
        return work.main(work.scorer(_with_final(self._candidate, fitted), X, *y, **params))


def _with_final(estimator: Any, final: Any) -> Any:
    """Return a Pipeline in the middle of its fit as one whose last step is fitted already."""
    if not isinstance(estimator, Pipeline):
        return final
    whole = clone(estimator)
    name, last = estimator.steps[-1]
    whole.steps = [*estimator.steps[:-1], (name, _with_final(last, final))]
    return whole


class _FoldMonitor(TrainingCallback):
    """Has a fold's fit hand over after each epoch but the last, as the end of the fit follows."""

    def __init__(self, fold: Fold, fitted: Callable[[], Any]) -> None:
        self.fold = fold
        self.fitted = fitted
        self._last = 0

    def on_progress(self, done: int, total: int) -> None:
        self.fold.heed()

    def on_train_begin(
        self, config: TrainingConfig, n_steps: int = 0, history: Sequence[EpochRecord] = ()
    ) -> None:
        self._last = config.n_epochs

    def on_step(self, event: StepDone) -> None:
        self.fold.heed()

    def on_epoch(self, record: EpochRecord) -> bool:
        fold, n_epochs = self.fold, record["epoch"]
        if n_epochs < self._last:
            fitted = self.fitted()
            if not fold.room.is_short_for(fitted._model.network):
                fold.hand_over(n_epochs, fitted)
        fold.n_epochs = n_epochs
        return False
