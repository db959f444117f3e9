"""A search over the worker processes of a Dask cluster."""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from joblib import parallel_config
from sklearn.model_selection import GridSearchCV

import skgpt
from tests.helpers import make
from tests.tuning.processes import epochs_in, slow_down, stored
from tests.tuning.searching import DATA

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
