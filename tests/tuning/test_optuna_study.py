"""An Optuna study of one's own: what is reported, what is pruned, what is refused."""

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import numpy as np
import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.pruners import BasePruner, MedianPruner, NopPruner, WilcoxonPruner
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FixedTrial, TrialState
from sklearn.base import BaseEstimator, ClassifierMixin, clone
from sklearn.model_selection import KFold, cross_val_score
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import FunctionTransformer

from skgpt import LoRA
from skgpt.exceptions import IdlePrunerWarning, MissingPackageError, TuningError
from skgpt.tuning import PruningCallback, objective, optuna_study
from tests.helpers import make
from tests.tuning.searching import DATA, X, y

optuna.logging.set_verbosity(optuna.logging.WARNING)

# The WilcoxonPruner is said to be experimental.
pytestmark = pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
needs_callbacks = pytest.mark.skipif(
    not optuna_study.HAS_CALLBACKS, reason="scikit-learn before 1.9 has no callbacks"
)


class PrunesAt(BasePruner):
    """Prunes trials once they have reported a step."""

    def __init__(self, step: int, trials: tuple[int, ...] = (0,)) -> None:
        self.step = step
        self.trials = trials

    def prune(self, study: Any, trial: Any) -> bool:
        return trial.number in self.trials and trial.last_step >= self.step


def new_study(
    direction: str = "maximize", pruner: BasePruner | None = None, **options: Any
) -> optuna.Study:
    sampler = optuna.samplers.RandomSampler(seed=0)
    return optuna.create_study(
        direction=direction, pruner=pruner or NopPruner(), sampler=sampler, **options
    )


def reporting(
    folder: str, study: optuna.Study, monitor: str = "validation_score", **options: Any
) -> Any:
    """Return a classifier that reports each epoch to a new trial of the study."""
    clf = make(folder, **{"early_stopping": True, "max_epochs": 2, **options})
    return clf.set_callbacks(PruningCallback(study.ask(), monitor))


class Scored(ClassifierMixin, BaseEstimator):
    """Scores what its parameter says, less 0.01 for each fold before; counts its fits."""

    fits: list[float] = []

    def __init__(self, quality: float = 0.5) -> None:
        self.quality = quality

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        Scored.fits.append(self.quality)
        self.classes_ = np.unique(y)
        return self

    def score(self, X: Any, y: Any) -> float:
        return self.quality - int(X[0]) / 1000


ROWS = [str(i) for i in range(60)]
LABELS = [0, 1] * 30
SPACE = {"quality": FloatDistribution(0, 1)}


def scored(cv: Any = None, space: Any = SPACE) -> Callable[[Any], float]:
    return objective(Scored(), ROWS, LABELS, space, cv)


def optimised(pruner: BasePruner, cv: Any, *qualities: float) -> list[Any]:
    """Return the trials of an objective, of these qualities in turn."""
    study = new_study(pruner=pruner)
    for quality in qualities:
        study.enqueue_trial({"quality": quality})
    study.optimize(scored(cv), n_trials=len(qualities))
    return study.trials


@pytest.fixture(autouse=True)
def no_fits_so_far() -> None:
    Scored.fits.clear()


# --- the callback


@needs_callbacks
@pytest.mark.parametrize("monitor", ["validation_score", "validation_loss", "loss"])
def test_callback__not_pruned__every_epoch_is_reported(monitor: str, tiny_llama: str) -> None:
    study = new_study("maximize" if monitor == "validation_score" else "minimize")
    clf = reporting(tiny_llama, study, monitor, max_epochs=3).fit(*DATA)
    expected = {record["epoch"]: record[monitor] for record in clf.history_}
    assert study.trials[0].intermediate_values == expected


@needs_callbacks
def test_callback__pruned__is_PRUNED_and_the_estimator_as_it_was(tiny_llama: str) -> None:
    fitted: list[Any] = []

    def train(trial: optuna.Trial) -> float:
        clf = make(tiny_llama, max_epochs=5, early_stopping=True)
        fitted.append(clf.set_callbacks(PruningCallback(trial)))
        clf.fit(*DATA)
        return float(clf.validation_scores_[-1])

    study = new_study(pruner=PrunesAt(2))
    study.optimize(train, n_trials=2)
    assert [trial.state for trial in study.trials] == [TrialState.PRUNED, TrialState.COMPLETE]
    assert sorted(study.trials[0].intermediate_values) == [1, 2]
    assert not hasattr(fitted[0], "history_") and hasattr(fitted[1], "history_")


