"""GPTTextEmbedder: the classifier's states as features, standardised, in scikit-learn's tools."""

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone
from sklearn.compose import make_column_transformer
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.exceptions import NotFittedError
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline, make_union
from sklearn.preprocessing import OrdinalEncoder

import skgpt
from skgpt import GPTTextEmbedder, GPTTextRegressor
from skgpt.exceptions import (
    ContinuationError,
    CutTextsWarning,
    InvalidArgumentError,
    InvalidTextError,
    ModelNotSupportedError,
    StateFormatError,
)
from skgpt.network.network import TextNetwork
from skgpt.saving.state import pack
from skgpt.tensor_files import to_bytes
from skgpt.testing import tiny_gpt
from tests.helpers import Fitted, make, make_text_data, rewritten

X, y = make_text_data(n_classes=3)
WIDTH = 32


def embedder(folder: str, **options: Any) -> GPTTextEmbedder:
    return GPTTextEmbedder(folder, **{"precision": "fp32", "max_length": 64, **options})


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list that gets how many texts each run through a model has."""
    found: list[int] = []
    pooled = TextNetwork.pooled

    def counted(self: TextNetwork, ids_T: Any, layout: Any) -> Any:
        found.append(len(layout.lengths))
        return pooled(self, ids_T, layout)

    monkeypatch.setattr(TextNetwork, "pooled", counted)
    skgpt.clear_cache()
    return found


# What the features are.


@pytest.mark.parametrize("pooling", ["mean", "last"])
@pytest.mark.parametrize("layer", [1, 2])
def test_transform__one_layer__is_what_the_classifier_pools(
    layer: int, pooling: Any, tiny_llama: str
) -> None:
    how: Any = {"n_layers": layer, "trainable_layers": 0, "pooling": pooling, "precision": "fp32"}
    clf = make(tiny_llama, **how).fit(X, y)
    states = embedder(tiny_llama, layer=layer, pooling=pooling, standardize=False).fit_transform(X)
    assert (states.dtype, states.shape) == (np.float32, (len(X), WIDTH))
    assert np.array_equal(states, GPTTextEmbedder.from_classifier(clf).transform(X))
    scores = states.astype(np.float64) @ clf._model.network.head.weight.detach().numpy().T
    assert np.allclose(scores, clf.decision_function(X), atol=1e-5)


@pytest.mark.parametrize("kind", ["default", "all layers", "lora", "windows", "calibrated"])
def test_from_classifier__what_was_fine_tuned__is_in_the_states(
    kind: str, fitted_model: Callable[[str], Fitted]
) -> None:
    clf = fitted_model(kind).clf
    fine_tuned = GPTTextEmbedder.from_classifier(clf)
    states = fine_tuned.transform(X)
    head = clf._model.network.head.weight.detach().numpy()
    assert np.allclose(states @ head.T, clf.decision_function(X), atol=1e-4)
    params = fine_tuned.get_params()
    assert params["layer"] == fine_tuned.layer_ == clf.n_layers_
    assert not params["standardize"]
    assert {name: params[name] for name in ("max_length", "long_text", "model")} == {
        name: clf.get_params()[name] for name in ("max_length", "long_text", "model")
    }
    reopened = pickle.loads(pickle.dumps(fine_tuned))
    assert np.array_equal(reopened.transform(X), states)
    assert not np.allclose(clone(fine_tuned).fit_transform(X), states, atol=1e-3)


def test_from_classifier__prompted_or_of_numbers__gives_what_its_head_is_given(
    tiny_llama: str,
) -> None:
    prompt: dict[str, Any] = {"template": "News: {text}\nTopic: ", "label_words": "auto"}
    columns = np.stack([X, X], axis=1)
    for clf, rows in (
        (make(tiny_llama, **prompt).fit(columns, y), columns),
        (GPTTextRegressor(tiny_llama, max_epochs=1).fit(X, np.arange(len(X))), X),
    ):
        network = clf._model.network
        states = GPTTextEmbedder.from_classifier(clf).transform(rows)
        scores = states @ network.head.weight.numpy().T + network.offset.numpy()
        assert np.allclose(scores, clf._model.raw_scores(rows), atol=1e-4)


def test_transform__several_layers__stand_side_by_side(tiny_llama: str) -> None:
    both = embedder(tiny_llama, layer=[2, 1]).fit(X)
    one_by_one = [embedder(tiny_llama, layer=layer).fit_transform(X) for layer in (2, 1)]
    assert np.array_equal(both.transform(X), np.hstack(one_by_one))
    assert both.layer_ == [2, 1]
    assert len(both.get_feature_names_out()) == 2 * WIDTH


@pytest.mark.parametrize("architecture", ["llama", "bert"])
def test_layer__auto__is_the_depth_that_the_classifier_keeps(
    architecture: str, tmp_path: Path, tiny_model: Callable[[str], str]
) -> None:
    folder = tiny_model(architecture)
    clf = make(folder, n_layers="auto", trainable_layers="auto", max_epochs=1).fit(X, y)
    assert embedder(folder).fit(X).layer_ == clf.n_layers_


def test_fit__standardize__training_rows_have_mean_0_and_deviation_1(tiny_llama: str) -> None:
    fitted = embedder(tiny_llama).fit(X)
    features = fitted.transform(X)
    assert np.allclose(features.mean(axis=0), 0, atol=1e-5)
    assert np.allclose(features.std(axis=0), 1, atol=1e-4)
    states = embedder(tiny_llama, standardize=False).fit_transform(X)
    assert np.allclose((states - fitted.mean_) / fitted.scale_, features, atol=1e-5)
    assert np.array_equal(embedder(tiny_llama).fit_transform(X), features)


def test_fit__sample_weight__is_the_row_so_many_times(tiny_llama: str) -> None:
    weight = np.arange(len(X)) % 3
    weighted = embedder(tiny_llama).fit(X, sample_weight=weight)
    repeated = embedder(tiny_llama).fit(np.repeat(X, weight))
    assert np.allclose(weighted.mean_, repeated.mean_, rtol=1e-10)
    assert np.allclose(weighted.scale_, repeated.scale_, rtol=1e-10)
    assert not np.allclose(weighted.mean_, embedder(tiny_llama).fit(X).mean_, rtol=1e-3)


def test_fit__rows_that_are_all_the_same__are_zeros(tiny_llama: str) -> None:
    features = embedder(tiny_llama).fit_transform(["the same text"] * 3)
    assert np.array_equal(features, np.zeros((3, WIDTH)))


# What runs, and how much at a time.


def test_transform__texts_of_the_fit__run_no_layer(tiny_llama: str, runs: list[int]) -> None:
    fitted = embedder(tiny_llama)
    features = fitted.fit_transform(X)
    assert sum(runs) == len({*X})
    assert np.array_equal(fitted.transform(X), features)
    assert sum(runs) == len({*X})
    fitted.transform(["another text"])
    fitted.transform(["another text"])  # of which nothing is kept, as of all that is predicted
    assert sum(runs) == len({*X}) + 2


def test_fit__nothing_to_learn__runs_no_layer(tiny_llama: str, runs: list[int]) -> None:
    fitted = embedder(tiny_llama, standardize=False).fit(X)
    assert runs == []
    assert not hasattr(fitted, "mean_")


def test_transform__more_rows_than_are_run_at_a_time__gives_the_same(
    tiny_llama: str, runs: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    fitted = embedder(tiny_llama)
    features = fitted.fit_transform(X)
    monkeypatch.setattr("skgpt.fitted_model._ROWS_AT_ONCE", 7)
    skgpt.clear_cache()
    runs.clear()
    twice = [*X, *X]
    again = embedder(tiny_llama)
    assert np.allclose(again.fit_transform(twice), np.vstack([features, features]), atol=1e-4)
    assert max(runs) <= 7
    assert sum(runs) == len({*X})
    assert np.allclose(again.mean_, fitted.mean_, rtol=1e-4)


def test_pooled__long_texts__are_run_few_at_a_time(
    tiny_llama: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fitted = embedder(tiny_llama, long_text="windows", max_length=16).fit(X)
    texts = [text * n for n, text in enumerate(X, 1)]
    features = fitted.transform(texts)
    monkeypatch.setattr("skgpt.fitted_model._CHARACTERS_AT_ONCE", 200)
    parts = [texts[batch.rows] for batch in fitted._model.pooled([texts])]
    assert [text for part in parts for text in part] == texts
    assert all(sum(map(len, part[:-1])) < 200 for part in parts)
    assert 1 < len(parts) < len(texts)
    assert np.allclose(fitted.transform(texts), features, atol=1e-4)


def test_fit__texts_that_are_cut__warns_once(tiny_llama: str) -> None:
    texts = ["short", "a text of more than nine bytes"] * 2
    with pytest.warns(CutTextsWarning, match="1 of the 2 texts"):
        embedder(tiny_llama, max_length=9).fit(texts)
    embedder(tiny_llama, max_length=9).fit(texts)


# Beside other estimators.


def test_pipeline__search_over_layers__finds_one(tiny_llama: str) -> None:
    pipeline = make_pipeline(embedder(tiny_llama), LogisticRegression(C=0.1))
    grid = {"gpttextembedder__layer": [1, 2, [1, 2]]}
    search = GridSearchCV(pipeline, grid, cv=3, error_score="raise").fit(X, y)
    assert search.best_score_ > 0.8
    assert search.predict(X[:3]).shape == (3,)


def test_column_transformer__text_numbers_and_categories__have_names(tiny_llama: str) -> None:
    table = pd.DataFrame({"title": X[::-1], "body": X, "price": range(len(X)), "shop": y})
    columns = make_column_transformer(
        (embedder(tiny_llama, template="{title}: {body}"), ["title", "body"]),
        (OrdinalEncoder(), ["shop"]),
        remainder="passthrough",
        verbose_feature_names_out=False,
    )
    columns.set_output(transform="pandas")
    features = columns.fit_transform(table, y)
    assert features.columns[:2].tolist() == ["gpttextembedder0", "gpttextembedder1"]
    assert features.columns[WIDTH:].tolist() == ["shop", "price"]
    assert features["gpttextembedder0"].dtype == np.float32
    forest = make_pipeline(columns, HistGradientBoostingClassifier(max_iter=3)).fit(table, y)
    assert forest.score(table, y) > 0.8


def test_feature_union__with_tfidf__is_one_matrix(tiny_llama: str) -> None:
    union = make_union(embedder(tiny_llama), TfidfVectorizer()).fit(X)
    assert union.transform(X).shape == (len(X), WIDTH + len(union["tfidfvectorizer"].vocabulary_))


def test_frozen__what_was_fine_tuned__stays_in_a_pipeline(
    fitted_model: Callable[[str], Fitted],
) -> None:
    fine_tuned = GPTTextEmbedder.from_classifier(fitted_model("default").clf)
    with pytest.raises(ContinuationError, match="FrozenEstimator"):
        make_pipeline(fine_tuned, LogisticRegression()).fit(X, y)
    pipeline = make_pipeline(FrozenEstimator(fine_tuned), LogisticRegression()).fit(X, y)
    assert np.array_equal(pipeline[:-1].transform(X), fine_tuned.transform(X))
    assert pipeline.score(X, y) > 0.9


# Copies and files.


@pytest.mark.parametrize("layer", [1, [1, 2]])
@pytest.mark.parametrize("standardize", [True, False])
def test_copies__of_all_kinds__give_the_same(layer: Any, standardize: bool, tmp_path: Path) -> None:
    folder = tiny_gpt(tmp_path / "model")
    fitted = embedder(folder, layer=layer, standardize=standardize).fit(X)
    expected = fitted.transform(X)
    skgpt.save(fitted, tmp_path / "saved")
    pickled = pickle.dumps(fitted)
    (tmp_path / "model").rename(tmp_path / "elsewhere")  # a base that can't be fetched is inside
    for twin in (
        copy.deepcopy(fitted),
        pickle.loads(pickled),
        skgpt.load(tmp_path / "saved"),
        pickle.loads(pickle.dumps(pickle.loads(pickled))),
    ):
        assert np.array_equal(twin.transform(X), expected)
        assert twin.layer_ == layer
        assert hasattr(twin, "scale_") is standardize


def test_pickle__without_the_base__is_a_few_kilobytes(tiny_llama: str) -> None:
    fitted = embedder(tiny_llama, store_base=False, layer=[1, 2]).fit(X)
    pickled = pickle.dumps(fitted)
    assert len(pickled) < 6000
    assert np.array_equal(pickle.loads(pickled).transform(X), fitted.transform(X))


@pytest.mark.parametrize(
    "layers", [[], [2, 2], [0, 2], [1], [2.0], [3], 2], ids=lambda layers: str(layers)
)
def test_unpickle__layers_that_the_network_has_not__are_refused(
    layers: list[Any], tiny_llama: str
) -> None:
    fitted = embedder(tiny_llama, store_base=False, layer=2).fit(X)
    state = fitted.__getstate__()
    packed = rewritten(
        to_bytes(pack(fitted._model, False)),
        lambda values, tensors: values["model"].update(layers=layers),
    )
    with pytest.raises(StateFormatError):
        GPTTextEmbedder().__setstate__({**state, "_model": {"state": packed}})


# Bad input.


@pytest.mark.parametrize("layer", [4, [1, 4], [], [1, 1], True, [1.5]])
def test_fit__a_layer_that_is_not_there__is_refused_by_the_number_of_layers(
    layer: Any, tiny_llama: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TextNetwork, "pooled", Mock(side_effect=AssertionError("ran")))
    with pytest.raises(ModelNotSupportedError, match=r"`layer` must be an int from 1 to 3"):
        embedder(tiny_llama, layer=layer).fit(X)


def test_fit__what_can_not_be_run__is_refused_before_anything_runs(
    tiny_model: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TextNetwork, "pooled", Mock(side_effect=AssertionError("ran")))
    llama, bert = tiny_model("llama"), tiny_model("bert")
    with pytest.raises(InvalidTextError, match="Row 1"):
        embedder(llama).fit(["a", None])
    with pytest.raises(ValueError, match="sample_weight"):
        embedder(llama).fit(["a", "b"], sample_weight=[1, -1])
    with pytest.raises(ValueError, match="sample_weight"):
        embedder(llama).fit_transform(["a", "b"], sample_weight=[1])
    with pytest.raises(ModelNotSupportedError, match="is an encoder"):
        embedder(bert, pooling="last").fit(X)
    with pytest.raises(ModelNotSupportedError, match="`max_length` must be at most"):
        embedder(bert, max_length=100_000).fit(X)
    with pytest.raises(InvalidArgumentError, match="Did you mean 'layer'"):
        embedder(llama).set_params(layers=1)


def test_transform__other_columns_or_unfitted__are_refused(tiny_llama: str) -> None:
    with pytest.raises(NotFittedError):
        embedder(tiny_llama).transform(X)
    fitted = embedder(tiny_llama).fit(pd.DataFrame({"a": X, "b": X}))
    with pytest.raises(ValueError, match="feature names"):
        fitted.transform(pd.DataFrame({"a": X, "c": X}))


def test_from_classifier__no_fitted_classifier__is_refused(
    tiny_llama: str, fitted_model: Callable[[str], Fitted]
) -> None:
    pipeline = make_pipeline(fitted_model("default").clf)
    for other in (pipeline, embedder(tiny_llama), "clf"):
        with pytest.raises(InvalidArgumentError, match="must be a fitted GPTTextClassifier"):
            GPTTextEmbedder.from_classifier(other)
    with pytest.raises(NotFittedError):
        GPTTextEmbedder.from_classifier(make(tiny_llama))
