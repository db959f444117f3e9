"""Training on texts in windows: micro-batches, weights and caches show in nothing."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from skgpt.network.features import _states
from skgpt.network.network import TextNetwork
from skgpt.training.loop import raw_scores
from tests.training.test_budgets import ALL_AT_ONCE, Rows, assert_same_step, some_rows, step
from tests.training.test_loop import ids_of, trained

WINDOW = 16
ROWS = some_rows([3, 60, 1, 12, 33, 7])
OPTIONS: dict[str, Any] = {"window": WINDOW, "batch_size": 64, "n_epochs": 3}


def scores_of(network: TextNetwork, rows: Rows = ROWS, budget: int = 512) -> np.ndarray:
    _states("cpu").clear()
    return raw_scores(network, ids_of(rows.texts, network, WINDOW), budget, 2**30)


@pytest.mark.first_tier(budget=[40])
@pytest.mark.first_tier(architecture=["llama"], trainable=["all"])
@pytest.mark.parametrize("architecture", ["llama", "gemma3", "bloom"])  # the last one is padded
@pytest.mark.parametrize("trainable", ["all", 1, 0])
@pytest.mark.parametrize("budget", [1, 40, 100])
def test_step__any_token_budget__is_the_step_of_one_micro_batch(
    budget: int, trainable: Any, architecture: str, tiny_model: Callable[[str], str]
) -> None:
    folder = tiny_model(architecture)
    steps = [step(folder, ROWS, b, trainable, window=WINDOW) for b in (budget, ALL_AT_ONCE)]
    assert_same_step(*steps)
    scores = [scores_of(steps[0].network, budget=b) for b in (budget, ALL_AT_ONCE)]
    np.testing.assert_allclose(*scores, rtol=1e-4, atol=1e-5 * np.abs(scores).max())


@pytest.mark.parametrize("trainable", [1, 0])
@pytest.mark.parametrize("head_first", [0, 2])
def test_fit_network__cached_states_of_windows__give_what_running_everything_gives(
    head_first: int, trainable: int, tiny_llama: str
) -> None:
    options = {**OPTIONS, "trainable": trainable, "head_first_epochs": head_first}
    both = [
        trained(tiny_llama, ROWS.texts, ROWS.target, memory_budget=memory, **options)[0]
        for memory in (2**30, 0)
    ]
    cached, whole = (scores_of(network) for network in both)
    np.testing.assert_allclose(cached, whole, rtol=1e-3, atol=1e-4)


def test_fit_network__weight_two__equals_the_row_in_windows_twice(tiny_llama: str) -> None:
    weight = np.where(np.arange(6) < 2, 2.0, 1.0)  # a text of one window and one of several
    weighted, _ = trained(tiny_llama, ROWS.texts, ROWS.target, weight, **OPTIONS)
    texts, codes = [*ROWS.texts, *ROWS.texts[:2]], np.concatenate([ROWS.target, ROWS.target[:2]])
    repeated, _ = trained(tiny_llama, texts, codes, **OPTIONS)
    np.testing.assert_allclose(scores_of(weighted), scores_of(repeated), rtol=1e-3, atol=1e-4)


def test_fit_network__tokens__are_those_of_all_windows(tiny_llama: str) -> None:
    network, history = trained(tiny_llama, ROWS.texts, ROWS.target, **OPTIONS)
    run = history[0]["tokens_per_second"] * history[0]["seconds"]
    assert run == pytest.approx(ids_of(ROWS.texts, network, WINDOW).lengths.sum())
