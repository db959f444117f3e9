"""What values are, told so that another process can say whether its own are the same."""

import hashlib
import pickle
from collections.abc import Iterable, Iterator, Mapping
from types import CodeType
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
    if hasattr(value, "__code__"):
        closed_over = [cell.cell_contents for cell in value.__closure__ or ()]
        return [value.__module__, value.__qualname__, _code(value.__code__), _plain(closed_over)]
    try:
        return [kind, joblib.hash(value)]
    except (TypeError, AttributeError, pickle.PicklingError) as error:
        raise ContinuationError(
            "With `checkpoint_dir` or `storage`, parameters must be such that another process can "
            "tell they are the same: numbers, texts, functions, or what pickles. "
            f"Got {value!r}: {error}"
        ) from error


def _code(code: CodeType) -> list[Any]:
    """Return what a function does, not where it stands: many are called <lambda>."""
    inner = [_code(constant) for constant in code.co_consts if isinstance(constant, CodeType)]
    return [code.co_code.hex(), list(code.co_names), _plain(code.co_consts), inner]


def _plain(values: Iterable[Any]) -> list[Any]:
    return [value for value in values if isinstance(value, bool | int | float | str)]
