"""Fitted models that are alive at once share the base, and touch nothing of each other."""

import gc
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from threading import Barrier
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.base import clone

import skgpt
from skgpt import GPTTextClassifier
from skgpt.network.network import TextNetwork
from skgpt.pretrained.loading import load_pretrained
from tests.helpers import TextData, make

FIRST_TIER = [((1, "all"), "bf16"), ((0, 1), "fp32")]
pairs = pytest.mark.parametrize(
    ("layers", "precision"),
    [
        pytest.param(*case, marks=[] if case in FIRST_TIER else [pytest.mark.thorough])
        for case in product([(1, "all"), (2, 1), (0, 1), (1, 1)], ["fp32", "bf16"])
    ],
)
N_TURNS = 3


@pytest.fixture(autouse=True)
def empty_stores() -> None:
    skgpt.clear_cache()


def two(folder: str, layers: tuple[Any, Any], **options: Any) -> list[GPTTextClassifier]:
    """Return estimators that differ in depth of training, seed and learning rate."""
    first, second = layers
    return [
        make(folder, trainable_layers=first, max_epochs=3, **options),
        make(
            folder, trainable_layers=second, max_epochs=3, learning_rate=3e-3, random_state=1
        ).set_params(**options),
    ]


def turn(clf: GPTTextClassifier, data: TextData) -> np.ndarray:
    X, y = data
    return clf.partial_fit(X, y, classes=["money", "sport"]).predict_proba(X)


def alone(pair: list[GPTTextClassifier], work: Callable[[GPTTextClassifier], Any]) -> list[Any]:
    """Return what each gives where no store holds anything of the other."""
    given = []
    for clf in pair:
        skgpt.clear_cache()
        given.append(work(clf))
    skgpt.clear_cache()
    return given


def fresh_tensors(folder: str) -> dict[str, torch.Tensor]:
    """Read the base anew, past every store."""
    from transformers import AutoModel

    trunk = AutoModel.from_pretrained(folder, dtype="auto")
    return dict(trunk.named_parameters()) | dict(trunk.named_buffers())


def assert_base_untouched(folder: str, fitted: list[GPTTextClassifier]) -> None:
    fresh = fresh_tensors(folder)
    trunk = load_pretrained(folder).trunk
    for name, tensor in (*trunk.named_parameters(), *trunk.named_buffers()):
        assert torch.equal(tensor, fresh[name]), name
    for clf in fitted:
        network: TextNetwork = clf._network
        frozen = [n for n, _ in network.trunk.named_parameters() if n not in network.learnable]
        assert bool(frozen) == (clf.trainable_layers != "all")
        for name in frozen:
            tensor = network.trunk.get_parameter(name)
            assert torch.equal(tensor, fresh[name].to(tensor.dtype)), name
        for name, buffer in network.trunk.named_buffers():
            assert torch.equal(buffer, fresh[name].to(buffer.dtype)), name


@pairs
def test_two_models__trained_in_turns__are_each_what_they_are_alone(
    layers: tuple[Any, Any], precision: str, tiny_llama: str, two_class_data: TextData
) -> None:
    def turns(clf: GPTTextClassifier) -> list[np.ndarray]:
        return [turn(clf, two_class_data) for _ in range(N_TURNS)]

    expected = alone(two(tiny_llama, layers, precision=precision), turns)
    one, other = two(tiny_llama, layers, precision=precision)
    for i in range(N_TURNS):
        for clf, probas in zip((one, other), expected, strict=True):
            np.testing.assert_array_equal(turn(clf, two_class_data), probas[i])
    # And neither was moved by the other's last turn.
    np.testing.assert_array_equal(one.predict_proba(two_class_data.X), expected[0][-1])
    assert np.abs(expected[0][-1] - expected[1][-1]).max() > 1e-3
    assert_base_untouched(tiny_llama, [one, other])


@pairs
def test_two_models__fitted_and_asked_in_two_threads__are_each_what_they_are_alone(
    layers: tuple[Any, Any], precision: str, tiny_llama: str, two_class_data: TextData
) -> None:
    X, y = two_class_data
    pair = two(tiny_llama, layers, precision=precision)
    expected = alone(pair, lambda clf: clone(clf).fit(X, y).predict_proba(X))
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


@pairs
def test_two_models__one_deleted_and_the_stores_emptied__the_other_predicts_as_before(
    layers: tuple[Any, Any], precision: str, tiny_llama: str, two_class_data: TextData
) -> None:
    X, y = two_class_data
    one, other = two(tiny_llama, layers, precision=precision)
    (before,) = alone([other], lambda clf: clf.fit(X, y).predict_proba(X))
    one.fit(X, y)
    np.testing.assert_array_equal(other.predict_proba(X), before)
    trunk = weakref.ref(one._network.trunk)
    del one
    gc.collect()
    assert trunk() is None  # nothing of the other holds it
    np.testing.assert_array_equal(other.predict_proba(X), before)
    skgpt.clear_cache()
    np.testing.assert_array_equal(other.predict_proba(X), before)
    # The base is read again for a third model, and the second goes on with its own.
    third = clone(other).fit(X, y)
    np.testing.assert_array_equal(third.predict_proba(X), before)
    np.testing.assert_array_equal(other.predict_proba(X), before)
    assert_base_untouched(tiny_llama, [other, third])
