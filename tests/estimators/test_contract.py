"""The scikit-learn contract: its own checks, all of them, and its tools."""

import importlib.util
from typing import Any

import pytest
import sklearn

from skgpt import GPTTextEmbedder
from skgpt.testing import check_text_estimator
from tests.estimators.recorders import Listener
from tests.helpers import TextData, make

# How many of scikit-learn's checks must run, by version: a wrong tag runs one and reports success.
EXPECTED_CHECKS = {(1, 7): 67, (1, 8): 67, (1, 9): 68}

EXPECTED_FAILURES = {
    "check_sample_weight_equivalence_on_dense_data": (
        "a row of weight 2 equals the row twice in the loss, but not in which batch it falls; "
        "scikit-learn expects the same of its own SGD estimators"
    )
}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"trainable_layers": 0},
        pytest.param({"early_stopping": True}, marks=pytest.mark.thorough),
        pytest.param({"trainable_layers": "all"}, marks=pytest.mark.thorough),
        pytest.param({"long_text": "windows"}, marks=pytest.mark.thorough),
    ],
    ids=["last layer", "head only", "early stopping", "all layers", "windows"],
)
def test_check_text_estimator__the_classifier__passes_and_says_how_many_ran(
    options: dict[str, Any], tiny_llama: str
) -> None:
    # fp32: in bf16 a row alone and the same row in a batch agree to three digits only.
    clf = make(tiny_llama, max_epochs=2, random_state=None, precision="fp32", **options)
    report = check_text_estimator(clf, expected_failed_checks=EXPECTED_FAILURES)
    version = tuple(int(part) for part in sklearn.__version__.split(".")[:2])
    if version in EXPECTED_CHECKS:
        assert report.n_sklearn_checks == EXPECTED_CHECKS[version]
    else:  # a later scikit-learn may have more
        assert report.n_sklearn_checks >= 68
    assert report.n_text_checks >= 14
    assert report.skipped == {}
    # Any other failure would have raised; this one may also pass, where batches fall luckily.
    named = {*report.expected_failures, *report.unexpected_passes}
    assert named == set(EXPECTED_FAILURES)


@pytest.mark.parametrize(
    "options",
    [{}, pytest.param({"standardize": False, "layer": [1, 2]}, marks=pytest.mark.thorough)],
    ids=["standardised", "states of two layers"],
)
def test_check_text_estimator__the_embedder__passes_all(
    options: dict[str, Any], tiny_llama: str
) -> None:
    embedder = GPTTextEmbedder(tiny_llama, max_length=64, precision="fp32", **options)
    report = check_text_estimator(embedder)
    if sklearn.__version__.startswith("1.9."):
        assert report.n_sklearn_checks == 53
    else:
        assert report.n_sklearn_checks >= 45
    assert report.n_text_checks == 9
    # What is about labels or a seed, which it hasn't.
    assert {name.removeprefix("check_text_") for name in report.skipped} == {
        *("lengths_differ", "label_order", "probabilities", "same_seed", "global_random_state")
    }


@pytest.mark.skipif(
    importlib.util.find_spec("sklearn.callback") is not None, reason="scikit-learn has callbacks"
)
def test_set_callbacks__scikit_learn_without_them__is_no_attribute(
    tiny_llama: str, two_class_data: TextData
) -> None:
    clf = make(tiny_llama, max_epochs=1)
    with pytest.raises(AttributeError, match="set_callbacks"):
        clf.set_callbacks(Listener())
    assert clf.fit(*two_class_data).partial_fit(*two_class_data).n_iter_ == 2
