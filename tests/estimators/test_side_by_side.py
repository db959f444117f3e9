"""A text's probabilities depend on the text and the model alone.

Neither the texts beside it nor other fits matter: models that are alive at once share the base, and
touch nothing of each other.
"""

import gc
import json
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.base import clone
from transformers import AutoModel

import skgpt
from skgpt import GPTTextClassifier
from skgpt.pretrained.loading import load_pretrained
from skgpt.testing import tiny_gpt
from skgpt.testing.tiny import _ARCHITECTURES as ARCHITECTURES
from tests.helpers import Fitted, make, make_text_data

X, y = make_text_data(n_classes=2)
# How many layers each of two models trains, and its precision.
pairs = pytest.mark.parametrize(
    ("layers", "precision"),
    [((1, "all"), "bf16"), ((0, 1), "fp32"), ((2, 1), "bf16")],
)


@pytest.fixture(autouse=True)
def empty_stores() -> None:
    skgpt.clear_cache()


def two(folder: str, layers: tuple[Any, Any], precision: str) -> list[GPTTextClassifier]:
    """Return estimators that differ in depth of training, seed and learning rate."""
    first, second = layers
    other = {"trainable_layers": second, "learning_rate": 3e-3, "random_state": 1}
    return [
        make(folder, max_epochs=3, precision=precision, **options)
        for options in ({"trainable_layers": first}, other)
    ]


def alone(pair: list[GPTTextClassifier], work: Callable[[GPTTextClassifier], Any]) -> list[Any]:
    """Return what each gives where no store holds anything of the other."""
    given = []
    for clf in pair:
        skgpt.clear_cache()
        given.append(work(clone(clf)))
    skgpt.clear_cache()
    return given


def assert_base_untouched(folder: str, fitted: list[GPTTextClassifier]) -> None:
    trunk = AutoModel.from_pretrained(folder, dtype="auto")  # read anew, past every store
    fresh = dict(trunk.named_parameters()) | dict(trunk.named_buffers())
    networks = [clf._model.network for clf in fitted]
    for trunk, learnable in [
        (load_pretrained(folder).trunk, {}),
        *((network.trunk, network.learnable) for network in networks),
    ]:
        for name, tensor in (*trunk.named_parameters(), *trunk.named_buffers()):
            assert name in learnable or torch.equal(tensor, fresh[name].to(tensor.dtype)), name


@pairs
def test_two_models__trained_in_turns__are_each_what_they_are_alone(
    layers: tuple[Any, Any], precision: str, tiny_llama: str
) -> None:
    def turn(clf: GPTTextClassifier) -> np.ndarray:
        return clf.partial_fit(X, y, classes=["money", "sport"]).predict_proba(X)

    pair = two(tiny_llama, layers, precision)
    expected = alone(pair, lambda clf: [turn(clf) for _ in range(3)])
    for i in range(3):
        for clf, probas in zip(pair, expected, strict=True):
            np.testing.assert_array_equal(turn(clf), probas[i])
    # And neither was moved by the other's last turn.
    np.testing.assert_array_equal(pair[0].predict_proba(X), expected[0][-1])
    assert np.abs(expected[0][-1] - expected[1][-1]).max() > 1e-3
    assert_base_untouched(tiny_llama, pair)


@pairs
def test_two_models__fitted_and_asked_in_two_threads__are_each_what_they_are_alone(
    layers: tuple[Any, Any], precision: str, tiny_llama: str
) -> None:
    pair = two(tiny_llama, layers, precision)
    expected = alone(pair, lambda clf: clf.fit(X, y).predict_proba(X))
    threads_before = torch.get_num_threads()
    together = Barrier(2)  # both are to ask for the base, and the states behind it, at once

    def fit(clf: GPTTextClassifier) -> list[np.ndarray]:
        together.wait()
        clf.fit(X, y)
        return [clf.predict_proba(X) for _ in range(3)]

    with ThreadPoolExecutor(2) as threads:
        for found, wanted in zip(threads.map(fit, pair), expected, strict=True):
            for proba in found:
                np.testing.assert_array_equal(proba, wanted)
    assert_base_untouched(tiny_llama, pair)
    assert torch.get_num_threads() == threads_before


