"""GPTTextClassifier: what it predicts, what it promises, what it refuses."""

import copy
import inspect
import pickle
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone
from sklearn.preprocessing import LabelEncoder

from skgpt import GPTTextClassifier
from skgpt._base import BaseGPTText
from skgpt.cost import how_to_shorten
from skgpt.exceptions import ModelNotFoundError, ModelNotSupportedError
from tests.helpers import Fitted, TextData, global_random_state_unchanged, make


def test_fit__three_classes__learns_and_reports(
    tiny_llama: str, three_class_data: TextData
) -> None:
    X, y = three_class_data
    clf = make(tiny_llama, trainable_layers="all", max_epochs=15)
    assert clf.fit(X, y) is clf
    assert clf.score(X, y) > 0.9
    assert clf.classes_.tolist() == sorted(set(y))
    assert clf.n_iter_ == 15 == len(clf.history_) == len(clf.loss_curve_)
    assert clf.loss_curve_[-1] < clf.loss_curve_[0]
    assert clf.pooling_ == "mean"
    assert clf.device_ in ("cpu", "cuda:0")
    assert clf.model_id_ == tiny_llama
    assert set(clf.history_[0]) == {
        "epoch",
        "loss",
        "learning_rate",
        "seconds",
        "tokens_per_second",
        "skipped_steps",
    }


