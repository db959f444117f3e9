"""Threads that compute side by side, each on one core, and hand over what they made in order.

torch's own threads share every matrix product, so all of them wait for one that has lost its core
to another process, many times a layer, and spin while they wait. Threads that share nothing lose
no more than the time that was taken from them, and element-wise work needs no barriers.
"""

import ctypes
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from contextvars import copy_context
from functools import cache
from itertools import islice
from typing import Generic, TypeVar

import torch

from skgpt.device import starting_threads

Part = TypeVar("Part")
Made = TypeVar("Made")

_LOOK_SECONDS = 0.2  # on Windows, Ctrl-C interrupts no wait, but is obeyed between two


def n_threads(device: torch.device) -> int:
    """Return how many threads may compute side by side: as many as torch has here, on a CPU."""
    return torch.get_num_threads() if device.type == "cpu" and _is_openmp() else 1


@cache
def _is_openmp() -> bool:
    """Say whether a thread can have its own number of compute threads, as in OpenMP."""
    return "parallel backend: OpenMP" in torch.__config__.parallel_info()


def in_order(
    work: Callable[[Part], Made], parts: Sequence[Part], n_workers: int, n_ahead: int
) -> Iterator[Made]:
    """Yield what `work` makes of each part, in order; `n_workers` threads do it.

    Up to `n_ahead` results may wait for their turn beside those in the making. The first error
    ends the others' work and is raised. Once the iterator is closed no thread is left. Where no
    thread can be started, as once the main thread has ended, the caller's does the work.
    """
    calls = _Calls(work)
    with ThreadPoolExecutor(n_workers, "skgpt") as pool:
        try:
            with suppress(RuntimeError):
                _start(pool, n_workers)
            todo = iter(parts)
            made = deque(_submit(pool, calls, part) for part in islice(todo, n_workers + n_ahead))
            while made:
                while not made[0].done():
                    wait([made[0]], timeout=_LOOK_SECONDS)
                yield made.popleft().result()
                made.extend(_submit(pool, calls, part) for part in islice(todo, 1))
        finally:
            calls.stop()


def _submit(pool: ThreadPoolExecutor, calls: Callable[[Part], Made], part: Part) -> "Future[Made]":
    """Have a pool make a part; make it here if the pool can start no thread, or has ended."""
    with suppress(RuntimeError):
        return pool.submit(calls, part)
    made: Future[Made] = Future()
    try:
        made.set_result(calls(part))
    except Exception as error:
        made.set_exception(error)
    return made


def _start(pool: ThreadPoolExecutor, n_workers: int) -> None:
    """Start all threads of a pool, with one compute thread each."""
    all_there = threading.Barrier(n_workers)

    def settle() -> None:
        torch.get_num_threads()  # a thread's first use of torch gives it the common number
        torch.set_num_threads(1)
        all_there.wait()

    with starting_threads():
        try:
            for there in [pool.submit(settle) for _ in range(n_workers)]:
                there.result()
        finally:
            all_there.abort()  # should one of them not have started


class _Stopped(BaseException):
    """Ends what a worker is doing: nobody waits for it any more."""


class _Calls(Generic[Part, Made]):
    """Calls of a function in several threads, which another thread can end all at once.

    They run with the context variables, and with or without gradients, as where this is made.
    """

    def __init__(self, function: Callable[[Part], Made]) -> None:
        self._function = function
        self._context = copy_context()
        self._with_gradients = torch.is_grad_enabled()
        self._lock = threading.Lock()
        self._threads: set[int] = set()  # in a call
        self._is_over = False

    def __call__(self, part: Part) -> Made:
        thread = threading.get_ident()
        with self._lock:
            if self._is_over:
                raise _Stopped
            self._threads.add(thread)
        try:
            with torch.set_grad_enabled(self._with_gradients):
                return self._context.copy().run(self._function, part)
        finally:
            with self._lock:
                self._threads.discard(thread)

    def stop(self) -> None:
        """End the calls under way, as soon as the thread is back from torch, and start no other."""
        with self._lock:
            self._is_over = True
            for thread in self._threads:
                ctypes.pythonapi.PyThreadState_SetAsyncExc(
                    ctypes.c_ulong(thread), ctypes.py_object(_Stopped)
                )
