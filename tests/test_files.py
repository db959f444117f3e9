"""Files and folders: the same again, whole or not at all, nobody else's, no flipped bit unseen."""

import errno
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from skgpt import tensor_files
from skgpt._files import LockedError, atomic_file, atomic_folder, locked, remove_drafts
from skgpt.exceptions import FolderTakenError, StateFormatError
from skgpt.tensor_files import State, from_bytes, read_state, to_bytes, write_state

TENSORS = {
    "weights": torch.arange(6, dtype=torch.float32).reshape(2, 3).T,  # not contiguous
    "half": torch.tensor([1.5, -2.0]).bfloat16(),
    "scalar": torch.tensor(3.0),
    "none": torch.empty(0, 4),
    "flags": torch.tensor([True, False]),
}
TENSORS["shared"] = TENSORS["scalar"]
VALUES: dict[str, Any] = {
    "loss": 0.1 + 0.2,
    "not a number": float("nan"),
    "low": -float("inf"),
    "text": 'a "sha256":"' + "0" * 64 + '" \ud800',
    "history": [{"epoch": 1, "best": None}],
}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    write_state(tmp_path / "file", State(TENSORS, VALUES))
    return tmp_path / "file"


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def by_path(file: Path) -> State:
    return read_state(file)


def by_bytes(file: Path) -> State:
    return from_bytes(np.fromfile(file, np.uint8))


each_way = pytest.mark.parametrize("read", [by_path, by_bytes])


@each_way
def test_read_state__a_file__is_what_was_written(read: Callable[[Path], State], file: Path) -> None:
    state = read(file)
    assert state.tensors.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert state.tensors[name].dtype == tensor.dtype
        assert torch.equal(state.tensors[name], tensor)
    values = dict(state.values)
    assert np.isnan(values.pop("not a number"))
    assert values == {k: v for k, v in VALUES.items() if k != "not a number"}
    assert all(torch.equal(tensor, TENSORS[name]) for name, tensor in load_file(file).items())
    assert to_bytes(State(TENSORS, VALUES)).tobytes() == file.read_bytes()


@each_way
def test_read_state__any_bit_flipped_cut_off_longer_or_of_another_kind__is_refused(
    read: Callable[[Path], State], file: Path
) -> None:
    whole = file.read_bytes()
    damaged = [whole[:n] for n in (*range(0, len(whole), 7), -1)]
    for place in range(len(whole)):
        flipped = bytes([whole[place] ^ (1 << place % 8)])
        damaged.append(whole[:place] + flipped + whole[place + 1 :])
    for content in (*damaged, whole + b"\x00", os.urandom(3000)):
        file.write_bytes(content)
        with pytest.raises(StateFormatError):
            read(file)


def test_read_state__where_files_in_use_stay__lets_go_of_the_file(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensor_files, "_COPIES", True)
    tensors = read_state(file).tensors
    with file.open("r+b") as opened:  # a view would see it
        opened.write(b"\xff" * file.stat().st_size)
    assert all(torch.equal(tensor, TENSORS[name]) for name, tensor in tensors.items())


