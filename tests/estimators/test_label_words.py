"""GPTTextClassifier(label_words=...): it starts as the zero-shot classifier and goes on from it."""

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV
from transformers import AutoModelForCausalLM, AutoTokenizer

import skgpt
from skgpt import GPTTextClassifier, GPTZeroShotClassifier, LoRA
from skgpt.exceptions import (
    ContinuationError,
    LabelWordsWarning,
    ModelNotSupportedError,
    TimeLimitWarning,
)
from skgpt.tuning import default_space
from tests.estimators.dying import broken_off
from tests.helpers import FAST, make_text_data

X, Y = make_text_data(n_classes=3)
PROMPT = "News: {text}\nTopic:\n"  # no space goes before a word: a letter is a token
WORDS = {"money": "m", "space": "o", "sport": "s"}
STILL: dict[str, Any] = {"learning_rate": 1e-30, "head_learning_rate": 1e-30, "max_epochs": 1}


def make(model: str, **options: Any) -> GPTTextClassifier:
    defaults = {"template": PROMPT, "label_words": WORDS, "precision": "fp32", "max_length": 128}
    return GPTTextClassifier(model, **{**FAST, **defaults, **options})


def zero_shot(model: str, **options: Any) -> GPTZeroShotClassifier:
    defaults = {"template": PROMPT, "label_words": WORDS, "precision": "fp32"}
    return GPTZeroShotClassifier(model, **{**defaults, **options})


@pytest.mark.parametrize(
    "architecture", ["llama", "gpt2", "gpt_neox", "phi", "cohere2", "gemma3", "gptj"]
)  # tied and not, with a bias, with scaled logits
@pytest.mark.first_tier(architecture=["llama", "phi"])
def test_fit__before_the_first_step__says_what_the_zero_shot_classifier_says(
    architecture: str, tiny_model: Callable[[str], str]
) -> None:
    model = tiny_model(architecture)
    expected = zero_shot(model).fit(None, list(WORDS)).predict_log_proba(X)
    clf = make(model, **STILL).fit(X, Y)
    np.testing.assert_allclose(clf.predict_log_proba(X), expected, atol=2e-5)
    assert np.ptp(expected) > 0.01
    assert (clf.n_layers_, clf.trainable_layers_) == (3, 1)
    assert (clf.pooling_, clf.attention_) == ("last", "causal")


@pytest.mark.parametrize(
    "options",
    [
        {"lora": LoRA(rank=2)},
        {"trainable_layers": "all", "label_words": {**WORDS, "unused": "u"}},
        {"template": "News: {title}\n\n{body}\nTopic:\n"},
        {"precision": "bf16"},
    ],
    ids=["lora", "all layers", "columns", "bf16"],
)
def test_fit__before_the_first_step__so_with_other_parameters(
    options: dict[str, Any], tiny_llama: str
) -> None:
    frame = pd.DataFrame({"title": X[:30], "body": X[30:]})
    shared = {k: v for k, v in options.items() if k in ("label_words", "template", "precision")}
    expected = zero_shot(tiny_llama, **shared).fit(frame, Y[:30]).predict_proba(frame)
    clf = make(tiny_llama, **STILL, **options).fit(frame, Y[:30])
    np.testing.assert_allclose(clf.predict_proba(frame), expected, atol=2e-5)


def test_fit__several_tokens_or_words__start_from_their_mean_logits(
    tiny_llama: str,
) -> None:
    words = {"money": ["m", "bank"], "space": "or", "sport": ["g"]}
    clf = make(tiny_llama, label_words=words, **STILL).fit(X, Y)
    causal = AutoModelForCausalLM.from_pretrained(tiny_llama).eval()
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)

    def logits_of(text: str) -> list[float]:
        ids = tokenizer(PROMPT.format(text=text), return_tensors="pt")["input_ids"]
        with torch.no_grad():
            last = causal(ids).logits[0, -1].double()
        at = {c: last[tokenizer(c)["input_ids"][0]].item() for c in "mbankorg"}
        bank = np.mean([at[c] for c in "bank"])
        return [(at["m"] + bank) / 2, (at["o"] + at["r"]) / 2, at["g"]]

    free = torch.tensor([logits_of(text) for text in ("N/A", "", "[MASK]")])
    prior = free.softmax(1).mean(0).log()
    expected = (torch.tensor([logits_of(text) for text in X[:5]]) - prior).softmax(1)
    np.testing.assert_allclose(clf.predict_proba(X[:5]), expected.numpy(), atol=1e-5)


