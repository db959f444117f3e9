"""Prices of other parameters: what was measured, added up by hand."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from skgpt.cost import Prices, Rates, Work
from skgpt.data.tokenization import lengths_in_windows
from skgpt.fitting import make_config
from skgpt.network.features import CacheLevel
from skgpt.pretrained.loading import load_pretrained
from tests.helpers import make
from tests.network.test_network import build

WORK = Work(
    new_tokens=300,
    distinct_tokens=500,
    n_tokens=1000,
    epoch_tokens=900,
    held_out_tokens=100,
    steps_per_epoch=7,
    n_epochs=4,
    head_first_epochs=0,
)
LENGTHS = np.array([10, 20, 40, 100])
LEVELS = {"all": CacheLevel.TOKENS, 2: CacheLevel.HIDDEN, 1: CacheLevel.HIDDEN}
LEVELS |= {0: CacheLevel.POOLED}


def prices(folder: str, trainable: Any, rates: Rates, **fields: Any) -> Prices:
    """Return the prices of a fit of three layers."""
    network = build(load_pretrained(folder), trainable_layers=trainable)
    given = {
        "work": WORK,
        "level": LEVELS[trainable],
        "lengths": LENGTHS,
        "max_length": 40,
        "config": make_config(make(folder), network, 40, 0),
    }
    return Prices(network, rates=rates, **{**given, **fields})


def even(n_frozen: int, n_learning: int, update: float = 0.0) -> Rates:
    """Return rates of a second per token and layer, and two more on the way back."""
    return Rates(
        frozen=1.0 * n_frozen, forward=1.0 * n_learning, learning=3.0 * n_learning, update=update
    )


def test_work__seconds__are_products_added_up() -> None:
    rates = Rates(0.5, 2.0, 3.0, 5.0, head_learning=0.1)
    plain = WORK.seconds(rates)
    assert plain == {
        "frozen_layers": 150.0,
        "head_first": 0.0,
        "epochs": 4 * (900 * 3.0 + 7 * 5.0 + 100 * 2.0),
    }
    head_first = replace(WORK, head_first_epochs=3).seconds(rates)
    assert head_first == {
        **plain,
        "head_first": pytest.approx(1000 * 2.0 + 3 * 900 * 0.1),
    }


@pytest.mark.parametrize("trainable", [1, 2])
def test_seconds__of_the_given_depth__are_those_of_the_fit(trainable: int, tiny_llama: str) -> None:
    asked = prices(tiny_llama, trainable, even(3 - trainable, trainable))
    assert asked.seconds_at_depth(3, trainable) == pytest.approx(asked.seconds())


def test_seconds__of_fewer_learning_layers__are_those_of_a_fit_with_them(tiny_llama: str) -> None:
    everything = prices(tiny_llama, "all", even(0, 3))
    expected = sum(replace(WORK, new_tokens=500).seconds(even(2, 1)).values())  # none seen yet
    assert everything.seconds_at_depth(3, 1) == pytest.approx(expected)
    assert everything.seconds_at_depth(2, 2) == pytest.approx(
        sum(replace(WORK, new_tokens=0).seconds(even(0, 2)).values())
    )


def test_seconds__of_fewer_learning_layers__update_fewer_weights(tiny_llama: str) -> None:
    updates = [
        prices(tiny_llama, "all", even(0, 3, update=update)).seconds_at_depth(3, 1)
        for update in (0.0, 3.0)
    ]
    assert updates[1] - updates[0] == pytest.approx(4 * 7 * 1.0)


def test_seconds__of_the_head_alone__fall_with_the_layers(tiny_llama: str) -> None:
    head = prices(tiny_llama, 0, Rates(3.0, 0.0, 0.0, 0.0))
    assert head.seconds_at_depth(2, 0) == pytest.approx(head.seconds() * 2 / 3)


def test_seconds__of_another_length__go_with_the_tokens(tiny_llama: str) -> None:
    asked = prices(tiny_llama, "all", even(0, 3))
    assert asked.seconds_at_length(40) == asked.seconds()
    assert asked.seconds_at_length(100) == pytest.approx(asked.seconds() * 170 / 110, rel=0.01)
    assert asked.seconds_at_length(10) == pytest.approx(asked.seconds() * 40 / 110, rel=0.01)


def test_advice__some_texts_are_cut__names_a_length_and_its_price(tiny_llama: str) -> None:
    said, _ = prices(tiny_llama, "all", Rates(0.0, 1e-6, 1e-6, 0.0)).advice()
    assert said == "25 % of the texts are cut: max_length=160 cuts none and costs 1.5x."
    assert prices(tiny_llama, 1, Rates(0, 1e-6, 1e-6, 0), max_length=100).advice() == ()


def test_advice__texts_beyond_the_models_positions__says_so(tiny_llama: str) -> None:
    limit = load_pretrained(tiny_llama).max_positions
    assert limit is not None
    lengths = np.array([10, 10 * limit])
    quick = Rates(0.0, 1e-9, 1e-9, 0.0)
    half = prices(tiny_llama, "all", quick, lengths=lengths, max_length=limit // 2).advice()
    assert half[0].startswith(f"50 % of the texts are cut: max_length={limit} cuts 50 %")
    whole, windows = prices(tiny_llama, "all", quick, lengths=lengths, max_length=limit).advice()
    assert windows.startswith("long_text='windows' reads all of every text")
    assert whole == f"50 % of the texts are cut: the model has no more than {limit} positions."


def test_advice__a_long_fit__tells_what_each_change_gains(tiny_llama: str) -> None:
    asked = prices(tiny_llama, "all", even(0, 3), lengths=np.full(4, 100), max_length=100)
    first, second = asked.advice()
    times = asked.seconds() / asked.seconds_at_depth(3, 1)
    assert times > 2
    assert first == (
        f"trainable_layers=1 freezes the first 2 layers, on this CPU: {times:.1f}x as fast."
    )
    assert second == "max_length=50 cuts 100 % of the texts: 2.0x as fast."


@pytest.mark.parametrize("room", [0, 10**9])
def test_advice__no_room_for_states__names_no_frozen_layers(room: int, tiny_llama: str) -> None:
    asked = prices(tiny_llama, "all", even(0, 3))
    plan = replace(asked.config, memory_budget=room, disk_budget=0)
    said = prices(tiny_llama, "all", even(0, 3), config=plan).advice()
    assert any("trainable_layers" in line for line in said) == (room > 0)


def test_advice__many_texts_are_cut__names_windows_and_their_price(tiny_llama: str) -> None:
    quick = Rates(0.0, 1e-6, 1e-6, 0.0)
    asked = prices(tiny_llama, "all", quick)
    in_windows = lengths_in_windows(LENGTHS, asked.network.pretrained.tokenizer, 40)
    assert asked.seconds_at_length(40, "windows") == pytest.approx(
        asked.seconds() * in_windows.sum() / 110, rel=0.01
    )
    times = asked.seconds_at_length(40, "windows") / asked.seconds()
    assert times > 1.5
    said = f"long_text='windows' reads all of every text and costs {times:.1f}x."
    assert asked.advice()[-1] == said
    few = np.array([10] * 19 + [100])
    assert "windows" not in " ".join(prices(tiny_llama, "all", quick, lengths=few).advice())


def test_advice__a_long_fit_in_windows__names_the_cut_and_what_it_gains(tiny_llama: str) -> None:
    asked = prices(tiny_llama, "all", even(0, 3), long_text="windows")
    said = asked.advice()
    times = asked.seconds() / asked.seconds_at_length(40)
    assert f"long_text='cut' cuts 25 % of the texts: {times:.1f}x as fast." in said
    assert not any("are cut" in line or "max_length" in line for line in said)
