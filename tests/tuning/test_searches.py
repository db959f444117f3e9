"""Other people's searches over the classifier: they compute what is the same once."""

from typing import Any

import pytest
from sklearn.base import is_classifier
from sklearn.model_selection import GridSearchCV

import skgpt
from skgpt import LoRA
from tests.helpers import make
from tests.tuning.searching import X, y


@pytest.mark.parametrize(
    ("grid", "n_depths"),
    [
        ({"head_learning_rate": [1e-3, 1e-2], "batch_size": [4, 8], "max_length": [32]}, 1),
        ({"lora": [LoRA()], "lora__rank": [1, 2], "lora__alpha": [8, 16]}, 1),
        # Of three layers one or two are frozen, or none: then there is nothing to keep.
        ({"trainable_layers": [1, 2], "n_layers": [2, 3]}, 2),
    ],
    ids=["rates and batches", "lora", "depths"],
)
def test_grid__every_text__is_tokenised_once_and_runs_once_through_each_frozen_depth(
    grid: dict[str, list[Any]], n_depths: int, tiny_llama: str
) -> None:
    skgpt.clear_cache()
    search = GridSearchCV(make(tiny_llama, max_epochs=2), grid, cv=2, error_score="raise")
    search.fit(X, y).predict(X)
    assert len(search.cv_results_["params"]) == 4 and is_classifier(search)
    info, n_texts = skgpt.cache_info(), len(set(X))
    assert info["models"]["misses"] == 1
    assert info["token ids"]["misses"] == n_texts
    assert info["states on cpu"]["misses"] == n_texts * n_depths
    assert info["states on cpu"]["entries"] == n_texts * n_depths
