"""Fitting in parts and on top: partial_fit, warm_start, head_first_epochs."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.base import clone

from skgpt import GPTTextClassifier
from skgpt.exceptions import ContinuationError
from skgpt.fitted_model import FittedModel
from tests.helpers import Fitted, TextData, make, make_text_data

X, y = make_text_data(n_classes=2)

FLAT: dict[str, Any] = {"lr_schedule": "constant", "warmup_ratio": 0.0}
CLASSES = ["money", "space", "sport"]


def proba(clf: GPTTextClassifier, data: TextData) -> np.ndarray:
    return clf.predict_proba(data.X)


@pytest.mark.first_tier(precision=["fp32"])
@pytest.mark.first_tier(precision=["bf16"], trainable=["all"])
@pytest.mark.parametrize("trainable", ["all", 1])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_partial_fit__three_calls__equal_one_fit_of_three_epochs(
    trainable: Any, precision: str, tiny_llama: str, three_class_data: TextData
) -> None:
    X, y = three_class_data
    weights = {"class_weight": {"money": 3.0}}
    clf = make(tiny_llama, trainable_layers=trainable, precision=precision, **weights, **FLAT)
    weight = np.linspace(0, 2, len(X))
    whole = clone(clf).set_params(max_epochs=3).fit(X, y, weight)
    for _ in range(3):
        assert clf.partial_fit(X, y, CLASSES, weight) is clf
    assert np.array_equal(proba(clf, three_class_data), proba(whole, three_class_data))
    assert clf.n_iter_ == 3 == len(clf.history_)
    assert [record["epoch"] for record in clf.history_] == [1, 2, 3]
    assert clf.loss_curve_ == whole.loss_curve_


def test_partial_fit__new_classes__old_columns_move_and_keep_their_ratios(tiny_llama: str) -> None:
    two, three = make_text_data(n_classes=2), make_text_data(n_classes=3)
    clf = make(tiny_llama, **FLAT)
    with pytest.raises(ValueError, match="classes must be passed on the first call"):
        clf.partial_fit(two.X, two.y)
    for _ in range(4):
        clf.partial_fit(two.X, two.y, classes=["money", "sport"])
    before = clf.decision_function(two.X)
    weights = clf._model.network.head.weight.detach().clone()
    # Steps of almost nothing, which leave the head as it was grown.
    grown = copy.copy(clf).set_params(head_learning_rate=1e-12, learning_rate=1e-12)
    grown.partial_fit(two.X[:1], two.y[:1], classes=CLASSES)
    assert grown.classes_.tolist() == CLASSES
    head = grown._model.network.head.weight.detach().numpy()
    np.testing.assert_allclose(head[[0, 2]], weights.numpy(), atol=1e-6)
    np.testing.assert_allclose(head[1], 0, atol=1e-6)
    scores = grown.decision_function(two.X)
    np.testing.assert_allclose(scores[:, 2] - scores[:, 0], before, atol=1e-2)
    assert grown._model.moments.means["head.weight"].shape == head.shape
    # And it learns the new class from there, without forgetting the old ones.
    for _ in range(12):
        clf.partial_fit(three.X, three.y, classes=CLASSES)
    assert clf.score(three.X, three.y) > 0.9


chunk = st.tuples(st.sampled_from("abcd"), st.sampled_from([None, "abc", "abcd", "ab", "cbad"]))


@settings(max_examples=12, deadline=None, derandomize=True)
@given(chunks=st.lists(chunk, min_size=1, max_size=5))
def test_partial_fit__any_course_of_classes__keeps_the_columns_in_order(
    chunks: list[tuple[str, str | None]], tiny_llama: str
) -> None:
    clf = make(tiny_llama, trainable_layers=0)
    known: list[str] = []
    for label, classes in chunks:
        allowed = known if classes is None else sorted(classes)
        try:
            clf.partial_fit(["a text"], [label], classes and list(classes))
        except ValueError:
            assert not set(known) <= set(allowed) or label not in allowed
        else:
            assert set(known) <= set(allowed) and label in allowed
            known = allowed
        assert getattr(clf, "classes_", np.array([])).tolist() == known
    assert not known or clf.predict_proba(["a text"]).shape == (1, len(known))


BAD_PARTIAL = [
    ({}, ["a"], ["tennis"], None, "tennis"),
    ({}, ["a"], ["sport"], ["sport", "space"], "money.*missing"),
    ({"trainable_layers": 2}, ["a"], ["sport"], None, "`trainable_layers` must be as it was, 1"),
    ({"n_layers": 2}, ["a"], ["sport"], None, "`n_layers` must be as it was"),
    ({"pooling": "last"}, ["a"], ["sport"], None, "`pooling` must be as it was"),
    ({"template": "x {text}"}, ["a"], ["sport"], None, "`template`"),
    ({"model": "smollm2-135m"}, ["a"], ["sport"], None, "`model` must be as it was"),
    ({"class_weight": "balanced"}, ["a"], ["sport"], None, "compute_class_weight"),
    ({}, [["a", "b"]], ["sport"], None, "columns as at fit"),
    ({}, ["a"], [[0, 1]], None, "of the same kind"),
    ({"batch_size": 0}, ["a"], ["sport"], None, "'batch_size' parameter"),
]


@pytest.mark.usefixtures("no_training")
@pytest.mark.parametrize(("options", "X", "y", "classes", "message"), BAD_PARTIAL)
def test_partial_fit__what_does_not_fit_the_fitted_model__is_refused_and_loses_nothing(
    options: dict[str, Any],
    X: Any,
    y: Any,
    classes: Any,
    message: str,
    fitted_model: Callable[[str], Fitted],
) -> None:
    clf = copy.copy(fitted_model("two classes").clf).set_params(**options)
    model = clf._model
    with pytest.raises(ValueError, match=message):
        clf.partial_fit(X, y, classes=classes)
    assert clf._model is model
    if {"n_layers", "pooling", "model"} & options.keys():
        with pytest.raises(ContinuationError, match=message):
            clf.set_params(warm_start=True).fit(*fitted_model("two classes")[1:])
        assert clf._model is model


def test_partial_fit__with_early_stopping__is_not_there(tiny_llama: str) -> None:
    clf = make(tiny_llama, early_stopping=True)
    assert not hasattr(clf, "partial_fit")
    with pytest.raises(AttributeError) as caught:
        clf.partial_fit(["a", "b"], [0, 1], classes=[0, 1])
    assert "set early_stopping=False" in str(caught.value.__cause__)
    assert hasattr(clf.set_params(early_stopping=False), "partial_fit")


def test_warm_start__fit_again__goes_on(tiny_llama: str, three_class_data: TextData) -> None:
    X, y = three_class_data
    clf = make(tiny_llama, max_epochs=2, warm_start=True).fit(X, y)
    first = clf.predict_proba(X)
    cold = make(tiny_llama, max_epochs=2).fit(X, y)
    assert np.array_equal(first, cold.predict_proba(X))  # nothing to go on from yet
    clf.fit(X, y)
    assert clf.n_iter_ == 2  # of this fit
    assert clf.loss_curve_[0] < cold.loss_curve_[0]
    # A rate of almost nothing leaves the fitted weights as they are.
    again = clf.predict_proba(X)
    clf.set_params(learning_rate=1e-12, head_learning_rate=1e-12).fit(X, y)
    np.testing.assert_allclose(clf.predict_proba(X), again, atol=1e-2)


def test_warm_start__fewer_classes_in_y__keeps_the_others(tiny_llama: str) -> None:
    X, y = make_text_data(n_classes=3)
    clf = make(tiny_llama, warm_start=True).fit(X, y)
    keep = y != "space"
    clf.fit(X[keep], y[keep])
    assert clf.classes_.tolist() == CLASSES
    assert clf.predict_proba(X).shape == (60, 3)
    with pytest.raises(ValueError, match="tennis"):
        clf.fit(["a", "b"], ["sport", "tennis"])


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_warm_start__more_layers__is_linear_probing_then_fine_tuning(
    precision: str, tiny_llama: str, three_class_data: TextData
) -> None:
    X, y = three_class_data
    clf = make(tiny_llama, trainable_layers=0, warm_start=True, precision=precision).fit(X, y)
    probed = clf.predict_proba(X)
    clf.set_params(trainable_layers=2, learning_rate=1e-12, head_learning_rate=1e-12, max_epochs=1)
    clf.fit(X, y)
    np.testing.assert_allclose(clf.predict_proba(X), probed, atol=2e-2)
    again = pickle.loads(pickle.dumps(clf))
    assert np.array_equal(again.predict_proba(X), clf.predict_proba(X))
    clf.set_params(trainable_layers="all").fit(X, y)
    with pytest.raises(ContinuationError, match="`trainable_layers` must be as it was, 'all'"):
        clf.set_params(trainable_layers=2).fit(X, y)


def test_partial_fit__an_encoder_whose_pooler_never_learns__goes_on(tiny_model: Any) -> None:
    clf = make(tiny_model("bert"), trainable_layers="all", **FLAT)
    whole = clone(clf).set_params(max_epochs=2).fit(X, y)
    clf.partial_fit(X, y, classes=["money", "sport"]).partial_fit(X, y)
    assert np.array_equal(clf.predict_proba(X), whole.predict_proba(X))


def test_partial_fit__an_x_without_names__keeps_those_of_the_first_call(tiny_llama: str) -> None:
    frame = pd.DataFrame({"title": X, "body": X[::-1]})
    clf = make(tiny_llama, max_epochs=1).fit(frame, y)
    with pytest.warns(UserWarning, match="does not have valid feature names"):
        clf.partial_fit(frame.to_numpy(), y)
    assert clf.feature_names_in_.tolist() == ["title", "body"]
    with pytest.raises(ValueError, match="feature names"):
        clf.partial_fit(frame[["body", "title"]], y)
    single = make(tiny_llama, max_epochs=1).fit(frame[["body"]], y).partial_fit(list(X), y)
    assert single.feature_names_in_.tolist() == ["body"]


def test_warm_start__an_opened_model_with_more_layers__is_refused(tiny_llama: str) -> None:
    clf = make(tiny_llama, n_layers=1, warm_start=True, max_epochs=1).fit(X, y)
    opened = pickle.loads(pickle.dumps(clf))
    for n_layers in (None, 2):
        with pytest.raises(ContinuationError, match="`n_layers` must be as it was, 1"):
            opened.set_params(n_layers=n_layers).fit(X, y)
    opened.set_params(n_layers=1).fit(X, y)
    with pytest.raises(ValueError, match="at most the depth"):
        opened.set_params(n_layers=99).fit(X, y)


@pytest.mark.parametrize("method", ["predict", "predict_proba", "decision_function"])
def test_predict__while_classes_are_added__is_of_one_model_or_the_other(
    method: str, tiny_llama: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    clf = make(tiny_llama, max_epochs=2).fit(X, y)
    expected = getattr(clf, method)(X)
    scores = FittedModel.raw_scores

    def handed_over(self: Any, X: Any, verbose: int) -> Any:
        found = scores(self, X, verbose)
        monkeypatch.undo()  # another thread's call, at the worst of moments
        clf.partial_fit(X, y, classes=["aaa", "money", "sport"])
        return found

    monkeypatch.setattr(FittedModel, "raw_scores", handed_over)
    assert np.array_equal(getattr(clf, method)(X), expected)
    assert clf.classes_.tolist() == ["aaa", "money", "sport"]


def test_head_first__epochs__come_on_top_in_fit_alone(tiny_llama: str) -> None:
    clf = make(tiny_llama, head_first_epochs=3, max_epochs=2).fit(X, y)
    assert clf.n_iter_ == 5
    before = clf.predict_proba(X)
    clf.partial_fit(X, y)  # which goes on from there
    assert clf.loss_curve_[-1] < clf.loss_curve_[-2]
    assert not np.array_equal(clf.predict_proba(X), before)
    learns = [record["learning_rate"] > 0 for record in clf.history_]
    assert learns == [False] * 3 + [True] * 3


def test_head_first__early_stopping__counts_no_epoch_of_it(tiny_llama: str) -> None:
    # No epoch improves by so much: each that counts is one without an improvement.
    options = {"early_stopping": True, "n_iter_no_change": 1, "tol": 1e6}
    clf = make(tiny_llama, head_first_epochs=4, max_epochs=5, **options).fit(X, y)
    assert clf.n_iter_ == 5
    assert 1 <= clf.best_iter_ <= 5