def test_predictions__three_classes__agree_with_each_other(
    fitted_model: Callable[[str], Fitted],
) -> None:
    clf, X, _ = fitted_model("default")
    scores, proba = clf.decision_function(X), clf.predict_proba(X)
    assert scores.shape == proba.shape == (len(X), 3)
    np.testing.assert_allclose(proba.sum(axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(np.exp(clf.predict_log_proba(X)), proba, rtol=1e-4)
    assert (clf.classes_[scores.argmax(axis=1)] == clf.predict(X)).all()
    assert (proba.argmax(axis=1) == scores.argmax(axis=1)).all()


def test_decision_function__two_classes__is_the_difference(
    fitted_model: Callable[[str], Fitted],
) -> None:
    clf, X, _ = fitted_model("two classes")
    scores = clf.decision_function(X)
    assert scores.shape == (len(X),)
    assert ((scores > 0) == (clf.predict(X) == clf.classes_[1])).all()
    np.testing.assert_allclose(1 / (1 + np.exp(-scores)), clf.predict_proba(X)[:, 1], rtol=1e-4)


def test_fit__same_random_state__is_the_same_bit_for_bit(
    tiny_llama: str, two_class_data: TextData
) -> None:
    X, y = two_class_data
    one, two = (make(tiny_llama).fit(X, y).predict_proba(X) for _ in range(2))
    assert np.array_equal(one, two)
    other = make(tiny_llama, random_state=1).fit(X, y).predict_proba(X)
    assert not np.array_equal(one, other)


def test_fit_and_predict__global_random_state__is_untouched(
    tiny_llama: str, two_class_data: TextData
) -> None:
    X, y = two_class_data
    with global_random_state_unchanged():
        make(tiny_llama, max_epochs=1).fit(X, y).predict(X)


def test_fit__random_state_none__follows_numpy_as_scikit_learn_does(
    tiny_llama: str, two_class_data: TextData
) -> None:
    X, y = two_class_data
    results = []
    for seed in (5, 5, 6):
        np.random.seed(seed)
        results.append(make(tiny_llama, random_state=None).fit(X, y).predict_proba(X))
    assert np.array_equal(results[0], results[1])
    assert not np.array_equal(results[0], results[2])


def test_two_fitted_models__alive_at_once__do_not_touch_each_other(
    tiny_llama: str, two_class_data: TextData
) -> None:
    X, y = two_class_data
    first = make(tiny_llama, trainable_layers="all").fit(X, y)
    before = first.predict_proba(X)
    flipped = np.where(y == y[0], "other", y[0])
    second = make(tiny_llama, trainable_layers=2, learning_rate=1e-2).fit(X, flipped)
    assert np.array_equal(first.predict_proba(X), before)
    alone = clone(second).fit(X, flipped)
    assert np.array_equal(alone.predict_proba(X), second.predict_proba(X))


def test_fit__again_on_other_labels__starts_from_the_pretrained_model(
    tiny_llama: str, two_class_data: TextData
) -> None:
    X, y = two_class_data
    clf = make(tiny_llama).fit(X, np.where(y == y[0], 7, 3))
    assert clf.classes_.tolist() == [3, 7]
    again = clf.fit(X, y).predict_proba(X)
    assert np.array_equal(again, make(tiny_llama).fit(X, y).predict_proba(X))


def test_fit__odd_but_legal_texts__are_handled(tiny_llama: str) -> None:
    X = ["", "\ud800 lone", "\U0001f600\U0001f600", "x" * 100_000, "  ", "</s>", "\x00\x07"]
    y = ["a", "b", "c", "a", "b", "c", "a"]
    clf = make(tiny_llama, max_epochs=1).fit(X, y)
    assert np.isfinite(clf.predict_proba(X)).all()
    assert clf.predict([""]).shape == (1,)


def test_fit__one_text_of_each_class__works(tiny_llama: str) -> None:
    clf = make(tiny_llama, max_epochs=20, trainable_layers="all").fit(["cold", "warm"], [1, 0])
    assert clf.predict(["cold", "warm"]).tolist() == [1, 0]


def test_fit__read_only_input__is_left_alone(tiny_llama: str, two_class_data: TextData) -> None:
    X, y = two_class_data
    assert not X.flags.writeable
    weight = np.ones(len(X))
    weight.setflags(write=False)
    make(tiny_llama, max_epochs=1).fit(X, y, sample_weight=weight)


def test_fit__a_data_frame__checks_its_columns_at_predict(tiny_llama: str) -> None:
    frame = pd.DataFrame({"title": ["a", "b", "c", "d"], "body": ["w", "x", "y", "z"]})
    clf = make(tiny_llama, max_epochs=1).fit(frame, [0, 1, 0, 1])
    assert clf.n_features_in_ == 2
    assert clf.feature_names_in_.tolist() == ["title", "body"]
    assert clf.predict(frame).shape == (4,)
    with pytest.raises(ValueError, match="feature names"):
        clf.predict(frame.rename(columns={"body": "text"}))
    with (
        pytest.warns(UserWarning, match="does not have valid feature names"),
        pytest.raises(ValueError, match="X has 1 features"),
    ):
        clf.predict(frame[["title"]].to_numpy())
    with pytest.raises(ValueError, match=r"columns as at fit: 2\. Got one text per row"):
        clf.predict(["a", "b"])
    clf.fit(["a", "b"], [0, 1])
    assert not hasattr(clf, "n_features_in_")
    with pytest.raises(ValueError, match=r"one text per row\. Got 2"):
        clf.predict(frame)


def test_predict__one_column_or_a_plain_list__is_the_same(tiny_llama: str) -> None:
    texts, labels = ["a", "b", "c", "d"], [0, 1, 0, 1]
    frame = pd.DataFrame({"text": texts})
    by_list = make(tiny_llama, max_epochs=1).fit(texts, labels)
    by_frame = make(tiny_llama, max_epochs=1).fit(frame, labels)
    expected = by_list.predict_proba(texts)
    for proba in (
        by_list.predict_proba(frame),
        by_frame.predict_proba(texts),
        by_frame.predict_proba(frame),
    ):
        assert np.array_equal(proba, expected)


def test_classes__their_dtype__is_what_scikit_learn_would_have(tiny_llama: str) -> None:
    X, labels = ["a", "b", "c", "d"], ["x", "y", "x", "y"]
    for y in (
        labels,
        np.array(labels),
        np.array(labels, dtype=object),
        [1, 2, 1, 2],
        [True, False],
    ):
        clf = make(tiny_llama, max_epochs=1).fit(X[: len(y)], y)
        assert clf.classes_.dtype == LabelEncoder().fit(y).classes_.dtype
        assert clf.predict(X).dtype == clf.classes_.dtype


BAD_INPUT = [
    ({}, ["a", None], ["x", "y"], None, "Row 1 is None"),
    ({}, ["a", float("nan")], ["x", "y"], None, "Row 1 is nan"),
    ({}, ["a", pd.NA], ["x", "y"], None, "Row 1 is <NA>"),
    ({}, ["a", 3], ["x", "y"], None, "Row 1 is 3"),
    ({}, ["a", b"b"], ["x", "y"], None, "Row 1 is b'b'"),
    ({}, ["a", "b"], ["x", "y", "z"], None, r"\[2, 3\]"),
    ({}, [1.0, 2.0], ["x", "y"], None, "Reshape your data"),
    ({}, [], [], None, "at least one text"),
    ({}, ["a", "b"], ["x", "x"], None, "only one class"),
    ({}, ["a", "b"], [0.25, 1.5], None, "continuous"),
    ({}, ["a", "b"], None, None, "target y is None"),
    ({}, ["a", "b"], ["x", "y"], [1.0, -1.0], "[Nn]egative"),
    ({}, ["a", "b"], ["x", "y"], [0.0, 0.0], "zero"),
    ({}, ["a", "b"], ["x", "y"], [1.0], "expected"),
    ({"max_length": 1}, ["a", "b"], ["x", "y"], None, "max_length.*Got 1"),
    ({"max_length": 5000}, ["a", "b"], ["x", "y"], None, "`max_length` must be at most"),
    ({"n_layers": 9}, ["a", "b"], ["x", "y"], None, "`n_layers` must be at most"),
    ({"n_layers": True}, ["a", "b"], ["x", "y"], None, "`n_layers` must be an int"),
    ({"n_layers": 0}, ["a", "b"], ["x", "y"], None, "n_layers"),
    ({"trainable_layers": 4}, ["a", "b"], ["x", "y"], None, "`trainable_layers`"),
    ({"trainable_layers": "some"}, ["a", "b"], ["x", "y"], None, "trainable_layers"),
    ({"pooling": "max"}, ["a", "b"], ["x", "y"], None, "pooling"),
    ({"class_weight": {"z": 1}}, ["a", "b"], ["x", "y"], None, "not among"),
    ({"class_weight": "even"}, ["a", "b"], ["x", "y"], None, "class_weight"),
    ({"device": "tpu"}, ["a", "b"], ["x", "y"], None, "`device` must be"),
    ({"device": "cuda:99"}, ["a", "b"], ["x", "y"], None, "needs CUDA device 99"),
    ({"learning_rate": 0.0}, ["a", "b"], ["x", "y"], None, "learning_rate"),
    ({"precision": "int8"}, ["a", "b"], ["x", "y"], None, "precision"),
]


@pytest.mark.parametrize(("options", "X", "y", "weight", "message"), BAD_INPUT)
def test_fit__bad_input__is_refused_before_training_and_loses_nothing(
    options: dict[str, Any],
    X: Any,
    y: Any,
    weight: Any,
    message: str,
    fitted_model: Callable[[str], Fitted],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clf = copy.copy(fitted_model("two classes").clf).set_params(**options)
    attributes = {k: id(v) for k, v in vars(clf).items() if k.endswith("_")}
    monkeypatch.setattr("skgpt.fitting.train", lambda *a, **k: pytest.fail("training began"))
    with pytest.raises(ValueError, match=message):
        clf.fit(X, y, sample_weight=weight)
    assert {k: id(v) for k, v in vars(clf).items() if k.endswith("_")} == attributes


def test_fit__an_unknown_model__is_an_os_error_that_lists_the_alias() -> None:
    with pytest.raises(ModelNotFoundError, match="smollm2-135m") as caught:
        make("no-such-model").fit(["a", "b"], [0, 1])
    assert isinstance(caught.value, OSError)


def test_fit__fp16_on_cpu__is_refused(tiny_llama: str) -> None:
    with pytest.raises(ModelNotSupportedError, match="needs a CUDA device"):
        make(tiny_llama, device="cpu", precision="fp16").fit(["a", "b"], [0, 1])


def test_fit__interrupted__keeps_the_earlier_fit(
    tiny_llama: str, two_class_data: TextData, monkeypatch: pytest.MonkeyPatch
) -> None:
    X, y = two_class_data
    clf = make(tiny_llama, max_epochs=1).fit(X, y)
    before = clf.predict_proba(X)

    def interrupt(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("skgpt.training.optimizer.Optimizer.step", interrupt)
    with pytest.raises(KeyboardInterrupt):
        clf.fit(X, y)
    assert np.array_equal(clf.predict_proba(X), before)


def test_fit__verbose__says_how_far_it_is_and_nothing_otherwise(
    tiny_llama: str, two_class_data: TextData, capfd: pytest.CaptureFixture[str]
) -> None:
    make(tiny_llama, max_epochs=2).fit(*two_class_data).predict(two_class_data.X)
    assert capfd.readouterr() == ("", "")
    make(tiny_llama, max_epochs=2, verbose=1).fit(*two_class_data)
    shown = capfd.readouterr()
    lines = shown.err.splitlines()  # no terminal, so no bar
    assert [line.split(":")[0] for line in lines] == ["epoch 1/2", "epoch 2/2"]
    assert all("loss" in line for line in lines)
    assert shown.out == ""


def test_copy__shallow__shares_the_network_and_serialises_nothing(
    fitted_model: Callable[[str], Fitted], monkeypatch: pytest.MonkeyPatch
) -> None:
    clf = fitted_model("two classes").clf
    monkeypatch.setattr("skgpt._base.pack", lambda n: pytest.fail("serialised"))
    assert copy.copy(clf)._model is clf._model


def test_constructor__parameters__all_have_a_constraint_and_a_description() -> None:
    parameters = set(inspect.signature(GPTTextClassifier).parameters)
    assert parameters == set(GPTTextClassifier._parameter_constraints)
    described = GPTTextClassifier.__doc__ or ""
    assert all(f"    {name} : " in described for name in parameters)
    assert "__init__" not in vars(BaseGPTText)


def test_del__a_fitted_estimator__frees_its_share_at_once(
    tiny_llama: str, two_class_data: TextData
) -> None:
    clf = make(tiny_llama, max_epochs=1).fit(*two_class_data)
    modules = [weakref.ref(module) for module in clf._model.network.modules()]
    parameters = [weakref.ref(master) for master in clf._model.network.learnable.values()]
    del clf
    assert not [ref() for ref in modules + parameters if ref() is not None]


@pytest.mark.parametrize("trainable", [np.int64(1), np.int32(0)])
def test_fit__numpy_integers__are_as_good_as_plain_ones(
    trainable: np.integer[Any], tiny_llama: str, two_class_data: TextData
) -> None:
    clf = make(tiny_llama, n_layers=np.int64(2), trainable_layers=trainable, max_epochs=1)
    clf.set_params(max_length=np.int64(32), batch_size=np.int64(4))
    proba = clf.fit(*two_class_data).predict_proba(two_class_data.X)
    assert np.array_equal(pickle.loads(pickle.dumps(clf)).predict_proba(two_class_data.X), proba)


def test_advice__for_a_slow_fit__names_values_that_are_legal_and_smaller(tiny_llama: str) -> None:
    shown = []
    for options in ({"trainable_layers": "all"}, {"trainable_layers": 2}, {"trainable_layers": 1}):
        clf = make(tiny_llama, max_length=128, max_epochs=1, **options).fit(["a", "b"], [0, 1])
        shown.append(how_to_shorten(clf._model.network, 128))
    assert "trainable_layers=1" in shown[0] and "trainable_layers=1" in shown[1]
    assert "trainable_layers" not in shown[2]
    assert all("max_length=64" in line for line in shown)
