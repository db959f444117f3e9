"""What test_tools.py knows of each tool: a check computes by hand what the tool made."""

import sys
from collections.abc import Callable
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.base import clone
from sklearn.calibration import calibration_curve
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import (
    average_precision_score,
    confusion_matrix,
    det_curve,
    f1_score,
    fbeta_score,
    log_loss,
    pairwise_distances_argmin,
    roc_auc_score,
)
from sklearn.model_selection import (
    GroupKFold,
    StratifiedKFold,
    cross_val_predict,
    cross_val_score,
)

from skgpt import GPTTextClassifier

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
tools, judging, inspecting, composing = (
    sys.modules[f"_tools{part}"] for part in ("", "_judging", "_inspecting", "_composing")
)
STRICT = judging.STRICT


class Case(NamedTuple):
    """A tool's run: its name, what it was given and what it made."""

    name: str
    clf: GPTTextClassifier
    X: Any
    y: Any
    made: Any

    def fitted(self, X: Any, y: Any, **options: Any) -> GPTTextClassifier:
        return clone(self.clf).fit(X, y, **options)

    def mean_score(self, X: Any = None, **params: Any) -> float:
        """Return the mean score over folds, as the tools cross-validate."""
        clf, X = clone(self.clf).set_params(**params), self.X if X is None else X
        return float(cross_val_score(clf, X, self.y, **STRICT).mean())

    @property
    def half(self) -> Any:
        return tools.halves(self.X, self.y)

    @property
    def half_frame(self) -> Any:
        return tools.halves(tools.title_and_body(self.X), self.y)

    @property
    def folds(self) -> list[Any]:
        return list(StratifiedKFold(tools.N_FOLDS).split(self.X, self.y))


CHECKS: dict[str, Callable[[Case], None]] = {}
Check = Callable[[Case], None]


def check(*names: str) -> Callable[[Check], Check]:
    def enter(function: Check) -> Check:
        CHECKS.update(dict.fromkeys(names, function))
        return function

    return enter


# ---- Tools that judge a classifier or look into it


@check("GridSearchCV", "RandomizedSearchCV")
def the_best_score_is_that_of_the_best_parameters(case: Case) -> None:
    assert case.made.best_score_ == case.mean_score(**case.made.best_params_)
    assert case.made.best_score_ == max(case.made.cv_results_["mean_test_score"])


@check("GridSearchCV between models, as steps of a Pipeline")
def each_model_scores_as_it_does_alone(case: Case) -> None:
    linear = cross_val_score(tools.linear_model(), case.X, case.y, **STRICT).mean()
    assert case.made.cv_results_["mean_test_score"].tolist() == [case.mean_score(), linear]


@check(*(f"Halving{kind}SearchCV(resource='max_epochs')" for kind in ("Grid", "Random")))
def the_last_rung_is_a_fresh_fit(case: Case) -> None:
    assert case.made.n_resources_ == [1, 2]
    assert case.made.best_estimator_.n_iter_ == 2 == case.made.best_params_["max_epochs"]
    assert case.made.best_score_ == case.mean_score(**case.made.best_params_)


@check("cross_val_score")
def scores_are_those_of_fits_by_hand(case: Case) -> None:
    X, y = case.X, case.y
    assert case.made == [case.fitted(X[a], y[a]).score(X[b], y[b]) for a, b in case.folds]


@check("cross_validate")
def scores_are_those_of_the_returned_estimators(case: Case) -> None:
    made = case.made
    for i, (train, test) in enumerate(zip(*made["indices"].values(), strict=True)):
        clf = made["estimator"][i]
        assert made["train_accuracy"][i] == clf.score(case.X[train], case.y[train])
        loss = log_loss(case.y[test], clf.predict_proba(case.X[test]))
        assert made["test_neg_log_loss"][i] == pytest.approx(-loss)


@check("cross_validate with GroupKFold and routed weights")
def weights_reach_fit_and_score(case: Case) -> None:
    X, y, w, groups = case.X, case.y, case.made["sample_weight"], case.made["groups"]
    by_hand = [
        case.fitted(X[a], y[a], sample_weight=w[a]).score(X[b], y[b], w[b])
        for a, b in GroupKFold(tools.N_FOLDS).split(X, y, groups)
    ]
    assert case.made["test_score"].tolist() == by_hand


