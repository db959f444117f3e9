"""Which GPU a worker of a search trains on: one worker at a time on each, whoever started it.

A lease is a file of the cache folder that the system keeps locked, named after the device itself.
However its process ends, the system gives the lock back.
"""

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from typing import Any

import numpy as np
from optuna.distributions import CategoricalDistribution

from skgpt._base import BaseGPTText
from skgpt._files import LockedError, locked
from skgpt.device import cuda_devices, on_cuda_device
from skgpt.pretrained.default_models import cache_folder

_LOG = logging.getLogger("skgpt")
_FOLDER = "leases"
_POLL_SECONDS = 0.5

# The number of the device that this thread, or who called it, has a lease of.
_HELD: ContextVar[int | None] = ContextVar("skgpt_lease", default=None)


def held_lease() -> int | None:
    """Return the number of the device that the caller trains on under a lease; None without."""
    return _HELD.get()


@contextmanager
def leased(
    wanted: frozenset[str], turn: int, is_over: Callable[[], bool], held: int | None = None
) -> Iterator[bool]:
    """Have a GPU to oneself for the length of the body; wait until one is free.

    Those estimators whose `device` names no GPU in particular train on it in the body, and their
    parameters stay as they are. Where no GPU is wanted or none is there, nothing is waited for;
    where the cache folder takes no locks, neither, and a warning is logged.

    Parameters
    ----------
    wanted : frozenset of str
        From `devices_of`.
    turn : int
        Where to begin looking, so that workers that start together try others first.
    is_over : callable
        Says whether to give up waiting.
    held : int, default=None
        The device that whoever started this worker has a lease of, and waits with it. It is used
        as it is, or they would wait for each other.

    Yields
    ------
    has_one : bool
        False if it was given up; then the body had better do nothing.

    """
    held = _HELD.get() if held is None else held
    with ExitStack() as stack:
        if held is not None:
            _train_on(held, stack)
            yield True
            return
        devices = cuda_devices() if wanted else []
        choices = _choices(wanted, len(devices))
        if not choices:
            yield True
            return
        chosen = _wait_for_one(choices, devices, turn, is_over, stack)
        if chosen is not None:
            _train_on(chosen, stack)
        yield chosen is not None


@contextmanager
def _set_held(index: int) -> Iterator[None]:
    token = _HELD.set(index)
    try:
        yield
    finally:
        _HELD.reset(token)


def _train_on(index: int, stack: ExitStack) -> None:
    stack.enter_context(_set_held(index))
    stack.enter_context(on_cuda_device(index))


def devices_of(estimator: Any, space: Mapping[str, Any]) -> frozenset[str]:
    """Return which GPUs the fits of a search may want.

    Parameters
    ----------
    estimator : estimator
        Ours may lie however deep in it.
    space : mapping of str to object
        What its parameters may be.

    Returns
    -------
    wanted : frozenset of str
        "cuda" for any of them, "cuda:1" and the like for one that is named.
    """
    named: list[str] = []
    found = [estimator]
    for name, among in space.items():
        values = _values(among)
        found += values
        if name.rpartition("__")[2] == "device":
            named += [value for value in values if isinstance(value, str)]
    for each in found:
        named += [str(ours.device) for ours in _ours_in(each)]
    wanted = {"cuda" if device == "auto" else device for device in named}
    return frozenset(device for device in wanted if device.partition(":")[0] == "cuda")


def _values(among: Any) -> list[Any]:
    if isinstance(among, CategoricalDistribution):
        return list(among.choices)
    return list(among) if isinstance(among, list | tuple | np.ndarray) else []


def _ours_in(thing: Any) -> Iterator[BaseGPTText]:
    if not hasattr(thing, "get_params") or isinstance(thing, type):
        return
    for value in (thing, *thing.get_params(deep=True).values()):
        if isinstance(value, BaseGPTText):
            yield value


def _choices(wanted: Iterable[str], n_devices: int) -> list[list[int]]:
    """Return which devices would do: the first of each is where those train that name none."""
    named = sorted(int(i) for _, _, i in (w.partition(":") for w in wanted) if i.isdecimal())
    named = [index for index in named if index < n_devices]  # of others, the fit will say so
    if "cuda" not in wanted:
        return [named] if named else []
    return [[index, *(n for n in named if n != index)] for index in range(n_devices)]


def _wait_for_one(
    choices: list[list[int]],
    devices: list[str],
    turn: int,
    is_over: Callable[[], bool],
    stack: ExitStack,
) -> int | None:
    """Lock the devices of a choice; return the first of them, or None if that was given up."""
    first = turn % len(choices)
    choices = [*choices[first:], *choices[:first]]
    has_said = False
    while not is_over():
        for choice in choices:
            try:
                stack.enter_context(_locked([devices[index] for index in choice]))
            except LockedError:
                continue
            except OSError as error:  # a disk that knows no locks
                _LOG.warning("GPU %s may be shared, as it can't be locked: %s", choice[0], error)
            return choice[0]
        if not has_said:
            has_said = True
            _LOG.info("waiting for a GPU: other workers train on all %d", len(choices))
        time.sleep(_POLL_SECONDS)
    return None


@contextmanager
def _locked(devices: list[str]) -> Iterator[None]:
    """Lock all of them or none: who held one while waiting for another could wait for ever."""
    folder = cache_folder() / _FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as locks:
        for device in devices:
            # A cache may be shared, and its users share the GPU as well.
            locks.enter_context(locked(folder / f"{device}.lock"))
        yield
