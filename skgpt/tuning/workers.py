"""The workers of a search: each takes a trial, evaluates it, writes down its result, and repeats.

A search has one worker in its own process, or several in processes of their own, which know of each
other through the study alone.
"""

import platform
import tempfile
import time
import uuid
from contextlib import suppress
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any

from joblib import effective_n_jobs
from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler
from optuna.storages import InMemoryStorage
from optuna.study import Study
from optuna.trial import Trial
from sklearn.utils.parallel import Parallel, delayed
from tqdm.auto import tqdm

from skgpt.device import placed_on, trim_malloc
from skgpt.exceptions import StorageError, TuningError
from skgpt.training.callbacks import shows_bars, write_line
from skgpt.tuning.gpu_locks import gpu_lock, wanted_gpus
from skgpt.tuning.space import Space
from skgpt.tuning.study import (
    Storage,
    absolute,
    copied_to_memory,
    make_pruner,
    make_sampler,
    open_storage,
    open_study,
    shown,
    storage_with,
)
from skgpt.tuning.trial import Evaluator, Outcome, drop_tracebacks
from skgpt.tuning.trial_store import CalledOff, TrialStore

_POLL_SECONDS = 0.5


@dataclass(frozen=True)
class Job:
    """All that the workers of a search are given."""

    evaluator: Evaluator
    param_distributions: Any
    storage: Storage
    study_name: str
    key: dict[str, Any] | None
    sampler: BaseSampler | None
    pruner: str | BasePruner | None
    seed: int  # of the sampler
    n_trials: int  # of all workers together
    deadline: float  # no trial begins after it, in `time.time`
    raises: bool  # whether an error in a trial ends the search
    verbose: int
    call: str = ""  # the study's attribute that is true while the caller waits for its workers

    def open(self, index: int = 0) -> Study:
        """Open the study, as the worker of that index."""
        study = open_study(
            open_storage(self.storage),
            self.study_name,
            self.key,
            make_sampler(self.sampler, self.seed),
            make_pruner(self.pruner),
        )
        # A sampler of the user's would draw the same in every process, and in each call anew.
        if index or study.get_trials(deepcopy=False):
            study.sampler.reseed_rng()
        return study

    def trial_store(self, study: Study) -> TrialStore:
        """Return the study's trials, as one of its workers sees them."""
        space = Space(self.param_distributions)
        return TrialStore(study, space.distributions, self.n_trials, call=self.call)


def run(job: Job, n_jobs: int | None) -> Study:
    """Run a search to its end, here or in processes of their own; `n_jobs` as in joblib."""
    n_workers = min(effective_n_jobs(n_jobs), job.n_trials)
    if n_jobs is not None and n_jobs > 0:
        n_workers = min(n_workers, n_jobs)  # a cluster's backend counts all that it has
    if n_workers == 1:
        study = job.open()
        run_worker(job, study)
        return study
    if isinstance(job.storage, InMemoryStorage):
        raise TuningError(
            "With `n_jobs`, `storage` must be one that processes share. Got one in memory: pass "
            "a path, an URL, or None for a file that is removed at the end."
        )
    if job.storage is not None:
        return _run_in_processes(job, n_workers)
    # Windows removes no file that a worker still has open.
    with tempfile.TemporaryDirectory(prefix="skgpt-search-", ignore_cleanup_errors=True) as folder:
        shared = replace(job, storage=str(Path(folder) / "study.db"))
        return copied_to_memory(_run_in_processes(shared, n_workers))


def _run_in_processes(job: Job, n_workers: int) -> Study:
    if isinstance(job.storage, str | PathLike):  # workers may be in another folder
        job = replace(job, storage=absolute(job.storage))
    job = replace(job, call=f"skgpt:call {uuid.uuid4().hex}")
    study = job.open()  # so that an error in it is raised here, and once
    study.set_user_attr(job.call, True)
    try:
        locked = placed_on()
        Parallel(n_jobs=n_workers)(
            delayed(run_called)(job, index, locked) for index in range(n_workers)
        )
    finally:  # a cluster's workers go on with their trials, whatever became of the caller
        study.set_user_attr(job.call, False)
    return study


