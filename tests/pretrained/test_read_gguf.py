"""A GGUF file to an ordinary model: same weights, same tokens, nothing else changed."""

from pathlib import Path

import pytest
import torch
import tqdm.auto
from transformers import modeling_gguf_pytorch_utils
from transformers.utils import logging as transformers_logging

from skgpt.exceptions import ModelNotFoundError, ModelNotSupportedError
from skgpt.pretrained.default_models import read_gguf
from tests.pretrained.fake_weights import make_llama, write_gguf


def test_read_gguf__quantised_file__plain_model_near_the_original(tmp_path: Path) -> None:
    write_gguf(tmp_path / "q.gguf", make_llama(), quantised=True)
    model, tokenizer = read_gguf(tmp_path / "q.gguf")
    assert not hasattr(model.config, "quantization_config")
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    for name, theirs in make_llama().state_dict().items():
        ours = model.state_dict()[name]
        assert (ours - theirs).abs().max() <= 0.08 * theirs.abs().max()
    assert str(tmp_path) not in repr((model.config, tokenizer, tokenizer.init_kwargs))
    model.save_pretrained(tmp_path / "saved")


@pytest.mark.parametrize("bars", [False, True])
def test_read_gguf__global_state__left_alone(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    bars: bool,
) -> None:
    monkeypatch.setattr(transformers_logging, "_tqdm_active", bars)
    write_gguf(tmp_path / "t.gguf", make_llama())
    before = torch.get_rng_state()
    verbosity = transformers_logging.get_verbosity()
    read_gguf(tmp_path / "t.gguf")
    assert transformers_logging.is_progress_bar_enabled() == bars
    assert transformers_logging.get_verbosity() == verbosity
    assert modeling_gguf_pytorch_utils.tqdm is tqdm.auto.tqdm
    assert torch.equal(torch.get_rng_state(), before)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("rule", "pieces"), [("smollm", ["ĊĊ", "1", "2"]), ("gpt-2", ["Ċ", "Ċ", "1", "2"])]
)
def test_read_gguf__splitting_rule_of_the_file__is_kept(
    tmp_path: Path, rule: str, pieces: list[str]
) -> None:
    write_gguf(tmp_path / "t.gguf", make_llama(), rule=rule)
    _, tokenizer = read_gguf(tmp_path / "t.gguf")
    assert tokenizer.tokenize("\n\n12") == pieces


def test_read_gguf__no_such_file__says_so(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="must be an existing file"):
        read_gguf(tmp_path / "none.gguf")


def test_read_gguf__weights_missing__names_one(tmp_path: Path) -> None:
    write_gguf(tmp_path / "t.gguf", make_llama(), skip="blk.1.ffn_up.weight")
    named = r"1 are missing, '(model\.)?layers\.1\.mlp\.up_proj"
    with pytest.raises(ModelNotSupportedError, match=named):
        read_gguf(tmp_path / "t.gguf")
