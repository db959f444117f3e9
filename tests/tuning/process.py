"""Searches in processes of their own, which a test may kill."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from skgpt import GPTTextClassifier
from skgpt.training.callbacks import EpochRecord, TrainingCallback
from skgpt.tuning import GPTSearchCV
from skgpt.tuning.study import open_storage
from tests.estimators.test_classifier import make
from tests.helpers import make_text_data, process_context

_CONTEXT = process_context(["tests.tuning.process", "tests.estimators.killed"])
RATES = {"head_learning_rate": [1e-7, 1e-5, 1e-3, 1e-2, 3e-2]}
_PATIENCE = 120.0


class Slow(TrainingCallback):
    """Has each epoch take so many seconds more."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def on_epoch(self, record: EpochRecord) -> bool:
        time.sleep(self.seconds)
        return False


def stored(folder: str, storage: Any, **options: Any) -> GPTSearchCV:
    """Return the search that the processes make."""
    given = {"n_trials": 4, "cv": 2, "pruner": None, "random_state": 0, **options}
    return GPTSearchCV(make(folder, max_epochs=3), RATES, storage=storage, **given)


def _search(folder: str, storage: Any, seconds: float, options: dict[str, Any]) -> None:
    GPTTextClassifier._monitors = lambda *_: [Slow(seconds)]  # type: ignore[method-assign]
    stored(folder, storage, **options).fit(*make_text_data(n_classes=2))


def begun(folder: str, storage: Any, *, seconds: float = 0.0, **options: Any) -> Any:
    """Return a process that has begun the search; each epoch takes so many seconds more."""
    process = _CONTEXT.Process(target=_search, args=(folder, storage, seconds, options))
    process.start()
    return process


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
        time.sleep(0.02)
