"""Frozen layers computed once: the same scores and gradients as running everything."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

import skgpt
from skgpt.data.tokenization import Tokens, tokenise
from skgpt.network.features import CachedPooled, CachedPrefix, WholeTrunk
from skgpt.network.features import choose_forward as choose
from skgpt.network.network import TextNetwork, build_network
from skgpt.pretrained.loading import load_pretrained
from skgpt.testing.tiny import _ARCHITECTURES as ARCHITECTURES

TEXTS = ["short", "a somewhat longer text", "x", "the longest text of these four, by far"]


def build(folder: str, trainable_layers: int | str, dtype: torch.dtype) -> TextNetwork:
    network = build_network(
        load_pretrained(folder),
        n_layers=None,
        trainable_layers=trainable_layers,  # type: ignore[arg-type]
        pooling="mean",
        n_outputs=3,
        dtype=dtype,
        device=torch.device("cpu"),
    )
    torch.nn.init.normal_(network.head.weight, generator=torch.Generator().manual_seed(0))
    return network


def tokens_of(network: TextNetwork) -> Tokens:
    return tokenise(TEXTS, network.pretrained.tokenizer, 64)


def forward_of(network: TextNetwork, memory_budget: int = 2**30) -> object:
    return choose(
        network,
        tokens_of(network),
        token_budget=30,
        memory_budget=memory_budget,
        progress=lambda done, total: None,
    )


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize(("trainable", "kind"), [(1, CachedPrefix), (0, CachedPooled)])
def test_forward__frozen_layers__gives_the_scores_and_gradients_of_the_whole(
    architecture: str, trainable: int, kind: type, tiny_model: Callable[[str], str]
) -> None:
    network = build(tiny_model(architecture), trainable, torch.float32)
    cached = forward_of(network)
    assert isinstance(cached, kind)
    whole = WholeTrunk(network, tokens_of(network))
    learned = [*network.learnable.values(), network.head.weight]
    rows = np.array([3, 0, 2])
    results = []
    for forward in (cached, whole):
        logits = forward(rows)
        grads = torch.autograd.grad(logits.square().sum(), learned, allow_unused=True)
        results.append((logits, grads))
    (logits, grads), (expected_logits, expected_grads) = results
    torch.testing.assert_close(logits, expected_logits, rtol=1e-4, atol=1e-4)
    for name, got, expected in zip(network.learnable, grads, expected_grads, strict=False):
        if expected is None:  # an encoder's unused pooler has no part in the scores
            assert got is None, name
        else:
            torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-3, msg=name)


def test_forward__bf16__keeps_the_hidden_states_as_the_trunk_has_them(tiny_llama: str) -> None:
    cached = forward_of(build(tiny_llama, 1, torch.bfloat16))
    assert isinstance(cached, CachedPrefix)
    assert {state.dtype for state in cached.states} == {torch.bfloat16}


@pytest.mark.parametrize("trainable", [1, 0])
def test_forward__states_beyond_the_memory_budget__runs_the_whole_trunk(
    trainable: int, tiny_llama: str
) -> None:
    network = build(tiny_llama, trainable, torch.float32)
    assert isinstance(forward_of(network, memory_budget=10), WholeTrunk)


def test_forward__nothing_frozen__runs_the_whole_trunk(tiny_llama: str) -> None:
    assert isinstance(forward_of(build(tiny_llama, "all", torch.float32)), WholeTrunk)


def test_forward__a_trunk_that_cannot_be_cut__runs_whole_and_right(
    tiny_llama: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = build(tiny_llama, 1, torch.float32)
    expected = WholeTrunk(network, tokens_of(network))(np.array([0, 1]))
    after = TextNetwork.after
    # As an architecture would whose later blocks read more than the hidden states.
    monkeypatch.setattr(TextNetwork, "after", lambda self, h, n: after(self, h, n) * 1.01)
    skgpt.clear_cache()  # the proof that it can be cut
    forward = forward_of(network)
    assert isinstance(forward, WholeTrunk)
    torch.testing.assert_close(forward(np.array([0, 1])), expected)


@pytest.mark.parametrize("error", [IndexError, AttributeError, AssertionError, RuntimeError])
def test_forward__a_trunk_that_fails_when_it_is_cut__runs_whole(
    error: type[Exception], tiny_llama: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = build(tiny_llama, 1, torch.float32)

    def fail(*args: object) -> None:
        raise error("not made for this")

    monkeypatch.setattr(TextNetwork, "after", fail)
    skgpt.clear_cache()
    assert isinstance(forward_of(network), WholeTrunk)


def test_forward__progress__ends_with_every_token(tiny_llama: str) -> None:
    network = build(tiny_llama, 1, torch.float32)
    tokens = tokens_of(network)
    told: list[tuple[int, int]] = []
    choose(
        network,
        tokens,
        token_budget=30,
        memory_budget=2**30,
        progress=lambda done, total: told.append((done, total)),
    )
    assert told[-1] == (len(tokens.ids), len(tokens.ids))
    assert [done for done, _ in told] == sorted({done for done, _ in told})
