"""Networks: what they share, and what they own."""

from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from skgpt.network.layout import Layout
from skgpt.network.lora import AdapterSpec
from skgpt.network.network import (
    TextNetwork,
    _means_one_by_one,
    build_network,
    mean_of_each,
    resolve_depth,
    trainable_names,
)
from skgpt.pretrained.loading import PretrainedModel, load_pretrained
from skgpt.testing.tiny import _ARCHITECTURES as ARCHITECTURES

CPU = torch.device("cpu")
TEXTS = ["short", "a somewhat longer text", "x", "the longest text of these four, by far"]


def build(pretrained: PretrainedModel, **options: object) -> TextNetwork:
    settings: dict[str, object] = {
        "n_layers": None,
        "trainable_layers": 1,
        "pooling": "mean",
        "n_outputs": 3,
        "dtype": torch.float32,
        "device": CPU,
    }
    return build_network(pretrained, **{**settings, **options})  # type: ignore[arg-type]


def test_mean_of_each__either_way__has_the_same_value_and_gradient(tiny_llama: str) -> None:
    layout = Layout.of(np.array([3, 1, 7]), load_pretrained(tiny_llama), CPU)
    both = []
    for mean in (partial(mean_of_each, lengths_B=layout.lengths_B), _means_one_by_one):
        hidden_TH = torch.arange(44.0).reshape(11, 4).square().requires_grad_()
        means_BH = mean(hidden_TH, lengths=layout.lengths)
        torch.testing.assert_close(means_BH[1], hidden_TH[3])
        both.append((means_BH, torch.autograd.grad(means_BH.square().sum(), hidden_TH)[0]))
    torch.testing.assert_close(*both)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_trainable_names__the_last_layer__has_its_block_and_the_final_norm(
    architecture: str, tiny_model: Callable[[str], str]
) -> None:
    pretrained = load_pretrained(tiny_model(architecture))
    after = pretrained.capabilities.after_blocks
    names = trainable_names(pretrained.copy_trunk(3, torch.float32, CPU), 1, after)
    in_blocks = [n for n in names if ".2." in n or n.startswith("2.")]
    others = set(names) - set(in_blocks)
    assert in_blocks
    assert not [n for n in names if ".0." in n or ".1." in n]
    # Of the families here only BERT has no norm behind its blocks.
    assert bool(others) == (architecture != "bert")
    assert not [n for n in others if "embed" in n or "wte" in n or "wpe" in n]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("lora", [None, AdapterSpec(2, 3.0, 0.0, "all-linear")])
def test_networks__of_one_pretrained_model__share_frozen_tensors_and_no_module(
    lora: AdapterSpec | None, dtype: torch.dtype, tiny_llama: str
) -> None:
    pretrained = load_pretrained(tiny_llama)
    one, two = (build(pretrained, dtype=dtype, lora=lora) for _ in "ab")
    assert not {id(m) for m in one.modules()} & {id(m) for m in two.modules()}
    assert one.learnable.keys() == two.learnable.keys()
    learned = set(one.learnable)
    ones, twos = dict(one.trunk.named_parameters()), dict(two.trunk.named_parameters())
    for name in ones:
        shared = ones[name].data_ptr() == twos[name].data_ptr()
        assert shared == (name not in learned) == (not ones[name].requires_grad), name
        assert ones[name] is not twos[name]


@pytest.mark.parametrize(
    ("depth", "causal", "asked", "found"),
    [
        (30, True, ("auto", "auto"), (24, 4)),
        (12, True, ("auto", "auto"), (10, 4)),
        (30, True, ("auto", "all"), (24, "all")),
        (30, True, ("auto", 28), (28, 28)),
        (30, True, (12, "auto"), (12, 4)),
        (30, True, (3, "auto"), (3, 3)),
        (30, True, (None, "auto"), (None, 4)),
        (1, True, ("auto", "auto"), (1, 1)),
        (6, False, ("auto", "auto"), (None, 4)),
        (6, False, ("auto", 6), (None, 6)),
    ],
)
def test_resolve_depth__auto__is_a_share_of_a_decoder_and_the_whole_of_an_encoder(
    depth: int, causal: bool, asked: tuple[Any, Any], found: tuple[Any, Any]
) -> None:
    capabilities = SimpleNamespace(causal=causal)
    pretrained: Any = SimpleNamespace(full_depth=depth, capabilities=capabilities)
    assert resolve_depth(pretrained, *asked) == found
