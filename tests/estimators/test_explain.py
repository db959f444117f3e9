"""explain: values that add up, of the right tokens, whatever the model and the input."""

import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from skgpt import GPTTextClassifier, LoRA
from skgpt.data.template import parse_template
from skgpt.data.tokenization import Tokens, clean, tokenise_with_spans
from skgpt.explanations import _TEXTS_AT_ONCE, attribute
from skgpt.testing.tiny import _ARCHITECTURES as TINY
from skgpt.training.loop import raw_scores
from tests.helpers import TextData, make, make_text_data

DATA = make_text_data(n_classes=3)


def fitted(model: str, data: TextData = DATA, **options: Any) -> GPTTextClassifier:
    given = {"max_epochs": 1, "precision": "fp32", **options}
    return make(model, **given).fit(data.X, data.y)


def assert_adds_up(clf: GPTTextClassifier, X: Any, tolerance: float = 1e-4) -> pd.DataFrame:
    table = clf.explain(X)
    each = table.groupby("text")
    sums = each["value"].sum() + each["baseline"].first()
    scores = clf.decision_function(X)
    expected = np.abs(scores) if scores.ndim == 1 else scores.max(axis=1)
    atol = tolerance * max(np.abs(scores).max(), 1)
    np.testing.assert_allclose(sums, expected, rtol=0, atol=atol)
    assert np.array_equal(each["class"].first(), clf.predict(X))
    assert table["value"].abs().to_numpy().max() > 0
    return table


@pytest.mark.first_tier(architecture=["llama", "bert", "bloom"])
@pytest.mark.parametrize("architecture", sorted(TINY))
def test_explain__each_architecture__values_add_up_to_the_change_of_the_score(
    tiny_model: Callable[[str], str], architecture: str
) -> None:
    clf = fitted(tiny_model(architecture), trainable_layers="all")
    assert_adds_up(clf, DATA.X[:4])


@pytest.mark.parametrize(
    "options",
    [
        {"trainable_layers": 0},
        {"trainable_layers": 1, "pooling": "last"},
        {"lora": LoRA(rank=2), "trainable_layers": 2},
        {"n_layers": 2, "trainable_layers": 1, "precision": "bf16"},
    ],
    ids=["head", "last", "lora", "bf16"],
)
def test_explain__any_way_to_learn__values_add_up(tiny_llama: str, options: dict[str, Any]) -> None:
    clf = fitted(tiny_llama, **options)
    tolerance = 2e-2 if options.get("precision") == "bf16" else 1e-4
    table = assert_adds_up(clf, DATA.X[:4], tolerance)
    opened = pickle.loads(pickle.dumps(clf))
    pd.testing.assert_frame_equal(opened.explain(DATA.X[:4]), table, rtol=1e-3, atol=1e-5)


def test_explain__two_classes__explains_their_difference(tiny_llama: str) -> None:
    data = make_text_data(n_classes=2)
    assert_adds_up(fitted(tiny_llama, data), data.X[:5])


def scores_of(table: pd.DataFrame) -> Any:
    """Return the scores that values and baselines add up to: a row a text, a column a class."""
    each = table.groupby(["text", "class"])
    return (each["value"].sum() + each["baseline"].first()).unstack()


def test_explain__target__the_scores_of_the_classes_asked_for(tiny_llama: str) -> None:
    clf, X = fitted(tiny_llama), DATA.X[:3]
    scores = clf.decision_function(X)
    one = scores_of(clf.explain(X, target="space"))
    assert one.columns.tolist() == ["space"]
    np.testing.assert_allclose(one["space"], scores[:, 1], atol=1e-4)
    each = clf.explain(X, target=pd.Series(["money", "space", "sport"]))
    assert each.groupby("text")["class"].first().tolist() == ["money", "space", "sport"]
    np.testing.assert_allclose(np.diag(scores_of(each)), np.diag(scores), atol=1e-4)
    some = scores_of(clf.explain(X, target=[[1, 0, 1], [0, 0, 0], [0, 1, 0]]))
    expected = [[scores[0, 0], np.nan, scores[0, 2]], [np.nan, scores[2, 1], np.nan]]
    assert some.index.tolist() == [0, 2]
    np.testing.assert_allclose(some[["money", "space", "sport"]], expected, atol=1e-4)
    with pytest.raises(ValueError, match=r"`target` must hold classes .* Got \['weather'\]"):
        clf.explain(X, target="weather")
    with pytest.raises(ValueError, match="X and `target` must have one label per text"):
        clf.explain(X, target=["sport", "money"])


