"""Workers of searches on GPUs: one at a time on each, and nobody waits for the dead."""

import logging
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from filelock import FileLock
from joblib import parallel_config
from optuna.distributions import CategoricalDistribution
from sklearn.dummy import DummyClassifier
from sklearn.ensemble import VotingClassifier
from sklearn.pipeline import make_pipeline

from skgpt import GPTTextClassifier
from skgpt.device import on_cuda_device, placed_on, resolve_device
from skgpt.exceptions import SearchFailedError
from skgpt.tuning import gpu_locks
from skgpt.tuning.gpu_locks import gpu_lock, wanted_gpus
from skgpt.tuning.trial import Evaluator, Outcome
from tests.tuning.processes import begun, epochs_in, trained_on
from tests.tuning.searching import DATA, RATES, piped, search

_PATIENCE = 300.0  # of processes on a busy machine
ANY = frozenset({"cuda"})


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the cache folder of a machine with two stand-ins for GPUs."""
    monkeypatch.setenv("SKGPT_CACHE", str(tmp_path))
    monkeypatch.setattr(gpu_locks, "cuda_devices", lambda: ["GPU-a", "GPU-b"])
    monkeypatch.setattr(gpu_locks, "_POLL_SECONDS", 0.02)
    return tmp_path


def lock_of(root: Path, device: str) -> FileLock:
    (root / "gpu_locks").mkdir(exist_ok=True)
    return FileLock(root / "gpu_locks" / f"{device}.lock")


def at_once() -> bool:
    return True


def never() -> bool:
    return False


def first_look() -> Any:
    """Return what gives up after all devices were looked at once."""
    return iter([False, True]).__next__


def test_search__three_processes_two_devices__one_on_each(tiny_llama: str, tmp_path: Path) -> None:
    options: dict[str, Any] = {"devices": ["a", "b"], "n_trials": 8, "refit": False}
    storage = tmp_path / "search.db"
    processes = [begun(tiny_llama, storage, tmp_path, **options) for _ in range(3)]
    for process in processes:
        process.join(_PATIENCE)
        assert process.exitcode == 0
    epochs = epochs_in(tmp_path)
    assert len(epochs) == 8 * 2 * 3 and {gpu for _, gpu in epochs} == {0, 1}
    for gpu in (0, 1):
        trained = trained_on(tmp_path, gpu)
        assert len(trained) == len(set(trained))  # nobody between two epochs of another


def test_search__n_jobs__spread_over_the_devices_and_queue(
    tiny_llama: str, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    together = threading.Barrier(2)  # none of two trials ends before the other has begun
    running: set[int | None] = set()

    def noting(self: Any, params: Any, report: Any) -> Outcome:
        device = placed_on()
        assert device in {0, 1} - running, "two on one device"
        running.add(device)
        together.wait(_PATIENCE)
        running.remove(device)
        return Outcome("COMPLETE", 0.5, 1, [0.0] * 2, [0.0] * 2, [0.5] * 2)

    monkeypatch.setattr(Evaluator, "evaluate", noting)
    file = root / "search.db"
    with parallel_config(backend="threading"):
        options: dict[str, Any] = {"n_trials": 4, "storage": file, "refit": False}
        found = search(tiny_llama, n_jobs=3, **options).fit(*DATA)
    assert len(found.cv_results_["params"]) == 4


def test_search__timeout_while_all_are_taken__begins_no_trial(tiny_llama: str, root: Path) -> None:
    began = time.monotonic()
    with (
        lock_of(root, "GPU-a"),
        lock_of(root, "GPU-b"),
        pytest.raises(SearchFailedError, match="Of this one's 0"),
    ):
        search(tiny_llama, timeout=0.5).fit(*DATA)
    assert 0.5 <= time.monotonic() - began < 20


def test_search__nothing_left_to_do__waits_for_no_device(tiny_llama: str, root: Path) -> None:
    options: dict[str, Any] = {"storage": root / "search.db", "refit": False}
    whole = search(tiny_llama, **options).fit(*DATA)
    with lock_of(root, "GPU-a"), lock_of(root, "GPU-b"):
        again = search(tiny_llama, **options).fit(*DATA)
    assert again.best_params_ == whole.best_params_


def test_search__on_another_device__is_the_same_search_with_the_same_parameters(
    tiny_llama: str, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    meant: list[torch.device] = []
    fit = GPTTextClassifier.fit

    def noting(self: Any, *given: Any, **more: Any) -> Any:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch.cuda, "is_available", lambda: True)
            patch.setattr(torch.cuda, "device_count", lambda: 2)
            meant.append(resolve_device(self.device))
        return fit(self, *given, **more)

    monkeypatch.setattr(GPTTextClassifier, "fit", noting)
    clf = piped(tiny_llama, max_epochs=2)
    space = {"gpttextclassifier__head_learning_rate": RATES["head_learning_rate"]}
    found = []
    for taken in ("GPU-b", "GPU-a"):
        with lock_of(root, taken):
            found.append(search(tiny_llama, space, estimator=clf, n_trials=2).fit(*DATA))
    first, second = found
    trials = [torch.device("cuda", n) for n in (0, 1)]
    # Two trials of two folds; what is fitted on everything is on the first device, as ever.
    assert meant == [*[trials[0]] * 4, trials[0], *[trials[1]] * 4, trials[0]]
    assert first.study_.study_name == second.study_.study_name
    assert first.best_params_ == second.best_params_ and list(first.best_params_) == list(space)
    assert second.best_estimator_.get_params()["gpttextclassifier__device"] == "auto"
    np.testing.assert_array_equal(
        first.cv_results_["mean_test_score"], second.cv_results_["mean_test_score"]
    )


def test_gpu_lock__inside_a_lock__is_the_same_device(root: Path) -> None:
    with gpu_lock(ANY, 1, never) as has_one:
        assert has_one and placed_on() == 1
        with lock_of(root, "GPU-a"), gpu_lock(ANY, 0, at_once) as has_one:
            assert has_one and placed_on() == 1
    assert placed_on() is None
    with lock_of(root, "GPU-b"), gpu_lock(ANY, 0, at_once, inherited=1) as has_one:  # the caller's
        assert has_one and placed_on() == 1
    with gpu_lock(ANY, 0, at_once) as has_one:  # given up before it looked
        assert not has_one and placed_on() is None


@pytest.mark.parametrize(
    ("wanted", "taken", "device"),
    [
        (ANY, "GPU-a", 1),
        ({"cuda:1"}, "GPU-a", 1),
        ({"cuda:1"}, "GPU-b", None),
        ({"cuda", "cuda:1"}, "GPU-a", 1),
        ({"cuda", "cuda:1"}, "GPU-b", None),
        ({"cuda:0", "cuda:1"}, "GPU-b", None),
    ],
)
def test_gpu_lock__some_device_is_taken__waits_if_it_is_a_wanted_one(
    wanted: set[str], taken: str, device: int | None, root: Path
) -> None:
    with lock_of(root, taken), gpu_lock(frozenset(wanted), 0, first_look()) as has_one:
        assert has_one is (device is not None) and placed_on() == device
        if device is None:  # and then it holds nothing that others could have
            other = {"GPU-a": "GPU-b", "GPU-b": "GPU-a"}[taken]
            with lock_of(root, other).acquire(timeout=0):
                pass


@pytest.mark.parametrize("wanted", [frozenset(), frozenset({"cuda:7"})])
def test_gpu_lock__no_such_device__locks_nothing(wanted: frozenset[str], root: Path) -> None:
    with gpu_lock(wanted, 0, at_once) as has_one:  # of cuda:7, the fit will say what is wrong
        assert has_one and placed_on() is None
    assert not (root / "gpu_locks").exists()


def test_gpu_lock__no_cuda__locks_nothing(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setenv("SKGPT_CACHE", str(root))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with gpu_lock(ANY, 0, at_once) as has_one:
        assert has_one and placed_on() is None
    assert list(root.iterdir()) == []


def test_gpu_lock__no_locks_there__says_so(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    (root / "gpu_locks").write_text("in the way")
    with caplog.at_level(logging.WARNING, "skgpt"), gpu_lock(ANY, 3, never) as has_one:
        assert has_one and placed_on() == 1
    assert "GPU 1 may be shared" in caplog.text


def test_wanted_gpus__estimators_wherever_they_lie__are_all_found() -> None:
    def of(device: str) -> GPTTextClassifier:
        return GPTTextClassifier(device=device)

    voting = VotingClassifier([("a", of("auto")), ("b", make_pipeline(of("cuda:3")))])
    assert wanted_gpus(of("auto"), {}) == wanted_gpus(of("cuda"), {}) == {"cuda"}
    assert wanted_gpus(make_pipeline(make_pipeline(of("cuda:1"))), {}) == {"cuda:1"}
    assert wanted_gpus(voting, {}) == {"cuda", "cuda:3"}
    assert wanted_gpus(of("cpu"), {}) == wanted_gpus(of("mps"), {}) == frozenset()
    assert wanted_gpus(DummyClassifier(), {"strategy": ["prior"]}) == frozenset()
    assert wanted_gpus(DummyClassifier(), {"clf": [DummyClassifier(), of("cuda:2")]}) == {"cuda:2"}
    space = {"clf__device": CategoricalDistribution(["cpu", "cuda:1"]), "clf__model": ["cuda"]}
    assert wanted_gpus(of("cpu"), space) == {"cuda:1"}


def test_resolve_device__locked__moves_those_unnumbered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    names = ("auto", "cuda", "cuda:0", "cpu")
    with on_cuda_device(1):
        found = [str(resolve_device(name)) for name in names]
    assert found == ["cuda:1", "cuda:1", "cuda:0", "cpu"]
    assert [str(resolve_device(name)) for name in names] == ["cuda:0", "cuda:0", "cuda:0", "cpu"]
