"""Long texts: read in windows they work like short ones; cut, they are counted, once."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from skgpt import GPTTextClassifier, LoRA
from skgpt.data.template import parse_template
from skgpt.data.tokenization import Tokens, lengths_in_windows, tokenise_rows, window_starts
from skgpt.exceptions import CutTextsWarning, ModelNotSupportedError
from skgpt.pretrained.loading import load_pretrained
from tests.helpers import make, make_text_data

LONG: dict[str, Any] = {"long_text": "windows", "max_length": 24, "max_epochs": 3}


SHORT, y = make_text_data(n_classes=2)
_BEFORE = np.random.default_rng(0).integers(0, 4, len(SHORT))
# Long and short texts; what tells their classes stands at the end.
X = np.array([n * "nothing of note " + x for n, x in zip(_BEFORE, SHORT, strict=True)], object)
X.setflags(write=False)


def windowed(folder: str, **options: Any) -> GPTTextClassifier:
    return make(folder, **{**LONG, **options})


@pytest.mark.parametrize(
    "options",
    [
        {"trainable_layers": "all"},
        {"lora": LoRA(rank=2, dropout=0.2), "trainable_layers": 2, "head_first_epochs": 1},
        {"early_stopping": True, "pooling": "last", "calibrate": True},
        {"template": "{text} is the news", "class_weight": "balanced"},
    ],
    ids=lambda options: "-".join(options),
)
def test_fit__texts_that_fit__are_those_of_cut(options: dict[str, Any], tiny_llama: str) -> None:
    found, expected = (
        make(tiny_llama, long_text=long_text, max_epochs=2, **options).fit(SHORT, y)
        for long_text in ("windows", "cut")
    )
    assert found.loss_curve_ == expected.loss_curve_
    assert np.array_equal(found.predict_proba(SHORT), expected.predict_proba(SHORT))


def test_fit__what_tells_the_classes_stands_at_the_end__is_read(tiny_llama: str) -> None:
    late = np.array([("no news " * 6) + x for x in SHORT], object)  # 48 letters, the same in all
    options = {"trainable_layers": "all", "max_epochs": 12, "max_length": 40}
    cut = make(tiny_llama, **options).fit(late, y)
    windows = windowed(tiny_llama, **options).fit(late, y)
    assert cut.score(late, y) == 0.5
    assert windows.score(late, y) > 0.9


def test_warm_start__from_cut_to_windows__goes_on_and_back(tiny_llama: str) -> None:
    clf = make(tiny_llama, max_length=24, max_epochs=2, warm_start=True).fit(X, y)
    learned = clf._model.network.head.weight.clone()
    clf.set_params(long_text="windows", head_learning_rate=1e-12, learning_rate=1e-12).fit(X, y)
    np.testing.assert_allclose(clf._model.network.head.weight.detach(), learned.detach(), atol=1e-6)
    read_whole = clf.decision_function(X)
    cut = clf.set_params(long_text="cut").fit(X, y).decision_function(X)
    is_long = np.array([len(text) > 24 for text in X])
    assert np.abs(read_whole - cut)[is_long].max() > 1e-3


def test_long_text__set_after_fit__changes_nothing(tiny_llama: str, tmp_path: Path) -> None:
    clf = windowed(tiny_llama, pooling="last", max_epochs=1).fit(X, y)
    before = clf.predict_proba(X)
    assert np.array_equal(clf.set_params(long_text="cut").predict_proba(X), before)
    with pytest.raises(ModelNotSupportedError, match="`long_text` must be 'cut'"):
        clf.save_pretrained(tmp_path / "out")
    assert not any(tmp_path.iterdir())
    clf = make(tiny_llama, max_length=24, pooling="last", max_epochs=1, precision="fp32").fit(X, y)
    clf.set_params(long_text="windows").save_pretrained(tmp_path / "out")
    opened = GPTTextClassifier.from_pretrained(tmp_path / "out", precision="fp32")
    assert opened.long_text == "cut"
    np.testing.assert_allclose(opened.predict_proba(X), clf.predict_proba(X), atol=1e-5)


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


def test_fit__texts_that_are_cut__are_counted_once_for_each_max_length(tiny_llama: str) -> None:
    clf = head(tiny_llama)
    with pytest.warns(
        CutTextsWarning, match=r"^2 of the 6 texts of this fit are longer than max_length=32 "
    ) as w:
        clf.fit(TEXTS, LABELS)
    assert len(w) == 1
    assert w[0].filename == __file__
    assert said(clf.fit, TEXTS, LABELS) == []
    assert said(head(tiny_llama).fit, TEXTS, LABELS) == []
    (message,) = said(head(tiny_llama, max_length=100).fit, TEXTS, LABELS)
    assert message.startswith("1 of the 6 texts of this fit are longer than max_length=100")
    assert said(head(tiny_llama, max_length=120).fit, TEXTS, LABELS) == []


def test_cut_texts__in_fit_and_partial_fit_without_windows__are_news(tiny_llama: str) -> None:
    clf = head(tiny_llama)
    assert said(clf.fit, ["x", "y"], ["a", "b"]) == []
    assert said(clf.predict, TEXTS) == []
    assert said(head(tiny_llama, long_text="windows").fit, TEXTS, LABELS) == []
    with pytest.warns(CutTextsWarning, match="^2 of the 6") as w:
        clf.partial_fit(TEXTS, LABELS)
    assert w[0].filename == __file__


def test_fit__warnings_as_errors__fails_every_time_before_training(tiny_llama: str) -> None:
    clf = head(tiny_llama).fit(["x", "y"], ["a", "b"])
    before = clf.predict_proba(TEXTS)
    with warnings.catch_warnings():
        warnings.simplefilter("error", CutTextsWarning)
        for _ in range(2):
            with pytest.raises(CutTextsWarning):
                clf.fit(TEXTS, LABELS)
    assert np.array_equal(clf.predict_proba(TEXTS), before)


# `plan` and `explain` where long texts are read in windows


def windows_of(folder: str, texts: Any, max_length: int = 24) -> Tokens:
    template = parse_template(None, 1, None)
    return tokenise_rows(
        [list(texts)], template, load_pretrained(folder).tokenizer, max_length, "windows"
    )


@pytest.mark.parametrize("max_length", [3, 5, 16, 1000])
def test_lengths_in_windows__each_length__is_right(max_length: int, tiny_llama: str) -> None:
    texts = ["x" * n for n in range(1, 60)]
    whole = windows_of(tiny_llama, texts, 10**6).lengths
    encoder = load_pretrained(tiny_llama).tokenizer
    found = lengths_in_windows(whole, encoder, max_length)
    assert np.array_equal(found, windows_of(tiny_llama, texts, max_length).lengths)


def test_plan__windows__counts_their_tokens_and_cuts_nothing(tiny_llama: str) -> None:
    clf = windowed(tiny_llama, head_first_epochs=1)
    estimate = clf.plan(X, y)
    windows = windows_of(tiny_llama, X)
    assert np.diff(windows.first).max() > 1
    assert estimate.n_tokens == windows.run.lengths.sum()
    assert estimate.tokens_per_text["max"] == windows_of(tiny_llama, X, 10**6).lengths.max()
    assert (estimate.n_cut, estimate.tokens_cut, estimate.share_cut) == (0, 0, 0)
    assert estimate.to_dict()["long_text"] == "windows"
    assert estimate.n_windows == np.diff(windows.first).sum() > len(X)
    said = f"none, long ones are read in windows of max_length=24; {estimate.n_windows} of all"
    assert said in repr(estimate)
    assert make(tiny_llama, max_length=24).plan(X, y).n_windows is None
    assert not any("are cut" in line for line in estimate.advice)
    assert estimate.memory["states"] > 0


@pytest.mark.parametrize("pooling", ["mean", "last"])
@pytest.mark.parametrize("trainable", [0, 1])
def test_explain__texts_of_several_windows__values_add_up_and_each_token_has_one(
    tiny_llama: str, pooling: str, trainable: int
) -> None:
    clf = windowed(tiny_llama, pooling=pooling, trainable_layers=trainable).fit(SHORT, y)
    clf.set_params(long_text="cut")  # which doesn't change how it was fitted
    texts = ["short", "a text that is far too long for one window", "", 3 * "goal, bank. "]
    table = clf.explain(texts)
    each = table.groupby("text")
    assert each["token"].sum().to_dict() == {i: text for i, text in enumerate(texts) if text}
    sums = (each["value"].sum() + each["baseline"].first()).to_numpy()
    expected = np.abs(clf.decision_function([text for text in texts if text]))
    np.testing.assert_allclose(sums, expected, atol=1e-4)
    assert np.array_equal(each["class"].first(), clf.predict([text for text in texts if text]))
    assert table["value"].abs().max() > 1e-3


def test_explain__a_token_of_two_windows__has_the_mean_of_both(tiny_llama: str) -> None:
    data = make_text_data(3)
    Y = np.array([[label == "sport", "the" in text] for text, label in zip(*data, strict=True)])
    clf = windowed(tiny_llama, max_length=16).fit(data.X, Y.astype(int))
    text = "a late goal won the match on Sunday"  # a character is a token, and there is one more
    encoder = clf._model.network.pretrained.tokenizer
    room = 16 - len(encoder.prefix_ids) - len(encoder.suffix_ids)
    starts = window_starts(len(text), room)
    assert len(starts) > 2
    expected = np.zeros((len(text), 2))
    for start in starts:
        window = clf.explain([text[start : start + room]], target=[[1, 1]])
        values = window.pivot(index="start", columns="class", values="value").to_numpy()
        expected[start : start + room] += values / len(starts)
    whole = clf.explain([text], target=[[1, 1]]).pivot(
        index="start", columns="class", values="value"
    )
    np.testing.assert_allclose(whole.to_numpy(), expected, atol=1e-5)