def run_called(job: Job, index: int, locked: int | None = None) -> None:
    """Work on a search in another process than its caller, which waits and may have locked a GPU.

    Raises StorageError if this process doesn't find the caller's study.
    """
    opened = storage_with(job.storage, job.study_name)
    study = None if opened is None else replace(job, storage=opened).open(index)
    if study is None or job.call not in study.user_attrs:
        raise StorageError(
            "With workers on other machines, `storage` must be one that all of them see: a "
            "database, or Optuna's gRPC proxy; None is a temporary file of the caller's. The "
            f"worker on {platform.node()!r} doesn't find the caller's study in "
            f"{shown(job.storage)}."
        )
    with suppress(CalledOff):
        run_worker(job, study, index, locked)


def run_worker(job: Job, study: Study, index: int = 0, locked: int | None = None) -> None:
    """Work on a search until nothing is left to do, here or for others.

    On GPUs, a worker waits until it has one to itself and keeps that until it is done: of more
    workers than GPUs some never take any GPU memory. The first worker shows how far all of them
    are. Before each trial, after each epoch and while it waits for a GPU, a worker looks whether
    its caller still waits.
    """
    store = job.trial_store(study)
    bar = TrialsBar(store, job.verbose if index == 0 else 0)

    def is_over() -> bool:
        store.check_called()
        bar.show()
        return time.time() >= job.deadline or store.is_over()

    wanted = wanted_gpus(job.evaluator.estimator, job.param_distributions)
    try:
        with gpu_lock(wanted, index, is_over, locked) as may_train:
            while may_train and time.time() < job.deadline:
                store.check_called()
                trial = store.take()
                bar.show()
                if trial is not None:
                    _work_on(trial, job, store, bar)
                elif store.is_anybody_working():  # if they die, their trial is tried again
                    time.sleep(_POLL_SECONDS)
                else:
                    break
    finally:
        bar.close()


def _work_on(trial: Trial, job: Job, store: TrialStore, bar: "TrialsBar") -> None:
    def report(epoch: int, score: float) -> bool:
        store.check_called()
        trial.report(score, epoch)
        return trial.should_prune()

    params = Space(job.param_distributions).params(trial.params)
    with store.working_on(trial):
        outcome = job.evaluator.evaluate(params, report)
        counts = store.finish(trial, outcome)
    bar.show(outcome)
    if outcome.error is not None:
        if job.raises and counts:
            raise outcome.error
        drop_tracebacks(outcome.error)
    trim_malloc()


class TrialsBar:
    """A tqdm bar of the trials of all workers: the best score, how many were pruned or failed.

    `verbose` 0 shows nothing; from 2 on there is a line per trial of this worker as well. Where no
    bar can be drawn, as in a log file, there are the lines alone from 1 on.
    """

    def __init__(self, store: TrialStore, verbose: int) -> None:
        self._store = store
        self._bar: Any = None
        draws = bool(verbose) and shows_bars()
        self._writes = verbose > 1 or (bool(verbose) and not draws)
        if draws:
            limits = {"total": store.n_trials, "initial": len(store.finished())}
            self._bar = tqdm(**limits, desc="search", unit="trial")

    def show(self, outcome: Outcome | None = None) -> None:
        """Show how far the search is, and the outcome of a trial that has just ended."""
        if self._bar is not None:
            self._move()
        if outcome is not None and self._writes:
            why = "" if outcome.error is None else f" ({outcome.error})"
            score = "" if outcome.state != "COMPLETE" else f", score {outcome.value:.4f}"
            write_line(
                f"{outcome.state.lower()} after {outcome.n_epochs} epochs, "
                f"{sum(outcome.fit_time):.1f} s{score}{why}"
            )

    def _move(self) -> None:
        trials = self._store.finished()
        states = [trial.state.name for trial in trials]
        values = [float(t.values[0]) for t in trials if t.state.name == "COMPLETE"]
        shown = {"best": f"{max(values):.4f}" if values else "none"}
        for name, state in (("pruned", "PRUNED"), ("failed", "FAIL")):
            shown[name] = str(states.count(state))
        self._bar.set_postfix(shown, refresh=False)
        self._bar.update(len(trials) - self._bar.n)
        self._bar.refresh()

    def close(self) -> None:
        """Close the bar."""
        if self._bar is not None:
            self._bar.close()
