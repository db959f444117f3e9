"""skgpt.save and skgpt.load: whole folders, nothing unpickled, damage and strangers refused."""

import copy
import errno
import hashlib
import json
import os
import pickle
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pandas as pd
import pytest
import skops.io
from safetensors.torch import load_file
from sklearn.compose import ColumnTransformer
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import FunctionTransformer

import skgpt
from skgpt import GPTTextClassifier, LoRA, persistence
from skgpt._files import as_folder
from skgpt.exceptions import (
    InvalidArgumentError,
    ModelNotFoundError,
    ModelNotSupportedError,
    NotSavableError,
    SaveError,
    StateFormatError,
    StorageError,
)
from skgpt.testing import tiny_gpt
from tests.helpers import TextData, make, make_text_data, needs_links, rewritten
from tests.pretrained.test_trust import Evil


@pytest.fixture(scope="module")
def fitted(tiny_llama: str) -> GPTTextClassifier:
    """Return a classifier with moments: everything that there can be to save."""
    X, y = make_text_data(2)
    clf = make(tiny_llama, class_weight={"money": 2.0}, pooling="last")
    return clf.partial_fit(X, y, ["money", "sport"])


@pytest.fixture
def saved(fitted: GPTTextClassifier, tmp_path: Path) -> Path:
    skgpt.save(fitted, tmp_path / "saved")
    return tmp_path / "saved"


