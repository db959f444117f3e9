"""What test_tools.py knows of the tools that build a model out of a classifier."""

import sys

import numpy as np
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import pairwise_distances_argmin
from sklearn.model_selection import cross_val_predict

from tests.estimators.tool_checks import Case, check, tools

composing = sys.modules["_tools_composing"]


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
