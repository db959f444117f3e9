"""Everything of scikit-learn that takes a classifier takes ours: one test each.

The tools are those of examples/benchmarks/every_tool.py, which runs them with the default model on
news. Here they run with a tiny model, and every warning is an error. Where it is skgpt that a
result hangs on, it is computed again by hand. The first tier runs one tool of each kind.
"""

import sys
from collections.abc import Callable, Iterator
from importlib.util import module_from_spec, spec_from_file_location
from inspect import signature
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
import sklearn
from numpy.testing import assert_array_equal
from sklearn.base import clone
from sklearn.model_selection import StratifiedKFold, cross_val_score
from sklearn.utils.discovery import all_displays, all_estimators, all_functions

from skgpt import GPTTextClassifier
from tests.helpers import TextData, global_random_state_unchanged, make, make_text_data

mpl.use("Agg")
BENCHMARKS = Path(__file__).resolve().parents[2] / "examples" / "benchmarks"


def load_script(name: str) -> ModuleType:
    """Import a script of examples/benchmarks, which is no package."""
    spec = spec_from_file_location(name, BENCHMARKS / f"{name}.py")
    assert spec is not None and spec.loader is not None
    script, path = module_from_spec(spec), sys.path.copy()
    try:
        spec.loader.exec_module(script)
    finally:
        sys.path[:] = path
    return script


every_tool = load_script("every_tool")
tools, judging, composing = (
    sys.modules[f"_tools{part}"] for part in ("", "_judging", "_composing")
)


class Case(NamedTuple):
    """A tool's run: what it was given and what it made."""

    clf: GPTTextClassifier
    X: Any
    y: Any
    made: Any

    def fitted(self, X: Any, y: Any) -> GPTTextClassifier:
        return clone(self.clf).fit(X, y)

    @property
    def half(self) -> Any:
        return tools.halves(self.X, self.y)

    @property
    def folds(self) -> list[Any]:
        return list(StratifiedKFold(tools.N_FOLDS).split(self.X, self.y))


def the_best_score_is_that_of_fresh_fits(case: Case) -> None:
    clf = clone(case.clf).set_params(**case.made.best_params_)
    scores = cross_val_score(clf, case.X, case.y, **judging.STRICT)
    assert case.made.best_score_ == scores.mean()
    assert case.made.best_estimator_.n_iter_ == 2


def each_row_is_predicted_by_the_fit_without_it(case: Case) -> None:
    for train, test in case.folds:
        by_hand = case.fitted(case.X[train], case.y[train]).predict_proba(case.X[test])
        assert_array_equal(case.made[test], by_hand)


def parts_are_learnt_in_turn(case: Case) -> None:
    sizes, _, test = case.made
    for fold, (a, b) in enumerate(case.folds):
        clf, classes = clone(case.clf), np.unique(case.y)
        for i, part in enumerate(np.split(a, sizes)[:-1]):
            clf.partial_fit(case.X[part], case.y[part], classes=classes)
            assert test[i, fold] == clf.score(case.X[b], case.y[b])


def each_pair_is_a_fit_on_its_rows(case: Case) -> None:
    assert len(case.made.estimators_) == 3
    first, second = case.made.classes_[:2]
    half, rows = case.half, np.isin(case.half.y, [first, second])
    of_pair = case.fitted(half.X[rows], (half.y[rows] == second).astype(int))
    by_row = case.made.estimators_[0].predict_proba(tools.row_numbers(case.X))
    assert_array_equal(by_row, of_pair.predict_proba(case.X))


def earlier_answers_go_in_as_text(case: Case) -> None:
    half = tools.halves(case.X, tools.two_questions(case.X, case.y))
    first, second = case.made.estimators_
    by_hand = case.fitted(half.X, half.y[:, 0]).predict_proba(case.X)
    assert_array_equal(first.predict_proba(tools.row_numbers(case.X)), by_hand)
    with_answers = [[text, str(yes)] for text, yes in zip(half.X, half.y[:, 0], strict=True)]
    by_hand = case.fitted(with_answers, half.y[:, 1]).predict_proba(with_answers)
    assert_array_equal(second[-1].predict_proba(with_answers), by_hand)


def sure_rows_join_the_training_rows(case: Case) -> None:
    rows = tools.halves(tools.row_numbers(case.X), case.y).X.ravel()
    assert (case.made.labeled_iter_ == 1).sum() == 4
    labelled = case.made.labeled_iter_ >= 0
    by_hand = case.fitted(case.X[rows[labelled]], case.made.transduction_[labelled])
    proba = case.made.predict_proba(tools.row_numbers(case.X))
    assert_array_equal(proba, by_hand.predict_proba(case.X))


def the_cleaned_texts_go_in(case: Case) -> None:
    cleaned = composing.clean(case.half.X)
    by_hand = case.fitted(cleaned, case.half.y).predict_proba(composing.clean(case.X))
    assert_array_equal(case.made.predict_proba(case.X), by_hand)


