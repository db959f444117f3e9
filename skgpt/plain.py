"""Values as JSON, and back: what a fitted estimator holds beside its weights, without a pickle.

Numbers, texts, None, lists, tuples, dicts and numpy arrays of these; floats come back bit for bit.
Nothing but such values is ever made, so what a stranger wrote can be read.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from skgpt.exceptions import StateFormatError

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
