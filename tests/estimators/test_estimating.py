"""`plan`: what it counts is what a fit then does, and nothing is changed by it."""

import json
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest

from skgpt import GPTTextClassifier, LoRA, cache_info
from skgpt.cost import FitEstimate
from skgpt.exceptions import ContinuationError
from skgpt.pretrained.loading import load_pretrained
from skgpt.training.callbacks import TrainingCallback
from tests.helpers import TextData, global_random_state_unchanged, make, make_text_data

X, y = DATA = make_text_data(n_classes=2)

WAYS: dict[str, dict[str, Any]] = {
    "all": {"trainable_layers": "all"},
    "last": {"trainable_layers": 1},
    "cut": {"trainable_layers": 1, "n_layers": 2},
    "head": {"trainable_layers": 0},
    "adapters": {"lora": LoRA(rank=2)},
    "head first": {"trainable_layers": 1, "head_first_epochs": 2},
}


def lengths_of(folder: str, texts: Any) -> np.ndarray[Any, Any]:
    encoder = load_pretrained(folder).tokenizer
    special = len(encoder.prefix_ids) + len(encoder.suffix_ids)
    return np.array([len(ids) + special for ids in encoder.encode(list(texts))])


def test_plan__tokens__are_those_of_the_tokenizer(tiny_llama: str) -> None:
    whole = lengths_of(tiny_llama, X)
    limit = int(np.median(whole))
    estimate = make(tiny_llama, max_length=limit).plan(X, y)
    assert estimate.n_texts == len(X)
    assert estimate.n_tokens == np.minimum(whole, limit).sum()
    assert estimate.n_cut == (whole > limit).sum() > 0
    assert estimate.tokens_cut == np.maximum(0, whole - limit).sum()
    assert estimate.share_cut == estimate.n_cut / len(X)
    assert estimate.share_of_tokens_cut == pytest.approx(estimate.tokens_cut / whole.sum())
    assert estimate.tokens_per_text["min"] == whole.min()
    assert estimate.tokens_per_text["50 %"] == np.median(whole)
    assert estimate.tokens_per_text["max"] == whole.max()
    with_room = make(tiny_llama).plan(X)
    assert (with_room.n_cut, with_room.tokens_cut) == (0, 0)
    assert "none at max_length=64" in repr(with_room)
    assert not any("cut" in line for line in with_room.advice)


@pytest.mark.parametrize("way", WAYS)
def test_plan__weights_and_steps__are_those_of_the_fit(
    way: str, tiny_llama: str, three_class_data: TextData, monkeypatch: pytest.MonkeyPatch
) -> None:
    noting = Mock(spec=TrainingCallback, on_epoch=Mock(return_value=False))
    monkeypatch.setattr(GPTTextClassifier, "_training_callbacks", lambda *_: [noting])
    clf = make(tiny_llama, **{"max_epochs": 2, "trainable_layers": "all", **WAYS[way]})
    estimate = clf.plan(*three_class_data)
    assert not noting.mock_calls
    network = clf.fit(*three_class_data)._model.network
    learned = sum(tensor.numel() for tensor in network.learnable.values())
    assert estimate.trainable_weights == learned + network.head.weight.numel()
    assert estimate.frozen_weights == sum(p.numel() for p in network.trunk.parameters()) - learned
    assert estimate.n_steps == noting.on_step.call_count
    assert estimate.n_epochs == clf.n_iter_
    assert estimate.n_layers == network.spec.n_layers


@pytest.mark.parametrize("max_epochs", [2, "auto"])
def test_plan__rows_held_out__steps_are_of_all_epochs(max_epochs: Any, tiny_llama: str) -> None:
    options = {"early_stopping": True, "n_iter_no_change": 99, "validation_fraction": 0.25}
    clf = make(tiny_llama, max_epochs=max_epochs, **options)
    estimate = clf.plan(X, y)
    assert estimate.n_epochs == clf.fit(X, y).n_iter_
    assert estimate.n_held_out == 10
    assert estimate.n_steps == estimate.n_epochs * 4  # of 30 rows in batches of 8
    assert "at most" in repr(estimate)


