"""Stores: bounded, safe for threads, and never wrong."""

import random
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import skgpt
from skgpt.caching import _REGISTRY, ENTRY_BYTES, Store
from tests.helpers import TextData, make

BUDGET = 100 + 3 * ENTRY_BYTES


@pytest.fixture
def store() -> Any:
    yield Store[bytes]("test", BUDGET)
    del _REGISTRY["test"]


def test_store__more_than_its_budget__forgets_the_least_recently_used(store: Store) -> None:
    store.put_many({i: bytes(30) for i in range(3)}, len)
    assert store.find_many([0, 1, 2]) == [bytes(30)] * 3
    store.find_many([0])
    store.put_many({3: bytes(30)}, len)
    assert store.find_many([0, 1, 2, 3]) == [bytes(30), None, bytes(30), bytes(30)]
    assert store.info()["bytes"] == 90 + 3 * ENTRY_BYTES and store.info()["entries"] == 3
    store.put_many({4: bytes(5000)}, len)  # the newest stays, or a large model was read for nothing
    assert store.find_many([3, 4]) == [None, bytes(5000)]
    assert store.info()["bytes"] == 5000 + ENTRY_BYTES


def test_store__an_entry_put_again__counts_once(store: Store) -> None:
    store.put_many({"a": bytes(30)}, len)
    store.put_many({"a": bytes(50)}, len)
    assert store.info()["bytes"] == 50 + ENTRY_BYTES + sys.getsizeof("a")
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
        "budget_bytes": BUDGET,
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
            assert store.info()["entries"] <= 4

    with ThreadPoolExecutor(4) as threads:
        for done in [threads.submit(work, seed) for seed in range(4)]:
            done.result()
    info = store.info()
    assert info["bytes"] == (11 + ENTRY_BYTES) * info["entries"] <= BUDGET


# What is kept of texts: a limit in bytes.


@pytest.fixture
def no_limit() -> Iterator[None]:
    yield
    skgpt.set_cache_memory(None)


@pytest.fixture
def of_texts(no_limit: None) -> Iterator[Store[bytes]]:
    yield Store[bytes]("of texts", 2**30, share=1 / 2)
    del _REGISTRY["of texts"]


def test_set_cache_memory__a_lower_limit__drops_what_is_beyond_it_at_once(
    of_texts: Store[bytes], store: Store[bytes]
) -> None:
    keys = [(f"text {i}" * 100, 1) for i in range(10)]
    of_texts.put_many(dict.fromkeys(keys, bytes(100)), len)
    store.put_many({0: bytes(90), 1: bytes(90)}, len)
    each = 100 + ENTRY_BYTES + sys.getsizeof(keys[0][0])  # a long text counts, too
    assert of_texts.info()["bytes"] == 10 * each
    skgpt.set_cache_memory(2 * 4 * each)
    assert of_texts.find_many(keys) == [None] * 6 + [bytes(100)] * 4
    of_texts.put_many({("new", 1): bytes(100)}, len)
    assert of_texts.info()["bytes"] <= of_texts.budget_bytes == 4 * each
    skgpt.set_cache_memory(0)
    of_texts.put_many({("newest", 1): bytes(100)}, len)
    assert of_texts.info()["entries"] == 0
    assert store.info()["entries"] == 2  # it is not of texts
    skgpt.set_cache_memory(None)
    assert of_texts.budget_bytes == 2**30


