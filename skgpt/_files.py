"""Files on disk: atomic files and folders, locks, storage errors, and plain values as JSON."""

import errno
import glob
import os
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError

from skgpt.exceptions import (
    FolderTakenError,
    InvalidArgumentError,
    SkgptError,
    StateFormatError,
    StorageError,
)

# ---- Folders that users name ----

MANIFEST = "manifest.json"  # what a folder of skgpt.save is known by


def as_folder(value: Any, name: str) -> Path:
    """Return what a user passed as the folder `name`, checked, with ``~`` spelt out."""
    wanted = f"`{name}` must be the name of a folder, a text or a path object."
    try:
        text = os.fspath(value)
    except TypeError as error:
        raise InvalidArgumentError(
            f"{wanted} Got an object of type {type(value).__name__}."
        ) from error
    if not isinstance(text, str):
        raise InvalidArgumentError(f"{wanted} Got {text!r}: use os.fsdecode for names in bytes.")
    if not text:  # Path would take it for the current folder; mostly it is a variable never set
        raise InvalidArgumentError(f"{wanted} Got {text!r}: use '.' for the current folder.")
    if "\0" in text:
        raise InvalidArgumentError(f"{wanted} Got {text!r}: no name can have that character.")
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise InvalidArgumentError(f"{wanted} Got {text!r}, and there is no such user.") from error


def opened_by(folder: Path) -> str:
    """Return a hint, to end an error with, if `folder` is one that `skgpt.save` wrote."""
    return ": skgpt.load opens it" if (folder / MANIFEST).is_file() else ""


def check_nothing_else(folder: Path, names: Iterable[str]) -> None:
    """Raise if a folder that is about to be replaced holds files beside these."""
    if others := {path.name for path in folder.iterdir()} - set(names):
        raise FolderTakenError(
            f"`folder` must hold nothing but what was saved before, as all of it is replaced. In "
            f"{str(folder)!r} there is {min(others)!r} as well: move that, or name another folder."
        )


# ---- Errors and locks ----

_DISK_FULL = {errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)}  # Windows has no EDQUOT
_DISK_FULL_WORDS = ("No space left on device", f"(os error {errno.ENOSPC})")  # pip's, safetensors'


def is_disk_full(error: object) -> bool:
    """Say whether an error, or what a program printed, tells of a full disk."""
    in_words = any(words in str(error) for words in _DISK_FULL_WORDS)
    return in_words or getattr(error, "errno", None) in _DISK_FULL


@contextmanager
def storage_errors(
    what: str, folder: Path, instead: str, n_bytes: int | None = None
) -> Iterator[None]:
    """Turn the body's OSError into a StorageError that says what to do.

    `what` is the folder in its user's words, `instead` how to choose another, `n_bytes` what the
    body writes, where that is known.
    """
    try:
        yield
    except SkgptError:
        raise
    except (OSError, SafetensorError) as error:
        if is_disk_full(error):
            room = "room" if n_bytes is None else f"about {megabytes(n_bytes)} free"
            raise StorageError(
                f"{what} must be on a disk with {room}. That of {str(folder)!r} is full ({error}): "
                f"free some space, or {instead}. What was there is as it was."
            ) from error
        raise StorageError(
            f"{what} must be a folder that can be written to. {str(folder)!r} can't ({error}): "
            f"{instead}. What was there is as it was."
        ) from error


def megabytes(n_bytes: int) -> str:
    """Return a size as an error or a notice says it."""
    return f"{n_bytes / 1e6:.0f} MB" if n_bytes >= 1e6 else f"{n_bytes / 1e6:.2g} MB"


class LockedError(StorageError):
    """Another process holds a lock."""


@contextmanager
def locked(path: Path, seconds: float = 0, instead: str = "") -> Iterator[None]:
    """Hold the system's lock on a file; wait for it as long as `seconds`, then raise LockedError.

    The lock ends with its process, so a lock file that was left behind is harmless.
    """
    from filelock import FileLock, Timeout

    # A folder may be shared by several users, and its locks with it.
    lock = FileLock(path, timeout=seconds, poll_interval=0.2, mode=0o666)
    try:
        lock.acquire()
    except Timeout as error:
        raise LockedError(
            f"The lock {path} must become free within {seconds:g} s. It didn't: another process "
            f"holds it. {instead}"
        ) from error
    except NotImplementedError as error:
        raise OSError(f"the disk of {path} knows no locks") from error
    try:
        yield
    finally:
        lock.release()


