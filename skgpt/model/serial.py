"""Tensors as bytes, and a seal that tells whether what is read is what was written."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

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


def sealed(state: dict[str, Any]) -> dict[str, Any]:
    """Return the state with a hash of all that is in it."""
    return {**state, _SEAL: _hash(state)}


def check_seal(state: Mapping[str, Any], what: str) -> None:
    """Check that a state is as `sealed` returned it; those of earlier versions have no seal.

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
