"""What values are, told so that another process can say whether its own are the same."""

import hashlib
import pickle
from collections.abc import Iterable, Iterator, Mapping
from types import CodeType, FunctionType, MethodType
from typing import Any

import joblib
import numpy as np

from skgpt.exceptions import ContinuationError


def encoded(columns: list[list[str]]) -> Iterator[bytes]:
    """Yield texts, column by column, so that no two tables yield the same."""
    for column in columns:
        yield f"{len(column)} rows;".encode()
        for text in column:
            data = text.encode("utf-8", "surrogatepass")
            yield f"{len(data)};".encode()
            yield data


def digest(pieces: Iterable[bytes | memoryview]) -> str:
    """Return a hash of bytes, however they are cut."""
    sha = hashlib.sha256()
    for piece in pieces:
        sha.update(piece)
    return sha.hexdigest()


def described(value: Any) -> Any:
    """Return a parameter as plain values that are the same in every process.

    Parameters
    ----------
    value : object

    Returns
    -------
    plain : object
        Numbers, texts, None and lists of these.

    Raises
    ------
    ContinuationError
        If there is no telling what it is.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Mapping):
        return sorted(([described(k), described(v)] for k, v in value.items()), key=repr)
    if isinstance(value, list | tuple):
        return [described(item) for item in value]
    kind = f"{type(value).__module__}.{type(value).__qualname__}"
    if hasattr(value, "get_params"):  # a parameter object
        return [kind, described(value.get_params())]
    if isinstance(value, MethodType):
        return [described(value.__func__), described(value.__self__)]
    if isinstance(value, FunctionType):
        return _function(value)
    try:
        return [kind, joblib.hash(value)]
    except (TypeError, AttributeError, pickle.PicklingError) as error:
        raise ContinuationError(
            "With `checkpoint_dir` or `storage`, parameters must be such that another process can "
            "tell they are the same: numbers, texts, functions, or what pickles. "
            f"Got {value!r}: {error}"
        ) from error


def _function(function: FunctionType) -> list[Any]:
    """Return what a function does and what it holds, not where it stands: many are <lambda>."""
    closed_over = [cell.cell_contents for cell in function.__closure__ or ()]
    holds = [closed_over, function.__defaults__, sorted((function.__kwdefaults__ or {}).items())]
    return [function.__module__, function.__qualname__, _code(function.__code__), _held(holds)]


def _code(code: CodeType) -> list[Any]:
    return [code.co_code.hex(), list(code.co_names), _held(code.co_consts)]


def _held(value: Any) -> Any:
    """Describe what a function holds, as far as it is data; of anything else, what it is."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, CodeType):
        return _code(value)
    if isinstance(value, FunctionType):  # no deeper: it may hold itself
        return [value.__qualname__, _code(value.__code__)]
    if isinstance(value, list | tuple):
        return [_held(item) for item in value]
    if isinstance(value, set | frozenset):
        return sorted(map(repr, value))
    if isinstance(value, np.ndarray | np.generic | bytes | complex):
        return joblib.hash(value)
    return f"{type(value).__module__}.{type(value).__qualname__}"
