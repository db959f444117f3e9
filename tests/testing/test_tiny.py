"""The tiny models: deterministic, and loadable through transformers' own door."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from skgpt.testing import tiny_gpt
from tests.helpers import global_random_state_unchanged

ARCHITECTURES = ["bert", "bloom", "gemma3", "gpt2", "gpt_neo", "gpt_neox"]
ARCHITECTURES += ["llama", "mistral", "opt", "qwen3"]
TEXTS = ("", "plain", "Grüße, 世界 \U0001f600", "  two\tspaces \n", "<s></s><|endoftext|>[SEP]")


def _digest(folder: str | Path) -> str:
    return hashlib.sha256(Path(folder, "model.safetensors").read_bytes()).hexdigest()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_tiny_gpt__each_architecture__tokenizer_gives_bytes(
    architecture: str, tiny_model: Callable[[str], str]
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model(architecture), local_files_only=True)
    for text in TEXTS:
        ids = tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        assert ids == list(text.encode())
        assert tokenizer.decode(ids) == text


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_tiny_gpt__each__loads_whole(architecture: str, tiny_model: Callable[[str], str]) -> None:
    folder = tiny_model(architecture)
    trunk, info = AutoModel.from_pretrained(folder, local_files_only=True, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["mismatched_keys"]
    assert {parameter.dtype for parameter in trunk.parameters()} == {torch.float32}
    assert sum(parameter.numel() for parameter in trunk.parameters()) < 200_000


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_tiny_gpt__seed__decides_every_byte(architecture: str, tmp_path: Path) -> None:
    first = _digest(tiny_gpt(tmp_path / "first", architecture, seed=3))
    torch.manual_seed(1)
    assert _digest(tiny_gpt(str(tmp_path / "again"), architecture, seed=3)) == first
    with torch.device("meta"):
        assert _digest(tiny_gpt(tmp_path / "meta", architecture, seed=3)) == first
    assert _digest(tiny_gpt(tmp_path / "other", architecture, seed=4)) != first


def test_tiny_gpt__any__says_nothing_and_leaves_global_random_state(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    tiny_gpt(tmp_path / "warm")
    with global_random_state_unchanged():
        tiny_gpt(tmp_path / "again")
    assert capfd.readouterr() == ("", "")


def test_tiny_gpt__folder_in_use__files_overwritten(tmp_path: Path) -> None:
    expected = _digest(tiny_gpt(tmp_path / "a", "gpt2"))
    tiny_gpt(tmp_path / "b", "llama")
    (tmp_path / "b" / "notes.txt").write_text("kept")
    folder = tiny_gpt(tmp_path / "b", "gpt2")
    assert _digest(folder) == expected
    assert AutoModel.from_pretrained(folder).config.model_type == "gpt2"
    assert (tmp_path / "b" / "notes.txt").read_text() == "kept"


def test_tiny__relative_folder__absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert tiny_gpt("inner/model") == str(tmp_path / "inner" / "model")


def test_tiny_gpt__unknown_architecture__error_lists_them(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"one of bert, bloom, .*qwen3\. Got 'gpt5'"):
        tiny_gpt(tmp_path, "gpt5")
