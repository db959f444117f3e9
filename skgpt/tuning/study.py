"""The Optuna study that a search is: where it is kept, what draws for it, what cuts it short."""

import copy
import os
import random
import re
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.pruners import (
    BasePruner,
    HyperbandPruner,
    MedianPruner,
    NopPruner,
    PercentilePruner,
    SuccessiveHalvingPruner,
)
from optuna.samplers import BaseSampler, TPESampler
from optuna.storages import BaseStorage, InMemoryStorage, JournalStorage
from optuna.storages.journal import (
    JournalFileBackend,
    JournalFileOpenLock,
    JournalFileSymlinkLock,
)
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import DBAPIError

from skgpt.exceptions import ContinuationError, StorageError
from skgpt.tuning.study_key import check_belongs

Storage = str | PathLike[str] | BaseStorage | None

# Optuna's own defaults are for hundreds of trials of hundreds of epochs. A first epoch says
# little, as the learning rates are still rising in it.
_STARTUP = {"n_startup_trials": 3, "n_warmup_steps": 2}
_JOURNAL_BEGINS = b'{"op_code":'
_WAITS = (0.2, 0.5, 1.0)  # seconds between tries to open a database

PRUNERS = {
    "median": lambda: MedianPruner(**_STARTUP),
    "percentile": lambda: PercentilePruner(25.0, **_STARTUP),
    "halving": lambda: SuccessiveHalvingPruner(min_resource=1, reduction_factor=2),
    "hyperband": lambda: HyperbandPruner(min_resource=1, reduction_factor=2),
}


def make_pruner(pruner: str | BasePruner | None) -> BasePruner:
    """Return the pruner of that name, or a copy of one that was passed: fits leave it as it was."""
    if pruner is None:
        return NopPruner()
    if isinstance(pruner, str):
        return PRUNERS[pruner]()
    return copy.deepcopy(pruner)


def make_sampler(sampler: BaseSampler | None, seed: int) -> BaseSampler:
    """Return TPE with this seed, or a copy of the sampler that was passed."""
    return SeededByTrial(seed) if sampler is None else copy.deepcopy(sampler)


class SeededByTrial(BaseSampler):
    """TPE that draws from the seed and the number of the trial.

    So a search that was killed goes on with what it would have drawn next, and not with its first
    points once more; and no two workers draw the same.

    Parameters
    ----------
    seed : int
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self._number = -1
        self._sampler = TPESampler()

    def _of(self, trial: FrozenTrial) -> TPESampler:
        if trial.number != self._number:
            drawn = np.random.SeedSequence([self.seed, trial.number]).generate_state(1)
            self._number, self._sampler = trial.number, TPESampler(seed=int(drawn[0]))
        return self._sampler

    def infer_relative_search_space(
        self, study: Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """Return what is drawn together."""
        return self._of(trial).infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Draw what is drawn together."""
        return self._of(trial).sample_relative(study, trial, search_space)

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: Any
    ) -> Any:
        """Draw one parameter by itself."""
        return self._of(trial).sample_independent(study, trial, param_name, param_distribution)

    def after_trial(
        self,
        study: Study,
        trial: FrozenTrial,
        state: TrialState,
        values: Sequence[float] | None,
    ) -> None:
        """Take note of a trial that has ended."""
        self._of(trial).after_trial(study, trial, state, values)


def open_storage(storage: Storage) -> BaseStorage:
    """Return Optuna's storage: in memory for None, a journal in a file for a path, or a URL's.

    Raises
    ------
    StorageError
        If the file can't be written to, or the storage not opened.
    """
    if storage is None:
        return InMemoryStorage()
    if isinstance(storage, BaseStorage):
        return storage
    where = located(os.fspath(storage))
    try:
        return _database(where) if "://" in where else _journal(Path(where))
    except Exception as error:  # each database's driver has errors of its own
        raise StorageError(
            "`storage` must be a file that can be written to, in a folder that is there, an URL "
            f"of a database, or an Optuna storage. {shown(storage)} can't be opened: {error}"
        ) from error


def shown(storage: Storage) -> str:
    """Return a storage as messages name it, an URL without its password."""
    if isinstance(storage, BaseStorage | None):
        return repr(storage)
    return repr(re.sub(r"(://[^:/@]*):[^/]*@", r"\1:***@", os.fspath(storage)))


def located(where: str) -> str:
    """Return a path as one that is the same from every folder, and an URL as it is."""
    return where if "://" in where else str(Path(where).expanduser().absolute())


