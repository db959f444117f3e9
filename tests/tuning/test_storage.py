"""Searches that are kept: they go on, share a study, and notice who died."""

import errno
import pickle
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.trial import TrialState
from sklearn.exceptions import FitFailedWarning

from skgpt import GPTTextClassifier
from skgpt.exceptions import ContinuationError, SearchSpaceError, SearchStorageError
from skgpt.training.callbacks import TrainingCallback
from skgpt.tuning import study as study_module
from skgpt.tuning import trial_store as trial_store_module
from skgpt.tuning.space import Space
from skgpt.tuning.study import open_storage
from skgpt.tuning.trial import Outcome
from skgpt.tuning.trial_store import TrialStore, result_of
from tests.helpers import TextData
from tests.tuning.process import RATES, begun, stored, trials_in, wait_until
from tests.tuning.searching import rows_of


@pytest.fixture
def fits(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list that gets an entry for each fit."""
    made: list[int] = []
    fit = GPTTextClassifier.fit

    def counting(self: Any, *given: Any, **more: Any) -> Any:
        made.append(1)
        return fit(self, *given, **more)

    monkeypatch.setattr(GPTTextClassifier, "fit", counting)
    return made


def test_storage__the_same_call_again__goes_on_without_repeating(
    tiny_llama: str, two_class_data: TextData, tmp_path: Path, fits: list[int]
) -> None:
    journal = tmp_path / "search.journal"
    whole = stored(tiny_llama, None).fit(*two_class_data)
    fits.clear()
    stored(tiny_llama, journal, n_trials=2, refit=False).fit(*two_class_data)
    assert len(fits) == 4
    again = stored(tiny_llama, str(journal), refit=False).fit(*two_class_data)
    assert len(fits) == 8
    for name, column in whole.cv_results_.items():
        if "time" not in name:
            np.testing.assert_array_equal(again.cv_results_[name], column, name)
    url = f"sqlite:///{tmp_path}/search.db"
    assert stored(tiny_llama, url).fit(*two_class_data).best_params_ == whole.best_params_
    fits.clear()
    stored(tiny_llama, url, refit=False).fit(*two_class_data)
    assert fits == []


def test_storage__killed_in_the_middle__goes_on(
    tiny_llama: str, two_class_data: TextData, tmp_path: Path, fits: list[int]
) -> None:
    whole = stored(tiny_llama, None).fit(*two_class_data)
    journal = tmp_path / "search.journal"
    process = begun(tiny_llama, journal, seconds=0.1)

    def is_in_its_second_trial() -> bool:
        trials = trials_in(journal)
        return len(trials) == 2 and bool(trials[1].intermediate_values)

    wait_until(is_in_its_second_trial)
    process.kill()
    process.join()
    fits.clear()
    again = stored(tiny_llama, journal, refit=False).fit(*two_class_data)
    assert len(fits) == 6  # the first trial was whole, and two folds for each of the others
    states = [trial.state for trial in again.study_.trials]
    assert states == [TrialState.COMPLETE, TrialState.FAIL, *[TrialState.COMPLETE] * 3]
    assert again.study_.trials[1].params == again.study_.trials[2].params
    assert again.cv_results_["trial_state"].tolist() == ["COMPLETE"] * 4
    found, expected = rows_of(again.cv_results_), rows_of(whole.cv_results_)
    for params in found.keys() & expected.keys():
        assert found[params] == expected[params]


def test_storage__a_pickle__needs_none(
    tiny_llama: str, two_class_data: TextData, tmp_path: Path
) -> None:
    folder = tmp_path / "there"
    folder.mkdir()
    fitted = stored(tiny_llama, f"sqlite:///{folder}/search.db", n_trials=2).fit(*two_class_data)
    data = pickle.dumps(fitted)
    assert not isinstance(fitted.study_._storage, optuna.storages.InMemoryStorage)
    shutil.rmtree(folder)
    opened = pickle.loads(data)
    assert (opened.predict(two_class_data.X) == fitted.predict(two_class_data.X)).all()
    assert [trial.value for trial in opened.study_.trials] == list(
        fitted.cv_results_["mean_test_score"]
    )


@pytest.mark.parametrize("kept", [False, True])
def test_storage__n_jobs__are_processes_on_one_study(
    tiny_llama: str, two_class_data: TextData, tmp_path: Path, kept: bool
) -> None:
    storage = tmp_path / "search.journal" if kept else None
    found = stored(tiny_llama, storage, n_jobs=2).fit(*two_class_data)
    assert found.cv_results_["trial_state"].tolist() == ["COMPLETE"] * 4
    counted = [t for t in found.study_.trials if t.state == TrialState.COMPLETE]
    assert len(counted) == 4 and found.study_.best_value == found.best_score_
    assert sorted(path.name for path in tmp_path.iterdir()) == ["search.journal"] * kept


def test_storage__ctrl_c__the_trial_is_tried_again(
    tiny_llama: str, two_class_data: TextData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Interrupts(TrainingCallback):
        def on_epoch_begin(self, epoch: int) -> None:
            raise KeyboardInterrupt

    journal = tmp_path / "search.journal"
    with monkeypatch.context() as patched:
        patched.setattr(GPTTextClassifier, "_monitors", lambda *_: [Interrupts()])
        with pytest.raises(KeyboardInterrupt):
            stored(tiny_llama, journal).fit(*two_class_data)
    (lost, waiting) = trials_in(journal)
    assert (lost.state, waiting.state) == (TrialState.FAIL, TrialState.WAITING)
    found = stored(tiny_llama, journal).fit(*two_class_data)
    assert len(found.cv_results_["params"]) == 4
    assert found.cv_results_["params"][0] == lost.params


def test_storage__other_data_or_settings__another_study_or_refused(
    tiny_llama: str, two_class_data: TextData, tmp_path: Path
) -> None:
    X, y = two_class_data
    journal = tmp_path / "search.journal"
    options: dict[str, Any] = {"n_trials": 1, "refit": False}
    first = stored(tiny_llama, journal, **options).fit(X, y)
    same = stored(tiny_llama, journal, **options).fit(list(X), y.tolist())
    other = stored(tiny_llama, journal, **options).fit(X[::-1], y)
    assert first.study_.study_name == same.study_.study_name != other.study_.study_name
    named = {**options, "study_name": "mine"}
    stored(tiny_llama, journal, **named).fit(X, y)
    quieter = stored(tiny_llama, journal, **named)
    quieter.estimator.set_params(store_base=False)
    quieter.fit(X, y)
    with pytest.raises(ContinuationError, match=r"'mine' belongs .* this differs: X, `cv`, y\."):
        stored(tiny_llama, journal, **named).fit(X[:-4], y[:-4])
    changed = stored(tiny_llama, journal, **named)
    changed.estimator.set_params(max_epochs=4)
    with pytest.raises(ContinuationError, match=r"this differs: `max_epochs`\. Set another"):
        changed.fit(X, y)
    theirs = {"study_name": "theirs", "direction": "maximize"}
    optuna.create_study(storage=first.study_._storage, **theirs).ask()
    with pytest.raises(ContinuationError, match="'theirs' belongs"):
        stored(tiny_llama, journal, **{**named, "study_name": "theirs"}).fit(X, y)


@pytest.mark.parametrize("directions", [["minimize"], ["maximize", "maximize"]])
def test_storage__an_empty_study_of_another_direction__is_refused(
    tiny_llama: str, two_class_data: TextData, directions: list[str]
) -> None:
    memory = optuna.storages.InMemoryStorage()
    study = optuna.create_study(storage=memory, study_name="mine", directions=directions)
    with pytest.raises(ContinuationError, match=f"created with '{', '.join(directions)}'"):
        stored(tiny_llama, memory, study_name="mine").fit(*two_class_data)
    assert study.trials == [] and study.user_attrs == {}


def test_journal__where_nobody_may_make_links__has_a_file_for_its_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*args: Any) -> None:
        raise OSError(errno.EPERM, "A required privilege is not held by the client")

    monkeypatch.setattr("os.symlink", refused)
    with pytest.raises(OSError, match="privilege"):
        optuna.create_study(storage=open_storage(tmp_path / "search.journal"))
    monkeypatch.setattr(study_module, "_Lock", study_module._FileLock)
    opened = open_storage(tmp_path / "search.journal")
    optuna.create_study(storage=opened, study_name="mine")
    assert optuna.get_all_study_names(opened) == ["mine"]
    assert [path.name for path in tmp_path.iterdir()] == ["search.journal"]


def test_storage__a_last_line_written_by_half__is_cut_off(
    tiny_llama: str, two_class_data: TextData, tmp_path: Path
) -> None:
    journal = tmp_path / "search.journal"
    stored(tiny_llama, journal, n_trials=1).fit(*two_class_data)
    with open(journal, "ab") as file:
        file.write(b'{"op_code": 4, "wor')
    found = stored(tiny_llama, journal, n_trials=2).fit(*two_class_data)
    assert len(found.cv_results_["params"]) == 2 == len(trials_in(journal))


@pytest.mark.parametrize("lock", [study_module._LinkLock, study_module._FileLock])
def test_open_storage__a_line_torn_while_another_lives__does_not_spoil_what_follows(
    lock: type, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(study_module, "_Lock", lock)
    journal = tmp_path / "search.journal"
    study = optuna.create_study(storage=open_storage(journal), study_name="mine")
    for _ in range(2):
        with open(journal, "ab") as file:
            file.write(b'{"op_code":4,"wor')
        study.tell(study.ask(), 1.0)
    assert [trial.value for trial in study.trials] == [1.0, 1.0]
    assert [trial.value for trial in trials_in(journal)] == [1.0, 1.0]


@pytest.mark.parametrize("content", [b"text,label\nhello,sport", b"SQLite format 3\0\n\0", b"{}"])
def test_open_storage__a_file_of_another_kind__is_refused_and_left_as_it_is(
    tmp_path: Path, content: bytes
) -> None:
    file = tmp_path / "theirs"
    file.write_bytes(content)
    with pytest.raises(SearchStorageError, match="another kind than Optuna's journals"):
        open_storage(file)
    assert file.read_bytes() == content
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize("torn", [b"", b'{"op', b'{"op_code":0,"wor'])
def test_open_storage__a_first_line_written_by_half__is_a_journal(
    tmp_path: Path, torn: bytes
) -> None:
    file = tmp_path / "search.journal"
    file.write_bytes(torn)
    assert open_storage(file).get_all_studies() == []


@pytest.mark.parametrize("where", ["no/such/folder/search.journal", "nosuchdb://a/b"])
def test_storage__that_can_not_be_opened__is_an_error(
    tiny_llama: str, two_class_data: TextData, tmp_path: Path, where: str
) -> None:
    storage = where if "://" in where else tmp_path / where
    with pytest.raises(SearchStorageError, match="`storage` must be"):
        stored(tiny_llama, storage).fit(*two_class_data)


def test_storage__in_memory_with_processes__is_refused(
    tiny_llama: str, two_class_data: TextData
) -> None:
    memory = optuna.storages.InMemoryStorage()
    with pytest.raises(SearchSpaceError, match="one in memory: pass"):
        stored(tiny_llama, memory, n_jobs=2).fit(*two_class_data)


def ledger(n_trials: int = 3) -> TrialStore:
    among = {"a": optuna.distributions.FloatDistribution(0, 1)}
    return TrialStore(optuna.create_study(direction="maximize"), among, n_trials)


def elsewhere(until: float) -> dict[str, Any]:
    return {"machine": "another", "pid": 1, "began": 0.0, "until": until}


def test_ledger__a_worker_elsewhere__is_dead_when_its_lease_is_over() -> None:
    book = ledger()
    alive, dead = book.take(), book.take()
    assert alive is not None and dead is not None
    alive.set_user_attr("skgpt:worker", elsewhere(time.time() + 60))
    dead.set_user_attr("skgpt:worker", elsewhere(time.time() - 1))
    again = book.take()
    assert again is not None and again.params == dead.params
    assert [t.number for t in book.counted()] == [alive.number, again.number]
    assert book.is_anybody_working()
    other = book.take()
    assert other is not None and other.params not in (dead.params, alive.params)
    assert book.take() is None


def test_ledger__a_trial_that_a_living_process_has_left__is_tried_again() -> None:
    book = ledger()
    left = book.take()
    assert left is not None
    owner = left.user_attrs["skgpt:worker"]
    assert not book._is_dead(book.study.trials[0])
    left.set_user_attr("skgpt:worker", {**owner, "until": time.time() - 1})
    again = TrialStore(book.study, book.distributions, book.n_trials).take()
    assert again is not None and again.params == left.params


def test_ledger__workers_that_die_of_a_trial__it_has_failed_after_the_third() -> None:
    book = ledger(n_trials=1)
    params = []
    for _ in range(3):
        trial = book.take()
        assert trial is not None
        params.append(trial.params)
        book.try_again(trial._trial_id)  # a Ctrl-C is no death
        trial = book.take()
        assert trial is not None and book.finished() == []
        trial.set_user_attr("skgpt:worker", elsewhere(time.time() - 1))
    assert book.take() is None and book.is_over()
    (failed,) = book.finished()
    assert failed.state == TrialState.FAIL and params == [failed.params] * 3
    assert "the worker died, 3 times" in result_of(failed)["error"]
    book.finish(trial, Outcome("COMPLETE", 1.0))  # it lived after all
    assert [t.state for t in book.finished()] == [TrialState.FAIL]


def test_storage__workers_died_of_a_trial__it_is_in_the_results(
    tiny_llama: str, two_class_data: TextData, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = optuna.storages.InMemoryStorage()
    monkeypatch.setattr(trial_store_module, "_MOST_DEATHS", 1)
    first = stored(tiny_llama, memory, n_trials=1, refit=False).fit(*two_class_data)
    trial = first.study_.ask(Space(RATES).distributions)
    trial.set_user_attr("skgpt:worker", elsewhere(time.time() - 1))
    with pytest.warns(FitFailedWarning, match="1 of 3 trials failed; 1 .* the worker died"):
        found = stored(tiny_llama, memory, n_trials=3, refit=False).fit(*two_class_data)
    assert found.cv_results_["trial_state"].tolist() == ["COMPLETE", "FAIL", "COMPLETE"]
    assert np.isnan(found.cv_results_["mean_fit_time"]).tolist() == [False, True, False]


def test_ledger__taken_for_dead__what_comes_of_it_is_not_kept() -> None:
    book = ledger()
    trial = book.take()
    assert trial is not None
    trial.set_user_attr("skgpt:worker", elsewhere(time.time() - 1))
    again = book.take()
    book.finish(trial, Outcome("COMPLETE", 1.0))
    book.try_again(trial._trial_id)
    assert again is not None and [t.number for t in book.counted()] == [again.number]
    assert len(book.study.trials) == 2


def test_ledger__a_lease__is_renewed_while_work_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial_store_module, "_BEAT_SECONDS", 0.01)
    book = ledger()
    trial = book.take()
    assert trial is not None
    first = trial.user_attrs["skgpt:worker"]["until"]

    def until() -> float:
        return float(book.study.trials[0].user_attrs["skgpt:worker"]["until"])

    with book.working_on(trial):
        wait_until(lambda: until() > first)
    last = until()
    time.sleep(0.05)
    assert until() == last


def test_ledger__two_that_begin_the_last_trial__one_gives_way(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    book = ledger(n_trials=1)
    other = TrialStore(book.study, book.distributions, 1)
    ask = book.study.ask

    def late(*given: Any) -> Any:
        monkeypatch.setattr(book.study, "ask", ask)
        assert other.take() is not None
        return ask(*given)

    monkeypatch.setattr(book.study, "ask", late)
    assert book.take() is None
    assert [trial.number for trial in book.counted()] == [0]
    assert book.study.trials[1].state == TrialState.FAIL
