"""Long texts: read in windows they work like short ones; cut, they are counted, once."""

import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone

from skgpt import GPTTextClassifier, LoRA
from skgpt.cost import how_to_shorten
from skgpt.exceptions import CutTextsWarning, ModelNotSupportedError
from tests.estimators.dying import Dies, broken_off, folders_in
from tests.helpers import Fitted, TextData, make, make_text_data

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


@pytest.mark.parametrize(
    ("architecture", "trainable"), [("llama", "all"), ("llama", 1), ("llama", 0), ("bloom", 1)]
)
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


@pytest.mark.parametrize(("precision", "trainable"), [("fp32", "all"), ("bf16", 1), ("fp32", 0)])
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


@pytest.mark.parametrize(
    "options",
    [
        {"trainable_layers": "all"},
        {"trainable_layers": 1, "head_first_epochs": 1, "early_stopping": True},
        {"lora": LoRA(rank=2, dropout=0.2), "trainable_layers": 1},
    ],
    ids=["all", "head first", "adapters"],
)
@pytest.mark.first_tier(step=[8])
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
        patch.setattr(GPTTextClassifier, "_training_callbacks", lambda *_: [Dies(step)])
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


def test_advice__windows__cutting_comes_before_shorter_ones(
    fitted_model: Callable[[str], Fitted],
) -> None:
    network = fitted_model("two classes").clf._model.network
    assert "long_text='cut'" in how_to_shorten(network, 128, "windows")
    assert "max_length=64" not in how_to_shorten(network, 128, "windows")
    assert "max_length=64" in how_to_shorten(network, 128, "cut")


TEXTS = ["short", "a long text " * 9, "short too", "long again " * 9, "x", "y"]
LABELS = ["a", "b"] * 3


@pytest.fixture(autouse=True)
def _nothing_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("skgpt.fitting._WARNED", set())


def head(folder: str, **options: Any) -> GPTTextClassifier:
    return make(folder, **{"trainable_layers": 0, "max_epochs": 1, "max_length": 32, **options})


def said(call: Any, *args: Any, **kwargs: Any) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call(*args, **kwargs)
    return [str(one.message) for one in caught if one.category is CutTextsWarning]


def test_fit__texts_that_are_cut__are_counted_once(tiny_llama: str) -> None:
    clf = head(tiny_llama)
    with pytest.warns(CutTextsWarning, match=r"^2 of 6 texts are longer than max_length=32 ") as w:
        clf.fit(TEXTS, LABELS)
    assert len(w) == 1
    assert w[0].filename == __file__
    assert said(clf.fit, TEXTS, LABELS) == []
    assert said(head(tiny_llama).fit, TEXTS, LABELS) == []


def test_fit__the_same_text_several_times__counts_each_time(tiny_llama: str) -> None:
    (message,) = said(head(tiny_llama).fit, TEXTS * 2, LABELS * 2)
    assert message.startswith("4 of 12 texts")


def test_fit__held_out_texts__are_counted_as_well(tiny_llama: str) -> None:
    (message,) = said(head(tiny_llama).fit, TEXTS, LABELS, X_val=TEXTS[:3], y_val=LABELS[:3])
    assert message.startswith("3 of 9 texts")


def test_fit__columns__are_counted_as_laid_out(tiny_llama: str) -> None:
    table = pd.DataFrame({"title": ["0123456789"] * 6, "body": TEXTS})
    (message,) = said(head(tiny_llama, template="{title}: {body}").fit, table, LABELS)
    assert message.startswith("2 of 6 texts")


def test_fit__another_max_length__says_it_again(tiny_llama: str) -> None:
    assert len(said(head(tiny_llama).fit, TEXTS, LABELS)) == 1
    (message,) = said(head(tiny_llama, max_length=100).fit, TEXTS, LABELS)
    assert message.startswith("1 of 6 texts are longer than max_length=100")
    assert said(head(tiny_llama, max_length=120).fit, TEXTS, LABELS) == []


def test_partial_fit__texts_that_are_cut__are_counted(tiny_llama: str) -> None:
    clf = head(tiny_llama)
    with pytest.warns(CutTextsWarning, match="^2 of 6") as w:
        clf.partial_fit(TEXTS, LABELS, classes=["a", "b"])
    assert w[0].filename == __file__


def test_fit__exactly_max_length__is_not_cut(tiny_llama: str) -> None:
    clf = head(tiny_llama)
    n_special = len(clf.fit(["x", "y"], ["a", "b"])._model.network.pretrained.tokenizer.prefix_ids)
    texts = ["x" * (32 - n_special), "y"]
    assert said(clf.fit, texts, ["a", "b"]) == []
    assert len(said(clf.fit, [texts[0] + "x", "y"], ["a", "b"])) == 1


def test_fit__windows__cut_nothing(tiny_llama: str) -> None:
    assert said(head(tiny_llama, long_text="windows").fit, TEXTS, LABELS) == []


def test_predict__texts_that_are_cut__are_no_news(tiny_llama: str) -> None:
    clf = head(tiny_llama)
    clf.fit(["x", "y"], ["a", "b"])
    assert said(clf.predict, TEXTS) == []
    assert len(said(clf.fit, TEXTS, LABELS)) == 1


def test_fit__warnings_as_errors__fails_every_time_before_training(tiny_llama: str) -> None:
    clf = head(tiny_llama).fit(["x", "y"], ["a", "b"])
    before = clf.predict_proba(TEXTS)
    with warnings.catch_warnings():
        warnings.simplefilter("error", CutTextsWarning)
        for _ in range(2):
            with pytest.raises(CutTextsWarning):
                clf.fit(TEXTS, LABELS)
    assert np.array_equal(clf.predict_proba(TEXTS), before)
