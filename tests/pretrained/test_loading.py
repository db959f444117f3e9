"""A model's name to its weights: read once, shared, never changed, and refused with a reason."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from huggingface_hub.errors import RepositoryNotFoundError

import skgpt
from skgpt.exceptions import ModelNotFoundError, ModelNotSupportedError
from skgpt.pretrained.loading import _MODELS, load_pretrained
from skgpt.testing import tiny_gpt


def test_load__twice__is_the_same_object_until_the_folder_changes(tmp_path: Path) -> None:
    first = load_pretrained(tiny_gpt(tmp_path / "m", seed=0))
    assert load_pretrained(str(tmp_path / "m")) is first
    second = load_pretrained(tiny_gpt(tmp_path / "m", seed=1))
    assert first.fingerprint != second.fingerprint


PATHS = ["./x", "../none", "/none", "~/x", "my/x/y", "x/", "a\\b", "C:\\x", "", "none.gguf", "a b"]


@pytest.mark.parametrize("name", PATHS)
def test_load__a_name_like_a_path__never_goes_to_the_hub(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    asked = Mock()
    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", asked)
    with pytest.raises(ModelNotFoundError, match="there is no such file or folder"):
        load_pretrained(name)
    assert not asked.called


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Mock]:
    """Return what asks the hub, on a machine that may."""
    skgpt.clear_cache()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    local = "transformers.AutoTokenizer.from_pretrained"
    monkeypatch.setattr(local, Mock(side_effect=OSError("not here")))
    asks = Mock()
    monkeypatch.setattr("huggingface_hub.get_hf_file_metadata", asks)
    yield asks
    skgpt.clear_cache()


def test_load__no_network__the_hub_is_asked_once_in_a_process(hub: Mock) -> None:
    hub.side_effect = TimeoutError("no route")
    for name in ("my-modle", "my-modle", "org/other"):
        with pytest.raises(ModelNotFoundError, match=rf"{name}.*HF_HUB_OFFLINE=1") as raised:
            load_pretrained(name)
    assert hub.call_count == 1
    assert "out of reach (TimeoutError)" in str(raised.value)
    skgpt.clear_cache()
    with pytest.raises(ModelNotFoundError):
        load_pretrained("my-modle")
    assert hub.call_count == 2


def test_load__the_hub_has_no_such_model__it_is_said_after_one_try(hub: Mock) -> None:
    url = hub.side_effect = Mock(side_effect=RepositoryNotFoundError("404", response=Mock()))
    for n_asked in (1, 2):  # a name may be there the next time
        with pytest.raises(ModelNotFoundError, match="could not be fetched here: 404"):
            load_pretrained("my-modle")
        assert hub.call_count == n_asked
    assert url.call_args[0][0].endswith("/my-modle/resolve/main/config.json")


@pytest.mark.parametrize("name", ["no-such-model-anywhere", "org/none"])
def test_load__an_unknown_name__lists_what_there_is(name: str) -> None:
    with pytest.raises(ModelNotFoundError, match="smollm2-135m"):
        load_pretrained(name)


def test_load__a_misspelt_alias__is_told_the_right_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "transformers.AutoTokenizer.from_pretrained", lambda *a, **k: pytest.fail("asked the hub")
    )
    for name in ("SmolLM2-135M", "smollm2_135m", "smollm2"):
        with pytest.raises(ModelNotFoundError, match=r"did you mean 'smollm2-135m'\?"):
            load_pretrained(name)


def test_load__what_is_no_model__says_so(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match=r"no config\.json"):
        load_pretrained(str(tmp_path))
    (tmp_path / "model.gguf").write_bytes(b"not a model")
    with pytest.raises(ModelNotFoundError, match="can't be read"):
        load_pretrained(str(tmp_path / "model.gguf"))


def test_load__weights_missing__is_refused(tmp_path: Path) -> None:
    folder = tiny_gpt(tmp_path / "m")
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    config["num_hidden_layers"] += 1
    config.pop("layer_types", None)
    (tmp_path / "m" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelNotSupportedError, match="missing"):
        load_pretrained(folder)


def test_tokenizer__special_tokens_in_a_text__are_plain_text(tiny_llama: str) -> None:
    tokenizer = load_pretrained(tiny_llama).tokenizer
    special = tokenizer.hf.eos_token
    ids = tokenizer.encode([f"a {special} b"])[0]
    assert tokenizer.hf.eos_token_id not in ids
    assert len(ids) > 4


def test_fingerprint__a_copy_that_says_more__is_the_same(tiny_llama: str, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_llama, tmp_path / "copy")
    path = folder / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "a_setting_of_a_later_release": 1}))
    assert load_pretrained(str(folder)).fingerprint == load_pretrained(tiny_llama).fingerprint


def test_load__truncated_weights__says_so(tmp_path: Path) -> None:
    folder = tiny_gpt(tmp_path / "m")
    weights = tmp_path / "m" / "model.safetensors"
    for content in (weights.read_bytes()[:-100], b"version https://git-lfs", b""):
        weights.write_bytes(content)
        with pytest.raises(ModelNotFoundError, match="can't be read"):
            load_pretrained(folder)
    assert not _MODELS._making  # a failed read leaves no lock behind


def test_load__a_file_written_over_in_place__changes_no_loaded_model(tmp_path: Path) -> None:
    source = load_pretrained(tiny_gpt(tmp_path / "m", seed=0))
    before = {name: p.clone() for name, p in source.trunk.named_parameters()}
    other = Path(tiny_gpt(tmp_path / "other", seed=1), "model.safetensors").read_bytes()
    with (tmp_path / "m" / "model.safetensors").open("r+b") as file:
        file.write(other)
    assert all(torch.equal(p, before[name]) for name, p in source.trunk.named_parameters())


def test_max_positions__roberta__leaves_out_those_it_never_uses(
    tiny_model: Callable[[str], str], tmp_path: Path
) -> None:
    from transformers import RobertaConfig, RobertaModel

    folder = shutil.copytree(tiny_model("bert"), tmp_path / "roberta")
    bert = json.loads((folder / "config.json").read_text())
    keys = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    config = RobertaConfig(
        **{key: bert[key] for key in keys},
        vocab_size=bert["vocab_size"],
        max_position_embeddings=66,
        pad_token_id=1,
    )
    with torch.random.fork_rng():
        RobertaModel(config).save_pretrained(folder)
    source = load_pretrained(str(folder))
    assert source.max_positions == 64
    ids = torch.full((1, 64), 5)
    source.trunk(input_ids=ids)
    with pytest.raises((IndexError, RuntimeError), match=r"out of (bounds|range)"):
        source.trunk(input_ids=torch.full((1, 65), 5))


def test_probe__outliers_in_one_dimension__do_not_hide_what_padding_does(
    tiny_model: Callable[[str], str], tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(tiny_model("bert"), tmp_path / "bert")
    weights = load_file(folder / "model.safetensors")
    name = next(n for n in sorted(weights) if n.endswith("2.output.LayerNorm.bias"))
    weights[name][0] = 500.0
    halved = {n: w.to(torch.bfloat16) for n, w in weights.items()}
    save_file(halved, folder / "model.safetensors", metadata={"format": "pt"})
    source = load_pretrained(str(folder))
    assert (source.capabilities.causal, source.capabilities.needs_mask) == (False, True)