def test_cache_memory__of_the_environment__counts_where_nobody_called(
    of_texts: Store[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SKGPT_CACHE_MEMORY", "1000")
    assert of_texts.budget_bytes == 500
    skgpt.set_cache_memory(2000)
    assert of_texts.budget_bytes == 1000
    skgpt.set_cache_memory(None)
    monkeypatch.setenv("SKGPT_CACHE_MEMORY", "")
    assert of_texts.budget_bytes == 2**30


@pytest.mark.parametrize("text", ["256MB", "-1", "1e9", "\u0663"])
def test_cache_memory__an_environment_that_is_no_number__is_an_error_of_the_next_fit(
    text: str, tiny_llama: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SKGPT_CACHE_MEMORY", text)
    with pytest.raises(ValueError, match=f"SKGPT_CACHE_MEMORY must be .* Got '{text}': write 256"):
        make(tiny_llama).fit(["a text", "another"], [0, 1])


@pytest.mark.parametrize("n_bytes", [-1, 1.5, "1000", True])
def test_set_cache_memory__no_number_of_bytes__is_refused(n_bytes: Any, no_limit: None) -> None:
    with pytest.raises(ValueError, match="`n_bytes` must be an int"):
        skgpt.set_cache_memory(n_bytes)
    skgpt.set_cache_memory(np.int64(5))  # type: ignore[arg-type]


# Predictions keep nothing; fits and searches do.


def entries() -> dict[str, int]:
    """Return how much is kept of texts."""
    kept = ("token ids", "states on cpu", "states on disk")
    return {name: i["entries"] for name, i in skgpt.cache_info().items() if name in kept}


WAYS: dict[str, dict[str, Any]] = {
    "hidden states": {"trainable_layers": 1},
    "pooled states": {"trainable_layers": 0},
    "all layers learn": {"trainable_layers": "all"},
    "windows": {"long_text": "windows", "max_length": 12},
    "a template": {"template": "Mail: {text}", "max_length": 12},  # whose cut texts are encoded too
}


@pytest.mark.filterwarnings("ignore::skgpt.exceptions.CutTextsWarning")
@pytest.mark.parametrize("way", WAYS)
def test_predict__texts_that_no_fit_has_seen__are_not_kept(
    way: str, tiny_llama: str, two_class_data: TextData
) -> None:
    X, y = two_class_data
    skgpt.clear_cache()
    clf = make(tiny_llama, **{"max_epochs": 1, "precision": "fp32", **WAYS[way]}).fit(X, y)
    kept = entries()
    assert kept["token ids"] > 0
    unseen = [f"{text} and so on and on, for the {i}. time" for i, text in enumerate(X[:8])]
    for method in ("predict", "predict_proba", "decision_function", "explain"):
        getattr(clf, method)(unseen)
        assert entries() == kept
    # What a fit has put there is used, also beside others.
    misses = {name: skgpt.cache_info()[name]["misses"] for name in kept}
    proba = clf.predict_proba(X)
    assert {name: skgpt.cache_info()[name]["misses"] for name in kept} == misses
    both = clf.predict_proba([*X, *unseen])
    np.testing.assert_allclose(both[: len(X)], proba, atol=1e-5)
    np.testing.assert_allclose(both[len(X) :], clf.predict_proba(unseen), atol=1e-5)
    assert entries() == kept


def test_predict__by_a_scorer_of_a_fit__is_not_kept(
    tiny_llama: str, two_class_data: TextData
) -> None:
    X, y = two_class_data
    grown: list[bool] = []

    def scorer(estimator: Any, X_val: Any, y_val: Any) -> float:
        before = entries()
        score = float(estimator.score([f"{text} unseen" for text in X], y))
        grown.append(entries() != before)
        return score

    make(tiny_llama, scoring=scorer, max_epochs=2).fit(X, y, X_val=X[:4], y_val=y[:4])
    assert grown == [False] * 3


def test_load__again_and_again__keeps_nothing_more(
    tiny_llama: str, two_class_data: TextData, tmp_path: Path
) -> None:
    X, y = two_class_data
    skgpt.save(make(tiny_llama, max_epochs=1).fit(X, y), tmp_path / "saved")
    skgpt.load(tmp_path / "saved").predict(X)
    before = {name: info["bytes"] for name, info in skgpt.cache_info().items()}
    for i in range(3):
        skgpt.load(tmp_path / "saved").predict([f"unseen {i}"])
    assert {name: info["bytes"] for name, info in skgpt.cache_info().items()} == before
