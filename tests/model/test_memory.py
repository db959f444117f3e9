"""Memory that runs out, simulated: less is run at a time, and the result stays."""

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import skgpt
from skgpt.exceptions import LowMemoryWarning, NoMemoryError
from skgpt.model.device import no_more_threads_than_cores
from skgpt.model.memory import Budget, token_budget
from skgpt.model.sources import load_source
from skgpt.model.spill import disk_room, on_disk
from skgpt.training.optimise import Optimiser
from tests.estimators.test_classifier import make
from tests.helpers import TextData
from tests.model.test_network import CPU, build

LIMIT = 90  # tokens; the longest text of the data has 36
PADDED = "bloom"  # can't be packed


@pytest.fixture(autouse=True)
def empty_stores() -> Iterator[None]:
    skgpt.clear_cache()
    yield
    skgpt.clear_cache()  # lowered budgets too


@pytest.fixture
def small_memory(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], list[int]]:
    """Return a function that has more tokens than its argument run out of memory, and counts."""
    from skgpt.model import layout

    def limit_to(most: int) -> list[int]:
        refused: list[int] = []
        lay = layout.Layout.lay

        def limited(self: Any, *args: Any, **kwargs: Any) -> Any:
            laid_out = lay(self, *args, **kwargs)
            n_tokens = laid_out.shape[0] * laid_out.shape[1]
            if n_tokens > most:
                refused.append(n_tokens)
                raise torch.OutOfMemoryError(f"tried to run {n_tokens} tokens")
            return laid_out

        monkeypatch.setattr(layout.Layout, "lay", limited)
        return refused

    return limit_to


@pytest.mark.parametrize("architecture", ["llama", PADDED])
@pytest.mark.parametrize("trainable", ["all", 1, 0])
def test_fit__memory_runs_out__the_result_is_the_same(
    architecture: str,
    trainable: Any,
    tiny_model: Callable[[str], str],
    two_class_data: TextData,
    small_memory: Callable[[int], list[int]],
) -> None:
    X, y = two_class_data
    clf = make(tiny_model(architecture), trainable_layers=trainable, precision="fp32")
    expected = clf.fit(X, y).predict_proba(X)
    losses = clf.loss_curve_
    skgpt.clear_cache()
    refused = small_memory(LIMIT)
    with pytest.warns(LowMemoryWarning, match="ran out with .* tokens at once"):
        clf.fit(X, y)
    assert refused
    np.testing.assert_allclose(clf.loss_curve_, losses, rtol=1e-4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LowMemoryWarning)  # predict may try more at once
        np.testing.assert_allclose(clf.predict_proba(X), expected, atol=1e-4)
    refused.clear()
    clf.fit(X, y).predict_proba(X)  # warnings are errors: what held is known by now
    assert not refused


def test_fit__memory_runs_out_in_a_backward_pass__no_gradient_counts_twice(
    tiny_llama: str, two_class_data: TextData, monkeypatch: pytest.MonkeyPatch
) -> None:
    X, y = two_class_data
    monkeypatch.setattr("skgpt.estimators.base.token_budget", lambda network, learning: 150)
    for precision in ("fp32", "bf16"):
        clf = make(tiny_llama, trainable_layers="all", precision=precision, max_epochs=3)
        expected = clf.fit(X, y).predict_proba(X)
        calls = 0
        backward = Optimiser.backward

        def breaks(self: Any, loss: torch.Tensor, backward: Any = backward) -> None:
            nonlocal calls
            calls += 1
            backward(self, loss)
            if calls in (2, 5):  # gradients of this part and of those before it are there
                raise torch.OutOfMemoryError("in the middle of a step")

        with monkeypatch.context() as patch:
            patch.setattr(Optimiser, "backward", breaks)
            with pytest.warns(LowMemoryWarning):
                clf.fit(X, y)
        atol = 1e-4 if precision == "fp32" else 3e-2
        np.testing.assert_allclose(clf.predict_proba(X), expected, atol=atol)


