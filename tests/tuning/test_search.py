"""GPTSearchCV as one of scikit-learn's searches."""

import pickle
import sys
import threading
from typing import Any

import numpy as np
import pytest
import sklearn
from optuna.samplers import GridSampler
from sklearn.base import clone, is_classifier
from sklearn.exceptions import FitFailedWarning, NotFittedError
from sklearn.metrics import accuracy_score, make_scorer
from sklearn.model_selection import GridSearchCV, GroupKFold

from skgpt import GPTTextClassifier, clear_cache
from skgpt.exceptions import InvalidTextError, SearchFailedError, SearchSpaceError
from skgpt.tuning import GPTSearchCV, compare_with_baseline
from tests.helpers import global_random_state_unchanged, make
from tests.terminals import Terminal, lines_of
from tests.tuning.searching import DATA, RATES, X, piped, rows_of, search, y

GRID = {"head_learning_rate": [1e-4, 1e-2], "trainable_layers": [1, 2]}
METRICS = ["accuracy", "neg_log_loss"]


def test_search__a_grid_without_pruning__is_grid_search(tiny_llama: str) -> None:
    estimator = piped(tiny_llama, max_epochs=2)
    grid = {f"gpttextclassifier__{name}": values for name, values in GRID.items()}
    common: dict[str, Any] = {"cv": 2, "scoring": METRICS, "refit": "neg_log_loss"}
    common["return_train_score"] = True
    clear_cache()
    theirs = GridSearchCV(estimator, grid, **common).fit(X, y)
    clear_cache()
    ours = GPTSearchCV(estimator, grid, sampler=GridSampler(grid), pruner=None, **common)
    ours.fit(X, y)
    expected, found = rows_of(theirs.cv_results_), rows_of(ours.cv_results_)
    assert found.keys() == expected.keys()
    for key, row in expected.items():
        for name, value in row.items():
            assert found[key][name] == value, (key, name)
        assert found[key]["trial_state"] == "COMPLETE" and found[key]["n_epochs"] == 2
    assert set(ours.cv_results_) == set(theirs.cv_results_) | {"trial_state", "n_epochs", "error"}
    assert ours.best_params_ == theirs.best_params_ and ours.best_score_ == theirs.best_score_
    assert (ours.predict_proba(X) == theirs.predict_proba(X)).all()
    assert ours.n_splits_ == 2 and ours.multimetric_ and set(ours.scorer_) == set(METRICS)


def test_search__a_planted_best_point__is_found(tiny_llama: str) -> None:
    with global_random_state_unchanged():
        found = search(tiny_llama, n_trials=6).fit(X, y)
    assert found.best_params_ == {"head_learning_rate": 3e-2}
    assert found.best_score_ > 0.7 and found.score(X, y) > 0.7
    assert found.classes_.tolist() == sorted(set(y))
    assert len(found.study_.trials) == 6 and found.best_score_ == found.study_.best_value
    assert not [t for t in threading.enumerate() if t.name.startswith("skgpt")]


def test_search__a_row_that_is_no_text__is_named_and_no_trial_begins(tiny_llama: str) -> None:
    X, y = list(DATA.X), list(DATA.y)
    with pytest.raises(InvalidTextError, match="Row 33 "):
        search(tiny_llama).fit([*X[:33], None, *X[34:]], y)
    with pytest.raises(InvalidTextError, match=r"y contains NaN.* row 33 "):
        search(tiny_llama).fit(X, [*y[:33], None, *y[34:]])
    with pytest.raises(InvalidTextError, match="Row 33 "):
        compare_with_baseline(make(tiny_llama), [*X[:33], None, *X[34:]], y, cv=2)


