"""Search spaces: what Optuna draws from, and what is made of what it draws."""

from collections.abc import Callable
from typing import Any

import numpy as np
import optuna
import pandas as pd
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from scipy import stats
from sklearn.dummy import DummyClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer

from skgpt import LoRA
from skgpt.exceptions import SearchSpaceError
from skgpt.tuning import GPTSearchCV, default_space, suggest
from skgpt.tuning.space import Space, check_names, choices_in, draw
from tests.helpers import make
from tests.tuning.searching import DATA, piped


@pytest.mark.parametrize(
    ("build", "name", "hint"),
    [
        (make, "learning_rat", "mean 'learning_rate'"),
        (make, "lora__rank", "once it is a LoRA"),
        (make, "zzz", "see its get_params"),
        (piped, "head_learning_rate", "mean 'gpttextclassifier__head_learning_rate'"),
        (piped, "gpttextclassifier__pool", "mean 'gpttextclassifier__pooling'"),
    ],
)
def test_check_names__what_the_estimator_has_not__is_refused_before_any_trial(
    tiny_llama: str, build: Any, name: str, hint: str
) -> None:
    space = {name: [1, 2]}
    with pytest.raises(SearchSpaceError, match=f"{name!r} is none of this .*{hint}"):
        check_names(space, build(tiny_llama))
    ours = GPTSearchCV(build(tiny_llama), space, n_trials=2, cv=2)
    with pytest.raises(SearchSpaceError, match=f"{name!r} is none of"):
        ours.fit(*DATA)


def test_check_names__of_several_dicts__each_is_looked_at(tiny_llama: str) -> None:
    space = [{"lora": [LoRA()], "lora__rank": [2]}, {"lora__rank": [2]}]
    with pytest.raises(SearchSpaceError, match="'lora__rank' is none of"):
        check_names(space, make(tiny_llama))
    check_names(space[:1], make(tiny_llama))


def test_search__several_dicts__as_grid_search_takes_them(tiny_llama: str) -> None:
    space = [{"trainable_layers": [0]}, {"trainable_layers": [1], "lora": [LoRA(rank=2)]}]
    clf = make(tiny_llama, max_epochs=1)
    search = GPTSearchCV(clf, space, n_trials=6, cv=2, storage=None, random_state=0).fit(*DATA)
    expected = [{"trainable_layers": 0}, {"trainable_layers": 1, "lora": space[1]["lora"][0]}]
    assert all(params in expected for params in search.cv_results_["params"])
    assert {params["trainable_layers"] for params in search.cv_results_["params"]} == {0, 1}
    masked = search.cv_results_["param_lora"].mask.tolist()
    assert masked == ["lora" not in params for params in search.cv_results_["params"]]


def test_check_names__what_depends_on_a_choice__is_left_to_the_trials(tiny_llama: str) -> None:
    check_names({"lora": [None, LoRA()], "lora__rank": [2, 4]}, make(tiny_llama))
    check_names({"lora__rank": [2, 4]}, make(tiny_llama, lora=LoRA()))
    step = "gpttextclassifier"
    check_names({step: [make(tiny_llama)], f"{step}__lora__rank": [2]}, piped(tiny_llama))


def drawn(space: Space, n: int = 50) -> list[dict[str, Any]]:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    trials = [study.ask(space.distributions) for _ in range(n)]
    return [space.params(trial.params) for trial in trials]


def test_space__plain_ranges_of_scipy__are_optunas_own() -> None:
    space = Space(
        {
            "a": stats.uniform(2, 3),
            "b": stats.loguniform(1e-4, 1e-1),
            "c": stats.randint(2, 6),
            "d": [1, None, "two"],
            "e": np.array([1, 2]),
        }
    )
    assert space.distributions == {
        "a": FloatDistribution(2.0, 5.0),
        "b": FloatDistribution(1e-4, 1e-1, log=True),
        "c": IntDistribution(2, 5),
        "d": CategoricalDistribution([1, None, "two"]),
        "e": CategoricalDistribution([1, 2]),
    }
    assert all(params["b"] <= 0.1 and type(params["e"]) is int for params in drawn(space))


@pytest.mark.parametrize(
    ("given", "kind"),
    [
        (stats.norm(3, 0.1), float),
        (stats.loguniform(1, 2, loc=5), float),
        (stats.poisson(4), int),
        (stats.binom(4, 0.5), int),
    ],
)
def test_space__another_distribution_of_scipy__drawn_by_quantile(given: Any, kind: type) -> None:
    values = [params["a"] for params in drawn(Space({"a": given}), 300)]
    assert {type(value) for value in values} == {kind}
    assert abs(np.mean(values) - given.mean()) < 4 * given.std() / np.sqrt(len(values))


