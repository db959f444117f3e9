"""Which checkpoint is a fit's own: all that its result depends on, by names that a user knows."""

import hashlib
import pickle
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from types import CodeType, FunctionType, MethodType
from typing import Any

import joblib
import numpy as np

from skgpt.estimators.data import FitData, Given
from skgpt.exceptions import ContinuationError
from skgpt.model.folders import as_folder
from skgpt.model.network import TextNetwork
from skgpt.text.split import group_codes
from skgpt.training.checkpoint import Checkpoint, claimed_checkpoint

# Those that change nothing, and those of which what they come to is asked for instead.
_NOT_ASKED = frozenset(
    {"verbose", "checkpoint_dir", "store_base", "warm_start", "random_state"}
    | {"device", "precision", "template"}
)


@contextmanager
def checkpoint_of(
    estimator: Any, given: Given, data: FitData, network: TextNetwork, seed: int, *, goes_on: bool
) -> Iterator[Checkpoint | None]:
    """Have the checkpoint of a fit for its length; None where `checkpoint_dir` is.

    Parameters
    ----------
    estimator : BaseGPTText
        Nothing is set on it.
    given : Given
    data : FitData
        Checked. Which of its rows are held out is looked at only where a fit goes on: otherwise
        that follows from the rest.
    network : TextNetwork
        About to be trained.
    seed : int
        Of this call; where `random_state` is None, a checkpoint that is there has its own.
    goes_on : bool
        Whether the network has learned something already.

    Yields
    ------
    checkpoint : Checkpoint or None

    Raises
    ------
    FolderNameError
        If `checkpoint_dir` names nothing.
    CheckpointError
        If the folder can't be written to, or what is there is damaged.
    ContinuationError
        If what is there belongs to another fit; the message names what differs.
    """
    if estimator.checkpoint_dir is None:
        yield None
        return
    root = as_folder(estimator.checkpoint_dir, "checkpoint_dir").absolute()
    belongs_to = {
        **_of_parameters(estimator),
        **_of_data(estimator, given, data),
        **_of_network(network),
        **(_of_fitted(estimator._network, data) if goes_on else {}),
        "`random_state`": None if estimator.random_state is None else seed,
    }
    with claimed_checkpoint(root, belongs_to, seed) as checkpoint:
        yield checkpoint


def _of_parameters(estimator: Any) -> dict[str, Any]:
    parameters = estimator.get_params(deep=False)
    return {f"`{k}`": _described(v) for k, v in parameters.items() if k not in _NOT_ASKED}


def _of_data(estimator: Any, given: Given, data: FitData) -> dict[str, Any]:
    groups = None
    if given.groups is not None and given.X_val is None and estimator.early_stopping:
        groups = _digest([group_codes(given.groups, len(data.target)).tobytes()])
    codes = data.target.codes
    return {
        "the texts": _digest(_encoded(data.columns)),
        "`template`": [list(data.template.words), list(data.template.fields)],
        "the labels": [str(codes.dtype), list(codes.shape), _digest([codes.tobytes()])],
        "the classes": _described(data.target.classes.tolist()),
        "the sample weights": _digest([data.sample_weight.tobytes()]),
        "the rows of `X_val`": 0 if given.X_val is None else len(data.split.held_out),
        "the groups": groups,
    }


def _of_network(network: TextNetwork) -> dict[str, Any]:
    return {
        "the model's weights": network.source.fingerprint,
        "the model's tokenizer": _digest([repr(network.source.tokenizer.files()).encode()]),
        "`device`": network.device.type,
        "`precision`": str(network.dtype),
    }


def _of_fitted(network: TextNetwork, data: FitData) -> dict[str, Any]:
    """Describe what is gone on from: the fitted network, and the held-out rows as it had them.

    It is not the new network that is asked, whose adapters may have been drawn in this call.
    """
    return {
        "the fitted weights that it starts from": _learned(network),
        "the held-out rows": _digest([data.split.held_out.tobytes()]),
    }


def _learned(network: TextNetwork) -> str:
    tensors = {**network.masters, "head": network.head.weight}
    return _digest(
        piece
        for name, tensor in sorted(tensors.items())
        for piece in (name.encode(), tensor.detach().cpu().contiguous().numpy().data)
    )


def _encoded(columns: list[list[str]]) -> Iterator[bytes]:
    for column in columns:
        yield f"{len(column)} rows;".encode()
        for text in column:
            encoded = text.encode("utf-8", "surrogatepass")
            yield f"{len(encoded)};".encode()
            yield encoded


def _digest(pieces: Iterable[bytes | memoryview]) -> str:
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(piece)
    return digest.hexdigest()


def _described(value: Any) -> Any:
    """Return a parameter as plain values that are the same in every process."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Mapping):
        return sorted(([_described(k), _described(v)] for k, v in value.items()), key=repr)
    if isinstance(value, list | tuple):
        return [_described(item) for item in value]
    kind = f"{type(value).__module__}.{type(value).__qualname__}"
    if hasattr(value, "get_params"):  # a parameter object
        return [kind, _described(value.get_params())]
    if isinstance(value, MethodType):
        return [_described(value.__func__), _described(value.__self__)]
    if isinstance(value, FunctionType):
        return _function(value)
    try:
        return [kind, joblib.hash(value)]
    except (TypeError, AttributeError, pickle.PicklingError) as error:
        raise ContinuationError(
            "With `checkpoint_dir`, parameters must be such that another process can tell they "
            f"are the same: numbers, texts, functions, or what pickles. Got {value!r}: {error}"
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
