"""A folder is written whole or not at all, and takes nothing else's place."""

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from skgpt.exceptions import SaveError
from skgpt.folders import replace_folder

OLD, NEW = {"a": b"old", "b": b"old"}, {"a": b"new"}


def owned(folder: Path) -> set[str] | None:
    return {"a", "b"} if (folder / "a").exists() else None


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Return a folder with nothing else in it, so that leftovers show."""
    root = tmp_path / "root"
    root.mkdir()
    return root


def test_replace_folder__new_empty_or_of_ours__holds_the_new_files_alone(root: Path) -> None:
    (root / "empty").mkdir()
    for name in ("new", "empty", "new"):
        replace_folder(root / name, OLD, owned)
        assert content(root / name) == OLD
    replace_folder(root / "new", NEW, owned)
    assert content(root / "new") == NEW
    replace_folder(root / "deep" / "er", NEW, owned)
    assert sorted(p.name for p in root.iterdir()) == ["deep", "empty", "new"]


def test_replace_folder__a_link_to_a_folder__is_followed(root: Path) -> None:
    replace_folder(root / "real", OLD, owned)
    (root / "link").symlink_to(root / "real")
    replace_folder(root / "link", NEW, owned)
    assert (root / "link").is_symlink()
    assert content(root / "real") == NEW


@pytest.mark.parametrize("other", ["c", "a file"])
def test_replace_folder__something_else_there__is_refused(other: str, root: Path) -> None:
    if other == "a file":
        (root / "f").write_bytes(b"x")
    else:
        (root / "f").mkdir()
        (root / "f" / "c").write_bytes(b"x")
    with pytest.raises(SaveError, match="`folder` must be"):
        replace_folder(root / "f", NEW, owned)
    assert [p.name for p in root.iterdir()] == ["f"]


def test_replace_folder__ours_with_a_file_of_the_users__is_refused(root: Path) -> None:
    replace_folder(root / "f", OLD, owned)
    (root / "f" / "notes.txt").write_text("mine")
    with pytest.raises(SaveError, match=r"'notes\.txt'"):
        replace_folder(root / "f", NEW, owned)
    assert (root / "f" / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("fails", ["fsync", "second rename", "Ctrl-C"])
@pytest.mark.parametrize("there", [True, False])
def test_replace_folder__a_failure__leaves_what_was_there_and_nothing_else(
    fails: str, there: bool, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if there:
        replace_folder(root / "f", OLD, owned)
    rename = os.rename

    def full(*args: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    def rename_once(source: Path, target: Path) -> None:
        if str(source).endswith(".tmp"):
            raise KeyboardInterrupt if fails == "Ctrl-C" else OSError(errno.EACCES, "no")
        rename(source, target)

    if fails == "fsync":
        monkeypatch.setattr("os.fsync", full)
    else:
        monkeypatch.setattr("os.rename", rename_once)
    kind: Any = KeyboardInterrupt if fails == "Ctrl-C" else SaveError
    words = {"fsync": "full", "second rename": "can't", "Ctrl-C": None}[fails]
    with pytest.raises(kind, match=words):
        replace_folder(root / "f", NEW, owned)
    assert [p.name for p in root.iterdir()] == ["f"] * there
    if there:
        assert content(root / "f") == OLD


def test_replace_folder__a_place_that_takes_no_folders__is_refused(root: Path) -> None:
    (root / "file").write_bytes(b"")
    with pytest.raises(SaveError, match="can be written to"):
        replace_folder(root / "file" / "f", NEW, owned)