def test_space__something_that_only_has_rvs__is_drawn_from_by_seed() -> None:
    class Own:
        def rvs(self, random_state: Any = None) -> np.int64:
            return np.int64(np.random.RandomState(random_state).randint(5))

    values = [params["a"] for params in drawn(Space({"a": Own()}))]
    assert set(values) == set(range(5)) and type(values[0]) is int


def test_space__objects_in_a_list__come_back_as_they_were() -> None:
    lora = LoRA(rank=2)
    space = Space({"lora": [None, lora, LoRA(rank=4)]})
    found = {id(params["lora"]) for params in drawn(space)}
    assert id(lora) in found and len(found) == 3


@pytest.mark.parametrize("listed", [range(1, 3), (1, 2), np.array([1, 2]), pd.Series([1, 2])])
def test_space__whatever_lists_values__is_a_list(listed: Any) -> None:
    assert Space({"a": listed}).distributions == {"a": CategoricalDistribution([1, 2])}
    assert choices_in({"a": listed}) == [("a", 1), ("a", 2)]


def test_space__several_dicts__a_trial_takes_one() -> None:
    lora = LoRA(rank=2)
    space = Space([{"trainable_layers": [0]}, {"trainable_layers": [1, 2], "lora": [lora]}])
    found = drawn(space, 100)
    assert {repr(params) for params in found} == {
        repr({"trainable_layers": 0}),
        repr({"trainable_layers": 1, "lora": lora}),
        repr({"trainable_layers": 2, "lora": lora}),
    }
    one = Space([{"a": [1, 2]}])
    assert one.distributions == Space({"a": [1, 2]}).distributions


@pytest.mark.parametrize(
    "given",
    [{}, None, [], [{}], [{"a": [1]}, 3], {"a": 3}, {"a": []}, {"a": "text"}, {"a": {1: 2}}],
)
def test_space__not_as_described__is_refused(given: Any) -> None:
    with pytest.raises(SearchSpaceError, match="param_distributions"):
        Space(given)


def test_draw__every_kind__is_what_ask_draws() -> None:
    among = {
        "a": FloatDistribution(0.1, 1, log=True),
        "b": FloatDistribution(0, 1, step=0.25),
        "c": IntDistribution(1, 64, log=True),
        "d": CategoricalDistribution(["x", 1]),
    }
    study = optuna.create_study()
    trial = study.ask()
    assert draw(trial, among) == trial.params
    assert study.trials[0].distributions == among


def test_default_space__whatever_is_drawn__can_be_fitted(tiny_model: Callable[[str], str]) -> None:
    X, y = ["one text", "two texts", "a text"] * 2, [0, 1, 1] * 2
    for options in ({}, {"lora": LoRA()}, {"trainable_layers": 0}, {"n_layers": 1}):
        for name in ("llama", "bert"):
            clf = make(tiny_model(name), device="cpu", max_epochs=1, **options)
            for params in drawn(Space(default_space(clf)), 4):
                clf.set_params(**params).fit(X, y)


def test_default_space__an_estimators_own_choices__are_kept(tiny_llama: str) -> None:
    def names(**options: Any) -> set[str]:
        return set(default_space(make(tiny_llama, **options)))

    rest = {"head_learning_rate", "weight_decay", "batch_size", "pooling", "n_layers"}
    assert names(trainable_layers=0) == rest
    assert names() == rest | {"learning_rate", "trainable_layers"}
    assert names(lora=LoRA()) == names() | {"lora__rank"}
    shallow = default_space(make(tiny_llama, n_layers=1))
    assert shallow["n_layers"] == CategoricalDistribution([1])


def test_default_space__pipeline__reaches_into_its_last_step(tiny_llama: str) -> None:
    inner = make_pipeline(FunctionTransformer(), make(tiny_llama))
    outer = make_pipeline(FunctionTransformer(), inner)
    prefix = "pipeline__gpttextclassifier__"
    assert set(default_space(outer)) == {prefix + name for name in default_space(make(tiny_llama))}
    params = suggest(optuna.create_study().ask(), outer)
    outer.set_params(**params)
    assert outer[-1][-1].batch_size == params[prefix + "batch_size"]


def test_default_space__no_estimator_of_ours__is_refused() -> None:
    with pytest.raises(SearchSpaceError, match="DummyClassifier: pass `param_distributions`"):
        default_space(DummyClassifier())
