"""GPTTextRegressor: what it has of its own, and what it must share with the classifier."""

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pandas as pd
import pytest
import sklearn
from scipy.optimize import minimize
from sklearn.base import clone
from sklearn.linear_model import Ridge
from sklearn.model_selection import GridSearchCV

import skgpt
from skgpt import GPTTextRegressor, LoRA
from skgpt.exceptions import (
    ContinuationError,
    ModelNotSupportedError,
    StateFormatError,
    TimeLimitWarning,
    TuningError,
)
from skgpt.plots import TokenAttributionDisplay, TrainingCurveDisplay
from skgpt.testing import check_text_estimator
from skgpt.training.loss import ErrorLoss
from skgpt.tuning import GPTSearchCV, compare_with_baseline
from tests.estimators.dying import broken_off, checkpoints_in
from tests.estimators.test_linear_probe import states_of
from tests.helpers import FAST, make_text_data, rewritten
from tests.pretrained.checkpoints import plain_checkpoint

X, TOPIC = make_text_data(3)
STARS = np.array([{"sport": 1.0, "money": 2.0, "space": 5.0}[topic] for topic in TOPIC])
STARS += np.random.default_rng(0).normal(0, 0.1, len(X))
STARS.setflags(write=False)
BOTH = np.column_stack([STARS, 100 - 20 * STARS])
CLOSE = {"rtol": 0, "atol": 2e-3}
# scikit-learn's checks that must run, by version.
EXPECTED_CHECKS = {(1, 9): 60}
EXPECTED_FAILURES = {
    "check_sample_weight_equivalence_on_dense_data": (
        "a row of weight 2 equals the row twice in the loss, but not in which batch it falls"
    )
}


def make(folder: str, **options: Any) -> GPTTextRegressor:
    return GPTTextRegressor(folder, **{**FAST, "precision": "fp32", **options})


@pytest.fixture(scope="module")
def fitted(tiny_llama: str) -> GPTTextRegressor:
    return make(tiny_llama).fit(X, STARS)


@pytest.mark.parametrize(
    "options",
    [
        {"trainable_layers": 0, "loss": "huber"},
        pytest.param({}, marks=pytest.mark.thorough),
        pytest.param({"early_stopping": True}, marks=pytest.mark.thorough),
        pytest.param({"loss": "quantile", "long_text": "windows"}, marks=pytest.mark.thorough),
    ],
    ids=["head only", "last layer", "early stopping", "windows"],
)
def test_check_text_estimator__the_regressor__passes_and_says_how_many_ran(
    options: dict[str, Any], tiny_llama: str
) -> None:
    reg = make(tiny_llama, max_epochs=2, random_state=None, **options)
    report = check_text_estimator(reg, expected_failed_checks=EXPECTED_FAILURES)
    version = tuple(int(part) for part in sklearn.__version__.split(".")[:2])
    if version in EXPECTED_CHECKS:
        assert report.n_sklearn_checks == EXPECTED_CHECKS[version]
    else:
        assert report.n_sklearn_checks >= 55
    assert report.n_text_checks == 12
    assert {name.removeprefix("check_text_") for name in report.skipped} == {
        *("label_order", "probabilities")  # which are about classes
    }
    named = {*report.expected_failures, *report.unexpected_passes}
    assert named == set(EXPECTED_FAILURES)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"loss": "huber", "trainable_layers": "all"},
        {"loss": "quantile", "learning_rate": 3e-3},
        {"lora": LoRA(rank=4), "trainable_layers": "all", "learning_rate": 1e-2},
        {"long_text": "windows", "max_length": 12},
        {"early_stopping": True, "validation_fraction": 0.25, "scoring": "neg_mean_absolute_error"},
    ],
    ids=["default", "huber", "quantile", "lora", "windows", "early stopping"],
)
def test_fit__words_that_say_the_number__are_learned_and_kept(
    options: dict[str, Any], tiny_llama: str, tmp_path: Path
) -> None:
    reg = make(tiny_llama, max_epochs=20, **options).fit(X, STARS)
    assert reg.score(X, STARS) > 0.7
    found = reg.predict(X)
    assert (found.shape, found.dtype) == (STARS.shape, np.float64)
    assert not any(hasattr(reg, name) for name in ("classes_", "predict_proba", "calibration_"))
    if reg.early_stopping:
        assert reg.best_iter_ == 1 + int(np.argmax(reg.validation_scores_))
        assert max(reg.validation_scores_) < 0  # minus an error, in the units of y
    skgpt.save(reg, tmp_path / "saved")
    for again in (pickle.loads(pickle.dumps(reg)), skgpt.load(tmp_path / "saved"), copy.copy(reg)):
        np.testing.assert_array_equal(again.predict(X), found)
        assert again.history_ == reg.history_
    assert not hasattr(clone(reg), "history_")


