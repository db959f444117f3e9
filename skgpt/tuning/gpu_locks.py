"""GPU locks: one worker of a search at a time trains on each GPU, whoever started it.

A lock is a file in the cache folder, named after the device itself. The system frees it however its
process ends.
"""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from skgpt._base import BaseTextModel
from skgpt._files import LockedError, locked
from skgpt.device import cuda_devices, on_cuda_device, placed_on
from skgpt.pretrained.default_models import cache_folder
from skgpt.tuning.space import choices_in

_LOG = logging.getLogger("skgpt")
_FOLDER = "gpu_locks"
_POLL_SECONDS = 0.5


@contextmanager
def gpu_lock(
    wanted: frozenset[str], turn: int, is_over: Callable[[], bool], inherited: int | None = None
) -> Iterator[bool]:
    """Lock a GPU for the length of the body, or wait for one until `is_over`; yield whether it has.

    Estimators whose `device` names no number train on it in the body, and their parameters stay as
    they are. Where no GPU is wanted or present, nothing is locked; where the cache folder takes no
    locks, neither, and a warning is logged.

    Workers that start together try the GPUs from another `turn` on. `inherited` is one that the
    caller of this worker has locked and waits with: the worker uses it, or both would wait.
    """
    gpu = placed_on() if inherited is None else inherited
    with ExitStack() as stack:
        if gpu is None:
            devices = cuda_devices() if wanted else []
            choices = _choices(wanted, len(devices))
            if not choices:
                yield True
                return
            gpu = _wait_for_one(choices, devices, turn, is_over, stack)
            if gpu is None:
                yield False
                return
        stack.enter_context(on_cuda_device(gpu))
        yield True


def wanted_gpus(estimator: Any, space: Any) -> frozenset[str]:
    """Return the GPUs that the fits of a search may want: "cuda" for any, "cuda:1" for that one.

    Estimators of ours count wherever they are nested, and so do the choices of the space.
    """
    listed = choices_in(space)
    named = {str(choice) for name, choice in listed if name.rpartition("__")[2] == "device"}
    for candidate in (estimator, *(choice for _, choice in listed)):
        if hasattr(candidate, "get_params") and not isinstance(candidate, type):
            nested = (candidate, *candidate.get_params(deep=True).values())
            named |= {str(each.device) for each in nested if isinstance(each, BaseTextModel)}
    wanted = {"cuda" if device == "auto" else device for device in named}
    return frozenset(device for device in wanted if device.partition(":")[0] == "cuda")


def _choices(wanted: frozenset[str], n_devices: int) -> list[list[int]]:
    """Return the sets of GPUs of which one must be locked whole.

    The first of each set is the one for estimators that name no number.
    """
    # Of a number that isn't there, the fit complains.
    named = [index for index in range(n_devices) if f"cuda:{index}" in wanted]
    firsts = range(n_devices) if "cuda" in wanted else named[:1]
    return [[first, *(index for index in named if index != first)] for first in firsts]


def _wait_for_one(
    choices: list[list[int]],
    devices: list[str],
    turn: int,
    is_over: Callable[[], bool],
    stack: ExitStack,
) -> int | None:
    """Lock the devices of a choice; return the first of them, or None once it is over."""
    first = turn % len(choices)
    choices = [*choices[first:], *choices[:first]]
    folder = cache_folder() / _FOLDER
    has_said = False
    while not is_over():
        for choice in choices:
            try:
                folder.mkdir(parents=True, exist_ok=True)
                # All or none: a worker that waits for one while it holds another may deadlock.
                # A cache may be shared, and its users share the GPU as well.
                with ExitStack() as locks:
                    for index in choice:
                        locks.enter_context(locked(folder / f"{devices[index]}.lock"))
                    stack.push(locks.pop_all())
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
