"""A base in 4 bits, with a stand-in for bitsandbytes: which weights, and that all see the same.

The stand-in rounds weights to a few levels and computes with those, on any device. What
bitsandbytes itself does is tried on GPUs, in tests/test_gpu.py.
"""

import sys
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import skgpt
from skgpt.data.tokenization import tokenise
from skgpt.exceptions import MissingPackageError
from skgpt.network import lora as quantise
from skgpt.network.features import CacheLevel, TextFeatures
from skgpt.network.lora import AdapterSpec
from skgpt.network.microbatches import token_budget
from skgpt.pretrained.loading import load_pretrained
from skgpt.saving.state import _pack_network, _unpack_network
from skgpt.trunk.layers import find_blocks
from tests.network.test_lora import adapted, hidden_of
from tests.network.test_network import CPU, TEXTS, build

SPEC = AdapterSpec(2, 2.0, 0.0, "all-linear", quantize_base=4)


class _Rounded(nn.Parameter):
    def __new__(cls, data: Tensor, requires_grad: bool, quant_type: str) -> Any:
        assert quant_type == "nf4"
        step = data.abs().max() / 7
        made = nn.Parameter((data / step).round() * step, requires_grad=requires_grad)
        made.__class__ = cls
        return made


class _Linear4bit(nn.Linear):
    def __init__(
        self, *sizes: int, bias: bool, compute_dtype: torch.dtype, quant_type: str
    ) -> None:
        super().__init__(*sizes, bias=bias)
        self.compute_dtype = compute_dtype


@pytest.fixture(autouse=True)
def _stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    layers = SimpleNamespace(Linear4bit=_Linear4bit, Params4bit=_Rounded)
    # Not as a module of that name: peft would take it for the real one.
    monkeypatch.setattr(quantise, "_bitsandbytes", lambda: SimpleNamespace(nn=layers))
    monkeypatch.setattr(quantise, "_check_device", lambda device: None)
    skgpt.clear_cache()


def test_quantised__a_network__has_its_blocks_matrices_rounded_and_nothing_else(
    tiny_llama: str,
) -> None:
    source = load_pretrained(tiny_llama)
    network = build(source, lora=SPEC, trainable_layers=1)
    own = dict(source.trunk.named_parameters())
    inside = {id(p) for block in find_blocks(network.trunk) for p in block.parameters()}
    for name, parameter in network.trunk.named_parameters():
        if name in network.learnable:
            continue
        small = id(parameter) in inside and parameter.ndim == 2
        assert isinstance(parameter, _Rounded) == small, name
        original = own[name.replace(".base_layer", "")]
        assert torch.equal(parameter, original) != small, name


def test_quantised__frozen_layers__return_what_the_whole_trunk_computes(tiny_llama: str) -> None:
    whole_precision = build(load_pretrained(tiny_llama), lora=None, trainable_layers=1)
    network = build(load_pretrained(tiny_llama), lora=SPEC, trainable_layers=1)
    tokens = tokenise(TEXTS, network.pretrained.tokenizer, 64)
    rows = np.arange(len(TEXTS))
    scores: list[torch.Tensor] = []
    for net in (whole_precision, network):  # the first leaves its states in the store
        nn.init.normal_(net.head.weight, generator=torch.Generator().manual_seed(0))
        budgets = {"token_budget": 64, "memory_budget": 2**30}
        cached = TextFeatures(net, tokens, **budgets)
        assert cached.level is CacheLevel.HIDDEN
        whole = TextFeatures(net, tokens, level=CacheLevel.TOKENS, **budgets)
        with torch.no_grad():
            scores.append(net.score(whole.pooled(rows)))
            found = net.score(cached.pooled(rows))
        torch.testing.assert_close(found, scores[-1], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(*scores, atol=1e-2)


def test_quantised__a_base_inside_a_pickle__is_whole_and_rounded_again(tiny_llama: str) -> None:
    network = adapted(tiny_llama, SPEC, trainable_layers=1)
    again = _unpack_network(_pack_network(network, "auto"), torch.float32, CPU)
    assert torch.equal(hidden_of(again, [0, 1, 2]), hidden_of(network, [0, 1, 2]))
    whole = dict(network.pretrained.trunk.named_parameters())
    for name, parameter in again.pretrained.trunk.named_parameters():
        assert torch.equal(parameter, whole[name]), name


def test_token_budget__matrices_packed_to_columns__is_that_of_their_true_sizes(
    tiny_llama: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("skgpt.network.microbatches.total_memory", lambda device: 2**24)
    whole = adapted(tiny_llama, replace(SPEC, quantize_base=None))
    packed = adapted(tiny_llama, SPEC)
    for module in packed.trunk.modules():
        if isinstance(module, _Linear4bit):  # two of bitsandbytes' numbers are one byte
            module.weight = nn.Parameter(torch.zeros(module.weight.numel() // 2, 1), False)
    budgets = [token_budget(network, learning=True) for network in (whole, packed)]
    assert budgets[0] == budgets[1] > 128


def test_quantised__without_bitsandbytes__says_what_to_install(
    tiny_llama: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    monkeypatch.setattr(quantise, "_check_device", lambda device: None)
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(MissingPackageError, match="pip install bitsandbytes"):
        build(load_pretrained(tiny_llama), lora=SPEC)