def test_search__before_and_after_fit__is_a_scikit_learn_estimator(tiny_llama: str) -> None:
    unfitted = search(tiny_llama, sampler=GridSampler(RATES), n_trials=2)
    assert is_classifier(unfitted)
    with pytest.raises(NotFittedError):
        unfitted.predict(X)
    fitted = clone(unfitted)
    before, sampler = fitted.get_params(), pickle.dumps(fitted.sampler)
    fitted.fit(X, y)
    assert all(value is before[name] for name, value in fitted.get_params().items())
    assert pickle.dumps(fitted.sampler) == sampler
    opened = pickle.loads(pickle.dumps(fitted))
    assert (opened.predict(X) == fitted.predict(X)).all()
    assert len(opened.study_.trials) == 2


def test_search__single_metric_callable_and_no_refit__like_grid_search(tiny_llama: str) -> None:

    def both(estimator: Any, X: Any, y: Any) -> dict[str, float]:
        right = accuracy_score(y, estimator.predict(X))
        return {"right": right, "wrong": right - 1}

    found = search(tiny_llama, scoring=both, refit="wrong").fit(X, y)
    assert found.multimetric_ and found.best_score_ == found.study_.best_value <= 0
    plain = search(tiny_llama, refit=False).fit(X, y)
    assert plain.best_params_ and not hasattr(plain, "best_estimator_")
    with pytest.raises(SearchFailedError, match=r"`refit` must be one of the metrics .*'other'"):
        search(tiny_llama, scoring=both, refit="other", n_trials=1).fit(X, y)
    begun = search(tiny_llama, scoring=both, error_score="raise")
    with pytest.raises(SearchSpaceError, match=r"\['right', 'wrong'\]: `refit` must be one"):
        begun.fit(X, y)


@pytest.mark.filterwarnings("ignore:One or more of the test scores are non-finite")
def test_search__a_metric_that_is_nan_and_does_not_guide__ranks_last(tiny_llama: str) -> None:
    seen: list[int] = []

    def odd(estimator: Any, X: Any, y: Any) -> float:
        seen.append(estimator.get_params()["batch_size"])
        return np.nan if seen[-1] == 4 else 0.5

    sizes = {"batch_size": [4, 8]}
    scoring = {"accuracy": "accuracy", "odd": odd}
    options: dict[str, Any] = {"sampler": GridSampler(sizes), "pruner": None, "n_trials": 2}
    found = search(tiny_llama, sizes, scoring=scoring, refit=False, **options)
    found.fit(*DATA)
    assert set(found.cv_results_["trial_state"]) == {"COMPLETE"}
    is_nan = found.cv_results_["param_batch_size"] == 4
    assert found.cv_results_["rank_test_odd"].tolist() == np.where(is_nan, 2, 1).tolist()


def test_search__weights_and_groups__reach_fit_scorer_and_splitter(tiny_llama: str) -> None:
    groups = np.arange(len(X)) % 4
    weight = np.where(np.arange(len(X)) < 20, 1.0, 3.0)
    with sklearn.config_context(enable_metadata_routing=True):
        scorer = make_scorer(accuracy_score).set_score_request(sample_weight=True)
        estimator = make(tiny_llama, max_epochs=2).set_fit_request(sample_weight=True)
        common: dict[str, Any] = {"cv": GroupKFold(2), "scoring": scorer}
        given = {"sample_weight": weight, "groups": groups}
        grid = {"head_learning_rate": [1e-2]}
        theirs = GridSearchCV(estimator, grid, **common).fit(X, y, **given)
        ours = GPTSearchCV(estimator, grid, n_trials=1, **common).fit(X, y, **given)
    for name in ("split0_test_score", "split1_test_score"):
        assert ours.cv_results_[name] == theirs.cv_results_[name]


def test_search__a_trial_that_fails__is_recorded_and_the_rest_goes_on(tiny_llama: str) -> None:
    grid = {"trainable_layers": [1, 99]}
    ours = search(tiny_llama, grid, sampler=GridSampler(grid), n_trials=2, error_score=7.0)
    with pytest.warns(FitFailedWarning, match=r"1 of 2 trials failed; 1 of them with: ModelNot"):
        ours.fit(*DATA)
    results = ours.cv_results_
    failed = [params["trainable_layers"] for params in results["params"]].index(99)
    assert results["trial_state"].tolist()[failed] == "FAIL"
    assert "at most the" in results["error"][failed] and results["error"][1 - failed] == ""
    assert results["mean_test_score"][failed] == 7.0 == results["split1_test_score"][failed]
    assert results["rank_test_score"][failed] == 2 and ours.best_index_ == 1 - failed
    with pytest.raises(ValueError, match="at most the"):
        clone(ours).set_params(error_score="raise").fit(*DATA)


