"""Nothing that is rebuilt from a saved state runs code that the state names."""

import json
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from skgpt import GPTTextClassifier
from skgpt.exceptions import ModelNotFoundError, ModelNotSupportedError, StateFormatError
from skgpt.pretrained.default_models import downloads_allowed, no_downloads
from skgpt.pretrained.loading import load_pretrained
from skgpt.pretrained.tokenizer import TextTokenizer
from skgpt.pretrained.trust import harmless_tokenizer
from skgpt.testing import tiny_gpt
from tests.helpers import TextData, make, rewritten

_CODE = {
    "auto_map": {"AutoModel": "evil--modeling.Evil", "AutoConfig": "configuration.Evil"},
    "attn_implementation": "evil/kernel",
    "_attn_implementation": "evil/kernel",
    "_attn_implementation_internal": "evil/kernel",
    "experts_implementation": "evil/kernel",
    "quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True},
    "_name_or_path": "evil/model",
    "trust_remote_code": True,
}


class Evil:
    """Leaves a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self.path,))


def planted(state: dict[str, Any], config: dict[str, Any]) -> GPTTextClassifier:
    """Open a state with these settings in its configuration."""

    def change(values: dict[str, Any], tensors: dict[str, Any]) -> None:
        base = values["network"]["base"]
        base["config"] = json.dumps({**json.loads(base["config"]), **config})

    state["_model"]["state"] = rewritten(state["_model"]["state"], change)
    clf = GPTTextClassifier.__new__(GPTTextClassifier)
    clf.__setstate__(state)
    return clf


def test_open__a_configuration_that_names_code__opens_without_it(
    tiny_llama: str, two_class_data: TextData, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*args: Any, **options: Any) -> None:
        raise AssertionError("looked for code")

    for name in (
        "transformers.dynamic_module_utils.get_class_from_dynamic_module",
        "transformers.models.auto.auto_factory.get_class_from_dynamic_module",
        "transformers.modeling_utils.lazy_import_flash_attention",
    ):
        monkeypatch.setattr(name, never)
    X, y = two_class_data
    clf = make(tiny_llama, max_epochs=1).fit(X, y)
    again = planted(clf.__getstate__(), {**_CODE, "parts": [{"inner": {"size": 3, **_CODE}}]})
    assert np.array_equal(again.predict_proba(X), clf.predict_proba(X))
    config = again._model.network.pretrained.config
    assert not set(_CODE) & set(config)
    assert config["parts"] == [{"inner": {"size": 3}}]


@pytest.mark.parametrize(
    "config",
    [
        {"model_type": "no-such-architecture"},
        {"model_type": 3},
        {"hidden_size": "wide"},
        {"hidden_size": 7},
        {"num_hidden_layers": None},
        {"num_hidden_layers": 10**9},
        {"text_config": {"n_layer": 10**9}},
    ],
    ids=str,
)
def test_open__a_configuration_of_nothing__is_refused(
    config: dict[str, Any], tiny_llama: str, two_class_data: TextData
) -> None:
    state = make(tiny_llama, max_epochs=1).fit(*two_class_data).__getstate__()
    with pytest.raises((StateFormatError, ModelNotSupportedError)):
        planted(state, config)


@pytest.mark.parametrize("name", ["../a", "/a", "a/../../b", "..\\a", "C:a", ""])
def test_harmless_tokenizer__a_file_outside_its_folder__is_refused(name: str) -> None:
    with pytest.raises(ModelNotSupportedError, match="inside its folder"):
        harmless_tokenizer({name: "{}"})


@pytest.mark.parametrize("settings", ["[]", "{", '"\ud83d"', "[" * 100_000], ids=lambda s: s[:9])
def test_harmless_tokenizer__settings_that_are_none__are_refused(settings: str) -> None:
    with pytest.raises(StateFormatError, match="JSON object"):
        harmless_tokenizer({"tokenizer_config.json": settings})


@pytest.mark.parametrize("fast", [True, False])
def test_tokenizer__names_code__is_ignored(fast: bool, tiny_llama: str, tmp_path: Path) -> None:
    """A class that is not a tokenizer, code beside it, files elsewhere."""
    secret = tmp_path / "tokenizer.9.json"
    secret.write_text("not to be read")
    tokenizer = load_pretrained(tiny_llama).tokenizer
    files = tokenizer.files()
    settings = json.loads(files["tokenizer_config.json"])
    settings |= {
        "tokenizer_class": "RagRetriever",
        "auto_map": {"AutoTokenizer": ["evil.Evil", "evil.Evil"]},
        "fast_tokenizer_files": [str(secret)],
        "gguf_file": str(secret),
        "vocab_file": str(secret),
    }
    files |= {
        "tokenizer_config.json": json.dumps(settings),
        "evil.py": f"open({str(tmp_path / 'ran')!r}, 'w')",
    }
    if fast:
        again = TextTokenizer.from_files(files)
        assert again.encode(["a text"]) == tokenizer.encode(["a text"])
    else:
        del files["tokenizer.json"]
        with pytest.raises(ModelNotSupportedError, match="RagRetriever"):
            TextTokenizer.from_files(files)
    assert not (tmp_path / "ran").exists()
    assert "evil" not in sys.modules


def test_tokenizer__driven_by_another_program__is_refused() -> None:
    settings = {
        "tokenizer_class": "BertJapaneseTokenizer",
        "sudachi_kwargs": {"sudachi_config_path": "/tmp/plugins.json"},
    }
    with pytest.raises(ModelNotSupportedError, match="sudachi_kwargs"):
        TextTokenizer.from_files({"tokenizer_config.json": json.dumps(settings)})


@pytest.mark.parametrize("also_safetensors", [True, False])
def test_load__a_pickle_among_the_weights__not_run(also_safetensors: bool, tmp_path: Path) -> None:
    folder = Path(tiny_gpt(tmp_path / "m"))
    ran = tmp_path / "ran"
    evil = pickle.dumps(Evil(ran))
    pickle.loads(evil)
    assert ran.exists()  # it would
    ran.unlink()
    for name in ("pytorch_model.bin", "model.pkl", "tokenizer.pkl", "training_args.bin"):
        (folder / name).write_bytes(evil)
    if also_safetensors:
        load_pretrained(str(folder))
    else:
        (folder / "model.safetensors").unlink()
        with pytest.raises(ModelNotFoundError, match="can't be read"):
            load_pretrained(str(folder))
        torch.save({"norm.weight": Evil(ran)}, folder / "pytorch_model.bin")
        with pytest.raises(ModelNotFoundError, match="can't be read"):
            load_pretrained(str(folder))
    assert not ran.exists()


def test_no_downloads__inside_and_after__allowed_again() -> None:
    assert downloads_allowed()
    with no_downloads():
        assert not downloads_allowed()
        with no_downloads():
            pass
        assert not downloads_allowed()
    with pytest.raises(ZeroDivisionError), no_downloads():
        1 / 0  # noqa: B018
    assert downloads_allowed()


def test_no_downloads__the_hubs_client__is_switched_off_too(
    tiny_model: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    from skgpt.pretrained.default_models import quiet_transformers

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with no_downloads(), quiet_transformers():
        assert constants.is_offline_mode()
    assert not constants.is_offline_mode()
    with quiet_transformers():
        assert not constants.is_offline_mode()
