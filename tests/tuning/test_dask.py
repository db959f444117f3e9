"""A search over the worker processes of a Dask cluster."""

import os
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from joblib import parallel_config
from sklearn.model_selection import GridSearchCV

import skgpt
from tests.helpers import make
from tests.tuning.processes import epochs_in, slow_down, stored, trials_in, wait_until
from tests.tuning.searching import DATA, X, y

distributed = pytest.importorskip("distributed", reason="needs dask.distributed")

GUIDE = Path(__file__).parents[2] / "docs" / "tuning.md"
N_WORKERS = 2

pytestmark = pytest.mark.network  # its processes talk over sockets


@pytest.fixture
def client(tmp_path: Path) -> Iterator[Any]:
    with (
        distributed.LocalCluster(
            n_workers=N_WORKERS,
            threads_per_worker=1,
            processes=True,
            dashboard_address=":0",
            local_directory=str(tmp_path),
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        yield client


def kept(store: str) -> dict[str, int]:
    return dict(skgpt.cache_info().get(store, {"misses": 0}))


@pytest.mark.thorough
def test_dask__grid_search_on_two_processes__has_what_one_process_has(
    client: Any, tiny_llama: str
) -> None:
    grid = {"head_learning_rate": [1e-3, 1e-2, 1e-1], "pooling": ["mean", "last"]}
    clf = make(tiny_llama, max_epochs=2, precision="fp32")
    search = GridSearchCV(clf, grid, cv=3, scoring="neg_log_loss", error_score="raise")
    alone = search.fit(X, y).cv_results_["mean_test_score"]
    search.set_params(n_jobs=-1)
    before = kept("states on cpu")
    with parallel_config(backend="dask"):
        # The refit would run here, and say nothing of the workers.
        together = search.set_params(refit=False).fit(X, y).cv_results_["mean_test_score"]
    np.testing.assert_allclose(together, alone, rtol=1e-4)

    processes = set(client.run(os.getpid).values())
    assert len(processes) == N_WORKERS and os.getpid() not in processes
    assert kept("states on cpu") == before  # nothing was fitted in this process
    for worker, store in client.run(kept, "states on cpu").items():
        assert 0 < store["misses"] <= len(set(X)), worker  # a share of the fits, each text once


@pytest.mark.thorough
def test_dask__the_guides_snippet__runs(tiny_llama: str) -> None:
    section = GUIDE.read_text("utf-8").partition("### Dask")[2].partition("###")[0]
    snippet, _ = re.findall(r"^```py\n(.*?)^```$", section, re.DOTALL | re.M)
    names: dict[str, Any] = {
        "GridSearchCV": GridSearchCV,
        "clf": make(tiny_llama, max_epochs=1),
        "X": DATA.X,
        "y": DATA.y,
    }
    exec(compile(snippet, "the guide's snippet", "exec"), names)
    assert len(names["search"].cv_results_["params"]) == 2


@pytest.mark.parametrize("in_file", [True, pytest.param(False, marks=pytest.mark.thorough)])
def test_dask__gpt_search_on_two_processes__has_what_one_process_has(
    client: Any, tiny_llama: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_file: bool
) -> None:
    alone = stored(tiny_llama, None, refit=False).fit(*DATA).cv_results_
    monkeypatch.chdir(tmp_path)  # where the cluster's processes are not
    client.run(slow_down, 0.1, tmp_path / "log")
    before = kept("states on cpu")
    with parallel_config(backend="dask"):
        storage = "search.db" if in_file else None
        search = stored(tiny_llama, storage, refit=False, n_jobs=-1 if in_file else None)
        together = search.fit(*DATA).cv_results_
    assert together["params"] == alone["params"]
    assert together["trial_state"].tolist() == ["COMPLETE"] * 4
    np.testing.assert_allclose(together["mean_test_score"], alone["mean_test_score"], rtol=1e-4)
    assert {pid for pid, _ in epochs_in(tmp_path)} == set(client.run(os.getpid).values())
    assert kept("states on cpu") == before  # nothing was fitted in this process


@pytest.mark.thorough
def test_dask__a_worker_is_lost__its_trial_is_tried_again(
    client: Any, tiny_llama: str, tmp_path: Path
) -> None:
    storage = tmp_path / "search.db"
    client.run(slow_down, 0.5, tmp_path / "log")

    def kill_one() -> None:
        wait_until(lambda: len(epochs_in(tmp_path)) > 1)
        psutil.Process(epochs_in(tmp_path)[-1][0]).kill()

    killer = threading.Thread(target=kill_one)
    killer.start()
    with parallel_config(backend="dask"):
        search = stored(tiny_llama, storage, refit=False).fit(*DATA)
    killer.join()
    assert search.cv_results_["trial_state"].tolist() == ["COMPLETE"] * 4
    trials = trials_in(storage)
    (lost,) = [trial for trial in trials if trial.state.name == "FAIL"]
    (again,) = [t for t in trials if t.system_attrs.get("failed_trial") == lost.number]
    assert again.state.name == "COMPLETE" and again.params == lost.params
