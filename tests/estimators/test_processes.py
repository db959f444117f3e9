"""Worker processes: small to send, fair with the cores, the same results."""

import os
import pickle
import subprocess
import sys
from typing import Any

import joblib
import numpy as np
import pytest
from sklearn.model_selection import GridSearchCV, cross_val_predict

from skgpt import GPTTextClassifier
from tests.estimators.test_classifier import make
from tests.helpers import TextData

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


def test_pickle__an_unfitted_estimator__is_a_few_kilobytes() -> None:
    assert len(pickle.dumps(GPTTextClassifier())) < 4_000
    assert len(pickle.dumps(make("smollm2-135m", class_weight={"a": 1.0}))) < 4_000


def test_pickle__fitted_and_cloned__is_small_again(
    tiny_llama: str, two_class_data: TextData
) -> None:
    from sklearn.base import clone

    clf = make(tiny_llama, max_epochs=1).fit(*two_class_data)
    assert len(pickle.dumps(clf)) > 100_000  # the base of a local folder goes in
    assert len(pickle.dumps(clone(clf))) < 4_000


@pytest.mark.slow
def test_loky__two_workers__share_the_cores(tiny_llama: str, tmp_path: Any) -> None:
    script = tmp_path / "threads.py"
    script.write_text(_THREADS)
    environment = {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"}
    done = subprocess.run(
        [sys.executable, str(script), tiny_llama],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("used")


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


def test_grid_search__early_stopping_in_two_processes__has_what_one_has(
    tiny_llama: str, two_class_data: TextData
) -> None:
    clf = make(tiny_llama, max_epochs=3, early_stopping=True, scoring="accuracy", precision="fp32")
    search = GridSearchCV(clf, {"head_learning_rate": [1e-3, 1e-2]}, cv=2, n_jobs=2)
    search.set_params(error_score="raise").fit(*two_class_data)
    assert len(search.best_estimator_.validation_scores_) == search.best_estimator_.n_iter_
