"""`long_text="windows"` behind the estimator: whatever works on texts works on long ones."""

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV

import skgpt
from skgpt import GPTTextClassifier, LoRA
from skgpt.cost import how_to_shorten
from skgpt.exceptions import ModelNotSupportedError
from tests.estimators.dying import Dies, broken_off, folders_in
from tests.estimators.test_classifier import make
from tests.helpers import TextData, make_text_data

LONG: dict[str, Any] = {"long_text": "windows", "max_length": 24, "max_epochs": 3}


@pytest.fixture
def late_data() -> TextData:
    """Return long and short texts of two classes; what tells them stands at the end."""
    short = make_text_data(2)
    before = np.random.default_rng(0).integers(0, 4, len(short.X))
    X = np.array([n * "nothing of note " + x for n, x in zip(before, short.X, strict=True)], object)
    X.setflags(write=False)
    return TextData(X, short.y)


def windowed(folder: str, **options: Any) -> GPTTextClassifier:
    return make(folder, **{**LONG, **options})


@pytest.mark.parametrize(
    "options",
    [
        {"trainable_layers": "all"},
        {"trainable_layers": 1, "head_first_epochs": 1, "precision": "bf16"},
        {"trainable_layers": 0},
        {"lora": LoRA(rank=2, dropout=0.2), "trainable_layers": 2},
        {"early_stopping": True, "pooling": "last", "calibrate": True},
        {"template": "{text} is the news", "class_weight": "balanced"},
    ],
    ids=lambda options: "-".join(options),
)
def test_fit__texts_that_fit__are_those_of_cut_to_the_bit(
    options: dict[str, Any], tiny_llama: str, two_class_data: TextData
) -> None:
    X, y = two_class_data
    found, expected = (
        make(tiny_llama, long_text=long_text, max_epochs=2, **options).fit(X, y)
        for long_text in ("windows", "cut")
    )
    assert found.loss_curve_ == expected.loss_curve_
    assert np.array_equal(found.predict_proba(X), expected.predict_proba(X))


def test_fit__what_tells_the_classes_stands_at_the_end__is_read(
    tiny_llama: str, two_class_data: TextData
) -> None:
    X, y = two_class_data
    late = np.array([("no news " * 6) + x for x in X], object)  # 48 letters, the same in all
    options = {"trainable_layers": "all", "max_epochs": 12, "max_length": 40}
    cut = make(tiny_llama, **options).fit(late, y)
    windows = windowed(tiny_llama, **options).fit(late, y)
    assert cut.score(late, y) == 0.5
    assert windows.score(late, y) > 0.9


