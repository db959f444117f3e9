"""Checkpoints of transformers' format, below the estimator: padding, heads, and what is refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from skgpt import GPTTextClassifier
from skgpt.data.template import parse_template
from skgpt.exceptions import ModelNotFoundError, ModelNotSupportedError
from skgpt.fitted_model import FittedClassifier
from skgpt.network.network import TextNetwork, build_network
from skgpt.pretrained.loading import load_pretrained
from skgpt.saving.huggingface import _pad_id, put_head, read_head, write_checkpoint
from skgpt.testing import tiny, tiny_gpt
from tests.pretrained.checkpoints import plain_checkpoint

NAMES = ["no", "yes"]


def framed(folder: Path, architecture: str, frame: str) -> str:
    """Write a tiny model whose tokenizer puts this around a text."""
    family = tiny._ARCHITECTURES[architecture]._replace(frame=frame)
    with patch.dict(tiny._ARCHITECTURES, {architecture: family}):
        return tiny_gpt(folder, architecture)


def network_on(folder: str, *, dtype: torch.dtype = torch.float32, **depth: Any) -> TextNetwork:
    network = build_network(
        load_pretrained(folder),
        **{"n_layers": None, "trainable_layers": 1, **depth},
        pooling="last",
        n_outputs=2,
        dtype=dtype,
        device=torch.device("cpu"),
    )
    width = network.pretrained.capabilities.hidden_size
    put_head(network, np.linspace(-1, 1, 2 * width, dtype=np.float32).reshape(2, width))
    return network


def model_of(network: TextNetwork) -> FittedClassifier:
    return FittedClassifier(
        network=network,
        classes=np.array(NAMES),
        multilabel=False,
        template=parse_template(None, 1, None),
        max_length=32,
        long_text="cut",
        device="cpu",
        precision="fp32",
        split_seed=0,
        fitted_by="GPTTextClassifier",
    )


def test_write_checkpoint__a_base_in_half_precision__stays_so_if_frozen(tmp_path: Path) -> None:
    folder = tiny_gpt(tmp_path / "base")
    weights = load_file(tmp_path / "base" / "model.safetensors")
    halved = {name: tensor.bfloat16() for name, tensor in weights.items()}
    save_file(halved, tmp_path / "base" / "model.safetensors", metadata={"format": "pt"})
    config = tmp_path / "base" / "config.json"
    config.write_text(config.read_text().replace('"float32"', '"bfloat16"'))
    network = network_on(folder)
    out = tmp_path / "out"
    out.mkdir()
    write_checkpoint(model_of(network), out)
    written = load_file(out / "model.safetensors")
    learned = {f"model.{name}" for name in network.learnable} | {"score.weight"}
    for name, tensor in written.items():
        assert tensor.dtype == (torch.float32 if name in learned else torch.bfloat16)
    assert '"dtype": "float32"' in (out / "config.json").read_text()


@pytest.mark.parametrize(
    ("architecture", "frame", "pad"),
    [
        ("llama", "$A", "</s>"),
        ("llama", "<s> $A", "</s>"),
        ("llama", "<s> $A </s>", "<s>"),
        ("gemma3", "<bos> $A <eos>", "<pad>"),
    ],
)
def test_write_checkpoint__whatever_texts_end_in__pads_with_something_else(
    architecture: str, frame: str, pad: str, tmp_path: Path
) -> None:
    network = network_on(framed(tmp_path / "base", architecture, frame))
    (tmp_path / "out").mkdir()
    write_checkpoint(model_of(network), tmp_path / "out")
    source = load_pretrained(str(tmp_path / "out"))
    assert source.tokenizer.hf.pad_token == pad
    assert source.trunk.config.pad_token_id == source.tokenizer.hf.pad_token_id


def test_pad_id__the_only_special_token_ends_every_text__is_refused(tmp_path: Path) -> None:
    folder = framed(tmp_path / "base", "gpt2", "$A <|endoftext|>")
    with pytest.raises(ModelNotSupportedError, match="`model` must have a special token"):
        _pad_id(load_pretrained(folder))


def test_from_pretrained__pooled_before_what_ends_every_text__is_refused(tmp_path: Path) -> None:
    base = framed(tmp_path / "base", "llama", "<s> $A </s>")
    wrong = plain_checkpoint(base, tmp_path / "wrong", NAMES, pad="</s>")
    with pytest.raises(ModelNotSupportedError, match="`pad_token_id`"):
        GPTTextClassifier.from_pretrained(wrong)
    right = plain_checkpoint(base, tmp_path / "right", NAMES, pad="<s>")
    assert GPTTextClassifier.from_pretrained(right).classes_.tolist() == NAMES


@pytest.mark.parametrize("shard", ["1GB", "20KB"])
def test_read_head__in_one_or_more__the_same(shard: str, tiny_llama: str, tmp_path: Path) -> None:
    folder = plain_checkpoint(tiny_llama, tmp_path / "plain", NAMES, shard=shard)
    assert (tmp_path / "plain" / "model.safetensors").exists() == (shard == "1GB")
    head = read_head(folder, None)
    tensors = [load_file(file) for file in Path(folder).glob("*.safetensors")]
    (written,) = (each["score.weight"] for each in tensors if "score.weight" in each)
    assert np.array_equal(head.weight, written.numpy())
    assert (head.labels, head.multilabel, head.notes) == (tuple(NAMES), False, {})


@pytest.mark.parametrize("name", ["smollm2-135m", "model.gguf"])
def test_read_head__a_model_that_can_have_none__is_to_be_fitted(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("model.gguf").touch()
    with pytest.raises(ModelNotSupportedError, match=f"fit it, with model='{name}'"):
        read_head(name, None)


@pytest.mark.parametrize("name", ["no/such-model", "./nothing", "", "smollm2"])
def test_read_head__nothing_of_that_name__is_not_found(name: str) -> None:
    with pytest.raises(ModelNotFoundError):
        read_head(name, None)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"names": ["one"]}, "two or more"),
        ({"problem": "regression"}, "regression"),
        ({"names": ["a", "a"]}, "`id2label`.*another text"),
    ],
)
def test_read_head__no_label_for_each_score__is_refused(
    changes: dict[str, Any], message: str, tiny_llama: str, tmp_path: Path
) -> None:
    folder = plain_checkpoint(tiny_llama, tmp_path / "plain", **{"names": NAMES, **changes})
    with pytest.raises(ModelNotSupportedError, match=message):
        read_head(folder, None)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"score.bias": torch.zeros(2)}, "one matrix.*score.bias"),
        ({"score.dense.weight": torch.zeros(32, 32)}, "one matrix.*score.dense.weight"),
        ({"score.weight": None}, "one matrix.*to be fitted"),
        ({"score.weight": torch.zeros(3, 32)}, r"as many rows.*\(3, 32\), not \(2, 32\)"),
    ],
    ids=["a bias", "layers", "none", "three rows"],
)
def test_read_head__a_head_of_another_shape__is_refused(
    tensors: dict[str, Any], message: str, tiny_llama: str, tmp_path: Path
) -> None:
    folder = plain_checkpoint(tiny_llama, tmp_path / "plain", NAMES)
    file = tmp_path / "plain" / "model.safetensors"
    weights = {**load_file(file), **tensors}
    written = {name: tensor for name, tensor in weights.items() if tensor is not None}
    save_file(written, file, metadata={"format": "pt"})
    with pytest.raises(ModelNotSupportedError, match=message):
        read_head(folder, None)


def test_read_head__encoder__is_refused(tiny_model: Callable[[str], str], tmp_path: Path) -> None:
    folder = plain_checkpoint(tiny_model("bert"), tmp_path / "plain", NAMES)
    with pytest.raises(ModelNotSupportedError, match="must be a decoder"):
        read_head(folder, None)


def test_read_head__cut_short_or_pickled__is_not_read(tiny_llama: str, tmp_path: Path) -> None:
    folder = plain_checkpoint(tiny_llama, tmp_path / "plain", NAMES)
    file = tmp_path / "plain" / "model.safetensors"
    torch.save(load_file(file), file.with_name("pytorch_model.bin"))
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ModelNotFoundError, match="can't be read"):
        read_head(folder, None)
    file.unlink()
    with pytest.raises(ModelNotFoundError, match="as safetensors"):
        read_head(folder, None)
