"""Tensors as bytes, and a seal that tells whether what is read is what was written.

Tensors and values in one file: there whole or not at all, and known when it was damaged.

The file is an ordinary safetensors file. Beside the values, as JSON, its metadata hold the SHA-256
of everything in it, with zeros where that itself stands.
"""

import hashlib
import json
import os
import re
import secrets
import sys
from collections.abc import Iterable, Mapping
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save
from torch import Tensor

from skgpt._files import from_plain, to_plain
from skgpt.exceptions import StateFormatError

_SEAL = "sha256"


def to_bytes(tensors: Mapping[str, Tensor]) -> NDArray[np.uint8]:
    """Return tensors as the bytes of a safetensors file."""
    plain = {name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}
    return np.frombuffer(save(plain), dtype=np.uint8)


def from_bytes(array: NDArray[np.uint8]) -> dict[str, Tensor]:
    """Make the tensors again, in memory of their own.

    Raises
    ------
    StateFormatError
        If these are not the bytes of a safetensors file.
    """
    try:
        # A copy: the array may be a read-only memory map, and nothing may ever write to that.
        tensors: dict[str, Tensor] = load(np.asarray(array, dtype=np.uint8).tobytes())
        return tensors
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise StateFormatError(
            f"The weights of a saved model must be safetensors. They can't be read ({error}): the "
            "file is damaged. Take another copy of it."
        ) from error


def with_checksum(state: dict[str, Any]) -> dict[str, Any]:
    """Return the state with a hash of all that is in it."""
    return {**state, _SEAL: _hash(state)}


def check_checksum(state: Mapping[str, Any], what: str) -> None:
    """Check that a state is as `with_checksum` returned it; those of earlier versions have no seal.

    A seal tells damage. It is no signature: whoever writes a file on purpose can seal it.

    Parameters
    ----------
    state : mapping
    what : str
        What it is, for the error message.

    Raises
    ------
    StateFormatError
        If something is not as it was.
    """
    if _SEAL not in state:
        return
    if state[_SEAL] != _hash({key: value for key, value in state.items() if key != _SEAL}):
        raise StateFormatError(
            f"{what} must be what was saved. Its sha256 is another: the file is damaged. Take "
            "another copy of it."
        )


def _hash(state: Mapping[str, Any]) -> str:
    digest = hashlib.sha256()
    arrays = {key: value for key, value in state.items() if isinstance(value, np.ndarray)}
    rest = {key: value for key, value in state.items() if key not in arrays}
    try:
        digest.update(json.dumps(rest, sort_keys=True).encode())
    except (TypeError, ValueError) as error:
        raise StateFormatError(
            f"A saved model must hold numbers, text and arrays of bytes. It doesn't: {error}"
        ) from error
    for key in sorted(arrays):
        array = np.ascontiguousarray(arrays[key])
        digest.update(f"{key} {array.dtype.str} {array.nbytes}".encode())
        digest.update(array.data)
    return digest.hexdigest()


_NO_DIGEST = "0" * 64
_DIGEST = re.compile(rb'"sha256":"([0-9a-f]{64})"')
_ALIGNED = 8  # bytes, where safetensors wants the tensors to begin
_MOST_HEADER = 100_000_000  # safetensors' own limit
_CHUNK = 2**22
# safetensors' tensors are views of the file, and Windows replaces and removes none that is in use.
_COPIES = sys.platform == "win32"
_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.uint8: "U8",
    torch.int8: "I8",
    torch.bool: "BOOL",
}


def write_tensors(path: Path, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
    """Write a file under a temporary name, and give it its own once it is on disk whole.

    Parameters
    ----------
    path : Path
        What is there stays until the new file takes its place.
    tensors : mapping of str to Tensor
        Of any device; they go to the CPU one by one, so memory for a second copy isn't needed.
    values : mapping of str to object
        What `skgpt._files.to_plain` takes.

    Raises
    ------
    OSError
        If it can't be written. Nothing is left of the attempt.
    """
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("xb") as file:
            _write(file, tensors, values)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise
    _sync_folder(path.parent)


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a file that `write_tensors` wrote.

    Parameters
    ----------
    path : Path

    Returns
    -------
    tensors : dict of str to Tensor
        On the CPU.
    values : dict of str to object

    Raises
    ------
    StateFormatError
        If a bit of it is not as it was written, or `write_tensors` didn't write it.
    OSError
        If it can't be read.
    """
    with path.open("rb") as file:
        _check_digest(file)
    try:
        with safe_open(path, framework="pt") as opened:
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
            if _COPIES:
                tensors = {name: tensor.clone() for name, tensor in tensors.items()}
            plain = json.loads(opened.metadata()["values"])
    except (SafetensorError, KeyError, ValueError) as error:
        raise StateFormatError(f"It has the right checksum, but can't be read: {error}") from error
    return tensors, from_plain(plain)


def remove_leftovers(path: Path) -> None:
    """Remove what writers of a file left behind that were killed; nobody may be writing it."""
    for temporary in path.parent.glob(f"{path.name}.*.tmp"):
        temporary.unlink()


def _write(file: IO[bytes], tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
    # By hand: safetensors' own writer wants all the bytes in memory at once, beside the tensors.
    header = _header(tensors, values)
    place = _DIGEST.search(header)
    assert place is not None
    digest = hashlib.sha256()
    begin = len(header).to_bytes(8, "little") + header
    pieces: Iterable[bytes | memoryview] = map(_bytes_of, tensors.values())
    for piece in chain([begin], pieces):
        digest.update(piece)
        file.write(piece)
    file.seek(8 + place.start(1))
    file.write(digest.hexdigest().encode())


def _header(tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> bytes:
    plain = json.dumps(to_plain(values), allow_nan=False)
    # The checksum first: in the values, quotes are escaped, but tensors' names come as they are.
    entries: dict[str, Any] = {"__metadata__": {"sha256": _NO_DIGEST, "values": plain}}
    begin = 0
    for name, tensor in tensors.items():
        end = begin + tensor.numel() * tensor.element_size()
        entries[name] = {
            "dtype": _NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [begin, end],
        }
        begin = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    return text + b" " * (-len(text) % _ALIGNED)


def _bytes_of(tensor: Tensor) -> memoryview:
    """Return a tensor's bytes, little-endian as the format wants them."""
    assert sys.byteorder == "little"
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data


def _check_digest(file: IO[bytes]) -> None:
    length = file.read(8)
    size = int.from_bytes(length, "little")
    header = file.read(size) if size <= _MOST_HEADER else b""
    found = _DIGEST.search(header)
    if found is None:
        raise StateFormatError("It doesn't begin as such a file does.")
    digest = hashlib.sha256(length)
    digest.update(header[: found.start(1)] + _NO_DIGEST.encode() + header[found.end(1) :])
    while chunk := file.read(_CHUNK):
        digest.update(chunk)
    if digest.hexdigest().encode() != found[1]:
        raise StateFormatError("It is not what was written: its checksum differs.")


def _sync_folder(folder: Path) -> None:
    """Have a new name in a folder outlive a power failure, where the system can say so."""
    if not hasattr(os, "O_DIRECTORY"):  # Windows
        return
    with suppress(OSError):  # not every disk syncs a folder
        opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(opened)
        finally:
            os.close(opened)
