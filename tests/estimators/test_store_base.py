"""Whether the base goes into a pickle, what opening one asks for, and what damage it sees."""

import logging
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import skgpt
from skgpt import GPTTextClassifier
from skgpt.exceptions import ModelNotFoundError, StateFormatError
from skgpt.pretrained.default_models import ALIASES, WheelFile, alias_folder, no_downloads
from skgpt.testing import tiny_gpt
from tests.estimators.test_classifier import make
from tests.helpers import TextData


@pytest.fixture
def tiny_alias(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make "tiny" an alias, and return the folder that stands for its converted file."""
    folder = tmp_path / "tiny"
    tiny_gpt(folder)
    wheel = WheelFile("no-such-package", "1", "no_such_package", "a/b.gguf", "0" * 64, 1000)
    monkeypatch.setitem(ALIASES, "tiny", wheel)
    monkeypatch.setattr("skgpt.pretrained.loading.alias_folder", lambda alias: folder)
    return folder


def opened(state: dict[str, Any]) -> GPTTextClassifier:
    clf = GPTTextClassifier.__new__(GPTTextClassifier)
    clf.__setstate__(state)
    return clf


def test_store_base__true__an_alias_is_inside_and_opens_where_it_is_not(
    tiny_alias: Path, two_class_data: TextData, monkeypatch: pytest.MonkeyPatch
) -> None:
    X, y = two_class_data
    clf = make("tiny", max_epochs=1, store_base=True).fit(X, y)
    data = pickle.dumps(clf)
    assert len(data) > 2 * len(pickle.dumps(clf.set_params(store_base="auto")))
    expected = clf.predict_proba(X)
    skgpt.clear_cache()
    monkeypatch.setattr("skgpt.pretrained.loading.alias_folder", lambda alias: pytest.fail("asked"))
    again = pickle.loads(data)
    assert np.array_equal(again.predict_proba(X), expected)
    assert again.model_id_ == "tiny"
    again.set_params(warm_start=True).fit(X, y)
    # It is still that alias, so that the base need not stay inside for ever.
    by_name = again.set_params(store_base="auto").__getstate__()["_model"]["network"]
    assert "base" not in by_name
    assert "base" in again.set_params(store_base=True).__getstate__()["_model"]["network"]


def test_store_base__false__a_folder_stays_out_and_must_be_there(
    two_class_data: TextData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    X, y = two_class_data
    clf = make(tiny_gpt(tmp_path / "base"), max_epochs=1, store_base=False).fit(X, y)
    data = pickle.dumps(clf)
    assert len(data) < len(pickle.dumps(clf.set_params(store_base="auto"))) / 2
    again = pickle.loads(data)
    assert np.array_equal(again.predict_proba(X), clf.predict_proba(X))
    skgpt.clear_cache()
    shutil.move(tmp_path / "base", tmp_path / "moved")
    with pytest.raises(ModelNotFoundError, match="store_base=True") as caught:
        pickle.loads(data)
    assert str(tmp_path / "base") in str(caught.value)
    tiny_gpt(tmp_path / "base", seed=1)
    with pytest.raises(ModelNotFoundError, match="holds other weights"):
        pickle.loads(data)


def test_store_base__false_and_a_relative_path__the_hub_is_not_asked_for_it(
    two_class_data: TextData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    tiny_gpt(tmp_path / "models" / "base")
    clf = make("models/base", max_epochs=1, store_base=False).fit(*two_class_data)
    data = pickle.dumps(clf)
    monkeypatch.chdir("/")
    monkeypatch.setattr("skgpt.pretrained.loading._read", lambda *a: pytest.fail("asked the hub"))
    with pytest.raises(ModelNotFoundError, match="no such file or folder"):
        pickle.loads(data)


def test_store_base__something_else__is_refused(tiny_llama: str, two_class_data: TextData) -> None:
    with pytest.raises(ValueError, match="'store_base' parameter"):
        make(tiny_llama, store_base="yes").fit(*two_class_data)
    clf = make(tiny_llama, max_epochs=1).fit(*two_class_data)
    with pytest.raises(ValueError, match="`store_base` must be"):
        pickle.dumps(clf.set_params(store_base="yes"))


def test_store_base__after_opening__frozen_tensors_are_shared(
    tiny_alias: Path, two_class_data: TextData
) -> None:
    data = pickle.dumps(make("tiny", max_epochs=1).fit(*two_class_data))
    one, two = pickle.loads(data), pickle.loads(data)
    for name, parameter in one._model.network.trunk.named_parameters():
        shared = parameter.data_ptr() == two._model.network.trunk.get_parameter(name).data_ptr()
        assert shared == (name not in one._model.network.learnable)


def test_open__an_alias_that_is_not_here__says_where_it_looked_and_what_helps(
    tiny_alias: Path, two_class_data: TextData, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = pickle.dumps(make("tiny", max_epochs=1).fit(*two_class_data))
    skgpt.clear_cache()
    cache = tiny_alias.parent / "cache"
    monkeypatch.setenv("SKGPT_CACHE", str(cache))
    monkeypatch.setattr("skgpt.pretrained.loading.alias_folder", alias_folder)
    with no_downloads(), pytest.raises(ModelNotFoundError, match="downloads are not") as caught:
        pickle.loads(data)
    for part in ("'tiny'", str(cache), "store_base=True", "no-such-package==1"):
        assert part in str(caught.value)
    assert not cache.exists()  # looking writes nothing


def test_open__a_hub_model_without_downloads__is_not_asked_for(
    tiny_llama: str, two_class_data: TextData, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = make(tiny_llama, max_epochs=1, store_base=False).fit(*two_class_data).__getstate__()
    state["_model"]["network"].pop("sha256")
    state["_model"]["network"]["pretrained"] |= {
        "model": "some-org/some-model",
        "downloadable": True,
    }
    asked: list[bool] = []

    def from_pretrained(where: str, **options: Any) -> None:
        asked.append(options["local_files_only"])
        raise OSError("not in the cache.")

    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", from_pretrained)
    with no_downloads(), pytest.raises(ModelNotFoundError, match="hub's cache folder"):
        opened(state)
    assert asked == [True]
    with pytest.raises(ModelNotFoundError, match="could not be fetched"):
        opened(state)
    assert asked == [True, True, False]


def test_open__a_setting_of_a_later_version__is_refused_by_name(
    tiny_llama: str, two_class_data: TextData
) -> None:
    state = make(tiny_llama, max_epochs=1).fit(*two_class_data).__getstate__()
    state["_model"]["network"].pop("sha256")
    state["_model"]["network"]["spec"]["mixture"] = 3
    with pytest.raises(StateFormatError, match="'mixture'"):
        opened(state)


@pytest.mark.parametrize("where", ["learned", "base", "config", "spec", "tensors"])
def test_open__one_bit_flipped__is_refused(
    where: str, tiny_llama: str, two_class_data: TextData
) -> None:
    X, y = two_class_data
    clf = make(tiny_llama).partial_fit(X, y, classes=["money", "sport"])
    state = clf.__getstate__()
    part = state["_model"]["moments" if where == "tensors" else "network"]
    if where == "config":
        part[where] = part[where].replace('"hidden_size": ', '"hidden_size":  ')
    elif where == "spec":
        part[where]["pooling"] = "last"
    else:
        part[where] = part[where].copy()
        rng = np.random.default_rng(0)
        part[where][rng.integers(len(part[where]))] ^= np.uint8(1 << rng.integers(8))
    with pytest.raises(StateFormatError, match="sha256"):
        opened(state)


@pytest.mark.parametrize("where", ["learned", "base"])
def test_open__weights_of_another_shape__are_refused(
    where: str, tiny_llama: str, two_class_data: TextData
) -> None:
    clf = make(tiny_llama, max_epochs=1).fit(*two_class_data)
    shorter = make(tiny_llama, max_epochs=1, n_layers=2, pooling="last").fit(*two_class_data)
    state, other = clf.__getstate__(), shorter.__getstate__()
    state["_model"]["network"][where] = other["_model"]["network"][where]
    state["_model"]["network"].pop("sha256")
    with pytest.raises(StateFormatError, match="must hold"):
        opened(state)
    state["_model"]["network"][where] = state["_model"]["network"][where][:-5]
    with pytest.raises(StateFormatError, match="must be safetensors"):
        opened(state)


def test_open__a_head_of_absurd_size__is_refused_before_it_is_made(
    tiny_llama: str, two_class_data: TextData
) -> None:
    state = make(tiny_llama, max_epochs=1).fit(*two_class_data).__getstate__()
    state["_model"]["network"].pop("sha256")
    state["_model"]["network"]["spec"]["n_outputs"] = 10**12
    with pytest.raises(StateFormatError, match="head"):
        opened(state)


@pytest.mark.parametrize("asked", ["cuda:7", "auto"])
def test_open__the_device_it_was_fitted_on_is_missing__says_which_it_is_on(
    asked: str,
    tiny_llama: str,
    two_class_data: TextData,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    X, y = two_class_data
    clf = make(tiny_llama, max_epochs=1, precision="fp32", device="cpu").fit(X, y)
    state = clf.__getstate__()
    state["_model"] |= {"device": asked, "fitted_on": "cuda:7"}
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("skgpt.device.has_fast_bf16", lambda device: True)
    with caplog.at_level(logging.INFO, logger="skgpt"):
        again = opened(state)
    assert again.device_ == "cpu"
    assert caplog.messages == ["GPTTextClassifier was fitted on cuda:7 and is on cpu now"]
    # fp32 was asked for, and fp32 it is.
    assert np.array_equal(again.predict_proba(X), clf.predict_proba(X))
    caplog.clear()
    pickle.loads(pickle.dumps(again))
    assert not caplog.messages
