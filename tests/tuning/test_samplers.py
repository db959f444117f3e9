"""Samplers of the user's: each point of a grid once, and no draw repeated when a search goes on."""

from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.distributions import FloatDistribution
from optuna.pruners import BasePruner, NopPruner
from optuna.samplers import BaseSampler, BruteForceSampler, GridSampler
from optuna.study import Study
from optuna.trial import Trial, TrialState
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from skgpt.tuning.space import Space
from skgpt.tuning.study import PRUNERS, open_storage
from skgpt.tuning.trial import Outcome
from skgpt.tuning.trial_store import TrialStore
from tests.tuning.processes import let_die
from tests.tuning.searching import DATA, search

pytestmark = pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")

GRID: dict[str, list[Any]] = {"a": [1, 2, 3], "b": ["x", "y"]}
N_POINTS = 6
POINTS = sorted((a, b) for a in GRID["a"] for b in GRID["b"])


def open_study(
    storage: Any = None, sampler: BaseSampler | None = None, pruner: BasePruner | None = None
) -> Study:
    return optuna.create_study(
        study_name="a study",  # brackets go by it
        storage=storage,
        sampler=sampler or GridSampler(GRID, seed=0),
        pruner=pruner or NopPruner(),
        direction="maximize",
        load_if_exists=True,
    )


def store_of(study: Study, n_trials: int = 100) -> TrialStore:
    return TrialStore(study, Space(GRID).distributions, n_trials)


def finish(store: TrialStore, trial: Trial) -> None:
    """End a trial of up to four epochs as a search would."""
    value = float(trial.params["a"])
    for epoch in range(1, 4):
        trial.report(value, epoch)
        if trial.should_prune():
            store.finish(trial, Outcome("PRUNED"))
            return
    store.finish(trial, Outcome("COMPLETE", value))


def play(store: TrialStore) -> None:
    while trial := store.take():
        finish(store, trial)


def points(store: TrialStore) -> list[tuple[Any, Any]]:
    return sorted((t.params["a"], t.params["b"]) for t in store.finished())


@pytest.mark.parametrize(
    ("sampler", "pruner"),
    [
        (lambda: GridSampler(GRID, seed=0), PRUNERS["hyperband"]),
        (lambda: BruteForceSampler(seed=0), NopPruner),
    ],
    ids=["grid", "brute force"],
)
def test_points__more_trials_than_points__each_point_once(sampler: Any, pruner: Any) -> None:
    storage = optuna.storages.InMemoryStorage()

    def store(n_trials: int) -> TrialStore:
        return store_of(open_study(storage, sampler(), pruner()), n_trials)

    first = store(4)
    play(first)
    assert len(first.finished()) == 4 == len(set(points(first)))
    for _ in range(2):
        again = store(100)
        play(again)
        assert points(again) == POINTS
        assert len(again.counted()) == N_POINTS and again.is_over()


def test_grid__all_points_begun__others_wait_for_those_whose_worker_dies(tmp_path: Path) -> None:
    study = open_study(open_storage(tmp_path / "search.db"))
    store, other = store_of(study), store_of(study)
    trials = [trial for _ in range(N_POINTS) if (trial := store.take())]
    assert store.take() is None and other.take() is None and len(study.trials) == N_POINTS
    let_die(study, trials[2])
    *done, last = trials[:2] + trials[3:]
    for trial in done:
        finish(store, trial)
    again = other.take()
    assert again is not None and again.params == trials[2].params
    finish(other, again)  # with one left, Optuna asks which point this one was
    finish(store, last)
    assert points(store) == POINTS and store.take() is None and other.take() is None
    assert [t.state for t in study.trials].count(TrialState.FAIL) == 1


def test_grid__killed_before_it_was_drawn_whole__the_point_is_not_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = open_study(open_storage(tmp_path / "search.db"))
    store = store_of(study)
    with monkeypatch.context() as patched:
        patched.setattr("skgpt.tuning.trial_store.draw", lambda trial, among: None)
        trial = store.take()  # it has a place in the grid, and no values yet
    assert trial is not None
    let_die(study, trial)
    play(store)
    assert points(store) == POINTS


def test_grid__two_that_draw_the_same_point__one_gives_way(monkeypatch: pytest.MonkeyPatch) -> None:
    study = open_study()
    store, other = store_of(study), store_of(study)
    first = store.take()
    assert first is not None
    marks = study.trials[0].system_attrs
    ask = study.ask

    def as_well() -> Trial:
        monkeypatch.setattr(study, "ask", ask)
        study.add_trial(optuna.trial.create_trial(state=TrialState.WAITING, system_attrs=marks))
        return ask()

    monkeypatch.setattr(study, "ask", as_well)
    second = other.take()
    assert second is not None and second.params != first.params
    assert [t.number for t in store.counted()] == [first.number, second.number]
    finish(store, first)
    finish(other, second)
    play(other)
    assert points(store) == POINTS


def test_grid__one_trial_too_many__its_point_comes_later(monkeypatch: pytest.MonkeyPatch) -> None:
    study = open_study()
    store, other = store_of(study, n_trials=1), store_of(study, n_trials=1)
    ask = study.ask

    def late() -> Trial:
        monkeypatch.setattr(study, "ask", ask)
        earlier = other.take()
        assert earlier is not None
        finish(other, earlier)
        return ask()

    monkeypatch.setattr(study, "ask", late)
    assert store.take() is None and len(store.finished()) == 1
    more = store_of(study)
    play(more)
    assert points(more) == POINTS


@pytest.mark.parametrize(
    ("name", "pruner"),
    [
        ("TPESampler", "hyperband"),
        ("RandomSampler", None),
        pytest.param("QMCSampler", None, marks=pytest.mark.thorough),
    ],
)
def test_search__a_sampler_with_a_seed_that_goes_on__draws_nothing_twice(
    tmp_path: Path, name: str, pruner: str | None
) -> None:
    quick = make_pipeline(TfidfVectorizer(), LogisticRegression())
    space = {
        "logisticregression__C": FloatDistribution(1e-3, 1e3, log=True),
        "logisticregression__tol": FloatDistribution(1e-5, 1e-3),
    }
    sampler = getattr(optuna.samplers, name)(seed=0)
    options: dict[str, Any] = {"estimator": quick, "sampler": sampler, "pruner": pruner}
    options |= {"storage": tmp_path / "search.db", "refit": False}
    for n_trials in (4, 12):
        found = search("", space, n_trials=n_trials, **options).fit(*DATA)
        drawn = {tuple(params.values()) for params in found.cv_results_["params"]}
        assert len(drawn) == n_trials
    assert (found.cv_results_["n_epochs"] == 0).all()  # it trains in no epochs
