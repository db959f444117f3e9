"""calibrate: one temperature for the probabilities, from the held-out rows."""

from typing import Any

import numpy as np
import pytest
from scipy.special import softmax
from sklearn.metrics import brier_score_loss, log_loss

from skgpt import GPTTextClassifier
from skgpt.calibration import calibrate
from skgpt.exceptions import InterruptedFitWarning, InvalidTextError

WORDS = {"sport": "goal", "money": "bank", "space": "rocket"}
X = np.array([f"{word} number {i}" for i in range(16) for word in WORDS.values()])
Y = np.array([*WORDS] * 16)
LABELS = np.stack([Y == "sport", Y != "money"], axis=1).astype(int)


def classifier(model: str, **params: Any) -> GPTTextClassifier:
    """Return a classifier of the tiny model that calibrates, unless told otherwise."""
    chosen = {"calibrate": True, "max_epochs": 3, "batch_size": 8, "head_learning_rate": 0.03}
    return GPTTextClassifier(
        model, **{**chosen, "validation_fraction": 0.25, "random_state": 0, **params}
    )


def drawn(n: int, k: int, temperature: float, seed: int = 0) -> tuple[Any, Any]:
    """Draw raw scores, and classes that are as likely as the scores over `temperature` say."""
    rng = np.random.default_rng(seed)
    scores = rng.normal(size=(n, k)) * 3
    p = softmax(scores / temperature, axis=1)
    classes = (p.cumsum(axis=1) < rng.random((n, 1))).sum(axis=1)
    return scores.astype(np.float32), np.eye(k, dtype=bool)[classes]


@pytest.mark.parametrize(("k", "temperature"), [(2, 0.5), (2, 3.0), (5, 2.0), (8, 1.0)])
def test_calibrate__drawn_at_a_temperature__finds_it(k: int, temperature: float) -> None:
    scores, truth = drawn(40_000, k, temperature)
    found = calibrate(scores, truth, np.ones(len(scores)), multilabel=False)
    assert found["temperature"] == pytest.approx(temperature, rel=0.05)
    assert found["ece_after"] < 0.01
    assert found["ece_after"] <= found["ece_before"] + 0.002
    assert found["brier_after"] <= found["brier_before"]
    if k == 2:  # the same by a sigmoid, for several labels
        logits, labels = scores[:, 1:] - scores[:, :1], truth[:, 1:]
        found = calibrate(logits, labels, np.ones(len(scores)), multilabel=True)
        assert found["temperature"] == pytest.approx(temperature, rel=0.05)


@pytest.mark.parametrize("k", [2, 4])
def test_calibrate__brier_score__is_that_of_scikit_learn(k: int) -> None:
    scores, truth = drawn(300, k, 2.0)
    weight = np.random.default_rng(1).random(300)
    found = calibrate(scores, truth, weight, multilabel=False)
    for name, t in (("before", 1.0), ("after", found["temperature"])):
        p = softmax(scores.astype(float) / t, axis=1)
        expected = brier_score_loss(
            truth.argmax(axis=1), p[:, 1] if k == 2 else p, sample_weight=weight
        )
        assert found[f"brier_{name}"] == pytest.approx(expected)


def test_calibrate__weight_two__equals_the_row_twice() -> None:
    scores, truth = drawn(50, 3, 2.0)
    weight = np.ones(50)
    weight[::3] = 2
    twice = np.repeat(np.arange(50), weight.astype(int))
    weighted = calibrate(scores, truth, weight, multilabel=False)
    repeated = calibrate(scores[twice], truth[twice], np.ones(len(twice)), multilabel=False)
    for name in set(weighted) - {"n_rows"}:
        assert weighted[name] == pytest.approx(repeated[name])  # type: ignore[literal-required]


@pytest.mark.parametrize("scale", [1e-6, 1 / 60, 7.0, 1e9])
def test_calibrate__all_weights_times_a_constant__changes_nothing(scale: float) -> None:
    scores, truth = drawn(40, 3, 2.0)
    weight = np.random.default_rng(1).random(40)
    found = calibrate(scores, truth, weight, multilabel=False)
    assert 1.2 < found["temperature"] < 4  # so that there is something to move
    again = calibrate(scores, truth, weight * scale, multilabel=False)
    assert again == pytest.approx(found, rel=1e-4)


@pytest.mark.parametrize("k", [2, 3, 4])
def test_calibrate__few_rows_all_right__doubt_is_shared_among_the_others(k: int) -> None:
    scores = 3 * np.eye(k, dtype=np.float32)
    found = calibrate(scores, scores > 0, np.ones(k), multilabel=False)
    doubt = 1 / (k + 2)  # of Platt, whose rule it is
    wanted = [1 - doubt, *[doubt / (k - 1)] * (k - 1)]
    np.testing.assert_allclose(softmax(scores[0] / found["temperature"]), wanted, atol=1e-3)


