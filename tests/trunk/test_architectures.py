"""A new architecture is nothing at all: what holds for it is found out, and it is exact.

The measure is always transformers' own forward pass over one text at a time.
"""

import copy
import logging
from collections.abc import Callable
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from skgpt.data.tokenization import Tokens, tokenise
from skgpt.exceptions import ModelNotSupportedError
from skgpt.network.features import CacheLevel, TextFeatures
from skgpt.network.layout import Layout, ids_of
from skgpt.network.network import TextNetwork
from skgpt.pretrained.loading import PretrainedModel, load_pretrained
from skgpt.training.loss import CrossEntropy
from skgpt.trunk.capabilities import probe
from skgpt.trunk.layers import find_blocks
from tests.helpers import TextData, make
from tests.network.test_network import build
from tests.trunk.architectures import ALL, FAST, KNOWN, WINDOW, write_tiny

CPU = torch.device("cpu")
TEXTS = [
    "short",
    "x",
    "A text that is several times as long as the windows and chunks of these tiny models.",
    "",
    "one a little longer than a window",
]
ROWS = np.arange(len(TEXTS))
CODES = torch.tensor([0, 1, 2, 1, 0])
# These two multiply weights with, or add to what they give, a buffer that they keep.
CAST_BUFFERS = ("openai-gpt", "xglm")
WEIGHT = torch.tensor([0.5, 2.0, 1.0, 1.0, 0.25])


@pytest.fixture(params=ALL)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def source(name: str, tiny_model: Callable[[str], str]) -> PretrainedModel:
    return load_pretrained(tiny_model(name))


def tokens_of(source: PretrainedModel) -> Tokens:
    tokens = tokenise(TEXTS, source.tokenizer, 256)
    assert tokens.lengths.max() > 4 * WINDOW
    return tokens


def network_of(source: PretrainedModel, **options: Any) -> TextNetwork:
    network = build(source, **options)
    torch.nn.init.normal_(network.head.weight, generator=torch.Generator().manual_seed(0))
    return network


def loss_of(logits: Tensor, rows: list[int]) -> Tensor:
    return CrossEntropy().total(logits, CODES[rows], WEIGHT[rows])


