"""Other people's searches over the classifier: they work, and compute what is the same once."""

from typing import Any

import numpy as np
import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from scipy.stats import loguniform
from sklearn.base import clone, is_classifier
from sklearn.experimental import enable_halving_search_cv  # noqa: F401
from sklearn.model_selection import (
    GridSearchCV,
    HalvingGridSearchCV,
    RandomizedSearchCV,
    StratifiedKFold,
    cross_val_score,
)
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import FunctionTransformer

import skgpt
from skgpt import GPTTextClassifier, LoRA
from tests.helpers import make
from tests.tuning.searching import DATA, X, y

optuna.logging.set_verbosity(optuna.logging.WARNING)

# It is said to be experimental, and calls what Optuna 5 has deprecated.
of_optuna_integration = pytest.mark.filterwarnings(
    "ignore::optuna.exceptions.ExperimentalWarning", "ignore:.*optuna.terminator:FutureWarning"
)

STRICT: dict[str, Any] = {"error_score": "raise"}


@pytest.fixture(autouse=True)
def empty_stores() -> None:
    skgpt.clear_cache()


def misses(store: str) -> int:
    return skgpt.cache_info()[store]["misses"]


def assert_computed_once(X: Any, n_depths: int) -> None:
    """Assert that no text was tokenised twice, nor run through the same frozen layers twice."""
    n_texts = len(set(X))
    assert misses("token ids") == n_texts
    assert misses("states on cpu") == n_texts * n_depths
    assert skgpt.cache_info()["states on cpu"]["entries"] == n_texts * n_depths
    assert misses("models") == 1


def test_grid__rates_and_batches__every_text_runs_through_the_frozen_layers_once(
    tiny_llama: str,
) -> None:
    grid = {"head_learning_rate": [1e-3, 1e-2], "batch_size": [4, 8], "max_length": [32]}
    search = GridSearchCV(make(tiny_llama, max_epochs=2), grid, cv=3, **STRICT).fit(X, y)
    search.predict(X)
    assert_computed_once(X, n_depths=1)
    assert len(search.cv_results_["params"]) == 4 and is_classifier(search)


def test_grid__depths__each_once(tiny_llama: str) -> None:
    grid = {"trainable_layers": [1, 2], "n_layers": [2, 3], "learning_rate": [1e-4, 1e-3]}
    clf = make(tiny_llama, max_epochs=1)
    depths = {n - trained for n in grid["n_layers"] for trained in grid["trainable_layers"]}
    n_layers = clone(clf).fit(X, y)._model.network.spec.n_layers
    assert n_layers >= 3
    skgpt.clear_cache()
    GridSearchCV(clf, grid, cv=2, **STRICT).fit(X, y)
    # Where no layer is frozen there is nothing to keep.
    assert_computed_once(X, n_depths=len(depths - {0}))


def test_grid__lora_ranks__share_the_frozen_layers_in_front(tiny_llama: str) -> None:
    clf = make(tiny_llama, max_epochs=2, lora=LoRA(), learning_rate=1e-2)
    grid = {"lora__rank": [1, 2, 4], "lora__alpha": [8, 16]}
    search = GridSearchCV(clf, grid, cv=2, **STRICT).fit(X, y)
    assert_computed_once(X, n_depths=1)
    assert search.best_estimator_.lora.rank == search.best_params_["lora__rank"]
    assert (clf.lora.rank, clf.lora.alpha) == (8, 16)  # the user's object is as it was


def test_grid__its_scores__are_those_without_any_store(tiny_llama: str) -> None:
    clf = make(tiny_llama, max_epochs=3, precision="fp32")
    rates = [1e-3, 1e-2, 1e-1]
    cv = StratifiedKFold(3, shuffle=True, random_state=0)
    options: dict[str, Any] = {"cv": cv, "scoring": "neg_log_loss", **STRICT}
    search = GridSearchCV(clf, {"head_learning_rate": rates}, **options).fit(X, y)
    for rate, found in zip(rates, search.cv_results_["mean_test_score"], strict=True):
        scores = []
        for train, test in cv.split(X, y):
            skgpt.clear_cache()
            one = clone(clf).set_params(head_learning_rate=rate)
            scores.append(cross_val_score(one, X, y, **{**options, "cv": [(train, test)]}).item())
        assert found == pytest.approx(np.mean(scores), rel=1e-4)


@pytest.mark.parametrize("kind", ["pipeline", "randomized", "nested"])
def test_search__of_every_kind__computes_the_frozen_layers_once(tiny_llama: str, kind: str) -> None:
    clf = make(tiny_llama, max_epochs=1)
    rates = {"head_learning_rate": [1e-12, 1e-1]}
    if kind == "pipeline":
        pipeline = Pipeline([("same", FunctionTransformer()), ("gpt", clf)])
        grid = {f"gpt__{name}": values for name, values in rates.items()}
        search = GridSearchCV(pipeline, grid, cv=2, scoring="neg_log_loss", **STRICT).fit(X, y)
        assert search.best_params_ == {"gpt__head_learning_rate": 1e-1}
    elif kind == "randomized":
        space = {"learning_rate": loguniform(1e-5, 1e-2), "pooling": ["mean", "last"]}
        search = RandomizedSearchCV(clf, space, n_iter=3, cv=2, random_state=0, **STRICT).fit(X, y)
        assert len(search.cv_results_["params"]) == 3
    else:
        scores = cross_val_score(GridSearchCV(clf, rates, cv=2, **STRICT), X, y, cv=3, **STRICT)
        assert scores.shape == (3,)
    assert_computed_once(X, n_depths=1)


