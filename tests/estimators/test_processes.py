"""Processes: small to send to, the same results, memory that stays flat."""

import pickle
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import joblib
import numpy as np
import pytest
from sklearn.base import clone
from sklearn.model_selection import cross_val_predict

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