@pytest.mark.parametrize("trainable", ["all", 1, 0])
def test_predict__memory_runs_out__the_scores_are_the_same(
    trainable: Any,
    tiny_llama: str,
    two_class_data: TextData,
    small_memory: Callable[[int], list[int]],
) -> None:
    X, y = two_class_data
    clf = make(tiny_llama, trainable_layers=trainable, precision="fp32").fit(X, y)
    expected = clf.decision_function(X)
    skgpt.clear_cache()
    refused = small_memory(LIMIT)
    with pytest.warns(LowMemoryWarning):
        found = clf.decision_function(X)
    assert refused
    np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize("trainable", ["all", 1, 0])
def test_fit__not_even_one_text_fits__says_so_and_keeps_the_earlier_fit(
    trainable: Any,
    tiny_llama: str,
    two_class_data: TextData,
    small_memory: Callable[[int], list[int]],
) -> None:
    X, y = two_class_data
    clf = make(tiny_llama, trainable_layers=trainable).fit(X[:20], y[:20])
    losses = clf.loss_curve_
    skgpt.clear_cache()
    small_memory(33)  # what frozen layers are tried out with is 32
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LowMemoryWarning)
        with pytest.raises(NoMemoryError, match=r"max_length.*with a text of \d+ tokens alone"):
            clf.fit(X, y)
        with pytest.raises(MemoryError):  # as anybody would catch it
            clf.predict(X)
    assert clf.loss_curve_ is losses


def test_fit__no_room_for_what_learns__names_what_to_lower(
    tiny_llama: str, two_class_data: TextData, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: Any, **kwargs: Any) -> None:
        raise torch.OutOfMemoryError("no room for moments")

    monkeypatch.setattr(torch.optim.AdamW, "step", full)
    with pytest.raises(NoMemoryError, match=r"no room for moments.*n_layers or trainable_layers"):
        make(tiny_llama).fit(*two_class_data)