def test_fit__y_shifted_and_scaled__so_are_predictions(
    fitted: GPTTextRegressor, tiny_llama: str
) -> None:
    other = make(tiny_llama).fit(X, 1e6 - 1e3 * STARS)
    np.testing.assert_allclose((1e6 - other.predict(X)) / 1e3, fitted.predict(X), **CLOSE)
    np.testing.assert_allclose(other.loss_curve_, fitted.loss_curve_, rtol=1e-3)


@pytest.mark.parametrize("loss", ["squared_error", "huber", "quantile"])
def test_fit__several_columns__are_predicted_in_their_own_units(loss: str, tiny_llama: str) -> None:
    together = make(tiny_llama, trainable_layers=0, loss=loss).fit(X, BOTH)
    alone = make(tiny_llama, trainable_layers=0, loss=loss).fit(X, STARS)
    found = together.predict(X)
    assert found.shape == BOTH.shape
    np.testing.assert_allclose(found[:, 0], alone.predict(X), rtol=0, atol=0.02)
    if loss != "quantile":  # whose other side it would be
        np.testing.assert_allclose(found[:, 1], 100 - 20 * alone.predict(X), rtol=0, atol=0.4)
    column = make(tiny_llama, trainable_layers=0, loss=loss).fit(X, STARS[:, None])
    assert column.predict(X).shape == (len(X), 1)


# The head alone


@pytest.mark.parametrize("weighted", [False, True])
def test_fit__head_alone__is_scikit_learns_ridge_on_scaled_states(
    weighted: bool, tiny_llama: str
) -> None:
    weight = np.random.default_rng(0).uniform(0.5, 2, len(X)) if weighted else np.ones(len(X))
    reg = make(tiny_llama, trainable_layers=0).fit(X, STARS, sample_weight=weight)
    theirs = _ridge(reg, weight)
    np.testing.assert_allclose(reg.predict(X), theirs, **CLOSE)


def _scaled(reg: GPTTextRegressor, weight: Any) -> Any:
    states, share = states_of(reg), weight / weight.sum()
    return states / np.sqrt(share @ (states - share @ states) ** 2)


def _ridge(reg: GPTTextRegressor, weight: Any) -> Any:
    mean = np.average(STARS, weights=weight)
    ridge = Ridge(alpha=ErrorLoss.penalty, fit_intercept=False, solver="svd")
    scaled = _scaled(reg, weight)
    return ridge.fit(scaled, STARS - mean, weight / weight.sum()).predict(scaled) + mean


@pytest.mark.parametrize(
    ("loss", "quantile"), [("huber", 0.5), ("quantile", 0.5), ("quantile", 0.8)]
)
def test_fit__head_alone__no_other_head_is_better(
    loss: str, quantile: float, tiny_llama: str
) -> None:
    options = {"trainable_layers": 0, "loss": loss, "quantile": quantile}
    reg = make(tiny_llama, **options).fit(X, STARS)
    scaled, deviation = _scaled(reg, np.ones(len(X))), STARS.std()
    target = (STARS - STARS.mean()) / deviation

    def objective(scores: Any, head: Any) -> float:
        error = target - scores
        size = np.abs(error)
        delta = 1.0 if loss == "huber" else 0.01
        rounded = np.where(size < delta, error**2 / 2 / delta, size - delta / 2)
        if loss == "quantile":
            rounded = rounded * np.where(error > 0, quantile, 1 - quantile)
        return float(rounded.mean() + ErrorLoss.penalty / 2 * (head**2).sum())

    scores = (reg.predict(X) - STARS.mean()) / deviation
    head = np.linalg.lstsq(scaled, scores, rcond=None)[0]
    found = minimize(lambda w: objective(scaled @ w, w), head, method="L-BFGS-B")
    assert objective(scores, head) <= found.fun * 1.01 + 1e-4
    if loss == "quantile":
        below = np.mean(reg.predict(X) > STARS)
        assert abs(below - quantile) < 0.15


