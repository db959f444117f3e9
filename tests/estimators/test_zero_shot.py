"""GPTZeroShotClassifier: transformers' own likelihoods, priors, errors, and the contract."""

import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import sklearn
import torch
from numpy.typing import NDArray
from scipy.special import log_softmax, logsumexp
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.utils import estimator_checks
from transformers import AutoModelForCausalLM, AutoTokenizer

import skgpt
from skgpt import GPTZeroShotClassifier, fitting
from skgpt.exceptions import (
    CutTextsWarning,
    InvalidTextError,
    LabelWordsWarning,
    ModelNotFoundError,
    ModelNotSupportedError,
)
from skgpt.testing import check_text_estimator, tiny_gpt
from tests.helpers import TextData, global_random_state_unchanged

TEXTS = ["a late goal won the match", "", "shares fell", "the bank's orbit", "shares fell"]
PROMPT = "News: {text}\nTopic:"
# Of several tokens; some share a beginning, one is the beginning of another.
WORDS = {"money": ["money", "monetary matters"], "sport": "sport", "space": ["space", "spaces"]}
CLASSES = ["money", "space", "sport"]


def make(model: str, **options: Any) -> GPTZeroShotClassifier:
    defaults = {"template": PROMPT, "label_words": WORDS, "precision": "fp32"}
    return GPTZeroShotClassifier(model, **{**defaults, **options})


def plain_loop(model: str, prompts: list[str]) -> NDArray[np.float64]:
    """Return the log-likelihoods of `CLASSES` by transformers alone, a phrase at a time."""
    causal = AutoModelForCausalLM.from_pretrained(model).eval()
    tokenizer = AutoTokenizer.from_pretrained(model)

    def score(prompt: str, phrase: str) -> float:
        ids = tokenizer(prompt)["input_ids"]
        more = tokenizer(" " + phrase, add_special_tokens=False)["input_ids"]
        with torch.no_grad():
            logs = causal(torch.tensor([ids + more])).logits[0].float().log_softmax(-1)
        at = range(len(ids) - 1, len(ids) + len(more) - 1)
        return sum(float(logs[i, token]) for i, token in zip(at, more, strict=True))

    def of_class(prompt: str, label: str) -> float:
        words = [WORDS[label]] if isinstance(WORDS[label], str) else WORDS[label]
        return float(np.log(np.mean(np.exp([score(prompt, word) for word in words]))))

    return np.array([[of_class(prompt, label) for label in CLASSES] for prompt in prompts])


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gpt_neox", "qwen3", "gemma3"])
def test_scores__each_architecture__equal_a_plain_loop_over_phrases(
    architecture: str, tiny_model: Callable[[str], str]
) -> None:
    model = tiny_model(architecture)
    expected = plain_loop(model, [PROMPT.format(text=text) for text in TEXTS])
    raw = make(model, calibration=None).fit(None, CLASSES)
    np.testing.assert_allclose(raw.decision_function(TEXTS), expected, rtol=1e-5, atol=1e-4)
    one_by_one = [raw.decision_function([text])[0] for text in TEXTS]
    np.testing.assert_allclose(one_by_one, expected, rtol=1e-5, atol=1e-4)
    # Contextual calibration.
    free = plain_loop(model, [PROMPT.format(text=text) for text in ("N/A", "", "[MASK]")])
    prior = np.log(np.exp(log_softmax(free, axis=1)).mean(axis=0))
    calibrated = make(model).fit(None, CLASSES)
    np.testing.assert_allclose(calibrated.prior_, prior, rtol=1e-4, atol=1e-4)
    scores = calibrated.decision_function(TEXTS)
    np.testing.assert_allclose(scores, expected - prior, rtol=1e-5, atol=2e-4)
    log_p = calibrated.predict_log_proba(TEXTS)
    np.testing.assert_allclose(log_p, log_softmax(scores, axis=1), atol=1e-9)
    np.testing.assert_allclose(np.exp(log_p), calibrated.predict_proba(TEXTS), atol=1e-9)
    assert calibrated.predict(TEXTS).tolist() == [CLASSES[i] for i in scores.argmax(axis=1)]


