"""Checkpoints: the state of a fit on disk, so that the same call goes on after its process died.

Each fit has a subfolder of its own, named after all that its result depends on, and locked by the
system as long as its process lives.
"""

import hashlib
import json
import logging
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any

from skgpt._files import LockedError, locked, remove_drafts, storage_errors, to_plain
from skgpt.exceptions import (
    ContinuationError,
    DivergedError,
    StateFormatError,
    StorageError,
    warn_user,
)
from skgpt.tensor_files import State, read_state, write_state
from skgpt.training.callbacks import FitStopped

_LOG = logging.getLogger("skgpt")
_EVERY_SECONDS = 300.0
_FORMAT = 1
_FILE = "checkpoint.safetensors"
_LOCK = "lock"
_ROOT_LOCK = ".lock"
_LOCK_SECONDS = 60.0  # claims and removals take an instant


class Checkpoint:
    """Where a fit writes its state, and the state `found` there when it began.

    `belongs_to` is all that the result depends on, by the names that a user knows it by. A
    checkpoint that is found brings its own seed.
    """

    def __init__(self, file: Path, belongs_to: Mapping[str, Any], seed: int) -> None:
        self.file = file
        self.belongs_to = belongs_to
        self.seed = seed
        self.found: State | None = None
        self._written = time.monotonic()
        if file.exists():
            self._read()

    def _read(self) -> None:
        try:
            found = read_state(self.file)
        except (OSError, StateFormatError) as error:
            raise StorageError(
                f"A checkpoint must be as it was written. {self.file} can't be gone on from: "
                f"{error} Delete it to start this fit anew, or set `checkpoint_dir` to another "
                "folder."
            ) from error
        theirs = found.values.get("belongs_to", {})
        names = sorted({*theirs, *self.belongs_to})
        # As they come back from the file: lists for tuples and the like are no difference.
        own = {name: _text(value) for name, value in self.belongs_to.items()}
        other = [n for n in names if own.get(n) != (_text(theirs[n]) if n in theirs else None)]
        if other:
            raise ContinuationError(
                "To go on from a checkpoint, a fit must be given what it was written for. "
                f"{self.file} belongs to a fit of which this differs: {', '.join(other)}. Delete "
                "it, or set `checkpoint_dir` to another folder."
            )
        self.seed = found.values["seed"]
        self.found = State(found.tensors, found.values["state"])
        _LOG.info("goes on from the checkpoint %s", self.file)

    def is_due(self) -> bool:
        """Say whether the last one was written so long ago that another had better be."""
        return time.monotonic() - self._written >= _EVERY_SECONDS

    def write(self, state: State) -> None:
        """Write a state; the one before stays until this one is there whole."""
        values = {"belongs_to": self.belongs_to, "seed": self.seed, "state": state.values}
        with _storage_errors(self.file):
            write_state(self.file, State(state.tensors, values))
        self._written = time.monotonic()


@contextmanager
def claimed_checkpoint(
    root: Path, belongs_to: Mapping[str, Any], seed: int
) -> Iterator[Checkpoint | None]:
    """Lock a checkpoint in `root` while a fit runs; None, with a warning, if an equal fit has it.

    It is removed where the body ends well, where training diverged, as it would again, and where
    the fit was stopped for good. Otherwise it stays for the next fit of the kind, if anything was
    written. Raises StorageError if the folder can't be written to or what is there is damaged,
    ContinuationError if what is there belongs to another fit.
    """
    belongs_to = {**belongs_to, "the format of checkpoints": _FORMAT}
    folder = root / hashlib.sha256(_text(belongs_to).encode()).hexdigest()[:32]
    with _storage_errors(root):
        root.mkdir(parents=True, exist_ok=True)
        claim = _claim(root, folder)
    if claim is None:
        warn_user(
            f"An equal fit is running and holds the checkpoint in {folder}: this fit writes none.",
            UserWarning,
        )
        yield None
        return
    over = False
    try:
        with _storage_errors(folder):
            remove_drafts(folder / _FILE)
        yield Checkpoint(folder / _FILE, belongs_to, seed)
        over = True
    except DivergedError:
        over = True
        raise
    except FitStopped as stopped:
        over = stopped.for_good
        raise
    finally:
        with _storage_errors(folder), _root_lock(root):
            claim.close()
            if over or not (folder / _FILE).exists():
                shutil.rmtree(folder, ignore_errors=not over)


def _claim(root: Path, folder: Path) -> ExitStack | None:
    """Lock a folder, which is made if needed; None if another fit holds it."""
    claim = ExitStack()
    with _root_lock(root):
        folder.mkdir(exist_ok=True)
        try:
            claim.enter_context(locked(folder / _LOCK))
        except LockedError:
            return None
    return claim


def _root_lock(root: Path) -> AbstractContextManager[None]:
    """Let no one claim or remove a folder meanwhile: a lock in it could be gone with its file."""
    return locked(root / _ROOT_LOCK, _LOCK_SECONDS, "Set `checkpoint_dir` to another folder.")


def _storage_errors(path: Path) -> AbstractContextManager[None]:
    instead = "set another, on a disk with room for the weights three times over"
    return storage_errors("`checkpoint_dir`", path, instead)


def _text(value: Any) -> str:
    return json.dumps(to_plain(value), sort_keys=True)