@pytest.mark.first_tier(architecture=["llama"])
@pytest.mark.parametrize("architecture", ["llama", "bloom"])
@pytest.mark.parametrize("trainable", ["all", 1, 0])
def test_decision_function__a_long_text__is_the_mean_over_its_windows_as_texts(
    architecture: str,
    trainable: Any,
    tiny_model: Callable[[str], str],
    late_data: TextData,
) -> None:
    options = {"trainable_layers": trainable, "precision": "fp32"}
    clf = windowed(tiny_model(architecture), **options).fit(*late_data)
    tokenizer = clf._model.network.pretrained.tokenizer
    room = 24 - len(tokenizer.prefix_ids) - len(tokenizer.suffix_ids)
    text = "".join(chr(97 + i % 26) for i in range(3 * room - room // 2 + 1))  # a letter, a token
    starts = [*range(0, len(text) - room, room // 2), len(text) - room]
    windows = [text[start : start + room] for start in starts]
    assert len(windows) == 5
    np.testing.assert_allclose(
        clf.decision_function([text]), clf.decision_function(windows).mean(keepdims=True), atol=1e-5
    )


@pytest.mark.first_tier(precision=["fp32"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("trainable", ["all", 1, 0])
def test_partial_fit__three_calls_on_long_texts__equal_one_fit_of_three_epochs(
    trainable: Any, precision: str, tiny_llama: str, late_data: TextData
) -> None:
    X, y = late_data
    flat = {"lr_schedule": "constant", "warmup_ratio": 0.0, "precision": precision}
    clf = windowed(tiny_llama, trainable_layers=trainable, **flat)
    whole = clone(clf).fit(X, y)
    for _ in range(3):
        clf = pickle.loads(pickle.dumps(clf.partial_fit(X, y, classes=["money", "sport"])))
    assert np.array_equal(clf.predict_proba(X), whole.predict_proba(X))


def test_warm_start__from_cut_to_windows__goes_on_and_back(
    tiny_llama: str, late_data: TextData
) -> None:
    X, y = late_data
    clf = make(tiny_llama, max_length=24, max_epochs=2, warm_start=True).fit(X, y)
    learned = clf._model.network.head.weight.clone()
    clf.set_params(long_text="windows", head_learning_rate=1e-12, learning_rate=1e-12).fit(X, y)
    np.testing.assert_allclose(clf._model.network.head.weight.detach(), learned.detach(), atol=1e-6)
    read_whole = clf.decision_function(X)
    cut = clf.set_params(long_text="cut").fit(X, y).decision_function(X)
    is_long = np.array([len(text) > 24 for text in X])
    assert np.abs(read_whole - cut)[is_long].max() > 1e-3


@pytest.mark.first_tier(step=[8])
@pytest.mark.parametrize(
    "options",
    [
        {"trainable_layers": "all"},
        {"trainable_layers": 1, "head_first_epochs": 1, "early_stopping": True},
        {"lora": LoRA(rank=2, dropout=0.2), "trainable_layers": 1},
    ],
    ids=["all", "head first", "adapters"],
)
@pytest.mark.parametrize("step", [3, 8])
def test_fit__broken_off_and_called_again__ends_as_an_unbroken_one(
    step: int,
    options: dict[str, Any],
    tiny_llama: str,
    late_data: TextData,
    tmp_path: Path,
    dies_at: Any,
    begins_at: list[int],
) -> None:
    X, y = late_data
    expected = windowed(tiny_llama, **options).fit(X, y)
    clf = windowed(tiny_llama, checkpoint_dir=tmp_path, **options)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(GPTTextClassifier, "_monitors", lambda *_: [Dies(step)])
        broken_off(clf, X, y)
        broken_off(clone(clf).set_params(long_text="cut"), X, y)
    assert len(folders_in(tmp_path)) == 2  # a fit that cuts is another fit
    clf.fit(X, y)
    assert begins_at == [0, step - 1]
    assert clf.loss_curve_ == expected.loss_curve_
    assert np.array_equal(clf.predict_proba(X), expected.predict_proba(X))


def test_early_stopping__the_best_epochs_score__is_that_of_the_fitted_weights(
    tiny_llama: str, late_data: TextData
) -> None:
    X, y = late_data
    clf = windowed(tiny_llama, early_stopping=True, scoring="neg_log_loss", precision="fp32")
    clf.fit(X[:30], y[:30], X_val=X[30:], y_val=y[30:])
    proba = clf.predict_proba(X[30:])
    truth = (y[30:, None] == clf.classes_).argmax(1)
    score = np.log(proba[np.arange(10), truth]).mean()
    assert score == pytest.approx(clf.validation_scores_[clf.best_iter_ - 1], abs=1e-5)


def test_sample_weight__zero__is_the_long_row_left_out_of_its_batch(
    tiny_llama: str, late_data: TextData
) -> None:
    X, y = late_data
    weight = np.where(np.arange(40) < 10, 0.0, 1.0)
    clf = windowed(tiny_llama, batch_size=64, trainable_layers="all", precision="fp32")
    weighted = clone(clf).fit(X, y, sample_weight=weight)
    left_out = clone(clf).fit(X[10:], y[10:])
    np.testing.assert_allclose(
        weighted.decision_function(X), left_out.decision_function(X), rtol=1e-3, atol=1e-4
    )


@pytest.mark.parametrize("how", ["pickle", "deepcopy", "save"])
def test_keeping__a_model_of_windows__reads_windows_again(
    how: str, tiny_llama: str, late_data: TextData, tmp_path: Path
) -> None:
    X, y = late_data
    clf = windowed(tiny_llama).fit(X, y)
    if how == "save":
        skgpt.save(clf, tmp_path / "kept")
        again = skgpt.load(tmp_path / "kept")
    else:
        again = pickle.loads(pickle.dumps(clf)) if how == "pickle" else copy.deepcopy(clf)
    assert again.long_text == "windows"
    assert np.array_equal(again.predict_proba(X), clf.predict_proba(X))


def test_predict__a_parameter_set_after_fit__changes_nothing(
    tiny_llama: str, late_data: TextData
) -> None:
    X, y = late_data
    clf = windowed(tiny_llama).fit(X, y)
    before = clf.predict_proba(X)
    assert np.array_equal(clf.set_params(long_text="cut").predict_proba(X), before)


def test_save_pretrained__a_model_of_windows__is_refused_by_name(
    tiny_llama: str, late_data: TextData, tmp_path: Path
) -> None:
    clf = windowed(tiny_llama, pooling="last", max_epochs=1).fit(*late_data)
    clf.set_params(long_text="cut")  # which doesn't change how it was fitted
    with pytest.raises(ModelNotSupportedError, match="`long_text` must be 'cut'"):
        clf.save_pretrained(tmp_path / "out")
    assert not any(tmp_path.iterdir())


def test_save_pretrained__a_parameter_set_after_fit__is_not_what_is_said(
    tiny_llama: str, late_data: TextData, tmp_path: Path
) -> None:
    X, y = late_data
    clf = make(tiny_llama, max_length=24, pooling="last", max_epochs=1, precision="fp32").fit(X, y)
    clf.set_params(long_text="windows").save_pretrained(tmp_path / "out")
    opened = GPTTextClassifier.from_pretrained(tmp_path / "out", precision="fp32")
    assert opened.long_text == "cut"
    np.testing.assert_allclose(opened.predict_proba(X), clf.predict_proba(X), atol=1e-5)


def test_grid_search__over_long_text__is_what_fits_by_hand_give(
    tiny_llama: str, late_data: TextData
) -> None:
    X, y = late_data
    folds = [(np.arange(0, 20), np.arange(20, 40))]
    clf = make(tiny_llama, max_length=24, max_epochs=1, trainable_layers=0)
    grid = GridSearchCV(clf, {"long_text": ["cut", "windows"]}, cv=folds, error_score="raise")
    grid.fit(X, y)
    by_hand = [
        clone(clf).set_params(long_text=long_text).fit(X[:20], y[:20]).score(X[20:], y[20:])
        for long_text in ("cut", "windows")
    ]
    assert grid.cv_results_["mean_test_score"].tolist() == by_hand


@pytest.mark.parametrize("value", ["window", True, None])
def test_fit__another_long_text__is_refused(
    value: Any, tiny_llama: str, two_class_data: TextData
) -> None:
    with pytest.raises(ValueError, match="'long_text' parameter of GPTTextClassifier"):
        make(tiny_llama, long_text=value).fit(*two_class_data)


def test_advice__windows__cutting_comes_before_shorter_ones(
    tiny_llama: str, two_class_data: TextData
) -> None:
    network = make(tiny_llama, max_epochs=1).fit(*two_class_data)._model.network
    assert "long_text='cut'" in how_to_shorten(network, 128, "windows")
    assert "max_length=64" not in how_to_shorten(network, 128, "windows")
    assert "max_length=64" in how_to_shorten(network, 128, "cut")