def test_plan__unfitted__leaves_no_trace(
    tiny_llama: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SKGPT_CACHE", str(tmp_path))
    generator = np.random.RandomState(3)
    clf = make(tiny_llama, random_state=generator, checkpoint_dir=tmp_path / "checkpoints")
    clf.plan(X, y)  # loads the model
    before, state = dict(vars(clf)), generator.get_state()[1].tolist()
    kept = {name: info["entries"] for name, info in cache_info().items()}
    with global_random_state_unchanged():
        clf.plan(X, y)
        make(tiny_llama, random_state=None, lora=LoRA(dropout=0.5)).plan(X, y)
    assert vars(clf) == before
    assert generator.get_state()[1].tolist() == state
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    states = [name for name in kept if name.startswith("hidden states")]
    assert {name: cache_info()[name]["entries"] for name in states} == {
        name: kept[name] for name in states
    }


def test_plan__fitted__changes_nothing(tiny_llama: str, three_class_data: TextData) -> None:
    clf = make(tiny_llama, precision="fp32", max_epochs=2).fit(X, y)
    proba, attributes = clf.predict_proba(X), dict(vars(clf))
    estimate = clf.plan(*three_class_data)
    assert estimate.n_texts == 60
    assert vars(clf) == attributes
    assert np.array_equal(clf.predict_proba(X), proba)
    assert np.array_equal(clf.fit(X, y).predict_proba(X), proba)


@pytest.mark.parametrize("options", [{}, {"trainable_layers": 0, "long_text": "windows"}])
def test_plan__texts_seen__frozen_layers_are_done(options: dict[str, Any], tiny_llama: str) -> None:
    X, y = (part[:20] for part in DATA)
    seen = [f"{text} once more" for text in X]
    clf = make(tiny_llama, max_epochs=1, max_length=24, **options)
    assert clf.plan(seen, y).seconds["frozen_layers"] > 0
    estimate = clf.fit(seen, y).plan(seen, y)
    assert estimate.seconds["frozen_layers"] == 0
    assert estimate.seconds_per_1000_predictions > 0


def test_plan__no_labels__assumes_two_classes(tiny_llama: str, three_class_data: TextData) -> None:
    X, y = three_class_data
    clf = make(tiny_llama, early_stopping=True, class_weight={"space": 2.0})
    without, with_labels = clf.plan(X), clf.set_params(class_weight=None).plan(X, y)
    assert without.classes_assumed == 2 and with_labels.classes_assumed is None
    assert "2 classes are assumed" in repr(without)
    assert "assumed" not in repr(with_labels) + with_labels._repr_html_()
    width = with_labels.trainable_weights - without.trainable_weights
    assert width == load_pretrained(tiny_llama).trunk.config.hidden_size  # the head's third row


@pytest.mark.parametrize("multilabel", [False, True])
def test_plan__warm_start_without_labels__takes_the_classes_of_the_fit(
    multilabel: bool, tiny_llama: str, three_class_data: TextData
) -> None:
    X, y = three_class_data
    labels = (y[:, None] == np.unique(y)).astype(int) if multilabel else y
    clf = make(tiny_llama, warm_start=True, max_epochs=1).fit(X, labels)
    estimate = clf.plan(X)
    assert estimate.classes_assumed is None
    assert estimate.trainable_weights == clf.plan(X, labels).trainable_weights
    with pytest.raises(ContinuationError, match="trainable_layers"):
        clf.set_params(trainable_layers=0).plan(X)


@pytest.mark.parametrize(
    ("X", "y", "options"),
    [
        (["a", None], [0, 1], {}),
        (["a", "b"], [1, 1], {}),
        (["a", "b"], [0, 1], {"batch_size": 0}),
        (["a", "b"], [0, 1], {"max_length": 10**6}),
        (["a", "b"], [0, 1], {"model": "no/such/model"}),
        (["a", "b"], [0, 1], {"template": "{title}"}),
        (["a", "b"], [0, 1], {"class_weight": {7: 1.0}}),
        (["a", "b"], [0, 1], {"lora": LoRA(), "trainable_layers": 0}),
        (["a", "b"] * 9, list("st") * 9, {"early_stopping": True, "scoring": "f1"}),
    ],
)
def test_plan__bad_input__raises_what_fit_raises(
    X: Any, y: Any, options: dict[str, Any], tiny_llama: str
) -> None:
    said = []
    for method in ("fit", "plan"):
        clf = make(tiny_llama, max_epochs=1).set_params(**options)
        with pytest.raises((ValueError, OSError)) as error:
            getattr(clf, method)(X, y)
        said.append((type(error.value), str(error.value)))
    assert said[0] == said[1]


def test_estimate__as_plain_values__goes_through_json(tiny_llama: str) -> None:
    estimate = make(tiny_llama, max_length=16).plan(X)
    plain = estimate.to_dict()
    assert json.loads(json.dumps(plain)) == plain
    assert set(FitEstimate.__dataclass_fields__) <= set(plain)
    assert plain["fit_seconds"] == sum(plain["seconds"].values()) == estimate.fit_seconds
    assert plain["memory_bytes"] == sum(plain["memory"].values())
    plain["seconds"].clear()
    assert estimate.fit_seconds > 0
