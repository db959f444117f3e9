"""Processes: small to send to, fair with the cores, the same results, memory that stays flat."""

import os
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

from skgpt import GPTTextClassifier
from tests.helpers import Fitted, TextData, make

_THREADS = """
import sys, joblib
def threads(folder):
    from skgpt import GPTTextClassifier
    import torch
    GPTTextClassifier(folder, max_epochs=1, max_length=32).fit(["a", "b"], [0, 1])
    return torch.get_num_threads()
if __name__ == "__main__":
    cores = joblib.cpu_count()
    found = joblib.Parallel(n_jobs=2)(joblib.delayed(threads)(sys.argv[1]) for _ in range(2))
    print("used", found, "of", cores)
    assert max(found) <= max(1, cores // 2), (found, cores)
"""

_MANY_FITS = """
import sys
import psutil
from skgpt import GPTTextClassifier
folder, trainable, n_fits = sys.argv[1], sys.argv[2], int(sys.argv[3])
words = ["goal match coach", "bank profit shares"]
texts = [f"{words[i % 2]} {' and so on' * (i % 17)}" for i in range(120)]
labels = [i % 2 for i in range(120)]
clf = GPTTextClassifier(folder, early_stopping=True, scoring="accuracy", max_epochs=2)
clf.set_params(trainable_layers=trainable if trainable == "all" else int(trainable))
held = []
for seed in range(n_fits):
    clf.set_params(random_state=seed).fit(texts, labels).predict(texts)
    held.append(psutil.Process().memory_info().rss / 2**20)
print(max(held[2:]) - held[1])
"""


def run_python(*arguments: str, without: str | None = None) -> str:
    """Run Python, without one of the environment's variables, and return what it prints."""
    environment = {name: value for name, value in os.environ.items() if name != without}
    done = subprocess.run(
        [sys.executable, *arguments], env=environment, capture_output=True, text=True, timeout=250
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_pickle__not_fitted_or_cloned__is_a_few_kilobytes(
    fitted_model: Callable[[str], Fitted],
) -> None:
    assert len(pickle.dumps(GPTTextClassifier())) < 4_000
    assert len(pickle.dumps(make("smollm2-135m", class_weight={"a": 1.0}))) < 4_000
    clf = fitted_model("default").clf
    assert len(pickle.dumps(clf)) > 100_000  # the base of a local folder goes in
    assert len(pickle.dumps(clone(clf))) < 4_000


def test_loky__two_workers__share_the_cores(tiny_llama: str, tmp_path: Path) -> None:
    script = tmp_path / "threads.py"
    script.write_text(_THREADS)
    printed = run_python(str(script), tiny_llama, without="OMP_NUM_THREADS")
    assert printed.startswith("used")


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


@pytest.mark.parametrize(
    ("trainable", "n_fits"), [("all", 7), pytest.param("1", 20, marks=pytest.mark.thorough)]
)
def test_resident_memory__after_many_fits__is_what_it_was_after_two(
    trainable: str, n_fits: int, tiny_llama: str
) -> None:
    # Kernels that oneDNN keeps for every shape of a product once made this 40 MB a fit.
    assert float(run_python("-c", _MANY_FITS, tiny_llama, trainable, str(n_fits))) < 64
