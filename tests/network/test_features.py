"""Features of texts and windows: whatever is cached, the scores and gradients of every layer."""

import logging
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import Mock, call, patch

import numpy as np
import pytest
import torch
from torch import Tensor

import skgpt
from skgpt.data.template import parse_template
from skgpt.data.tokenization import Tokens, ranges, tokenise, tokenise_rows
from skgpt.network.features import CacheLevel, DiskCache, TextFeatures, cache_level, disk_room
from skgpt.network.layout import Layout
from skgpt.network.network import TextNetwork
from skgpt.pretrained.loading import load_pretrained
from skgpt.testing import tiny_gpt
from skgpt.testing.tiny import _ARCHITECTURES as ARCHITECTURES
from skgpt.training.loop import raw_scores
from tests.helpers import TextData, make
from tests.network.test_network import build

TEXTS = ["short", "a somewhat longer text", "x", "the longest text of these four, by far", "x"]
LONG = ["short", "a text of just about three windows", "x", "one that is longer than these" * 4]
WINDOW = 20  # tokens of a text's own
LEVELS = {"all": CacheLevel.TOKENS, 1: CacheLevel.HIDDEN, 0: CacheLevel.POOLED}


@pytest.fixture(autouse=True)
def empty_stores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("SKGPT_CACHE", str(tmp_path))
    skgpt.clear_cache()
    yield
    skgpt.clear_cache()  # lowered budgets too


def network_of(folder: str, trainable: Any = 1, **options: Any) -> TextNetwork:
    network = build(load_pretrained(folder), trainable_layers=trainable, **options)
    torch.nn.init.normal_(network.head.weight, generator=torch.Generator().manual_seed(0))
    return network


def tokens_of(network: TextNetwork, texts: list[str] = TEXTS) -> Tokens:
    return tokenise(texts, network.pretrained.tokenizer, 64)


def windows_of(network: TextNetwork, texts: list[str]) -> Tokens:
    tokenizer = network.pretrained.tokenizer
    max_length = WINDOW + len(tokenizer.prefix_ids) + len(tokenizer.suffix_ids)
    return tokenise_rows([texts], parse_template(None, 1, None), tokenizer, max_length, "windows")


def features_of(network: TextNetwork, tokens: Tokens, **options: Any) -> TextFeatures:
    return TextFeatures(network, tokens, **{"token_budget": 30, "memory_budget": 2**30, **options})


def scores_of(features: TextFeatures, rows: Any) -> Tensor:
    return features.network.score(features.pooled(np.asarray(rows)))


def whole(network: TextNetwork, tokens: Tokens) -> TextFeatures:
    return features_of(network, tokens, level=CacheLevel.TOKENS)


def gradients(network: TextNetwork, scores: Tensor) -> dict[str, Tensor | None]:
    learned = {**network.learnable, "head": network.head.weight}
    copies = [network.trunk.get_parameter(n) if n != "head" else p for n, p in learned.items()]
    grads = torch.autograd.grad(scores.square().sum(), copies, allow_unused=True)
    return dict(zip(learned, grads, strict=True))