def gradients(loss: Tensor, parameters: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return what isn't zero: a checkpoint may hold weights that act on nothing."""
    found = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
    pairs = zip(parameters, found, strict=True)
    return {name: g for name, g in pairs if g is not None and g.abs().max() > 0}


def mask_both_ways(block: Any, args: Any, kwargs: Any) -> Any:
    """Have a block of transformers' see as far ahead as its causal mask lets it see back."""
    call = signature(block.forward).bind(*args, **kwargs)
    given = call.arguments["attention_mask"]
    if given is None:  # a causal mask that scaled_dot_product_attention would make
        n = args[0].shape[1]
        given = torch.ones(1, 1, n, n, dtype=torch.bool).tril()
    both = given | given.mT if given.dtype == torch.bool else torch.maximum(given, given.mT)
    call.arguments["attention_mask"] = both
    return call.args, call.kwargs


def one_by_one(network: TextNetwork, tokens: Tokens) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the scores of each text alone, and the sum of the gradients of their losses."""
    trunk = copy.deepcopy(network.pretrained.trunk).requires_grad_(True)
    n_causal = network.spec.n_layers - network.spec.n_bidirectional
    for block in find_blocks(trunk)[n_causal:]:
        block.register_forward_pre_hook(mask_both_ways, with_kwargs=True)
    learned = {n: p for n, p in trunk.named_parameters() if n in network.learnable}
    learned["head"] = network.head.weight
    scores, total = [], {}
    for row in range(len(tokens)):
        ids = torch.from_numpy(tokens.row(row))[None]
        hidden = trunk(input_ids=ids).last_hidden_state
        last = network.spec.pooling == "last"
        logits = network.score(hidden[:, -1] if last else hidden.mean(1))
        for name, grad in gradients(loss_of(logits, [row]), learned).items():
            total[name] = total.get(name, 0) + grad
        scores.append(logits.detach())
    return torch.cat(scores), total


def assert_same_gradients(got: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    # Against the largest gradient of all: a key's bias has one that is rounding and no more.
    scale = max(float(grad.abs().max()) for grad in expected.values())
    for name in got.keys() | expected.keys():
        one, two = (part.get(name, torch.zeros(())) for part in (got, expected))
        assert float((one - two).abs().max()) < 1e-5 * scale, name


def test_probe__a_new_architecture__is_found_out(name: str, source: PretrainedModel) -> None:
    known, capabilities = ALL[name], source.capabilities
    assert (capabilities.supports_packing, capabilities.supports_fast_blocks) == (
        known.packs,
        known.fast,
    )
    assert (capabilities.causal, capabilities.needs_mask) == (known.causal, not known.causal)
    assert capabilities.supports_bidirectional == (known.causal and known.packs)
    assert capabilities.casts_buffers == (name in CAST_BUFFERS)
    assert capabilities.hidden_size == source.trunk.config.hidden_size


# Pooling the last token takes another way through fast blocks; elsewhere one way pools both.
POOLINGS = [
    *((name, "mean") for name in ALL),
    *(
        pytest.param(name, "last", marks=() if known.fast else pytest.mark.thorough)
        for name, known in ALL.items()
        if known.causal
    ),
]


@pytest.mark.parametrize(("name", "pooling"), POOLINGS)
def test_network__texts_in_one_micro_batch__have_the_scores_and_gradients_of_each_alone(
    pooling: str, source: PretrainedModel
) -> None:
    check_one_by_one(network_of(source, trainable_layers="all", pooling=pooling))


@pytest.mark.parametrize("name", FAST)
@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_network__all_layers_bidirectional__have_the_scores_and_gradients_of_each_text_alone(
    pooling: str, source: PretrainedModel
) -> None:
    options = {"trainable_layers": "all", "pooling": pooling, "attention": "bidirectional"}
    network = network_of(source, **options)
    assert network.spec.n_bidirectional == source.depth
    check_one_by_one(network)


def check_one_by_one(network: TextNetwork) -> None:
    source = network.pretrained
    tokens = tokens_of(source)
    learned = {**network.learnable, "head": network.head.weight}
    layout = Layout.of(tokens.lengths, source, CPU)
    logits = network(ids_of(tokens, ROWS, CPU), layout)
    got = gradients(loss_of(logits, list(ROWS)), learned)
    expected_logits, expected = one_by_one(network, tokens)
    torch.testing.assert_close(logits, expected_logits, rtol=1e-4, atol=1e-5)
    assert len(got) > 10
    assert_same_gradients(got, expected)


@pytest.mark.parametrize(("name", "pooling"), POOLINGS)
def test_forward__frozen_layers__are_cut_off_exactly_or_not_at_all(
    pooling: str, name: str, source: PretrainedModel
) -> None:
    """With mean pooling, the layers that learn are bidirectional wherever they can be."""
    network, tokens = network_of(source, pooling=pooling), tokens_of(source)
    can = source.capabilities.supports_bidirectional
    assert network.spec.n_bidirectional == int(pooling == "mean" and can)
    features = TextFeatures(network, tokens, token_budget=100, memory_budget=2**30)
    assert features.level is (CacheLevel.HIDDEN if ALL[name].cut else CacheLevel.TOKENS)
    learned = {**network.learnable, "head": network.head.weight}
    logits = network.score(features.pooled(ROWS))
    expected_logits, expected = one_by_one(network, tokens)
    torch.testing.assert_close(logits, expected_logits, rtol=1e-4, atol=1e-5)
    assert_same_gradients(gradients(loss_of(logits, list(ROWS)), learned), expected)


# One of each kind: fast, packed, an encoder, side by side, cast buffers, neither split nor packed.
@pytest.mark.first_tier(name=["llama", "gpt2", "modernbert", "bloom", "xglm", "openai-gpt"])
@pytest.mark.parametrize("name", ALL)
def test_network__bf16__is_close_to_fp32(source: PretrainedModel) -> None:
    tokens = tokens_of(source)
    layout = Layout.of(tokens.lengths, source, CPU)
    scores = []
    for dtype in (torch.float32, torch.bfloat16):
        network = network_of(source, dtype=dtype)
        logits = network(ids_of(tokens, ROWS, CPU), layout)
        logits.square().sum().backward()
        scores.append(logits.detach())
    torch.testing.assert_close(
        scores[1], scores[0], rtol=0, atol=0.1 * float(scores[0].abs().max())
    )


@pytest.mark.parametrize("far", [1_000, 30_000])
def test_probe__a_mask_that_shows_in_long_texts_alone__is_seen(
    far: int, tiny_llama: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from transformers.models.llama import modeling_llama

    trunk = load_pretrained(tiny_llama).trunk
    create = modeling_llama.create_causal_mask

    def near(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return query - key < far

    monkeypatch.setattr(
        modeling_llama,
        "create_causal_mask",
        lambda **options: create(**options, and_mask_function=near),
    )
    with caplog.at_level(logging.INFO, "skgpt"):
        capabilities = probe(trunk)
    assert not capabilities.supports_packing and not capabilities.supports_fast_blocks
    assert "masks are not those of packed attention" in caplog.text


def test_max_length__rotations_that_a_long_neighbour_would_change__is_bounded_before_them(
    tmp_path: Path, two_class_data: TextData
) -> None:
    longrope = {"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [4.0] * 4}
    with pytest.MonkeyPatch.context() as patch:
        config = KNOWN["phi3"].made.config
        patch.setitem(config, "rope_parameters", longrope)
        patch.setitem(config, "original_max_position_embeddings", 64)
        folder = write_tiny(str(tmp_path / "longrope"), "phi3")
    source = load_pretrained(folder)
    assert source.max_positions == 64
    short, long = (torch.arange(n)[None] % 200 for n in (64, 65))
    last = source.trunk(input_ids=long).last_hidden_state[0, :64]
    assert not torch.allclose(last, source.trunk(input_ids=short).last_hidden_state[0], atol=1e-2)
    with pytest.raises(ModelNotSupportedError, match="at most 64"):
        make(folder, max_length=65).fit(*two_class_data)
