"""Every way to keep a fitted model: the same predictions, and it can be trained on."""

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pytest
import skops.io
from joblib.externals.loky import get_reusable_executor

import skgpt
from skgpt import GPTTextClassifier
from tests.estimators.test_classifier import make
from tests.helpers import TextData, global_random_state_unchanged

Keep = Callable[[GPTTextClassifier, Path], GPTTextClassifier]


def by_pickle(clf: GPTTextClassifier, folder: Path) -> GPTTextClassifier:
    return pickle.loads(pickle.dumps(clf))


def by_joblib(clf: GPTTextClassifier, folder: Path) -> GPTTextClassifier:
    joblib.dump(clf, folder / "clf.joblib", compress=3)
    return joblib.load(folder / "clf.joblib")


def by_joblib_mapped(clf: GPTTextClassifier, folder: Path) -> GPTTextClassifier:
    joblib.dump(clf, folder / "clf.joblib")
    return joblib.load(folder / "clf.joblib", mmap_mode="r")


def by_skops(clf: GPTTextClassifier, folder: Path) -> GPTTextClassifier:
    skops.io.dump(clf, folder / "clf.skops")
    untrusted = skops.io.get_untrusted_types(file=folder / "clf.skops")
    assert untrusted == ["skgpt.classifier.GPTTextClassifier"]
    return skops.io.load(folder / "clf.skops", trusted=untrusted)


def by_deepcopy(clf: GPTTextClassifier, folder: Path) -> GPTTextClassifier:
    return copy.deepcopy(clf)


def by_folder(clf: GPTTextClassifier, folder: Path) -> GPTTextClassifier:
    skgpt.save(clf, folder / "saved")
    return skgpt.load(folder / "saved")


WAYS = [by_pickle, by_joblib, by_joblib_mapped, by_skops, by_deepcopy, by_folder]


@pytest.mark.parametrize("keep", WAYS)
def test_keep__after_fit__predicts_identically_and_goes_on(
    keep: Keep, tiny_llama: str, two_class_data: TextData, tmp_path: Path
) -> None:
    X, y = two_class_data
    clf = make(tiny_llama, max_epochs=1, warm_start=True).fit(X, y)
    with global_random_state_unchanged():
        again = keep(clf, tmp_path)
    assert np.array_equal(again.predict_proba(X), clf.predict_proba(X))
    assert again.get_params() == clf.get_params()
    assert again.classes_.tolist() == clf.classes_.tolist()
    assert again.classes_.dtype == clf.classes_.dtype
    assert again.history_ == clf.history_
    before = clf.predict_proba(X)
    again.fit(X, y)
    assert np.array_equal(clf.predict_proba(X), before)  # they share nothing that learns
    assert np.array_equal(again.predict_proba(X), clf.fit(X, y).predict_proba(X))


@pytest.mark.parametrize("keep", WAYS)
def test_keep__between_calls_of_partial_fit__changes_nothing(
    keep: Keep, tiny_llama: str, two_class_data: TextData, tmp_path: Path
) -> None:
    X, y = two_class_data
    clf = make(tiny_llama).partial_fit(X[:20], y[:20], classes=["money", "sport"])
    again = keep(clf, tmp_path)
    for estimator in (clf, again):
        estimator.partial_fit(X[20:], y[20:])
    assert again.n_iter_ == 2
    assert np.array_equal(again.predict_proba(X), clf.predict_proba(X))


@pytest.mark.parametrize("keep", [by_skops, by_folder])
def test_keep__columns_labels_and_scores__come_back(
    keep: Keep, tiny_llama: str, two_class_data: TextData, tmp_path: Path
) -> None:
    pd = pytest.importorskip("pandas")
    X, y = two_class_data
    table = pd.DataFrame({"title": X, "body": X[::-1]})
    clf = make(tiny_llama, template="{title}: {body}", early_stopping=True, scoring="accuracy")
    clf.fit(table, y == "money")
    again = keep(clf, tmp_path)
    assert np.array_equal(again.predict_proba(table), clf.predict_proba(table))
    assert again.feature_names_in_.tolist() == ["title", "body"]
    assert again.classes_.dtype == bool
    assert again.validation_scores_ == clf.validation_scores_
    tags = np.column_stack([y == "money", y != "money"]).astype(np.uint8)
    clf = make(tiny_llama, class_weight=[{0: 1.0, 1: 2.0}, {0: 1, 1: 1}], max_epochs=1)
    again = keep(clf.fit(X, tags), tmp_path)
    assert np.array_equal(again.predict_proba(X), clf.predict_proba(X))
    assert again.class_weight == clf.class_weight


@pytest.mark.thorough
def test_loky__a_fitted_model__comes_back_from_another_process(
    tiny_llama: str, two_class_data: TextData
) -> None:
    X, y = two_class_data
    clf = make(tiny_llama, max_epochs=1, warm_start=True)

    try:
        with joblib.parallel_config(backend="loky", inner_max_num_threads=1):
            fitted = joblib.Parallel(n_jobs=2)(joblib.delayed(clf.fit)(X, y) for _ in range(2))
    finally:
        get_reusable_executor().shutdown(wait=True)
    here = make(tiny_llama, max_epochs=1, warm_start=True).fit(X, y)
    for other in fitted:
        np.testing.assert_allclose(other.predict_proba(X), here.predict_proba(X), atol=1e-5)
        other.fit(X, y).partial_fit(X, y)


def test_deepcopy__whatever_the_base__shares_it_in_memory(
    tiny_llama: str, two_class_data: TextData, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*args: Any) -> None:
        raise AssertionError("serialised")

    clf = make(tiny_llama, max_epochs=1).fit(*two_class_data)
    monkeypatch.setattr("skgpt._base.pack", never)
    twin = copy.deepcopy([clf, clf])
    assert twin[0] is twin[1]
    assert twin[0]._model.network is not clf._model.network
    for name, parameter in clf._model.network.trunk.named_parameters():
        other = twin[0]._model.network.trunk.get_parameter(name)
        assert (other.data_ptr() == parameter.data_ptr()) == (
            name not in clf._model.network.learnable
        )
