"""The trials of a study, as its workers share them: who begins which, and what came of it.

In a storage with heartbeats, a trial whose worker died fails and doesn't count; its parameters are
tried again, but no more than twice, as they may be what the workers died of.
"""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from optuna.distributions import BaseDistribution
from optuna.samplers import BruteForceSampler, GridSampler
from optuna.storages import BaseStorage, fail_stale_trials
from optuna.storages._heartbeat import BaseHeartbeat, get_heartbeat_thread, is_heartbeat_enabled
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial, TrialState, create_trial

from skgpt.tuning.space import draw
from skgpt.tuning.study import GRACE_SECONDS, MAX_RETRIES, ignore_heartbeat_warnings
from skgpt.tuning.trial import Outcome

_LOG = logging.getLogger("skgpt")
_RESULT = "skgpt:result"
_WRITTEN = ("n_epochs", "fit_time", "score_time", "test_scores", "train_scores", "error")
_NOT_COUNTED = "skgpt:not_counted"  # why a trial counts for nothing


class CalledOff(BaseException):
    """Raised in a worker whose caller waits no longer; not an error of its trial."""


@dataclass
class TrialStore:
    """The trials of a study, as one of its workers reads and writes them."""

    study: Study
    distributions: Mapping[str, BaseDistribution]
    n_trials: int  # of all workers together
    is_exhausted: bool = False
    call: str = ""  # the study's attribute that is true while the caller waits for its workers

    def check_called(self) -> None:
        """Raise CalledOff if there is a caller in another process that waits no longer."""
        if self.call and not self.study.user_attrs[self.call]:
            raise CalledOff

    @property
    def storage(self) -> BaseStorage:
        """Where the study is stored."""
        return self.study._storage

    def counted(self) -> list[FrozenTrial]:
        """Return the trials that count, running ones included, in order of their numbers."""
        trials = self.study.get_trials(deepcopy=False)
        return [t for t in trials if t.state != TrialState.WAITING and _counts(t)]

    def finished(self) -> list[FrozenTrial]:
        """Return the trials that count and have ended."""
        return [trial for trial in self.counted() if trial.state.is_finished()]

    def is_anybody_working(self) -> bool:
        """Say whether some trial is running, here or elsewhere.

        Without heartbeats there is no telling whether its worker lives, so nobody waits for it.
        """
        running = any(trial.state == TrialState.RUNNING for trial in self.counted())
        return running and is_heartbeat_enabled(self.storage)

    def is_over(self) -> bool:
        """Say whether nothing is left to do, neither here nor for others."""
        none_left = len(self.counted()) >= self.n_trials or self._has_nothing_left()
        return none_left and not self.is_anybody_working()

    def take(self) -> Trial | None:
        """Begin a trial; return None if there is none to begin for now."""
        with ignore_heartbeat_warnings():
            fail_stale_trials(self.study)
        draws_once = isinstance(self.study.sampler, GridSampler | BruteForceSampler)
        while len(self.counted()) < self.n_trials and not self._has_nothing_left():
            with ignore_heartbeat_warnings():
                trial = self.study.ask()
            if is_heartbeat_enabled(self.storage):
                assert isinstance(self.storage, BaseHeartbeat)
                self.storage.record_heartbeat(trial._trial_id)
            draw(trial, self.distributions)

            # Other workers may have begun one at the same time.
            before = [t for t in self.counted() if t.number < trial.number]
            if len(before) >= self.n_trials:
                self.put_back(trial, "one too many")
            elif draws_once and trial.params in [t.params for t in before]:
                self._discard(trial, "another trial has the same point")
            else:
                return trial
        return None

    def _has_nothing_left(self) -> bool:
        """Say whether nothing is queued, and the sampler has no point that is not begun."""
        if self.study.get_trials(deepcopy=False, states=(TrialState.WAITING,)):
            return False
        sampler = self.study.sampler
        if self.is_exhausted or not isinstance(sampler, GridSampler):
            return self.is_exhausted
        # Asked for more, it would draw a point again, also in a search that goes on.
        attrs = [t.system_attrs for t in self.counted() if "grid_id" in t.system_attrs]
        begun = {a["grid_id"] for a in attrs if sampler._same_search_space(a["search_space"])}
        return len(begun) == sampler._n_min_trials

    @contextmanager
    def working_on(self, trial: Trial) -> Iterator[None]:
        """Send heartbeats while the body runs; put the trial back if the body is broken off."""
        try:
            with get_heartbeat_thread(trial._trial_id, self.storage):
                yield
        except BaseException:
            self.put_back(trial, "its worker was interrupted")
            raise

    def put_back(self, trial: Trial, why: str) -> None:
        """Discard a trial, and queue what was drawn for it, with the sampler's notes on it."""
        if self._has_ended(trial):
            return
        self._discard(trial, why)
        drawn = self.storage.get_trial(trial._trial_id)
        again = create_trial(
            state=TrialState.WAITING,
            params=drawn.params,
            distributions=drawn.distributions,
            system_attrs=drawn.system_attrs,
        )
        self.study.add_trial(again)

    def _discard(self, trial: Trial, why: str) -> None:
        trial.set_user_attr(_NOT_COUNTED, why)
        self._tell(trial.number, TrialState.FAIL)

    def _has_ended(self, trial: Trial) -> bool:
        return self.storage.get_trial(trial._trial_id).state.is_finished()

    def finish(self, trial: Trial, outcome: Outcome) -> bool:
        """Write down what came of a trial; return whether it counts."""
        if self._has_ended(trial):
            _LOG.warning("trial %d: no result, since its worker was taken for dead", trial.number)
            return False
        error = outcome.error
        said = "" if error is None else " ".join(f"{type(error).__name__}: {error}".split())
        result = {**vars(outcome), "error": said}
        trial.set_user_attr(_RESULT, {name: result[name] for name in _WRITTEN})
        value = outcome.value if outcome.state == "COMPLETE" else None
        self._tell(trial.number, TrialState[outcome.state], value)
        return True

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
    """Return what `TrialStore.finish` wrote down, or that the trial's workers died."""
    died = f"the worker died, {MAX_RETRIES + 1} times with these parameters; of memory, perhaps"
    return trial.user_attrs.get(_RESULT, {**vars(Outcome("FAIL")), "error": died})


def _counts(trial: FrozenTrial) -> bool:
    """Say whether a trial counts: unless discarded, or tried again after its worker died."""
    if _NOT_COUNTED in trial.user_attrs:
        return False
    if trial.state == TrialState.RUNNING and not trial.params and trial.datetime_start is not None:
        # If nothing is drawn for so long, its worker died as it began it, without a heartbeat.
        return trial.datetime_start > datetime.now() - timedelta(seconds=GRACE_SECONDS)
    died = trial.state == TrialState.FAIL and _RESULT not in trial.user_attrs
    return not died or len(trial.system_attrs.get("retry_history", ())) >= MAX_RETRIES
