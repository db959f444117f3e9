"""Searches that are stored: they go on, share a study, and notice who died."""

import pickle
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.storages import InMemoryStorage, JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState
from sklearn.exceptions import FitFailedWarning

from skgpt.exceptions import ContinuationError, StorageError, TuningError
from skgpt.tuning import study as study_module
from skgpt.tuning.space import Space
from skgpt.tuning.study import open_storage
from skgpt.tuning.trial_store import TrialStore
from tests.helpers import TextData
from tests.tuning.processes import RATES, begun, epochs_in, let_die, stored, trials_in, wait_until
from tests.tuning.searching import DATA, X, rows_of, y
from tests.tuning.servers import grpc_proxy, postgresql

_SECONDS = 180.0


def test_storage__the_same_call_again__goes_on(tiny_llama: str, tmp_path: Path, fits: Any) -> None:
    name = "search.journal"  # an SQLite file, whatever its ending
    whole = stored(tiny_llama, None, refit=False).fit(*DATA)
    fits.reset_mock()
    stored(tiny_llama, tmp_path / name, n_trials=2, refit=False).fit(*DATA)
    assert fits.call_count == 4
    again = stored(tiny_llama, str(tmp_path / name), refit=False).fit(*DATA)
    assert fits.call_count == 8
    for column, values in whole.cv_results_.items():
        if "time" not in column:
            np.testing.assert_array_equal(again.cv_results_[column], values, column)
    by_url = stored(tiny_llama, f"sqlite:///{tmp_path}/{name}", refit=False).fit(*DATA)
    assert fits.call_count == 8 and by_url.best_params_ == whole.best_params_
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_storage__a_pickle__needs_none(tiny_llama: str, tmp_path: Path) -> None:
    folder = tmp_path / "there"
    folder.mkdir()
    fitted = stored(tiny_llama, folder / "search.db", n_trials=2).fit(*DATA)
    data = pickle.dumps(fitted)
    assert not isinstance(fitted.study_._storage, InMemoryStorage)
    shutil.rmtree(folder)
    opened = pickle.loads(data)
    assert (opened.predict(DATA.X) == fitted.predict(DATA.X)).all()
    assert [trial.value for trial in opened.study_.trials] == list(
        fitted.cv_results_["mean_test_score"]
    )


