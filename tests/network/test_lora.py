"""Adapters in a trunk: where they go, what they add, merging, and a base in 4 bits."""

import sys
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import skgpt
from skgpt.data.tokenization import tokenise
from skgpt.exceptions import MissingPackageError, ModelNotSupportedError, StateFormatError
from skgpt.network import lora as adapters
from skgpt.network.features import CacheLevel, TextFeatures
from skgpt.network.layout import Layout, ids_of
from skgpt.network.lora import AdapterSpec, SeededDropout, base_name, targets_of
from skgpt.network.microbatches import token_budget
from skgpt.network.network import TextNetwork, pad_id_of
from skgpt.pretrained.loading import load_pretrained
from skgpt.saving.state import pack_network, unpack_network
from skgpt.trunk.layers import find_blocks
from tests.helpers import global_random_state_unchanged
from tests.network.test_network import CPU, TEXTS, build
from tests.trunk.architectures import KNOWN

_ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
_MLP = ("gate_proj", "up_proj", "down_proj")
ALL = AdapterSpec(rank=2, alpha=3.0, dropout=0.0, target_modules="all-linear")


def adapted(folder: str, spec: AdapterSpec = ALL, **options: Any) -> TextNetwork:
    """Return a network whose adapters do something."""
    network = build(load_pretrained(folder), lora=spec, **{"trainable_layers": "all", **options})
    generator = torch.Generator().manual_seed(1)
    for master in network.learnable.values():
        nn.init.normal_(master, std=0.3, generator=generator)
    network.refresh()
    return network


@torch.no_grad()
def hidden_of(network: TextNetwork, rows: list[int]) -> Tensor:
    tokens = tokenise(TEXTS, network.pretrained.tokenizer, 64)
    layout = Layout.of(tokens.lengths[rows], network.pretrained, CPU)
    laid_out = layout.lay(ids_of(tokens, np.array(rows), CPU), pad_id_of(network.pretrained))
    return layout.flat(network.trunk(input_ids=laid_out, **layout.inputs()).last_hidden_state)


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_adapters__at_first__add_nothing_and_draw_from_no_global_generator(
    architecture: str, tiny_model: Callable[[str], str]
) -> None:
    source = load_pretrained(tiny_model(architecture))
    with global_random_state_unchanged():
        network = build(source, lora=ALL, trainable_layers="all")
    bare = build(source, trainable_layers=0)
    assert torch.equal(hidden_of(network, [0, 1, 2]), hidden_of(bare, [0, 1, 2]))
    assert network.learnable
    assert all(("lora_B" in n) == bool((m == 0).all()) for n, m in network.learnable.items())


def test_adapters__seed__decides_them(tiny_llama: str) -> None:
    source = load_pretrained(tiny_llama)
    one, same, other = (build(source, lora=ALL, seed=s).learnable for s in (5, 5, 6))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not any(torch.equal(one[name], other[name]) for name in one if "lora_A" in name)
    drawn = [tensor.detach() for name, tensor in one.items() if "lora_A" in name]
    assert len({round(float(t.flatten()[0]), 6) for t in drawn}) == len(drawn)
    for tensor in drawn:
        bound = tensor.shape[1] ** -0.5
        assert 0.7 * bound < float(tensor.abs().max()) < bound


@pytest.mark.parametrize(
    ("wanted", "ends"),
    [
        ("all-linear", {*_ATTENTION, *_MLP}),
        (("q_proj", "self_attn.v_proj"), {"q_proj", "v_proj"}),
        (r".*\.mlp\.(up|down)_proj", {"up_proj", "down_proj"}),
    ],
)
def test_targets__last_layers__are_in_those(wanted: Any, ends: set[str], tiny_llama: str) -> None:
    spec = AdapterSpec(2, 2.0, 0.0, wanted)
    network = build(load_pretrained(tiny_llama), lora=spec, trainable_layers=1)
    found = {name.partition(".lora_")[0] for name in network.learnable}
    assert {name.rpartition(".")[2] for name in found} == ends
    n = network.spec.n_layers
    assert all(name.startswith(f"layers.{n - 1}.") for name in found)
    assert len(network.learnable) == 2 * len(ends)


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (("q_proj", "elf_attn.q_proj"), "Got 'elf_attn.q_proj'.*down_proj, gate_proj"),
        (("q_proj", "lm_head"), "Got 'lm_head'.*down_proj, gate_proj"),
        ("q_proj", r"whole names, like 'layers\.2.*pass a list"),
        ("(q_proj", r"Got '\(q_proj'"),
    ],
)
def test_targets__no_such_layers__are_refused(wanted: Any, message: str, tiny_llama: str) -> None:
    with pytest.raises(ModelNotSupportedError, match=message):
        build(load_pretrained(tiny_llama), lora=replace(ALL, target_modules=wanted))


