"""What a worker of a search does: take a trial, evaluate it, write down what came of it, and again.

A search has one worker in its own process, or several in processes of their own, which know of
each other through the study alone.
"""

import platform
import tempfile
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, replace
from os import PathLike, fspath
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

from skgpt.device import trim_malloc
from skgpt.exceptions import StorageError, TuningError
from skgpt.training.callbacks import shows_bars, write_line
from skgpt.tuning.gpu_locks import devices_of, held_lease, leased
from skgpt.tuning.space import Space
from skgpt.tuning.study import (
    Storage,
    kept_in_memory,
    located,
    make_pruner,
    make_sampler,
    open_storage,
    open_study,
    shown,
    storage_with,
)
from skgpt.tuning.trial import Evaluation, Outcome, evaluate, forget_frames
from skgpt.tuning.trial_store import TrialStore

_POLL_SECONDS = 0.5


@dataclass(frozen=True)
class Job:
    """All that the workers of a search are given.

    Parameters
    ----------
    work : Evaluation
    param_distributions : dict
        What `Space` is made of.
    storage : str, path-like, optuna.storages.BaseStorage or None
    study_name : str
    belongs_to : dict
    sampler : optuna.samplers.BaseSampler or None
    pruner : str, optuna.pruners.BasePruner or None
    seed : int
        Of the sampler.
    n_trials : int
        Of all workers together.
    deadline : float
        In `time.time`, after which no trial is begun.
    raises : bool
        Whether an error in a trial ends the search.
    verbose : int
    call : str
        Under which the caller's word to its workers is kept in the study; empty without any.
    """

    work: Evaluation
    param_distributions: dict[str, Any]
    storage: Storage
    study_name: str
    belongs_to: dict[str, Any]
    sampler: BaseSampler | None
    pruner: str | BasePruner | None
    seed: int
    n_trials: int
    deadline: float
    raises: bool
    verbose: int
    call: str = ""

    def open(self, index: int = 0) -> Study:
        """Open the study, as the worker of that index."""
        study = open_study(
            open_storage(self.storage),
            self.study_name,
            self.belongs_to,
            make_sampler(self.sampler, self.seed),
            make_pruner(self.pruner),
        )
        # A sampler of the user's would draw the same in every process, and in each call anew.
        if index or study.get_trials(deepcopy=False):
            study.sampler.reseed_rng()
        return study

    def ledger(self, study: Study) -> TrialStore:
        """Return the study's trials, as one of its workers sees them."""
        return TrialStore(study, Space(self.param_distributions).distributions, self.n_trials)


def run(job: Job, n_jobs: int | None) -> Study:
    """Run a search to its end, here or in processes of their own.

    Parameters
    ----------
    job : Job
    n_jobs : int or None
        As joblib takes it.

    Returns
    -------
    study : optuna.study.Study

    Raises
    ------
    TuningError
        If several processes are to share a storage in memory.
    """
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
    # Windows removes no file that a worker is still writing to.
    with tempfile.TemporaryDirectory(prefix="skgpt-search-", ignore_cleanup_errors=True) as folder:
        shared = replace(job, storage=str(Path(folder) / "study.journal"))
        return kept_in_memory(_run_in_processes(shared, n_workers))


def _run_in_processes(job: Job, n_workers: int) -> Study:
    if isinstance(job.storage, str | PathLike):  # workers may be in another folder
        job = replace(job, storage=located(fspath(job.storage)))
    job = replace(job, call=f"skgpt:call {uuid.uuid4().hex}")
    study = job.open()  # so that an error in it is raised here, and once
    study.set_user_attr(job.call, True)
    try:
        held = held_lease()
        Parallel(n_jobs=n_workers)(
            delayed(run_called)(job, index, held) for index in range(n_workers)
        )
    finally:  # a cluster's workers go on with what they are at, whatever became of the caller
        study.set_user_attr(job.call, False)
    return study


class _CalledOff(BaseException):
    """The caller waits no longer; not an error of the trial that it ends."""


