"""`plan` and `explain` of an estimator that reads long texts in windows."""

from typing import Any

import numpy as np
import pandas as pd
import pytest

from skgpt.data.template import parse_template
from skgpt.data.tokenization import Tokens, lengths_in_windows, tokenise_rows, window_starts
from skgpt.pretrained.loading import load_pretrained
from tests.helpers import TextData, make, make_text_data

LONG: dict[str, Any] = {"long_text": "windows", "max_length": 16, "max_epochs": 2}


def windows_of(folder: str, texts: Any, max_length: int = 16) -> Tokens:
    template = parse_template(None, 1, None)
    return tokenise_rows(
        [list(texts)], template, load_pretrained(folder).tokenizer, max_length, "windows"
    )


@pytest.mark.parametrize("max_length", [3, 5, 16, 1000])
def test_lengths_in_windows__each_length__are_those_of_the_windows(
    max_length: int, tiny_llama: str
) -> None:
    texts = ["x" * n for n in range(1, 60)]
    whole = windows_of(tiny_llama, texts, 10**6).lengths
    encoder = load_pretrained(tiny_llama).tokenizer
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
    assert np.diff(windows.first).max() > 1
    assert estimate.n_tokens == windows.run.lengths.sum()
    assert estimate.tokens_per_text["max"] == windows_of(tiny_llama, X, 10**6).lengths.max()
    assert (estimate.n_cut, estimate.tokens_cut, estimate.share_cut) == (0, 0, 0)
    assert estimate.to_dict()["long_text"] == "windows"
    assert estimate.n_windows == np.diff(windows.first).sum() > len(X)
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


@pytest.mark.parametrize("pooling", ["mean", "last"])
@pytest.mark.parametrize("trainable", [0, 1])
def test_explain__texts_of_several_windows__values_add_up_and_each_token_has_one(
    tiny_llama: str, two_class_data: TextData, pooling: str, trainable: int
) -> None:
    X, y = two_class_data
    clf = make(tiny_llama, pooling=pooling, trainable_layers=trainable, **LONG).fit(X, y)
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


def test_explain__a_token_of_two_windows__has_the_mean_of_what_it_adds_to_each(
    tiny_llama: str,
) -> None:
    data = make_text_data(3)
    Y = np.array([[label == "sport", "the" in text] for text, label in zip(*data, strict=True)])
    clf = make(tiny_llama, **LONG).fit(data.X, Y.astype(int))
    text = "a late goal won the match on Sunday"  # a character is a token, and there is one more
    encoder = clf._model.network.pretrained.tokenizer
    room = LONG["max_length"] - len(encoder.prefix_ids) - len(encoder.suffix_ids)
    starts = window_starts(len(text), room)
    assert len(starts) > 2
    expected = np.zeros((len(text), 2))
    for start in starts:
        window = clf.explain([text[start : start + room]])
        values = window.pivot(index="start", columns="class", values="value").to_numpy()
        expected[start : start + room] += values / len(starts)
    whole = clf.explain([text]).pivot(index="start", columns="class", values="value")
    np.testing.assert_allclose(whole.to_numpy(), expected, atol=1e-5)


def test_explain__windows_of_columns__tokens_lie_in_their_cells(tiny_llama: str) -> None:
    X = pd.DataFrame({"title": ["a goal", "rates"], "body": ["in the last minute", "rose " * 9]})
    clf = make(tiny_llama, template="T: {title}\nB: {body}", **LONG).fit(X, ["sport", "money"])
    table = clf.explain(X)
    tokens = table.groupby(["text", "column"])["token"].sum()
    assert tokens.to_dict() == {
        (row, column): X[column][row] for row in range(2) for column in ("title", "body")
    }
    each = table.groupby("text")
    sums = each["value"].sum() + each["baseline"].first()
    np.testing.assert_allclose(sums, np.abs(clf.decision_function(X)), atol=1e-4)


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
