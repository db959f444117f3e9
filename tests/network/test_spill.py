"""States on disk: beyond what memory holds, equal to those in memory, gone with the process."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import skgpt
from skgpt.data.tokenization import tokenise
from skgpt.network.features import Spill, disk_room, hidden_states
from skgpt.pretrained.loading import load_pretrained
from tests.helpers import TextData, make
from tests.network.test_network import build


@pytest.fixture(autouse=True)
def empty_stores() -> Iterator[None]:
    skgpt.clear_cache()
    yield
    skgpt.clear_cache()  # lowered budgets too


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_on_disk__tensors_of_several_shapes__come_back_equal(
    dtype: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SKGPT_CACHE", str(tmp_path))
    tensors = [torch.randn(3, 5).to(dtype), torch.randn(1, 5).to(dtype)[:, ::2], torch.ones(2)]
    tensors[2] = tensors[2].to(dtype)
    monkeypatch.setattr("skgpt.network.features._FILE_BYTES", 30)
    with Spill() as spill:
        for tensor in tensors:
            spill.add(tensor)
        mapped = spill.tensors()
    assert all(torch.equal(a, b) for a, b in zip(tensors, mapped, strict=True))
    assert len({tensor.untyped_storage().data_ptr() for tensor in mapped}) > 1
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
    monkeypatch.setattr("skgpt.fitting.prefix_budget", lambda device: memory_budget)
    monkeypatch.setattr("skgpt.network.features._FILE_BYTES", 20_000)  # several files
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


def test_states__those_in_memory_already__take_up_room_too(
    tiny_llama: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SKGPT_CACHE", str(tmp_path))
    network = build(load_pretrained(tiny_llama), trainable_layers=1)

    def states(texts: list[str], memory_budget: int) -> list[torch.Tensor]:
        tokens = tokenise(texts, network.pretrained.tokenizer, 64)
        return hidden_states(network, tokens, 200, lambda done, total: None, memory_budget)

    known = ["the goal", "a match"]
    in_memory = sum(state.nbytes for state in states(known, 1 << 20))
    states([*known, "the bank"], in_memory)
    assert skgpt.cache_info()["states on disk"]["entries"] == 1
    states([*known, "a market"], 2 * in_memory)
    assert skgpt.cache_info()["states on disk"]["entries"] == 1


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

    def full(**options: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("skgpt.network.features.tempfile.TemporaryFile", full)
    monkeypatch.setattr("skgpt.fitting.prefix_budget", lambda device: 0)
    np.testing.assert_allclose(clf.fit(X, y).predict_proba(X), expected, atol=1e-4)
    assert "No space left" in caplog.text
    monkeypatch.setattr("skgpt.fitting.disk_room", lambda: 0)
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
    monkeypatch.setattr("skgpt.fitted_model.prefix_budget", lambda device: 4000)
    monkeypatch.setattr("skgpt.network.features.Spill.add", None)
    np.testing.assert_allclose(clf.predict_proba(X), expected, atol=1e-4)
    assert skgpt.cache_info()["states on cpu"]["entries"] == 0
    np.testing.assert_allclose(clf.predict_proba(X[:2]), expected[:2], atol=1e-4)


def test_fit__memory_runs_out_while_states_are_kept__the_rest_goes_to_disk(
    tiny_llama: str, two_class_data: TextData, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    X, y = two_class_data
    monkeypatch.setenv("SKGPT_CACHE", str(tmp_path))
    clf = make(tiny_llama, trainable_layers=1, precision="fp32")
    expected = clf.fit(X, y).predict_proba(X)
    skgpt.clear_cache()
    copied: list[torch.Tensor] = []

    def copy(state: torch.Tensor) -> torch.Tensor:
        if len(copied) == 5:
            raise torch.OutOfMemoryError("full of states")
        copied.append(state.clone())
        return copied[-1]

    monkeypatch.setattr("skgpt.network.features._copy", copy)
    np.testing.assert_array_equal(clf.fit(X, y).predict_proba(X), expected)
    info = skgpt.cache_info()
    assert info["states on cpu"]["entries"] == 5
    assert info["states on disk"]["entries"] == len(set(X)) - 5


def test_states_on_disk__of_another_device__are_others(
    tiny_llama: str, two_class_data: TextData, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SKGPT_CACHE", str(tmp_path))
    network = build(load_pretrained(tiny_llama))
    tokens = tokenise(list(two_class_data.X), network.pretrained.tokenizer, 64)
    for device in ("cpu", "cpu:0"):  # the same place by two names
        monkeypatch.setattr(network, "device", torch.device(device))
        hidden_states(network, tokens, 500, lambda *done: None, memory_budget=0)
    assert skgpt.cache_info()["states on disk"]["entries"] == 2 * len(set(two_class_data.X))


def test_disk_room__a_folder_that_can_not_be_asked__has_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def forbidden(self: Path) -> bool:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "exists", forbidden)
    assert disk_room() == 0
