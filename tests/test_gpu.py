"""The same promises on CUDA: `pytest -m gpu`."""

import copy
import gc
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import skgpt
from skgpt import GPTTextClassifier, LoRA
from skgpt.data.tokenization import tokenise
from skgpt.exceptions import LowMemoryWarning, SkippedStepsWarning
from skgpt.network.layout import Layout, ids_of
from skgpt.pretrained.loading import load_pretrained
from skgpt.trunk.attention import Boundaries, Rule, packed_attention
from tests.estimators.dying import broken_off, folders_in
from tests.helpers import TextData, global_random_state_unchanged, make, make_text_data
from tests.network.test_network import TEXTS, build
from tests.training.poison import PoisonedLoss

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


@pytest.mark.parametrize("multilabel", [False, True])
def test_fit_on_cuda__fp32__agrees_with_the_cpu(
    multilabel: bool, tiny_llama: str, two_class_data: TextData
) -> None:
    X, y = two_class_data
    if multilabel:
        labels = np.column_stack([y == "money", y == "sport", np.arange(len(y)) % 2 == 0])
        y = labels.astype(int)
    both = [
        make(tiny_llama, device=device, precision="fp32").fit(X, y).predict_proba(X)
        for device in ("cuda", "cpu")
    ]
    np.testing.assert_allclose(*both, atol=1e-3)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_keep__fitted_on_cuda__stays_there_or_goes_to_the_cpu_and_says_so(
    precision: str,
    tiny_llama: str,
    two_class_data: TextData,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    X, y = two_class_data
    clf = make(tiny_llama, device="cuda", precision=precision)
    clf.partial_fit(X, y, classes=["money", "sport"])
    skgpt.save(clf, tmp_path / "saved")
    pickled, expected = pickle.dumps(clf), clf.predict_proba(X)
    for again in (copy.deepcopy(clf), skgpt.load(tmp_path / "saved")):
        assert again.device_ == "cuda:0"
        assert np.array_equal(again.predict_proba(X), expected)
    assert not caplog.messages
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    for reopen in (lambda: skgpt.load(tmp_path / "saved"), lambda: pickle.loads(pickled)):
        caplog.clear()
        opened = reopen()
        assert opened.device_ == "cpu"
        assert caplog.messages == ["GPTTextClassifier was fitted on cuda:0 and is on cpu now"]
        np.testing.assert_allclose(opened.predict_proba(X), expected, atol=0.05)
    opened.set_params(device="cpu", precision="fp32").partial_fit(X, y)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_partial_fit_on_cuda__three_calls__equal_one_fit(
    precision: str, tiny_llama: str, two_class_data: TextData
) -> None:
    X, y = two_class_data
    options = {"device": "cuda", "precision": precision, "lr_schedule": "constant"}
    clf = make(tiny_llama, warmup_ratio=0.0, **options)
    whole = make(tiny_llama, warmup_ratio=0.0, max_epochs=3, **options).fit(X, y)
    for _ in range(3):
        clf = pickle.loads(pickle.dumps(clf.partial_fit(X, y, classes=["money", "sport"])))
    np.testing.assert_allclose(clf.predict_proba(X), whole.predict_proba(X), atol=1e-2)
    clf.partial_fit(X, y, classes=["art", "money", "sport"])
    assert clf.predict_proba(X).shape == (len(X), 3)


def test_early_stopping_on_cuda__best_weights__come_back(
    tiny_llama: str, two_class_data: TextData
) -> None:
    X, y = two_class_data
    scores = iter([0.0, 0.1, 0.8, 0.2, 0.2])
    flat = {"lr_schedule": "constant", "warmup_ratio": 0.0, "device": "cuda", "precision": "fp32"}
    clf = make(tiny_llama, early_stopping=True, scoring=lambda *_: next(scores), **flat)
    clf.fit(X[:30], y[:30], X_val=X[30:], y_val=y[30:])
    two = make(tiny_llama, max_epochs=2, **flat).fit(X[:30], y[:30])
    np.testing.assert_allclose(clf.predict_proba(X), two.predict_proba(X), atol=1e-3)


@pytest.mark.parametrize(("precision", "bound"), [("fp32", 1e-5), ("bf16", 0.02), ("fp16", 0.005)])
def test_predict_on_cuda__neighbours__do_not_matter(
    precision: str, bound: float, tiny_llama: str, two_class_data: TextData
) -> None:
    X, y = two_class_data
    clf = make(tiny_llama, device="cuda", precision=precision).fit(X, y)
    alone = np.concatenate([clf.predict_proba([text]) for text in X])
    assert np.abs(clf.predict_proba(["a long one " * 30, *X])[1:] - alone).max() < bound


def test_memory__after_many_fits__is_what_it_was_after_two(
    tiny_llama: str, two_class_data: TextData
) -> None:
    held = []
    for _ in range(20):
        make(tiny_llama, device="cuda", max_epochs=1).fit(*two_class_data)
        gc.collect()
        held.append(torch.cuda.memory_allocated())
    assert held[-1] == held[1]


def attended(
    device: str, heads: tuple[int, int], width: int, ends_only: bool, **options: Any
) -> list[torch.Tensor]:
    """Return the value and the gradients of packed attention in bf16."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(86, n, width) for n in (heads[0], heads[1], heads[1])]
    drawn = [torch.randn(shape, generator=generator).bfloat16() for shape in shapes]
    q, k, v = (x.to(device).requires_grad_() for x in drawn)
    boundaries = Boundaries.of([3, 1, 70, 12], torch.device(device))
    queries = q[boundaries.ends_B] if ends_only else q
    rule = Rule(0.25, ends_only=ends_only, **options)
    out = packed_attention(queries, k, v, boundaries, rule)
    grads = torch.autograd.grad(out.float().square().sum(), (q, k, v))
    return [t.float().cpu() for t in (out, *grads)]


@pytest.mark.parametrize("width", [16, 20])  # the kernel wants eights
@pytest.mark.parametrize("heads", [(4, 4), (4, 2)])
@pytest.mark.parametrize("window", [None, 5])
@pytest.mark.parametrize(("causal", "ends_only"), [(True, False), (False, False), (True, True)])
def test_packed_attention_on_cuda__value_and_gradients__agree_with_the_cpu(
    causal: bool, ends_only: bool, window: int | None, heads: tuple[int, int], width: int
) -> None:
    options: dict[str, Any] = {"causal": causal, "window": window}
    cpu, cuda = (
        attended(device, heads, width, ends_only, **options) for device in ("cpu", "cuda:0")
    )
    for one, two in zip(cpu, cuda, strict=True):
        torch.testing.assert_close(one, two, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_fits_on_cuda__share_states__and_let_them_go(
    precision: str, tiny_llama: str, two_class_data: TextData
) -> None:
    X, y = two_class_data
    options = {"device": "cuda", "precision": precision, "trainable_layers": 1}
    skgpt.clear_cache()
    first = make(tiny_llama, **options).fit(X, y)
    misses = skgpt.cache_info()["states on cuda:0"]["misses"]
    second = make(tiny_llama, **options).fit(X, y)
    assert skgpt.cache_info()["states on cuda:0"]["misses"] == misses
    np.testing.assert_allclose(first.predict_proba(X), second.predict_proba(X), atol=1e-2)
    skgpt.clear_cache()
    assert skgpt.cache_info()["states on cuda:0"]["bytes"] == 0


def test_fit_on_cuda__memory_runs_out__goes_on_in_smaller_parts(
    tiny_llama: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    X, y = make_text_data(2, n_per_class=2000)
    options = {"device": "cuda", "precision": "fp32", "trainable_layers": "all"}
    clf = make(tiny_llama, batch_size=4000, max_epochs=2, **options)
    expected = clf.fit(X, y).predict_proba(X)
    skgpt.clear_cache()
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    clf.fit(X, y)
    # The allocator's limit counts what it has reserved, in whole segments.
    peak, held = torch.cuda.max_memory_reserved(), torch.cuda.memory_allocated()
    total = torch.cuda.get_device_properties(0).total_memory
    skgpt.clear_cache()
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction((held + (peak - held) * 0.6) / total)
    try:
        with pytest.warns(LowMemoryWarning):
            clf.fit(X, y)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
        skgpt.clear_cache()
    np.testing.assert_allclose(clf.predict_proba(X), expected, atol=1e-3)


@pytest.mark.parametrize("memory_budget", [0, 3000])
def test_fit_on_cuda__states_on_disk__change_nothing(
    memory_budget: int,
    tiny_llama: str,
    two_class_data: TextData,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    X, y = two_class_data
    clf = make(tiny_llama, device="cuda", trainable_layers=1, precision="fp32")
    expected = clf.fit(X, y).predict_proba(X)
    skgpt.clear_cache()
    monkeypatch.setenv("SKGPT_CACHE", str(tmp_path))
    monkeypatch.setattr("skgpt.fitting.prefix_budget", lambda device: memory_budget)
    np.testing.assert_allclose(clf.fit(X, y).predict_proba(X), expected, atol=1e-4)
    assert skgpt.cache_info()["states on disk"]["entries"] > 0


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_network_on_cuda__scores_and_gradients__agree_with_the_cpu(
    pooling: str, precision: str, tiny_llama: str
) -> None:
    source = load_pretrained(tiny_llama)
    tokens = tokenise(TEXTS, source.tokenizer, 64)
    results = []
    for device in (torch.device("cpu"), torch.device("cuda", 0)):
        network = build(
            source,
            pooling=pooling,
            trainable_layers="all",
            device=device,
            dtype=getattr(torch, precision),
        )
        layout = Layout.of(tokens.lengths, source, device)
        pooled = network.pooled(ids_of(tokens, np.arange(len(TEXTS)), device), layout)
        learned = [network.trunk.get_parameter(name) for name in network.learnable]
        grads = torch.autograd.grad(pooled.square().sum(), learned)
        results.append([t.float().cpu() for t in (pooled, *grads)])
    close = 1e-3 if precision == "float32" else 0.1
    for one, two in zip(*results, strict=True):
        assert (one - two).norm() <= close * two.norm() + 1e-6


def test_fit__a_base_in_4_bits__learns_and_pickles(
    tiny_llama: str, three_class_data: TextData
) -> None:
    pytest.importorskip("bitsandbytes")
    X, y = three_class_data
    lora = LoRA(rank=4, quantize_base=4)
    options = {"trainable_layers": "all", "max_epochs": 8, "learning_rate": 1e-2}
    clf = make(tiny_llama, device="cuda", lora=lora, **options).fit(X, y)
    assert clf.score(X, y) > 0.8
    again = pickle.loads(pickle.dumps(clf))
    np.testing.assert_allclose(again.predict_proba(X), clf.predict_proba(X), atol=1e-2)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_fit__adapters__are_those_of_a_cpu_fit(
    dropout: float, tiny_llama: str, three_class_data: TextData
) -> None:
    X, y = three_class_data
    options = {"lora": LoRA(rank=4, dropout=dropout), "trainable_layers": "all", "max_epochs": 4}
    cuda, cpu = (
        make(tiny_llama, device=device, precision="fp32", learning_rate=1e-2, **options).fit(X, y)
        for device in ("cuda", "cpu")
    )
    if dropout:  # drawn by another generator: as good, not the same
        assert cuda.score(X, y) > 0.8
    else:
        np.testing.assert_allclose(cuda.predict_proba(X), cpu.predict_proba(X), atol=1e-3)


def test_fit_on_cuda__steps_that_are_not_finite__are_skipped_as_on_the_cpu(
    tiny_llama: str, two_class_data: TextData, monkeypatch: pytest.MonkeyPatch
) -> None:
    X, y = two_class_data
    fitted = []
    for device in ("cpu", "cuda"):
        loss = PoisonedLoss({2, 9}, {12})
        monkeypatch.setattr(GPTTextClassifier, "_loss", lambda self, target, loss=loss: loss)
        with pytest.warns(SkippedStepsWarning, match="^3 optimiser steps"):
            fitted.append(make(tiny_llama, device=device, precision="fp32").fit(X, y))
    on_cpu, on_gpu = fitted
    for one, two in zip(on_cpu.history_, on_gpu.history_, strict=True):
        assert one["skipped_steps"] == two["skipped_steps"]
    np.testing.assert_allclose(on_gpu.loss_curve_, on_cpu.loss_curve_, atol=1e-3)


def test_fit_on_cuda__broken_off__goes_on(
    tiny_llama: str,
    two_class_data: TextData,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    X, y = two_class_data
    monkeypatch.setattr("skgpt.training.checkpoint._EVERY_SECONDS", 0.0)
    options: dict[str, Any] = {"device": "cuda", "precision": "bf16", "trainable_layers": "all"}
    clf = make(tiny_llama, checkpoint_dir=tmp_path, **options)
    broken_off(clf, X, y, step=8)
    clf.fit(X, y)
    expected = make(tiny_llama, **options).fit(X, y)
    np.testing.assert_allclose(clf.predict_proba(X), expected.predict_proba(X), atol=1e-2)
    assert folders_in(tmp_path) == []


def test_fork__after_cuda_was_used__the_child_says_what_to_do(
    tiny_llama: str, two_class_data: TextData, tmp_path: Path
) -> None:
    X, y = two_class_data
    clf = make(tiny_llama, device="cuda", max_epochs=1).fit(X, y)
    skgpt.save(clf, tmp_path / "saved")
    calls = [
        lambda: clf.predict(X),
        lambda: clf.explain(X[:2]),
        lambda: clf.fit(X, y),
        lambda: make(tiny_llama, device="auto").fit(X, y),
        lambda: skgpt.load(tmp_path / "saved"),
    ]
    pid = os.fork()
    if pid == 0:
        n_said = 0
        for call in calls:
            try:
                call()
            except ValueError as error:
                n_said += "must not be forked" in str(error)
        make(tiny_llama, device="cpu", max_epochs=1).fit(X, y).predict(X)
        os._exit(n_said)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == len(calls)
    clf.predict(X)