@check("cross_val_predict(method='predict_proba')")
def each_row_is_predicted_by_the_fit_without_it(case: Case) -> None:
    for train, test in case.folds:
        by_hand = case.fitted(case.X[train], case.y[train]).predict_proba(case.X[test])
        assert_array_equal(case.made[test], by_hand)


@check("multilabel y in cross_validate")
def labels_have_probabilities_of_their_own(case: Case) -> None:
    Y = tools.two_questions(case.X, case.y)
    for i, test in enumerate(case.made["indices"]["test"]):
        clf = case.made["estimator"][i]
        proba, predicted = clf.predict_proba(case.X[test]), clf.predict(case.X[test])
        assert proba.shape == (len(test), 2) and (proba > 0).all() and (proba < 1).all()
        assert_array_equal(predicted, proba > 0.5)
        f1 = f1_score(Y[test], predicted, average="samples", zero_division=0)
        assert case.made["test_f1"][i] == f1


@check("nested cross-validation")
def the_inner_search_sees_the_outer_training_rows_only(case: Case) -> None:
    for score, (a, b) in zip(case.made, case.folds, strict=True):
        inner = case._replace(X=case.X[a], y=case.y[a])
        rates = judging.LEARNING_RATES
        best = max(rates, key=lambda rate: inner.mean_score(head_learning_rate=rate))
        refitted = clone(case.clf).set_params(head_learning_rate=best).fit(inner.X, inner.y)
        assert score == refitted.score(case.X[b], case.y[b])