def test_batch_calibration__any_rows__is_off_the_mean_of_their_probabilities(
    tiny_llama: str,
) -> None:
    raw = make(tiny_llama, calibration=None).fit(None, CLASSES).decision_function(TEXTS)
    batch = make(tiny_llama, calibration="batch").fit(None, CLASSES)
    log_p = log_softmax(raw, axis=1)
    expected = raw - (logsumexp(log_p, axis=0) - np.log(len(raw)))
    np.testing.assert_allclose(batch.decision_function(TEXTS), expected, atol=1e-5)
    alone = batch.predict_proba(TEXTS[:1])
    np.testing.assert_allclose(alone, 1 / 3, atol=1e-9)  # a row tells nothing of itself
    assert not hasattr(batch, "prior_")


def test_fit__with_labelled_texts__learns_no_more_than_the_classes(
    tiny_llama: str, three_class_data: TextData
) -> None:
    X, y = three_class_data
    with global_random_state_unchanged():
        with_texts = make(tiny_llama).fit(X, y)
        without = make(tiny_llama).fit(None, ["space", "sport", "money", "sport"])
        np.testing.assert_array_equal(with_texts.predict_proba(X), without.predict_proba(X))
    assert with_texts.classes_.tolist() == without.classes_.tolist() == CLASSES
    assert not hasattr(without, "n_features_in_")
    assert without.label_words_["sport"] == ["sport"]


def test_two_classes__scores__are_the_second_less_the_first(tiny_llama: str) -> None:
    clf = make(tiny_llama, calibration=None, label_words=None).fit(None, [True, False])
    d, p = clf.decision_function(TEXTS), clf.predict_log_proba(TEXTS)
    assert d.shape == (len(TEXTS),)
    np.testing.assert_allclose(d, p[:, 1] - p[:, 0], atol=1e-9)
    assert clf.predict(TEXTS).tolist() == (d > 0).tolist()


def test_template__columns_of_a_frame__laid_out_by_name_or_joined(tiny_llama: str) -> None:
    frame = pd.DataFrame({"title": ["goal", "bank"], "body": ["a match", "fell"]})
    joined = make(tiny_llama).fit(frame, ["sport", "money"])
    named = make(tiny_llama, template="News: {title}\n\n{body}\nTopic: ").fit(None, joined.classes_)
    single = make(tiny_llama).fit(["x", "y"], ["sport", "money"])
    expected = single.predict_proba(["goal\n\na match", "bank\n\nfell"])
    np.testing.assert_allclose(joined.predict_proba(frame), expected, atol=1e-6)
    raw = {"calibration": None}
    now = clone(named).set_params(**raw).fit(None, joined.classes_)
    then = clone(single).set_params(**raw).fit(["x", "y"], ["sport", "money"])
    np.testing.assert_allclose(
        now.predict_proba(frame), then.predict_proba(["goal\n\na match", "bank\n\nfell"]), atol=1e-6
    )
    assert joined.feature_names_in_.tolist() == ["title", "body"]
    with pytest.raises(InvalidTextError, match="none of that name"):
        named.predict(["one text"])
    with pytest.raises(ValueError, match="columns"):
        joined.predict(["one text"])


@pytest.mark.parametrize(
    ("template", "word", "joint"),
    [
        ("{text} =", "odd", " "),
        ("{text} = ", "odd", " "),
        ("{text} =\n", "odd", ""),
        ("{text} “", "odd", ""),
        ("{text} = '", "odd", ""),
        ("{text} =", "好", ""),
        ("{text} \udc00=", "\ud800odd", " "),
    ],
)
def test_phrases__behind_the_prompts_end__joined_by_a_space_where_one_is_due(
    template: str, word: str, joint: str, tiny_llama: str
) -> None:
    clf = make(tiny_llama, template=template, label_words={0: word, 1: "x"}).fit(None, [0, 1])
    expected = (joint + word).replace("\ud800", "\ufffd").encode()  # a token is a byte
    assert bytes(clf._model.phrases[0][0]) == expected
    assert clf.predict_proba(TEXTS).shape == (len(TEXTS), 2)


