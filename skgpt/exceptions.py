"""Errors and warnings of skgpt; each is also the builtin that a caller would expect to catch."""

import sys
import warnings

# Packages whose frames may lie between a user's call and a warning of ours.
_NOT_THE_USER = {"skgpt", "sklearn", "joblib", "optuna", "torch"}


class SkgptError(Exception):
    """Base class of every error that skgpt raises on purpose."""


class InvalidTextError(SkgptError, ValueError):
    """The texts, labels or weights that were handed in can't be used as they are."""


class ModelNotFoundError(SkgptError, OSError):
    """The pretrained model that was named could not be found or read."""


class ModelNotSupportedError(SkgptError, ValueError):
    """The model was read, but can't do what was asked of it."""


class ContinuationError(SkgptError, ValueError):
    """A fit or search can't go on from what is there; the message names what differs."""


class MissingPackageError(SkgptError, ImportError):
    """Something needs a package that is not installed; the message names it."""


class SearchSpaceError(SkgptError, ValueError):
    """What a search is to choose from, or to choose by, is not as described."""


class SearchStorageError(SkgptError, OSError):
    """Where a search is to be kept can't be opened."""


class SearchFailedError(SkgptError, ValueError):
    """A search ended without a single trial that was trained to its end."""


class TuningError(SkgptError, ValueError):
    """A search or a comparison can't be run as it was asked for."""


class DownloadError(SkgptError, OSError):
    """A file could not be fetched, or what came was not what was expected."""


class CacheError(SkgptError, OSError):
    """The cache folder can't be used: not writable, full, or held by another process."""


class FolderTakenError(SkgptError, FileExistsError):
    """There is something else where a folder was to be written; it was left alone."""


class FolderNameError(SkgptError, TypeError, ValueError):
    """What was passed as a folder is not the name of one."""


class CheckpointError(SkgptError, OSError):
    """A checkpoint can't be written, or what is there is damaged."""


class DivergedError(SkgptError, ArithmeticError):
    """Training ran off to infinity; the message says what the estimator is now."""


class NoMemoryError(SkgptError, MemoryError):
    """The device's memory doesn't hold what was asked for, however little is run at once."""


class StateFormatError(SkgptError, ValueError):
    """A saved model was written in a format that this version can't read."""


class NotSavableError(SkgptError, TypeError):
    """Something can't be written as JSON and safetensors; the message names it."""


class SaveError(SkgptError, OSError):
    """A fitted model could not be written; what was there before is as it was."""


class SlowFitWarning(UserWarning):
    """A fit is going to take more than ten minutes; the message says what would shorten it."""


class CutTextsWarning(UserWarning):
    """Texts of a fit are longer than `max_length` and were cut; said once for each length."""


class LowMemoryWarning(UserWarning):
    """Memory ran out; less is run at a time from now on, and results stay the same."""


class InterruptedFitWarning(UserWarning):
    """Ctrl-C ended a fit; the estimator is fitted, as the last optimiser step left it."""


class SkippedStepsWarning(UserWarning):
    """Optimiser steps were skipped, as their loss or gradient was not finite."""


class BaselineWarning(UserWarning):
    """A linear model on TF-IDF did no worse than the GPT that it was compared with."""


class IdlePrunerWarning(UserWarning):
    """A study's pruner can't save anything with so few folds."""


def missing_package(what: str, package: str, error: ImportError) -> MissingPackageError:
    """Return the error that says which package something needs, and how to get it."""
    return MissingPackageError(
        f"{what} needs the package {package}, which can't be imported: run "
        f"`pip install {package}`. ({error})"
    )


def warn_user(message: str, category: type[Warning]) -> None:
    """Warn at the user's line: the innermost frame outside skgpt and what calls it for the user.

    Python 3.12's `skip_file_prefixes`, for 3.11 too. In a thread of skgpt's or joblib's no frame is
    the user's; then it is the outermost.
    """
    level, frame = 2, sys._getframe(1)
    while frame.f_back and frame.f_globals.get("__name__", "").split(".")[0] in _NOT_THE_USER:
        level, frame = level + 1, frame.f_back
    warnings.warn(message, category, stacklevel=level)
