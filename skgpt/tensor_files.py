"""Tensors and plain values as one safetensors file, or as bytes, with a checksum.

Neither safetensors nor torch notices a flipped byte; the checksum tells damage. It is no signature:
whoever changes a file on purpose can take the checksum anew.
"""

import hashlib
import json
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save, save_file
from torch import Tensor

from skgpt._files import atomic_file, from_plain, to_plain
from skgpt.exceptions import StateFormatError

_CHECKSUM = "sha256"
# safetensors' tensors are views of the file, and Windows replaces and removes none that is in use.
_COPIES = sys.platform == "win32"


def to_bytes(tensors: Mapping[str, Tensor]) -> NDArray[np.uint8]:
    """Return tensors as the bytes of a safetensors file."""
    return np.frombuffer(save(_on_cpu(tensors)), dtype=np.uint8)


def from_bytes(array: NDArray[np.uint8]) -> dict[str, Tensor]:
    """Return the tensors that `to_bytes` was given, in memory of their own."""
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
    """Return a state of plain values and arrays with a hash of all that is in it."""
    return {**state, _CHECKSUM: _hash_of_state(state)}


def check_checksum(state: Mapping[str, Any], what: str) -> None:
    """Raise StateFormatError, about `what`, if a state isn't as `with_checksum` returned it."""
    rest = {key: value for key, value in state.items() if key != _CHECKSUM}
    if _CHECKSUM in state and state[_CHECKSUM] != _hash_of_state(rest):
        raise StateFormatError(
            f"{what} must be what was saved. Its sha256 is another: the file is damaged. Take "
            "another copy of it."
        )


def write_tensors(path: Path, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
    """Write tensors of any device, and values that `to_plain` takes, whole or not at all.

    Raises OSError or SafetensorError where the disk refuses.
    """
    on_cpu = _on_cpu(tensors)
    text = json.dumps(to_plain(values), allow_nan=False)
    metadata = {"values": text, _CHECKSUM: _hash_of_tensors(text, on_cpu)}
    with atomic_file(path) as draft:
        save_file(on_cpu, draft, metadata)


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return what `write_tensors` wrote, on the CPU; StateFormatError if a bit of it changed."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, ValueError) as error:
        raise StateFormatError(f"It is no safetensors file: {error}") from error
    text = metadata.get("values", "")
    if metadata.get(_CHECKSUM) != _hash_of_tensors(text, tensors):
        raise StateFormatError("It is not what was written: its checksum differs.")
    if _COPIES:
        tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    return tensors, from_plain(json.loads(text))


def _on_cpu(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return contiguous tensors on the CPU that share no memory, as safetensors asks."""
    found: dict[str, Tensor] = {}
    storages = set()
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu().contiguous()
        storage = tensor.untyped_storage().data_ptr()
        found[name] = tensor.clone() if storage in storages else tensor
        storages.add(storage)
    return found


def _hash_of_state(state: Mapping[str, Any]) -> str:
    arrays = {key: value for key, value in state.items() if isinstance(value, np.ndarray)}
    rest = {key: value for key, value in state.items() if key not in arrays}
    try:
        text = json.dumps(rest, sort_keys=True)
    except (TypeError, ValueError) as error:
        raise StateFormatError(
            f"A saved model must hold numbers, text and arrays of bytes. It doesn't: {error}"
        ) from error
    return _hash(text, ((f"{key} {a.dtype.str}", a) for key, a in sorted(arrays.items())))


def _hash_of_tensors(text: str, tensors: Mapping[str, Tensor]) -> str:
    return _hash(
        text,
        (
            (f"{name} {t.dtype} {tuple(t.shape)}", t.reshape(-1).view(torch.uint8).numpy())
            for name, t in sorted(tensors.items())
        ),
    )


def _hash(text: str, arrays: Iterable[tuple[str, NDArray[Any]]]) -> str:
    digest = hashlib.sha256(text.encode())
    for label, array in arrays:
        digest.update(f"{label} {array.nbytes}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()
