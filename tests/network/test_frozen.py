"""States behind frozen layers: kept by text, shared by fits, and as good as computed anew."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.base import clone

import skgpt
from skgpt.data.tokenization import Tokens, tokenise
from skgpt.network.features import hidden_states, pooled_states
from skgpt.network.network import TextNetwork
from skgpt.pretrained.loading import load_pretrained
from skgpt.testing import tiny_gpt
from skgpt.testing.tiny import _ARCHITECTURES as ARCHITECTURES
from tests.helpers import TextData, make, make_text_data
from tests.network.test_network import build

TEXTS = ["short", "a somewhat longer text", "x", "the longest text of these four, by far", "x"]


@pytest.fixture(autouse=True)
def empty_stores() -> None:
    skgpt.clear_cache()


def states_info() -> Any:
    return skgpt.cache_info()["states on cpu"]


def tokens_of(network: TextNetwork, texts: list[str]) -> Tokens:
    return tokenise(texts, network.pretrained.tokenizer, 64)


def states_of(network: TextNetwork, texts: list[str], **options: Any) -> list[torch.Tensor]:
    settings: dict[str, Any] = {"token_budget": 30, "progress": lambda done, total: None}
    return hidden_states(network, tokens_of(network, texts), **{**settings, **options})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_hidden_states__from_the_store__are_those_of_each_text_alone(
    architecture: str, dtype: torch.dtype, tiny_model: Callable[[str], str]
) -> None:
    network = build(load_pretrained(tiny_model(architecture)), dtype=dtype)
    first = states_of(network, TEXTS)
    again = states_of(network, TEXTS[::-1])[::-1]
    assert all(one is two for one, two in zip(first, again, strict=True))
    skgpt.clear_cache()
    tolerance = 1e-5 if dtype == torch.float32 else 3e-2
    for text, state in zip(TEXTS, first, strict=True):
        (alone,) = states_of(network, [text])
        scale = float(alone.float().abs().max())
        assert state.dtype == alone.dtype
        torch.testing.assert_close(state, alone, rtol=0, atol=tolerance * scale)


def test_hidden_states__some_known_some_new__only_the_new_are_computed(tiny_llama: str) -> None:
    network = build(load_pretrained(tiny_llama))
    told: list[tuple[int, int]] = []
    states_of(network, TEXTS[:2], progress=lambda *done: told.append(done))
    assert told[-1][0] == told[-1][1] == len(tokens_of(network, TEXTS[:2]).ids)
    told.clear()
    states_of(network, TEXTS, progress=lambda *done: told.append(done))
    assert told[-1][1] == len(tokens_of(network, TEXTS[2:4]).ids)  # the fifth is the third
    told.clear()
    states_of(network, TEXTS, progress=lambda *done: told.append(done))
    assert told == []


def test_hidden_states__anything_upstream_that_differs__is_another_entry(
    tiny_llama: str, tmp_path: Path
) -> None:
    source = load_pretrained(tiny_llama)
    networks = [
        build(source),
        build(source, trainable_layers=2),
        build(source, dtype=torch.bfloat16),
        build(load_pretrained(tiny_gpt(tmp_path / "other", seed=1))),
    ]
    found = [states_of(network, TEXTS)[0] for network in networks]
    for i, one in enumerate(found):
        for two in found[i + 1 :]:
            assert not torch.equal(one.float(), two.float())
    # Deeper or shallower behind the frozen layers makes no difference to them.
    shallow = build(source, n_layers=3, trainable_layers=1)
    assert states_of(shallow, TEXTS)[0] is found[0]


def test_hidden_states__a_network_out_of_a_pickle__leaves_nothing_behind(
    tiny_llama: str, two_class_data: TextData
) -> None:
    import pickle

    X, y = two_class_data
    clf = make(tiny_llama, trainable_layers=1, max_epochs=1).fit(X, y)
    opened = pickle.loads(pickle.dumps(clf))
    skgpt.clear_cache()
    np.testing.assert_allclose(opened.predict_proba(X), clf.predict_proba(X), atol=1e-2)
    skgpt.clear_cache()
    opened.predict_proba(X)
    assert states_info()["entries"] == 0


def test_pooled_states__by_pooling__do_not_meet(tiny_llama: str) -> None:
    source = load_pretrained(tiny_llama)
    options: dict[str, Any] = {"token_budget": 30, "progress": lambda *done: None}
    pooled = []
    for pooling in ("mean", "last"):
        network = build(source, trainable_layers=0, pooling=pooling)
        pooled.append(pooled_states(network, tokens_of(network, TEXTS), **options))
    assert not torch.allclose(*pooled)


@pytest.mark.parametrize("trainable", [1, 0])
def test_fits__of_one_model__share_what_is_frozen(
    trainable: int, tiny_llama: str, two_class_data: TextData
) -> None:
    X, y = two_class_data
    clf = make(tiny_llama, trainable_layers=trainable, max_epochs=2)
    clone(clf).fit(X, y)
    misses = states_info()["misses"]
    second = clone(clf).set_params(learning_rate=1e-3).fit(X[:30], y[:30])
    second.predict(X)
    assert states_info()["misses"] == misses
    skgpt.clear_cache()
    cold = clone(clf).set_params(learning_rate=1e-3).fit(X[:30], y[:30])
    np.testing.assert_allclose(cold.predict_proba(X), second.predict_proba(X), atol=1e-2)


def test_predict__a_text_many_times__runs_once_and_is_right(tiny_llama: str) -> None:
    X, y = make_text_data(n_classes=2)
    seen: list[int] = []
    for trainable in ("all", 1, 0):
        clf = make(tiny_llama, trainable_layers=trainable, max_epochs=1, precision="fp32")
        clf.fit(X, y)
        many = [*X, X[3], "new", X[3], *X[::-1], "new"]
        seen.clear()
        forward = TextNetwork.score

        def counted(self: Any, pooled: torch.Tensor, forward: Any = forward) -> torch.Tensor:
            seen.append(len(pooled))
            return forward(self, pooled)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(TextNetwork, "score", counted)
            proba = clf.predict_proba(many)
        assert sum(seen) == len({*X, "new"})
        alone = np.concatenate([clf.predict_proba([text]) for text in many])
        np.testing.assert_allclose(proba, alone, atol=1e-5)


def test_fits__four_threads_with_one_store__are_each_right(
    tiny_llama: str, three_class_data: TextData
) -> None:
    X, y = three_class_data
    clf = make(tiny_llama, trainable_layers=1, max_epochs=2, precision="fp32")
    parts = [np.arange(start, 60, 2 + start % 2) for start in range(8)]

    def fit(rows: np.ndarray) -> np.ndarray:
        return clone(clf).fit(X[rows], y[rows]).predict_proba(X)

    expected = [fit(rows) for rows in parts]
    skgpt.clear_cache()
    with ThreadPoolExecutor(4) as threads:
        for got, want in zip(threads.map(fit, parts), expected, strict=True):
            np.testing.assert_allclose(got, want, atol=1e-4)
