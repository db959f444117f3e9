"""Other people's searches over the classifier: they work, and compute what is the same once."""

from typing import Any

import optuna
import pytest
from optuna.distributions import FloatDistribution
from sklearn.base import clone, is_classifier
from sklearn.experimental import enable_halving_search_cv  # noqa: F401
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import Pipeline

import skgpt
from skgpt import LoRA
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


@pytest.mark.parametrize(
    "grid",
    [
        {"head_learning_rate": [1e-3, 1e-2], "batch_size": [4, 8], "max_length": [32]},
        {"lora": [LoRA()], "lora__rank": [1, 2], "lora__alpha": [8, 16]},
    ],
    ids=["rates and batches", "lora"],
)
def test_grid__what_the_frozen_layers_do_not_see__every_text_runs_through_them_once(
    grid: dict[str, list[Any]], tiny_llama: str
) -> None:
    clf = make(tiny_llama, max_epochs=2)
    search = GridSearchCV(clf, grid, cv=3, **STRICT).fit(X, y)
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


# --- optuna-integration's OptunaSearchCV


def optuna_search(clf: Any, space: dict[str, Any], **options: Any) -> Any:
    from optuna_integration import OptunaSearchCV

    defaults: dict[str, Any] = {"n_trials": 3, "cv": 2, "random_state": 0, "error_score": "raise"}
    return OptunaSearchCV(clf, space, **{**defaults, **options})


@of_optuna_integration
def test_optuna_search__pruning__an_epoch_a_step_and_PRUNED_is_not_FAILED(tiny_llama: str) -> None:
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
