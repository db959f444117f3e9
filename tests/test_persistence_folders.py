"""What skgpt.save writes is there whole or not at all, and takes nothing else's place."""

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from skgpt.exceptions import FolderTakenError, SaveError
from skgpt.persistence import _with_hash, _write
from tests.helpers import needs_links


def files(**contents: bytes) -> dict[str, bytes]:
    """Return files as `save` makes them, with a manifest that names them."""
    manifest = {
        "format": 1,
        "class": "GPTTextClassifier",
        "versions": {},
        "files": {f"{name}.json": {"bytes": 0, "sha256": ""} for name in contents},
    }
    named = {f"{name}.json": content for name, content in contents.items()}
    return {**named, "manifest.json": _with_hash(manifest)}


OLD, NEW = files(a=b"old", b=b"old"), files(a=b"new")


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Return a folder with nothing else in it, so that leftovers show."""
    root = tmp_path / "root"
    root.mkdir()
    return root


def test_write__new_empty_or_of_ours__holds_the_new_files_alone(root: Path) -> None:
    (root / "empty").mkdir()
    for name in ("new", "empty", "new"):
        _write(root / name, OLD)
        assert content(root / name) == OLD
    _write(root / "new", NEW)
    assert content(root / "new") == NEW
    _write(root / "deep" / "er", NEW)
    assert sorted(p.name for p in root.iterdir()) == ["deep", "empty", "new"]


@needs_links
def test_write__a_link_to_a_folder__is_followed(root: Path) -> None:
    _write(root / "real", OLD)
    (root / "link").symlink_to(root / "real")
    _write(root / "link", NEW)
    assert (root / "link").is_symlink()
    assert content(root / "real") == NEW


@pytest.mark.parametrize("other", ["c", "a file"])
def test_write__something_else_there__is_refused(other: str, root: Path) -> None:
    if other == "a file":
        (root / "f").write_bytes(b"x")
    else:
        (root / "f").mkdir()
        (root / "f" / "c").write_bytes(b"x")
    with pytest.raises(FolderTakenError, match="`folder` must be"):
        _write(root / "f", NEW)
    assert [p.name for p in root.iterdir()] == ["f"]


def test_write__ours_with_a_file_of_the_users__is_refused(root: Path) -> None:
    _write(root / "f", OLD)
    (root / "f" / "notes.txt").write_text("mine")
    with pytest.raises(FolderTakenError, match=r"'notes\.txt'"):
        _write(root / "f", NEW)
    assert (root / "f" / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("fails", ["fsync", "second rename", "Ctrl-C"])
@pytest.mark.parametrize("there", [True, False])
def test_write__a_failure__leaves_what_was_there_and_nothing_else(
    fails: str, there: bool, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if there:
        _write(root / "f", OLD)
    rename = os.replace

    def full(*args: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    def rename_once(source: Path, target: Path) -> None:
        if str(source).endswith(".tmp"):
            raise KeyboardInterrupt if fails == "Ctrl-C" else OSError(errno.EACCES, "no")
        rename(source, target)

    if fails == "fsync":
        monkeypatch.setattr("os.fsync", full)
    else:
        monkeypatch.setattr("os.replace", rename_once)
    kind: Any = KeyboardInterrupt if fails == "Ctrl-C" else SaveError
    words = {"fsync": "full", "second rename": "can't", "Ctrl-C": None}[fails]
    with pytest.raises(kind, match=words):
        _write(root / "f", NEW)
    assert [p.name for p in root.iterdir()] == ["f"] * there
    if there:
        assert content(root / "f") == OLD


def test_write__a_place_that_takes_no_folders__is_refused(root: Path) -> None:
    (root / "file").write_bytes(b"")
    with pytest.raises(SaveError, match="can be written to"):
        _write(root / "file" / "f", NEW)
