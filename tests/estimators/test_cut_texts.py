"""Texts that a fit cuts are counted, once; where they are read in windows nothing is cut."""

import warnings
from typing import Any

import numpy as np
import pandas as pd
import pytest

from skgpt import GPTTextClassifier
from skgpt.exceptions import CutTextsWarning
from tests.estimators.test_classifier import make

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
