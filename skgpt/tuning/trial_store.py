"""Who works on which trial of a study, and what came of it: shared by all workers.

A trial that is running belongs to a worker, who says again and again until when it may be taken to
be alive. One whose worker died is failed, not counted, and its parameters are tried again; but not
for ever, as they may be what the worker died of.
"""

import logging
import os
import platform
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
from optuna.distributions import BaseDistribution
from optuna.samplers import BruteForceSampler, GridSampler
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial, TrialState, create_trial

from skgpt.tuning.trial import Outcome

_LOG = logging.getLogger("skgpt")
_WORKER = "skgpt:worker"
_RESULT = "skgpt:result"
_LOST = "skgpt:lost"  # why a trial counts for nothing
_AGAIN = "skgpt:again"  # the number of the lost trial that one tries again
_DEATHS = "skgpt:deaths"  # how many workers have died of it so far
_MOST_DEATHS = 3
_BEAT_SECONDS = 15.0
_LEASE_SECONDS = 120.0


class TrialStore:
    """The trials of a study, as one of its workers sees and writes them.

    Parameters
    ----------
    study : optuna.study.Study
    distributions : mapping of str to optuna.distributions.BaseDistribution
    n_trials : int
        Of all workers together.
    """

    def __init__(
        self, study: Study, distributions: Mapping[str, BaseDistribution], n_trials: int
    ) -> None:
        self.study = study
        self.distributions = dict(distributions)
        self.n_trials = n_trials
        self.is_exhausted = False
        self._nobodys: dict[int, float] = {}  # trials by number, and when they were first seen

    def counted(self) -> list[FrozenTrial]:
        """Return the trials that count, running ones included, in order of their numbers."""
        trials = self.study.get_trials(deepcopy=False)
        return [t for t in trials if t.state != TrialState.WAITING and _LOST not in t.user_attrs]

    def finished(self) -> list[FrozenTrial]:
        """Return the trials that count and have come to an end."""
        return [t for t in self.counted() if t.state.is_finished() and _RESULT in t.user_attrs]

    def is_anybody_working(self) -> bool:
        """Say whether some trial is running, here or elsewhere."""
        return any(t.state == TrialState.RUNNING for t in self.counted())

    def is_over(self) -> bool:
        """Say whether nothing is left to do, neither here nor for others."""
        none_left = len(self.counted()) >= self.n_trials or self._has_nothing_left()
        return none_left and not self.is_anybody_working()

    def take(self) -> Trial | None:
        """Begin a trial; return None if there is none to begin, as far as is known by now."""
        self._fail_the_dead()
        while len(self.counted()) < self.n_trials and not self._has_nothing_left():
            trial = self.study.ask(self.distributions)
            trial.set_user_attr(_WORKER, _me())
            before = [t for t in self.counted() if t.number < trial.number]
            again = trial.user_attrs.get(_AGAIN)
            if again is not None and any(t.user_attrs.get(_AGAIN) == again for t in before):
                self._leave(trial, "two workers had put the same lost trial in the queue")
            elif len(before) >= self.n_trials:  # others may have begun one at the same time
                self._leave(trial, "one too many, as others began theirs at the same time")
                self._queue(trial.storage.get_trial(trial._trial_id))
            elif self._draws_once and trial.params in [t.params for t in before]:
                self._leave(trial, "of a point that there is a trial of already")
            else:
                return trial
        return None

    @property
    def _draws_once(self) -> bool:
        return isinstance(self.study.sampler, GridSampler | BruteForceSampler)

    def _has_nothing_left(self) -> bool:
        """Say whether nothing is in the queue, and the sampler has no point that is not begun."""
        if self.study.get_trials(deepcopy=False, states=(TrialState.WAITING,)):
            return False
        sampler = self.study.sampler
        if self.is_exhausted or not isinstance(sampler, GridSampler):
            return self.is_exhausted
        # Asked for more, it would draw a point once more, in a search that goes on as well.
        marks = [t.system_attrs for t in self.counted() if "grid_id" in t.system_attrs]
        begun = {m["grid_id"] for m in marks if sampler._same_search_space(m["search_space"])}
        return len(begun) == sampler._n_min_trials

    def _leave(self, trial: Trial, why: str) -> None:
        trial.set_user_attr(_LOST, why)
        self._tell(trial.number, TrialState.FAIL)

    def _fail_the_dead(self) -> None:
        for trial in self.counted():
            if trial.state != TrialState.RUNNING or not self._is_dead(trial):
                continue
            deaths = trial.user_attrs.get(_DEATHS, 0) + 1
            if deaths < _MOST_DEATHS:
                _LOG.warning("trial %d: its worker is gone, it will be tried again", trial.number)
                self.try_again(trial._trial_id, deaths)
            else:  # the system ends a process that takes too much memory, with no word to it
                why = f"the worker died, {deaths} times with these parameters; of memory, perhaps"
                self._end(trial._trial_id, {_DEATHS: deaths, _RESULT: _no_result(why)})

    def _is_dead(self, trial: FrozenTrial) -> bool:
        worker = trial.user_attrs.get(_WORKER)
        if worker is None:  # killed before it could say who it is, or about to
            # Its time of beginning is in the local time of who knows which machine.
            seen = self._nobodys.setdefault(trial.number, time.monotonic())
            return time.monotonic() - seen > _LEASE_SECONDS
        if worker["machine"] == _machine():
            try:
                process = psutil.Process(worker["pid"])
                is_it = process.create_time() == worker["began"]
                if not is_it or process.status() == psutil.STATUS_ZOMBIE:
                    return True
            except psutil.NoSuchProcess:
                return True
        # A process may live on and have left its trial, as when the disk was full at that moment.
        return bool(time.time() > worker["until"])

    def try_again(self, trial_id: int, deaths: int | None = None) -> None:
        """Fail a trial that nobody goes on with, so that it doesn't count; put it in the queue.

        Parameters
        ----------
        trial_id : int
            The storage's, of the trial.
        deaths : int or None, default=None
            How many workers have died of it by now; None is as many as before.
        """
        marks: dict[str, Any] = {} if deaths is None else {_DEATHS: deaths}
        if self._end(trial_id, {**marks, _LOST: "its worker was gone"}):
            self._queue(self.study._storage.get_trial(trial_id))

    def _end(self, trial_id: int, marks: Mapping[str, Any]) -> bool:
        """Mark a trial and fail it; return whether it had not ended before."""
        storage = self.study._storage
        try:
            for name, value in marks.items():
                storage.set_trial_user_attr(trial_id, name, value)
            return storage.set_trial_state_values(trial_id, TrialState.FAIL)
        except RuntimeError:  # Optuna's of a trial that has ended is one
            if not storage.get_trial(trial_id).state.is_finished():
                raise
            return False  # another has done it, or it has come to its end after all

    def _queue(self, lost: FrozenTrial) -> None:
        """Have what was drawn tried again, with the sampler's notes on it: whose point it is."""
        again = create_trial(
            state=TrialState.WAITING,
            params=lost.params,
            distributions=lost.distributions,
            system_attrs=lost.system_attrs,
            user_attrs={_AGAIN: lost.number, _DEATHS: lost.user_attrs.get(_DEATHS, 0)},
        )
        self.study.add_trial(again)

    @contextmanager
    def working_on(self, trial: Trial) -> Iterator[None]:
        """Hold a trial for the length of the body; one that is broken off is tried again."""
        over = threading.Event()

        def keep_alive() -> None:
            while not over.wait(_BEAT_SECONDS):
                try:
                    trial.storage.set_trial_user_attr(trial._trial_id, _WORKER, _me())
                except Exception as error:  # the storage may be back at the next beat
                    _LOG.warning("trial %d: could not renew its lease: %r", trial.number, error)

        beat = threading.Thread(target=keep_alive, daemon=True, name="skgpt-lease")
        beat.start()
        try:
            yield
        except BaseException:
            self._stop(over, beat)
            self.try_again(trial._trial_id)
            raise
        finally:
            self._stop(over, beat)

    @staticmethod
    def _stop(over: threading.Event, beat: threading.Thread) -> None:
        over.set()
        beat.join()

    def finish(self, trial: Trial, outcome: Outcome) -> None:
        """Write down what came of a trial.

        Parameters
        ----------
        trial : optuna.trial.Trial
        outcome : Outcome
        """
        error = "" if outcome.error is None else _one_line(outcome.error)
        result = {
            "n_epochs": outcome.n_epochs,
            "fit_time": outcome.fit_time,
            "score_time": outcome.score_time,
            "test_scores": outcome.test_scores,
            "train_scores": outcome.train_scores,
            "error": error,
        }
        try:
            trial.set_user_attr(_RESULT, result)
            if outcome.state == "COMPLETE":
                self._tell(trial.number, TrialState.COMPLETE, outcome.value)
            else:
                self._tell(trial.number, TrialState[outcome.state])
        except (RuntimeError, ValueError):  # Optuna's of a trial that has ended are such
            marks = trial.storage.get_trial(trial._trial_id).user_attrs
            if _LOST not in marks and marks.get(_DEATHS, 0) < _MOST_DEATHS:
                raise
            _LOG.warning("trial %d was taken for dead meanwhile; this end counts not", trial.number)

    def _tell(self, number: int, state: TrialState, value: float | None = None) -> None:
        # A sampler that has nothing left to draw stops the study, which is not ours to run.
        self.study.stop = self._stop_drawing  # type: ignore[method-assign]
        try:
            self.study.tell(number, value, state=state)
        finally:
            del self.study.stop

    def _stop_drawing(self) -> None:
        self.is_exhausted = True


def result_of(trial: FrozenTrial) -> dict[str, Any]:
    """Return what `TrialStore.finish` wrote down."""
    result: dict[str, Any] = trial.user_attrs[_RESULT]
    return result


def _no_result(error: str) -> dict[str, Any]:
    times: dict[str, Any] = {"fit_time": [], "score_time": []}
    return {"n_epochs": 0, **times, "test_scores": [], "train_scores": [], "error": error}


def _one_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _me() -> dict[str, Any]:
    process = psutil.Process()
    return {
        "machine": _machine(),
        "pid": process.pid,
        "began": process.create_time(),
        "until": time.time() + _LEASE_SECONDS,
    }


def _machine() -> str:
    """Return where a process's number means this process: the machine, or the container."""
    try:
        inside = os.readlink("/proc/self/ns/pid")
        boot = Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
    except OSError:  # not Linux
        inside, boot = "", f"{uuid.getnode():x}"
    return f"{platform.node()} {boot} {inside}"  # names are often the same: localhost, ubuntu