# ---- Atomic files and folders: a killed process leaves the old one or the new one, whole ----


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Give a draft to write; it replaces `path` when the body ends well, and is gone if not."""
    draft = draft_of(path)
    try:
        draft.touch()
        mode = draft.stat().st_mode
        yield draft
        draft.chmod(mode)  # safetensors gives its files to the owner alone
        sync(draft)
        os.replace(draft, path)
    finally:
        with suppress(OSError):
            draft.unlink(missing_ok=True)
    sync(path.parent)


@contextmanager
def atomic_folder(
    folder: Path, may_replace: Callable[[Path], bool] = lambda folder: False
) -> Iterator[Path]:
    """Give a draft folder to fill; it becomes `folder` when the body ends well, and is gone if not.

    `may_replace` is asked about a folder that holds something already; all of that is replaced.
    """
    folder = folder.resolve()
    _check_free(folder, may_replace)
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = draft_of(folder)
    try:
        draft.mkdir()
        yield draft
        for path in draft.iterdir():
            if path.is_file():
                # safetensors gives its files to the owner alone.
                path.chmod(draft.stat().st_mode & 0o666)
                sync(path)
        sync(draft)
        _check_free(folder, may_replace)  # writing took a while
        _swap(draft, folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def draft_of(path: Path) -> Path:
    """Return a new name beside a path; `remove_drafts` finds it."""
    return path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")


def remove_drafts(path: Path) -> None:
    """Remove the drafts that killed writers of a path left; no one may be writing it now."""
    for draft in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        if draft.is_dir() and not draft.is_symlink():
            shutil.rmtree(draft, ignore_errors=True)
        else:
            draft.unlink()


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


# ---- Plain values as JSON: numbers, texts, None, lists, tuples, dicts and arrays of these ----
# Floats come back bit for bit: those that aren't finite as json.dumps writes them. Nothing else is
# ever made, so a stranger's file can be read.

_TAG = "!"  # the key of what JSON has no word for
_KINDS = "biufU"  # of arrays' elements, beside objects and times
_TIMES = "mM"  # go as whole numbers of their unit


def to_plain(value: Any) -> Any:
    """Return a value as what `json.dumps` takes, or raise TypeError."""
    if isinstance(value, np.generic):  # first: some are subclasses of Python's own
        return {_TAG: "scalar", "of": to_plain(np.asarray(value))}
    if value is None or isinstance(value, bool | str | int | float):
        return value
    if isinstance(value, list):
        return [to_plain(item) for item in value]
    if isinstance(value, tuple):
        return {_TAG: "tuple", "items": [to_plain(item) for item in value]}
    if isinstance(value, Mapping):
        if all(isinstance(key, str) for key in value) and _TAG not in value:
            return {str(key): to_plain(item) for key, item in value.items()}
        pairs = [[to_plain(key), to_plain(item)] for key, item in value.items()]
        return {_TAG: "dict", "items": pairs}
    if isinstance(value, np.ndarray) and value.dtype.kind in _KINDS + _TIMES + "O":
        cells = value.astype(np.int64) if value.dtype.kind in _TIMES else value
        items = [to_plain(item) for item in cells.reshape(-1).tolist()]
        kind = "object" if value.dtype.kind == "O" else value.dtype.str
        return {_TAG: "array", "dtype": kind, "shape": list(value.shape), "items": items}
    raise TypeError(f"{type(value).__module__}.{type(value).__qualname__} can't be written as JSON")


def from_plain(plain: Any) -> Any:
    """Return the value that `to_plain` was given; raise StateFormatError if that can't be."""
    try:
        return _value_of(plain)
    except StateFormatError:
        raise
    except (KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
        raise StateFormatError(f"A saved value can't be read: {error!r}") from error


def _value_of(plain: Any) -> Any:
    if isinstance(plain, list):
        return [_value_of(item) for item in plain]
    if not isinstance(plain, dict):
        return plain
    if _TAG not in plain:
        return {key: _value_of(item) for key, item in plain.items()}
    match plain[_TAG]:
        case "scalar":
            return _array_of(plain["of"])[()]
        case "tuple":
            return tuple(_value_of(item) for item in plain["items"])
        case "dict":
            return {_value_of(k): _value_of(v) for k, v in plain["items"]}
        case "array":
            return _array_of(plain)
    raise StateFormatError(f"A saved value must be of a kind that is known. Got {plain[_TAG]!r}.")


def _array_of(plain: Any) -> Any:
    items = [_value_of(item) for item in plain["items"]]
    if plain["dtype"] == "object":
        flat = np.empty(len(items), dtype=object)
        flat[:] = items
        return flat.reshape(plain["shape"])
    dtype = np.dtype(plain["dtype"])
    if dtype.kind in _TIMES:
        return np.array(items, dtype=np.int64).astype(dtype).reshape(plain["shape"])
    if dtype.kind not in _KINDS:
        raise StateFormatError(f"A saved array must hold numbers or text. Got {plain['dtype']!r}.")
    return np.array(items, dtype=dtype).reshape(plain["shape"])
