"""GPTZeroShotClassifier: transformers' own likelihoods, priors, errors, and the contract."""

import pickle
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
from transformers import AutoModelForCausalLM, AutoTokenizer

import skgpt
from skgpt import GPTZeroShotClassifier
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


def test_long_text__cut_at_its_end__the_prompts_words_stay(tiny_llama: str) -> None:
    text = "abcdefgh" * 20
    clf = make(tiny_llama, max_length=60, calibration=None).fit(None, CLASSES)
    n_left = 60 - len(PROMPT.format(text="")) - len(" monetary matters")
    with pytest.warns(CutTextsWarning, match=r"1 of 2 texts.*raise max_length"):
        long, short = clf.decision_function([text, text[:n_left]])
    np.testing.assert_allclose(long, short, atol=1e-6)


BAD: list[tuple[str, Any, dict[str, Any]]] = [
    ("y must name at least 2 classes", [], {}),
    ("y must name at least 2 classes", ["sport"], {}),
    ("requires y to be passed", None, {}),
    ("continuous", [0.5, 1.5], {}),
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
]


@pytest.mark.parametrize(("message", "y", "options"), BAD)
def test_fit__bad_input__an_error_before_anything_runs(
    message: str, y: Any, options: dict[str, Any], tiny_llama: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    clf = make(tiny_llama).fit(None, CLASSES)
    before = clf.predict_proba(TEXTS)
    with monkeypatch.context() as patch:
        patch.setattr("skgpt.zero_shot.log_likelihoods", lambda *a, **k: pytest.fail("it ran"))
        with pytest.raises(ValueError, match=message):
            clf.set_params(**options).fit(None, y)
    np.testing.assert_array_equal(clf.predict_proba(TEXTS), before)


def test_fit__encoder__error_says_what_to_use(tiny_model: Callable[[str], str]) -> None:
    with pytest.raises(ModelNotSupportedError, match="is an encoder"):
        make(tiny_model("bert")).fit(None, CLASSES)


def test_fit__several_labels_per_text__error_names_another_way(tiny_llama: str) -> None:
    with pytest.raises(InvalidTextError, match=r"one label per text.*GPTTextClassifier"):
        make(tiny_llama).fit(["a", "b"], np.eye(2, dtype=int))


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
    ("calibration", "expected"),
    [
        ("content-free", ROUNDING),
        pytest.param(None, ROUNDING, marks=pytest.mark.thorough),
        pytest.param("batch", LOOKS_AT_ALL_ROWS, marks=pytest.mark.thorough),
    ],
    ids=["content-free", "none", "batch"],
)
def test_check_text_estimator__each_calibration__passes_and_says_how_many_ran(
    calibration: Any, expected: dict[str, str], tiny_llama: str
) -> None:
    clf = GPTZeroShotClassifier(tiny_llama, calibration=calibration, precision="fp32")
    report = check_text_estimator(clf, expected_failed_checks=expected)
    # As for the classifier, less what is about weights of rows and several labels.
    version = tuple(int(part) for part in sklearn.__version__.split(".")[:2])
    assert report.n_sklearn_checks >= (55 if version >= (1, 9) else 54)
    assert report.n_text_checks >= 12
    # No parameter draws anything.
    assert set(report.skipped) == {"check_text_same_seed", "check_text_global_random_state"}
    assert {*report.expected_failures, *report.unexpected_passes} == set(expected)