def test_fit__auto__takes_the_labels_own_names(tiny_llama: str) -> None:
    labels = np.array([WORDS[label] for label in Y])
    named = make(tiny_llama, label_words="auto").fit(X, labels)
    mapped = make(tiny_llama, label_words={c: c for c in "mos"}).fit(X, labels)
    np.testing.assert_array_equal(named.predict_proba(X), mapped.predict_proba(X))
    with pytest.warns(LabelWordsWarning, match="are no words"):
        make(tiny_llama, label_words="auto", max_epochs=1).fit(X[:6], [0, 1] * 3)


def test_fit__tokenizer_that_ends_texts__leaves_prompts_open(
    tiny_llama: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    clf = make(tiny_llama, **STILL).fit(X, Y)
    expected = clf.predict_proba(X)
    monkeypatch.setattr(clf._model.network.pretrained.tokenizer, "suffix_ids", (7,))
    ended = make(tiny_llama, **STILL).fit(X, Y)
    np.testing.assert_allclose(ended.predict_proba(X), expected, atol=1e-6)


def test_fit__some_rows__learns_and_keeps_what_is_taken_off(tiny_llama: str) -> None:
    clf = make(tiny_llama, max_epochs=15).fit(X, Y)
    assert clf.score(X, Y) > 0.9
    offset = clf._model.network.offset
    still = make(tiny_llama, **STILL).fit(X, Y)._model.network.offset
    torch.testing.assert_close(offset, still)
    assert offset.abs().max() > 0.01
    assert clf.explain(X[:1])["value"].abs().sum() > 0


@pytest.mark.parametrize("store_base", ["auto", False])
def test_pickle__what_was_learned__predicts_the_same_and_goes_on(
    store_base: Any, tiny_model: Callable[[str], str], tmp_path: Path
) -> None:
    clf = make(tiny_model("gpt_neox"), store_base=store_base).fit(X, Y)
    expected = clf.predict_proba(X)
    skgpt.save(clf, tmp_path / "saved")
    for again in (pickle.loads(pickle.dumps(clf)), skgpt.load(tmp_path / "saved")):
        np.testing.assert_array_equal(again.predict_proba(X), expected)
        assert again.label_words == WORDS
        again.set_params(**STILL, warm_start=True).fit(X, Y)
        np.testing.assert_allclose(again.predict_proba(X), expected, atol=1e-6)
    with pytest.raises(ModelNotSupportedError, match="`label_words` must be None"):
        clf.save_pretrained(tmp_path / "exported")
    np.testing.assert_array_equal(clone(clf).fit(X, Y).predict_proba(X), expected)


def test_fit__head_alone__stays_near_the_words_where_rows_weigh_little(
    tiny_llama: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = zero_shot(tiny_llama).fit(None, list(WORDS)).predict_proba(X)
    monkeypatch.setattr("skgpt.training.linear_probe._ROWS_OF_WORDS", 1e9)
    held = make(tiny_llama, trainable_layers=0).fit(X, Y)
    np.testing.assert_allclose(held.predict_proba(X), expected, atol=1e-3)
    monkeypatch.setattr("skgpt.training.linear_probe._ROWS_OF_WORDS", 1)
    assert make(tiny_llama, trainable_layers=0).fit(X, Y).score(X, Y) > 0.9


def test_warm_start__head_alone__is_held_by_the_words_again(tiny_llama: str) -> None:
    clf = make(tiny_llama, trainable_layers=0, warm_start=True).fit(X, Y)
    expected = clf.predict_proba(X)
    np.testing.assert_array_equal(clf.fit(X, Y).predict_proba(X), expected)


def test_max_seconds_and_advice__all_layers__stay(tiny_llama: str) -> None:
    clf = make(tiny_llama, n_layers="auto", max_seconds=1e-3)
    with pytest.warns(TimeLimitWarning, match="epochs"):
        assert clf.fit(X, Y).n_layers_ == 3
    assert make(tiny_llama).plan(X).n_layers == 3  # nobody knows the words of no labels


def test_default_space__behind_a_prompt__neither_depth_nor_pooling(tiny_llama: str) -> None:
    space, plain = (default_space(make(tiny_llama, label_words=words)) for words in (WORDS, None))
    assert set(plain) - set(space) == {"n_layers", "pooling"}
    for rate in ("learning_rate", "head_learning_rate"):
        assert space[rate].high < plain[rate].high  # type: ignore[attr-defined]


def test_warm_start__what_was_learned__is_not_started_anew(tiny_llama: str) -> None:
    clf = make(tiny_llama, warm_start=True).fit(X, Y)
    expected = clf.predict_proba(X)
    clf.set_params(**STILL).fit(X, Y)
    np.testing.assert_allclose(clf.predict_proba(X), expected, atol=1e-6)
    with pytest.raises(ContinuationError, match=r"`label_words` must be as it was, 'given'"):
        clf.set_params(label_words=None, pooling="last").fit(X, Y)


def test_partial_fit__a_new_class__starts_as_its_words(tiny_llama: str) -> None:
    options = {**STILL, "lr_schedule": "constant"}
    two = Y != "space"
    clf = make(tiny_llama, **options).partial_fit(X[two], Y[two], classes=["money", "sport"])
    clf.partial_fit(X, Y, classes=list(WORDS))
    # What is taken off is that of all classes together, so no class is ahead for its age.
    whole = make(tiny_llama, **STILL).fit(X, Y)
    np.testing.assert_allclose(clf.predict_proba(X), whole.predict_proba(X), atol=1e-6)


def test_checkpoint__a_fit_that_broke_off__goes_on_with_these_words_alone(
    tiny_llama: str, tmp_path: Path
) -> None:
    expected = make(tiny_llama).fit(X, Y).predict_proba(X)
    broken_off(make(tiny_llama, checkpoint_dir=tmp_path), X, Y, step=10)
    clf = make(tiny_llama, checkpoint_dir=tmp_path).fit(X, Y)
    np.testing.assert_array_equal(clf.predict_proba(X), expected)


def test_grid_search__words_and_template__chosen_like_any_parameter(tiny_llama: str) -> None:
    grid = {"template": [PROMPT, "{text}\nAbout:\n"], "label_words": [None, WORDS, "auto"]}
    search = GridSearchCV(make(tiny_llama, max_epochs=1), grid, cv=2, error_score="raise")
    assert search.fit(X, Y).best_estimator_.score(X, Y) > 0.3


BAD: list[tuple[str, Any, dict[str, Any]]] = [
    ("needs a `template`.*Got template=None", Y, {"template": None}),
    ("must end in words", Y, {"template": "News: {text}"}),
    ("words for every class.*'sport'", Y, {"label_words": {"money": "m", "space": "o"}}),
    ("same words.*'m'", Y, {"label_words": {**WORDS, "sport": "m"}}),
    ("more than white space", Y, {"label_words": {**WORDS, "sport": ""}}),
    ("must be str.*Got 3 for the label 'sport'", Y, {"label_words": {**WORDS, "sport": 3}}),
    ("'label_words' parameter", Y, {"label_words": "names"}),
    ("`pooling` must be 'auto' or 'last'.*Got 'mean'", Y, {"pooling": "mean"}),
    ("`n_layers` must be 'auto' or None.*Got 2", Y, {"n_layers": 2}),
    ("`attention` must be 'auto' or 'causal'", Y, {"attention": "bidirectional"}),
    ("`long_text` must be 'cut'", Y, {"long_text": "windows"}),
    ("one label per text", np.eye(3, dtype=int)[np.arange(60) % 3], {}),
    ("one label per text.*several columns", np.stack([Y, Y], axis=1), {}),
    ("room for the template", Y, {"max_length": 10}),
]


@pytest.mark.parametrize(("message", "y", "options"), BAD)
def test_fit__bad_input__an_error_before_anything_is_trained(
    message: str, y: Any, options: dict[str, Any], tiny_llama: str
) -> None:
    clf = make(tiny_llama, **STILL).fit(X, Y)
    before = clf.predict_proba(X)
    with pytest.raises(ValueError, match=message):
        clone(clf).set_params(**options).fit(X, y)
    np.testing.assert_array_equal(clf.predict_proba(X), before)


def test_fit__model_without_such_a_head__error_says_why(
    tiny_model: Callable[[str], str], tmp_path: Path
) -> None:
    with pytest.raises(ModelNotSupportedError, match="is an encoder"):
        make(tiny_model("bert")).fit(X, Y)
    capped = tiny_model("gemma2")
    with pytest.raises(ModelNotSupportedError, match=r"no linear function.*GPTZeroShotClassifier"):
        make(capped).fit(X, Y)