def storage_with(storage: Storage, name: str) -> BaseStorage | None:
    """Open a storage if there is a study of that name in it; no file is made to find out."""
    if isinstance(storage, str | PathLike):
        where = located(os.fspath(storage))
        if "://" not in where and not Path(where).exists():
            return None
    opened = open_storage(storage)
    return opened if name in optuna.get_all_study_names(opened) else None


def _database(url: str) -> BaseStorage:
    # Of those that find a database empty at the same time, one makes the tables; the others fail.
    for seconds in _WAITS:
        try:
            return optuna.storages.get_storage(url)
        except DBAPIError:
            time.sleep(seconds * random.uniform(0.5, 1.0))
    return optuna.storages.get_storage(url)


def _journal(file: Path) -> JournalStorage:
    lock = _Lock(file)
    if file.exists():
        _check_is_journal(file)  # or what a user has in it would be cut
        lock.acquire()
        lock.release()
    return JournalStorage(JournalFileBackend(str(file), lock_obj=lock))


class _MendingLock:
    """The lock of a journal, which finds it whole: what is appended must begin a line.

    Another may have been killed in the middle of a line, or the disk was full there, while this
    worker lives and goes on writing.

    Parameters
    ----------
    file : Path
        The journal.
    """

    def __init__(self, file: Path) -> None:
        super().__init__(str(file))  # type: ignore[call-arg]
        self._file = file

    def acquire(self) -> bool:
        """Wait for the lock, then cut off a last line that was not written whole."""
        acquired: bool = super().acquire()  # type: ignore[misc]
        try:
            _cut_torn_line(self._file)
        except BaseException:
            self.release()  # type: ignore[attr-defined]
            raise
        return acquired


class _LinkLock(_MendingLock, JournalFileSymlinkLock):
    """By a symbolic link, which only one can make, on any shared disk that knows them."""


class _FileLock(_MendingLock, JournalFileOpenLock):
    """By a file, which only one can make: most users of Windows may make no symbolic links."""


_Lock = _FileLock if sys.platform == "win32" else _LinkLock


def _check_is_journal(file: Path) -> None:
    with open(file, "rb") as opened:
        begins = opened.read(len(_JOURNAL_BEGINS))
    if not _JOURNAL_BEGINS.startswith(begins):  # the first line may be torn as well
        raise ValueError(
            "it is a file of another kind than Optuna's journals; it was left as it is. For an "
            "SQLite database pass 'sqlite:///' and its path."
        )


def _cut_torn_line(file: Path) -> None:
    """Cut off a last line that was not written whole: whatever follows it could not be read."""
    with open(file, "r+b") as journal:
        if journal.seek(0, os.SEEK_END) == 0:
            return
        journal.seek(-1, os.SEEK_END)
        if journal.read() != b"\n":
            journal.seek(0)
            journal.truncate(journal.read().rfind(b"\n") + 1)


def open_study(
    storage: BaseStorage,
    name: str,
    belongs_to: Mapping[str, Any],
    sampler: BaseSampler,
    pruner: BasePruner,
) -> Study:
    """Open the study of that name, or make it.

    Parameters
    ----------
    storage : optuna.storages.BaseStorage
    name : str
    belongs_to : mapping of str to object
        All that its trials' results depend on, by names that a user knows.
    sampler : optuna.samplers.BaseSampler
    pruner : optuna.pruners.BasePruner

    Returns
    -------
    study : optuna.study.Study

    Raises
    ------
    ContinuationError
        If there is one that belongs to something else, or that doesn't maximise one score; the
        message names what differs.
    """
    with quiet():
        study = optuna.create_study(
            storage=storage,
            sampler=sampler,
            pruner=pruner,
            study_name=name,
            direction="maximize",
            load_if_exists=True,
        )
    if study.directions != [StudyDirection.MAXIMIZE]:  # Optuna takes what is there as it is
        found = ", ".join(direction.name.lower() for direction in study.directions)
        raise ContinuationError(
            "A search needs a study that maximises one score. "
            f"{name!r} has been created with {found!r}: set another `study_name`."
        )
    check_belongs(study, belongs_to)
    return study


@contextmanager
def quiet() -> Iterator[None]:
    """Keep Optuna from announcing studies on the terminal."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(max(before, optuna.logging.WARNING))
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)


def kept_in_memory(study: Study) -> Study:
    """Return a copy of a study that needs its storage no more; itself if it is in memory."""
    storage = study._storage
    if isinstance(storage, InMemoryStorage):
        return study
    memory = InMemoryStorage()
    with quiet():
        optuna.copy_study(from_study_name=study.study_name, from_storage=storage, to_storage=memory)
        return optuna.load_study(
            study_name=study.study_name, storage=memory, sampler=study.sampler, pruner=study.pruner
        )