def test_explain__target_of_two_classes__the_other_one_is_the_opposite(tiny_llama: str) -> None:
    data = make_text_data(n_classes=2)
    clf = fitted(tiny_llama, data)
    first, second = (clf.explain(data.X[:3], target=label)["value"] for label in clf.classes_)
    np.testing.assert_allclose(first, -second, atol=1e-5)


def test_explain__multilabel__the_predicted_labels_or_the_nearest(tiny_llama: str) -> None:
    Y = np.array([[label == "sport", label != "money"] for label in DATA.y])
    clf = make(tiny_llama, precision="fp32").fit(DATA.X, Y.astype(int))
    scores = clf.decision_function(DATA.X)
    n_predicted = (scores > 0).sum(axis=1)
    rows = [int(np.flatnonzero(n_predicted == n)[0]) for n in range(3)]
    found = scores_of(clf.explain(DATA.X[rows])).reindex(columns=[0, 1])
    wanted = (scores > 0) | (scores == scores.max(axis=1, keepdims=True))
    np.testing.assert_allclose(found, np.where(wanted, scores, np.nan)[rows], atol=1e-4)
    every = scores_of(clf.explain(DATA.X[rows], target=np.ones((3, 2), dtype=int)))
    np.testing.assert_allclose(every, scores[rows], atol=1e-4)


