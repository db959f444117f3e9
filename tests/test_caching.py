"""Stores: bounded, safe for threads, and never wrong."""

import random
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

import skgpt
from skgpt.caching import Store


@pytest.fixture
def store() -> Any:
    from skgpt.caching import _REGISTRY

    yield Store[bytes]("test", 100)
    del _REGISTRY["test"]


def test_store__more_than_its_budget__forgets_the_least_recently_used(store: Store) -> None:
    store.put_many({i: bytes(30) for i in range(3)}, len)
    assert store.find_many([0, 1, 2]) == [bytes(30)] * 3
    store.find_many([0])
    store.put_many({3: bytes(30)}, len)
    assert store.find_many([0, 1, 2, 3]) == [bytes(30), None, bytes(30), bytes(30)]
    assert store.info()["bytes"] == 90 and store.info()["entries"] == 3
    store.put_many({4: bytes(500)}, len)  # the newest stays, or a large model was read for nothing
    assert store.find_many([3, 4]) == [None, bytes(500)]
    assert store.info()["bytes"] == 500


def test_store__an_entry_put_again__counts_once(store: Store) -> None:
    store.put_many({"a": bytes(30)}, len)
    store.put_many({"a": bytes(50)}, len)
    assert store.info()["bytes"] == 50
    assert store.get_or_make("a", lambda: pytest.fail("made again"), len) == bytes(50)


def test_store__hits_and_misses__are_counted(store: Store) -> None:
    store.get_or_make("a", lambda: b"a", len)
    store.get_or_make("a", lambda: b"a", len)
    store.find_many(["a", "b", "c"])
    assert (store.info()["hits"], store.info()["misses"]) == (2, 3)
    assert skgpt.cache_info()["test"] == store.info()
    skgpt.clear_cache()
    assert store.info() == {
        "entries": 0,
        "bytes": 0,
        "budget_bytes": 100,
        "hits": 0,
        "misses": 0,
    }


def test_store__four_threads_at_once__each_gets_what_belongs_to_its_key(store: Store) -> None:
    def work(seed: int) -> None:
        rng = random.Random(seed)
        for _ in range(2000):
            keys = rng.sample(range(20), 4)
            found = store.find_many(keys)
            assert all(
                entry in (None, bytes([key])) for key, entry in zip(keys, found, strict=True)
            )
            store.put_many({key: bytes([key]) for key in keys[:2]}, lambda entry: 11)
            key = keys[2]
            assert store.get_or_make(key, lambda key=key: bytes([key]), lambda e: 11) == bytes(
                [key]
            )
            if rng.random() < 0.01:
                store.clear()
            assert store.info()["bytes"] <= 110

    with ThreadPoolExecutor(4) as threads:
        for done in [threads.submit(work, seed) for seed in range(4)]:
            done.result()
    info = store.info()
    assert info["bytes"] == 11 * info["entries"] <= 100