def test_targets__blocks_without_linear_layers__are_refused(tiny_llama: str) -> None:
    trunk = load_pretrained(tiny_llama).trunk
    with pytest.raises(ModelNotSupportedError, match="Got 'all-linear'"):
        targets_of(trunk, ALL, len(trunk.layers))


def test_adapters__without_layers_that_learn__are_refused(tiny_llama: str) -> None:
    with pytest.raises(ModelNotSupportedError, match="trainable_layers=0 leaves none"):
        build(load_pretrained(tiny_llama), lora=ALL, trainable_layers=0)


def test_adapters__without_peft__say_so(tiny_llama: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(MissingPackageError, match="pip install peft"):
        build(load_pretrained(tiny_llama), lora=ALL)


def test_adapters__where_peft_refuses__say_so_by_name(tiny_model: Callable[[str], str]) -> None:
    source = load_pretrained(tiny_model("mamba"))
    with pytest.raises(ModelNotSupportedError, match=r"`lora__target_modules`.*out_proj"):
        build(source, lora=ALL, trainable_layers="all")
    build(source, lora=replace(ALL, target_modules=("in_proj",)), trainable_layers="all")


@pytest.mark.first_tier(name=["gpt_oss", "modernbert"])
@pytest.mark.parametrize("name", sorted(set(KNOWN) - {"mamba"}))
def test_base_name__any_parameter__is_in_base(name: str, tiny_model: Callable[[str], str]) -> None:
    network = build(load_pretrained(tiny_model(name)), lora=ALL, trainable_layers="all")
    base = {n for n, _ in network.pretrained.trunk.named_parameters()}
    names = {n for n, _ in network.trunk.named_parameters() if n not in network.learnable}
    assert {base_name(n) for n in names} == base


def test_unpack__a_pattern__is_left_alone(tiny_llama: str, monkeypatch: pytest.MonkeyPatch) -> None:
    network = adapted(tiny_llama, replace(ALL, target_modules=".*[qv]_proj"))
    # A stranger's may take for ever.
    monkeypatch.setattr(adapters, "_compiled", lambda pattern: pytest.fail("was compiled"))
    again = unpack_network(pack_network(network, "auto"), torch.float32, CPU)
    assert again.spec == network.spec
    assert list(again.learnable) == list(network.learnable)


@pytest.mark.parametrize("rank", [10**12, 1, "2"])
def test_unpack__a_rank_that_is_not_that_of_the_adapters__is_refused_before_any_is_made(
    rank: Any, tiny_llama: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = pack_network(adapted(tiny_llama), "auto")
    state.part("learned").values["spec"]["lora"]["rank"] = rank
    monkeypatch.setattr(TextNetwork, "__init__", lambda *_: pytest.fail("was made"))
    with pytest.raises(StateFormatError, match="of rank"):
        unpack_network(state, torch.float32, CPU)


@pytest.mark.parametrize("p", [0.1, 0.9])
def test_dropout__many_values__drops_its_share_and_keeps_the_mean(p: float) -> None:
    dropout = SeededDropout(p, CPU)
    with global_random_state_unchanged(), dropout.seeded(3, 0):
        left = dropout(torch.ones(201, 999, dtype=torch.float64))
    assert set(left.unique().tolist()) == {0.0, 1 / (1 - p)}
    assert float((left == 0).double().mean()) == pytest.approx(p, abs=0.005)
    assert float(left.mean()) == pytest.approx(1, abs=0.02)


def test_dropout__seed_step_and_call__decide_what_is_dropped() -> None:
    dropout, x = SeededDropout(0.5, CPU), torch.ones(9, 9)
    drawn = []
    for key in ((0, 0), (0, 0), (0, 1), (1, 0)):
        with dropout.seeded(*key):
            drawn.append(torch.stack([dropout(x), dropout(x)]))  # two layers
    assert torch.equal(drawn[0], drawn[1])
    others = [*drawn[0], *drawn[2], *drawn[3]]
    assert len({tuple(t.flatten().tolist()) for t in others}) == len(others)


def test_dropout__outside_of_a_step_or_without_gradients__drops_nothing() -> None:
    dropout, x = SeededDropout(0.5, CPU), torch.ones(9, 9)
    assert dropout(x) is x
    with dropout.seeded(0), torch.no_grad():
        assert dropout(x) is x
    assert dropout(x) is x


# A base in 4 bits, with a stand-in for bitsandbytes that rounds weights to a few levels and
# computes with those, on any device. tests/test_gpu.py tries bitsandbytes itself.

IN_4_BITS = AdapterSpec(2, 2.0, 0.0, "all-linear", quantize_base=4)


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


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    layers = SimpleNamespace(Linear4bit=_Linear4bit, Params4bit=_Rounded)
    # Not as a module of that name: peft would take it for the real one.
    monkeypatch.setattr(adapters, "_bitsandbytes", lambda: SimpleNamespace(nn=layers))
    monkeypatch.setattr(adapters, "_check_device", lambda device: None)
    skgpt.clear_cache()


@pytest.mark.usefixtures("stand_in")
def test_quantised__a_network__has_its_blocks_matrices_rounded_alone(tiny_llama: str) -> None:
    source = load_pretrained(tiny_llama)
    network = build(source, lora=IN_4_BITS, trainable_layers=1)
    own = dict(source.trunk.named_parameters())
    inside = {id(p) for block in find_blocks(network.trunk) for p in block.parameters()}
    for name, parameter in network.trunk.named_parameters():
        if name in network.learnable:
            continue
        small = id(parameter) in inside and parameter.ndim == 2
        assert isinstance(parameter, _Rounded) == small, name
        original = own[name.replace(".base_layer", "")]
        assert torch.equal(parameter, original) != small, name


@pytest.mark.usefixtures("stand_in")
def test_quantised__frozen_layers__return_what_the_whole_trunk_computes(tiny_llama: str) -> None:
    whole_precision = build(load_pretrained(tiny_llama), lora=None, trainable_layers=1)
    network = build(load_pretrained(tiny_llama), lora=IN_4_BITS, trainable_layers=1)
    tokens = tokenise(TEXTS, network.pretrained.tokenizer, 64)
    rows = np.arange(len(TEXTS))
    scores: list[Tensor] = []
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


@pytest.mark.usefixtures("stand_in")
def test_quantised__a_base_inside_a_pickle__is_whole_and_rounded_again(tiny_llama: str) -> None:
    network = adapted(tiny_llama, IN_4_BITS, trainable_layers=1)
    again = unpack_network(pack_network(network, "auto"), torch.float32, CPU)
    assert torch.equal(hidden_of(again, [0, 1, 2]), hidden_of(network, [0, 1, 2]))
    whole = dict(network.pretrained.trunk.named_parameters())
    for name, parameter in again.pretrained.trunk.named_parameters():
        assert torch.equal(parameter, whole[name]), name


@pytest.mark.usefixtures("stand_in")
def test_token_budget__matrices_packed_to_columns__is_that_of_their_true_sizes(
    tiny_llama: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("skgpt.network.microbatches.total_memory", lambda device: 2**24)
    whole = adapted(tiny_llama, replace(IN_4_BITS, quantize_base=None))
    packed = adapted(tiny_llama, IN_4_BITS)
    for module in packed.trunk.modules():
        if isinstance(module, _Linear4bit):  # two of bitsandbytes' numbers are one byte
            module.weight = nn.Parameter(torch.zeros(module.weight.numel() // 2, 1), False)
    budgets = [token_budget(network, learning=True) for network in (whole, packed)]
    assert budgets[0] == budgets[1] > 128


def test_quantised__without_bitsandbytes__says_what_to_install(
    tiny_llama: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adapters, "_check_device", lambda device: None)
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(MissingPackageError, match="pip install bitsandbytes"):
        build(load_pretrained(tiny_llama), lora=IN_4_BITS)
