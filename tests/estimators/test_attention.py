"""The parameter `attention`: what is used, what is refused, and that a fit goes on with it.

That what it computes is exact: tests/trunk/test_architectures.py.
"""

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import skgpt
from skgpt import GPTTextClassifier, LoRA
from skgpt.exceptions import ContinuationError, ModelNotSupportedError
from tests.helpers import TextData, make

BIDIRECTIONAL = {"attention": "bidirectional", "n_layers": None, "max_epochs": 1}


@pytest.mark.parametrize(
    ("options", "used"),
    [
        ({}, "bidirectional"),
        ({"pooling": "last"}, "causal"),
        ({"trainable_layers": "all"}, "causal"),
        ({"trainable_layers": 0}, "causal"),
        ({"lora": LoRA(rank=2)}, "bidirectional"),
        ({"attention": "causal"}, "causal"),
        ({"attention": "bidirectional", "pooling": "last"}, "bidirectional"),
        ({"attention": "bidirectional", "trainable_layers": "all"}, "bidirectional"),
        ({"attention": "bidirectional", "trainable_layers": 0}, "causal"),
    ],
    ids=repr,
)
def test_attention__of_a_decoder__is_said_after_the_fit(
    options: dict[str, Any], used: str, tiny_llama: str, two_class_data: TextData
) -> None:
    X, y = two_class_data
    clf = make(tiny_llama, **{"n_layers": None, "max_epochs": 1, **options}).fit(X, y)
    assert clf.attention_ == used


def test_attention__of_an_encoder__is_bidirectional_and_nothing_else(
    tiny_model: Callable[[str], str], two_class_data: TextData
) -> None:
    folder = tiny_model("bert")
    for attention in ("auto", "bidirectional"):
        clf = make(folder, attention=attention, max_epochs=1).fit(*two_class_data)
        assert clf.attention_ == "bidirectional"
    with pytest.raises(ModelNotSupportedError, match=r"needs a decoder.*bert"):
        make(folder, attention="causal").fit(*two_class_data)


def test_attention__of_a_model_whose_layers_need_their_mask__is_causal(
    tiny_model: Callable[[str], str], two_class_data: TextData
) -> None:
    folder = tiny_model("gpt_neo")
    assert make(folder, max_epochs=1).fit(*two_class_data).attention_ == "causal"
    with pytest.raises(ModelNotSupportedError, match=r"needs a model.*gpt_neo.*GPTNeoModel"):
        make(folder, attention="bidirectional").fit(*two_class_data)


def test_attention__of_either_kind__reaches_predictions(
    tiny_llama: str, two_class_data: TextData
) -> None:
    X, y = two_class_data
    by_attention = {
        attention: make(tiny_llama, **{**BIDIRECTIONAL, "attention": attention}).fit(X, y)
        for attention in ("causal", "bidirectional")
    }
    scores = {name: clf.decision_function(X) for name, clf in by_attention.items()}
    assert not np.allclose(scores["causal"], scores["bidirectional"])


def test_bidirectional__kept_in_every_way__predicts_as_before(
    tiny_llama: str, two_class_data: TextData, tmp_path: Path
) -> None:
    X, y = two_class_data
    clf = make(tiny_llama, **BIDIRECTIONAL).fit(X, y)
    skgpt.save(clf, tmp_path / "saved")
    for again in (
        pickle.loads(pickle.dumps(clf)),
        copy.deepcopy(clf),
        skgpt.load(tmp_path / "saved"),
    ):
        assert again.attention_ == "bidirectional"
        np.testing.assert_array_equal(again.predict_proba(X), clf.predict_proba(X))


def test_bidirectional__goes_on__with_the_layers_that_were(
    tiny_llama: str, two_class_data: TextData
) -> None:
    X, y = two_class_data
    once = {**BIDIRECTIONAL, "attention": "auto", "learning_rate": 1e-30, "batch_size": 40}
    clf = make(tiny_llama, **once, head_learning_rate=1e-30, warm_start=True).fit(X, y)
    before = clf.decision_function(X)
    # "auto" alone would now be causal; the layer that learns anew stays as the others expect it.
    clf.set_params(trainable_layers="all").fit(X, y)
    assert clf.attention_ == "bidirectional"
    np.testing.assert_allclose(clf.decision_function(X), before, rtol=1e-4, atol=1e-6)
    clf.partial_fit(X, y)
    assert clf.attention_ == "bidirectional"
    with pytest.raises(ContinuationError, match="`attention` must be as it was, 'bidirectional'"):
        clf.set_params(attention="causal").fit(X, y)


def test_bidirectional__to_and_from_hugging_faces_format__is_refused_by_name(
    tiny_llama: str, two_class_data: TextData, tmp_path: Path
) -> None:
    X, y = two_class_data
    options = {**BIDIRECTIONAL, "pooling": "last"}
    with pytest.raises(ModelNotSupportedError, match="`attention` must be 'causal'"):
        make(tiny_llama, **options).fit(X, y).save_pretrained(tmp_path / "out")
    make(tiny_llama, **{**options, "attention": "auto"}).fit(X, y).save_pretrained(tmp_path / "out")
    with pytest.raises(ModelNotSupportedError, match="`attention` must be 'causal'"):
        GPTTextClassifier.from_pretrained(tmp_path / "out", attention="bidirectional")
    assert GPTTextClassifier.from_pretrained(tmp_path / "out").attention_ == "causal"
