"""Workers that their caller's backend starts: what they must find, and when they stop."""

import shutil
import threading
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from skgpt.exceptions import StorageError
from skgpt.tuning import workers
from tests.tuning.processes import stored, trials_in
from tests.tuning.searching import DATA

Call = tuple[Callable[..., None], tuple[Any, ...], dict[str, Any]]


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[list[Call]], Any]], None]:
    """Return a function that has joblib's calls made by another."""

    def use(make_calls: Callable[[list[Call]], Any]) -> None:
        class Parallel:
            def __init__(self, n_jobs: int) -> None:
                self.n_jobs = n_jobs

            def __call__(self, calls: Iterable[tuple[Any, ...]]) -> None:
                # scikit-learn's delayed wraps the function, to hand on its configuration.
                plain = [(call[0].function, call[1], call[2]) for call in calls]
                assert len(plain) == self.n_jobs
                make_calls(plain)

        monkeypatch.setattr(workers, "Parallel", Parallel)

    return use


@pytest.mark.parametrize("kept", [False, True])
def test_workers__on_another_disk__are_refused(
    tiny_llama: str, tmp_path: Path, backend: Any, kept: bool
) -> None:
    file, copy = tmp_path / "search.db", tmp_path / "copy.db"
    if kept:  # a copy of the study as it was before is on that disk
        stored(tiny_llama, file, n_trials=1, refit=False).fit(*DATA)
        shutil.copy(file, copy)

    def make_elsewhere(calls: list[Call]) -> None:
        for run, (job, *rest), _ in calls:
            run(replace(job, storage=str(copy)), *rest)

    backend(make_elsewhere)
    search = stored(tiny_llama, file if kept else None, n_jobs=2)
    with pytest.raises(StorageError, match="must be one that all of them see: a database"):
        search.fit(*DATA)
    assert copy.exists() == kept
    assert len(trials_in(copy)) == kept  # nothing was tried there


def test_workers__the_caller_waits_no_longer__end_at_the_next_epoch(
    tiny_llama: str, tmp_path: Path, backend: Any, at_epochs: Any
) -> None:
    begun, gone = threading.Event(), threading.Event()
    epochs: list[int] = []

    def wait(record: Any) -> None:
        epochs.append(record["epoch"])
        begun.set()
        assert gone.wait(60)

    at_epochs(end=wait)
    threads: list[threading.Thread] = []

    def make_one_and_leave(calls: list[Call]) -> None:
        run, given, _ = calls[0]
        threads.append(threading.Thread(target=run, args=given))
        threads[0].start()
        assert begun.wait(60)
        raise KeyboardInterrupt

    backend(make_one_and_leave)
    file = tmp_path / "search.db"
    with pytest.raises(KeyboardInterrupt):
        stored(tiny_llama, file, n_jobs=2).fit(*DATA)
    gone.set()
    threads[0].join(60)
    assert not threads[0].is_alive()
    assert epochs == [1, 1]  # of both folds; there would be three
    assert [trial.state.name for trial in trials_in(file)] == ["FAIL", "WAITING"]


def test_workers__more_of_them_than_asked_for__as_many_as_asked_for_work(
    tiny_llama: str, backend: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []

    def make_them(calls: list[Call]) -> None:
        seen.append(len(calls))
        for run, given, _ in calls:
            run(*given)

    backend(make_them)
    monkeypatch.setattr(workers, "effective_n_jobs", lambda n_jobs: 8)  # as Dask's backend says
    for n_jobs in (2, None):
        found = stored(tiny_llama, None, n_jobs=n_jobs, refit=False).fit(*DATA)
        assert found.cv_results_["trial_state"].tolist() == ["COMPLETE"] * 4
    assert seen == [2, 4]  # and no more than there are trials
