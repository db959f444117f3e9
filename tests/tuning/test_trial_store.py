"""The trials of a study: who begins which, and what becomes of those whose worker died."""

from pathlib import Path
from typing import Any

import pytest
from optuna.distributions import FloatDistribution
from optuna.storages import InMemoryStorage
from optuna.trial import Trial, TrialState

from skgpt.tuning.study import (
    ignore_heartbeat_warnings,
    make_pruner,
    make_sampler,
    open_storage,
    open_study,
)
from skgpt.tuning.trial import Outcome
from skgpt.tuning.trial_store import TrialStore, result_of
from tests.tuning.processes import let_die


def store_in(storage: Any, n_trials: int = 3) -> TrialStore:
    study = open_study(storage, "mine", None, make_sampler(None, 0), make_pruner(None))
    return TrialStore(study, {"a": FloatDistribution(0, 1)}, n_trials)


@pytest.fixture
def store(tmp_path: Path) -> TrialStore:
    """Return the trials of a study in a storage with heartbeats."""
    return store_in(open_storage(tmp_path / "search.db"))


def taken(store: TrialStore) -> Trial:
    trial = store.take()
    assert trial is not None
    return trial


def test_take__a_worker_is_dead__its_trial_is_tried_again(store: TrialStore) -> None:
    alive, dead = taken(store), taken(store)
    let_die(store.study, dead)
    again, other = taken(store), taken(store)
    assert again.params == dead.params
    assert [t.number for t in store.counted()] == [alive.number, again.number, other.number]
    assert store.is_anybody_working() and not store.is_over()
    assert other.params not in (dead.params, alive.params)
    assert store.take() is None


def test_take__workers_die_of_a_trial__it_has_failed_after_the_third(store: TrialStore) -> None:
    store.n_trials = 1
    params = []
    for _ in range(3):
        trial = taken(store)
        params.append(trial.params)
        store.put_back(trial, "Ctrl-C")  # is no death
        trial = taken(store)
        assert store.finished() == []
        let_die(store.study, trial)
    assert store.take() is None and store.is_over()
    (failed,) = store.finished()
    assert failed.state == TrialState.FAIL and params == [failed.params] * 3
    assert "the worker died, 3 times" in result_of(failed)["error"]


def test_finish__a_worker_was_taken_for_dead__its_result_does_not_count(store: TrialStore) -> None:
    trial = taken(store)
    let_die(store.study, trial)
    again = taken(store)
    assert not store.finish(trial, Outcome("COMPLETE", 1.0))
    store.put_back(trial, "Ctrl-C")  # it has ended already
    assert [t.number for t in store.counted()] == [again.number]
    assert len(store.study.trials) == 2
    assert store.finish(again, Outcome("COMPLETE", 0.5))
    assert [t.value for t in store.finished()] == [0.5]


def test_working_on__broken_off__the_trial_is_put_back(store: TrialStore) -> None:
    trial = taken(store)
    with pytest.raises(KeyboardInterrupt), store.working_on(trial):
        raise KeyboardInterrupt
    assert taken(store).params == trial.params


def test_take__two_begin_the_last_trial__one_gives_way(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = InMemoryStorage()
    store, other = store_in(memory, n_trials=1), store_in(memory, n_trials=1)
    ask = store.study.ask

    def late(*given: Any) -> Any:
        monkeypatch.setattr(store.study, "ask", ask)
        taken(other)
        return ask(*given)

    monkeypatch.setattr(store.study, "ask", late)
    assert store.take() is None
    assert [trial.number for trial in store.counted()] == [0]
    assert [trial.state.name for trial in store.study.trials] == ["RUNNING", "FAIL", "WAITING"]


def test_counted__trials_in_memory__nobody_waits_for_those_that_run() -> None:
    store = store_in(InMemoryStorage(), n_trials=1)
    taken(store)
    assert len(store.counted()) == 1 and store.is_over()


def test_take__killed_before_its_first_heartbeat__another_is_begun(
    store: TrialStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("skgpt.tuning.trial_store.GRACE_SECONDS", 0)
    store.n_trials = 1
    with ignore_heartbeat_warnings():
        lost = store.study.ask()
    assert taken(store).number != lost.number and store.take() is None