@pytest.mark.parametrize("y", [Y, LABELS], ids=["classes", "labels"])
def test_calibrated__predictions__differ_in_probabilities_only(tiny_llama: str, y: Any) -> None:
    clf = classifier(tiny_llama).fit(X, y)
    plain = classifier(tiny_llama, calibrate=False, early_stopping=True, n_iter_no_change=9)
    plain.fit(X, y)  # holds out the same rows
    t = clf.calibration_["temperature"]
    assert t != 1
    assert not hasattr(plain, "calibration_")
    if clf.best_iter_ == 3 and plain.best_iter_ == 3:
        np.testing.assert_array_equal(clf.decision_function(X), plain.decision_function(X))
    raw = clf.decision_function(X)
    expected = softmax(raw / t, axis=1) if y is Y else 1 / (1 + np.exp(-raw / t))
    np.testing.assert_allclose(clf.predict_proba(X), expected, rtol=1e-5)
    np.testing.assert_allclose(clf.predict_log_proba(X), np.log(expected), rtol=1e-4, atol=1e-6)
    right = raw.argmax(axis=1) if y is Y else (raw > 0).astype(int)
    np.testing.assert_array_equal(clf.predict(X), clf.classes_[right] if y is Y else right)


def test_calibrated__x_val__is_what_it_is_fitted_on(tiny_llama: str) -> None:
    clf = classifier(tiny_llama).fit(X[:30], Y[:30], X_val=X[30:], y_val=Y[30:])
    plain = classifier(tiny_llama, calibrate=False).fit(X[:30], Y[:30])
    np.testing.assert_array_equal(clf.decision_function(X), plain.decision_function(X))
    truth = Y[30:, None] == clf.classes_
    raw = clf.decision_function(X[30:]).astype(np.float32)
    assert clf.calibration_ == calibrate(raw, truth, np.ones(18), multilabel=False)
    assert log_loss(Y[30:], clf.predict_proba(X[30:])) < log_loss(
        Y[30:], plain.predict_proba(X[30:])
    )


def test_calibrated__held_out_rows_of_weight_zero__do_not_count(tiny_llama: str) -> None:
    def found(n: int, weight: Any) -> Any:
        X_val, y_val = X[30 : 30 + n], Y[30 : 30 + n].copy()
        y_val[::3] = np.roll(Y, 1)[30 : 30 + n : 3]  # a third of them wrong, the first as the tenth
        clf = classifier(tiny_llama)
        clf.fit(X[:30], Y[:30], X_val=X_val, y_val=y_val, sample_weight_val=weight)
        return clf.calibration_

    zero_or_one = np.repeat([1.0, 0.0], [9, 9])
    assert found(18, zero_or_one) == pytest.approx(found(9, None), rel=1e-6)
    assert found(18, zero_or_one)["temperature"] != pytest.approx(found(18, None)["temperature"])


@pytest.mark.parametrize("y", [Y, LABELS], ids=["classes", "labels"])
def test_calibrated__exported__has_it_in_the_head(y: Any, tiny_llama: str, tmp_path: Any) -> None:
    clf = classifier(tiny_llama, pooling="last", precision="fp32").fit(X, y)
    temperature = clf.calibration_["temperature"]
    assert abs(temperature - 1) > 0.01
    clf.save_pretrained(tmp_path / "hf")
    assert f"divided by {temperature:.4g}, " in (tmp_path / "hf" / "README.md").read_text("utf-8")
    opened = GPTTextClassifier.from_pretrained(tmp_path / "hf", precision="fp32")
    expected = clf.predict_proba(X)
    assert not hasattr(opened, "calibration_")
    np.testing.assert_allclose(opened.predict_proba(X), expected, rtol=1e-5)
    np.testing.assert_array_equal(opened.predict(X), clf.predict(X))
    np.testing.assert_allclose(
        opened.decision_function(X) * temperature, clf.decision_function(X), rtol=1e-4, atol=1e-6
    )
    # And calibrated anew where it is fitted on.
    assert opened.set_params(warm_start=True).calibrate is True
    assert opened.fit(X, y).calibration_["n_rows"] == 12


def test_calibrated__fitted_anew_without__forgets_the_temperature(tiny_llama: str) -> None:
    clf = classifier(tiny_llama).fit(X, Y)
    clf.set_params(calibrate=False).partial_fit(X, Y)
    assert not hasattr(clf, "calibration_")
    with pytest.raises(AttributeError) as refused:
        clf.set_params(calibrate=True).partial_fit(X, Y)
    assert "calibrate=False" in str(refused.value.__cause__)


def test_calibrated__interrupted_while_it_is__is_fitted_without(
    tiny_llama: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = classifier(tiny_llama).fit(X, Y)

    def interrupted(*args: Any, **options: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr("skgpt.fitting.calibrate", interrupted)
    clf = classifier(tiny_llama)
    with pytest.warns(InterruptedFitWarning), pytest.raises(KeyboardInterrupt):
        clf.fit(X, Y)
    assert not hasattr(clf, "calibration_")
    assert np.array_equal(clf.decision_function(X), whole.decision_function(X))


def test_calibrated__no_row_to_hold_out__says_so(tiny_llama: str) -> None:
    with pytest.raises(InvalidTextError, match="calibrating"):
        classifier(tiny_llama).fit(X[:3], Y[:3])