def rewrite(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change a manifest as somebody does who knows how."""
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["sha256"]
    change(manifest)
    (folder / "manifest.json").write_bytes(persistence._with_hash(manifest))


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_save__its_files_are_json_and_safetensors(saved: Path) -> None:
    assert sorted(content(saved)) == ["manifest.json", "model.safetensors"]
    manifest = json.loads((saved / "manifest.json").read_text())
    assert manifest["class"] == "GPTTextClassifier"
    assert manifest["params"]["class_weight"] == {"money": 2.0}
    assert set(manifest["versions"]) >= {"skgpt", "torch", "transformers", "scikit-learn"}
    assert "network/learned/head.weight" in load_file(saved / "model.safetensors")


def test_save__a_folder_that_is_not_ours__is_refused(
    fitted: GPTTextClassifier, saved: Path, tmp_path: Path
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "manifest.json").write_text("{}")
    with pytest.raises(FileExistsError, match="holds other files"):
        skgpt.save(fitted, tmp_path / "mine")
    (saved / "README.md").write_text("what this model is for")
    with pytest.raises(FileExistsError, match=r"'README\.md'"):
        skgpt.save(fitted, saved)
    assert (saved / "README.md").read_text() == "what this model is for"
    with pytest.raises(SaveError, match="can be written to"):
        skgpt.save(fitted, saved / "README.md" / "clf")


@needs_links
def test_save__a_link_to_a_folder__is_followed(fitted: GPTTextClassifier, saved: Path) -> None:
    link = saved.parent / "link"
    link.symlink_to(saved)
    skgpt.save(copy.copy(fitted).set_params(verbose=1), link)
    assert link.is_symlink()
    assert skgpt.load(saved).verbose == 1


@pytest.mark.parametrize("write", [skgpt.save, GPTTextClassifier.save_pretrained])
def test_save__unfitted__is_refused(write: Callable[..., object], tmp_path: Path) -> None:
    with pytest.raises(NotFittedError):
        write(GPTTextClassifier(), tmp_path / "clf")
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("scoring", lambda *args: 1.0),
        ("random_state", np.random.RandomState(0)),
        ("class_weight", {"money": 1j}),
        ("class_weight", LogisticRegression()),
    ],
    ids=["scoring", "random_state", "class_weight", "object"],
)
def test_save__a_parameter_that_is_no_data__is_refused_by_name(
    name: str, value: Any, fitted: GPTTextClassifier, tmp_path: Path
) -> None:
    clf = copy.copy(fitted).set_params(**{name: value})
    with pytest.raises(NotSavableError, match=f"`{name}` is not"):
        skgpt.save(clf, tmp_path / "clf")
    assert not any(tmp_path.iterdir())


def test_save__with_callbacks__is_refused(fitted: GPTTextClassifier, tmp_path: Path) -> None:
    clf = copy.copy(fitted)
    clf._skl_callbacks = [object()]
    with pytest.raises(NotSavableError, match="set_callbacks"):
        skgpt.save(clf, tmp_path / "clf")


class Ours(GPTTextClassifier):
    """A subclass has code of its own."""


@pytest.mark.parametrize(
    "value",
    [
        make_pipeline(FunctionTransformer(), LogisticRegression()),
        FrozenEstimator(GPTTextClassifier()),
        LogisticRegression(),
        Ours(),
        GPTTextClassifier,
        None,
    ],
    ids=str,
)
def test_save__anything_else__is_refused_with_what_to_use(value: Any, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="skops"):
        skgpt.save(value, tmp_path / "it")
    assert not any(tmp_path.iterdir())


def test_save__adapters__come_back_if_of_ours(fitted: GPTTextClassifier, tmp_path: Path) -> None:
    clf = copy.copy(fitted)
    clf.lora = LoRA(rank=4, target_modules=("q_proj", "v_proj"))
    skgpt.save(clf, tmp_path / "clf")
    assert repr(skgpt.load(tmp_path / "clf").lora) == repr(clf.lora)
    clf.lora = type("Ours", (LoRA,), {})()
    with pytest.raises(NotSavableError, match="`lora` is not"):
        skgpt.save(clf, tmp_path / "clf")


def test_load__a_file_damaged_in_any_way_or_missing__is_refused_by_name(saved: Path) -> None:
    rng = np.random.default_rng(0)
    for path in sorted(saved.iterdir()):
        whole = path.read_bytes()
        damaged = [whole[:n] for n in (0, 1, len(whole) // 2, len(whole) - 1)]
        damaged.append(whole + b" ")
        n_places = len(whole) if path.name == "manifest.json" else 60
        for place in rng.choice(len(whole), n_places, replace=False):
            bit = bytes([whole[place] ^ (1 << rng.integers(8))])
            damaged.append(whole[:place] + bit + whole[place + 1 :])
        for content in damaged:
            path.write_bytes(content)
            with pytest.raises(StateFormatError, match=path.name):
                skgpt.load(saved)
        path.unlink()
        with pytest.raises((StateFormatError, ModelNotFoundError), match=path.name):
            skgpt.load(saved)
        path.write_bytes(whole)
    skgpt.load(saved)


def test_load__the_weights_of_another_save__are_refused(
    fitted: GPTTextClassifier, saved: Path, tmp_path: Path
) -> None:
    other = GPTTextClassifier(**fitted.get_params(deep=False)).set_params(random_state=1)
    data = make_text_data(2)
    skgpt.save(other.fit(data.X, data.y), tmp_path / "other")
    (saved / "model.safetensors").write_bytes((tmp_path / "other/model.safetensors").read_bytes())
    with pytest.raises(StateFormatError, match=r"model\.safetensors"):
        skgpt.load(saved)


def test_load__a_pickle_planted_among_the_files__is_not_opened(saved: Path) -> None:
    ran = saved.parent / "ran"
    evil = pickle.dumps(Evil(ran))
    for name in ("clf.pkl", "model.joblib", "pytorch_model.bin", "state.pkl", "__init__.py"):
        (saved / name).write_bytes(evil)
    skgpt.load(saved)
    for name in ("model.safetensors", "manifest.json"):
        (saved / name).write_bytes(evil)
        with pytest.raises(StateFormatError):
            skgpt.load(saved)
    assert not ran.exists()


@pytest.mark.parametrize("name", ["model.safetensors", "manifest.json"])
@pytest.mark.parametrize("kind", [pytest.param("link", marks=needs_links), "pipe", "folder"])
def test_load__a_link_or_a_pipe_for_a_file__is_refused(name: str, kind: str, saved: Path) -> None:
    if kind == "pipe" and not hasattr(os, "mkfifo"):
        pytest.skip("Windows has no pipes among its files")
    os.replace(saved / name, saved.parent / name)
    if kind == "link":
        (saved / name).symlink_to(saved.parent / name)
    elif kind == "pipe":
        os.mkfifo(saved / name)
    else:
        (saved / name).mkdir()
    with pytest.raises(StateFormatError, match=f"{name} .* must be a file"):
        skgpt.load(saved)


def test_load__a_manifest_of_absurd_size__is_not_read(saved: Path) -> None:
    with (saved / "manifest.json").open("r+b") as file:
        file.truncate(1 << 40)
    with pytest.raises(StateFormatError, match=r"manifest\.json"):
        skgpt.load(saved)


@pytest.mark.parametrize("content", ["[" * 10**5, "null", "[]", '"x"', '{"format": 1}', "NaN"])
def test_load__a_manifest_of_something_else__is_refused(content: str, saved: Path) -> None:
    (saved / "manifest.json").write_text(content)
    with pytest.raises(StateFormatError, match="manifest"):
        skgpt.load(saved)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("format", 0, "says 0"),
        ("format", "1", "says '1'"),
        ("class", "os.system", r"os\.system"),
        ("params", ["model"], "manifest"),
        ("params", {"predict": "a value in a method's place"}, "manifest"),
        ("params", {"_doc_link_template": "shown as it is"}, "manifest"),
        (
            "params",
            {"model": {"!": "object", "class": "os.system", "params": {}}},
            "a kind that is known",
        ),
        ("classes", None, "manifest"),
    ],
)
def test_load__a_manifest_that_makes_no_sense__is_refused(
    key: str, value: Any, words: str, saved: Path
) -> None:
    def change(manifest: dict[str, Any]) -> None:
        if isinstance(value, dict):
            manifest[key].update(value)
        elif value is None:
            del manifest[key]
        else:
            manifest[key] = value

    rewrite(saved, change)
    with pytest.raises(StateFormatError, match=words):
        skgpt.load(saved)


@pytest.mark.parametrize(
    "change",
    [
        lambda values, tensors: values.pop("model"),
        lambda values, tensors: values["model"].pop("device"),
        lambda values, tensors: values["model"].update(device=[]),
        lambda values, tensors: values["network"]["learned"].update(spec=[1]),
        lambda values, tensors: values["network"]["base"].update(config="[]"),
        lambda values, tensors: tensors.pop("network/learned/head.weight"),
    ],
    ids=lambda change: "",
)
def test_load__a_model_that_makes_no_sense__is_refused(change: Any, saved: Path) -> None:
    file = saved / "model.safetensors"
    content = rewritten(np.fromfile(file, np.uint8), change).tobytes()
    file.write_bytes(content)
    digest = hashlib.sha256(content).hexdigest()
    rewrite(saved, lambda manifest: manifest.update(weights=digest))
    with pytest.raises(StateFormatError, match="Take another copy"):
        skgpt.load(saved)


def test_load__no_such_folder__says_what_it_takes(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "none"):
        with pytest.raises(ModelNotFoundError, match=r"skgpt\.save"):
            skgpt.load(folder)


def test_load__a_base_that_is_not_here__is_not_fetched_unless_allowed(
    tmp_path: Path, two_class_data: TextData, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tiny_gpt(tmp_path / "base")
    clf = make(folder, max_epochs=1, store_base=False).fit(*two_class_data)
    clf._model.network.pretrained = replace(
        clf._model.network.pretrained, model="some-org/some-model", downloadable=True
    )
    skgpt.save(clf, tmp_path / "saved")
    fetch = Mock(side_effect=OSError("not in the cache."))
    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", fetch)
    with pytest.raises(ModelNotFoundError, match=r"some-org/some-model.*hub.s cache folder"):
        skgpt.load(tmp_path / "saved")
    assert fetch.call_count == 1
    with pytest.raises(ModelNotFoundError, match="could not be fetched"):
        skgpt.load(tmp_path / "saved", allow_download=True)
    asked = [call.kwargs["local_files_only"] for call in fetch.mock_calls]
    assert asked == [True, True, False]


# Folders as users name them: what is none says so, and what opens another kind of folder.

TAKE_FOLDERS: list[Callable[[GPTTextClassifier, Any], Any]] = [
    lambda clf, folder: skgpt.save(clf, folder),
    lambda clf, folder: skgpt.load(folder),
    lambda clf, folder: clf.save_pretrained(folder),
    lambda clf, folder: GPTTextClassifier.from_pretrained(folder),
]


@pytest.mark.parametrize("value", [None, 3, b"folder", "", "a\0b", ["a"], "~nobody-of-this-name/a"])
@pytest.mark.parametrize("use", TAKE_FOLDERS, ids=["save", "load", "out", "in"])
def test_folder__what_names_none__says_what_it_takes(
    use: Any, value: Any, fitted: GPTTextClassifier, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InvalidArgumentError, match=r"`folder.*` must be the name of a folder"):
        use(fitted, value)
    assert not any(tmp_path.iterdir())


def test_as_folder__any_name__is_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    folder = tmp_path / "a b"
    for name in (folder, str(folder), f"{folder}{os.sep}", "~/a b", Path("~") / "a b"):
        assert as_folder(name, "folder") == folder


def test_save__a_path_as_parameter__becomes_text(fitted: GPTTextClassifier, tmp_path: Path) -> None:
    skgpt.save(copy.copy(fitted).set_params(checkpoint_dir=tmp_path / "runs"), tmp_path / "clf")
    assert skgpt.load(tmp_path / "clf").checkpoint_dir == str(tmp_path / "runs")


def test_save__the_folder_first__says_to_swap(fitted: GPTTextClassifier, tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match="swap them"):
        skgpt.save(str(tmp_path / "clf"), fitted)  # type: ignore[arg-type]


def test_open__the_other_kind_of_folder__says_what_opens_it(
    fitted: GPTTextClassifier, tiny_llama: str, two_class_data: TextData, tmp_path: Path
) -> None:
    skgpt.save(fitted, tmp_path / "ours")
    fitted.save_pretrained(tmp_path / "theirs")
    with pytest.raises(ModelNotFoundError, match="from_pretrained opens"):
        skgpt.load(tmp_path / "theirs")
    with pytest.raises(ModelNotFoundError, match="it is a file"):
        skgpt.load(tmp_path / "ours" / "manifest.json")
    with pytest.raises(ModelNotFoundError, match=r"skgpt\.load opens it"):
        GPTTextClassifier.from_pretrained(tmp_path / "ours")
    with pytest.raises(ModelNotFoundError, match=r"skgpt\.load opens it"):
        make(str(tmp_path / "ours")).fit(*two_class_data)
    with pytest.raises(ModelNotSupportedError, match="is a file"):
        GPTTextClassifier.from_pretrained(tmp_path / "theirs" / "config.json")


@pytest.mark.parametrize("write", [skgpt.save, GPTTextClassifier.save_pretrained])
@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "on a disk with"),
        (
            OSError("Error while serializing: I/O error: No space (os error 28)"),
            "on a disk with",
        ),
        (PermissionError(errno.EACCES, "no"), "can be written to"),
    ],
    ids=["full", "full, in words", "read-only"],
)
def test_save__a_folder_that_cannot_be_written__says_so_and_leaves_the_earlier_one(
    error: OSError,
    words: str,
    write: Callable[..., object],
    fitted: GPTTextClassifier,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write(fitted, tmp_path / "out")
    before = content(tmp_path / "out")

    monkeypatch.setattr("os.fsync", Mock(side_effect=error))
    with pytest.raises(StorageError, match=words):
        write(fitted, tmp_path / "out")
    assert content(tmp_path / "out") == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


# Pipelines: the steps before the classifier, by skops.


def shout(texts: Any) -> list[str]:
    """Clean texts as users do: a function in a module."""
    return [text.upper() for text in texts]


SHOUT = f"{shout.__module__}.shout"


@pytest.fixture
def saved_pipeline(tiny_llama: str, tmp_path: Path) -> Path:
    X, y = make_text_data(2)
    clf = make(tiny_llama, max_epochs=1, precision="fp32")
    skgpt.save(make_pipeline(FunctionTransformer(shout), clf).fit(X, y), tmp_path / "pipeline")
    return tmp_path / "pipeline"


def test_save__a_pipeline__comes_back_whole(tiny_llama: str, tmp_path: Path) -> None:
    X, y = make_text_data(2)
    frame = pd.DataFrame({"subject": X, "id": np.arange(len(X)), "body": X[::-1]})
    clf = make(tiny_llama, max_epochs=1, precision="fp32", lora=LoRA(rank=2))
    columns = ColumnTransformer([("texts", "passthrough", ["subject", "body"])])
    inner = Pipeline([("nothing", "passthrough"), ("gpt", clf)], verbose=False)
    pipe = Pipeline([("columns", columns), ("inner", inner)]).fit(frame, y)
    before = {name: id(step) for name, step in pipe.steps}
    skgpt.save(pipe, tmp_path / "pipeline")
    assert sorted(content(tmp_path / "pipeline")) == [
        "manifest.json",
        "model.safetensors",
        "steps.skops",
    ]
    again = skgpt.load(tmp_path / "pipeline")
    assert type(again) is Pipeline and type(again[-1][-1]) is GPTTextClassifier
    assert [*again.named_steps] == ["columns", "inner"]
    assert np.array_equal(again.predict_proba(frame), pipe.predict_proba(frame))
    assert again.feature_names_in_.tolist() == ["subject", "id", "body"]
    assert {name: id(step) for name, step in pipe.steps} == before  # nothing of it was changed
    again.fit(frame, y)
    # A classifier in the place of a Pipeline leaves none of its steps.
    skgpt.save(again[-1][-1], tmp_path / "pipeline")
    assert sorted(content(tmp_path / "pipeline")) == ["manifest.json", "model.safetensors"]


def test_load__a_step_of_somebodys_own__is_made_only_if_its_name_is_trusted(
    saved_pipeline: Path,
) -> None:
    with pytest.raises(StateFormatError, match="types that are trusted") as caught:
        skgpt.load(saved_pipeline)
    assert f"trusted=[{SHOUT!r}]" in str(caught.value)
    with pytest.raises(StateFormatError, match="are not"):
        skgpt.load(saved_pipeline, trusted=["os.system"])
    again = skgpt.load(saved_pipeline, trusted=[SHOUT])
    X = make_text_data(2).X
    assert np.array_equal(again.predict_proba(X), again[-1].predict_proba(shout(X)))


def here(texts: Any) -> Any:
    return texts


here.__module__ = "__main__"


@pytest.mark.parametrize("function", [lambda texts: texts, here], ids=["lambda", "of a script"])
def test_save__a_step_that_no_other_process_can_import__is_refused(
    function: Any, fitted: GPTTextClassifier, tmp_path: Path
) -> None:
    pipe = make_pipeline(FunctionTransformer(function), fitted)
    with pytest.raises(InvalidArgumentError, match="another process can import"):
        skgpt.save(pipe, tmp_path / "pipeline")
    assert not any(tmp_path.iterdir())


def test_save__a_pipeline_that_is_not_fitted__is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotFittedError):
        skgpt.save(make_pipeline(FunctionTransformer(), GPTTextClassifier()), tmp_path / "pipeline")


def test_load__steps_that_were_exchanged__are_refused(saved_pipeline: Path, tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    whole = (saved_pipeline / "steps.skops").read_bytes()
    for wrong in (whole[:-1], pickle.dumps(Evil(ran)), skops.io.dumps(FunctionTransformer())):
        (saved_pipeline / "steps.skops").write_bytes(wrong)
        with pytest.raises(StateFormatError, match=r"steps\.skops"):
            skgpt.load(saved_pipeline, trusted=[SHOUT])
        # By somebody who knows how, too.
        rewrite(saved_pipeline, lambda m, w=wrong: m.update(steps=hashlib.sha256(w).hexdigest()))
        with pytest.raises(StateFormatError, match=r"steps\.skops"):
            skgpt.load(saved_pipeline, trusted=[SHOUT])
    (saved_pipeline / "steps.skops").unlink()
    with pytest.raises(StateFormatError, match=r"steps\.skops"):
        skgpt.load(saved_pipeline, trusted=[SHOUT])
    assert not ran.exists()


def test_load__a_pipeline_without_skops__names_the_package(
    saved_pipeline: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "skops.io", None)
    with pytest.raises(ImportError, match="pip install skops"):
        skgpt.load(saved_pipeline)
