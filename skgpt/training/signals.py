"""SIGINT (Ctrl-C) and SIGTERM wait until what must be done whole is done."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any


@contextmanager
def defer_sigint() -> Iterator[None]:
    """Keep Ctrl-C waiting until the body is done: an update must not be left half done."""
    if threading.current_thread() is not threading.main_thread():
        yield  # the interrupt goes to the main thread
        return
    handler = signal.getsignal(signal.SIGINT)
    if not callable(handler):  # ignored, or not Python's to handle
        yield
        return
    waiting: list[tuple[int, FrameType | None]] = []
    signal.signal(signal.SIGINT, lambda number, frame: waiting.append((number, frame)))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
    if waiting:
        handler(*waiting[-1])


class DeferredSigterm:
    """Whether SIGTERM has come in the body of `defer_sigterm`."""

    def __init__(self) -> None:
        self.received = False
        self._former: Any = None
        self._frame: FrameType | None = None

    def _install(self) -> None:
        former = signal.getsignal(signal.SIGTERM)
        if callable(former) or former is signal.SIG_DFL:  # not ignored, nor another language's
            self._former = former
            signal.signal(signal.SIGTERM, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received, self._frame = True, frame

    def deliver(self) -> None:
        """Do what SIGTERM did before; if that doesn't end the fit, defer the next one again."""
        self._restore()
        signal.signal(signal.SIGTERM, self._note)

    def _restore(self) -> None:
        """Put the former handler back; a signal that has come goes to it."""
        if self._former is None:
            return
        signal.signal(signal.SIGTERM, self._former)
        received, self.received = self.received, False
        if received and callable(self._former):
            self._former(signal.SIGTERM, self._frame)
        elif received:
            signal.raise_signal(signal.SIGTERM)


@contextmanager
def defer_sigterm(wanted: bool) -> Iterator[DeferredSigterm]:
    """Note SIGTERM in the body; deliver it where the body says so, or at its end.

    Nothing is done unless `wanted`, nor outside the main thread, where no handler can be set.
    """
    deferred = DeferredSigterm()
    if wanted and threading.current_thread() is threading.main_thread():
        deferred._install()
    try:
        yield deferred
    finally:
        deferred._restore()
