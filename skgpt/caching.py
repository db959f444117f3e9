"""Bounded, thread-safe stores for what is expensive to make and safe to share.

A store may drop an entry at any time; it is made again when it is next needed. Estimators share
entries: never write to one.
"""

import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, Generic, TypeVar

T = TypeVar("T")

_REGISTRY: "dict[str, Store[Any]]" = {}
_REGISTERING = threading.Lock()


def repair_in_forks(repair: Callable[[], None]) -> None:
    """Have something run in every process that is forked from this one, before all else there.

    A fork copies one thread: a lock that another one held would never be released.
    """
    if hasattr(os, "register_at_fork"):  # Windows doesn't fork
        os.register_at_fork(after_in_child=repair)


class Store(Generic[T]):
    """A least-recently-used store, bounded by the bytes of its entries.

    The newest entry always stays, even if it is larger than the budget: otherwise a large model
    would be read for every fit.
    """

    def __init__(self, name: str, budget_bytes: int) -> None:
        self.name = name
        self.budget_bytes = budget_bytes
        self._entries: OrderedDict[Hashable, tuple[T, int]] = OrderedDict()
        self._making: dict[Hashable, threading.Lock] = {}
        self._lock = threading.Lock()
        self._bytes = 0
        self._hits = 0
        self._misses = 0
        _REGISTRY[name] = self

    @classmethod
    def named(cls, name: str, budget_bytes: Callable[[], int]) -> "Store[T]":
        """Return the store of that name; the first caller of any thread makes it."""
        with _REGISTERING:
            return _REGISTRY[name] if name in _REGISTRY else cls(name, budget_bytes())

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

    def put_many(self, entries: Mapping[Any, T], size_of: Callable[[T], int]) -> None:
        """Add entries that a caller made because `find_many` had none."""
        with self._lock:
            for key, entry in entries.items():
                self._put(key, entry, size_of(entry))
            self._shrink()

    def _put(self, key: Hashable, entry: T, size: int) -> None:
        _, before = self._entries.pop(key, (None, 0))
        self._entries[key] = (entry, size)
        self._bytes += size - before

    def _find(self, key: Hashable) -> tuple[T, int] | None:
        found = self._entries.get(key)
        if found is not None:
            self._entries.move_to_end(key)
            self._hits += 1
        return found

    def _shrink(self) -> None:
        while len(self._entries) > 1 and self._bytes > self.budget_bytes:
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


def cache_info() -> dict[str, dict[str, int]]:
    """Return what each of skgpt's in-process stores holds.

    Returns
    -------
    info : dict of str to dict
        For each store that has been used in this process: ``entries``, ``bytes``,
        ``budget_bytes``, ``hits`` and ``misses``.

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
