"""Row numbers to batches and micro-batches."""

import numpy as np
import pytest

from skgpt.data.batching import micro_batches, optimiser_batches


@pytest.mark.parametrize(("n", "batch_size"), [(10, 3), (9, 3), (1, 4), (7, 7)])
def test_optimiser_batches__an_epoch__has_every_row_once(n: int, batch_size: int) -> None:
    batches = list(optimiser_batches(n, batch_size, seed=1, epoch=2))
    assert sorted(np.concatenate(batches).tolist()) == list(range(n))
    assert {len(b) for b in batches[:-1]} <= {batch_size}


def test_optimiser_batches__seed_and_epoch__decide_the_order() -> None:
    def order(seed: int, epoch: int) -> list[int]:
        return np.concatenate(list(optimiser_batches(50, 8, seed, epoch))).tolist()

    assert order(3, 0) == order(3, 0)
    assert order(3, 0) != order(3, 1)
    assert order(3, 0) != order(4, 0)


@pytest.mark.parametrize("padded", [True, False])
@pytest.mark.parametrize("budget", [1, 5, 16, 1000])
def test_micro_batches__any_budget__keeps_rows_and_budget(budget: int, padded: bool) -> None:
    lengths = np.array([3, 9, 1, 4, 4, 16, 2])
    rows = np.array([6, 0, 5, 3, 1])
    parts = micro_batches(rows, lengths, budget, padded=padded)
    assert sorted(np.concatenate(parts).tolist()) == sorted(rows.tolist())
    for part in parts:
        tokens = lengths[part].max() * len(part) if padded else lengths[part].sum()
        assert len(part) == 1 or tokens <= budget
    assert lengths[parts[0][0]] == 16  # the longest first


def test_micro_batches__end_to_end__are_of_like_size() -> None:
    lengths = np.random.default_rng(0).integers(20, 256, size=64)
    parts = micro_batches(np.arange(64), lengths, 2048, padded=False)
    sizes = [lengths[part].sum() for part in parts]
    assert len(parts) <= -(-lengths.sum() // 2048) + 1
    assert max(sizes) - min(sizes) < 256


@pytest.mark.parametrize("n_workers", [2, 3, 8])
def test_micro_batches__for_workers__are_as_many_for_each_and_of_like_size(n_workers: int) -> None:
    lengths = np.random.default_rng(0).integers(10, 40, size=64)
    parts = micro_batches(np.arange(64), lengths, 500, padded=False, n_workers=n_workers)
    sizes = [int(lengths[part].sum()) for part in parts]
    assert len(parts) % n_workers == 0
    assert max(sizes) - min(sizes) <= 40 and max(sizes) <= 500
    assert sorted(np.concatenate(parts)) == list(range(64))
    padded = micro_batches(np.arange(64), lengths, 10_000, padded=True, n_workers=n_workers)
    assert n_workers / 2 < len(padded) <= n_workers