def test_explain__hundreds_of_labels__a_backward_pass_for_the_explained_alone(
    tiny_llama: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    Y = np.zeros((len(DATA.X), 200), dtype=int)
    Y[:, 7] = 1
    clf = make(tiny_llama, max_epochs=1, precision="fp32").fit(DATA.X, Y)
    n_explained = max(1, clf.predict(DATA.X[:1]).sum())
    grad, calls = torch.autograd.grad, []
    monkeypatch.setattr(torch.autograd, "grad", lambda *a, **k: calls.append(1) or grad(*a, **k))
    clf.explain(DATA.X[:1])
    assert len(calls) == n_explained < 100


def test_explain__spans__are_where_the_tokens_and_words_stand(tiny_llama: str) -> None:
    clf = fitted(tiny_llama)
    X = ["a goal,  late", "\ud83d\ude00 héé 日本", "", "  ", "the \U0001f600"]
    table = clf.explain(X)
    assert set(table["text"]) == {0, 1, 3, 4}  # an empty text has no token of its own
    for row in table.itertuples():
        assert clean(X[row.text][row.start : row.end]) == row.token
        assert clean(X[row.text][row.word_start :]).startswith(row.word)
    by_text = table.groupby("text")["word"].agg(lambda words: list(dict.fromkeys(words)))
    assert by_text[0] == ["a", "goal,", "late"]
    assert by_text[1] == ["\U0001f600", "héé", "日", "本"]
    assert by_text[3] == [""]


@pytest.mark.parametrize("max_length", [64, 24], ids=["whole", "cut"])
def test_explain__columns__tokens_lie_in_their_cells(tiny_llama: str, max_length: int) -> None:
    X = pd.DataFrame({"title": ["a goal", "rates"], "body": ["in the last minute", "rose on"]})
    clf = make(
        tiny_llama, template="T: {title}\nB: {body}", max_length=max_length, precision="fp32"
    )
    table = assert_adds_up(clf.fit(X, ["sport", "money"]), X)
    for (text, column), rows in table.groupby(["text", "column"]):
        cell = X[column][text]
        assert "".join(rows["token"]) == cell[: rows["end"].max()]
        assert max_length == 24 or rows["end"].max() == len(cell)
    template = parse_template(clf.template, 2, list(X))
    encoder = clf._model.network.pretrained.tokenizer
    _, spans = tokenise_with_spans(
        [X["title"].tolist(), X["body"].tolist()], template, encoder, max_length
    )
    assert (spans.column == -1).sum() == 2 * len("T: \nB: ")


def test_attribute__more_steps__converge_to_the_same_values(tiny_llama: str) -> None:
    clf = fitted(tiny_llama, max_epochs=3)
    network = clf._model.network
    template = parse_template(None, 1, None)
    tokens, spans = tokenise_with_spans(
        [list(DATA.X[:3])], template, network.pretrained.tokenizer, 64
    )
    ways = np.tile(np.eye(3, dtype=np.float32)[:1], (3, 1, 1))

    def values(n_steps: int) -> Any:
        found = attribute(network, tokens, spans.column >= 0, ways, n_steps)
        return np.concatenate([text.values_TD for text in found])

    fine, finer, finest = values(32), values(128), values(256)
    scale = np.abs(finest).max()
    assert np.abs(finer - finest).max() < 0.01 * scale
    assert np.abs(finer - finest).max() < np.abs(fine - finest).max()


def test_explain__weights__get_no_gradient_and_cost_none(tiny_llama: str) -> None:
    flops = []
    for trainable_layers in (0, "all"):
        clf = fitted(tiny_llama, trainable_layers=trainable_layers)
        clf.predict(DATA.X[:3])
        learning = [p.requires_grad for p in clf._model.network.parameters()]
        with FlopCounterMode(display=False) as counter:
            clf.explain(DATA.X[:3])
        flops.append(counter.get_total_flops())
        assert [p.requires_grad for p in clf._model.network.parameters()] == learning
        assert all(p.grad is None for p in clf._model.network.parameters())
    # What is frozen is kept by predict, so the second runs one small forward pass more.
    assert flops[1] == pytest.approx(flops[0], rel=0.1)


def test_explain__a_text_twice__equal_values(tiny_llama: str) -> None:
    clf = fitted(tiny_llama)
    table = clf.explain([DATA.X[0], DATA.X[1], DATA.X[0]])
    first, again = (table[table["text"] == i]["value"].to_numpy() for i in (0, 2))
    assert np.array_equal(first, again)


@pytest.mark.parametrize("architecture", ["llama", "bert"])
def test_explain__baseline__is_the_score_of_as_many_tokens_of_punctuation(
    tiny_model: Callable[[str], str], architecture: str
) -> None:
    data = make_text_data(n_classes=2)
    clf = fitted(tiny_model(architecture), data)
    encoder = clf._model.network.pretrained.tokenizer
    text = "a goal, late"
    n = len(encoder.encode([text])[0])
    in_turn = encoder.neutral_ids()
    assert encoder.encode([".", ","]) == [[i] for i in in_turn[-2:]]
    first = len(encoder.prefix_ids)  # which counts
    neutral = [in_turn[k % len(in_turn)] for k in range(first, first + n)]
    if not first:  # what begins a text for the model is the token of an empty one
        neutral[0] = encoder.empty_id
    ids = np.array([*encoder.prefix_ids, *neutral, *encoder.suffix_ids])
    tokens = Tokens(ids, np.array([0, len(ids)]))
    scores = raw_scores(clf._model.network, tokens, token_budget=512, memory_budget=0)
    sign = 1 if clf.predict([text])[0] == clf.classes_[0] else -1
    expected = sign * (scores[0, 0] - scores[0, 1])
    assert clf.explain([text])["baseline"].iloc[0] == pytest.approx(expected, abs=1e-4)


def test_explain__more_texts_than_are_run_at_once__each_has_its_own(tiny_llama: str) -> None:
    texts = [f"goal {i} of {i * i}" for i in range(_TEXTS_AT_ONCE + 3)]
    clf = fitted(tiny_llama)
    many = clf.explain(texts)
    for text in (0, _TEXTS_AT_ONCE, _TEXTS_AT_ONCE + 2):
        one = clf.explain([texts[text]])
        values = many[many["text"] == text]["value"].to_numpy()
        np.testing.assert_allclose(values, one["value"].to_numpy(), atol=1e-5)


def test_explain__without_pandas__says_so(tiny_llama: str, monkeypatch: pytest.MonkeyPatch) -> None:
    clf = fitted(tiny_llama)
    monkeypatch.setitem(__import__("sys").modules, "pandas", None)
    with pytest.raises(ImportError, match="pip install pandas"):
        clf.explain(["a goal"])