def test_storage__ctrl_c__the_trial_is_tried_again(
    tiny_llama: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_epochs: Any
) -> None:
    storage = tmp_path / "search.db"
    at_epochs(begin=lambda epoch: signal.raise_signal(signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        stored(tiny_llama, storage).fit(*DATA)
    monkeypatch.undo()
    (lost, waiting) = trials_in(storage)
    assert (lost.state, waiting.state) == (TrialState.FAIL, TrialState.WAITING)
    found = stored(tiny_llama, storage).fit(*DATA)
    assert len(found.cv_results_["params"]) == 4
    assert found.cv_results_["params"][0] == lost.params


def test_storage__workers_died_of_a_trial__it_is_in_the_results(
    tiny_llama: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = tmp_path / "search.db"
    monkeypatch.setattr(study_module, "MAX_RETRIES", 0)
    monkeypatch.setattr("skgpt.tuning.trial_store.MAX_RETRIES", 0)
    first = stored(tiny_llama, storage, n_trials=1, refit=False).fit(*DATA)
    trial = TrialStore(first.study_, Space(RATES).distributions, 2).take()
    assert trial is not None
    let_die(first.study_, trial)
    with pytest.warns(FitFailedWarning, match="1 of 3 trials failed; 1 .* the worker died"):
        found = stored(tiny_llama, storage, n_trials=3, refit=False).fit(*DATA)
    assert found.cv_results_["trial_state"].tolist() == ["COMPLETE", "FAIL", "COMPLETE"]
    assert np.isnan(found.cv_results_["mean_fit_time"]).tolist() == [False, True, False]


def test_storage__other_data__other_study_or_error(tiny_llama: str, tmp_path: Path) -> None:
    storage = tmp_path / "search.db"
    options: dict[str, Any] = {"n_trials": 1, "refit": False}
    first = stored(tiny_llama, storage, **options).fit(X, y)
    same = stored(tiny_llama, storage, **options).fit(list(X), y.tolist())
    other = stored(tiny_llama, storage, **options).fit(X[::-1], y)
    assert first.study_.study_name == same.study_.study_name != other.study_.study_name
    named = {**options, "study_name": "mine"}
    stored(tiny_llama, storage, **named).fit(X, y)
    quieter = stored(tiny_llama, storage, **named)
    quieter.estimator.set_params(store_base=False)
    quieter.fit(X, y)
    with pytest.raises(ContinuationError, match=r"'mine' belongs .* this differs: X, `cv`, y\."):
        stored(tiny_llama, storage, **named).fit(X[:-4], y[:-4])
    changed = stored(tiny_llama, storage, **named)
    changed.estimator.set_params(max_epochs=4)
    with pytest.raises(ContinuationError, match=r"this differs: `max_epochs`\. Set another"):
        changed.fit(X, y)
    theirs = {"study_name": "theirs", "direction": "maximize"}
    study = optuna.create_study(storage=first.study_._storage, **theirs)
    study.add_trial(optuna.trial.create_trial(value=1.0))
    with pytest.raises(ContinuationError, match="'theirs' has trials of something else"):
        stored(tiny_llama, storage, **{**named, "study_name": "theirs"}).fit(X, y)


def test_storage__a_lambda__is_refused_if_kept(tiny_llama: str, tmp_path: Path) -> None:
    options: dict[str, Any] = {"n_trials": 1, "refit": False}
    options["scoring"] = lambda estimator, X, y: estimator.score(X, y)
    assert stored(tiny_llama, None, **options).fit(*DATA).best_score_ >= 0
    with pytest.raises(ContinuationError, match="lambda"):
        stored(tiny_llama, tmp_path / "search.db", **options).fit(*DATA)


@pytest.mark.parametrize("directions", [["minimize"], ["maximize", "maximize"]])
def test_storage__another_direction__is_refused(tiny_llama: str, directions: list[str]) -> None:
    memory = InMemoryStorage()
    study = optuna.create_study(storage=memory, study_name="mine", directions=directions)
    with pytest.raises(ContinuationError, match=f"created with '{', '.join(directions)}'"):
        stored(tiny_llama, memory, study_name="mine").fit(*DATA)
    assert study.trials == [] and study.user_attrs == {}


@pytest.mark.parametrize("content", [b"text,label\nhello,sport", b"SQLite format 3\0\n\0"])
def test_open_storage__a_file_of_another_kind__is_refused_and_left_as_it_is(
    tmp_path: Path, content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(study_module, "_WAITS", ())
    file = tmp_path / "theirs"
    file.write_bytes(content)
    with pytest.raises(StorageError, match="file is not a database"):
        open_storage(file)
    assert file.read_bytes() == content
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("no/such/folder/search.db", "`storage` must be"),
        ("nosuchdb://me:se:cret@host/db", r"'nosuchdb://me:\*\*\*@host/db' can't"),
    ],
)
def test_open_storage__that_can_not_be_opened__is_an_error_at_once_and_without_its_password(
    tmp_path: Path, where: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(study_module.time, "sleep", lambda seconds: pytest.fail("tries again"))
    with pytest.raises(StorageError, match=message) as caught:
        open_storage(where if "://" in where else tmp_path / where)
    assert "cret" not in str(caught.value)


def test_storage__in_memory_with_processes__is_refused(tiny_llama: str) -> None:
    with pytest.raises(TuningError, match="one in memory: pass"):
        stored(tiny_llama, InMemoryStorage(), n_jobs=2).fit(*DATA)


# --- Processes that share one study, in each kind of storage that several can share


@pytest.fixture
def shared(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Any]:
    """Return a storage without a study in it, and without tables."""
    if request.param == "sqlite":
        yield tmp_path / "search.db"
    elif request.param == "journal":
        yield JournalStorage(JournalFileBackend(str(tmp_path / "journal")))
    elif request.param == "postgresql":
        with postgresql() as url:
            yield url
    else:
        with grpc_proxy(tmp_path) as client:
            yield client


def in_storages(*names: str) -> Any:
    """Run a test in each of these storages, in SQLite in the first tier."""
    marks: dict[str, Any] = {
        "sqlite": [],
        "postgresql": pytest.mark.thorough,
        "journal": pytest.mark.thorough,
        "grpc": [pytest.mark.thorough, pytest.mark.network],  # over localhost
    }
    params = [pytest.param(name, marks=marks[name]) for name in names]
    return pytest.mark.parametrize("shared", params, indirect=True)


def check_whole(tiny_llama: str, data: TextData, storage: Any, n_trials: int) -> None:
    """Check that what was written down is what one process would have come to."""
    found = stored(tiny_llama, storage, n_trials=n_trials, refit=False).fit(*data)
    alone = stored(tiny_llama, None, n_trials=n_trials, refit=False).fit(*data)
    assert found.cv_results_["trial_state"].tolist() == ["COMPLETE"] * n_trials
    rows, expected = rows_of(found.cv_results_), rows_of(alone.cv_results_)
    common = rows.keys() & expected.keys()
    assert common and all(rows[params] == expected[params] for params in common)


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")  # the proxy
@in_storages("sqlite", "postgresql", "journal", "grpc")
def test_shared__two_processes__share_trials(tiny_llama: str, tmp_path: Path, shared: Any) -> None:
    workers = [begun(tiny_llama, shared, tmp_path, n_trials=6, refit=False) for _ in range(2)]
    for worker in workers:
        worker.join(_SECONDS)
        assert worker.exitcode == 0
    epochs = [pid for pid, _ in epochs_in(tmp_path)]
    assert len(epochs) == 6 * 2 * 3 and set(epochs) == {worker.pid for worker in workers}
    check_whole(tiny_llama, DATA, shared, 6)


@in_storages("sqlite", "postgresql")
def test_shared__one_of_two_is_killed__the_other_tries_its_trial_again(
    tiny_llama: str, tmp_path: Path, shared: Any
) -> None:
    workers = [begun(tiny_llama, shared, tmp_path, seconds=0.3) for _ in range(2)]
    victim = workers[0]

    def both_train() -> bool:
        return {pid for pid, _ in epochs_in(tmp_path)} == {worker.pid for worker in workers}

    wait_until(both_train)
    victim.kill()
    for worker in workers:
        worker.join(_SECONDS)
    assert workers[1].exitcode == 0
    trials = trials_in(shared)
    (lost,) = [trial for trial in trials if trial.state == TrialState.FAIL]
    (again,) = [t for t in trials if t.system_attrs.get("failed_trial") == lost.number]
    assert again.state == TrialState.COMPLETE and again.params == lost.params
    check_whole(tiny_llama, DATA, shared, 4)
