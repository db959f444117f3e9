"""The last block for the pooled tokens alone: as good as the whole block."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from skgpt.data.tokenization import tokenise
from skgpt.network.features import run_frozen_layers
from skgpt.network.layout import Layout, ids_of
from skgpt.network.network import TextNetwork
from skgpt.pretrained.loading import PretrainedModel, load_pretrained
from skgpt.trunk.attention import Boundaries, packed_attention
from skgpt.trunk.capabilities import probe
from skgpt.trunk.layers import find_blocks
from tests.network.test_network import build
from tests.trunk.test_attention import CPU, FAST, LENGTHS, TEXTS, random


@pytest.mark.parametrize("heads", [(4, 4), (4, 2)])
@pytest.mark.parametrize("window", [None, 1, 5, 70])
def test_attention_of_ends__each_window__is_what_the_last_tokens_get_from_the_whole(
    heads: tuple[int, int], window: int | None
) -> None:
    n, n_kv = heads
    total = sum(LENGTHS)
    q, k, v = random(total, n, 8), random(total, n_kv, 8), random(total, n_kv, 8)
    boundaries = Boundaries.of(LENGTHS, CPU)
    whole = packed_attention(q, k, v, boundaries, scale=0.3, window=window)
    ends = boundaries.ends_B
    assert ends.tolist() == [2, 3, 73, 85]
    got = packed_attention(q[ends], k, v, boundaries, scale=0.3, window=window, ends_only=True)
    torch.testing.assert_close(got, whole[ends], rtol=1e-5, atol=1e-6)


def pooled_both_ways(
    network: TextNetwork, source: PretrainedModel, *, cut: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    tokens = tokenise(TEXTS, source.tokenizer, 80)
    layout = Layout.of(tokens.lengths, source, CPU)
    ids_T = ids_of(tokens, np.arange(4), CPU)
    if cut:
        with torch.no_grad():
            states = run_frozen_layers(network, ids_T, layout)
        ends = network.pooled_from_hidden(states, layout)
    else:
        ends = network.pooled(ids_T, layout)
    return ends, network.pool(network.hidden(ids_T, layout), layout)


@pytest.mark.parametrize("trainable", ["all", 1, 2])
@pytest.mark.parametrize("architecture", sorted(FAST))
def test_network__pooled_tokens_alone_in_the_last_block__same_states_and_gradients(
    architecture: str, trainable: Any, tiny_model: Callable[[str], str]
) -> None:
    source = load_pretrained(tiny_model(architecture))
    network = build(source, pooling="last", trainable_layers=trainable)
    learned = list(network.learnable.values())
    ends, whole = pooled_both_ways(network, source, cut=trainable != "all")
    torch.testing.assert_close(ends, whole, rtol=1e-5, atol=1e-6)
    got = torch.autograd.grad(ends.square().sum(), learned)
    want = torch.autograd.grad(whole.square().sum(), learned)
    for name, one, two in zip(network.learnable, got, want, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5, msg=name)


@torch.no_grad()
@pytest.mark.parametrize("architecture", sorted(FAST))
def test_network__in_bf16__is_as_near_as_bf16_is(
    architecture: str, tiny_model: Callable[[str], str]
) -> None:
    source = load_pretrained(tiny_model(architecture))
    network = build(source, pooling="last", dtype=torch.bfloat16)
    ends, whole = pooled_both_ways(network, source, cut=True)
    assert (ends - whole).abs().max() <= 2e-2 * whole.abs().max()


def test_last_block__pooling_the_last_token__computes_no_other(
    tiny_llama: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = load_pretrained(tiny_llama)
    seen: dict[str, int] = {}
    for pooling in ("last", "mean"):
        network = build(source, pooling=pooling, trainable_layers="all")
        mlp: Any = find_blocks(network.trunk)[-1].mlp
        mlp.down_proj.register_forward_hook(
            lambda module, given, out, pooling=pooling: seen.update({pooling: len(out)})
        )
        tokens = tokenise(TEXTS, source.tokenizer, 80)
        layout = Layout.of(tokens.lengths, source, CPU)
        network.pooled(ids_of(tokens, np.arange(4), CPU), layout)
    assert seen["last"] <= 5 < seen["mean"] == sum(layout.boundaries.lengths)


def test_prove__a_last_block_that_pools_wrongly__is_not_used(
    tiny_llama: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    trunk = load_pretrained(tiny_llama).trunk
    assert probe(trunk).supports_fast_blocks
    off_by_one = property(lambda self: self.cumulative_B1[1:].long() - 2)
    monkeypatch.setattr(Boundaries, "ends_B", off_by_one)
    assert not probe(trunk).supports_fast_blocks
