"""Which models lie in the cache folder, and how they are removed.

The folder may be any that ``SKGPT_CACHE`` names: only what is known for skgpt's is touched, and a
link is removed as a link.
"""

import json
import os
import re
import shutil
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from skgpt._files import draft_of
from skgpt.exceptions import StorageError
from skgpt.pretrained.default_models import ALIASES, SOURCE_FILE, cache_folder, cache_lock

_CONVERTED = re.compile(r"(?P<alias>.+)-[0-9a-f]{12}-v\d+")
_UNFINISHED = re.compile(r"\.(?P<folder>(?P<alias>.+)-[0-9a-f]{12}-v\d+)\.\d+-[0-9a-f]+\.tmp")


@dataclass(frozen=True)
class Entry:
    """A model in the cache folder; `what` says in words what state it is in."""

    path: Path
    alias: str
    what: str
    n_bytes: int

    @property
    def name(self) -> str:
        """Its name in the cache folder."""
        return self.path.name


def cached_entries() -> list[Entry]:
    """Return the models in the cache folder, unfinished ones too, sorted by name."""
    folder = cache_folder()
    try:
        paths = sorted(folder.iterdir()) if folder.exists() else []
        return [entry for path in paths if (entry := _entry_at(path)) is not None]
    except OSError as error:
        raise StorageError(
            f"The cache folder must be one that can be read. {folder} can't ({error}): set "
            "SKGPT_CACHE to another."
        ) from error


def chosen(entries: Sequence[Entry], name: str | None) -> list[Entry]:
    """Return the entries of that name or alias, all of them for None; raise if there is none."""
    found = [entry for entry in entries if name is None or name in (entry.name, entry.alias)]
    if name is not None and not found:
        known = ", ".join(sorted({entry.alias for entry in entries})) or "none"
        raise StorageError(
            f"A model to remove must be in {cache_folder()}. There is {known}. Got {name!r}."
        )
    return found


def remove(entry: Entry) -> None:
    """Remove an entry, so that nobody sees half of it."""
    unfinished = _UNFINISHED.fullmatch(entry.name)
    folder = entry.path.with_name(unfinished["folder"]) if unfinished else entry.path
    # The name of a draft: should this be killed, the next conversion clears it away.
    dying = draft_of(folder)
    try:
        if entry.path.is_symlink():
            entry.path.unlink()
            return
        with cache_lock(folder, 0):
            os.replace(entry.path, dying)
            shutil.rmtree(dying)
    except FileNotFoundError:
        return  # somebody else was faster
    except StorageError:  # the lock's: another process is converting that model
        raise
    except OSError as error:
        raise StorageError(f"{entry.path} can't be removed ({error}). Is it in use?") from error


def size_of(path: Path) -> int:
    """Return the bytes of the files at and below a path; links are not followed."""
    try:
        found = path.lstat()
        if stat.S_ISDIR(found.st_mode):
            return sum(size_of(below) for below in path.iterdir())
    except FileNotFoundError:  # another process is at work there
        return 0
    return found.st_size if stat.S_ISREG(found.st_mode) else 0


def _entry_at(path: Path) -> Entry | None:
    """Return the entry at a path of the cache folder, None if it is not known for skgpt's."""
    if (named := _UNFINISHED.fullmatch(path.name)) and stat.S_ISDIR(path.lstat().st_mode):
        return Entry(path, named["alias"], "unfinished, or being made", size_of(path))
    named = _CONVERTED.fullmatch(path.name)
    if named is None or not path.is_dir():
        return None
    alias = named["alias"]
    if _is_converted(path, alias):
        what = "model"
    elif alias in ALIASES:
        what = "model, incomplete"
    else:
        return None
    return Entry(path, alias, f"{what}, a link" if path.is_symlink() else what, size_of(path))


def _is_converted(folder: Path, alias: str) -> bool:
    """Say whether a folder has the note that a conversion of that alias leaves."""
    try:
        source = json.loads((folder / SOURCE_FILE).read_text("utf-8"))
    except (FileNotFoundError, IsADirectoryError, ValueError, RecursionError):  # not ours
        return False
    return isinstance(source, dict) and source.get("alias") == alias
