"""Weights through the estimator: what is promised exactly, and what about batches."""

from typing import Any

import numpy as np
import pytest
from sklearn.base import clone

from tests.helpers import TextData, make, make_text_data

# All rows in one batch, so that which batch a row falls into plays no part.
ONE_BATCH: dict[str, Any] = {"batch_size": 128, "max_epochs": 4, "precision": "fp32"}
X, Y = make_text_data(n_classes=3)
X, Y = X[7:], Y[7:]  # classes of unequal size
CLOSE: dict[str, float] = {"rtol": 1e-3, "atol": 1e-5}


@pytest.mark.parametrize("times", [2, 0])
@pytest.mark.parametrize("class_weight", [None, "balanced", {"money": 3.0, "sport": 0.5}])
def test_fit__whole_weights__equal_rows(class_weight: Any, times: int, tiny_llama: str) -> None:
    clf = make(tiny_llama, class_weight=class_weight, **ONE_BATCH)
    weight = np.where(np.arange(len(X)) < 12, times, 1)
    rows = np.repeat(np.arange(len(X)), weight)
    one = clone(clf).fit(X, Y, sample_weight=weight)
    two = clone(clf).fit(X[rows], Y[rows])
    np.testing.assert_allclose(one.predict_proba(X), two.predict_proba(X), **CLOSE)
    np.testing.assert_allclose(one.loss_curve_, two.loss_curve_, rtol=1e-4)
    plain = clone(clf).fit(X, Y)
    assert np.abs(plain.predict_proba(X) - one.predict_proba(X)).max() > 1e-3


def test_label_smoothing__some__makes_less_sure(tiny_llama: str, two_class_data: TextData) -> None:
    texts, labels = two_class_data
    sure = []
    for smoothing in (0.0, 0.4):
        clf = make(tiny_llama, label_smoothing=smoothing, trainable_layers="all", max_epochs=25)
        sure.append(clf.fit(texts, labels).predict_proba(texts).max(axis=1).mean())
    assert sure[0] > 0.9
    assert abs(sure[1] - 0.8) < 0.08  # the smoothed target itself is 0.8


@pytest.mark.first_tier(class_weight=[None])
@pytest.mark.parametrize("class_weight", [None, "balanced"])
@pytest.mark.parametrize("scale", [2.0**1020, 2.0**-900])
def test_fit__huge_or_tiny_weights__are_what_their_ratios_say(
    scale: float, class_weight: Any, tiny_llama: str
) -> None:
    weight = np.linspace(1, 2, len(X))
    clf = make(tiny_llama, class_weight=class_weight, max_epochs=2)
    plain = clone(clf).fit(X, Y, sample_weight=weight).predict_proba(X)
    scaled = clone(clf).fit(X, Y, sample_weight=weight * scale).predict_proba(X)
    np.testing.assert_allclose(plain, scaled, rtol=1e-5, atol=1e-6)


def test_fit__weights_whose_product_overflows__are_refused(tiny_llama: str) -> None:
    clf = make(tiny_llama, class_weight={"money": 1e300, "sport": 1.0, "space": 1.0})
    with pytest.raises(ValueError, match="must be finite"):
        clf.fit(X, Y, sample_weight=np.full(len(X), 1e99))
