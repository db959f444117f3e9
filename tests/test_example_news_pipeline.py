"""The gallery's page on a Pipeline: what it draws is what it computed."""

from typing import Any

import numpy as np
from sklearn.metrics import confusion_matrix

from tests.examples_run import page_of

page = page_of("plot_news_pipeline")


def test_pipeline_example__matrix__is_of_the_predictions(page: dict[str, Any]) -> None:
    (figure,) = page["figures"]
    drawn = np.asarray(figure.axes[0].images[0].get_array())
    expected = confusion_matrix(page["test"].topics, page["predicted"], normalize="true")
    np.testing.assert_allclose(drawn, expected)
    np.testing.assert_allclose(drawn.sum(axis=1), 1)


def test_pipeline_example__opened_again__predicts_the_same(page: dict[str, Any]) -> None:
    texts = page["test"].texts[:5]
    np.testing.assert_array_equal(
        page["again"].predict_proba(texts), page["gpt"].predict_proba(texts)
    )
    assert not page["path"].exists()


def test_pipeline_example__clean__takes_the_sign_off_alone(page: dict[str, Any]) -> None:
    cleaned = page["without_sign_off"](np.array(["a reuter b reuter", "c"], dtype=object))
    assert cleaned.tolist() == ["a reuter b", "c"]