def run_called(job: Job, index: int, held: int | None = None) -> None:
    """Work on a search in another process than its caller, while that one waits.

    Parameters
    ----------
    job : Job
    index : int
        Of the worker.
    held : int, default=None
        The GPU that whoever waits for this worker has a lease of.

    Raises
    ------
    StorageError
        If this process doesn't see the study that the caller has opened.
    """
    opened = storage_with(job.storage, job.study_name)
    study = None if opened is None else replace(job, storage=opened).open(index)
    if study is None or job.call not in study.user_attrs:
        raise StorageError(
            "With workers on other machines, `storage` must be one that all of them see: a "
            "database, Optuna's gRPC proxy, or a file on a disk that they share; None is a "
            f"temporary file of the caller's. The worker on {platform.node()!r} doesn't find the "
            f"caller's study in {shown(job.storage)}."
        )

    def heed() -> None:
        if not study.user_attrs[job.call]:
            raise _CalledOff

    try:
        run_worker(job, study, index, heed, held)
    except _CalledOff:
        return


def run_worker(
    job: Job,
    study: Study,
    index: int = 0,
    heed: Callable[[], None] = lambda: None,
    held: int | None = None,
) -> None:
    """Work on a search until there is nothing left to do, here or for others.

    On a GPU it waits until it has one to itself, which it keeps until it is done: so of more
    workers than devices some never take any of a device's memory.

    Parameters
    ----------
    job : Job
    study : optuna.study.Study
    index : int, default=0
        Of the worker; the first one shows how far all of them are.
    heed : callable, default does nothing
        Called before each trial, after each epoch and while it waits for a GPU; what it raises
        ends the work.
    held : int, default=None
        The GPU that whoever waits for this worker has a lease of.

    Raises
    ------
    Exception
        What a trial raised, if `job.raises`.
    """
    space = Space(job.param_distributions)
    ledger = job.ledger(study)
    bar = TrialsBar(ledger, job.verbose if index == 0 else 0)

    def is_over() -> bool:
        heed()
        bar.show()
        return time.time() >= job.deadline or ledger.is_over()

    wanted = devices_of(job.work.estimator, job.param_distributions)
    try:
        with leased(wanted, index, is_over, held) as has_a_device:
            if has_a_device:
                _work_through(job, space, ledger, bar, heed)
    finally:
        bar.close()


def _work_through(
    job: Job, space: Space, ledger: TrialStore, bar: "TrialsBar", heed: Callable[[], None]
) -> None:
    while time.time() < job.deadline:
        heed()
        trial = ledger.take()
        bar.show()
        if trial is not None:
            _work_on(trial, job, space, ledger, bar, heed)
        elif ledger.is_anybody_working():  # whose trial is tried again if they die
            time.sleep(_POLL_SECONDS)
        else:
            break


def _work_on(
    trial: Trial,
    job: Job,
    space: Space,
    ledger: TrialStore,
    bar: "TrialsBar",
    heed: Callable[[], None],
) -> None:
    def report(epoch: int, score: float) -> bool:
        heed()
        trial.report(score, epoch)
        return trial.should_prune()

    with ledger.working_on(trial):
        outcome = evaluate(job.work, space.params(trial.params), report)
        ledger.finish(trial, outcome)
    bar.show(outcome)
    if outcome.error is not None:
        if job.raises:
            raise outcome.error
        forget_frames(outcome.error)
    trim_malloc()


class TrialsBar:
    """A tqdm bar of the trials of all workers, with the best score and what became of the others.

    Parameters
    ----------
    ledger : TrialStore
    verbose : int
        0 shows nothing; from 2 on there is a line per trial of this worker. Where no bar can be
        drawn, as in a log file, there are the lines alone from 1 on.
    **options
        Passed on to tqdm, for tests.
    """

    def __init__(self, ledger: TrialStore, verbose: int, **options: Any) -> None:
        self._ledger = ledger
        self._bar: Any = None
        draws = bool(verbose) and shows_bars(options.get("file"))
        self._writes = verbose > 1 or (bool(verbose) and not draws)
        if draws:
            done = len(ledger.finished())
            limits = {"total": ledger.n_trials, "initial": done}
            self._bar = tqdm(**limits, desc="search", unit="trial", **options)

    def show(self, outcome: Outcome | None = None) -> None:
        """Show how far the search is, and what came of a trial if one has just ended."""
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
        trials = self._ledger.finished()
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
