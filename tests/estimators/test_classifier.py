"""GPTTextClassifier: what it predicts, what it promises, what it refuses."""

import copy
import inspect
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pytest
from scipy.special import expit, softmax

from skgpt import GPTTextClassifier, GPTTextEmbedder, LoRA
from skgpt._base import BaseGPTText
from skgpt.exceptions import ModelNotSupportedError
from skgpt.tuning import GPTSearchCV
from tests.helpers import Fitted, TextData, make, make_text_data

X, y = make_text_data(n_classes=2)


def test_fit__classes__learns_and_reports(tiny_llama: str, three_class_data: TextData) -> None:
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


def test_decision_function__classes__is_what_probabilities_are_made_of(
    fitted_model: Callable[[str], Fitted],
) -> None:
    clf, X, _ = fitted_model("default")
    np.testing.assert_allclose(
        clf.predict_proba(X), softmax(clf.decision_function(X), axis=1), rtol=1e-4
    )
    np.testing.assert_allclose(np.exp(clf.predict_log_proba(X)), clf.predict_proba(X), rtol=1e-4)
    clf, X, _ = fitted_model("two classes")
    scores = clf.decision_function(X)
    assert ((scores > 0) == (clf.predict(X) == clf.classes_[1])).all()
    np.testing.assert_allclose(expit(scores), clf.predict_proba(X)[:, 1], rtol=1e-4)


def test_fit__random_state_none__follows_numpy_as_scikit_learn_does(tiny_llama: str) -> None:
    results = []
    for seed in (5, 5, 6):
        np.random.seed(seed)
        results.append(make(tiny_llama, random_state=None).fit(X, y).predict_proba(X))
    assert np.array_equal(results[0], results[1])
    assert not np.array_equal(results[0], results[2])


@pytest.mark.parametrize("make_frame", [pd.DataFrame, pl.DataFrame])
def test_fit__a_data_frame__checks_its_columns_at_predict(make_frame: Any, tiny_llama: str) -> None:
    frame = make_frame({"title": ["a", "b", "c", "d"], "body": ["w", "x", "y", "z"]})
    clf = make(tiny_llama, max_epochs=1).fit(frame, [0, 1, 0, 1])
    assert clf.n_features_in_ == 2
    assert clf.feature_names_in_.tolist() == ["title", "body"]
    assert clf.predict(frame).shape == (4,)
    with pytest.raises(ValueError, match="feature names"):
        clf.predict(frame[["body", "title"]])
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


BAD_INPUT = [
    ({}, ["a", None], ["x", "y"], None, "Row 1 is None"),
    ({}, ["a", "b"], ["x", "x"], None, "only one class"),
    ({}, ["a", "b"], ["x", "y"], [1.0], "expected"),
    ({"max_length": 1}, ["a", "b"], ["x", "y"], None, "max_length.*Got 1"),
    ({"max_length": 5000}, ["a", "b"], ["x", "y"], None, "`max_length` must be at most"),
    ({"n_layers": 9}, ["a", "b"], ["x", "y"], None, "`n_layers` must be at most"),
    ({"n_layers": True}, ["a", "b"], ["x", "y"], None, "`n_layers` must be an int"),
    ({"trainable_layers": 4}, ["a", "b"], ["x", "y"], None, "at most the 3 layers"),
    ({"n_layers": 2, "trainable_layers": 3}, ["a", "b"], [0, 1], None, "at most the 2 layers"),
    ({"class_weight": {"z": 1}}, ["a", "b"], ["x", "y"], None, "not among"),
    ({"device": "tpu"}, ["a", "b"], ["x", "y"], None, "`device` must be"),
    ({"device": "cuda:99"}, ["a", "b"], ["x", "y"], None, "needs CUDA device 99.*device='auto'"),
    ({"learning_rate": 0.0}, ["a", "b"], ["x", "y"], None, "learning_rate"),
]


