"""Searches over the classifier: they compute what is the same once."""

from typing import Any

import numpy as np
import optuna
import pytest
import torch
from optuna.distributions import FloatDistribution
from optuna.samplers import GridSampler
from sklearn.base import is_classifier
from sklearn.model_selection import GridSearchCV

import skgpt
from skgpt import LoRA
from skgpt.tuning import GPTSearchCV, compare_with_baseline, objective
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
def test_grid__every_text_of_a_fit__is_tokenised_once_and_runs_once_through_each_frozen_depth(
    grid: dict[str, list[Any]], n_depths: int, tiny_llama: str
) -> None:
    skgpt.clear_cache()
    search = GridSearchCV(make(tiny_llama, max_epochs=2), grid, cv=2, error_score="raise")
    search.fit(X, y).predict(X)
    assert len(search.cv_results_["params"]) == 4 and is_classifier(search)
    info, n_texts = skgpt.cache_info(), len(set(X))
    assert info["base models"]["misses"] == 1
    assert info["token ids"]["entries"] == n_texts
    # The first fold's test half was predicted before it was fitted on, and not kept for that.
    assert info["token ids"]["misses"] == 1.5 * n_texts
    assert info["states on cpu"]["misses"] == n_texts * n_depths
    assert info["states on cpu"]["entries"] == n_texts * n_depths


@pytest.mark.filterwarnings("ignore::skgpt.exceptions.BaselineWarning")
@pytest.mark.parametrize("how", ["search", "objective", "compare"])
def test_searches_of_ours__texts_that_were_only_predicted__are_kept_for_the_next_fold(
    how: str, tiny_llama: str
) -> None:
    skgpt.clear_cache()
    clf, space = make(tiny_llama, max_epochs=2), {"head_learning_rate": FloatDistribution(0, 0.1)}
    if how == "search":
        GPTSearchCV(clf, space, n_trials=2, cv=2, random_state=0).fit(X, y).predict(X)
    elif how == "objective":
        study = optuna.create_study(direction="maximize")
        study.optimize(objective(clf, X, y, space, cv=2), n_trials=2)
    else:
        compare_with_baseline(clf, X, y, cv=2, baseline="tfidf")
    info, n_texts = skgpt.cache_info(), len(set(X))
    assert info["token ids"]["misses"] == info["states on cpu"]["misses"] == n_texts
    assert info["states on cpu"]["entries"] == n_texts


@pytest.mark.parametrize("kind", [GridSearchCV, GPTSearchCV])
@pytest.mark.parametrize(
    ("options", "grid"),
    [
        (
            {"trainable_layers": 1, "head_first_epochs": 1},
            {"learning_rate": [1e-4, 1e-3], "head_learning_rate": [1e-3, 1e-2]},
        ),
        (
            {"trainable_layers": 0},
            {"label_smoothing": [0.0, 0.1], "class_weight": [None, "balanced"]},
        ),
    ],
    ids=["rates", "head"],
)
def test_search__over_rates_or_what_a_head_is_solved_with__runs_no_frozen_layer_again(
    kind: Any,
    options: dict[str, Any],
    grid: dict[str, list[Any]],
    tiny_llama: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # What runs the frozen layers comes in by the embedding; what goes on from their states doesn't.
    n_tokens = []
    forward = torch.nn.Embedding.forward

    def counting(self: Any, ids: Any) -> Any:
        n_tokens.append(ids.numel())
        return forward(self, ids)

    monkeypatch.setattr(torch.nn.Embedding, "forward", counting)

    def embedded(grid: dict[str, list[Any]], refit: bool) -> int:
        skgpt.clear_cache()
        n_tokens.clear()
        clf = make(tiny_llama, max_epochs=1, **options)
        how = {"n_trials": 4, "sampler": GridSampler(grid)} if kind is GPTSearchCV else {}
        search = kind(clf, grid, cv=2, refit=refit, error_score="raise", **how).fit(X, y)
        assert len(search.cv_results_["params"]) == np.prod([len(tried) for tried in grid.values()])
        return sum(n_tokens)

    one_point = {name: tried[:1] for name, tried in grid.items()}
    once = embedded(one_point, refit=False)
    assert once > 0
    assert embedded(grid, refit=True) == once
