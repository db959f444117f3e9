"""Errors and warnings of skgpt; each is also the builtin that a caller would expect to catch."""

import sys
import warnings
from collections.abc import Callable, Collection, Iterable
from contextvars import ContextVar
from difflib import get_close_matches
from functools import wraps
from importlib import import_module
from inspect import signature
from types import FrameType
from typing import Any, ParamSpec

P = ParamSpec("P")

# Packages whose frames may lie between a user's call and a warning of ours.
_NOT_THE_USER = {"skgpt", "sklearn", "joblib", "optuna", "torch"}
_NOT_THE_USER |= {"concurrent", "contextlib", "threading"}


class SkgptError(Exception):
    """Base class of every error that skgpt raises on purpose."""


class InvalidTextError(SkgptError, ValueError):
    """The texts, labels or weights that were handed in can't be used as they are."""


class InvalidArgumentError(SkgptError, TypeError, ValueError):
    """An argument names no folder, no device of this machine, or can't be saved."""


class ModelNotFoundError(SkgptError, OSError):
    """The pretrained model that was named could not be found, fetched or read."""


class ModelNotSupportedError(SkgptError, ValueError):
    """The model was read, but can't do what was asked of it."""


class ContinuationError(SkgptError, ValueError):
    """A fit or search can't go on from what is there; the message names what differs."""


class MissingPackageError(SkgptError, ImportError):
    """Something needs a package that is not installed; the message names it."""


class TuningError(SkgptError, ValueError):
    """A search or a comparison can't be run as it was asked for, or no trial of it succeeded."""


class StorageError(SkgptError, OSError):
    """A folder, file or storage can't be read or written; what was there before still is."""


class FolderTakenError(StorageError, FileExistsError):
    """The folder to write to holds something else, which was left alone."""


class DivergedError(SkgptError, ArithmeticError):
    """Training became infinite or NaN; the message says what the estimator is now."""


class NoMemoryError(SkgptError, MemoryError):
    """The device's memory doesn't hold what was asked for, however little is run at once."""


class StateFormatError(SkgptError, ValueError):
    """A saved model is damaged, or of a format that this version can't read."""


# Other names of the same classes.
SearchSpaceError = SearchFailedError = TuningError
SearchStorageError = CacheError = CheckpointError = SaveError = StorageError
FolderNameError = NotSavableError = InvalidArgumentError
DownloadError = ModelNotFoundError


class SlowFitWarning(UserWarning):
    """A fit is going to take more than ten minutes; the message says what would shorten it."""


class TimeLimitWarning(UserWarning):
    """`max_seconds` made a fit shorter; the message says by how much."""


class ShortFitWarning(UserWarning):
    """A fit ended while its loss was still falling steeply."""


class CutTextsWarning(UserWarning):
    """Texts of a fit are longer than `max_length` and were cut; said once for each length."""


class LabelWordsWarning(UserWarning):
    """Labels that are no words stand in a prompt as they are."""


class LowMemoryWarning(UserWarning):
    """Memory ran out; less is run at a time from now on, and results stay the same."""


class InterruptedFitWarning(UserWarning):
    """Ctrl-C ended a fit; the estimator is fitted, as the last optimiser step left it."""


class SkippedStepsWarning(UserWarning):
    """Optimiser steps were skipped, as their loss or gradient was not finite."""


class MissingScoreWarning(UserWarning):
    """`scoring` gave no number after some epochs, which counted as no improvement."""


class NumbersAsTextWarning(UserWarning):
    """X of a fit holds numbers alone; they are read as the texts that they are written as."""


class BaselineWarning(UserWarning):
    """A linear model on TF-IDF did no worse than the GPT that it was compared with."""


class IdlePrunerWarning(UserWarning):
    """A study's pruner can't save anything with so few folds."""


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """Return a question for a misspelt name, with a space before it; "" if none is like it."""
    like = get_close_matches(name, names, n=1)
    return f" Did you mean {like[0]!r}?" if like else ""


def check_names(kind: str, names: Iterable[str], known: Collection[str]) -> None:
    """Refuse names of parameters, or of a parameter's own, that an object of this kind has not."""
    for name in names:
        if (own := name.partition("__")[0]) not in known:
            raise InvalidArgumentError(
                f"Invalid parameter {name!r} for estimator {kind}.{did_you_mean(own, known)} It "
                f"has {', '.join(known)}."
            )


def suggests_names(init: Callable[P, None]) -> Callable[P, None]:
    """Have a constructor ask which parameter a misspelt one was meant to be, as Python 3.13 does.

    The signature stays what scikit-learn and editors read.
    """
    known = list(signature(init).parameters)[1:]

    @wraps(init)
    def checked(*args: P.args, **params: P.kwargs) -> None:
        for name in params:
            if name not in known:
                raise TypeError(
                    f"{type(args[0]).__name__} has no parameter {name!r}."
                    f"{did_you_mean(name, known)} It has {', '.join(sorted(known))}."
                )
        init(*args, **params)

    return checked


def import_optional(name: str, what: str, extra: str | None = None) -> Any:
    """Import a module of a package that only `what` needs, or say how to get the package.

    With an `extra` of ours, that is what to install.
    """
    try:
        return import_module(name)
    except ImportError as error:
        package = name.partition(".")[0]
        wanted = package if extra is None else f'"skgpt-text[{extra}]"'
        raise MissingPackageError(
            f"{what} needs the package {package}, which can't be imported: run "
            f"`pip install {wanted}`. ({error})"
        ) from error


# A line's file, number and module, and the registry of warnings that were shown in that module.
Line = tuple[str, int, str, dict[Any, Any]]

# Where the user called what this thread works on; set in threads that skgpt starts.
CALLED_FROM: ContextVar[Line | None] = ContextVar("skgpt_called_from", default=None)


def warn_user(message: str, category: type[Warning]) -> None:
    """Warn at the user's line; Python 3.12's `skip_file_prefixes`, for 3.11 too."""
    warnings.warn_explicit(message, category, *line_of_user())


def line_of_user() -> Line:
    """Return the innermost line outside skgpt and of what calls it for the user.

    In a thread without one it is `CALLED_FROM`, or else the outermost line.
    """
    frame = sys._getframe(1)
    while frame.f_back and _is_ours(frame):
        frame = frame.f_back
    called_from = CALLED_FROM.get()
    if called_from is not None and _is_ours(frame):
        return called_from
    names = frame.f_globals
    registry: dict[Any, Any] = names.setdefault("__warningregistry__", {})
    return frame.f_code.co_filename, frame.f_lineno, names.get("__name__", ""), registry


def _is_ours(frame: FrameType) -> bool:
    return str(frame.f_globals.get("__name__", "")).split(".")[0] in _NOT_THE_USER