@check("learning_curve")
def all_rows_score_as_in_cross_validation(case: Case) -> None:
    sizes, train, test = case.made
    assert sizes.tolist() == [len(case.X) // 4, len(case.X) // 2] and train.shape == test.shape
    assert test[1].mean() == case.mean_score()


@check("learning_curve(exploit_incremental_learning=True)")
def parts_are_learnt_in_turn(case: Case) -> None:
    sizes, _, test = case.made
    for fold, (a, b) in enumerate(case.folds):
        clf, classes = clone(case.clf), np.unique(case.y)
        for i, part in enumerate(np.split(a, sizes)[:-1]):
            clf.partial_fit(case.X[part], case.y[part], classes=classes)
            assert test[i, fold] == clf.score(case.X[b], case.y[b])


@check("validation_curve")
def each_value_scores_as_in_cross_validation(case: Case) -> None:
    assert case.made[1].mean(axis=1).tolist() == [case.mean_score(max_epochs=n) for n in (1, 2)]


@check("permutation_test_score")
def p_counts_the_permutations_that_do_as_well(case: Case) -> None:
    score, of_permutations, p = case.made
    assert score == case.mean_score()
    assert p == (1 + (of_permutations >= score).sum()) / (1 + len(of_permutations))


@check("get_scorer and make_scorer")
def scores_are_the_metrics_of_the_predictions(case: Case) -> None:
    (fitted, scores), test, true = case.made, case.half.X_test, case.half.y_test
    proba = fitted.predict_proba(test)
    assert scores["neg_log_loss"] == pytest.approx(-log_loss(true, proba))
    assert scores["roc_auc_ovr"] == pytest.approx(roc_auc_score(true, proba, multi_class="ovr"))
    assert scores["own"] == fbeta_score(true, fitted.predict(test), beta=2, average="macro")
    assert np.isfinite(list(scores.values())).all()


@check("TunedThresholdClassifierCV", "FixedThresholdClassifier")
def the_threshold_is_on_the_probability(case: Case) -> None:
    half = tools.halves(*tools.two_classes(case.X, case.y))
    model = case.made
    positive = getattr(model, "pos_label", None) or model.classes_[1]
    threshold = getattr(model, "best_threshold_", None) or model.threshold
    proba = case.fitted(half.X, half.y).predict_proba(half.X_test)
    above = proba[:, model.classes_.tolist().index(positive)] >= threshold
    assert_array_equal(model.predict(half.X_test) == positive, above)


@check("permutation_importance", "permutation_importance(sample_weight=...)")
@check("permutation_importance of a template's fields")
def a_column_that_says_nothing_has_no_importance(case: Case) -> None:
    assert case.made.importances.shape == (3, 2)
    assert_array_equal(case.made.importances[2], 0)
    assert (np.abs(case.made.importances) <= 1).all()
    assert_allclose(case.made.importances_mean, case.made.importances.mean(axis=1))


@check("partial_dependence", "PartialDependenceDisplay.from_estimator")
def the_dependence_is_the_mean_over_rows_that_all_say_so(case: Case) -> None:
    fitted, made = case.made
    made = made.pd_results[0] if hasattr(made, "pd_results") else made
    table = tools.halves(inspecting.with_length(case.X), case.y).X_test
    for value, mean in zip(made["grid_values"][0], made["average"].T, strict=True):
        proba = fitted.predict_proba(table.assign(length=value))
        assert_allclose(mean, proba.mean(axis=0), rtol=1e-5)


def second_class(made: Any) -> tuple[Any, Any]:
    """Return what is true of the held-out rows and the second class's probability."""
    fitted, half = made[:2]
    return half.y_test == fitted.classes_[1], fitted.predict_proba(half.X_test)[:, 1]


AREAS = {
    "RocCurveDisplay": ("roc_auc", roc_auc_score),
    "PrecisionRecallDisplay": ("average_precision", average_precision_score),
}


@check(*(f"{display}.from_estimator" for display in AREAS))
def the_area_is_that_of_the_probabilities(case: Case) -> None:
    area, metric = AREAS[case.name.partition(".")[0]]
    assert getattr(case.made[2], area) == pytest.approx(metric(*second_class(case.made)))


@check("DetCurveDisplay.from_estimator")
def the_errors_are_those_of_the_probabilities(case: Case) -> None:
    fpr, fnr, _ = det_curve(*second_class(case.made))
    drawn = zip(case.made[2].fpr.round(6), case.made[2].fnr.round(6), strict=True)
    assert set(drawn) <= set(zip(fpr.round(6), fnr.round(6), strict=True))  # corners only, in 1.8


@check("CalibrationDisplay.from_estimator")
def the_bins_are_those_of_the_probabilities(case: Case) -> None:
    true, predicted = calibration_curve(*second_class(case.made), n_bins=3)
    assert_array_equal(case.made[2].prob_true, true)
    assert_array_equal(case.made[2].prob_pred, predicted)


@check("ConfusionMatrixDisplay.from_estimator")
def the_matrix_is_that_of_the_predictions(case: Case) -> None:
    fitted, half, drawn = case.made
    by_hand = confusion_matrix(half.y_test, fitted.predict(half.X_test))
    assert_array_equal(drawn.confusion_matrix, by_hand)


@check(*(f"{display}.from_cv_results" for display in AREAS))
def each_fold_has_a_curve(case: Case) -> None:
    folds, drawn = case.made
    X, y = tools.two_classes(case.X, case.y)
    area, metric = AREAS[case.name.partition(".")[0]]
    by_hand = [
        metric(y[test] == clf.classes_[1], clf.predict_proba(X[test])[:, 1])
        for clf, test in zip(folds["estimator"], folds["indices"]["test"], strict=True)
    ]
    assert getattr(drawn, area) == pytest.approx(by_hand)


@check("LearningCurveDisplay.from_estimator", "ValidationCurveDisplay.from_estimator")
def the_last_point_is_a_cross_validation(case: Case) -> None:
    assert case.made.test_scores.shape == (2, tools.N_FOLDS)
    assert case.made.test_scores[-1].mean() == case.mean_score(max_epochs=2)


@check("set_callbacks(ScoringMonitor)")
def each_epoch_is_scored(case: Case) -> None:
    fitted, scores = case.made
    assert len(scores) == fitted.n_iter_ == 2
    assert scores[-1] == fitted.score(case.half.X, case.half.y)


# ---- Tools that build a model out of a classifier


@check("VotingClassifier(voting='soft')", "BaggingClassifier")
def probabilities_are_the_mean_of_the_members(case: Case) -> None:
    test = case.half.X_test if "soft" in str(case.made) else case.half.X_test.reshape(-1, 1)
    members = [member.predict_proba(test) for member in case.made.estimators_]
    assert len(members) == 2
    assert_allclose(case.made.predict_proba(test), np.mean(members, axis=0), rtol=1e-6)


@check("VotingClassifier(voting='hard')")
def where_the_members_agree_so_does_the_vote(case: Case) -> None:
    one, two = (member.predict(case.half.X_test) for member in case.made.estimators_)
    codes = case.made.le_.transform(case.made.predict(case.half.X_test))
    assert_array_equal(codes, np.minimum(one, two))  # a tie goes to the first class


@check("StackingClassifier")
def the_last_model_learns_from_held_out_probabilities(case: Case) -> None:
    half, stack = case.half, case.made
    codes = stack._label_encoder.transform(half.y)
    columns = [
        cross_val_predict(model, half.X, codes, cv=tools.N_FOLDS, method="predict_proba")
        for _, model in stack.estimators
    ]
    by_hand = LogisticRegression().fit(np.hstack(columns), codes)
    assert_allclose(stack.final_estimator_.coef_, by_hand.coef_, rtol=1e-6)
    fitted = [model.predict_proba(half.X_test) for model in stack.estimators_]
    assert_array_equal(stack.transform(half.X_test), np.hstack(fitted))


@check("StackingClassifier(cv='prefit')")
def a_fitted_member_is_used_as_it_is(case: Case) -> None:
    fitted, stack = case.made
    assert stack.estimators_ == [fitted]
    proba = case.fitted(case.half.X, case.half.y).predict_proba(case.X)
    assert_array_equal(stack.transform(case.X), proba)


@check("StackingClassifier(passthrough=True)")
def texts_stand_beside_the_probabilities(case: Case) -> None:
    table = case.made.transform(case.X.reshape(-1, 1))
    proba = case.made.estimators_[0].predict_proba(case.X)
    assert_array_equal(table[:, :-1].astype(proba.dtype), proba)
    assert_array_equal(table[:, -1], case.X)


@check("AdaBoostClassifier")
def the_first_round_weighs_all_rows_alike(case: Case) -> None:
    first, column = case.made.estimators_[0], case.half.X.reshape(-1, 1)
    alike = np.full(len(column), 1 / len(column))
    again = clone(first).fit(column, case.half.y, sample_weight=alike)
    assert_array_equal(again.predict_proba(column), first.predict_proba(column))
    assert (case.made.estimator_weights_[: len(case.made.estimators_)] > 0).all()


@check("OneVsRestClassifier", "OneVsRestClassifier.partial_fit")
def probabilities_are_those_of_each_class_alone(case: Case) -> None:
    test = case.half.X_test
    positive = np.column_stack([m.predict_proba(test)[:, 1] for m in case.made.estimators_])
    shares = positive / positive.sum(axis=1, keepdims=True)
    assert_allclose(case.made.predict_proba(test), shares, rtol=1e-6)


@check("OneVsOneClassifier")
def each_pair_is_a_fit_on_its_rows(case: Case) -> None:
    assert len(case.made.estimators_) == 3
    first, second = case.made.classes_[:2]
    half, rows = case.half, np.isin(case.half.y, [first, second])
    of_pair = case.fitted(half.X[rows], (half.y[rows] == second).astype(int))
    by_row = case.made.estimators_[0].predict_proba(tools.row_numbers(case.X))
    assert_array_equal(by_row, of_pair.predict_proba(case.X))


@check("OutputCodeClassifier")
def the_nearest_code_wins(case: Case) -> None:
    codes = [member.decision_function(case.half.X_test) for member in case.made.estimators_]
    nearest = pairwise_distances_argmin(np.column_stack(codes), case.made.code_book_)
    assert_array_equal(case.made.predict(case.half.X_test), case.made.classes_[nearest])


@check("MultiOutputClassifier")
def each_question_is_a_fit_of_its_own(case: Case) -> None:
    half = tools.halves(case.X, tools.two_questions(case.X, case.y))
    for question, proba in enumerate(case.made.predict_proba(half.X_test)):
        by_hand = case.fitted(half.X, half.y[:, question]).predict_proba(half.X_test)
        assert_array_equal(proba, by_hand)


@check("ClassifierChain")
def earlier_answers_go_in_as_text(case: Case) -> None:
    half = tools.halves(case.X, tools.two_questions(case.X, case.y))
    first, second = case.made.estimators_
    by_hand = case.fitted(half.X, half.y[:, 0]).predict_proba(case.X)
    assert_array_equal(first.predict_proba(tools.row_numbers(case.X)), by_hand)
    with_answers = [[text, str(yes)] for text, yes in zip(half.X, half.y[:, 0], strict=True)]
    by_hand = case.fitted(with_answers, half.y[:, 1]).predict_proba(with_answers)
    assert_array_equal(second[-1].predict_proba(with_answers), by_hand)


@check("SelfTrainingClassifier")
def sure_rows_join_the_training_rows(case: Case) -> None:
    rows = tools.halves(tools.row_numbers(case.X), case.y).X.ravel()
    assert (case.made.labeled_iter_ == 1).sum() == 4
    labelled = case.made.labeled_iter_ >= 0
    by_hand = case.fitted(case.X[rows[labelled]], case.made.transduction_[labelled])
    proba = case.made.predict_proba(tools.row_numbers(case.X))
    assert_array_equal(proba, by_hand.predict_proba(case.X))


CALIBRATIONS = ("sigmoid", "isotonic", "temperature")


@check(*(f"CalibratedClassifierCV(method={method!r})" for method in CALIBRATIONS))
def probabilities_are_the_mean_over_the_folds(case: Case) -> None:
    test = case.half.X_test
    of_folds = [m.predict_proba(test) for m in case.made.calibrated_classifiers_]
    assert len(of_folds) == tools.N_FOLDS
    assert_allclose(case.made.predict_proba(test), np.mean(of_folds, axis=0), rtol=1e-6)


@check(*(f"CalibratedClassifierCV(FrozenEstimator, method={m!r})" for m in CALIBRATIONS))
def calibrating_leaves_the_frozen_model_alone(case: Case) -> None:
    fitted, before, after = case.made
    assert_array_equal(fitted.predict_proba(case.half.X_test), before)
    assert not np.allclose(before, after)
    assert_allclose(after.sum(axis=1), 1, rtol=1e-6)
    if "temperature" in case.name:
        assert_array_equal(before.argmax(axis=1), after.argmax(axis=1))


@check(
    "RFE",
    "RFECV",
    "SequentialFeatureSelector",
    "FeatureUnion, make_union",
    "DecisionBoundaryDisplay.from_estimator",
)
def nothing_was_made(case: Case) -> None:
    assert case.made is None


@check("SelectFromModel")
def the_column_that_matters_most_is_kept(case: Case) -> None:
    selector, half = case.made
    by_hand = case.fitted(half.X, half.y).predict_proba(half.X_test)
    assert_array_equal(selector.estimator_.predict_proba(half.X_test), by_hand)
    (kept,) = selector.get_feature_names_out()
    assert_array_equal(selector.transform(half.X)[:, 0], half.X[kept])


@check("GridSearchCV over the columns of a ColumnTransformer")
def each_choice_scores_as_the_columns_alone(case: Case) -> None:
    frame = tools.title_and_body(case.X)
    choices = [["title"], ["body"], ["title", "body"]]
    by_hand = [case.mean_score(frame[names].to_numpy()) for names in choices]
    assert case.made.cv_results_["mean_test_score"].tolist() == by_hand


@check("ColumnTransformer, make_column_transformer")
def the_columns_go_in_as_they_are(case: Case) -> None:
    half = tools.halves(tools.title_and_body(case.X)[["title", "body"]].to_numpy(), case.y)
    by_hand = case.fitted(half.X, half.y).predict_proba(half.X_test)
    assert_array_equal(case.made[-1].predict_proba(half.X_test), by_hand)


@check("ColumnTransformer before a template")
def the_fields_are_the_columns(case: Case) -> None:
    half = case.half_frame
    by_hand = clone(case.clf).set_params(template="{title}\n{body}").fit(half.X, half.y)
    assert_array_equal(case.made.predict_proba(half.X_test), by_hand.predict_proba(half.X_test))


@check("make_pipeline(FunctionTransformer(clean), classifier)", "Pipeline(memory=...)")
def the_cleaned_texts_go_in(case: Case) -> None:
    cleaned = composing.clean(case.half.X)
    by_hand = case.fitted(cleaned, case.half.y).predict_proba(composing.clean(case.X))
    assert_array_equal(case.made.predict_proba(case.X), by_hand)


@check("joblib.dump and load of a Pipeline", "FrozenEstimator", "LabelEncoder")
def before_and_after_are_the_same(case: Case) -> None:
    before, after = case.made
    assert len(before) == len(case.half.X_test)
    assert_array_equal(before, after)


@check("clone")
def a_clone_of_the_fitted_fits_the_same(case: Case) -> None:
    one, two = case.made
    assert one.get_params() == two.get_params() and one is not two
    assert not hasattr(clone(one), "classes_")
    assert_array_equal(one.predict_proba(case.X), two.predict_proba(case.X))


@check("estimator_html_repr")
def the_page_names_the_parameters(case: Case) -> None:
    for page in case.made:
        assert "GPTTextClassifier" in page and "trainable_layers" in page