@needs_callbacks
def test_callback__in_a_pipeline_and_cross_validation__one_fold_works(tiny_llama: str) -> None:
    clf = reporting(tiny_llama, new_study(pruner=PrunesAt(1)))
    pipeline = make_pipeline(FunctionTransformer(), clf)
    fold = (np.arange(30), np.arange(30, 40))
    with pytest.raises(optuna.TrialPruned, match="after epoch 1"):
        cross_val_score(pipeline, X, y, cv=[fold], error_score="raise")


@needs_callbacks
def test_callback__a_second_fold__is_refused_before_it_trains(tiny_llama: str) -> None:
    study = new_study()
    with pytest.raises(TuningError, match="one fit of one trial"):
        cross_val_score(reporting(tiny_llama, study), *DATA, cv=2, error_score="raise")
    clf = reporting(tiny_llama, study).fit(*DATA)
    with pytest.raises(TuningError, match="one fit of one trial"):
        clf.fit(*DATA)


@needs_callbacks
def test_callback__partial_fit__steps_go_on(tiny_llama: str) -> None:
    study = new_study("minimize")
    clf = reporting(tiny_llama, study, "loss", early_stopping=False)
    for _ in range(3):
        clf.partial_fit(*DATA, classes=["money", "sport"])
    assert sorted(study.trials[0].intermediate_values) == [1, 2, 3]


@needs_callbacks
def test_callback__nothing_held_out__says_what_to_do(tiny_llama: str) -> None:
    with pytest.raises(TuningError, match="early_stopping=True, or pass X_val"):
        reporting(tiny_llama, new_study(), early_stopping=False).fit(*DATA)


@needs_callbacks
@pytest.mark.parametrize(
    ("monitor", "direction", "message"),
    [
        ("accuracy", "maximize", "must be one of validation_score"),
        ("validation_score", "minimize", "'maximize'"),
        ("loss", "maximize", "'minimize'"),
    ],
)
def test_callback__wrong_direction__is_refused(monitor: str, direction: str, message: str) -> None:
    with pytest.raises(TuningError, match=message):
        PruningCallback(new_study(direction).ask(), monitor)
    two = optuna.create_study(directions=["maximize", "minimize"])
    with pytest.raises(TuningError, match="'maximize, minimize'"):
        PruningCallback(two.ask())


def test_callback__older_scikit_learn__says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optuna_study, "HAS_CALLBACKS", False)
    with pytest.raises(MissingPackageError, match=r"1\.9 or newer"):
        PruningCallback(new_study().ask())


@needs_callbacks
def test_callback__pickled_with_a_study_in_memory__only_predicts(tiny_llama: str) -> None:
    clf = reporting(tiny_llama, new_study(), max_epochs=1).fit(*DATA)
    opened = pickle.loads(pickle.dumps(clf))
    np.testing.assert_array_equal(opened.predict(X), clf.predict(X))
    with pytest.raises(TuningError, match="in memory"):
        opened.fit(X, y)
    assert opened.set_callbacks().fit(X, y).n_iter_ == 1


@needs_callbacks
def test_callback__pickled_with_a_shared_storage__reports(tiny_llama: str, tmp_path: Path) -> None:
    storage = JournalStorage(JournalFileBackend(str(tmp_path / "journal")))
    study = new_study(storage=storage)
    pickle.loads(pickle.dumps(reporting(tiny_llama, study, max_epochs=1))).fit(*DATA)
    assert sorted(study.trials[0].intermediate_values) == [1]


# --- the objective


