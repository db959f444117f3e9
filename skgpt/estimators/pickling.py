"""A fitted estimator as a pickle and as a copy."""

import copy
import inspect
import logging
from typing import Any, Self

from sklearn.base import BaseEstimator

from skgpt.device import resolve_device, resolve_precision
from skgpt.exceptions import ModelNotSupportedError
from skgpt.network.network import TextNetwork
from skgpt.saving.state import StoreBase, pack, twin_of, unpack
from skgpt.training.optimizer import Moments

_LOG = logging.getLogger("skgpt")


class PicklableNetwork(BaseEstimator):
    """An estimator that holds a network, and pickles to numbers, text and numpy arrays."""

    store_base: StoreBase
    device_: str
    _network: TextNetwork
    _moments: Moments | None
    _fitted_with: dict[str, Any]

    def __copy__(self) -> Self:
        # copy.copy would go through __getstate__ and serialise the weights.
        shallow = self.__class__.__new__(self.__class__)
        shallow.__dict__.update(self.__dict__)
        return shallow

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        # Not by way of a pickle, which may hold the base: a copy shares the one in memory.
        twin = copy.copy(self)
        memo[id(self)] = twin
        for name, value in list(twin.__dict__.items()):
            is_network = name == "_network"
            twin.__dict__[name] = twin_of(value) if is_network else copy.deepcopy(value, memo)
        return twin

    def __getstate__(self) -> dict[str, Any]:
        """Return numbers, text and numpy arrays only: no torch object, no module, no device."""
        state = self.__dict__.copy()
        if "_network" in state:
            state["_network"] = pack(state["_network"], self.store_base)
        if state.get("_moments") is not None:
            state["_moments"] = state["_moments"].pack()
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        # Parameters that the version which wrote it did not have.
        state = {**_defaults_of(type(self)), **state}
        if "_network" in state:
            device, dtype = _where_to_open(state["_fitted_with"])
            state["_network"] = unpack(state["_network"], dtype=dtype, device=device)
            if state.get("_moments") is not None:
                state["_moments"] = Moments.unpack(state["_moments"], device)
            if state.get("device_") != str(device):
                _LOG.warning(
                    "%s was fitted on %s and is on %s now",
                    type(self).__name__,
                    state.get("device_"),
                    device,
                )
            state["device_"] = str(device)
        self.__dict__.update(state)


def _defaults_of(kind: type) -> dict[str, Any]:
    parameters = inspect.signature(kind).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not p.empty}


def _where_to_open(fitted_with: dict[str, Any]) -> tuple[Any, Any]:
    """Return device and dtype as asked for at fit, or what this machine has instead."""
    try:
        device = resolve_device(fitted_with["device"])
    except ModelNotSupportedError:
        device = resolve_device("auto")
    try:
        return device, resolve_precision(fitted_with["precision"], device)
    except ModelNotSupportedError:
        return device, resolve_precision("auto", device)
