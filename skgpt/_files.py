"""Values as JSON, and back: what a fitted estimator holds beside its weights, without a pickle.

Numbers, texts, None, lists, tuples, dicts and numpy arrays of these; floats come back bit for bit.
Nothing but such values is ever made, so what a stranger wrote can be read.

Folders that users name: checked, and taking their name whole or not at all.
"""

import errno
import math
import os
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from skgpt.exceptions import (
    FolderTakenError,
    InvalidArgumentError,
    SkgptError,
    StateFormatError,
    StorageError,
)

_TAG = "!"  # the key of what JSON has no word for
_KINDS = "biufU"  # of arrays' elements, beside objects
_SAFE_INT = 2**53  # beyond it other readers of JSON round

ToPlain = Callable[[Any], Any]


def to_plain(value: Any, other: ToPlain | None = None) -> Any:
    """Return a value as what `json.dumps` takes.

    Parameters
    ----------
    value : object
    other : callable, default=None
        Asked first: returns what stands for a value of the caller's own kind, or None for the
        usual.

    Returns
    -------
    plain : object

    Raises
    ------
    TypeError
        If there is something else in it.
    """
    if other is not None and (own := other(value)) is not None:
        return own
    if isinstance(value, np.generic):  # first: some are subclasses of Python's own
        return {_TAG: "scalar", "of": to_plain(np.asarray(value))}
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, int):
        return value if abs(value) < _SAFE_INT else {_TAG: "int", "value": str(value)}
    if isinstance(value, float):
        return value if math.isfinite(value) else {_TAG: "float", "value": str(value)}
    if isinstance(value, list):
        return [to_plain(item, other) for item in value]
    if isinstance(value, tuple):
        return {_TAG: "tuple", "items": [to_plain(item, other) for item in value]}
    if isinstance(value, Mapping):
        if all(isinstance(key, str) for key in value) and _TAG not in value:
            return {str(key): to_plain(item, other) for key, item in value.items()}
        pairs = [[to_plain(key), to_plain(item, other)] for key, item in value.items()]
        return {_TAG: "dict", "items": pairs}
    if isinstance(value, np.ndarray) and value.dtype.kind in _KINDS + "O":
        items = [to_plain(item, other) for item in value.reshape(-1).tolist()]
        kind = "object" if value.dtype.kind == "O" else value.dtype.str
        return {_TAG: "array", "dtype": kind, "shape": list(value.shape), "items": items}
    raise TypeError(f"{type(value).__module__}.{type(value).__qualname__} can't be written as JSON")


def from_plain(plain: Any, own: Mapping[str, Callable[[Mapping[str, Any]], Any]] = {}) -> Any:
    """Return the value again.

    Parameters
    ----------
    plain : object
        From `to_plain`, by way of JSON.
    own : mapping of str to callable
        For each tag of the caller's own, what makes its value of the tagged dict.

    Returns
    -------
    value : object

    Raises
    ------
    StateFormatError
        If `to_plain` can't have written it.
    """
    try:
        return _value_of(plain, own)
    except (KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
        if isinstance(error, StateFormatError):
            raise
        raise StateFormatError(f"A saved value can't be read: {error!r}") from error


def _value_of(plain: Any, own: Mapping[str, Callable[[Mapping[str, Any]], Any]]) -> Any:
    if isinstance(plain, list):
        return [_value_of(item, own) for item in plain]
    if not isinstance(plain, dict):
        return plain
    if _TAG not in plain:
        return {key: _value_of(item, own) for key, item in plain.items()}
    tag = plain[_TAG]
    if tag in own:
        return own[tag](plain)
    match tag:
        case "int" | "float":
            return {"int": int, "float": float}[tag](plain["value"])
        case "scalar":
            return _array_of(plain["of"], own)[()]
        case "tuple":
            return tuple(_value_of(item, own) for item in plain["items"])
        case "dict":
            return {_value_of(k, own): _value_of(v, own) for k, v in plain["items"]}
        case "array":
            return _array_of(plain, own)
    raise StateFormatError(f"A saved value must be of a kind that is known. Got {tag!r}.")


def _array_of(plain: Any, own: Mapping[str, Callable[[Mapping[str, Any]], Any]]) -> Any:
    items = [_value_of(item, own) for item in plain["items"]]
    if plain["dtype"] == "object":
        flat = np.empty(len(items), dtype=object)
        flat[:] = items
        return flat.reshape(plain["shape"])
    dtype = np.dtype(plain["dtype"])
    if dtype.kind not in _KINDS:
        raise StateFormatError(f"A saved array must hold numbers or text. Got {plain['dtype']!r}.")
    return np.array(items, dtype=dtype).reshape(plain["shape"])


MANIFEST = "manifest.json"  # what a folder of skgpt.save is known by

_DISK_FULL = {errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)}  # Windows has no EDQUOT


def as_folder(value: Any, name: str) -> Path:
    """Return what a user passed as a folder, checked, with ``~`` spelt out.

    Parameters
    ----------
    value : object
    name : str
        Of the parameter, for the message.

    Raises
    ------
    InvalidArgumentError
        If it is neither a text nor a path object, or names nothing.
    """
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
        raise InvalidArgumentError(
            f"{wanted} Got {text!r}, with a character that no name can have."
        )
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise InvalidArgumentError(f"{wanted} Got {text!r}, and there is no such user.") from error


def opened_by(folder: Path) -> str:
    """Return what to say of a folder that `skgpt.save` wrote, where something else was wanted."""
    return ": skgpt.load opens it" if (folder / MANIFEST).is_file() else ""


@contextmanager
def save_errors(folder: Path, n_bytes: int | None = None) -> Iterator[None]:
    """Say of a folder that can't be written to what to do.

    Parameters
    ----------
    folder : Path
    n_bytes : int or None, default=None
        What it takes, where that is known.

    Raises
    ------
    StorageError
        Where the body raises an OSError that is none of skgpt's own.
    """
    try:
        yield
    except SkgptError:
        raise
    except OSError as error:
        # safetensors says it in words alone
        if error.errno in _DISK_FULL or f"(os error {errno.ENOSPC})" in str(error):
            room = "room" if n_bytes is None else f"{n_bytes / 1e6:.1f} MB free"
            reason = (
                f"The disk must have {room} for {str(folder)!r}. It is full ({error}): free some "
                "space, or name a folder on another disk."
            )
        else:
            reason = (
                f"`folder` must be one that can be written to. {str(folder)!r} can't ({error}): "
                "name another."
            )
        raise StorageError(f"{reason} What was there is as it was.") from error


@contextmanager
def atomic_folder(folder: Path, may_replace: Callable[[Path], bool]) -> Iterator[Path]:
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
    folder = folder.resolve()
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


def check_nothing_else(folder: Path, names: Iterable[str]) -> None:
    """Check that a folder which is about to be replaced holds only these.

    Raises
    ------
    FolderTakenError
        If there is something else, which would be lost.
    """
    if others := {path.name for path in folder.iterdir()} - set(names):
        raise FolderTakenError(
            f"`folder` must hold nothing but what was saved before, as all of it is replaced. In "
            f"{str(folder)!r} there is {min(others)!r} as well: move that, or name another folder."
        )


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
