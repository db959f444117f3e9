"""The plan: epochs and learning rates."""

from dataclasses import replace
from typing import Any

import pytest

from skgpt.network.lora import AdapterSpec
from skgpt.network.network import NetworkSpec
from skgpt.training.config import (
    TrainingConfig,
    resolve_epochs,
    resolve_head_rate,
    resolve_rate,
)

LORA = AdapterSpec(rank=4, alpha=8.0, dropout=0.0, target_modules="all-linear")


def make_config(**options: Any) -> TrainingConfig:
    settings: dict[str, Any] = {
        "n_rows": 100,
        "n_epochs": 4,
        "batch_size": 8,
        "learning_rate": 1e-3,
        "head_learning_rate": 1e-2,
        "weight_decay": 0.01,
        "warmup_ratio": 0.1,
        "schedule": "linear",
        "max_grad_norm": 1.0,
        "token_budget": 512,
        "memory_budget": 2**30,
        "seed": 0,
    }
    return TrainingConfig(**{**settings, **options})


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_lr_factor__a_falling_schedule__rises_to_one_and_falls_towards_zero(schedule: str) -> None:
    plan = make_config(schedule=schedule)
    factors = [plan.lr_factor(step) for step in range(plan.n_steps)]
    top = factors.index(max(factors))
    assert factors[top] == pytest.approx(1.0)
    assert factors[: top + 1] == sorted(factors[: top + 1])
    assert factors[top:] == sorted(factors[top:], reverse=True)
    assert 0 < factors[-1] < 0.1
    assert all(f > 0 for f in factors)


def test_lr_factor__constant_without_warmup__is_one() -> None:
    plan = make_config(schedule="constant", warmup_ratio=0.0)
    assert {plan.lr_factor(step) for step in range(plan.n_steps)} == {1.0}


def test_resolve_epochs__auto__is_more_on_small_data_and_three_on_large() -> None:
    epochs = [resolve_epochs("auto", n, 32) for n in (10, 300, 1_000, 10_000, 1_000_000)]
    assert epochs == sorted(epochs, reverse=True)
    assert epochs[0] > epochs[2] > 3
    assert epochs[-1] == 3
    assert resolve_epochs(7, 10, 32) == 7
    assert [resolve_epochs("auto", n, 16) for n in (20, 100, 300, 1_000)] == [24, 15, 6, 4]


@pytest.mark.parametrize(
    ("trainable_layers", "lora", "rate"),
    [(4, None, 2e-4), (0, None, 2e-4), ("all", None, 1e-4), (4, LORA, 1e-3), ("all", LORA, 1e-3)],
)
def test_resolve_rate__auto__is_by_what_learns(
    trainable_layers: Any, lora: AdapterSpec | None, rate: float
) -> None:
    spec = NetworkSpec(24, trainable_layers, "mean", 3, lora)
    assert resolve_rate("auto", spec, causal=True) == rate
    assert resolve_rate("auto", spec, causal=False) == (rate if lora else 1e-4)
    assert resolve_rate(5e-3, spec, causal=True) == 5e-3


@pytest.mark.parametrize("lora", [None, LORA])
def test_resolve_rates__behind_a_prompt__are_lower(lora: AdapterSpec | None) -> None:
    plain = NetworkSpec(24, 4, "last", 3, lora)
    prompted = replace(plain, prompted=True)
    for spec, rate in ((plain, 1e-3), (prompted, 3e-5)):
        assert resolve_head_rate("auto", spec) == rate
        assert resolve_head_rate(5e-3, spec) == 5e-3
    low, high = (resolve_rate("auto", spec, causal=True) for spec in (prompted, plain))
    assert low < high


def test_n_steps__a_short_last_batch__counts_as_a_step() -> None:
    assert make_config(n_rows=9, batch_size=8, n_epochs=3).n_steps == 6
