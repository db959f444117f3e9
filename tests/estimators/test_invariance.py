"""A text's probabilities depend on the text alone; predict and fit from several threads."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.base import clone

from skgpt import GPTTextClassifier
from skgpt.testing.tiny import _ARCHITECTURES as ARCHITECTURES
from tests.helpers import TextData, make, make_text_data

# What neighbours may move a probability by: fp32, and bf16 with its 8 bits of mantissa.
BOUND = {"fp32": 1e-5, "bf16": 0.02}
LONG = "a long neighbour " * 40


def fitted(folder: str, precision: str, **options: Any) -> GPTTextClassifier:
    data = make_text_data(n_classes=3)
    clf = make(folder, precision=precision, trainable_layers="all", **options)
    return clf.fit(data.X, data.y)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_predict_proba__neighbours_batch_and_position__do_not_matter(
    architecture: str, precision: str, tiny_model: Callable[[str], str]
) -> None:
    clf = fitted(tiny_model(architecture), precision, max_epochs=2)
    X = list(make_text_data(n_classes=3, n_per_class=6, seed=1).X)
    together = clf.predict_proba(X)
    alone = np.concatenate([clf.predict_proba([text]) for text in X])
    among = clf.predict_proba([LONG, "", *X, LONG, *["x"] * 50])[2:-51]
    backwards = clf.predict_proba(X[::-1])[::-1]
    for other in (alone, among, backwards):
        assert np.abs(other - together).max() < BOUND[precision]


@pytest.mark.parametrize("pad", ["none", "eos"])
@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_predict_proba__no_pad_token_or_pad_is_eos__texts_that_end_in_it_are_like_any(
    pad: str, pooling: str, tmp_path: Path
) -> None:
    import json

    from skgpt.testing import tiny_gpt

    folder = tiny_gpt(tmp_path / "model")
    for name in ("config.json", "tokenizer_config.json"):
        path = Path(folder, name)
        settings = json.loads(path.read_text("utf-8"))
        eos = settings.get("eos_token_id" if name == "config.json" else "eos_token")
        key = "pad_token_id" if name == "config.json" else "pad_token"
        settings[key] = eos if pad == "eos" else None
        path.write_text(json.dumps(settings), "utf-8")
    clf = fitted(folder, "fp32", pooling=pooling, max_epochs=2)
    eos_text = clf._network.pretrained.tokenizer.hf.eos_token
    assert eos_text
    texts = ["goal match", f"goal match{eos_text}", eos_text, f"{eos_text} bank profit", ""]
    together = clf.predict_proba([*texts, LONG])[:-1]
    alone = np.concatenate([clf.predict_proba([text]) for text in texts])
    assert np.abs(together - alone).max() < 1e-5
    assert len(np.unique(together[:4].round(7), axis=0)) == 4  # each text counts as it is


def test_predict__identical_texts__get_identical_probabilities(tiny_llama: str) -> None:
    clf = fitted(tiny_llama, "fp32", max_epochs=1)
    proba = clf.predict_proba(["same text", LONG, "same text", "other", "same text"])
    assert np.abs(proba[[2, 4]] - proba[0]).max() < 1e-6


def test_predict__four_threads_at_once__are_each_right(tiny_llama: str) -> None:
    clf = fitted(tiny_llama, "fp32", max_epochs=2)
    parts = [list(make_text_data(n_classes=3, seed=seed).X) for seed in range(8)]
    expected = [clf.predict_proba(part) for part in parts]
    with ThreadPoolExecutor(4) as threads:
        for _ in range(3):
            for got, want in zip(threads.map(clf.predict_proba, parts), expected, strict=True):
                assert np.array_equal(got, want)


@pytest.mark.parametrize("trainable", ["all", 1, 0])
def test_fit__four_threads_at_once__are_each_right(
    trainable: Any, tiny_llama: str, two_class_data: TextData
) -> None:
    X, y = two_class_data
    threads_before = torch.get_num_threads()
    clf = make(tiny_llama, trainable_layers=trainable, max_epochs=2)
    seeds = [0, 1, 2, 3]

    def fit(seed: int) -> np.ndarray:
        return clone(clf).set_params(random_state=seed).fit(X, y).predict_proba(X)

    expected = [fit(seed) for seed in seeds]
    with ThreadPoolExecutor(4) as threads:
        for got, want in zip(threads.map(fit, seeds), expected, strict=True):
            assert np.array_equal(got, want)
    assert torch.get_num_threads() == threads_before


def test_predict__while_the_same_estimator_is_fitted_again__is_one_model_or_the_other(
    tiny_llama: str, two_class_data: TextData
) -> None:
    X, y = two_class_data
    clf = make(tiny_llama, max_epochs=2).fit(X, y)
    old = clf.predict_proba(X)
    with ThreadPoolExecutor(1) as threads:
        running = threads.submit(clf.set_params(random_state=1, max_epochs=8).fit, X, y)
        seen = [clf.predict_proba(X) for _ in range(10)]
        running.result()
    new = clf.predict_proba(X)
    assert not np.array_equal(old, new)
    assert all(np.array_equal(p, old) or np.array_equal(p, new) for p in seen)
