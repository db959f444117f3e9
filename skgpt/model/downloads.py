"""Whether models may be fetched: opening what a stranger saved must not talk to the network."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_ALLOWED = ContextVar("skgpt_downloads_allowed", default=True)


def downloads_allowed() -> bool:
    """Say whether this thread may fetch a model that is not on this machine."""
    return _ALLOWED.get()


@contextmanager
def no_downloads() -> Iterator[None]:
    """Have models found on this machine or not at all, as long as the body runs.

    An installed package and a complete cache are no download. Other threads go on as before.
    """
    before = _ALLOWED.set(False)
    try:
        yield
    finally:
        _ALLOWED.reset(before)
