"""The baseline guard of a search: the same rows, before the trials, and nothing lost by it."""

from pathlib import Path
from typing import Any
from unittest.mock import create_autospec

import numpy as np
import pytest
import sklearn
from optuna.samplers import GridSampler
from sklearn.base import clone
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, log_loss, make_scorer
from sklearn.model_selection import GroupKFold, KFold, StratifiedKFold, cross_val_score
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import FunctionTransformer

from skgpt._sklearn import HAS_CALLBACKS
from skgpt.exceptions import BaselineWarning, TuningError
from skgpt.tuning import compare_with_baseline
from skgpt.tuning.baseline import LinearTextClassifier
from tests.helpers import columns_of_classes, make
from tests.tuning.processes import stored
from tests.tuning.searching import DATA, RATES, X, piped, search, upper, y

RATE = {"head_learning_rate": [1e-7]}  # nothing is learned, so the baseline wins
METRICS = ["neg_log_loss", "accuracy"]
loses = pytest.mark.filterwarnings("ignore::skgpt.exceptions.BaselineWarning")


@pytest.fixture
def baseline_fits(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a spy that notes each call of the baseline's `fit`."""
    spy = create_autospec(LinearTextClassifier.fit, side_effect=LinearTextClassifier.fit)
    monkeypatch.setattr(LinearTextClassifier, "fit", spy)
    return spy


def given_to(spy: Any) -> list[tuple[list[str], Any]]:
    """Return the texts and the weights of each fit."""
    given = []
    for call in spy.call_args_list:
        weight = call.kwargs.get("sample_weight")
        given.append((list(call.args[1]), None if weight is None else weight.tolist()))
    return given


@loses
def test_search_baseline__best_trial__scores_are_those_of_the_comparison(tiny_llama: str) -> None:
    estimator = piped(tiny_llama, max_epochs=2)
    name = "gpttextclassifier__head_learning_rate"
    cv = StratifiedKFold(3, shuffle=True, random_state=5)
    options: dict[str, Any] = {"cv": cv, "scoring": "neg_log_loss", "pruner": None}
    found = search(
        tiny_llama, {name: [1e-7, 3e-2]}, estimator=estimator, baseline=True, **options
    ).fit(*DATA)
    report = found.baseline_
    best = clone(estimator).set_params(**found.best_params_)
    again = compare_with_baseline(best, *DATA, cv=cv, scoring="neg_log_loss")
    # How texts share a micro-batch may move a last digit.
    np.testing.assert_allclose(report.scores, again.scores, rtol=1e-4)
    np.testing.assert_array_equal(report.baseline_scores, again.baseline_scores)
    assert report.test_to_train == again.test_to_train
    assert (report.scoring, report.name) == ("neg_log_loss", "GPTTextClassifier")
    for i, score in enumerate(report.scores):
        assert score == found.cv_results_[f"split{i}_test_score"][found.best_index_]
    assert report.scores.mean() == pytest.approx(found.best_score_)
    assert (report.seconds > 0).all() and (report.baseline_seconds > 0).all()


def test_search_baseline__the_gpt_loses__warns_if_it_was_asked_for(tiny_llama: str) -> None:
    ours = search(tiny_llama, RATE, n_trials=1, baseline=True)
    with pytest.warns(
        BaselineWarning, match=r"The baseline, .*, wins by .*, for \d epochs"
    ) as caught:
        ours.fit(*DATA)
    assert caught[0].filename == __file__ and ours.baseline_.winner == "baseline"
    ours.set_params(baseline=False).fit(*DATA)  # warnings are errors here
    assert not hasattr(ours, "baseline_")


def test_search_baseline__warnings_are_errors__the_search_is_fitted(tiny_llama: str) -> None:
    ours = search(tiny_llama, RATE, n_trials=1, baseline=True)
    with pytest.raises(BaselineWarning):
        ours.fit(*DATA)
    assert len(ours.predict(DATA.X)) == 40 and ours.baseline_.winner == "baseline"


@loses
@pytest.mark.parametrize("nested", [0, 2])
def test_search_baseline__weights_and_what_only_the_gpt_takes__the_same_rows_weigh_the_same(
    tiny_llama: str, fits: Any, baseline_fits: Any, nested: int
) -> None:
    clf: Any = make(tiny_llama, max_epochs=1)
    prefix = ""
    for _ in range(nested):
        clf = Pipeline([("upper", FunctionTransformer(upper)), ("clf", clf)])
        prefix += "clf__"
    weight = np.linspace(0.5, 2, len(X))
    given = {"sample_weight": weight, "X_val": list(X[:7]), "y_val": list(y[:7])}
    space = {f"{prefix}head_learning_rate": [1e-2]}
    ours = search(tiny_llama, space, estimator=clf, n_trials=1, baseline=True, refit=False)
    ours.fit(X, y, **{prefix + name: value for name, value in given.items()})
    first, second = given_to(fits)[:2]
    assert given_to(fits) == 2 * [first, second]  # of the frozen states, and of the trial
    assert given_to(baseline_fits) == [first, second]
    assert first[1] != second[1] and len(ours.baseline_.scores) == 2


@loses
@pytest.mark.parametrize(
    ("request_", "in_pipeline"),
    [
        (True, False),
        ("importance", True),
        pytest.param(True, True, marks=pytest.mark.thorough),
        pytest.param(False, False, marks=pytest.mark.thorough),
    ],
)
def test_search_baseline__metadata_routing__the_baseline_wants_what_the_estimator_wants(
    tiny_llama: str, fits: Any, baseline_fits: Any, in_pipeline: bool, request_: Any
) -> None:
    name = request_ if isinstance(request_, str) else "sample_weight"
    given = {name: np.linspace(0.5, 2, len(X)), "groups": np.arange(len(X)) % 4}
    given |= {"X_val": list(X[:7]), "y_val": list(y[:7])}
    with sklearn.config_context(enable_metadata_routing=True):
        clf: Any = make(tiny_llama, max_epochs=1).set_fit_request(
            sample_weight=request_, X_val=True, y_val=True
        )
        clf.set_score_request(sample_weight=request_)
        scorer = make_scorer(accuracy_score).set_score_request(sample_weight=name)
        # Another name in a Pipeline's own score is more than scikit-learn's searches can do.
        # And before 1.9 a Pipeline's own score wants its request from the Pipeline itself.
        own_score = request_ is True and (HAS_CALLBACKS or not in_pipeline)
        options: dict[str, Any] = {} if own_score else {"scoring": scorer}
        space = {"head_learning_rate": [1e-2]}
        if in_pipeline:
            steps = [("upper", FunctionTransformer(upper)), ("clf", clf)]
            clf = Pipeline(steps, transform_input=["X_val"])
            space = {"clf__head_learning_rate": [1e-2]}
        ours = search(
            tiny_llama, space, estimator=clf, cv=GroupKFold(2), n_trials=1, refit=False, **options
        )
        ours.set_params(baseline=True).fit(X, y, **given)
    first, second = given_to(fits)[:2]
    assert given_to(fits) == 2 * [first, second]  # of the frozen states, and of the trial
    assert given_to(baseline_fits) == [first, second]
    assert (first[1] is None) == (request_ is False)
    assert len(ours.baseline_.scores) == 2


def both(estimator: Any, X: Any, y: Any) -> dict[str, float]:
    right = accuracy_score(y, estimator.predict(X))
    return {"loss": -log_loss(y, estimator.predict_proba(X)), "right": right}


def worst(results: Any) -> int:
    return int(results["rank_test_neg_log_loss"].argmax())


@loses
@pytest.mark.parametrize(
    ("scoring", "refit", "metric"),
    [
        (METRICS, "accuracy", "accuracy"),
        (METRICS, worst, "neg_log_loss"),
        (both, "right", "right"),
        pytest.param(METRICS, False, "neg_log_loss", marks=pytest.mark.thorough),
        pytest.param({"a": "accuracy", "b": "neg_log_loss"}, "a", "a", marks=pytest.mark.thorough),
    ],
)
def test_search_baseline__several_metrics__the_one_that_counts_is_compared(
    tiny_llama: str, scoring: Any, refit: Any, metric: str
) -> None:
    ours = search(tiny_llama, RATES, scoring=scoring, refit=refit, baseline=True)
    ours.set_params(sampler=GridSampler(RATES), n_trials=2, pruner=None).fit(*DATA)
    ranks = ours.cv_results_[f"rank_test_{metric}"]
    index = ranks.argmax() if callable(refit) else ranks.argmin()
    assert ours.baseline_.scoring == metric
    assert metric != "neg_log_loss" or sorted(ranks) == [1, 2]  # so the index says which
    for i, score in enumerate(ours.baseline_.scores):
        assert score == ours.cv_results_[f"split{i}_test_{metric}"][index]
    single = "neg_log_loss" if metric == "neg_log_loss" else "accuracy"
    theirs = cross_val_score(LinearTextClassifier(), *DATA, cv=2, scoring=single)
    np.testing.assert_array_equal(ours.baseline_.baseline_scores, theirs)


def test_search_baseline__refit_chooses_a_pruned_trial__warns(tiny_llama: str) -> None:
    grid = {"head_learning_rate": [3e-2, 1e-7, 1e-6, 1e-5]}

    def pruned(results: Any) -> int:
        return results["trial_state"].tolist().index("PRUNED")

    options: dict[str, Any] = {"n_trials": 10, "scoring": "neg_log_loss", "baseline": True}
    ours = search(tiny_llama, grid, estimator=make(tiny_llama, max_epochs=4), **options)
    ours.set_params(refit=pruned)
    with pytest.warns(BaselineWarning, match="no scores to compare") as caught:
        ours.fit(*DATA)
    assert ours.baseline_ is None and caught[0].filename == __file__
    assert len(ours.predict(DATA.X)) == 40


@loses
def test_search_baseline__label_sets__are_compared(tiny_llama: str) -> None:
    tags = np.column_stack([y == "sport", np.arange(len(y)) % 2 == 0]).astype(int)
    ours = search(tiny_llama, RATE, n_trials=1, baseline=True, scoring="f1_micro").fit(X, tags)
    again = compare_with_baseline(ours.estimator, X, tags, cv=2, scoring="f1_micro")
    np.testing.assert_array_equal(ours.baseline_.baseline_scores, again.baseline_scores)


def no_baseline(estimator: Any, X: Any, y: Any) -> float:
    if isinstance(estimator, LinearTextClassifier):
        raise RuntimeError("no such thing")
    return accuracy_score(y, estimator.predict(X))


def test_search_baseline__a_baseline_that_fails__before_any_training_and_nothing_is_lost(
    tiny_llama: str, tmp_path: Path, fits: Any
) -> None:
    storage = tmp_path / "search.db"
    ours = stored(tiny_llama, storage, scoring=no_baseline).fit(*DATA)
    results, n_fits = ours.cv_results_, fits.call_count
    with pytest.raises(TuningError, match=r"RuntimeError: no such thing Mend that, or pass bas"):
        ours.set_params(baseline=True).fit(*DATA)
    assert ours.cv_results_ is results and len(ours.predict(DATA.X)) == 40
    again = stored(tiny_llama, storage, scoring=no_baseline, refit=False).fit(*DATA)
    assert fits.call_count == n_fits  # the trials are there
    np.testing.assert_array_equal(again.cv_results_["mean_test_score"], results["mean_test_score"])


@pytest.mark.parametrize(
    ("estimator", "options", "message"),
    [
        (make_pipeline(TfidfVectorizer(), LogisticRegression()), {}, "ends in LogisticRegr"),
        (None, {"scoring": lambda *_: np.nan}, "must give a number for every fold"),
        (None, {"baseline": "yes"}, "baseline"),
    ],
)
def test_search_baseline__what_it_can_not_do__is_said_before_any_training(
    tiny_llama: str, fits: Any, estimator: Any, options: dict[str, Any], message: str
) -> None:
    space = RATE if estimator is None else {"logisticregression__C": [1.0]}
    ours = search(tiny_llama, space, estimator=estimator, **{"baseline": True, **options})
    with pytest.raises(ValueError, match=message):
        ours.fit(*DATA)
    assert not fits.called and not hasattr(ours, "study_")


@pytest.mark.thorough
@loses
def test_search_baseline__resumed_and_with_workers__is_what_it_is_in_one_go(
    tiny_llama: str, tmp_path: Path, fits: Any
) -> None:
    whole = stored(tiny_llama, None, baseline=True).fit(*DATA)
    storage = tmp_path / "search.db"
    stored(tiny_llama, storage, n_trials=2).fit(*DATA)  # asked for on the way
    again = stored(tiny_llama, storage, baseline=True).fit(*DATA)
    n_fits = fits.call_count
    shared = stored(tiny_llama, storage, baseline=True, n_jobs=2, refit=False)
    shared.fit(*DATA)
    assert fits.call_count == n_fits + 2  # the frozen states
    for found in (again, shared):
        np.testing.assert_array_equal(found.baseline_.scores, whole.baseline_.scores)
        np.testing.assert_array_equal(
            found.baseline_.baseline_scores, whole.baseline_.baseline_scores
        )


@loses
def test_search_baseline__several_outputs_or_no_training__is_scored_all_the_same(
    tiny_llama: str,
) -> None:
    columns = columns_of_classes(y)  # of several types, which scikit-learn can't sort
    weight = np.ones(len(y))
    found = search(tiny_llama, RATE, cv=2, baseline="tfidf").fit(X, columns, sample_weight=weight)
    rows = KFold(2).split(X)
    rival = LinearTextClassifier()
    expected = [rival.fit(X[a], columns.iloc[a]).score(X[b], columns.iloc[b]) for a, b in rows]
    np.testing.assert_allclose(found.baseline_.baseline_scores, expected)
    assert [len(classes) for classes in found.classes_] == [len(np.unique(y)), 2, 2]
    found = search(tiny_llama, RATE, cv=2, baseline="zero-shot").fit(X, y, sample_weight=weight)
    assert found.baseline_.baseline_name == "zero-shot"
