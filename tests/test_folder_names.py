"""Folders as users name them: what is none says so, and what opens another kind of folder."""

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import skgpt
from skgpt import GPTTextClassifier
from skgpt._files import as_folder
from skgpt.exceptions import (
    FolderTakenError,
    InvalidArgumentError,
    ModelNotFoundError,
    ModelNotSupportedError,
    StorageError,
)
from tests.helpers import TextData, make

TAKE_FOLDERS: list[Callable[[GPTTextClassifier, Any], Any]] = [
    lambda clf, folder: skgpt.save(clf, folder),
    lambda clf, folder: skgpt.load(folder),
    lambda clf, folder: clf.save_pretrained(folder),
    lambda clf, folder: GPTTextClassifier.from_pretrained(folder),
]


@pytest.fixture(scope="module")
def fitted(tiny_llama: str) -> GPTTextClassifier:
    """Return a classifier that can be saved in every way."""
    return make(tiny_llama, pooling="last", max_epochs=1).fit(["a goal", "a bank"], ["x", "y"])


@pytest.mark.parametrize("value", [None, 3, b"folder", "", "a\0b", ["a"], "~nobody-of-this-name/a"])
@pytest.mark.parametrize("use", TAKE_FOLDERS, ids=["save", "load", "out", "in"])
def test_folder__what_names_none__says_what_it_takes(
    use: Any, value: Any, fitted: GPTTextClassifier, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InvalidArgumentError, match=r"`folder.*` must be the name of a folder"):
        use(fitted, value)
    assert not any(tmp_path.iterdir())


def test_as_folder__every_way_to_name_one__is_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    folder = tmp_path / "a b"
    for name in (folder, str(folder), f"{folder}{os.sep}", "~/a b", Path("~") / "a b"):
        assert as_folder(name, "folder") == folder


def test_save__a_path_among_the_parameters__comes_back_as_text(
    tiny_llama: str, two_class_data: TextData, tmp_path: Path
) -> None:
    clf = make(tiny_llama, checkpoint_dir=tmp_path / "c", max_epochs=1).fit(*two_class_data)
    skgpt.save(clf, tmp_path / "clf")
    again = skgpt.load(tmp_path / "clf")
    assert again.checkpoint_dir == str(tmp_path / "c")
    assert np.array_equal(
        again.predict_proba(two_class_data.X), clf.predict_proba(two_class_data.X)
    )


def test_save__the_folder_first__says_to_swap_them(
    fitted: GPTTextClassifier, tmp_path: Path
) -> None:
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


def test_save_pretrained__a_file_of_the_users_in_its_folder__is_refused_and_kept(
    fitted: GPTTextClassifier, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    fitted.save_pretrained(out)
    fitted.save_pretrained(out)
    (out / ".git").mkdir()
    with pytest.raises(FolderTakenError, match=r"'\.git'"):
        fitted.save_pretrained(out)
    assert (out / ".git").is_dir()


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
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}

    def fails(descriptor: int) -> None:
        raise error

    monkeypatch.setattr("os.fsync", fails)
    with pytest.raises(StorageError, match=words):
        write(fitted, tmp_path / "out")
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
