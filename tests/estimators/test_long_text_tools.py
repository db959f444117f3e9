"""`plan` and `explain` of an estimator that reads long texts in windows."""

from typing import Any

import numpy as np
import pandas as pd
import pytest

from skgpt import GPTTextClassifier
from skgpt.exceptions import ModelNotSupportedError
from skgpt.model.sources import load_source
from skgpt.text.template import parse_template
from skgpt.text.windows import Windows, lengths_in_windows, tokenise_windows
from tests.estimators.test_classifier import make
from tests.helpers import TextData

LONG: dict[str, Any] = {"long_text": "windows", "max_length": 16, "max_epochs": 2}


def windows_of(folder: str, texts: Any, max_length: int = 16) -> Windows:
    template = parse_template(None, 1, None)
    return tokenise_windows([list(texts)], template, load_source(folder).tokenizer, max_length)


@pytest.mark.parametrize("max_length", [3, 5, 16, 1000])
def test_lengths_in_windows__each_length__are_those_of_the_windows(
    max_length: int, tiny_llama: str
) -> None:
    texts = ["x" * n for n in range(1, 60)]
    whole = windows_of(tiny_llama, texts, 10**6).lengths
    encoder = load_source(tiny_llama).tokenizer
    found = lengths_in_windows(whole, encoder, max_length)
    assert np.array_equal(found, windows_of(tiny_llama, texts, max_length).lengths)


@pytest.mark.parametrize(
    "options",
    [
        {"trainable_layers": "all"},
        {"trainable_layers": 1, "head_first_epochs": 1},
        {"trainable_layers": 0},
    ],
    ids=["all", "last", "head"],
)
def test_plan__windows__counts_their_tokens_and_cuts_nothing(
    options: dict[str, Any], tiny_llama: str, two_class_data: TextData
) -> None:
    X, y = two_class_data
    clf = make(tiny_llama, **LONG, **options)
    estimate = clf.plan(X, y)
    windows = windows_of(tiny_llama, X)
    assert windows.counts.max() > 1
    assert estimate.n_tokens == windows.each.lengths.sum()
    assert estimate.tokens_per_text["max"] == windows_of(tiny_llama, X, 10**6).lengths.max()
    assert (estimate.n_cut, estimate.tokens_cut, estimate.share_cut) == (0, 0, 0)
    assert estimate.to_dict()["long_text"] == "windows"
    assert estimate.n_windows == windows.counts.sum() > len(X)
    said = f"none, long ones are read in windows of max_length=16; {estimate.n_windows} of all"
    assert said in repr(estimate)
    assert make(tiny_llama, max_length=16).plan(X, y).n_windows is None
    assert not any("are cut" in line for line in estimate.advice)
    assert (estimate.memory["states"] > 0) == (options["trainable_layers"] != "all")


@pytest.mark.parametrize("trainable", [1, 0])
def test_plan__windows_that_a_fit_has_seen__frozen_layers_are_done(
    trainable: int, tiny_llama: str, two_class_data: TextData
) -> None:
    X, y = (part[:20] for part in two_class_data)
    seen = [f"{text} read in windows" for text in X]
    clf = make(tiny_llama, trainable_layers=trainable, **LONG)
    assert clf.plan(seen, y).seconds["frozen_layers"] > 0
    assert clf.fit(seen, y).plan(seen, y).seconds["frozen_layers"] == 0


def test_explain__a_text_of_several_windows__is_refused_before_any_work(
    tiny_llama: str, two_class_data: TextData, monkeypatch: pytest.MonkeyPatch
) -> None:
    X, y = two_class_data
    clf = make(tiny_llama, **LONG).fit(X, y)
    clf.set_params(long_text="cut")  # which doesn't change how it was fitted
    scored: list[Any] = []
    monkeypatch.setattr(GPTTextClassifier, "_scores", lambda self, X: scored.append(X))
    with pytest.raises(ModelNotSupportedError, match=r"1 of 2 texts .* first of them X\[1\]"):
        clf.explain(["short", "a text that is far too long for one window"])
    assert scored == []


def test_explain__texts_of_one_window__are_explained_as_where_texts_are_cut(
    tiny_llama: str, two_class_data: TextData
) -> None:
    X, y = two_class_data
    short = [text[:8] for text in X]
    windows, cut = (
        make(tiny_llama, **{**LONG, "long_text": long_text}).fit(short, y).explain(short[:4])
        for long_text in ("windows", "cut")
    )
    pd.testing.assert_frame_equal(windows, cut)