@pytest.mark.usefixtures("no_training")
@pytest.mark.parametrize(("options", "X", "y", "weight", "message"), BAD_INPUT)
def test_fit__bad_input__is_refused_before_training_and_loses_nothing(
    options: dict[str, Any],
    X: Any,
    y: Any,
    weight: Any,
    message: str,
    fitted_model: Callable[[str], Fitted],
) -> None:
    clf = copy.copy(fitted_model("two classes").clf).set_params(**options)
    attributes = {k: id(v) for k, v in vars(clf).items() if k.endswith("_")}
    with pytest.raises(ValueError, match=message):
        clf.fit(X, y, sample_weight=weight)
    assert {k: id(v) for k, v in vars(clf).items() if k.endswith("_")} == attributes


@pytest.mark.parametrize(
    ("make_it", "said"),
    [
        (lambda: GPTTextClassifier(learning_rte=1), "GPTTextClassifier has no .*'learning_rate'?"),
        (lambda: GPTTextClassifier(epochs=1), "'epochs'. Did you mean 'max_epochs'?"),
        (lambda: GPTTextClassifier(qqq=1), r"'qqq'\. It has attention, batch_size"),
        (lambda: LoRA(rnak=1), "LoRA has no parameter 'rnak'. Did you mean 'rank'?"),
        (lambda: GPTSearchCV(None, n_trial=1), "Did you mean 'n_trials'?"),
        (lambda: GPTTextClassifier().set_params(max_lenght=1), "Did you mean 'max_length'?"),
        (lambda: GPTTextClassifier().set_params(lra__rank=1), "Did you mean 'lora'?"),
        (lambda: GPTTextClassifier(lora=LoRA()).set_params(lora__rnk=1), "Did you mean 'rank'?"),
    ],
)
def test_parameter__misspelt__is_asked_back(make_it: Callable[[], Any], said: str) -> None:
    with pytest.raises(TypeError, match=said.replace("?", r"\?")):
        make_it()


def test_init__its_signature__is_what_editors_and_scikit_learn_read() -> None:
    names = list(inspect.signature(GPTTextClassifier).parameters)
    assert names[0] == "model" and sorted(names) == sorted(GPTTextClassifier().get_params(False))


def test_fit__fp16_on_cpu__is_refused(tiny_llama: str) -> None:
    with pytest.raises(ModelNotSupportedError, match="needs a CUDA device"):
        make(tiny_llama, device="cpu", precision="fp16").fit(["a", "b"], [0, 1])


def test_copy__shallow__shares_the_network_and_serialises_nothing(
    fitted_model: Callable[[str], Fitted], monkeypatch: pytest.MonkeyPatch
) -> None:
    clf = fitted_model("two classes").clf
    monkeypatch.setattr("skgpt._base.pack", lambda n: pytest.fail("serialised"))
    assert copy.copy(clf)._model is clf._model


@pytest.mark.parametrize("estimator", [GPTTextClassifier, GPTTextEmbedder])
def test_constructor__parameters__all_have_a_constraint_and_a_description(estimator: Any) -> None:
    parameters = set(inspect.signature(estimator).parameters)
    assert parameters == set(estimator._parameter_constraints)
    described = estimator.__doc__ or ""
    assert all(f"    {name} : " in described for name in parameters)
    assert "__init__" not in vars(BaseGPTText)


@pytest.mark.parametrize("trainable", [np.int64(1), np.int32(0)])
def test_fit__numpy_integers__are_like_ints(trainable: np.integer[Any], tiny_llama: str) -> None:
    clf = make(tiny_llama, n_layers=np.int64(2), trainable_layers=trainable, max_epochs=1)
    clf.set_params(max_length=np.int64(32), batch_size=np.int64(4))
    proba = clf.fit(X, y).predict_proba(X)
    assert np.array_equal(pickle.loads(pickle.dumps(clf)).predict_proba(X), proba)