def test_error_loss__losses__by_hand() -> None:
    import torch

    error = torch.tensor([[-3.0], [-0.5], [0.0], [0.5], [3.0]])
    weight = torch.ones(5, 1)

    def total(loss: ErrorLoss, rows: Any) -> float:
        return float(loss.total(torch.zeros(5, 1)[rows], error[rows], weight[rows]))

    assert total(ErrorLoss("squared_error"), slice(None)) == 18.5 / 2
    assert total(ErrorLoss("huber"), slice(None)) == 2 * 2.5 + 2 * 0.125
    assert total(ErrorLoss("quantile", 0.9), slice(3, 5)) == pytest.approx(0.9 * 3.49)
    assert total(ErrorLoss("quantile", 0.9), slice(0, 2)) == pytest.approx(0.1 * 3.49)


# Weights, parts, going on


@pytest.mark.parametrize("loss", ["squared_error", "huber", "quantile"])
def test_fit__weight_two__is_the_row_twice(loss: str, tiny_llama: str) -> None:
    weight = np.where(np.arange(len(X)) % 4 == 0, 2.0, 1.0)
    twice = np.repeat(np.arange(len(X)), weight.astype(int))
    # One batch: in several, the rows would fall otherwise.
    whole = {"batch_size": 200, "loss": loss}
    for options in ({"trainable_layers": 0}, {"trainable_layers": 1, **whole}):
        heavy = make(tiny_llama, **{**whole, **options}).fit(X, STARS, sample_weight=weight)
        repeated = make(tiny_llama, **{**whole, **options}).fit(X[twice], STARS[twice])
        scaled = make(tiny_llama, **{**whole, **options}).fit(X, STARS, sample_weight=1e6 * weight)
        np.testing.assert_allclose(heavy.predict(X), repeated.predict(X), rtol=0, atol=0.02)
        np.testing.assert_allclose(heavy.predict(X), scaled.predict(X), rtol=0, atol=0.02)


def test_partial_fit__three_calls__equal_one_fit_of_three_epochs(tiny_llama: str) -> None:
    flat = {"lr_schedule": "constant", "warmup_ratio": 0.0}
    whole = make(tiny_llama, max_epochs=3, **flat).fit(X, STARS)
    parts = make(tiny_llama, **flat)
    for _ in range(3):
        parts.partial_fit(X, STARS)
    np.testing.assert_array_equal(parts.predict(X), whole.predict(X))
    units = parts._model.units
    parts.partial_fit(X[:1], [40.0])
    assert parts._model.units == units and parts.n_iter_ == 4
    with pytest.raises(ValueError, match="as many columns as GPTTextRegressor was fitted on, 1"):
        parts.partial_fit(X, BOTH)
    assert not hasattr(make(tiny_llama, early_stopping=True), "partial_fit")


def test_warm_start__another_y__goes_on_in_the_first_units(tiny_llama: str) -> None:
    reg = make(tiny_llama, warm_start=True).fit(X, STARS)
    before, units = reg.predict(X), reg._model.units
    reg.set_params(learning_rate=1e-12, head_learning_rate=1e-12, max_epochs=1)
    reg.fit(X, STARS + 100)
    assert reg._model.units == units
    np.testing.assert_allclose(reg.predict(X), before, atol=1e-3)
    with pytest.raises(ContinuationError, match="`n_layers` must be as it was"):
        reg.set_params(n_layers=1).fit(X, STARS)


def test_fit__broken_off__ends_as_an_unbroken_one(tiny_llama: str, tmp_path: Path) -> None:
    options = {"trainable_layers": "all", "early_stopping": True, "scoring": "r2"}
    whole = make(tiny_llama, **options).fit(X, STARS)
    reg = make(tiny_llama, checkpoint_dir=tmp_path, **options)
    broken_off(reg, X, STARS, step=12)
    assert len(checkpoints_in(tmp_path)) == 1
    reg.fit(X, STARS)
    np.testing.assert_array_equal(reg.predict(X), whole.predict(X))
    # Another mean of y is another fit, though what the loss gets is the same.
    broken_off(reg, X, STARS, step=12)
    with patch.object(GPTTextRegressor, "_training_callbacks", return_value=[]):
        reg.fit(X, STARS + 4)
    np.testing.assert_allclose(reg.predict(X), whole.predict(X) + 4, atol=1e-3)


def test_fit__too_little_time__is_shorter_and_plan_says_what_it_takes(tiny_llama: str) -> None:
    with pytest.warns(TimeLimitWarning):
        reg = make(tiny_llama, max_seconds=1e-6, max_epochs=50).fit(X, STARS)
    assert "cut_short" in reg.history_[-1]
    plan = make(tiny_llama).plan(X)
    assert plan.classes_assumed is None and plan.n_texts == len(X)
    assert make(tiny_llama).plan(X, BOTH).to_dict()["n_texts"] == len(X)


# What is refused


