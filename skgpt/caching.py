"""Bounded, thread-safe stores for what is expensive to make and safe to share.

A store may drop an entry at any time; it is made again when it is next needed. Estimators share
entries: never write to one.
"""

import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from numbers import Integral
from sys import getsizeof
from typing import Any, Generic, TypeVar

from skgpt.exceptions import InvalidArgumentError

T = TypeVar("T")

_REGISTRY: "dict[str, Store[Any]]" = {}
_REGISTERING = threading.Lock()

# Of an entry beside its key and what `size_of` counts: its place in the dictionary, the objects
# around the numbers, and what allocators round up. Measured on 200,000 token ids.
ENTRY_BYTES = 400

CACHE_MEMORY = "SKGPT_CACHE_MEMORY"
_memory_limit: int | None = None  # of `set_cache_memory`


def repair_in_forks(repair: Callable[[], None]) -> None:
    """Have something run in every process that is forked from this one, before all else there.

    A fork copies one thread: a lock that another one held would never be released.
    """
    if hasattr(os, "register_at_fork"):  # Windows doesn't fork
        os.register_at_fork(after_in_child=repair)


class Store(Generic[T]):
    """A least-recently-used store, bounded by the bytes of its entries and of their keys.

    The newest entry always stays, even if it is larger than the budget: otherwise a large model
    would be read for every fit. Not so in stores of what is kept of texts: `share` says how much of
    the limit of `set_cache_memory` such a store may take.
    """

    def __init__(self, name: str, budget_bytes: int, share: float = 0.0) -> None:
        self.name = name
        self.share = share
        self._budget_bytes = budget_bytes
        self._entries: OrderedDict[Hashable, tuple[T, int]] = OrderedDict()
        self._making: dict[Hashable, threading.Lock] = {}
        self._lock = threading.Lock()
        self._bytes = 0
        self._hits = 0
        self._misses = 0
        _REGISTRY[name] = self

    @classmethod
    def named(cls, name: str, budget_bytes: Callable[[], int], share: float = 0.0) -> "Store[T]":
        """Return the store of that name; the first caller of any thread makes it."""
        with _REGISTERING:
            return _REGISTRY[name] if name in _REGISTRY else cls(name, budget_bytes(), share)

    @property
    def budget_bytes(self) -> int:
        """How many bytes it may hold."""
        limit = cache_memory() if self.share else None
        own = self._budget_bytes
        return own if limit is None else min(own, int(limit * self.share))

    def get_or_make(self, key: Hashable, make: Callable[[], T], size_of: Callable[[T], int]) -> T:
        """Return the entry of `key`; make it if there is none, once, however many threads ask.

        What `make` raises goes to the caller, and nothing is stored.
        """
        with self._lock:
            if (found := self._find(key)) is not None:
                return found[0]
            making = self._making.setdefault(key, threading.Lock())
        with making:
            with self._lock:
                if (found := self._find(key)) is not None:
                    return found[0]
                self._misses += 1
            try:
                entry = make()
                size = size_of(entry)
                with self._lock:
                    self._put(key, entry, size)
                    self._shrink()
                return entry
            finally:
                with self._lock:
                    self._making.pop(key, None)

    def find_many(self, keys: Sequence[Hashable]) -> list[T | None]:
        """Return the entries of these keys, None where there is none."""
        with self._lock:
            found = [self._find(key) for key in keys]
            self._misses += sum(entry is None for entry in found)
        return [None if entry is None else entry[0] for entry in found]

    def holds_any(self, keys: Sequence[Hashable]) -> bool:
        """Say whether there is an entry of any of these keys; counts as no use of it."""
        with self._lock:
            return any(key in self._entries for key in keys)

    def put_many(self, entries: Mapping[Any, T], size_of: Callable[[T], int]) -> None:
        """Add entries that a caller made because `find_many` had none."""
        with self._lock:
            for key, entry in entries.items():
                self._put(key, entry, size_of(entry))
            self._shrink()

    def _put(self, key: Hashable, entry: T, size: int) -> None:
        size += ENTRY_BYTES + _key_bytes(key)
        _, before = self._entries.pop(key, (None, 0))
        self._entries[key] = (entry, size)
        self._bytes += size - before

    def _find(self, key: Hashable) -> tuple[T, int] | None:
        found = self._entries.get(key)
        if found is not None:
            self._entries.move_to_end(key)
            self._hits += 1
        return found

    def shrink(self) -> None:
        """Drop what is beyond the budget."""
        with self._lock:
            self._shrink()

    def _shrink(self) -> None:
        budget = self.budget_bytes
        while len(self._entries) > (0 if self.share else 1) and self._bytes > budget:
            _, (_, size) = self._entries.popitem(last=False)
            self._bytes -= size

    def after_fork(self) -> None:
        """Go on in a forked process with what there is, whatever other threads were doing."""
        self._lock, self._making = threading.Lock(), {}
        self._bytes = sum(size for _, size in self._entries.values())

    def clear(self) -> None:
        """Drop every entry, and count anew; estimators keep alive what they hold."""
        self.drop()
        with self._lock:
            self._hits = self._misses = 0

    def drop(self) -> None:
        """Drop every entry to make room, and keep the counts."""
        with self._lock:
            self._entries.clear()
            self._bytes = 0

    def info(self) -> dict[str, int]:
        """Return the store's size and how often it helped."""
        with self._lock:
            return {
                "entries": len(self._entries),
                "bytes": self._bytes,
                "budget_bytes": self.budget_bytes,
                "hits": self._hits,
                "misses": self._misses,
            }