def before_and_after_are_the_same(case: Case) -> None:
    before, after = case.made
    assert len(before) == len(case.half.X_test)
    assert_array_equal(before, after)


def a_clone_of_the_fitted_fits_the_same(case: Case) -> None:
    one, two = case.made
    assert one.get_params() == two.get_params() and one is not two
    assert not hasattr(clone(one), "classes_")
    assert_array_equal(one.predict_proba(case.X), two.predict_proba(case.X))


CHECKS: dict[str, Callable[[Case], None]] = {
    "GridSearchCV": the_best_score_is_that_of_fresh_fits,
    "RandomizedSearchCV": the_best_score_is_that_of_fresh_fits,
    "HalvingGridSearchCV(resource='max_epochs')": the_best_score_is_that_of_fresh_fits,
    "HalvingRandomSearchCV(resource='max_epochs')": the_best_score_is_that_of_fresh_fits,
    "cross_val_predict(method='predict_proba')": each_row_is_predicted_by_the_fit_without_it,
    "learning_curve(exploit_incremental_learning=True)": parts_are_learnt_in_turn,
    "OneVsOneClassifier": each_pair_is_a_fit_on_its_rows,
    "ClassifierChain": earlier_answers_go_in_as_text,
    "SelfTrainingClassifier": sure_rows_join_the_training_rows,
    "Pipeline(memory=...)": the_cleaned_texts_go_in,
    "joblib.dump and load of a Pipeline": before_and_after_are_the_same,
    "FrozenEstimator": before_and_after_are_the_same,
    "LabelEncoder": before_and_after_are_the_same,
    "clone": a_clone_of_the_fitted_fits_the_same,
}
FIRST_TIER = {
    *("GridSearchCV", "cross_val_predict(method='predict_proba')", "ClassifierChain"),
    *("multilabel y in cross_validate", "cross_validate with GroupKFold and routed weights"),
    "TunedThresholdClassifierCV",
    *("VotingClassifier(voting='soft')", "StackingClassifier", "OneVsRestClassifier"),
    *("CalibratedClassifierCV(method='temperature')", "ColumnTransformer before a template"),
    *("Pipeline(memory=...)", "permutation_importance", "RocCurveDisplay.from_estimator"),
}


def sentences(n_per_class: int) -> TextData:
    """Return texts of three classes, long enough for a title and a body."""
    X, y = make_text_data(n_classes=3, n_per_class=4 * n_per_class)
    parts = [X[y == label].reshape(4, -1) for label in np.unique(y)]
    rows = np.arange(3 * n_per_class).reshape(3, -1).T.ravel()  # the classes in turn
    return TextData(
        np.array([" ".join(text) for part in parts for text in part.T], dtype=object)[rows],
        np.repeat(np.unique(y), n_per_class)[rows],
    )


@pytest.mark.parametrize(
    "name",
    [
        name if name in FIRST_TIER else pytest.param(name, marks=pytest.mark.thorough)
        for name in tools.TOOLS
    ],
)
def test_tool__on_texts__does_what_it_says(tiny_llama: str, name: str) -> None:
    tool = tools.TOOLS[name]
    if missing := tool.missing():
        pytest.skip(f"needs {missing}")
    assert CHECKS.keys() | FIRST_TIER <= tools.TOOLS.keys()
    clf, (X, y) = make(tiny_llama, max_epochs=2), sentences(12)
    params = clf.get_params()
    with global_random_state_unchanged():
        outcome = tool.run(clf, X, y)
    assert outcome.works in ("yes", "as a column", "no")
    assert (outcome.works == "no") == outcome.result.startswith("no: ")
    assert "\n" not in outcome.result and "|" not in outcome.result  # a cell of a table
    assert clf.get_params() == params and not hasattr(clf, "classes_")
    assert plt.get_fignums() == []
    CHECKS.get(name, lambda case: None)(Case(clf, X, y, outcome.made))


def takers() -> Iterator[str]:
    """Yield the names of everything public in scikit-learn that takes an estimator."""
    parameters = {"estimator", "estimators", "base_estimator", "steps", "transformers"}
    parameters |= {"regressor", "classifier", "covariance_estimator", "transformer_list"}
    for name, thing in [*all_estimators(), *all_functions()]:
        if parameters & set(signature(thing).parameters):
            yield name
    for name, display in all_displays():
        for method in ("from_estimator", "from_cv_results"):
            if hasattr(display, method):
                yield f"{name}.{method}"


def test_tools__all_of_scikit_learn__nothing_is_forgotten() -> None:
    left_out = {name for names in every_tool.LEFT_OUT.values() for name in names}
    found = set(takers())
    forgotten = [
        name
        for name in sorted(found)
        if name.partition(".")[0] not in left_out
        and not any(name in entry for entry in tools.TOOLS)
    ]
    version = tuple(int(part) for part in sklearn.__version__.split(".")[:2])
    if version <= (1, 9):  # a later one may have more
        assert forgotten == []
    assert len(found) > 50
