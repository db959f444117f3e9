"""Descriptions of values that are equal in every process, to recognise a run by.

A checkpoint and a search's study belong to a run by such a key. A callable goes by its module and
qualified name, as in joblib; a lambda or local function has no name of its own and is refused.
"""

import hashlib
import os
import pickle
from collections.abc import Iterable, Mapping
from types import BuiltinFunctionType, FunctionType, MethodType
from typing import Any

import joblib
import numpy as np

from skgpt.exceptions import ContinuationError

# Parameters of an estimator that change no result: checkpoints and studies are found again
# whatever they are, and model cards don't list them.
WITHOUT_EFFECT = frozenset({"verbose", "checkpoint_dir", "store_base"})


def digest(pieces: Iterable[bytes | memoryview]) -> str:
    """Return a hash of bytes, however they are cut."""
    sha = hashlib.sha256()
    for piece in pieces:
        sha.update(piece)
    return sha.hexdigest()


def described(value: Any) -> Any:
    """Return a parameter as numbers, texts, None and lists that are the same in every process.

    Raises ContinuationError for a value that can't be described.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, Mapping):
        return sorted(([described(k), described(v)] for k, v in value.items()), key=repr)
    if isinstance(value, list | tuple):
        return [described(item) for item in value]
    if isinstance(value, MethodType):
        return [described(value.__func__), described(value.__self__)]
    if isinstance(value, FunctionType | BuiltinFunctionType | type):
        return _name_of(value)
    kind = f"{type(value).__module__}.{type(value).__qualname__}"
    if hasattr(value, "get_params"):  # a parameter object
        return [kind, described(value.get_params())]
    try:
        return [kind, joblib.hash(value)]
    except (TypeError, AttributeError, pickle.PicklingError) as error:
        raise _not_told(f"{value!r}: {error}") from error


def _name_of(value: Any) -> str:
    name = f"{value.__module__}.{value.__qualname__}"
    if "<" in name:
        raise _not_told(f"the lambda or local function {name}: define it in a module")
    return name


def _not_told(got: str) -> ContinuationError:
    return ContinuationError(
        "With `checkpoint_dir` or `storage`, parameters must be such that another process can tell "
        "they are the same: numbers, texts, named functions of a module, or what pickles. Got "
        f"{got}"
    )
