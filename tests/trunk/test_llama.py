"""The Llama family's fast block: where it is used, and a last block that pools early."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from skgpt.data.tokenization import tokenise
from skgpt.network.layout import Layout, ids_of
from skgpt.pretrained.loading import load_pretrained
from skgpt.trunk.attention import Boundaries
from skgpt.trunk.capabilities import probe
from skgpt.trunk.layers import find_blocks
from skgpt.trunk.llama import use_fast_blocks
from tests.network.test_network import CPU, TEXTS, build


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
