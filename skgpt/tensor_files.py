"""A state as one safetensors file, or as the bytes of one, with a checksum.

Pickles, saved folders and checkpoints all hold a `State`: tensors and plain values, by name.
Neither safetensors nor torch notices a flipped byte; the checksum does. It is no signature: whoever
changes a file on purpose can compute a new one.
"""

import hashlib
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
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

# The one key of the metadata: safetensors writes several in any order, and equal states must give
# equal bytes. It holds the checksum, of 64 letters, and the values as JSON.
_KEY = "skgpt"
_OF = "/"
# safetensors' tensors are views of the file, and Windows replaces and removes none that is in use.
_COPIES = sys.platform == "win32"


@dataclass(frozen=True)
class State:
    """Tensors and plain values (of `skgpt._files.to_plain`), by name.

    The tensors are those in use, not copies: write them before the next step.
    """

    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    values: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, **parts: "State") -> "State":
        """Return the states of several parts as one."""
        return cls(
            {f"{p}{_OF}{k}": t for p, state in parts.items() for k, t in state.tensors.items()},
            {p: state.values for p, state in parts.items()},
        )

    def part(self, name: str) -> "State":
        """Return one of the states that `of` was given."""
        own = f"{name}{_OF}"
        tensors = {k.removeprefix(own): t for k, t in self.tensors.items() if k.startswith(own)}
        return State(tensors, self.values[name])


def to_bytes(state: State) -> NDArray[np.uint8]:
    """Return a state, its tensors of any device, as the bytes of a safetensors file."""
    tensors = _on_cpu(state.tensors)
    return np.frombuffer(save(tensors, _metadata(tensors, state.values)), dtype=np.uint8)


def from_bytes(array: NDArray[np.uint8]) -> State:
    """Return what `to_bytes` was given, in memory of its own; StateFormatError if a bit changed."""
    try:
        # A copy: the array may be a read-only memory map, and nothing may ever write to that.
        data = np.asarray(array, dtype=np.uint8).tobytes()
        tensors = load(data)
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise _damaged(str(error)) from error
    return _checked(tensors, header.get("__metadata__", {}))


def write_state(path: Path, state: State) -> None:
    """Write a state, its tensors of any device, whole or not at all.

    Raises OSError or SafetensorError where the disk refuses.
    """
    tensors = _on_cpu(state.tensors)
    with atomic_file(path) as draft:
        save_file(tensors, draft, _metadata(tensors, state.values))


def read_state(path: Path) -> State:
    """Return what `write_state` wrote, on the CPU; StateFormatError if a bit of it changed."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, ValueError) as error:
        raise _damaged(str(error)) from error
    state = _checked(tensors, metadata)
    if _COPIES:
        return State({name: tensor.clone() for name, tensor in tensors.items()}, state.values)
    return state


def _metadata(tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> dict[str, str]:
    text = json.dumps(to_plain(values))
    return {_KEY: _checksum(text, tensors) + text}


def _checked(tensors: dict[str, Tensor], metadata: Mapping[str, str]) -> State:
    found = metadata.get(_KEY, "")
    checksum, text = found[:64], found[64:]
    if checksum != _checksum(text, tensors):
        raise _damaged("its checksum differs")
    return State(tensors, from_plain(json.loads(text)))


def _damaged(reason: str) -> StateFormatError:
    return StateFormatError(
        f"A saved state must be as it was written. It isn't ({reason}): the file is damaged. Take "
        "another copy of it."
    )


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


def _checksum(text: str, tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256(text.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} {tensor.nbytes}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
