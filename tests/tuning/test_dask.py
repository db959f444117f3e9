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
from tests.estimators.test_classifier import make
from tests.helpers import TextData

distributed = pytest.importorskip("distributed", reason="needs dask.distributed")

GUIDE = Path(__file__).parents[2] / "docs" / "searches.md"
N_WORKERS = 2

pytestmark = [pytest.mark.network, pytest.mark.slow]  # its processes talk over sockets


@pytest.fixture
def client(tmp_path: Path) -> Iterator[Any]:
    with (
        distributed.LocalCluster(
            n_workers=N_WORKERS,
            threads_per_worker=1,
            processes=True,
            dashboard_address=None,
            local_directory=str(tmp_path),
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        yield client


def kept(store: str) -> dict[str, int]:
    return dict(skgpt.cache_info().get(store, {"misses": 0}))


def test_dask__grid_search_on_two_processes__has_what_one_process_has(
    client: Any, tiny_llama: str, two_class_data: TextData
) -> None:
    X, y = two_class_data
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


def test_dask__the_guides_snippet__runs(tiny_llama: str, two_class_data: TextData) -> None:
    (snippet,) = re.findall(r"^```py\n(.*?)^```$", GUIDE.read_text("utf-8"), re.DOTALL | re.M)
    names: dict[str, Any] = {
        "GridSearchCV": GridSearchCV,
        "clf": make(tiny_llama, max_epochs=1),
        "texts": two_class_data.X,
        "labels": two_class_data.y,
    }
    exec(compile(snippet, "the guide's snippet", "exec"), names)
    assert len(names["search"].cv_results_["params"]) == 2
