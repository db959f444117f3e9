"""Searches in processes of their own, which a test may kill."""

import json
import os
import time
from collections.abc import Callable
from itertools import groupby
from pathlib import Path
from typing import Any

from optuna.study import Study
from optuna.trial import Trial
from sqlalchemy import text

from skgpt import GPTTextClassifier
from skgpt import device as device_module
from skgpt.training.callbacks import EpochRecord, TrainingCallback
from skgpt.tuning import GPTSearchCV, gpu_locks, study
from skgpt.tuning.study import open_storage
from tests.helpers import make, make_text_data, process_context

_CONTEXT = process_context(["tests.tuning.processes", "tests.estimators.killed"])
RATES = {"head_learning_rate": [1e-7, 1e-5, 1e-3, 1e-2, 3e-2]}
_PATIENCE = 120.0


class Slow(TrainingCallback):
    """Makes each epoch take so many seconds more, and notes its process and its GPU."""

    def __init__(self, seconds: float, log: Path | None = None) -> None:
        self.seconds = seconds
        self.log = log

    def on_epoch(self, record: EpochRecord) -> bool:
        time.sleep(self.seconds)
        if self.log is not None:
            with open(self.log, "a", encoding="utf-8") as log:
                log.write(json.dumps([os.getpid(), device_module._CUDA_INDEX.get()]) + "\n")
        return False


def slow_down(seconds: float, log: Path | None = None) -> None:
    """Make this process's fits slow, and have its storages notice soon who has died."""
    study.HEARTBEAT_SECONDS, study.GRACE_SECONDS = 1, 5
    GPTTextClassifier._training_callbacks = lambda *_: [Slow(seconds, log)]  # type: ignore[method-assign]


def stored(folder: str, storage: Any, **options: Any) -> GPTSearchCV:
    """Return the search that the processes make."""
    given = {"n_trials": 4, "cv": 2, "pruner": None, "random_state": 0, **options}
    return GPTSearchCV(make(folder, max_epochs=3), RATES, storage=storage, **given)


def _search(
    folder: str, storage: Any, root: Path, devices: list[str], seconds: float, options: Any
) -> None:
    os.environ["SKGPT_CACHE"] = str(root)
    gpu_locks.cuda_devices = lambda: devices  # type: ignore[attr-defined]
    slow_down(seconds, root / "log")
    stored(folder, storage, **options).fit(*make_text_data(n_classes=2))


def begun(
    folder: str,
    storage: Any,
    root: Path,
    *,
    devices: list[str] | None = None,
    seconds: float = 0.1,
    **options: Any,
) -> Any:
    """Return a process that has begun the search, with a log of its epochs in `root`.

    `devices` names stand-ins for GPUs.
    """
    given = (folder, storage, root, devices or [], seconds, options)
    process = _CONTEXT.Process(target=_search, args=given)
    process.start()
    return process


def epochs_in(root: Path) -> list[tuple[int, int | None]]:
    """Return the process and the GPU of every epoch so far, in order of their ends."""
    log = root / "log"
    lines = log.read_text().splitlines() if log.exists() else []
    return [tuple(json.loads(line)) for line in lines]


def trained_on(root: Path, gpu: int) -> list[int]:
    """Return the processes that trained on a GPU, one after the other."""
    return [pid for pid, _ in groupby(pid for pid, each in epochs_in(root) if each == gpu)]


def trials_in(storage: Any) -> list[Any]:
    """Return the trials of a storage's only study, as far as it is written."""
    if isinstance(storage, Path) and not storage.exists():
        return []
    opened = open_storage(storage)
    studies = opened.get_all_studies()
    return opened.get_all_trials(studies[0]._study_id) if studies else []


def wait_until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + _PATIENCE
    while not is_so():
        assert time.monotonic() < deadline, "it never came to that"
        time.sleep(0.05)


def let_die(study: Study, trial: Trial) -> None:
    """Make the last heartbeat of a trial an old one."""
    storage: Any = study._storage
    with storage._backend.engine.begin() as connection:
        statement = "UPDATE trial_heartbeats SET heartbeat = :old WHERE trial_id = :id"
        given = {"old": "2000-01-01 00:00:00.000000", "id": trial._trial_id}
        assert connection.execute(text(statement), given).rowcount == 1