def test_token_budget__of_one_model__follows_memory_and_what_learns(
    tiny_llama: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = load_source(tiny_llama)
    whole = build(source, trainable_layers="all")
    last = build(source, trainable_layers=1)

    def budget(network: Any, gib: float, *, learning: bool) -> int:
        monkeypatch.setattr("skgpt.model.memory.total_memory", lambda device: int(gib * 2**30))
        return token_budget(network, learning=learning)

    assert budget(whole, 100, learning=True) == 2048  # a CPU's cap
    small = [budget(n, 0.02, learning=True) for n in (whole, last)]
    assert 128 < small[0] < small[1] <= 2048
    assert budget(whole, 0.02, learning=False) > small[0]
    assert budget(whole, 0.0001, learning=True) == 128
    monkeypatch.setattr(whole, "device", torch.device("cuda", 0))
    assert budget(whole, 1000, learning=True) == 65_536


def test_budget__parts_and_results__cover_every_row_once(
    tiny_llama: str, recwarn: pytest.WarningsRecorder
) -> None:
    budget = Budget(build(load_source(tiny_llama)), 100)
    rows, lengths = np.arange(3, 20), np.arange(1, 21)

    def work(part: np.ndarray) -> int:
        if lengths[part].sum() > 40:
            raise torch.OutOfMemoryError
        return int(part.sum())

    done = list(budget.each(rows, lengths, work))
    assert sorted(np.concatenate([part for part, _ in done])) == rows.tolist()
    assert sum(result for _, result in done) == rows.sum()
    assert len(recwarn) == 1  # halved more than once, said once
    assert sum(budget.all_or_again(rows, lengths, work, lambda: None)) == rows.sum()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_on_disk__tensors_of_several_shapes__come_back_equal(
    dtype: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SKGPT_CACHE", str(tmp_path))
    tensors = [torch.randn(3, 5).to(dtype), torch.randn(1, 5).to(dtype)[:, ::2], torch.ones(2)]
    tensors[2] = tensors[2].to(dtype)
    mapped = on_disk(tensors)
    assert all(torch.equal(a, b) for a, b in zip(tensors, mapped, strict=True))
    assert list((tmp_path / "states").iterdir()) == []  # the file has no name any more
    assert disk_room() > 0


@pytest.mark.parametrize("memory_budget", [0, 3000])
def test_fit__states_beyond_memory__lie_on_disk_and_change_nothing(
    memory_budget: int,
    tiny_llama: str,
    two_class_data: TextData,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    X, y = two_class_data
    clf = make(tiny_llama, trainable_layers=1, precision="fp32")
    expected = clf.fit(X, y).predict_proba(X)
    skgpt.clear_cache()
    monkeypatch.setenv("SKGPT_CACHE", str(tmp_path))
    monkeypatch.setattr("skgpt.estimators.base.prefix_budget", lambda device: memory_budget)
    monkeypatch.setattr("skgpt.model.frozen._PER_FILE", 20_000)  # several files
    clf.fit(X, y)
    info = skgpt.cache_info()
    n_texts = len(set(X))
    assert info["states on cpu"]["bytes"] <= memory_budget
    assert info["states on cpu"]["entries"] + info["states on disk"]["entries"] == n_texts
    assert bool(info["states on cpu"]["entries"]) == bool(memory_budget)
    hits = info["states on disk"]["hits"]
    np.testing.assert_array_equal(clf.fit(X, y).predict_proba(X), expected)
    assert skgpt.cache_info()["states on disk"]["hits"] > hits
    assert list((tmp_path / "states").iterdir()) == []


def test_fit__a_full_disk__runs_all_layers_and_says_so(
    tiny_llama: str,
    two_class_data: TextData,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    X, y = two_class_data
    clf = make(tiny_llama, trainable_layers=1, precision="fp32")
    expected = clf.fit(X, y).predict_proba(X)
    skgpt.clear_cache()

    def full(tensors: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("skgpt.model.frozen.on_disk", full)
    monkeypatch.setattr("skgpt.estimators.base.prefix_budget", lambda device: 0)
    np.testing.assert_allclose(clf.fit(X, y).predict_proba(X), expected, atol=1e-4)
    assert "No space left" in caplog.text
    monkeypatch.setattr("skgpt.estimators.base.disk_room", lambda: 0)
    caplog.clear()
    np.testing.assert_allclose(clf.fit(X, y).predict_proba(X), expected, atol=1e-4)
    assert caplog.text == ""  # decided before


def test_predict__more_texts_than_memory_holds_states_of__writes_nothing(
    tiny_llama: str, two_class_data: TextData, monkeypatch: pytest.MonkeyPatch
) -> None:
    X, y = two_class_data
    clf = make(tiny_llama, trainable_layers=1, precision="fp32").fit(X, y)
    expected = clf.predict_proba(X)
    skgpt.clear_cache()
    monkeypatch.setattr("skgpt.estimators.base.prefix_budget", lambda device: 0)
    np.testing.assert_allclose(clf.predict_proba(X), expected, atol=1e-4)
    assert all(skgpt.cache_info()[f"states on {where}"]["entries"] == 0 for where in ("cpu",))


def test_threads__in_a_container_of_few_cores__are_as_many_and_come_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        monkeypatch.setattr("joblib.cpu_count", lambda: 2)
        inside = no_more_threads_than_cores()(torch.get_num_threads)
        assert inside() == 2
        assert torch.get_num_threads() == 3
        with pytest.raises(ZeroDivisionError):
            no_more_threads_than_cores()(divmod)(1, 0)
        assert torch.get_num_threads() == 3
        monkeypatch.setattr("joblib.cpu_count", lambda: 8)  # a joblib worker has its share
        with no_more_threads_than_cores():
            assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_fit_and_predict__in_a_container__keep_to_its_cores(
    tiny_llama: str, two_class_data: TextData, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    monkeypatch.setattr("joblib.cpu_count", lambda: 2)
    monkeypatch.setattr("torch.get_num_threads", lambda: 64)
    monkeypatch.setattr("torch.set_num_threads", seen.append)
    clf = make(tiny_llama, max_epochs=1).fit(*two_class_data)
    assert seen == [2, 64]
    clf.predict(two_class_data.X)
    assert seen == [2, 64] * 2
    assert build(load_source(tiny_llama)).device == CPU