def test_two_models__one_deleted_and_stores_cleared__the_other_stays(tiny_llama: str) -> None:
    one, other = two(tiny_llama, (1, "all"), "bf16")
    before = other.fit(X, y).predict_proba(X)
    trunk = weakref.ref(one.fit(X, y)._model.network.trunk)
    del one
    gc.collect()
    assert trunk() is None  # nothing of the other holds it
    skgpt.clear_cache()
    np.testing.assert_array_equal(other.predict_proba(X), before)


# ---- One model, and texts beside each other

# What neighbours may move a probability by: fp32, and bf16 with its 8 bits of mantissa.
BOUND = {"fp32": 1e-5, "bf16": 0.02}
LONG = "a long neighbour " * 40


def fitted(folder: str, precision: str, **options: Any) -> GPTTextClassifier:
    data = make_text_data(n_classes=3)
    clf = make(folder, precision=precision, trainable_layers="all", **options)
    return clf.fit(data.X, data.y)


@pytest.mark.first_tier(architecture=["llama", "gpt2", "bert"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_predict_proba__neighbours_batch_and_position__do_not_matter(
    architecture: str, precision: str, tiny_model: Callable[[str], str]
) -> None:
    clf = fitted(tiny_model(architecture), precision, max_epochs=2)
    X = list(make_text_data(n_classes=3, n_per_class=6, seed=1).X)
    together = clf.predict_proba(X)
    alone = np.concatenate([clf.predict_proba([text]) for text in X])
    among = clf.predict_proba([LONG, "", *X, LONG, *["x"] * 50])
    among, equal = among[2:-51], among[-50:]
    backwards = clf.predict_proba(X[::-1])[::-1]
    assert np.ptp(equal, axis=0).max() < BOUND[precision]
    for other in (alone, among, backwards):
        assert np.abs(other - together).max() < BOUND[precision]


@pytest.mark.parametrize("pad", ["none", "eos"])
@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_predict_proba__no_pad_token_or_pad_is_eos__texts_that_end_in_it_are_like_any(
    pad: str, pooling: str, tmp_path: Path
) -> None:
    folder = tiny_gpt(tmp_path / "model")
    for name in ("config.json", "tokenizer_config.json"):
        path = Path(folder, name)
        settings = json.loads(path.read_text("utf-8"))
        eos = settings.get("eos_token_id" if name == "config.json" else "eos_token")
        key = "pad_token_id" if name == "config.json" else "pad_token"
        settings[key] = eos if pad == "eos" else None
        path.write_text(json.dumps(settings), "utf-8")
    clf = fitted(folder, "fp32", pooling=pooling, max_epochs=2)
    eos_text = clf._model.network.pretrained.tokenizer.hf.eos_token
    assert eos_text
    texts = ["goal match", f"goal match{eos_text}", eos_text, f"{eos_text} bank profit", ""]
    together = clf.predict_proba([*texts, LONG])[:-1]
    alone = np.concatenate([clf.predict_proba([text]) for text in texts])
    assert np.abs(together - alone).max() < 1e-5
    assert len(np.unique(together[:4].round(7), axis=0)) == 4  # each text counts as it is


def test_predict__four_threads__are_each_right(fitted_model: Callable[[str], Fitted]) -> None:
    clf = fitted_model("all layers").clf
    parts = [list(make_text_data(n_classes=3, seed=seed).X) for seed in range(8)]
    expected = [clf.predict_proba(part) for part in parts]
    with ThreadPoolExecutor(4) as threads:
        for _ in range(3):
            for got, want in zip(threads.map(clf.predict_proba, parts), expected, strict=True):
                assert np.array_equal(got, want)