def assert_same(network: TextNetwork, found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    wanted = gradients(network, expected)
    for name, grad in gradients(network, found).items():
        if wanted[name] is None:  # an encoder's unused pooler has no part in the scores
            assert grad is None, name
        else:
            torch.testing.assert_close(grad, wanted[name], rtol=1e-3, atol=1e-3, msg=name)


def hidden_of(network: TextNetwork, texts: list[str], **options: Any) -> list[Tensor]:
    features = features_of(network, tokens_of(network, texts), **options)
    assert features.level is CacheLevel.HIDDEN
    return features._hidden


# Cached or not, texts or windows: the same.


@pytest.mark.first_tier(pooling=["mean"], trainable=["all", 1, 0])
@pytest.mark.first_tier(architecture=["llama", "gpt2", "bert"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("trainable", ["all", 1, 0])
@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_features__a_text_of_several_windows__has_the_mean_of_their_scores_as_texts(
    architecture: str, trainable: Any, pooling: str, tiny_model: Callable[[str], str]
) -> None:
    folder = tiny_model(architecture)
    if pooling == "last" and not load_pretrained(folder).capabilities.causal:
        pytest.skip("an encoder's last token sums up nothing")
    network = network_of(folder, trainable, pooling=pooling)
    windows, rows = windows_of(network, LONG), np.array([3, 0, 1])
    n_windows = np.diff(windows.first)
    assert n_windows[0] == 1 and n_windows[1] == 3 and n_windows[3] > 5
    features = features_of(network, windows, token_budget=64)
    assert features.level is LEVELS[trainable]
    alone = whole(network, windows.run)
    expected = torch.stack(
        [scores_of(alone, ranges(windows.first, rows[[i]])).mean(0) for i in range(3)]
    )
    assert_same(network, scores_of(features, rows), expected)
    with torch.no_grad():  # in parts
        torch.testing.assert_close(scores_of(features, rows), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("architecture", "trainable"), [("llama", 1), ("bloom", "all")])
def test_raw_scores__a_text_far_longer_than_the_budget__runs_within_it(
    architecture: str,
    trainable: Any,
    tiny_model: Callable[[str], str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    network = network_of(tiny_model(architecture), trainable)
    windows = windows_of(network, ["a chapter " * 300, "and a note"])
    layout_of = Mock(wraps=Layout.of)
    monkeypatch.setattr(Layout, "of", layout_of)
    found = raw_scores(network, windows, 100, 0)  # no memory to keep anything in
    assert windows.lengths[0] > 5000
    assert max(told.args[0].sum() for told in layout_of.mock_calls) <= 100
    monkeypatch.undo()
    at_once_scores = raw_scores(network, windows, 1_000_000, 0)
    np.testing.assert_allclose(found, at_once_scores, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("trainable", ["all", 1, 0])
def test_raw_scores__a_text_many_times__runs_once_and_is_right(
    trainable: Any, tiny_llama: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = network_of(tiny_llama, trainable)
    alone = np.stack([raw_scores(network, tokens_of(network, [t]), 60, 2**30)[0] for t in TEXTS])
    score = Mock(wraps=network.score)
    monkeypatch.setattr(network, "score", score)
    many = [*range(5), 3, 0, 3]
    texts = [TEXTS[i] for i in many]
    for tokens in (tokens_of(network, texts), windows_of(network, texts)):
        score.reset_mock()
        scores = raw_scores(network, tokens, 60, 2**30)
        assert sum(len(told.args[0]) for told in score.mock_calls) == 4
        assert np.array_equal(scores[5:], scores[[3, 0, 3]])
    found = raw_scores(network, tokens_of(network, texts), 60, 2**30)
    np.testing.assert_allclose(found, alone[many], atol=1e-5)


# Which level.


@pytest.mark.parametrize("error", [None, IndexError, AttributeError, AssertionError, RuntimeError])
def test_features__a_trunk_that_cannot_be_split__runs_whole_and_right(
    error: type[Exception] | None, tiny_llama: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = network_of(tiny_llama, 1)
    tokens = tokens_of(network)
    expected = scores_of(whole(network, tokens), [0, 1])
    pooled = TextNetwork.pooled_from_hidden

    def wrong(self: TextNetwork, *args: Any) -> Tensor:
        # As an architecture would whose later blocks read more than the hidden states.
        if error is not None:
            raise error("not made for this")
        return pooled(self, *args) * 1.01

    monkeypatch.setattr(TextNetwork, "pooled_from_hidden", wrong)
    features = features_of(network, tokens)
    assert features.level is CacheLevel.TOKENS
    torch.testing.assert_close(scores_of(features, [0, 1]), expected)


# What the cache keeps, and for whom.


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("architecture", ["llama", "bloom"])
def test_hidden_states__from_the_store__are_those_of_each_text_alone(
    architecture: str, dtype: torch.dtype, tiny_model: Callable[[str], str]
) -> None:
    network = build(load_pretrained(tiny_model(architecture)), dtype=dtype)
    first = hidden_of(network, TEXTS)
    again = hidden_of(network, TEXTS[::-1])[::-1]
    assert all(one is two for one, two in zip(first, again, strict=True))
    skgpt.clear_cache()
    tolerance = 1e-5 if dtype == torch.float32 else 3e-2
    for text, state in zip(TEXTS, first, strict=True):
        (alone,) = hidden_of(network, [text])
        assert state.dtype == alone.dtype == dtype
        scale = float(alone.float().abs().max())
        torch.testing.assert_close(state, alone, rtol=0, atol=tolerance * scale)


def test_hidden_states__some_known_some_new__only_the_new_are_run_and_told(tiny_llama: str) -> None:
    network = network_of(tiny_llama, 1)
    progress = Mock()
    hidden_of(network, TEXTS[:2], progress=progress)
    n_tokens = len(tokens_of(network, TEXTS[:2]).ids)
    assert progress.call_args == call(n_tokens, n_tokens)
    done = [told.args[0] for told in progress.mock_calls]
    assert done == sorted(set(done))
    hidden_of(network, TEXTS, progress=progress)
    assert progress.call_args.args[1] == len(tokens_of(network, TEXTS[2:4]).ids)  # x is there twice
    progress.reset_mock()
    hidden_of(network, TEXTS, progress=progress)
    assert not progress.mock_calls


def test_hidden_states__anything_else_upstream__is_another(tiny_llama: str, tmp_path: Path) -> None:
    networks = [
        network_of(tiny_llama, 1),
        network_of(tiny_llama, 2),
        network_of(tiny_llama, 1, dtype=torch.bfloat16),
        network_of(tiny_gpt(tmp_path / "other", seed=1), 1),
    ]
    found = [hidden_of(network, TEXTS)[0] for network in networks]
    for i, one in enumerate(found):
        for two in found[i + 1 :]:
            assert not torch.equal(one.float(), two.float())
    # Deeper or shallower behind the frozen layers makes no difference to them.
    assert hidden_of(network_of(tiny_llama, 1, n_layers=3), TEXTS)[0] is found[0]


@pytest.mark.parametrize("in_memory", [True, False])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.first_tier(architecture=["llama"], in_memory=[True])
def test_hidden_states__of_texts_that_a_shallower_fit_ran__come_from_its_states(
    architecture: str, in_memory: bool, tiny_model: Callable[[str], str]
) -> None:
    folder = tiny_model(architecture)
    shallow, deep = network_of(folder, 2), network_of(folder, 1)
    assert (shallow.spec.n_frozen, deep.spec.n_frozen) == (1, 2)
    expected = hidden_of(deep, TEXTS)
    skgpt.clear_cache()
    room = {} if in_memory else {"memory_budget": 0, "disk_budget": 2**30}
    hidden_of(shallow, TEXTS[:3], **room)
    cache_level(deep, tokens_of(deep), 2**30)  # probes whether it can be split
    with patch.object(deep, "run_frozen", wraps=deep.run_frozen) as run_frozen:
        found = hidden_of(deep, TEXTS)
    ((ids_T, _),) = [called.args for called in run_frozen.mock_calls]
    assert ids_T.tolist() == tokens_of(deep, TEXTS[3:4]).ids.tolist()
    for state, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(state, wanted, rtol=1e-5, atol=1e-5)


def test_pooled_states__by_pooling__do_not_meet(tiny_llama: str) -> None:
    networks = [network_of(tiny_llama, 0, pooling=pooling) for pooling in ("mean", "last")]
    pooled = [features_of(n, tokens_of(n)).pooled(np.arange(5)) for n in networks]
    assert not torch.allclose(*pooled)


@pytest.mark.parametrize("trainable", [1, 0])
def test_features__not_shared__leave_nothing_behind(trainable: int, tiny_llama: str) -> None:
    network = network_of(tiny_llama, trainable)
    tokens = tokens_of(network)
    features = features_of(network, tokens, shared=False)
    assert "states on cpu" not in skgpt.cache_info() or states_info()["entries"] == 0
    assert_same(network, scores_of(features, [1, 2]), scores_of(whole(network, tokens), [1, 2]))


def states_info() -> Any:
    return skgpt.cache_info()["states on cpu"]


def test_predict__a_network_out_of_a_pickle__leaves_no_states_behind(
    tiny_llama: str, two_class_data: TextData
) -> None:
    X, y = two_class_data
    clf = make(tiny_llama, trainable_layers=1, max_epochs=1).fit(X, y)
    opened = pickle.loads(pickle.dumps(clf))
    skgpt.clear_cache()
    np.testing.assert_allclose(opened.predict_proba(X), clf.predict_proba(X), atol=1e-2)
    skgpt.clear_cache()
    opened.predict_proba(X)
    assert states_info()["entries"] == 0


# On disk, beyond what memory holds.


def test_disk_room__no_folder_to_ask__has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    assert disk_room() > 0
    monkeypatch.setattr(Path, "exists", Mock(side_effect=PermissionError(13, "denied")))
    assert disk_room() == 0


@pytest.mark.parametrize(
    ("memory_budget", "dtype"), [(0, torch.float16), (0, torch.bfloat16), (3000, torch.float32)]
)
def test_features__states_beyond_memory__lie_on_disk_and_change_nothing(
    memory_budget: int,
    dtype: torch.dtype,
    tiny_llama: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("skgpt.network.features._FILE_BYTES", 2_000)  # several files
    network = network_of(tiny_llama, 1, dtype=dtype)
    tokens, rows = tokens_of(network), [3, 0, 2]
    expected = scores_of(features_of(network, tokens, shared=False), rows)
    budgets = {"memory_budget": memory_budget, "disk_budget": 2**30}
    for _ in range(2):  # computed, and found in the stores
        features = features_of(network, tokens, **budgets)
        assert features.level is CacheLevel.HIDDEN
        assert torch.equal(scores_of(features, rows), expected)
    info = skgpt.cache_info()
    in_memory, on_disk = (info[f"states on {place}"] for place in ("cpu", "disk"))
    assert in_memory["bytes"] <= memory_budget + 1200 * in_memory["entries"]  # with their keys
    assert in_memory["entries"] + on_disk["entries"] == len(set(TEXTS))
    assert bool(in_memory["entries"]) == bool(memory_budget)
    assert on_disk["hits"] == on_disk["entries"]
    assert list((tmp_path / "states").iterdir()) == []


def test_hidden_states__those_in_memory_already__take_up_room_too(tiny_llama: str) -> None:
    network = network_of(tiny_llama, 1)
    known, disk = ["the goal", "a match"], {"disk_budget": 2**30}
    in_memory = sum(state.nbytes for state in hidden_of(network, known))
    hidden_of(network, [*known, "the bank"], memory_budget=in_memory, **disk)
    assert skgpt.cache_info()["states on disk"]["entries"] == 1
    hidden_of(network, [*known, "a market"], memory_budget=2 * in_memory, **disk)
    assert skgpt.cache_info()["states on disk"]["entries"] == 1


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("full of states"),
        RuntimeError("DefaultCPUAllocator: not enough memory"),
    ],
)
def test_hidden_states__memory_runs_out_while_they_are_copied__the_rest_goes_to_disk(
    error: RuntimeError, tiny_llama: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    copied: list[Tensor] = []
    clone = Tensor.clone

    def copy(state: Tensor) -> Tensor:
        if len(copied) == 2:
            raise error
        copied.append(clone(state))
        return copied[-1]

    network = network_of(tiny_llama, 1)
    expected = hidden_of(network, TEXTS, shared=False)
    monkeypatch.setattr(Tensor, "clone", copy)
    found = hidden_of(network, TEXTS)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    info = skgpt.cache_info()
    assert [info[f"states on {place}"]["entries"] for place in ("cpu", "disk")] == [2, 2]


def test_features__a_full_disk__run_all_layers_and_say_so(
    tiny_llama: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    full = Mock(side_effect=OSError(28, "No space left on device"))
    monkeypatch.setattr("skgpt.network.features.tempfile.TemporaryFile", full)
    network = network_of(tiny_llama, 1)
    with caplog.at_level(logging.WARNING):
        tokens = tokens_of(network)
        features = features_of(network, tokens, memory_budget=0, disk_budget=2**30)
    assert features.level is CacheLevel.TOKENS
    assert "No space left" in caplog.text
    assert torch.equal(scores_of(features, [1]), scores_of(whole(network, tokens), [1]))


def test_predict__more_texts_than_memory_holds_states_of__writes_nothing(
    tiny_llama: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = network_of(tiny_llama, 1)
    tokens = tokens_of(network)
    expected = raw_scores(network, tokens, 60, 2**30)
    skgpt.clear_cache()
    monkeypatch.setattr(DiskCache, "add", None)
    np.testing.assert_allclose(raw_scores(network, tokens, 60, 4000), expected, atol=1e-4)
    assert states_info()["entries"] == 0


def test_states_on_disk__of_another_device__are_others(
    tiny_llama: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = network_of(tiny_llama, 1)
    for device in ("cpu", "cpu:0"):  # the same place by two names
        monkeypatch.setattr(network, "device", torch.device(device))
        hidden_of(network, TEXTS, memory_budget=0, disk_budget=2**30)
    assert skgpt.cache_info()["states on disk"]["entries"] == 2 * len(set(TEXTS))
