"""LoRA behind the estimator: a parameter object that is never written to, pickles, searches."""

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from skgpt import GPTTextClassifier, LoRA
from skgpt.exceptions import ContinuationError, ModelNotSupportedError
from skgpt.saving.state import pack
from skgpt.tensor_files import to_bytes
from tests.helpers import TextData, global_random_state_unchanged, make, make_text_data

X, y = make_text_data(n_classes=2)


def with_lora(folder: str, **options: Any) -> GPTTextClassifier:
    fast = {"trainable_layers": "all", "learning_rate": 1e-2, "max_epochs": 4}
    return make(folder, **{"lora": LoRA(rank=4), **fast, **options})


@pytest.mark.first_tier(precision=["bf16"], pooling=["mean"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("pooling", ["mean", "last"])
@pytest.mark.parametrize("trainable", ["all", 1])
def test_fit__adapters__learn_and_pickle_to_what_they_are(
    trainable: Any, pooling: str, precision: str, tiny_llama: str, three_class_data: TextData
) -> None:
    X, y = three_class_data
    options = {"trainable_layers": trainable, "pooling": pooling, "precision": precision}
    clf = with_lora(tiny_llama, max_epochs=8, **options).fit(X, y)
    head = make(tiny_llama, trainable_layers=0, max_epochs=8, pooling=pooling).fit(X, y)
    assert clf.loss_curve_[-1] < head.loss_curve_[-1]
    assert clf.score(X, y) > 0.8
    again = pickle.loads(pickle.dumps(clf))
    assert np.array_equal(again.predict_proba(X), clf.predict_proba(X))
    assert again.lora.get_params() == clf.lora.get_params()


def test_fit__the_users_object__is_never_written_to(tiny_llama: str) -> None:
    lora = LoRA(rank=4, target_modules=["q_proj"])
    clf = with_lora(tiny_llama, lora=lora, max_epochs=1).fit(X, y)
    clf.set_params(lora__rank=2)
    assert lora.get_params() == LoRA(rank=4, target_modules=["q_proj"]).get_params()
    assert clf.lora.rank == 2
    clf.set_params(lora=lora, lora__alpha=3, max_epochs=2)
    assert (clf.lora.rank, clf.lora.alpha, clf.max_epochs) == (4, 3, 2)
    assert lora.alpha == 16


def test_set_params__adapters_while_lora_is_none__says_to_pass_one(tiny_llama: str) -> None:
    clf = make(tiny_llama)
    with pytest.raises(ValueError, match=r"`lora__rank` sets .* pass lora=LoRA\(\) first"):
        clf.set_params(lora__rank=8)
    assert clf.lora is None
    assert clf.set_params(lora=LoRA(), lora__rank=3).lora.rank == 3
    with pytest.raises(ValueError, match="Invalid parameter 'ranks'"):
        clf.set_params(lora__ranks=3)
    with pytest.raises(ValueError, match=r"which must be a LoRA\(\)\. Got 8"):
        make(tiny_llama, lora=8).set_params(lora__rank=4)


@pytest.mark.parametrize(
    ("lora", "words"),
    [
        (LoRA(rank=0), "'rank' parameter of LoRA must be an int"),
        (LoRA(dropout=1.0), "'dropout' parameter of LoRA"),
        (LoRA(target_modules=[]), r"`lora__target_modules` must .* Got \[\]"),
        (LoRA(target_modules=["q_proj", 3]), r"`lora__target_modules` must .* Got \['q_proj', 3\]"),
        (LoRA(target_modules=["q_proj", "v_prj"]), "Got 'v_prj', and those of"),
        (LoRA, "'lora' parameter of GPTTextClassifier must be"),
    ],
)
def test_fit__wrong_adapters__are_refused_and_lose_no_fitted_model(
    lora: Any, words: str, tiny_llama: str
) -> None:
    clf = with_lora(tiny_llama, max_epochs=1).fit(X, y)
    before = clf.predict_proba(X)
    with pytest.raises(ValueError, match=words):
        clf.set_params(lora=lora).fit(X, y)
    assert np.array_equal(clf.predict_proba(X), before)


def test_fit__4_bits_on_a_cpu__are_refused_by_name(tiny_llama: str) -> None:
    clf = with_lora(tiny_llama, lora=LoRA(quantize_base=4), device="cpu")
    with pytest.raises(ModelNotSupportedError, match="quantize_base` needs a CUDA device"):
        clf.fit(X, y)


def test_warm_start__adapters__goes_on_from_them(tiny_llama: str) -> None:
    clf = with_lora(tiny_llama, warm_start=True).fit(X, y)
    last = clf.loss_curve_[-1]
    still = {"learning_rate": 1e-12, "head_learning_rate": 1e-12}
    again = pickle.loads(pickle.dumps(clf)).set_params(**still).fit(X, y)
    assert again.loss_curve_[0] < 1.1 * last
    clf.set_params(lora__dropout=0.1).fit(X, y)  # what is dropped leaves nothing behind
    with pytest.raises(ContinuationError, match=r"`lora` must be as it was.*rank=2\)"):
        clf.set_params(lora__rank=2).fit(X, y)
    with pytest.raises(ContinuationError, match="`lora` must be as it was"):
        clf.set_params(lora=None).fit(X, y)


def test_warm_start__adapters_in_more_layers__begin_where_the_model_was(tiny_llama: str) -> None:
    clf = with_lora(tiny_llama, warm_start=True, trainable_layers=1).fit(X, y)
    before = clf.predict_proba(X)
    tiny_steps = {"learning_rate": 1e-12, "head_learning_rate": 1e-12, "max_epochs": 1}
    clf.set_params(trainable_layers="all", **tiny_steps).fit(X, y)
    np.testing.assert_allclose(clf.predict_proba(X), before, atol=1e-5)


def test_partial_fit__adapters_with_dropout__equals_fit_and_repeats(tiny_llama: str) -> None:
    options = {"lr_schedule": "constant", "warmup_ratio": 0.0, "max_epochs": 3}
    parts, whole, same, other = (
        with_lora(tiny_llama, lora=LoRA(rank=4, dropout=p), **options) for p in (0.3, 0.3, 0.3, 0.0)
    )
    with global_random_state_unchanged():
        for number in range(3):
            parts.partial_fit(X, y, classes=["money", "sport"] if number == 0 else None)
            parts = pickle.loads(pickle.dumps(parts))
        for clf in (whole, same, other):
            clf.fit(X, y)
    np.testing.assert_allclose(parts.predict_proba(X), whole.predict_proba(X), atol=1e-6)
    assert np.array_equal(whole.predict_proba(X), whole.predict_proba(X))  # off in predict
    assert np.array_equal(whole.predict_proba(X), same.predict_proba(X))
    networks = {to_bytes(pack(c._model).part("network")).tobytes() for c in (whole, same)}
    assert len(networks) == 1
    assert not np.allclose(other.predict_proba(X), whole.predict_proba(X), atol=1e-4)


@pytest.mark.parametrize(("architecture", "precision"), [("llama", "bf16"), ("gpt2", "fp32")])
def test_save_pretrained__adapters__are_merged(
    precision: str,
    architecture: str,
    tiny_model: Callable[[str], str],
    three_class_data: TextData,
    tmp_path: Path,
) -> None:
    from transformers import pipeline

    X, y = three_class_data
    wanted = {"llama": ["q_proj", "down_proj"], "gpt2": ["c_attn"]}[architecture]
    lora = LoRA(rank=2, target_modules=wanted)
    options = {"pooling": "last", "n_layers": 2, "trainable_layers": 1, "precision": precision}
    clf = with_lora(tiny_model(architecture), lora=lora, **options).fit(X, y)
    clf.save_pretrained(tmp_path / "out")
    rows = pipeline("text-classification", str(tmp_path / "out"), device="cpu")(list(X), top_k=None)
    by_label = [{found["label"]: found["score"] for found in row} for row in rows]
    found = np.array([[row[label] for label in clf.classes_] for row in by_label])
    atol = 1e-4 if precision == "fp32" else 0.05
    np.testing.assert_allclose(found, clf.predict_proba(X), atol=atol)
    opened = GPTTextClassifier.from_pretrained(tmp_path / "out", precision="fp32")
    np.testing.assert_allclose(opened.predict_proba(X), found, atol=1e-5)
    assert opened.lora is None
    assert "adapters of rank 2" in (tmp_path / "out" / "README.md").read_text("utf-8")
    adapted = GPTTextClassifier.from_pretrained(
        tmp_path / "out", precision="fp32", lora=LoRA(rank=2), warm_start=True
    )
    np.testing.assert_allclose(adapted.predict_proba(X), found, atol=1e-5)
    adapted.fit(X, y)
