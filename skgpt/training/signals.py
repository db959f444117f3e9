"""Ctrl-C waits while something is done that must be done whole.

SIGTERM waits until a step is done and its state is written, then goes where it was to go.
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Keep Ctrl-C waiting until the body is done: half an update must not be what is kept."""
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


class Terminations:
    """A context manager that takes SIGTERM down, and hands it on later.

    It does so in the main thread alone, as handlers can be set there only, and not where SIGTERM
    is ignored or another language's.

    Parameters
    ----------
    wanted : bool
        If not, nothing is done at all.
    """

    def __init__(self, wanted: bool) -> None:
        self._wanted = wanted
        self._former: Any = None
        self._frame: FrameType | None = None
        self.asked = False

    def __enter__(self) -> "Terminations":
        if self._wanted and threading.current_thread() is threading.main_thread():
            former = signal.getsignal(signal.SIGTERM)
            if callable(former) or former is signal.SIG_DFL:
                self._former = former
                signal.signal(signal.SIGTERM, self._take_down)
        return self

    def _take_down(self, number: int, frame: FrameType | None) -> None:
        self.asked, self._frame = True, frame

    def hand_on(self) -> None:
        """Do what SIGTERM did before; if that doesn't end the fit, take the next one down again."""
        self._restore()
        signal.signal(signal.SIGTERM, self._take_down)

    def _restore(self) -> None:
        """Put the former handler back; a signal that has come goes to it."""
        signal.signal(signal.SIGTERM, self._former)
        asked, self.asked = self.asked, False
        if not asked:
            return
        if callable(self._former):
            self._former(signal.SIGTERM, self._frame)
        else:
            signal.raise_signal(signal.SIGTERM)

    def __exit__(self, *raised: object) -> None:
        if self._former is not None:
            self._restore()
