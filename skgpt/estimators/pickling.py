"""A fitted estimator as a pickle and as a copy."""

from typing import Any, Self

from sklearn.base import BaseEstimator

from skgpt.exceptions import ModelNotSupportedError
from skgpt.model.device import resolve_device, resolve_precision
from skgpt.model.network import TextNetwork
from skgpt.model.state import pack, unpack
from skgpt.training.moments import Moments


class PicklableNetwork(BaseEstimator):
    """An estimator that holds a network, and pickles to numbers, text and numpy arrays."""

    _network: TextNetwork
    _moments: Moments | None
    _fitted_with: dict[str, Any]

    def __copy__(self) -> Self:
        # copy.copy would go through __getstate__ and serialise the weights.
        shallow = self.__class__.__new__(self.__class__)
        shallow.__dict__.update(self.__dict__)
        return shallow

    def __getstate__(self) -> dict[str, Any]:
        """Return numbers, text and numpy arrays only: no torch object, no module, no device."""
        state = self.__dict__.copy()
        if "_network" in state:
            state["_network"] = pack(state["_network"])
        if state.get("_moments") is not None:
            state["_moments"] = state["_moments"].pack()
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if "_network" in state:
            device, dtype = self._where_to_open()
            self._network = unpack(state["_network"], dtype=dtype, device=device)
            self.device_ = str(device)
            if state.get("_moments") is not None:
                self._moments = Moments.unpack(state["_moments"], device)

    def _where_to_open(self) -> tuple[Any, Any]:
        """Return device and dtype as asked for at fit, or what this machine has instead."""
        try:
            device = resolve_device(self._fitted_with["device"])
            return device, resolve_precision(self._fitted_with["precision"], device)
        except ModelNotSupportedError:
            device = resolve_device("auto")
            return device, resolve_precision("auto", device)
