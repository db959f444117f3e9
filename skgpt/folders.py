"""A folder that is written whole or not at all, and put in the place of an earlier one."""

import errno
import os
import secrets
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

from skgpt.exceptions import SaveError

_FULL = {errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)}  # Windows has no EDQUOT


def replace_folder(
    folder: Path, files: Mapping[str, bytes], owned: Callable[[Path], set[str] | None]
) -> None:
    """Write files to a folder; if anything fails, what was there is there as before.

    They are written beside it under another name, then renamed. A process that is killed may
    leave such a folder behind, never half of one under its final name.

    Parameters
    ----------
    folder : Path
    files : mapping of str to bytes
    owned : callable
        Returns the names of the files in a folder that may be replaced, None for a folder that
        may not.

    Raises
    ------
    SaveError
        If something else is in the place, or it can't be written to.
    """
    target = Path(os.path.realpath(folder.expanduser()))
    _check_place(target, owned)
    mark = f"{os.getpid()}-{secrets.token_hex(4)}"
    draft = target.with_name(f".{target.name}.{mark}.tmp")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        draft.mkdir()
        for name, content in files.items():
            with (draft / name).open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        _sync_folder(draft)
        _swap(draft, target, target.with_name(f".{target.name}.{mark}.old"))
        _sync_folder(target.parent)
    except OSError as error:
        raise _save_error(error, target, sum(map(len, files.values()))) from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _check_place(target: Path, owned: Callable[[Path], set[str] | None]) -> None:
    if not target.exists():
        return
    if not target.is_dir():
        raise SaveError(f"`folder` must be a folder. {str(target)!r} is a file.")
    found = {path.name for path in target.iterdir()}
    if not found:
        return
    ours = owned(target)
    if ours is None or found - ours:
        other = f", {min(found - ours)!r} for one" if ours else ""
        raise SaveError(
            "`folder` must be new, empty or one that was saved before. "
            f"{str(target)!r} holds other files{other}: name another folder, or empty this one."
        )


def _swap(draft: Path, target: Path, aside: Path) -> None:
    """Put the draft in the place of what is there, which comes back if that fails."""
    if not target.exists():
        os.rename(draft, target)
        return
    os.rename(target, aside)
    try:
        os.rename(draft, target)
    except BaseException:
        os.rename(aside, target)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def _sync_folder(path: Path) -> None:
    with suppress(OSError):  # not every system opens or syncs a folder
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _save_error(error: OSError, target: Path, needed: int) -> SaveError:
    if error.errno in _FULL:
        return SaveError(
            f"The disk of {str(target)!r} must have {needed / 1e6:.1f} MB free. It is full "
            f"({error}). Nothing was saved and nothing is left of it: free some space, or name a "
            "folder on another disk."
        )
    return SaveError(
        f"`folder` must be one that can be written to. {str(target)!r} can't ({error}). What was "
        "there is as it was: name another folder."
    )
