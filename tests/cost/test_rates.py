"""What is measured of a training run: when it is zero, and that it leaves nothing behind."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from skgpt.caching import cache_info, clear_cache
from skgpt.cost import Rates, _HeldTensors, count_memory, count_work, measure
from skgpt.data.splits import all_rows
from skgpt.data.template import parse_template
from skgpt.data.tokenization import tokenise, tokenise_rows
from skgpt.fitting import make_config
from skgpt.network.features import CacheLevel, TextFeatures, cache_level
from skgpt.pretrained.loading import load_pretrained
from skgpt.training.loss import CrossEntropy
from skgpt.training.run import TrainingRows
from tests.helpers import make, make_text_data
from tests.network.test_network import build

TEXTS = [*make_text_data(2, n_per_class=8).X, *make_text_data(2, n_per_class=8).X[:4]]


def run_of(folder: str, trainable: Any, **options: Any) -> dict[str, Any]:
    """Return what `measure` and its like are given of a small run."""
    dtype = options.pop("dtype", torch.float32)
    network = build(load_pretrained(folder), trainable_layers=trainable, dtype=dtype)
    tokens = tokenise(TEXTS, network.pretrained.tokenizer, 64)
    weight = options.pop("weight", np.ones(len(TEXTS)))
    rows = TrainingRows(tokens, np.arange(len(TEXTS)) % 2, weight, all_rows(len(TEXTS)))
    config = make_config(make(folder, **options), network, len(TEXTS), 0)
    level = cache_level(network, tokens, config.memory_budget)
    return {"network": network, "rows": rows, "level": level, "config": config}


@pytest.mark.parametrize("trainable", ["all", 1, 0])
@pytest.mark.parametrize("head_first", [0, 1])
def test_measure__each_part__is_zero_where_a_fit_has_none(
    trainable: Any, head_first: int, tiny_llama: str
) -> None:
    run = run_of(tiny_llama, trainable, head_first_epochs=head_first)
    states = {n: i["entries"] for n, i in cache_info().items() if n.startswith("hidden states")}
    rates = measure(**run, loss=CrossEntropy())
    assert {n: i["entries"] for n, i in cache_info().items() if n in states} == states
    assert min(rates.forward, rates.learning, rates.update) > 0
    assert (rates.frozen > 0) == (trainable != "all")
    assert (rates.head_learning > 0) == (head_first == 1 and trainable != 0)
    assert rates.activations > 0


def test_take__rows_of_texts_and_of_windows__are_those_rows(tiny_llama: str) -> None:
    tokenizer = load_pretrained(tiny_llama).tokenizer
    windows = tokenise_rows([TEXTS], parse_template(None, 1, None), tokenizer, 16, "windows")
    rows = np.array([5, 0, 5])
    for tokens in (tokenise(TEXTS, tokenizer, 64), windows):
        some = tokens.take(rows)
        assert some.lengths.tolist() == tokens.lengths[rows].tolist()
        keys, every = some.distinct()[0], tokens.distinct()[0]
        assert keys == [every[row] for row in rows]


def test_held__a_product__counts_what_its_gradient_needs_once() -> None:
    a, b = (torch.ones(100, requires_grad=True) for _ in range(2))
    held = _HeldTensors({b.untyped_storage().data_ptr()})
    with held:
        total = (a * b).sum() + (a * b).sum()
    assert held.n_bytes == 400  # a, and not b, which is there anyway
    total.backward()
    assert torch.equal(a.grad, torch.full((100,), 2.0))


def test_count_work__texts_that_come_twice__run_once_through_frozen_layers(tiny_llama: str) -> None:
    clear_cache()  # tests before this one may have run some of the texts
    run = run_of(tiny_llama, 1)
    lengths = run["rows"].tokens.lengths
    work = count_work(**run)
    assert work.n_tokens == work.epoch_tokens == lengths.sum()
    assert work.distinct_tokens == lengths[:16].sum() < lengths.sum()
    assert work.new_tokens == work.distinct_tokens
    assert work.held_out_tokens == 0
    assert work.n_epochs * work.steps_per_epoch == run["config"].n_steps
    assert count_work(**{**run, "level": CacheLevel.TOKENS}).new_tokens == 0


def test_count_work__rows_without_weight__are_not_run(tiny_llama: str) -> None:
    weight = np.arange(len(TEXTS)) % 2.0
    run = run_of(tiny_llama, "all", weight=weight)
    assert count_work(**run).epoch_tokens == run["rows"].tokens.lengths[1::2].sum()


RATES = Rates(0, 0, 0, 0, activations=3.0)


@pytest.mark.parametrize(
    ("dtype", "per_weight"), [(torch.float32, 4 + 8), (torch.bfloat16, 4 + 8 + 4 + 2)]
)
def test_count_memory__what_learns__has_gradient_moments_and_originals(
    dtype: torch.dtype, per_weight: int, tiny_llama: str
) -> None:
    run = run_of(tiny_llama, 1, dtype=dtype)
    network = run["network"]
    n_learned = sum(m.numel() for m in network.learnable.values()) + network.head.weight.numel()
    memory, disk = count_memory(**run, rates=RATES, keeps_best=False)
    # And what the backward pass returns to each worker, of 128 tokens at least, for the trunk.
    n_workers = min(torch.get_num_threads(), run["config"].token_budget // 128)
    returned = n_workers * (n_learned - network.head.weight.numel()) * dtype.itemsize
    assert memory["learning"] == per_weight * n_learned + returned
    kept, _ = count_memory(**run, rates=RATES, keeps_best=True)
    assert kept["learning"] - memory["learning"] == 4 * n_learned
    features = TextFeatures(network, run["rows"].tokens, token_budget=512, memory_budget=2**30)
    states = {state.data_ptr(): state.nbytes for state in features._hidden}
    assert (memory["states"], disk) == (sum(states.values()), 0)
    base = [*network.pretrained.trunk.parameters()]
    in_bf16 = sum(p.numel() * 2 for p in base) if dtype == torch.bfloat16 else 0
    own = n_learned * dtype.itemsize + network.head.weight.numel() * (4 - dtype.itemsize)
    buffers = sum(b.nbytes for b in network.trunk.buffers())
    assert memory["weights"] == sum(p.nbytes for p in base) + in_bf16 + own + buffers


def test_count_memory__states_beyond_the_budget__lie_on_disk(tiny_llama: str) -> None:
    run = run_of(tiny_llama, 1)
    run["config"] = replace(run["config"], memory_budget=100)
    memory, disk = count_memory(**run, rates=RATES, keeps_best=False)
    assert memory["states"] == 100
    hidden_size = run["network"].trunk.config.hidden_size
    assert memory["states"] + disk == 4 * hidden_size * count_work(**run).distinct_tokens


def test_count_memory__a_token_budget__bounds_what_is_held_at_once(tiny_llama: str) -> None:
    run = run_of(tiny_llama, "all")
    lengths = run["rows"].tokens.lengths
    held = []
    for budget in (10**6, 50, 1):
        run["config"] = replace(run["config"], token_budget=budget)
        held.append(count_memory(**run, rates=RATES, keeps_best=False)[0]["activations"] / 3)
    assert lengths.max() < held[0] <= lengths.sum()
    assert held[1:] == [max(50, lengths.max()), lengths.max()]