@pytest.mark.filterwarnings("error::sklearn.exceptions.FitFailedWarning")
def test_search__a_trial_fails_and_warnings_are_errors__the_search_is_kept(tiny_llama: str) -> None:
    grid = {"trainable_layers": [1, 99]}
    ours = search(tiny_llama, grid, sampler=GridSampler(grid), n_trials=2)
    with pytest.raises(FitFailedWarning, match="1 of 2 trials failed"):
        ours.fit(*DATA)
    assert ours.best_params_ == {"trainable_layers": 1}
    assert len(ours.predict(DATA.X)) == len(DATA.X)


def test_search__the_refit_fails__is_told(tiny_llama: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fit = GPTTextClassifier.fit

    def on_all_rows(self: Any, texts: Any, labels: Any) -> Any:
        if len(texts) == len(X):
            raise MemoryError("no room")
        return fit(self, texts, labels)

    monkeypatch.setattr(GPTTextClassifier, "fit", on_all_rows)
    with pytest.raises(MemoryError, match="no room") as caught:
        search(tiny_llama, {"head_learning_rate": [3e-2]}, n_trials=1).fit(X, y)
    assert "best parameters are {'head_learning_rate': 0.03}" in caught.value.__notes__[0]


def test_search__all_trials_fail__raises_and_keeps_the_fit_before(tiny_llama: str) -> None:
    ours = search(tiny_llama).fit(X, y)
    before = ours.best_params_, ours.study_
    ours.set_params(param_distributions={"trainable_layers": [99]})
    with pytest.raises(SearchFailedError, match=r"3 failed .* The first error was: ModelNot"):
        ours.fit(X, y)
    assert (ours.best_params_, ours.study_) == before and len(ours.predict(X)) == len(X)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_trials": 0}, "n_trials"),
        ({"scoring": METRICS}, "refit"),
        ({"space": {"head_learning_rate": 3}}, "param_distributions"),
    ],
)
def test_search__bad_input__refused(tiny_llama: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        search(tiny_llama, **options).fit(*DATA)


def test_search__a_callback_of_its_own__is_refused(tiny_llama: str) -> None:
    ours = search(tiny_llama)
    ours._skl_callbacks = [object()]
    with pytest.raises(SearchSpaceError, match="set them on its estimator"):
        ours.fit(*DATA)


def test_search__a_timeout__begins_no_more_trials(tiny_llama: str) -> None:
    ours = search(tiny_llama, n_trials=10_000, timeout=0.5).fit(*DATA)
    assert 1 <= len(ours.cv_results_["params"]) < 10_000


def test_search__verbose_in_a_terminal__a_bar_and_lines(
    tiny_llama: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal.file)
    search(tiny_llama, verbose=2).fit(*DATA)
    left = lines_of(terminal.read())
    terminal.close()
    assert [line for line in left if "complete after 3 epochs" in line] == left[:-1]
    assert len(left) == 4
    assert "search: 100%" in left[-1] and "best=" in left[-1] and "failed=0" in left[-1]


@pytest.mark.parametrize("verbose", [0, 1])
def test_search__stderr_is_a_file__a_line_per_trial_if_asked_for(
    verbose: int, tiny_llama: str, capsys: pytest.CaptureFixture[str]
) -> None:
    search(tiny_llama, verbose=verbose).fit(*DATA)
    shown = capsys.readouterr()
    assert shown.out == "" and "\r" not in shown.err
    lines = shown.err.splitlines()
    assert len(lines) == 3 * verbose
    assert all(line.startswith("complete after 3 epochs") for line in lines)
