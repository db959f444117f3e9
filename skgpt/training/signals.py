"""SIGINT (Ctrl-C) and SIGTERM wait until what must be done whole is done."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class DeferredSignal:
    """Whether a signal has come in the body of `deferred`, and what it did before."""

    def __init__(self, number: signal.Signals) -> None:
        self.number = number
        self.former = signal.getsignal(number)
        self.received = False
        self._frame: FrameType | None = None

    def note(self, number: int, frame: FrameType | None) -> None:
        """Handle the signal: only note it."""
        self.received, self._frame = True, frame

    def deliver(self) -> None:
        """Do what the signal did before; if that ends nothing, the next one waits again."""
        self.received = False
        if callable(self.former):
            self.former(self.number, self._frame)
        else:
            signal.signal(self.number, self.former)
            signal.raise_signal(self.number)


@contextmanager
def deferred(number: signal.Signals) -> Iterator[DeferredSignal]:
    """Keep a signal waiting until the body delivers it, or is done.

    Outside the main thread no handler can be set; one that is ignored, or not Python's, is left.
    """
    waiting = DeferredSignal(number)
    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or not (callable(waiting.former) or waiting.former is signal.SIG_DFL):
        yield waiting
        return
    signal.signal(number, waiting.note)
    try:
        yield waiting
    finally:
        signal.signal(number, waiting.former)
        if waiting.received:
            waiting.deliver()
