"""Folders appear whole or not at all, and nothing of anybody else's is written over."""

from pathlib import Path

import pytest

from skgpt._files import atomic_folder
from skgpt.exceptions import FolderTakenError


def ours(folder: Path) -> bool:
    return (folder / "mark").exists()


def write(folder: Path, text: str = "new") -> None:
    with atomic_folder(folder, ours) as draft:
        (draft / "mark").write_text(text)


def test_written_whole__a_new_folder__appears_at_the_end_with_its_parents(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    with atomic_folder(folder, ours) as draft:
        (draft / "mark").write_text("new")
        assert not folder.exists()
    assert [path.name for path in folder.iterdir()] == ["mark"]
    assert [path.name for path in folder.parent.iterdir()] == ["b"]


def test_written_whole__its_files__are_readable_by_those_who_may_read_any(tmp_path: Path) -> None:
    with atomic_folder(tmp_path / "b", ours) as draft:
        (draft / "private").touch(mode=0o600)
    (tmp_path / "usual").touch()
    made = (tmp_path / "b" / "private").stat().st_mode
    assert made == (tmp_path / "usual").stat().st_mode


def test_written_whole__one_of_ours__is_replaced_whole(tmp_path: Path) -> None:
    folder = tmp_path / "b"
    write(folder, "old")
    (folder / "more").touch()
    write(folder)
    assert [path.name for path in folder.iterdir()] == ["mark"]
    assert (folder / "mark").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["b"]


def test_written_whole__an_empty_folder__is_filled(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    write(tmp_path / "b")
    assert ours(tmp_path / "b")


def test_written_whole__somebody_elses__is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "mine").write_text("mine")
    for name in ("file", "b"):
        with pytest.raises(FolderTakenError, match=name):
            write(tmp_path / name)
    assert (tmp_path / "file").read_text() == (tmp_path / "b" / "mine").read_text() == "mine"
    assert len(list(tmp_path.iterdir())) == 2


def test_written_whole__filled_by_another_meanwhile__is_left_alone(tmp_path: Path) -> None:
    folder = tmp_path / "b"

    def slowly() -> None:
        with atomic_folder(folder, ours) as draft:
            (draft / "mark").touch()
            folder.mkdir()
            (folder / "theirs").touch()

    with pytest.raises(FolderTakenError):
        slowly()
    assert [path.name for path in folder.iterdir()] == ["theirs"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_written_whole__a_body_that_fails__leaves_what_was_there(
    error: type[BaseException], tmp_path: Path
) -> None:
    folder = tmp_path / "b"
    write(folder, "old")

    def fail() -> None:
        with atomic_folder(folder, ours) as draft:
            (draft / "mark").touch()
            raise error

    with pytest.raises(error):
        fail()
    assert (folder / "mark").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["b"]


def test_written_whole__a_last_step_that_fails__leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import os

    folder = tmp_path / "b"
    write(folder, "old")
    replace = os.replace

    def fails(source: Path, target: Path) -> None:
        if str(source).endswith(".tmp"):
            raise OSError("no")
        replace(source, target)

    monkeypatch.setattr(os, "replace", fails)
    with pytest.raises(OSError, match="no"):
        write(folder)
    assert (folder / "mark").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["b"]
