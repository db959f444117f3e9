"""Processes that share one study, in each kind of storage that several can share."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import FrozenTrial, TrialState

from skgpt.tuning.study import open_storage
from tests.helpers import TextData
from tests.tuning.process import begun, stored, trials_in, wait_until
from tests.tuning.searching import rows_of
from tests.tuning.servers import grpc_proxy, postgresql

_SECONDS = 180.0

# the proxy
pytestmark = pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")


@pytest.fixture(
    params=[
        "journal",
        pytest.param("sqlite", marks=pytest.mark.thorough),
        pytest.param("postgresql", marks=pytest.mark.thorough),
        pytest.param("grpc", marks=[pytest.mark.network, pytest.mark.thorough]),  # over localhost
    ]
)
def shared(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Any]:
    """Return a storage without a study in it, and without tables."""
    if request.param == "journal":
        yield tmp_path / "search.journal"
    elif request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/search.db"
    elif request.param == "postgresql":
        with postgresql() as url:
            yield url
    else:
        with grpc_proxy(tmp_path) as client:
            yield client


def counted(storage: Any) -> list[FrozenTrial]:
    return [t for t in trials_in(storage) if "skgpt:lost" not in t.user_attrs]


def pid_of(trial: FrozenTrial) -> int:
    return int(trial.user_attrs["skgpt:worker"]["pid"])


def check_whole(tiny_llama: str, data: TextData, storage: Any, n_trials: int) -> None:
    """Check that what was written down is what one process would have come to."""
    found = stored(tiny_llama, storage, n_trials=n_trials, refit=False).fit(*data)
    alone = stored(tiny_llama, None, n_trials=n_trials, refit=False).fit(*data)
    assert found.cv_results_["trial_state"].tolist() == ["COMPLETE"] * n_trials
    rows, expected = rows_of(found.cv_results_), rows_of(alone.cv_results_)
    common = rows.keys() & expected.keys()
    assert common and all(rows[params] == expected[params] for params in common)


def test_shared__two_processes_at_once__share_the_trials(
    tiny_llama: str, two_class_data: TextData, shared: Any
) -> None:
    workers = [begun(tiny_llama, shared, seconds=0.1, n_trials=6) for _ in range(2)]
    for worker in workers:
        worker.join(_SECONDS)
        assert worker.exitcode == 0
    trials = counted(shared)
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] * 6
    assert {pid_of(trial) for trial in trials} == {worker.pid for worker in workers}
    check_whole(tiny_llama, two_class_data, shared, 6)


def test_shared__one_of_two_is_killed__the_other_tries_its_trial_again(
    tiny_llama: str, two_class_data: TextData, shared: Any
) -> None:
    workers = [begun(tiny_llama, shared, seconds=0.3) for _ in range(2)]
    victim = workers[0]
    opened = open_storage(shared)

    def is_in_the_middle() -> bool:
        mine = [t for t in trials_in(opened) if "skgpt:worker" in t.user_attrs]
        mine = [t for t in mine if pid_of(t) == victim.pid and t.state == TrialState.RUNNING]
        return any(trial.intermediate_values for trial in mine)

    wait_until(is_in_the_middle)
    victim.kill()
    for worker in workers:
        worker.join(_SECONDS)
    assert workers[1].exitcode == 0
    (lost,) = [t for t in trials_in(shared) if t.user_attrs.get("skgpt:lost")]
    assert lost.state == TrialState.FAIL and pid_of(lost) == victim.pid
    trials = counted(shared)
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] * 4
    (again,) = [t for t in trials if t.user_attrs.get("skgpt:again") == lost.number]
    assert again.params == lost.params
    check_whole(tiny_llama, two_class_data, shared, 4)
