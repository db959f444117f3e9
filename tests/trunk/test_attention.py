"""Packed attention and the Llama block: texts end to end are as good as each alone."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from skgpt.data.tokenization import tokenise
from skgpt.network.layout import Layout, ids_of
from skgpt.network.network import TextNetwork, build_network
from skgpt.pretrained.loading import PretrainedModel, load_pretrained
from skgpt.testing.tiny import _ARCHITECTURES as ARCHITECTURES
from skgpt.trunk.attention import NAME, Boundaries, in_padded_rows, pack, packed_attention
from skgpt.trunk.capabilities import probe
from skgpt.trunk.layers import find_blocks
from skgpt.trunk.llama import _Gate, _RMSNorm, _Rotate, use_fast_blocks

CPU = torch.device("cpu")
GENERATOR = torch.Generator().manual_seed(0)
LENGTHS = [3, 1, 70, 12]  # one is longer than the window of the tiny Gemma
TEXTS = [
    "short",
    "",
    "a text that is longer than any window of a tiny model, by a word or two",
    "x",
]

PACKED = {"bert", "gemma3", "gpt2", "gpt_neox", "llama", "mistral", "opt", "qwen3"}
FAST = {"llama", "mistral", "qwen3"}


def random(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=GENERATOR)


def in_rows(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    boundaries: Boundaries,
    *,
    scale: float,
    causal: bool,
    window: int | None,
) -> torch.Tensor:
    """Attend as on a GPU in fp32."""
    return in_padded_rows(q, k, v, boundaries, scale, causal, window)


def network_of(source: PretrainedModel, dtype: torch.dtype = torch.float32) -> TextNetwork:
    network = build_network(
        source,
        n_layers=None,
        trainable_layers="all",
        pooling="mean",
        n_outputs=2,
        dtype=dtype,
        device=CPU,
    )
    torch.nn.init.normal_(network.head.weight, generator=torch.Generator().manual_seed(0))
    return network


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_prove__each_architecture__is_known_to_pack_or_not(
    architecture: str, tiny_model: Callable[[str], str]
) -> None:
    capabilities = load_pretrained(tiny_model(architecture)).capabilities
    assert capabilities.supports_packing == (architecture in PACKED)
    assert capabilities.supports_fast_blocks == (architecture in FAST)


def test_prove__a_trunk__is_left_as_it_is(tiny_llama: str) -> None:
    trunk = load_pretrained(tiny_llama).trunk
    before = (trunk.config._attn_implementation, [type(block) for block in find_blocks(trunk)])
    probe(trunk)
    assert before == (trunk.config._attn_implementation, [type(b) for b in find_blocks(trunk)])
    assert before[0] != NAME


@pytest.mark.parametrize("architecture", sorted(PACKED))
def test_network__texts_end_to_end__have_the_scores_and_gradients_of_the_models_own_code(
    architecture: str, tiny_model: Callable[[str], str]
) -> None:
    source = load_pretrained(tiny_model(architecture))
    network = network_of(source)
    tokens = tokenise(TEXTS, source.tokenizer, 80)
    layout = Layout.of(tokens.lengths, source, CPU)
    learned = [*network.learnable.values(), network.head.weight]
    packed = network(ids_of(tokens, np.arange(4), CPU), layout)
    grads = torch.autograd.grad(packed.square().sum(), learned, allow_unused=True)

    # transformers' own forward pass, a text at a time, on the same parameters
    network.trunk.config._attn_implementation = "eager"
    for block in find_blocks(network.trunk):
        block.__class__ = {f"Fast{k.__name__}": k for k in type(block).__mro__}.get(
            type(block).__name__, type(block)
        )
    own = [
        network.trunk(input_ids=torch.from_numpy(tokens.row(i))[None]).last_hidden_state[0]
        for i in range(4)
    ]
    expected = network.score(torch.stack([hidden.mean(0) for hidden in own]))
    expected_grads = torch.autograd.grad(expected.square().sum(), learned, allow_unused=True)
    torch.testing.assert_close(packed, expected, rtol=1e-4, atol=1e-5)
    for name, got, want in zip(network.learnable, grads, expected_grads, strict=False):
        if want is None:
            assert got is None, name
        else:
            torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-4, msg=name)


@torch.no_grad()
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_network__padded_where_it_could_be_packed__has_the_same_scores(
    architecture: str, tiny_model: Callable[[str], str]
) -> None:
    # An encoder that doesn't pack needs the mask; no tiny model is one by itself.
    source = load_pretrained(tiny_model(architecture))
    padded = replace(
        source,
        capabilities=replace(
            source.capabilities, supports_packing=False, supports_fast_blocks=False
        ),
    )
    tokens = tokenise(TEXTS, source.tokenizer, 80)
    logits = [
        network_of(one)(ids_of(tokens, np.arange(4), CPU), Layout.of(tokens.lengths, one, CPU))
        for one in (source, padded)
    ]
    torch.testing.assert_close(*logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("attend", [packed_attention, in_rows])
@pytest.mark.parametrize("heads", [(4, 4), (4, 2), (4, 1)])
@pytest.mark.parametrize(
    ("causal", "window"),
    [(True, None), (False, None), *((c, w) for c in (True, False) for w in (5, 1, 70))],
)
def test_packed_attention__each_text__attends_to_itself_alone(
    heads: tuple[int, int], causal: bool, window: int | None, attend: Callable[..., torch.Tensor]
) -> None:
    n, n_kv = heads
    total = sum(LENGTHS)
    q, k, v = random(total, n, 8), random(total, n_kv, 8), random(total, n_kv, 8)
    boundaries = Boundaries.of(LENGTHS, CPU)
    got = attend(q, k, v, boundaries, scale=0.3, causal=causal, window=window)
    text = np.repeat(np.arange(len(LENGTHS)), LENGTHS)
    at = np.arange(total)
    seen = text[:, None] == text[None, :]
    back = at[:, None] - at[None, :]
    seen &= np.abs(back) < (window or total)
    if causal:
        seen &= back >= 0
    k, v = (x.repeat_interleave(n // n_kv, dim=1).transpose(0, 1) for x in (k, v))
    weights = (q.transpose(0, 1) @ k.transpose(1, 2) * 0.3).masked_fill(
        ~torch.from_numpy(seen), -torch.inf
    )
    expected = (weights.softmax(-1) @ v).transpose(0, 1)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("option", [{"softcap": 50.0}, {"s_aux": torch.zeros(4)}])
def test_attention__what_it_does_not_compute__is_refused_so_that_the_model_is_padded(
    option: dict[str, Any],
) -> None:
    from transformers import AttentionInterface

    class Holder:
        config = None

    pack(type("Trunk", (), {"config": Holder()})())
    x = random(1, 4, 5, 8)
    with pytest.raises(NotImplementedError):
        AttentionInterface()[NAME](None, x, x, x, None, **option)


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


def rms_norm(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return weight * (x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-5))


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    first, second = x.chunk(2, -1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)


CASES: dict[str, tuple[Any, Any, list[torch.Tensor], int]] = {
    "norm": (lambda *a: _RMSNorm.apply(*a, 1e-5), rms_norm, [random(7, 8), random(8)], 2),
    "norm of heads": (
        lambda *a: _RMSNorm.apply(*a, 1e-5),
        rms_norm,
        [random(7, 3, 8), random(8)],
        2,
    ),
    "rotation": (_Rotate.apply, rotate, [random(7, 3, 8), random(7, 1, 4), random(7, 1, 4)], 1),
    "gate": (_Gate.apply, lambda g, u: F.silu(g) * u, [random(7, 8), random(7, 8)], 2),
}


@pytest.mark.parametrize("case", CASES)
def test_pieces__value_and_gradients__are_those_of_the_plain_formula(case: str) -> None:
    ours, plain, inputs, n_learned = CASES[case]
    frozen = [x.clone() for x in inputs]
    inputs = [x.clone().requires_grad_(i < n_learned) for i, x in enumerate(inputs)]
    got, expected = ours(*inputs), plain(*inputs)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)
    learned = inputs[:n_learned]
    weights = random(*expected.shape)
    grads = [torch.autograd.grad((out * weights).sum(), learned) for out in (got, expected)]
    for one, two in zip(*grads, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5)
    for x, before in zip(inputs, frozen, strict=True):
        assert torch.equal(x, before)  # nothing was written to


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


@pytest.mark.parametrize("architecture", ["llama", "bloom"])
def test_layout__tokens_laid_out_and_back__are_the_same(
    architecture: str, tiny_model: Callable[[str], str]
) -> None:
    source = load_pretrained(tiny_model(architecture))
    layout = Layout.of(np.array(LENGTHS), source, CPU)
    hidden = random(sum(LENGTHS), 4)
    laid_out = layout.lay(hidden)
    assert laid_out.shape == ((1, 96, 4) if layout.packed else (4, 70, 4))  # 86, filled up to 96
    assert layout.lengths == tuple(LENGTHS)
    assert torch.equal(layout.flat(laid_out), hidden)
    assert layout.ends_B.tolist() == [2, 3, 73, 85]
    if layout.packed:
        positions = layout.inputs()["position_ids"][0].tolist()
        assert positions == [i for n in [*LENGTHS, 10] for i in range(n)]


def test_layout__any_number_of_tokens__few_widths_and_little_filler(tiny_llama: str) -> None:
    source = load_pretrained(tiny_llama)
    widths = set()
    for total in range(1, 2049):
        layout = Layout.of(np.array([total]), source, CPU)
        width = sum(layout.boundaries.lengths)
        assert width - total < (64 if total > 512 else 16)
        widths.add(width)
    assert len(widths) <= 32 + 24
