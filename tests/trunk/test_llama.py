"""The Llama family's fast block: its pieces, and a last block that pools early."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from skgpt.data.tokenization import tokenise
from skgpt.network.layout import Layout, ids_of
from skgpt.pretrained.loading import load_pretrained
from skgpt.trunk.attention import Boundaries
from skgpt.trunk.capabilities import probe
from skgpt.trunk.layers import find_blocks
from skgpt.trunk.llama import _Gate, _RMSNorm, _Rotate, use_fast_blocks
from tests.network.test_network import CPU, TEXTS, build
from tests.trunk.test_attention import random


def test_last_block__pooling_the_last_token__computes_no_other(
    tiny_llama: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretrained = load_pretrained(tiny_llama)
    seen: dict[str, int] = {}
    for pooling in ("last", "mean"):
        network = build(pretrained, pooling=pooling, trainable_layers="all")
        mlp: Any = find_blocks(network.trunk)[-1].mlp
        mlp.down_proj.register_forward_hook(
            lambda module, given, out, pooling=pooling: seen.update({pooling: len(out)})
        )
        tokens = tokenise(TEXTS, pretrained.tokenizer, 80)
        layout = Layout.of(tokens.lengths, pretrained, CPU)
        network.pooled(ids_of(tokens, np.arange(4), CPU), layout)
    assert seen["last"] <= 5 < seen["mean"] == sum(layout.boundaries.lengths)


def test_probe__a_last_block_that_pools_wrongly__is_not_used(
    tiny_llama: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    trunk = load_pretrained(tiny_llama).trunk
    assert probe(trunk).supports_fast_blocks
    off_by_one = property(lambda self: self.cumulative_B1[1:].long() - 2)
    monkeypatch.setattr(Boundaries, "ends_B", off_by_one)
    assert not probe(trunk).supports_fast_blocks


def test_use_fast_blocks__blocks_of_another_kind_or_gate__stay_as_they_are(
    tiny_model: Callable[[str], str], tiny_llama: str
) -> None:
    other = load_pretrained(tiny_model("gpt2")).copy_trunk(2, torch.float32, CPU)
    assert not use_fast_blocks(find_blocks(other))
    llama = load_pretrained(tiny_llama).copy_trunk(2, torch.float32, CPU)
    blocks = find_blocks(llama)
    for block in blocks:
        block.__class__ = type(block).__mro__[2]
        block.mlp.act_fn = torch.nn.GELU()
    assert not use_fast_blocks(blocks)
    assert type(blocks[0]).__name__ == "LlamaDecoderLayer"


def rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    return weight * (x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-5))


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, -1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)


def fast_norm(x: Tensor, weight: Tensor) -> Any:
    return _RMSNorm.apply(x, weight, 1e-5)


CASES: dict[str, tuple[Any, Any, list[Tensor], int]] = {
    "norm": (fast_norm, rms_norm, [random(7, 8), random(8)], 2),
    "norm of heads": (fast_norm, rms_norm, [random(7, 3, 8), random(8)], 2),
    "rotation": (_Rotate.apply, rotate, [random(7, 3, 8), random(7, 1, 4), random(7, 1, 4)], 1),
    "gate": (_Gate.apply, lambda g, u: F.silu(g) * u, [random(7, 8), random(7, 8)], 2),
}


@pytest.mark.parametrize("case", CASES)
def test_pieces__bf16__keep_the_dtype_of_what_they_are_given(case: str) -> None:
    ours, plain, inputs, n_learned = CASES[case]
    half = [
        (x.bfloat16() if i < n_learned else x).clone().requires_grad_(i < n_learned)
        for i, x in enumerate(inputs)
    ]
    got = ours(*half)
    grads = torch.autograd.grad(got.float().sum(), half[:n_learned])
    assert {grad.dtype for grad in grads} == {torch.bfloat16}
    torch.testing.assert_close(got.float(), plain(*inputs).float(), rtol=0.05, atol=0.05)