_LIMITED = """
import resource, sys
from pathlib import Path
import torch
from skgpt._files import storage_errors
from skgpt.exceptions import StorageError
from skgpt.tensor_files import State, write_state
file = Path(sys.argv[1])
write_state(file, State({"a": torch.ones(1000)}))
resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, 2**20))
try:
    with storage_errors("`folder`", file.parent, "name another"):
        write_state(file, State({"a": torch.ones(10**6)}))
except StorageError:
    print("refused")
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs a limit on the size of files")
def test_write_state__a_full_disk__leaves_the_file_before_and_nothing_else(tmp_path: Path) -> None:
    command = [sys.executable, "-c", _LIMITED, str(tmp_path / "file")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == "refused\n"
    assert names(tmp_path) == ["file"]
    assert torch.equal(read_state(tmp_path / "file").tensors["a"], torch.ones(1000))


def test_write_state__a_disk_that_syncs_no_folder__writes_with_the_usual_permissions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsync = os.fsync

    def no_folders(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")
        fsync(descriptor)

    monkeypatch.setattr("os.fsync", no_folders)
    write_state(tmp_path / "file", State(TENSORS))
    assert names(tmp_path) == ["file"]
    (tmp_path / "usual").touch()
    assert (tmp_path / "file").stat().st_mode == (tmp_path / "usual").stat().st_mode


def ours(folder: Path) -> bool:
    return (folder / "mark").exists()


def write(folder: Path, text: str = "new") -> None:
    with atomic_folder(folder, ours) as draft:
        (draft / "mark").write_text(text)


def write_file(path: Path, text: str = "new") -> None:
    with atomic_file(path) as draft:
        draft.write_text(text)


def text_of(path: Path) -> str:
    return (path / "mark" if path.is_dir() else path).read_text()


each_kind = pytest.mark.parametrize("write", [write, write_file], ids=["folder", "file"])


@each_kind
@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
@pytest.mark.parametrize("at", ["fsync", "replace"])
def test_atomic__a_step_that_fails__leaves_what_was_there(
    write: Callable[..., None],
    error: type[BaseException],
    at: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write(tmp_path / "b", "old")
    replace = os.replace

    def fails(source: Any, target: Any = None) -> None:
        if at == "fsync" or str(source).endswith(".tmp"):
            raise error
        replace(source, target)

    monkeypatch.setattr(os, at, fails)
    with pytest.raises(error):
        write(tmp_path / "b")
    assert text_of(tmp_path / "b") == "old"
    assert names(tmp_path) == ["b"]


@each_kind
def test_remove_drafts__of_writers_that_were_killed__are_gone(
    write: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr("shutil.rmtree", lambda *a, **k: None)
        patched.setattr(Path, "unlink", lambda *a, **k: None)
        patched.setattr(os, "replace", lambda *a: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            write(tmp_path / "[b]")
    (tmp_path / "other").touch()
    assert len(names(tmp_path)) == 2
    remove_drafts(tmp_path / "[b]")
    assert names(tmp_path) == ["other"]


def test_atomic_folder__a_new_one__appears_at_the_end_with_its_parents(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    with atomic_folder(folder, ours) as draft:
        (draft / "private").touch(mode=0o600)
        assert not folder.exists()
    assert names(folder) == ["private"]
    assert names(folder.parent) == ["b"]
    (tmp_path / "usual").touch()
    assert (folder / "private").stat().st_mode == (tmp_path / "usual").stat().st_mode


def test_atomic_folder__one_of_ours_or_an_empty_one__is_replaced_whole(tmp_path: Path) -> None:
    folder = tmp_path / "b"
    folder.mkdir()
    write(folder, "old")
    (folder / "more").touch()
    write(folder)
    assert names(folder) == ["mark"]
    assert text_of(folder) == "new"
    assert names(tmp_path) == ["b"]


def test_atomic_folder__somebody_elses__is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "mine").write_text("mine")
    for name in ("file", "b"):
        with pytest.raises(FolderTakenError, match=name):
            write(tmp_path / name)
    assert (tmp_path / "file").read_text() == (tmp_path / "b" / "mine").read_text() == "mine"
    assert names(tmp_path) == ["b", "file"]


def test_atomic_folder__filled_by_another_meanwhile__is_left_alone(tmp_path: Path) -> None:
    def slowly() -> None:
        with atomic_folder(tmp_path / "b", ours) as draft:
            (draft / "mark").touch()
            (tmp_path / "b").mkdir()
            (tmp_path / "b" / "theirs").touch()

    with pytest.raises(FolderTakenError):
        slowly()
    assert names(tmp_path / "b") == ["theirs"]


def test_locked__held_by_another__says_so_and_is_free_afterwards(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    path.write_text("left by a process that died")
    with (
        locked(path),
        pytest.raises(LockedError, match=r"lock must become free within 0\.1 s.* Wait\."),
        locked(path, 0.1, "Wait."),
    ):
        pass
    with locked(path):
        pass
