"""Windows of a text: its pooled state is their mean, to value, gradient and, if it fits, bit."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from skgpt.data.template import parse_template
from skgpt.data.tokenization import TextIds, Windows, tokenise, tokenise_windows
from skgpt.network.features import Averaged, CachedPooled, WholeTrunk, forward_over
from skgpt.network.layout import Layout
from skgpt.network.network import TextNetwork
from skgpt.pretrained.loading import load_pretrained
from skgpt.testing.tiny import _ARCHITECTURES as ARCHITECTURES
from skgpt.training.loop import raw_scores
from tests.network.test_network import build

ROOM = 20
TEXTS = ["short", "a text of just about three windows", "x", "one that is longer than these" * 4]
SHORT = ["short", "a few words", "x", "short"]


def network_of(folder: str, **options: Any) -> TextNetwork:
    network = build(load_pretrained(folder), **options)
    torch.nn.init.normal_(network.head.weight, generator=torch.Generator().manual_seed(0))
    return network


def windows_of(network: TextNetwork, texts: list[str] = TEXTS) -> Windows:
    tokenizer = network.pretrained.tokenizer
    max_length = ROOM + len(tokenizer.prefix_ids) + len(tokenizer.suffix_ids)
    return tokenise_windows([texts], parse_template(None, 1, None), tokenizer, max_length)


def run_over(network: TextNetwork, tokens: TextIds, budget: int = 64, memory: int = 2**30) -> Any:
    return forward_over(
        network, tokens, token_budget=budget, memory_budget=memory, progress=lambda *_: None
    )


def gradients(network: TextNetwork, scores: Tensor) -> list[Tensor | None]:
    learned = [p for p in network.parameters() if p.requires_grad]
    return list(torch.autograd.grad(scores.square().sum(), learned, allow_unused=True))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("trainable", ["all", 1, 0])
@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_forward__a_text_of_several_windows__has_the_mean_of_their_scores_as_texts(
    architecture: str, trainable: Any, pooling: str, tiny_model: Callable[[str], str]
) -> None:
    folder = tiny_model(architecture)
    if pooling == "last" and not load_pretrained(folder).capabilities.causal:
        pytest.skip("an encoder's last token sums up nothing")
    network = network_of(folder, trainable_layers=trainable, pooling=pooling)
    windows = windows_of(network)
    assert windows.counts[0] == 1 and windows.counts[1] == 3 and windows.counts[3] > 5
    forward = run_over(network, windows)
    assert isinstance(forward, CachedPooled if trainable == 0 else Averaged)
    rows = np.array([3, 0, 1])
    alone = WholeTrunk(network, windows.each)
    expected = torch.stack([alone(windows.of(rows[[i]])).mean(0) for i in range(3)])
    found = forward(rows)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        torch.testing.assert_close(forward(rows), expected, rtol=1e-4, atol=1e-4)
    for got, wanted in zip(gradients(network, found), gradients(network, expected), strict=True):
        if wanted is None:  # an encoder's unused pooler has no part in the scores
            assert got is None
        else:
            torch.testing.assert_close(got, wanted, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "bloom", "bert"])
@pytest.mark.parametrize("trainable", ["all", 1, 0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_forward__texts_that_fit__are_what_texts_are_to_the_bit(
    architecture: str, trainable: Any, dtype: torch.dtype, tiny_model: Callable[[str], str]
) -> None:
    network = network_of(tiny_model(architecture), trainable_layers=trainable, dtype=dtype)
    windows = windows_of(network, SHORT)
    cut = tokenise(SHORT, network.pretrained.tokenizer, int(windows.lengths.max()))
    rows = np.array([2, 0, 1])
    both = []
    for tokens in (windows, cut):
        scores = run_over(network, tokens)(rows)
        both.append([scores, *gradients(network, scores)])
    for found, expected in zip(*both, strict=True):
        assert (found is None) == (expected is None)
        assert found is None or torch.equal(found, expected)
    assert np.array_equal(
        raw_scores(network, windows, 64, 2**30), raw_scores(network, cut, 64, 2**30)
    )


@pytest.mark.parametrize("architecture", ["llama", "bloom"])
@pytest.mark.parametrize("trainable", ["all", 1, 0])
def test_raw_scores__a_text_far_longer_than_the_budget__runs_within_it(
    architecture: str,
    trainable: Any,
    tiny_model: Callable[[str], str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    network = network_of(tiny_model(architecture), trainable_layers=trainable)
    windows = windows_of(network, ["a chapter " * 300, "and a note"])
    at_once: list[int] = []
    layout_of = Layout.of

    def noting(lengths: Any, *args: Any) -> Layout:
        at_once.append(int(lengths.sum()))
        return layout_of(lengths, *args)

    monkeypatch.setattr(Layout, "of", noting)
    found = raw_scores(network, windows, 100, 0)  # no memory to keep anything in
    assert windows.lengths[0] > 5000
    assert at_once and max(at_once) <= 100
    monkeypatch.undo()
    whole = raw_scores(network, windows, 1_000_000, 0)
    np.testing.assert_allclose(found, whole, rtol=1e-4, atol=1e-5)


def test_raw_scores__the_same_long_text_twice__runs_once(
    tiny_llama: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = network_of(tiny_llama, trainable_layers="all")
    windows = windows_of(network, ["long text " * 9, "x", "long text " * 9])
    ran: list[int] = []
    pooled = Averaged.pooled
    monkeypatch.setattr(
        Averaged, "pooled", lambda self, rows: [ran.extend(rows), pooled(self, rows)][1]
    )
    scores = raw_scores(network, windows, 100, 2**30)
    assert sorted(ran) == [0, 1]
    assert np.array_equal(scores[0], scores[2])