def test_long_text__cut_at_its_end__the_prompts_words_stay(
    tiny_llama: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "abcdefgh" * 20
    clf = make(tiny_llama, max_length=60, calibration=None).fit(None, CLASSES)
    n_left = 60 - len(PROMPT.format(text="")) - len(" monetary matters")
    monkeypatch.setattr(fitting, "_WARNED", set())
    with pytest.warns(CutTextsWarning, match=r"1 of the 2 texts of this call.*raise max_length"):
        long, short = clf.decision_function([text, text[:n_left]])
    np.testing.assert_allclose(long, short, atol=1e-6)
    clf.predict([text])  # it is said once


def test_long_text__in_windows__has_the_mean_of_their_scores(tiny_llama: str) -> None:
    clf = make(tiny_llama, max_length=60, calibration=None, long_text="windows")
    clf.fit(None, CLASSES)
    n = 60 - len(PROMPT.format(text="")) - len(" monetary matters") - 2
    text = "".join(f"{i:02}" for i in range(40))
    starts = range(0, len(text), (n + 1) // 2)
    windows = [text[start : start + n] for start in starts]
    windows = windows[: 1 + next(i for i, w in enumerate(windows) if text.endswith(w))]
    assert len(windows) > 3
    expected = clf.decision_function(windows).mean(axis=0)
    got = clf.decision_function(["x", text, "y"])
    np.testing.assert_allclose(got[1], expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(got[2], clf.decision_function(["y"])[0], rtol=1e-5, atol=1e-5)
    # The longest column is the one that is read in windows.
    joined = clone(clf).set_params(template="{a}: {b}\nTopic:")
    frame = pd.DataFrame({"a": ["a"], "b": [text]})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert joined.fit(frame.loc[[0, 0]], ["money", "sport"]).predict(frame).shape == (1,)


def test_length_normalized__phrases_of_several_tokens__mean_over_tokens(tiny_llama: str) -> None:
    words = {"a": "sport", "b": "monetary matters"}
    total = make(tiny_llama, label_words=words, calibration=None).fit(None, ["a", "b"])
    mean = clone(total).set_params(length_normalized=True).fit(None, ["a", "b"])
    n_tokens = [len(" " + word) for word in words.values()]
    difference = np.diff(total._model.scores(TEXTS) / n_tokens, axis=1)[:, 0]
    np.testing.assert_allclose(mean.decision_function(TEXTS), difference, rtol=1e-6)


# --- Examples in the prompt


def test_examples__in_the_prompt__stand_before_each_text(
    tiny_llama: str, three_class_data: TextData
) -> None:
    X, y = three_class_data
    options = {"calibration": None, "max_length": 400, "label_words": None}
    with global_random_state_unchanged():
        clf = make(tiny_llama, n_examples=6, random_state=0, **options).fit(X, y)
    assert sorted(np.asarray(y)[clf.examples_]) == sorted([*clf.classes_, *clf.classes_])
    shown = "".join(f"{PROMPT.format(text=X[i])} {y[i]}\n\n" for i in clf.examples_)
    written = make(tiny_llama, template=shown + PROMPT, **{**options, "max_length": 800})
    expected = written.fit(None, clf.classes_).decision_function(X)
    np.testing.assert_allclose(clf.decision_function(X), expected, rtol=1e-5, atol=1e-4)
    # The same rows of one seed; others of another; none by default.
    again = clone(clf).fit(X, y)
    np.testing.assert_array_equal(again.examples_, clf.examples_)
    other = clone(clf).set_params(random_state=1).fit(X, y)
    assert other.examples_.tolist() != clf.examples_.tolist()
    assert not hasattr(make(tiny_llama).fit(X, y), "examples_")
    # What says nothing stands behind the examples, too.
    prior = clone(clf).set_params(calibration="content-free").fit(X, y).prior_
    free = written.decision_function(["N/A", "", "[MASK]"])
    expected_prior = np.log(np.exp(log_softmax(free, axis=1)).mean(axis=0))
    np.testing.assert_allclose(prior, expected_prior, rtol=1e-4, atol=1e-4)


def test_examples__of_a_rare_class__its_share_of_them(tiny_llama: str) -> None:
    y = np.array(["space"] * 30 + ["sport"] * 15 + ["money"] * 15)
    X = [f"text {i}" for i in range(60)]
    clf = make(tiny_llama, n_examples=8, random_state=0, max_length=400).fit(X, y)
    assert sorted(y[clf.examples_]) == ["money"] * 2 + ["space"] * 4 + ["sport"] * 2


def test_examples__too_long__the_longest_are_cut(tiny_llama: str) -> None:
    X, y = ["abcdefgh" * 30, "short"], ["money", "sport"]
    clf = make(tiny_llama, n_examples=2, max_length=120, random_state=0).fit(X, y)
    shown = clf._model.template.words[0]
    assert len(shown) - len("News: ") == 120 == clf._model.n_context
    assert "News: short\nTopic: sport\n\n" in shown
    pickled = pickle.loads(pickle.dumps(clf))
    np.testing.assert_array_equal(pickled.predict_proba(X), clf.predict_proba(X))
    np.testing.assert_array_equal(pickled.examples_, clf.examples_)


@pytest.mark.parametrize(
    ("message", "options"),
    [
        ("at most the number of labelled texts.*Got 3 for 2", {"n_examples": 3}),
        (r"must fit in 40 tokens\. 2 need at least .*, and 1 fit", {"max_length": 40}),
        (r"must fit in 24 tokens\. 2 need at least .*, and 0 fit", {"max_length": 1000}),
    ],
)
def test_examples__that_do_not_fit__error_says_how_many_do(
    message: str, options: dict[str, Any], tiny_llama: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "skgpt.prompted_model.log_likelihoods", lambda *a, **k: pytest.fail("it ran")
    )
    with pytest.raises(InvalidTextError, match=message):
        make(tiny_llama, **{"n_examples": 2, **options}).fit(["a", "b"], ["money", "sport"])
    if "n_examples" in options:
        with pytest.raises(InvalidTextError, match=r"Got 3 for 0: pass them as X and y"):
            make(tiny_llama, **options).fit(None, CLASSES)


# --- Chat


def test_chat__a_template_of_the_tokenizers__the_answer_begins_with_the_words(
    tmp_path: Path,
) -> None:
    model = tiny_gpt(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(model)
    with pytest.raises(ModelNotSupportedError, match="chat template"):
        make(model, chat=True).fit(None, CLASSES)
    tokenizer.chat_template = (
        "{% for m in messages %}<s>{{ m.role }}\n{{ m.content }}</s>{% endfor %}"
        "{{ '<s>assistant\n' }}"
    )
    tokenizer.save_pretrained(model)
    options = {"chat": True, "calibration": None, "template": "Which topic? {text}"}
    clf = make(model, **options).fit(None, CLASSES)
    causal = AutoModelForCausalLM.from_pretrained(model).eval()
    for text, scores in zip(TEXTS, clf.decision_function(TEXTS), strict=True):
        message = [{"role": "user", "content": f"Which topic? {text}"}]
        ids = tokenizer.apply_chat_template(message, return_dict=False)
        more = list(b"sport")
        with torch.no_grad():
            logs = causal(torch.tensor([ids + more])).logits[0].log_softmax(-1)
        expected = sum(logs[len(ids) - 1 + i, token] for i, token in enumerate(more))
        assert scores[2] == pytest.approx(float(expected), rel=1e-5)
    again = pickle.loads(pickle.dumps(clf))
    np.testing.assert_array_equal(again.predict_proba(TEXTS), clf.predict_proba(TEXTS))
    few = make(model, **options, n_examples=1, random_state=0).fit(["a", "b"], ["money", "sport"])
    shown = {0: "a\nmoney", 1: "b\nsport"}[few.examples_[0]]
    assert few._model.template.words[0] == f"Which topic? {shown}\n\nWhich topic? "


# --- Any number of labels

ASKED = "News: {text}\nIs it about {label}? Answer:"
INDICATOR = np.array([[0, 1], [1, 0], [1, 1], [0, 0], [1, 0]])


@pytest.mark.parametrize("options", [{}, {"calibration": None}, {"length_normalized": True}])
@pytest.mark.parametrize("architecture", ["llama", "bloom"])  # as a tree, and one by one
@pytest.mark.first_tier(architecture=["llama"])
def test_labels__asked_for_each__as_a_classifier_for_each(
    architecture: str, options: dict[str, Any], tiny_model: Callable[[str], str]
) -> None:
    model = tiny_model(architecture)
    options = {"answers": ("no", "yes sir"), **options}
    words = {"money": ["money"], "sport": ["sport"]}
    if options.get("calibration", "content-free") is None:  # whose prior is that of the mean
        words["money"] += ["finance"]
    clf = make(model, template=ASKED, label_words=words, **options).fit(None, ["sport", "money"])
    assert clf.classes_.tolist() == ["money", "sport"]

    def alone(word: str) -> GPTZeroShotClassifier:
        asked = make(model, template=ASKED.replace("{label}", word), label_words=None, **options)
        return asked.set_params(label_words={0: "no", 1: "yes sir"}).fit(None, [0, 1])

    money = [alone(word).decision_function(TEXTS) for word in words["money"]]
    expected = np.stack([np.mean(money, axis=0), alone("sport").decision_function(TEXTS)], axis=1)
    scores = clf.decision_function(TEXTS)
    np.testing.assert_allclose(scores, expected, rtol=1e-5, atol=1e-4)
    np.testing.assert_array_equal(clf.predict(TEXTS), scores > 0)
    np.testing.assert_allclose(clf.predict_proba(TEXTS), 1 / (1 + np.exp(-scores)))
    np.testing.assert_allclose(np.exp(clf.predict_log_proba(TEXTS)), clf.predict_proba(TEXTS))


def test_labels__asked_for_each__a_prompt_runs_once_for_all(
    tiny_llama: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    clf = make(tiny_llama, template=ASKED, label_words=None).fit(None, CLASSES)
    seen: list[int] = []
    hook = clf._model.network.trunk.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(len(kwargs["boundaries"].lengths)),
        with_kwargs=True,
    )
    clf.predict(["one", "two", "one"])
    hook.remove()
    assert sum(seen) in (2, 3)  # two different texts, and a filler


def test_indicator__columns_with_names__are_the_labels_words(tiny_llama: str) -> None:
    frame = pd.DataFrame(INDICATOR, columns=["money", "sport"])
    named = make(tiny_llama, template=ASKED, label_words="auto").fit(TEXTS, frame)
    words = {0: "money", 1: "sport"}
    mapped = make(tiny_llama, template=ASKED, label_words=words).fit(TEXTS, INDICATOR)
    assert mapped.classes_.tolist() == [0, 1]
    assert named.label_words_ == mapped.label_words_ == {0: ["money"], 1: ["sport"]}
    np.testing.assert_array_equal(named.predict_proba(TEXTS), mapped.predict_proba(TEXTS))
    right = (named.predict(TEXTS) == INDICATOR).all(axis=1).mean()
    assert named.score(TEXTS, INDICATOR) == pytest.approx(right)
    again = pickle.loads(pickle.dumps(named))
    np.testing.assert_array_equal(again.predict_proba(TEXTS), named.predict_proba(TEXTS))
    np.testing.assert_array_equal(again.prior_, named.prior_)


def test_indicator__examples__each_asks_for_one_label_and_answers_come_by_turns(
    tiny_llama: str,
) -> None:
    options = {"label_words": {0: "money", 1: "sport"}, "calibration": None, "max_length": 300}
    few = make(tiny_llama, template=ASKED, n_examples=4, random_state=0, **options)
    few.fit(TEXTS, INDICATOR)
    shown = few._model.template.words[0].removesuffix("News: ")
    answers = []
    for row, block in zip(few.examples_, shown.strip().split("\n\n"), strict=True):
        text, label = TEXTS[row], "money" if "money" in block else "sport"
        answers.append(INDICATOR[row, ["money", "sport"].index(label)])
        answer = ["no", "yes"][answers[-1]]
        assert block == f"News: {text}\nIs it about {label}? Answer: {answer}"
    assert answers == [1, 0, 1, 0]
    written = make(tiny_llama, template=shown + ASKED, **{**options, "max_length": 700})
    expected = written.fit(TEXTS, INDICATOR).decision_function(TEXTS)
    np.testing.assert_allclose(few.decision_function(TEXTS), expected, rtol=1e-5, atol=1e-4)


def test_indicator__explain__the_log_odds_that_a_token_is_missed_by(tiny_llama: str) -> None:
    clf = make(tiny_llama, template=ASKED, label_words={0: "money", 1: "sport"})
    clf.fit(TEXTS, INDICATOR)
    table = clf.explain(["ab c"], target=[[1, 1]])
    assert table["class"].tolist() == [0] * 4 + [1] * 4
    whole, without = clf.decision_function(["ab c", "a c"])
    values = table.loc[table["token"] == "b", "value"]
    np.testing.assert_allclose(values, whole - without, atol=1e-4)
    np.testing.assert_allclose(
        table["baseline"].unique(), clf.decision_function([""])[0], atol=1e-4
    )
    likely = clf.predict_proba(["ab c"])[0]
    shown = clf.explain(["ab c"])["class"].unique()
    assert set(shown) == {*np.flatnonzero(likely > 0.5), likely.argmax()}


def test_indicator__chat__the_question_ends_the_message(tmp_path: Path) -> None:
    model = tiny_gpt(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.chat_template = (
        "{% for m in messages %}<s>{{ m.content }}</s>{% endfor %}{{ '<s>assistant\n' }}"
    )
    tokenizer.save_pretrained(model)
    options = {"chat": True, "label_words": None}
    clf = make(model, template="{text}\nAbout {label}", **options).fit(None, ["money", "sport"])
    alone = make(model, template="{text}\nAbout sport", **options).fit(None, ["no", "yes"])
    expected = alone.decision_function(TEXTS)
    np.testing.assert_allclose(clf.decision_function(TEXTS)[:, 1], expected, rtol=1e-5, atol=1e-4)


@pytest.mark.filterwarnings("ignore::skgpt.exceptions.NumbersAsTextWarning")
@pytest.mark.parametrize(
    "check",
    [
        estimator_checks.check_classifiers_multilabel_output_format_predict,
        estimator_checks.check_classifiers_multilabel_output_format_predict_proba,
        estimator_checks.check_classifiers_multilabel_output_format_decision_function,
    ],
)
def test_sklearn_check__several_labels__passes(check: Callable[..., None], tiny_llama: str) -> None:
    words = dict(enumerate(["money", "sport", "space", "food", "art"]))
    clf = make(tiny_llama, template=ASKED, label_words=words)
    assert clf.__sklearn_tags__().classifier_tags.multi_label
    assert not make(tiny_llama).__sklearn_tags__().classifier_tags.multi_label
    check("GPTZeroShotClassifier", clf)


BAD: list[tuple[str, Any, dict[str, Any]]] = [
    ("y must name at least 2 classes", [], {}),
    ("y must name at least 2 classes", ["sport"], {}),
    ("requires y to be passed", None, {}),
    ("continuous", [0.5, 1.5], {}),
    ("NaN", [np.nan, 1.0], {}),
    ("inf", [np.inf, 1.0], {}),
    ("same words.*'goal'", ["a", "b"], {"label_words": {"a": "goal", "b": ["x", " goal"]}}),
    ("words for every class.*'b'", ["a", "b"], {"label_words": {"a": "goal"}}),
    ("empty list for 'a'", ["a", "b"], {"label_words": {"a": [], "b": "x"}}),
    ("more than white space.*3", ["a", "b"], {"label_words": {"a": [3], "b": "x"}}),
    ("more than white space.*' '", ["a", "b"], {"label_words": {"a": " ", "b": "x"}}),
    ("more than white space.*''", ["", "b"], {"label_words": None}),
    ("at least one field", CLASSES, {"template": "Topic:"}),
    ("must end in words", CLASSES, {"template": "Topic of {text}"}),
    ("must end in words", CLASSES, {"template": "Topic of {text} "}),
    ("Every brace", CLASSES, {"template": "{text} of {topic:"}),
    ("room for the template and the label words.*'monetary", CLASSES, {"max_length": 20}),
    ("at most 1024", CLASSES, {"max_length": 2000}),
    ("'label_words' parameter", CLASSES, {"label_words": ["a"]}),
    ("'calibration' parameter", CLASSES, {"calibration": "yes"}),
    ("name the label once", CLASSES, {"template": "{label} or {label}? {text} is:"}),
    ("name the label once", CLASSES, {"template": "Is it {label}?\n{text}\nAnswer:"}),
    ("name the label once", CLASSES, {"template": "Is it {label}? Answer:"}),
    ("words between the text and `{label}`", CLASSES, {"template": "{text} {label}? Answer:"}),
    ("must end in words", CLASSES, {"template": "{text}\nIs it {label}"}),
    ("`answers` must be two different", CLASSES, {"template": ASKED, "answers": ("no", "no ")}),
    ("`answers` must be two different", CLASSES, {"template": ASKED, "answers": ["no"]}),
    ("room for the template.*'monetary", CLASSES, {"template": ASKED, "max_length": 40}),
]


@pytest.mark.parametrize(("message", "y", "options"), BAD)
def test_fit__bad_input__an_error_before_anything_runs(
    message: str, y: Any, options: dict[str, Any], tiny_llama: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    clf = make(tiny_llama).fit(None, CLASSES)
    before = clf.predict_proba(TEXTS)
    with monkeypatch.context() as patch:
        patch.setattr("skgpt.prompted_model.log_likelihoods", lambda *a, **k: pytest.fail("it ran"))
        with pytest.raises(ValueError, match=message):
            clf.set_params(**options).fit(None, y)
    np.testing.assert_array_equal(clf.predict_proba(TEXTS), before)


def test_fit__encoder__error_says_what_to_use(tiny_model: Callable[[str], str]) -> None:
    with pytest.raises(ModelNotSupportedError, match="is an encoder"):
        make(tiny_model("bert")).fit(None, CLASSES)


@pytest.mark.parametrize(
    ("message", "template", "y"),
    [
        (r"an indicator of several: name each in `template`", PROMPT, np.eye(2, dtype=int)),
        (r"y must be an indicator.*MultiLabelBinarizer", ASKED, ["money", "sport"]),
        (r"no columns of classes.*GPTTextClassifier", ASKED, [["a", "b"], ["b", "a"]]),
        (r"requires y to be passed.*fit\(None, \['negative", PROMPT, None),
    ],
)
def test_fit__y_of_another_kind__error_names_another_way(
    message: str, template: str, y: Any, tiny_llama: str
) -> None:
    with pytest.raises(InvalidTextError, match=message):
        make(tiny_llama, template=template).fit(["a", "b"], *([] if y is None else [y]))


def test_fit__labels_that_are_numbers__warns_unless_they_have_words(tiny_llama: str) -> None:
    with pytest.warns(LabelWordsWarning, match=r"\['0', '1'\] are no words"):
        make(tiny_llama, label_words=None).fit(None, [1, 0])
    make(tiny_llama, label_words={0: "bad", 1: "good", 2: "unused"}).fit(None, [1, 0])


@pytest.mark.parametrize(
    ("architecture", "precision"), [("llama", "fp32"), ("gpt_neox", "fp32"), ("llama", "bf16")]
)  # tied, and not; a base that is saved in half precision
@pytest.mark.parametrize("store_base", ["auto", False])
def test_pickle__base_inside_or_by_name__predicts_the_same(
    architecture: str,
    precision: str,
    store_base: Any,
    tiny_model: Callable[[str], str],
    tmp_path: Path,
) -> None:
    frame = pd.DataFrame({"a": TEXTS[2:4], "b": TEXTS[:2]})
    options = {"precision": precision, "store_base": store_base}
    clf = make(tiny_model(architecture), **options).fit(frame, ["sport", "money"])
    expected = clf.predict_proba(frame)
    pickled = pickle.dumps(clf)
    assert (len(pickled) < 6000) == (store_base is False)
    skgpt.save(clf, tmp_path / "saved")
    for again in (pickle.loads(pickled), skgpt.load(tmp_path / "saved")):
        np.testing.assert_array_equal(again.predict_proba(frame), expected)
        assert again.label_words_ == clf.label_words_
        np.testing.assert_array_equal(again.prior_, clf.prior_)


def test_pickle__another_head_by_that_name__refused(tmp_path: Path) -> None:
    model = tiny_gpt(tmp_path, "mistral")
    pickled = pickle.dumps(make(model, store_base=False).fit(None, CLASSES))
    causal = AutoModelForCausalLM.from_pretrained(model)
    with torch.no_grad():
        causal.lm_head.weight.mul_(2)
    causal.save_pretrained(model)
    with pytest.raises(ModelNotFoundError, match="holds other weights"):
        pickle.loads(pickled)


def test_grid_search__template_and_label_words__chosen_like_any_parameter(
    tiny_llama: str, three_class_data: TextData
) -> None:
    X, y = three_class_data
    grid = {"template": [PROMPT, "{text}\nThis is about"], "label_words": [None, WORDS]}
    search = GridSearchCV(make(tiny_llama), grid, cv=2, error_score="raise").fit(X, y)
    best = search.best_estimator_
    assert best.score(X, y) == pytest.approx(search.cv_results_["mean_test_score"].max(), abs=0.2)
    twin = clone(best).fit(None, best.classes_)
    np.testing.assert_array_equal(twin.predict(X), best.predict(X))
    strip = FunctionTransformer(lambda texts: [text.strip() for text in texts])
    piped = make_pipeline(strip, clone(best)).fit(X, y)
    np.testing.assert_array_equal(piped.predict(X), best.predict(X))


def test_search__optuna__over_prompts_that_it_is_given(
    tiny_llama: str, three_class_data: TextData
) -> None:
    from skgpt.tuning import GPTSearchCV

    X, y = three_class_data
    grid = {"template": [PROMPT, "{text}\nThis is about"], "n_examples": [0, 3]}
    clf = make(tiny_llama, label_words=None, random_state=0)
    with pytest.raises(ValueError, match=r"estimators that train.*`param_distributions`"):
        GPTSearchCV(clf, n_trials=2).fit(X, y)
    search = GPTSearchCV(clf, grid, n_trials=2, cv=2, random_state=0, baseline=False).fit(X, y)
    assert search.best_estimator_.template == search.best_params_["template"]
    assert search.predict(X).shape == (len(X),)


@pytest.mark.parametrize("calibration", ["content-free", "batch"])
def test_explain__each_token__the_log_odds_that_it_is_missed_by(
    calibration: Any, tiny_llama: str
) -> None:
    words = {"money": "money", "sport": ["sport", "sports"], "space": "space"}
    frame = pd.DataFrame({"title": ["ab", "", "xy"], "body": ["cd ef", "g", "h"]})
    clf = make(tiny_llama, label_words=words, calibration=calibration).fit(frame, CLASSES)
    table = clf.explain(frame)
    assert [len(of_text) for _, of_text in table.groupby("text")] == [7, 1, 3]
    predictions = clf.predict(frame)
    assert table["class"].tolist() == [predictions[i] for i in table["text"]]
    scores = clf.decision_function(frame)
    raw = clone(clf).set_params(calibration=None).fit(frame, CLASSES)
    prior = raw.decision_function(frame) - scores

    def log_odds(title: str, body: str, label: str) -> float:
        one = frame.assign(title=title, body=body).head(1)
        log_p = log_softmax(raw.decision_function(one)[0] - prior[0])
        k = CLASSES.index(label)
        return float(log_p[k] - logsumexp(np.delete(log_p, k)))

    third = table[(table["text"] == 0) & (table["token"] == "e")].iloc[0]
    assert (third["column"], third["start"], third["end"], third["word"]) == ("body", 3, 4, "ef")
    expected = log_odds("ab", "cd ef", third["class"]) - log_odds("ab", "cd f", third["class"])
    assert third["value"] == pytest.approx(expected, abs=1e-4)
    assert third["baseline"] == pytest.approx(log_odds("", "", third["class"]), abs=1e-4)
    both = clf.explain(frame, target=np.array([[1, 1, 0]] * 3))
    assert both["class"].unique().tolist() == ["money", "space"]
    assert len(both) == 2 * len(table)
    with pytest.raises(ValueError, match="name known ones"):
        clf.explain(frame, target="weather")


def test_prompts__phrases_of_one_token__run_once_each(
    tiny_llama: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    skgpt.clear_cache()
    clf = make(tiny_llama, template="{text} =\n", label_words={0: "a", 1: "b"}, calibration=None)
    clf.fit(None, [0, 1])
    seen: list[int] = []
    trunk = clf._model.network.trunk
    hook = trunk.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(len(kwargs["boundaries"].lengths)),
        with_kwargs=True,
    )
    clf.predict(["one", "two", "one"])
    hook.remove()
    assert sum(seen) in (2, 3)  # two different prompts, and a filler


# The product over the vocabulary is in fp32, and scikit-learn's check allows for 1e-7.
ROUNDING = {
    "check_methods_subset_invariance": (
        "the product with the vocabulary is in fp32, whose last digit depends on the number of rows"
    )
}
LOOKS_AT_ALL_ROWS = {
    "check_methods_subset_invariance": "batch calibration looks at all rows given",
    "check_text_rows_independent": "batch calibration looks at all rows given",
}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"n_examples": 2}, ROUNDING),
        pytest.param({"calibration": None}, ROUNDING, marks=pytest.mark.thorough),
        pytest.param({"calibration": "batch"}, LOOKS_AT_ALL_ROWS, marks=pytest.mark.thorough),
    ],
    ids=["examples", "none", "batch"],
)
def test_check_text_estimator__each_calibration__passes_and_says_how_many_ran(
    options: dict[str, Any], expected: dict[str, str], tiny_llama: str
) -> None:
    clf = GPTZeroShotClassifier(tiny_llama, precision="fp32", **options)
    report = check_text_estimator(clf, expected_failed_checks=expected)
    # As for the classifier, less what is about weights of rows and several labels.
    version = tuple(int(part) for part in sklearn.__version__.split(".")[:2])
    assert report.n_sklearn_checks >= (55 if version >= (1, 9) else 54)
    assert report.n_text_checks >= 14
    assert not report.skipped
    assert {*report.expected_failures, *report.unexpected_passes} == set(expected)
