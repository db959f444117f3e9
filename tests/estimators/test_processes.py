"""Processes: small to send to, the same results, memory that stays flat."""

import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pytest
from sklearn.base import clone
from sklearn.model_selection import cross_val_predict

import skgpt
from skgpt import GPTTextClassifier
from tests.helpers import Fitted, TextData, make

_MANY_FITS = """
import sys
import psutil
from skgpt import GPTTextClassifier
words = ["goal match coach", "bank profit shares"]
texts = [f"{words[i % 2]} {' and so on' * (i % 17)}" for i in range(120)]
labels = [i % 2 for i in range(120)]
clf = GPTTextClassifier(sys.argv[1], early_stopping=True, scoring="accuracy", max_epochs=2)
clf.set_params(trainable_layers="all")
held = []
for seed in range(7):
    clf.set_params(random_state=seed).fit(texts, labels).predict(texts)
    held.append(psutil.Process().memory_info().rss / 2**20)
print(max(held[2:]) - held[1])
"""

# The parent has used two threads, and another of its threads holds all there is to hold.
_FORKED = """
import faulthandler, os, sys, threading, warnings
import numpy as np
import torch
import skgpt
import skgpt.device
from skgpt import caching
from skgpt.pretrained import default_models

warnings.simplefilter("ignore")  # newer Pythons warn of any fork beside threads
folder, texts = sys.argv[1], ["a goal of the league"] * 50 + ["shares fell"] * 50
torch.set_num_threads(2)
skgpt.device.loky.cpu_count = lambda: 2
clf = skgpt.load(folder)
expected = clf.predict_proba(texts)
torch.ones(2**22).sum()

held = threading.Event()
def busy():
    stores = [store._lock for store in caching._REGISTRY.values()]
    locks = [*stores, caching._REGISTERING, default_models._SWITCHES]
    with skgpt.device.own_settings():
        for lock in [*locks, skgpt.device._PROCESS_WIDE._lock]:
            lock.acquire()
        held.set()
        threading.Event().wait(120)

torch.set_default_dtype(torch.float64)  # which the other thread has shut out
threading.Thread(target=busy, daemon=True).start()
held.wait()
pid = os.fork()
if pid == 0:
    faulthandler.dump_traceback_later(60, exit=True)
    assert torch.get_default_dtype() == torch.float64
    torch.ones(2**22).sum()
    assert np.abs(clf.predict_proba(texts) - expected).max() < 1e-5
    assert np.abs(skgpt.load(folder).predict_proba(texts[::-1])[::-1] - expected).max() < 1e-5
    again = clf.set_params(n_layers=1, trainable_layers="all").fit(texts, [0, 1] * 50)
    again.plan(texts), again.explain(texts[:2]), again.predict(["a text"])
    skgpt.cache_info(), skgpt.clear_cache()
    os._exit(0)
assert os.waitpid(pid, 0)[1] == 0
"""

# Ways to fork that others use, from a process that has predicted on two threads.
_POOLS = """
import multiprocessing, sys, warnings
from concurrent.futures import ProcessPoolExecutor
import joblib
import torch
import skgpt
import skgpt.device

warnings.simplefilter("ignore")
torch.set_num_threads(2)
skgpt.device.loky.cpu_count = lambda: 2
clf = skgpt.load(sys.argv[1])
texts = ["a goal of the league"] * 50
expected = clf.predict(texts).tolist()
torch.ones(2**22).sum()

def predict(_):
    return clf.predict(texts).tolist()

fork = multiprocessing.get_context("fork")
with fork.Pool(2) as pool:
    assert pool.map_async(predict, range(2)).get(60) == [expected] * 2
with ProcessPoolExecutor(2, mp_context=fork) as pool:
    assert list(pool.map(predict, range(2), timeout=60)) == [expected] * 2
with joblib.parallel_config(backend="multiprocessing"):
    jobs = joblib.Parallel(n_jobs=2, timeout=60)
    assert jobs(joblib.delayed(predict)(i) for i in range(2)) == [expected] * 2
"""
needs_fork = pytest.mark.skipif(sys.platform == "win32", reason="Windows doesn't fork")


def test_pickle__not_fitted_or_cloned__is_small(fitted_model: Callable[[str], Fitted]) -> None:
    assert len(pickle.dumps(GPTTextClassifier())) < 4_000
    assert len(pickle.dumps(make("smollm2-135m", class_weight={"a": 1.0}))) < 4_000
    clf = fitted_model("default").clf
    assert len(pickle.dumps(clf)) > 100_000  # the base of a local folder goes in
    assert len(pickle.dumps(clone(clf))) < 4_000


@pytest.mark.parametrize("backend", ["loky", "threading"])
def test_cross_val_predict__two_workers__equals_one(
    backend: str, tiny_llama: str, two_class_data: TextData
) -> None:
    X, y = two_class_data
    clf = make(tiny_llama, max_epochs=2, precision="fp32")
    options: dict[str, Any] = {"cv": 2, "method": "predict_proba"}
    one = cross_val_predict(clf, X, y, **options)
    with joblib.parallel_config(backend=backend):
        two = cross_val_predict(clf, X, y, n_jobs=2, **options)
    np.testing.assert_allclose(one, two, rtol=1e-5, atol=1e-6)


def test_resident_memory__after_many_fits__is_what_it_was_after_two(tiny_llama: str) -> None:
    # Kernels that oneDNN keeps for every shape of a product once made this 40 MB a fit.
    command = [sys.executable, "-c", _MANY_FITS, tiny_llama]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    assert float(done.stdout) < 64


@needs_fork
@pytest.mark.parametrize("script", [_FORKED, _POOLS], ids=["os.fork", "pools"])
def test_fork__of_a_process_that_has_predicted__its_children_answer(
    script: str, fitted_model: Callable[[str], Fitted], tmp_path: Path
) -> None:
    skgpt.save(fitted_model("default").clf, tmp_path / "saved")
    command = [sys.executable, "-c", script, str(tmp_path / "saved")]
    subprocess.run(command, timeout=240, check=True)