def test_halving__epochs_as_the_resource__fewer_candidates_train_longer_and_start_anew(
    tiny_llama: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    epochs: list[int] = []
    whole = GPTTextClassifier.fit

    def counted(self: GPTTextClassifier, *args: Any, **kwargs: Any) -> GPTTextClassifier:
        assert not hasattr(self, "history_")
        fitted = whole(self, *args, **kwargs)
        epochs.append(fitted.n_iter_)
        return fitted

    monkeypatch.setattr(GPTTextClassifier, "fit", counted)
    search = HalvingGridSearchCV(
        make(tiny_llama),
        {"head_learning_rate": [1e-4, 1e-3, 1e-2, 1e-1]},
        resource="max_epochs",
        min_resources=1,
        max_resources=4,
        factor=2,
        cv=2,
        random_state=0,
        **STRICT,
    ).fit(X, y)
    assert search.n_candidates_ == [4, 2, 1] and search.n_resources_ == [1, 2, 4]
    assert epochs == [1] * 8 + [2] * 4 + [4] * 2 + [4]  # two folds each, and the refit
    assert search.best_estimator_.n_iter_ == 4
    assert_computed_once(X, n_depths=1)


# --- optuna-integration's OptunaSearchCV


def optuna_search(clf: Any, space: dict[str, Any], **options: Any) -> Any:
    from optuna_integration import OptunaSearchCV

    defaults: dict[str, Any] = {"n_trials": 3, "cv": 2, "random_state": 0, "error_score": "raise"}
    return OptunaSearchCV(clf, space, **{**defaults, **options})


@of_optuna_integration
def test_optuna_search__without_pruning__computed_once_and_predicts(tiny_llama: str) -> None:
    space = {
        "head_learning_rate": FloatDistribution(1e-3, 1e-1, log=True),
        "lora__rank": IntDistribution(1, 4),
        "pooling": CategoricalDistribution(["mean", "last"]),
    }
    search = optuna_search(make(tiny_llama, max_epochs=2, lora=LoRA()), space).fit(X, y)
    assert set(search.best_params_) == set(space) and len(search.trials_) == 3
    assert search.predict(X).shape == y.shape and search.score(X, y) >= 0.5
    assert_computed_once(X, n_depths=1)


@of_optuna_integration
def test_optuna_search__with_pruning__an_epoch_a_step_and_PRUNED_is_not_FAILED(
    tiny_llama: str,
) -> None:
    from optuna.trial import TrialState

    study = optuna.create_study(
        direction="maximize", pruner=optuna.pruners.MedianPruner(n_startup_trials=1)
    )
    for rate in (3e-2, 1e-9):
        study.enqueue_trial({"head_learning_rate": rate, "learning_rate": rate / 10})
    space = {
        "head_learning_rate": FloatDistribution(1e-9, 1e-1, log=True),
        "learning_rate": FloatDistribution(1e-10, 1e-2, log=True),
    }
    search = optuna_search(
        make(tiny_llama, max_epochs=6, lr_schedule="constant", warmup_ratio=0.0),
        space,
        study=study,
        n_trials=2,
        enable_pruning=True,
        max_iter=6,
        scoring="neg_log_loss",
    ).fit(X, y)
    good, bad = study.trials
    assert [good.state, bad.state] == [TrialState.COMPLETE, TrialState.PRUNED]
    assert sorted(good.intermediate_values) == [0, 1, 2, 3, 4, 5]
    assert len(bad.intermediate_values) < 6
    assert search.best_estimator_.n_iter_ == 6
    # A pass at a time comes to the same as a fit at a constant rate.
    clf = clone(search.estimator).set_params(**good.params)
    whole = cross_val_score(clf, X, y, cv=2, scoring="neg_log_loss", **STRICT)
    assert good.value == pytest.approx(whole.mean(), rel=1e-3)
    assert_computed_once(X, n_depths=1)


@of_optuna_integration
def test_optuna_search__its_limits__are_those_that_the_guide_names(tiny_llama: str) -> None:
    space = {"gpt__head_learning_rate": FloatDistribution(1e-3, 1e-1)}
    pipeline = Pipeline([("gpt", make(tiny_llama))])
    with pytest.raises(ValueError, match="must support partial_fit"):
        optuna_search(pipeline, space, enable_pruning=True).fit(*DATA)
    stopping = make(tiny_llama, early_stopping=True)
    with pytest.raises(ValueError, match="must support partial_fit"):
        optuna_search(stopping, {}, enable_pruning=True).fit(*DATA)
    assert optuna_search(pipeline, space, n_trials=1).fit(*DATA).score(*DATA)