def _after_fork() -> None:
    global _REGISTERING
    _REGISTERING = threading.Lock()
    for store in _REGISTRY.values():
        store.after_fork()


repair_in_forks(_after_fork)


def _key_bytes(key: Hashable) -> int:
    """Return the bytes of a key: the text or the token ids in it may be larger than the entry."""
    parts = key if isinstance(key, tuple) else (key,)
    return sum(getsizeof(part) for part in parts if isinstance(part, str | bytes))


def cache_memory() -> int | None:
    """Return the limit of what is kept of texts, in bytes; None where nobody set one."""
    text = os.environ.get(CACHE_MEMORY, "")
    if _memory_limit is not None or not text:
        return _memory_limit
    if not (text.isascii() and text.isdigit()):
        raise InvalidArgumentError(
            f"The environment variable {CACHE_MEMORY} must be a number of bytes, an int >= 0. Got "
            f"{text!r}: write 256 MiB as {2**28}, or unset it."
        )
    return int(text)


def set_cache_memory(n_bytes: int | None) -> None:
    """Bound what this process keeps of texts in memory, in place of ``SKGPT_CACHE_MEMORY``.

    That is token ids, up to an eighth of the limit, and what frozen layers returned, on each
    device; keys and other overhead count. What is beyond the limit goes at once, what was used
    least recently first. A fit that runs has its own states beside that, and base models are not
    counted.

    Parameters
    ----------
    n_bytes : int or None
        0 keeps nothing. None is what the environment variable says or, where it is not set, 128 MiB
        of token ids and a quarter of the device's memory for states.

    Raises
    ------
    ValueError
        If `n_bytes` is not an int of at least 0, or None.

    Examples
    --------
    >>> import skgpt
    >>> skgpt.set_cache_memory(2**28)
    >>> skgpt.set_cache_memory(None)
    """
    global _memory_limit
    limit: Any = n_bytes
    if limit is not None:
        if isinstance(limit, bool) or not isinstance(limit, Integral) or limit < 0:
            raise InvalidArgumentError(f"`n_bytes` must be an int >= 0, or None. Got {limit!r}.")
        limit = int(limit)
    _memory_limit = limit
    for store in list(_REGISTRY.values()):
        store.shrink()


# Predictions use what is kept of texts and add nothing: a server's texts may never come again.
# A search says that they do: what is a test text of one fold is trained on in the others.
_PREDICTING: ContextVar[bool] = ContextVar("skgpt_predicting", default=False)
_SEARCHING: ContextVar[bool] = ContextVar("skgpt_searching", default=False)


def keeps_texts() -> bool:
    """Say whether what is computed of texts just now goes into the stores."""
    return _SEARCHING.get() or not _PREDICTING.get()


@contextmanager
def predicting() -> Iterator[None]:
    """Keep nothing of the texts that the body computes on, unless it is part of a search."""
    token = _PREDICTING.set(True)
    try:
        yield
    finally:
        _PREDICTING.reset(token)


@contextmanager
def searching() -> Iterator[None]:
    """Keep what predictions in the body compute."""
    token = _SEARCHING.set(True)
    try:
        yield
    finally:
        _SEARCHING.reset(token)


def cache_info() -> dict[str, dict[str, int]]:
    """Return what each of skgpt's in-process stores holds.

    Returns
    -------
    info : dict of str to dict
        For each store that has been used in this process: ``entries``, ``bytes`` (keys and
        other overhead included), ``budget_bytes``, ``hits`` and ``misses``. The stores are "base
        models" as they were read, "weights on <device>" in the precision that they run in, "token
        ids", "states on <device>" or "on disk" (what frozen layers return), "prompts on <device>"
        (keys and values of what prompts share), "splits of layers" (whether a model can be entered
        behind its frozen layers) and "micro-batch sizes" (those that memory was found to hold).

    Examples
    --------
    >>> import skgpt
    >>> isinstance(skgpt.cache_info(), dict)
    True
    """
    return {name: store.info() for name, store in sorted(_REGISTRY.items())}


def drop_stores_on(device: str) -> None:
    """Drop what lies in a device's memory: the stores named ``... on <device>``."""
    for name, store in list(_REGISTRY.items()):
        if name.endswith(f" on {device}"):
            store.drop()


def clear_cache() -> None:
    """Empty skgpt's in-process stores.

    Fitted estimators keep working: each keeps alive what it needs itself. Files in the cache
    folder are left alone.
    """
    for store in list(_REGISTRY.values()):
        store.clear()
