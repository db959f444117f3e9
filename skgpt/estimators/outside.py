"""How what is around a fit, such as a search, watches it, however deep in Pipelines it lies."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from skgpt.training.callbacks import Monitor

# Asked by every fit that begins: the estimator, and what makes a copy of it that is fitted with
# the weights as they stand. It returns a monitor, or None for a fit that it has no interest in.
Watcher = Callable[[Any, Callable[[], Any]], Monitor | None]

_WATCHER: ContextVar[Watcher | None] = ContextVar("skgpt_watcher", default=None)


@contextmanager
def watched_by(watcher: Watcher) -> Iterator[None]:
    """Have the fits in the body watched: those of this thread, not of others.

    Parameters
    ----------
    watcher : callable
        See `Watcher`. The copy that it is offered shares the network in training: it predicts with
        the weights as they are when it is asked.
    """
    token = _WATCHER.set(watcher)
    try:
        yield
    finally:
        _WATCHER.reset(token)


def monitors_from_outside(estimator: Any, fitted: Callable[[], Any]) -> list[Monitor]:
    """Return the monitor of what is around a fit, if there is one.

    Parameters
    ----------
    estimator : BaseGPTText
        About to be trained.
    fitted : callable
        Makes a copy of it that is fitted with the network in training.
    """
    watcher = _WATCHER.get()
    monitor = None if watcher is None else watcher(estimator, fitted)
    return [] if monitor is None else [monitor]
