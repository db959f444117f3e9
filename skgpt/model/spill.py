"""Tensors in files instead of memory: read through the page cache, gone when the process is.

The files have no name on disk once they are open (on Windows: until they are closed), so nothing
is left behind however the process ends.
"""

import mmap
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

import torch
from torch import Tensor

from skgpt.exceptions import CacheError
from skgpt.model.conversion import cache_folder

# A mapped file stays open, and its space is taken until nothing in it is in use: neither many
# files nor large ones.
_FILE_BYTES = 2**30


class Spill:
    """Takes tensors of one dtype and writes them into files of the cache folder.

    A context manager, which closes what is still being written.

    Raises
    ------
    CacheError
        From any method, if the folder can't be written to, or is full.
    """

    def __init__(self) -> None:
        self._file: IO[bytes] | None = None
        self._shapes: list[torch.Size] = []  # of what is in the file
        self._mapped: list[Tensor] = []

    def __enter__(self) -> "Spill":
        return self

    def __exit__(self, *raised: object) -> None:
        if self._file is not None:
            with suppress(OSError):  # a full disk, which has been told already
                self._file.close()

    def add(self, tensor: Tensor) -> None:
        """Write a tensor, which must not be empty."""
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        with _as_cache_error():
            if self._file is None:
                folder = _folder()
                folder.mkdir(parents=True, exist_ok=True)
                self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115
            # Written, not mapped and filled: a full disk is an error here and a crash there.
            self._file.write(flat.view(torch.uint8).numpy().data)
            self._shapes.append(tensor.shape)
            self._dtype = tensor.dtype
            if self._file.tell() >= _FILE_BYTES:
                self._map()

    def tensors(self) -> list[Tensor]:
        """Return all tensors, in order, as they lie on disk; on the CPU."""
        with _as_cache_error():
            self._map()
        return self._mapped

    def _map(self) -> None:
        if self._file is None:
            return
        with self._file as file:
            file.flush()
            # Copy on write, since torch has no tensors that can't be written to.
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        whole = torch.frombuffer(mapped, dtype=self._dtype)
        pieces = whole.split([shape.numel() for shape in self._shapes])
        of_shapes = zip(pieces, self._shapes, strict=True)
        self._mapped += [piece.view(shape) for piece, shape in of_shapes]
        self._file, self._shapes = None, []


def disk_room() -> int:
    """Return how many bytes a fit may put on disk: half of what is free; 0 where there is none."""
    with suppress(OSError):  # a folder that can't be asked is one that can't be written to
        existing = _folder()
        while not existing.exists() and existing != existing.parent:
            existing = existing.parent
        return shutil.disk_usage(existing).free // 2
    return 0


@contextmanager
def _as_cache_error() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise CacheError(f"States can't be kept in {_folder()}: {error}") from error


def _folder() -> Path:
    return cache_folder() / "states"
