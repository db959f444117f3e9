"""Files of tensors and values: the same again, whole or not at all, no flipped bit unseen."""

import errno
import json
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from skgpt import tensor_files as files
from skgpt.exceptions import StateFormatError
from skgpt.tensor_files import read_tensors, remove_leftovers, write_tensors

TENSORS = {
    "weights": torch.arange(6, dtype=torch.float32).reshape(2, 3).T,  # not contiguous
    "half": torch.tensor([1.5, -2.0]).bfloat16(),
    "scalar": torch.tensor(3.0),
    "none": torch.empty(0, 4),
}
VALUES: dict[str, Any] = {
    "loss": 0.1 + 0.2,
    "not a number": float("nan"),
    "low": -float("inf"),
    "text": 'a "sha256":"' + "0" * 64 + '" \ud800',
    "history": [{"epoch": 1, "best": None}],
}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    write_tensors(tmp_path / "file", TENSORS, VALUES)
    return tmp_path / "file"


def test_file__read__is_what_was_written(file: Path) -> None:
    tensors, values = read_tensors(file)
    assert tensors.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert tensors[name].dtype == tensor.dtype
        assert torch.equal(tensors[name], tensor)
    assert np.isnan(values.pop("not a number"))
    assert values == {k: v for k, v in VALUES.items() if k != "not a number"}


def test_file__read_by_others__is_an_ordinary_safetensors_file(file: Path) -> None:
    assert all(torch.equal(tensor, TENSORS[name]) for name, tensor in load_file(file).items())


@pytest.mark.parametrize("bit", range(8))
def test_file__any_bit_flipped__is_seen(bit: int, file: Path) -> None:
    whole = file.read_bytes()
    for place in range(len(whole)):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << bit
        file.write_bytes(damaged)
        with pytest.raises(StateFormatError):
            read_tensors(file)


def test_file__cut_off_or_longer__is_seen(file: Path) -> None:
    whole = file.read_bytes()
    for damaged in (*(whole[:n] for n in range(len(whole))), whole + b"\x00"):
        file.write_bytes(damaged)
        with pytest.raises(StateFormatError):
            read_tensors(file)


def test_file__of_another_kind__is_refused(file: Path) -> None:
    file.write_bytes(os.urandom(3000))
    with pytest.raises(StateFormatError):
        read_tensors(file)


@pytest.mark.parametrize("after", [0, 1, 2])
def test_write_tensors__fails_half_way__leaves_the_file_before_and_nothing_else(
    after: int, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:

    before = file.read_bytes()
    bytes_of, asked = files._bytes_of, iter(range(9))

    def full(tensor: torch.Tensor) -> memoryview:
        if next(asked) == after:
            raise OSError(28, "No space left on device")
        return bytes_of(tensor)

    monkeypatch.setattr(files, "_bytes_of", full)
    with pytest.raises(OSError, match="No space left"):
        write_tensors(file, TENSORS, {})
    assert [path.name for path in file.parent.iterdir()] == ["file"]
    assert file.read_bytes() == before


_LIMITED = """
import resource, sys
from pathlib import Path
import torch
from skgpt.tensor_files import write_tensors
file = Path(sys.argv[1])
write_tensors(file, {"a": torch.ones(1000)}, {})
resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, 2**20))
try:
    write_tensors(file, {"a": torch.ones(10**6)}, {})
except OSError as error:
    print(type(error).__name__, error.errno)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs a limit on the size of files")
def test_write_tensors__a_disk_with_no_room__leaves_the_file_before_and_nothing_else(
    tmp_path: Path,
) -> None:
    command = [sys.executable, "-c", _LIMITED, str(tmp_path / "file")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.split()[0] == "OSError"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    tensors, _ = read_tensors(tmp_path / "file")
    assert torch.equal(tensors["a"], torch.ones(1000))


def test_read_tensors__where_files_in_use_stay__lets_go_of_the_file(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "_COPIES", True)
    tensors, _ = read_tensors(file)
    with file.open("r+b") as opened:  # a view would see it
        opened.write(b"\xff" * file.stat().st_size)
    assert {name: tensor.tolist() for name, tensor in tensors.items()} == {
        name: tensor.tolist() for name, tensor in TENSORS.items()
    }


def test_write_tensors__a_disk_that_syncs_no_folder__writes_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsync = os.fsync

    def no_folders(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")
        fsync(descriptor)

    monkeypatch.setattr("os.fsync", no_folders)
    write_tensors(tmp_path / "file", TENSORS, {})
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_remove_leftovers__of_writers_that_were_killed__are_gone(file: Path) -> None:
    file.with_name("file.0a1b2c3d.tmp").write_bytes(b"half")
    file.with_name("other").write_text(json.dumps(1))
    remove_leftovers(file)
    assert sorted(path.name for path in file.parent.iterdir()) == ["file", "other"]
