"""Likelihoods of phrases: what is shared runs once, and gives what running everything gives."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import skgpt
from skgpt.data.tokenization import Tokens, tokenise
from skgpt.network import phrases as module
from skgpt.network.network import TextNetwork
from skgpt.network.phrases import log_likelihoods
from skgpt.pretrained.language_head import language_head
from skgpt.pretrained.loading import PretrainedModel, load_pretrained
from tests.network.test_network import build
from tests.trunk.architectures import ALL, WINDOW

# Longer than the sliding windows of the tiny models, texts and all.
SHARED = "What is each of these texts about?\n\n"
TEXTS = ["", "x", "a late goal won the match", "a late goal won the match", "shares fell " * 5]
# Several share a beginning, one is the beginning of another, one is a token alone.
PHRASES = [tuple(word.encode()) for word in ("sport", "s", "spa", "money", "monetary", "spaces")]
NO_HEAD = ("llama4",)  # not one that is told apart from its trunk


def network_of(pretrained: PretrainedModel) -> TextNetwork:
    return build(pretrained, n_layers=None, trainable_layers=0, pooling="last")


def prompts_of(network: TextNetwork, shared: str = SHARED) -> tuple[Tokens, tuple[int, ...]]:
    tokenizer = network.pretrained.tokenizer.open_ended()
    prompts = tokenise([f"{shared}{text}\nTopic: " for text in TEXTS], tokenizer, 256)
    return prompts, (*tokenizer.prefix_ids, *tokenizer.encode([shared])[0])


def score(network: TextNetwork, *args: Any) -> NDArray[np.float64]:
    pretrained = network.pretrained
    head = language_head(pretrained).on(network.trunk, network.device)
    return log_likelihoods(network, head, *args)


def score_whole(network: TextNetwork, *args: Any) -> NDArray[np.float64]:
    """Return the same of a network of which it is not known that it can share anything."""
    known = network.pretrained
    capabilities = replace(known.capabilities, supports_context=False)
    network.pretrained = replace(known, capabilities=capabilities)
    try:
        return score(network, *args)
    finally:
        network.pretrained = known


@pytest.mark.parametrize("name", [name for name in ALL if ALL[name].causal and name not in NO_HEAD])
def test_likelihoods__prompts_that_share_a_beginning__as_if_each_ran_whole(
    name: str, tiny_model: Callable[[str], str]
) -> None:
    network = network_of(load_pretrained(tiny_model(name)))
    assert network.pretrained.capabilities.supports_context == ALL[name].packs
    prompts, shared = prompts_of(network)
    assert len(shared) > 2 * WINDOW
    expected = score_whole(network, prompts, PHRASES)
    for given in (shared, ()):
        got = score(network, prompts, PHRASES, given)
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-4)
    single = [phrase[:1] for phrase in PHRASES]  # no tree
    np.testing.assert_allclose(
        score(network, prompts, single, shared),
        score_whole(network, prompts, single),
        rtol=1e-5,
        atol=1e-4,
    )


def test_likelihoods__more_beginnings_than_a_tree_holds__in_several(
    tiny_llama: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = network_of(load_pretrained(tiny_llama))
    prompts, shared = prompts_of(network)
    expected = score(network, prompts, PHRASES, shared)
    monkeypatch.setattr(module, "_MOST_BEGINNINGS", 3)
    got = score(network, prompts, PHRASES, shared)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-4)


def test_likelihoods__half_precision__near_those_of_full(tiny_llama: str) -> None:
    pretrained = load_pretrained(tiny_llama)
    full = network_of(pretrained)
    half = TextNetwork(pretrained, full.spec, torch.bfloat16, full.device)
    prompts, shared = prompts_of(full)
    expected = score(full, prompts, PHRASES, shared)
    np.testing.assert_allclose(score(half, prompts, PHRASES, shared), expected, rtol=0.05, atol=0.3)


@pytest.mark.parametrize("shared", [SHARED, SHARED + "x"])  # the next differs from text to text
def test_shared_beginning__two_calls__runs_once(
    shared: str, tiny_llama: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    skgpt.clear_cache()
    monkeypatch.setenv("SKGPT_CACHE_MEMORY", "0")  # as a server has it: nothing of texts is kept
    network = network_of(load_pretrained(tiny_llama))
    prompts, _ = prompts_of(network)
    given = tuple(shared.encode())
    seen: list[int] = []
    network.trunk.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["boundaries"].lengths[0]),
        with_kwargs=True,
    )
    for _ in range(2):
        score(network, prompts, PHRASES, given)
    assert [n for n in seen if n == len(SHARED)] == [len(SHARED)]
    lengths = prompts.lengths - len(SHARED)
    assert max(n for n in seen if n != len(SHARED)) < lengths.max() + 6 * len(PHRASES)
    # Fewer than are worth keeping, and prompts of which nothing would be left.
    assert module._n_shared(prompts, given[:5]) == 0
    assert module._n_shared(prompts, tuple(prompts.row(0).tolist())) < prompts.lengths[0]
