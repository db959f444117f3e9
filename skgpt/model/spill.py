"""Tensors in files instead of memory: read through the page cache, gone when the process is.

The files have no name on disk once they are open (on Windows: until they are closed), so nothing
is left behind however the process ends.
"""

import mmap
import shutil
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor

from skgpt.model.conversion import cache_folder


def on_disk(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Write tensors into one file and return them as they lie there, on the CPU.

    Parameters
    ----------
    tensors : sequence of Tensor
        Of one dtype, none of them empty.

    Returns
    -------
    mapped : list of Tensor
        The file's space is free again when none of them is in use any more.

    Raises
    ------
    OSError
        If the cache folder can't be written to, or is full.
    """
    folder = _folder()
    folder.mkdir(parents=True, exist_ok=True)
    flat = torch.cat([tensor.detach().reshape(-1) for tensor in tensors]).cpu()
    with tempfile.TemporaryFile(dir=folder) as file:
        # Written, not mapped and filled: a full disk is an error here and a crash there.
        file.write(flat.view(torch.uint8).numpy().data)
        file.flush()
        # Copy on write, since torch has no tensors that can't be written to.
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    whole = torch.frombuffer(mapped, dtype=flat.dtype)
    pieces = whole.split([tensor.numel() for tensor in tensors])
    return [piece.view(t.shape) for piece, t in zip(pieces, tensors, strict=True)]


def disk_room() -> int:
    """Return how many bytes a fit may put on disk: half of what is free; 0 where there is none."""
    existing = _folder()
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    room = 0
    with suppress(OSError):  # a folder that can't be asked is one that can't be written to
        room = shutil.disk_usage(existing).free // 2
    return room


def _folder() -> Path:
    return cache_folder() / "states"