@pytest.mark.parametrize(
    ("y", "options", "message"),
    [
        ([*STARS[:-1], np.nan], {}, "row 59 holds nan"),
        ([*STARS[:-1], np.inf], {}, "row 59 holds inf"),
        (np.full(len(X), 3), {}, "all 60 hold 3.0"),
        (TOPIC, {}, "Row 0 holds.*GPTTextClassifier"),
        ([[star, topic] for star, topic in zip(STARS, TOPIC, strict=True)], {}, "column 1"),
        (pd.DataFrame({"stars": STARS, "topic": TOPIC}), {}, "Row 0, column 'topic'"),
        (STARS[1:], {}, "one label per text"),
        (STARS, {"loss": "absolute"}, "'loss' parameter"),
        (STARS, {"quantile": 1.0}, "'quantile' parameter"),
        (STARS, {"quantile": 0.9}, "set loss='quantile'"),
        (STARS, {"early_stopping": True, "scoring": "accuracy"}, "`scoring` must be able"),
    ],
    ids=lambda value: "",
)
def test_fit__what_it_can_not_learn__is_refused_and_loses_nothing(
    y: Any,
    options: dict[str, Any],
    message: str,
    fitted: GPTTextRegressor,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("skgpt.fitting.train", lambda *a, **k: pytest.fail("training began"))
    reg = copy.copy(fitted).set_params(**options)
    model = reg._model
    with pytest.raises(ValueError, match=message):
        reg.fit(X, y)
    assert reg._model is model


# Tools


def test_explain__values__add_up_to_the_prediction(
    fitted: GPTTextRegressor, tiny_llama: str
) -> None:
    texts = list(X[:4])
    table = fitted.explain(texts)
    sums = table.groupby("text").agg({"value": "sum", "baseline": "first"}).sum(axis=1)
    np.testing.assert_allclose(sums, fitted.predict(texts), rtol=1e-4)
    both = make(tiny_llama, max_epochs=1).fit(X, BOTH)
    table = both.explain(texts)
    sums = table.groupby(["text", "class"]).agg({"value": "sum", "baseline": "first"}).sum(axis=1)
    np.testing.assert_allclose(sums.unstack(), both.predict(texts), rtol=1e-4)
    assert set(both.explain(texts, target=1)["class"]) == {1}
    with pytest.raises(ValueError, match="a column of y, 0 to 1"):
        both.explain(texts, target=2)
    display = TokenAttributionDisplay.from_estimator(fitted, texts)
    said = " ".join(text.get_text() for text in display.ax_.texts)
    number = fitted.predict(texts)[0]
    assert f"What raises the number (blue) and lowers it (orange) It is {number:.2f}:" in said
    assert "lowers it" in display._repr_html_() and "class" not in display._repr_html_()
    TrainingCurveDisplay.from_estimator(fitted)


@pytest.mark.filterwarnings("ignore::skgpt.exceptions.BaselineWarning")
def test_tools__grid_search_and_ours__choose_by_r2(tiny_llama: str) -> None:
    grid = GridSearchCV(make(tiny_llama, max_epochs=1), {"loss": ["squared_error", "huber"]}, cv=2)
    assert grid.fit(X, STARS).best_params_["loss"] in ("squared_error", "huber")
    search = GPTSearchCV(
        make(tiny_llama, max_epochs=2), n_trials=2, cv=2, baseline=True, random_state=0
    ).fit(X, STARS)
    assert search.predict(X).shape == STARS.shape
    assert search.best_score_ == search.cv_results_["mean_test_score"].max()


def test_compare_with_baseline__zero_shot_for_a_regressor__is_refused(tiny_llama: str) -> None:
    with pytest.raises(TuningError, match="'zero-shot'` needs skgpt's classifier, or"):
        compare_with_baseline(make(tiny_llama), X, STARS, baseline="zero-shot")


@pytest.mark.filterwarnings("ignore::skgpt.exceptions.BaselineWarning")
@pytest.mark.parametrize("y", [STARS, BOTH], ids=["one column", "two"])
def test_compare_with_baseline__a_regressor__against_ridge(y: Any, tiny_llama: str) -> None:
    weight = np.linspace(0.5, 2, len(X))
    report = compare_with_baseline(make(tiny_llama), X, y, cv=3, sample_weight=weight)
    assert report.scoring == "r2" and report.name == "GPTTextRegressor"
    rivals = {report.baseline_name, *report.others}
    assert rivals == {"TF-IDF + linear model", "frozen states + linear model"}
    assert max(report.baseline_scores.mean(), *report.others.values()) > 0.9


# Hugging Face's format


def test_save_pretrained__gpt2__gives_transformers_the_same_numbers(
    tiny_model: Callable[[str], str], tmp_path: Path
) -> None:
    from transformers import pipeline

    length = np.array([float(len(text)) for text in X])  # no multiple of the stars
    for name, y in (("one", STARS), ("two", np.column_stack([STARS, length]))):
        reg = make(tiny_model("gpt2"), pooling="last", attention="causal").fit(X, y)
        folder = tmp_path / name
        reg.save_pretrained(folder)
        rate = pipeline("text-classification", str(folder))
        found = [[each["score"] for each in row] for row in rate([*X[:5]], top_k=None)]
        expected = reg.predict(X[:5]).reshape(5, -1)
        # The pipeline sorts by score.
        np.testing.assert_allclose(np.sort(found, axis=1), np.sort(expected, axis=1), rtol=1e-4)
        opened = GPTTextRegressor.from_pretrained(folder, precision="fp32")
        np.testing.assert_allclose(opened.predict(X), reg.predict(X), rtol=1e-4)
        assert opened.learning_rate == FAST["learning_rate"]
        opened.set_params(warm_start=True, max_epochs=1).fit(X, y)
        assert opened.score(X, y) > reg.score(X, y) - 0.05
        assert "predicts" in (folder / "README.md").read_text("utf-8")
    with pytest.raises(ModelNotSupportedError, match=r"GPTTextRegressor\.from_pretrained"):
        skgpt.GPTTextClassifier.from_pretrained(tmp_path / "one")


def test_save_pretrained__a_norm_without_a_bias__takes_a_centred_y_alone(
    tiny_llama: str, tmp_path: Path
) -> None:
    reg = make(tiny_llama, pooling="last", attention="causal", max_epochs=1)
    with pytest.raises(ModelNotSupportedError, match=r"mean of zero.*final norm"):
        reg.fit(X, STARS).save_pretrained(tmp_path / "out")
    reg.fit(X, STARS - STARS.mean()).save_pretrained(tmp_path / "out")
    opened = GPTTextRegressor.from_pretrained(tmp_path / "out", precision="fp32")
    np.testing.assert_allclose(opened.predict(X), reg.predict(X), rtol=1e-4, atol=1e-5)


def test_from_pretrained__scores_of_classes__are_refused(tiny_llama: str, tmp_path: Path) -> None:
    clf = skgpt.GPTTextClassifier(tiny_llama, **FAST, pooling="last", attention="causal")
    clf.fit(X, TOPIC).save_pretrained(tmp_path / "out")
    with pytest.raises(ModelNotSupportedError, match=r"GPTTextClassifier\.from_pretrained"):
        GPTTextRegressor.from_pretrained(tmp_path / "out")


@pytest.mark.parametrize("names", [["LABEL_0"], ["LABEL_0", "LABEL_1"]], ids=["one", "two"])
def test_from_pretrained__a_regression_of_transformers_own__gives_its_numbers(
    names: list[str], tiny_llama: str, tmp_path: Path
) -> None:
    from transformers import pipeline

    folder = plain_checkpoint(
        tiny_llama, tmp_path / "plain", names, problem="regression", pad="<s>"
    )
    reg = GPTTextRegressor.from_pretrained(folder, precision="fp32")
    found = reg.predict(X[:3])
    assert found.shape == ((3,) if len(names) == 1 else (3, 2))
    rate = pipeline("text-classification", folder)
    theirs = [sorted(each["score"] for each in row) for row in rate([*X[:3]], top_k=None)]
    np.testing.assert_allclose(np.sort(found.reshape(3, -1), axis=1), theirs, atol=1e-4)
    assert reg.partial_fit(X[:3], found).n_iter_ == 1


@pytest.mark.parametrize(
    "units",
    [
        {"mean": [0.0, 0.0], "scale": [1.0, 1.0], "is_1d": False},
        {"mean": [0.0], "scale": [float("nan")], "is_1d": True},
        {"mean": [0.0], "scale": [0.0], "is_1d": True},
    ],
)
def test_pickle__units_that_make_no_sense__are_refused(
    units: dict[str, Any], fitted: GPTTextRegressor
) -> None:
    state = fitted.__getstate__()
    state["_model"]["state"] = rewritten(
        state["_model"]["state"], lambda values, _: values["model"].update(units=units)
    )
    with pytest.raises(StateFormatError, match="must have units of 1 columns"):
        GPTTextRegressor.__new__(GPTTextRegressor).__setstate__(state)
