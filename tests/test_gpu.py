"""The same promises on CUDA: `pytest -m gpu`."""

import pickle
from typing import Any

import numpy as np
import pytest

from tests.estimators.test_classifier import make
from tests.helpers import TextData, global_random_state_unchanged

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("trainable", ["all", 1, 0])
def test_fit_on_cuda__every_precision__learns_and_repeats(
    precision: str, trainable: Any, tiny_llama: str, two_class_data: TextData
) -> None:
    X, y = two_class_data
    options = {"device": "cuda", "precision": precision, "trainable_layers": trainable}
    with global_random_state_unchanged():
        clf = make(tiny_llama, max_epochs=10, **options).fit(X, y)
    assert clf.device_ == "cuda:0"
    assert clf.loss_curve_[-1] < clf.loss_curve_[0]
    again = make(tiny_llama, max_epochs=10, **options).fit(X, y)
    np.testing.assert_allclose(again.predict_proba(X), clf.predict_proba(X), atol=1e-2)


def test_fit_on_cuda__fp32__agrees_with_the_cpu(tiny_llama: str, two_class_data: TextData) -> None:
    X, y = two_class_data
    on_gpu = make(tiny_llama, device="cuda", precision="fp32").fit(X, y)
    on_cpu = make(tiny_llama, device="cpu", precision="fp32").fit(X, y)
    np.testing.assert_allclose(on_gpu.predict_proba(X), on_cpu.predict_proba(X), atol=1e-3)


def test_pickle__fitted_on_cuda__opens_on_the_cpu(
    tiny_llama: str, two_class_data: TextData, monkeypatch: pytest.MonkeyPatch
) -> None:
    X, y = two_class_data
    clf = make(tiny_llama, device="cuda", precision="fp32").fit(X, y)
    data = pickle.dumps(clf)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    opened = pickle.loads(data)
    assert opened.device_ == "cpu"
    np.testing.assert_allclose(
        opened.predict_proba(X), clf.predict_proba(X), atol=0.05
    )  # the precision is the CPU's own choice


def test_memory__after_many_fits__is_what_it_was_after_two(
    tiny_llama: str, two_class_data: TextData
) -> None:
    import gc

    import torch

    held = []
    for _ in range(6):
        make(tiny_llama, device="cuda", max_epochs=1).fit(*two_class_data)
        gc.collect()
        held.append(torch.cuda.memory_allocated())
    assert held[-1] == held[1]