def test_objective__a_pipeline_with_our_classifier__is_cross_val_score(tiny_llama: str) -> None:
    clf = make(tiny_llama, max_epochs=2, lora=LoRA())
    pipeline = Pipeline([("same", FunctionTransformer()), ("clf", clf)])
    space = {
        "clf__head_learning_rate": FloatDistribution(1e-4, 1e-1, log=True),
        "clf__lora__rank": IntDistribution(2, 4, step=2),
        "clf__pooling": CategoricalDistribution(["mean", "last"]),
    }
    values = {"clf__head_learning_rate": 3e-2, "clf__lora__rank": 4, "clf__pooling": "last"}
    cv = KFold(3, shuffle=True, random_state=0)
    study = new_study()
    study.enqueue_trial(values)
    study.optimize(objective(pipeline, *DATA, space, cv, "neg_log_loss"), n_trials=1)
    best = clone(pipeline).set_params(**values)
    scores = cross_val_score(best, *DATA, cv=cv, scoring="neg_log_loss")
    assert study.best_trial.user_attrs["fold_scores"] == scores.tolist()
    assert study.best_value == pytest.approx(scores.mean()) and study.best_params == values
    assert clf.lora.rank == 8  # the user's object is as it was


def test_objective__a_cv_that_draws__all_trials_have_the_same_folds() -> None:
    trials = optimised(NopPruner(), KFold(3, shuffle=True), 0.5, 0.5, 0.5)
    first, *others = (trial.user_attrs["fold_scores"] for trial in trials)
    assert others == [first, first]


def test_objective__wilcoxon__is_told_each_folds_score_and_prunes() -> None:
    good, bad = optimised(WilcoxonPruner(), KFold(6), 0.9, 0.2)
    assert list(good.intermediate_values.values()) == good.user_attrs["fold_scores"]
    assert sorted(good.intermediate_values) == [0, 1, 2, 3, 4, 5]
    assert bad.state == TrialState.PRUNED and len(bad.intermediate_values) == 4
    assert Scored.fits == [0.9] * 6 + [0.2] * 4  # what is pruned is not fitted


def test_objective__another_pruner__is_told_the_mean_so_far() -> None:
    good, bad = optimised(MedianPruner(n_startup_trials=1), KFold(3), 0.9, 0.2)
    scores = good.user_attrs["fold_scores"]
    means = np.cumsum(scores) / [1, 2, 3]
    np.testing.assert_allclose(list(good.intermediate_values.values()), means)
    assert good.value == pytest.approx(means[-1]) and len(set(scores)) == 3
    assert bad.state == TrialState.PRUNED and Scored.fits == [0.9] * 3 + [0.2]


def test_objective__hopeless_on_the_last_fold__is_complete() -> None:
    (trial,) = optimised(PrunesAt(2), KFold(3), 0.5)
    assert trial.state == TrialState.COMPLETE


def test_objective__wilcoxon_with_few_folds__warns_once() -> None:
    with pytest.warns(IdlePrunerWarning, match="with 4 folds") as caught:
        optimised(WilcoxonPruner(), KFold(4), 0.5, 0.6)
    assert [w.category for w in caught].count(IdlePrunerWarning) == 1


def test_objective__fixed_trial__needs_no_study() -> None:
    assert scored(KFold(2))(FixedTrial({"quality": 0.7})) == pytest.approx(0.7 - 0.015)


def test_objective__lists_ranges_and_several_dicts__are_spaces() -> None:
    study = new_study()
    space = [{"quality": range(2)}, {"quality": np.array([3, 4])}]
    study.optimize(scored(KFold(2), space), n_trials=20)
    assert set(Scored.fits) == {0, 1, 3, 4}


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({}, "`space` must name at least one parameter"),
        ([("quality", FloatDistribution(0, 1))], "`space` must name at least one parameter"),
        ({"quality": "much"}, "`space` must say what 'quality' may be"),
        ({"qualty": FloatDistribution(0, 1)}, r"`space` must .*'qualty' is none of.*'quality'"),
    ],
)
def test_objective__a_space_that_is_none__is_refused(space: Any, message: str) -> None:
    with pytest.raises(TuningError, match=message):
        scored(space=space)


def test_objective__a_study_that_minimises__is_refused_before_a_fit() -> None:
    with pytest.raises(TuningError, match="'maximize'"):
        new_study("minimize").optimize(scored(), n_trials=1)
    assert not Scored.fits
