"""A folder that takes its name whole or not at all, whatever fails while it is written."""

import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from skgpt.exceptions import FolderTakenError


@contextmanager
def written_whole(folder: Path, may_replace: Callable[[Path], bool]) -> Iterator[Path]:
    """Give a draft folder to write into, which becomes `folder` when the body ends well.

    Parameters
    ----------
    folder : Path
        Made with its parents. If it is there already it is replaced, nothing of it stays.
    may_replace : callable
        Asked about a folder that holds something: whether that may go.

    Yields
    ------
    draft : Path
        An empty folder beside it; it is gone when the body fails, and `folder` is as it was.

    Raises
    ------
    FolderTakenError
        If there is a file of that name, or a folder that may not be replaced.
    """
    folder = folder.expanduser().resolve()
    _check_free(folder, may_replace)
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = folder.with_name(f".{folder.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        draft.mkdir()
        yield draft
        _publish(draft)
        _check_free(folder, may_replace)  # writing took a while
        _swap(draft, folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _check_free(folder: Path, may_replace: Callable[[Path], bool]) -> None:
    if not folder.exists():
        return
    if not folder.is_dir():
        raise FolderTakenError(
            f"`folder` must be a new or empty folder. {str(folder)!r} is a file: name another."
        )
    if any(folder.iterdir()) and not may_replace(folder):
        raise FolderTakenError(
            f"`folder` must be new, empty, or one that was saved in the same way before. "
            f"{str(folder)!r} holds other files: name another, or empty it."
        )


def _publish(draft: Path) -> None:
    """Let others read what they could have read elsewhere, and have it all on the disk."""
    usual = draft / ".usual"
    usual.touch()
    for path in sorted(draft.iterdir()):
        if path.is_file():
            shutil.copymode(usual, path)  # safetensors gives its files to the owner alone
            sync(path)
    usual.unlink()
    sync(draft)


def _swap(draft: Path, folder: Path) -> None:
    if not folder.exists():
        os.replace(draft, folder)
    else:
        old = draft.with_suffix(".old")
        os.replace(folder, old)
        try:
            os.replace(draft, folder)
        except BaseException:
            os.replace(old, folder)
            raise
        shutil.rmtree(old, ignore_errors=True)
    sync(folder.parent)


def sync(path: Path) -> None:
    """Put a file or a folder's entries on the disk, so that a power cut can't empty a file."""
    if path.is_dir():
        with suppress(OSError):  # not every system opens or syncs a folder
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
    else:
        with path.open("r+b") as file:
            os.fsync(file.fileno())
