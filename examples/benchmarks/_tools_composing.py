"""Tools that build a model out of a classifier: ensembles, decompositions, calibration, steps."""

import tempfile
from pathlib import Path
from typing import Any

import joblib
import numpy as np
from _tools import (
    N_FOLDS,
    Labels,
    Outcome,
    Texts,
    as_a_column,
    by_row_number,
    halves,
    judged,
    linear_model,
    no,
    refused,
    row_numbers,
    title_and_body,
    tool,
    two_questions,
)
from sklearn.base import clone, is_classifier
from sklearn.calibration import CalibratedClassifierCV
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import (
    AdaBoostClassifier,
    BaggingClassifier,
    StackingClassifier,
    VotingClassifier,
)
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.feature_selection import (
    RFE,
    RFECV,
    SelectFromModel,
    SequentialFeatureSelector,
)
from sklearn.frozen import FrozenEstimator
from sklearn.inspection import permutation_importance
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.model_selection import GridSearchCV
from sklearn.multiclass import OneVsOneClassifier, OneVsRestClassifier, OutputCodeClassifier
from sklearn.multioutput import ClassifierChain, MultiOutputClassifier
from sklearn.pipeline import FeatureUnion, Pipeline, make_pipeline
from sklearn.preprocessing import FunctionTransformer, LabelEncoder
from sklearn.semi_supervised import SelfTrainingClassifier
from sklearn.utils import estimator_html_repr

from skgpt import GPTTextClassifier

IS_1D = "Expected 2D array, got 1D array instead"
NOT_NUMBERS = "could not convert string to float"
BY_ROW = "with X as row numbers and a first step that looks the texts up"


@tool("VotingClassifier(voting='soft')")
def soft_vote(classifier: GPTTextClassifier, X: Texts, y: Labels) -> Outcome:
    return judged(
        VotingClassifier([("gpt", classifier), ("linear", linear_model())], voting="soft"), X, y
    )


@tool("VotingClassifier(voting='hard')")
def hard_vote(classifier: GPTTextClassifier, X: Texts, y: Labels) -> Outcome:
    models = [("gpt", classifier), ("linear", linear_model())]
    return judged(VotingClassifier(models, voting="hard"), X, y)


@tool("StackingClassifier")
def stacking(classifier: GPTTextClassifier, X: Texts, y: Labels) -> Outcome:
    models = [("gpt", classifier), ("linear", linear_model())]
    return judged(StackingClassifier(models, cv=N_FOLDS), X, y)


@tool("StackingClassifier(cv='prefit')")
def prefit_stacking(classifier: GPTTextClassifier, X: Texts, y: Labels) -> Outcome:
    half = halves(X, y)
    fitted = clone(classifier).fit(half.X, half.y)
    stack = StackingClassifier([("gpt", fitted)], cv="prefit").fit(half.X_test, half.y_test)
    score = stack.score(half.X_test, half.y_test)
    return Outcome(f"accuracy {score:.2f} on the rows it was stacked on", (fitted, stack))


@tool("StackingClassifier(passthrough=True)")
def passthrough(classifier: GPTTextClassifier, X: Texts, y: Labels) -> Outcome:
    stack = StackingClassifier([("gpt", classifier)], cv=N_FOLDS, passthrough=True)
    refused(ValueError, "must have same number of dimensions", lambda: clone(stack).fit(X, y))
    column = X.reshape(-1, 1)
    refused(ValueError, NOT_NUMBERS, lambda: clone(stack).fit(column, y))
    n_classes = len(np.unique(y))
    parts = ColumnTransformer(
        [
            ("probabilities", "passthrough", slice(0, n_classes)),
            ("text", TfidfVectorizer(), n_classes),
        ]
    )
    stack.set_params(final_estimator=make_pipeline(parts, LogisticRegression()))
    reason = "it puts texts beside probabilities, so the final estimator must take them apart"
    return as_a_column(reason, judged(stack, column, y))


@tool("BaggingClassifier")
def bagging(classifier: GPTTextClassifier, X: Texts, y: Labels) -> Outcome:
    model = BaggingClassifier(classifier, n_estimators=2, random_state=0)
    refused(ValueError, IS_1D, lambda: clone(model).fit(X, y))
    reason = "it draws columns too, so 1-D texts are refused"
    return as_a_column(reason, judged(model, X.reshape(-1, 1), y))


@tool("AdaBoostClassifier")
def boosting(classifier: GPTTextClassifier, X: Texts, y: Labels) -> Outcome:
    model = AdaBoostClassifier(classifier, n_estimators=2, random_state=0)
    refused(ValueError, IS_1D, lambda: clone(model).fit(X, y))
    reason = "its check of X wants two dimensions, so 1-D texts are refused"
    return as_a_column(reason, judged(model, X.reshape(-1, 1), y))


@tool("OneVsRestClassifier")
def one_vs_rest(classifier: GPTTextClassifier, X: Texts, y: Labels) -> Outcome:
    return judged(OneVsRestClassifier(classifier), X, y)


@tool("OneVsRestClassifier.partial_fit")
def one_vs_rest_partial(classifier: GPTTextClassifier, X: Texts, y: Labels) -> Outcome:
    half = halves(X, y)
    model, middle = OneVsRestClassifier(classifier), len(half.y) // 2
    model.partial_fit(half.X[:middle], half.y[:middle], classes=np.unique(y))
    model.partial_fit(half.X[middle:], half.y[middle:])
    return Outcome(f"accuracy {model.score(half.X_test, half.y_test):.2f} of two parts", model)


@tool("OneVsOneClassifier")
def one_vs_one(classifier: GPTTextClassifier, X: Texts, y: Labels) -> Outcome:
    for texts in (X, X.reshape(-1, 1)):
        attempt = OneVsOneClassifier(classifier)
        refused(ValueError, NOT_NUMBERS, lambda texts=texts, model=attempt: model.fit(texts, y))
    instead = judged(OneVsOneClassifier(by_row_number(classifier, X)), row_numbers(X), y)
    return no(
        "its check of X turns it into numbers",
        f"use OneVsRestClassifier, or {BY_ROW} ({instead.result})",
        instead.made,
    )


@tool("OutputCodeClassifier")
def output_code(classifier: GPTTextClassifier, X: Texts, y: Labels) -> Outcome:
    return judged(OutputCodeClassifier(classifier, code_size=2, random_state=0), X, y)


@tool("MultiOutputClassifier")
def multi_output(classifier: GPTTextClassifier, X: Texts, y: Labels) -> Outcome:
    Y = two_questions(X, y)
    half = halves(X, Y)
    model = MultiOutputClassifier(classifier).fit(half.X, half.y)
    right = (model.predict(half.X_test) == half.y_test).mean(axis=0)
    return Outcome(f"accuracy {right[0]:.2f} and {right[1]:.2f} on two questions", model)


@tool("ClassifierChain")
def chain(classifier: GPTTextClassifier, X: Texts, y: Labels) -> Outcome:
    Y = two_questions(X, y)
    for texts in (X, X.reshape(-1, 1)):
        attempt = ClassifierChain(classifier)
        refused(ValueError, NOT_NUMBERS, lambda texts=texts, model=attempt: model.fit(texts, Y))
    half = halves(row_numbers(X), Y)
    model = ClassifierChain(by_row_number(classifier, X)).fit(half.X, half.y)
    right = (model.predict(half.X_test) == half.y_test).mean(axis=0)
    return no(
        "its check of X turns it into numbers, as earlier answers go in beside X",
        f"use MultiOutputClassifier, or {BY_ROW} (accuracy {right[0]:.2f} and {right[1]:.2f}; "
        "earlier answers then go in as text)",
        model,
    )


@tool("SelfTrainingClassifier")
def self_training(classifier: GPTTextClassifier, X: Texts, y: Labels) -> Outcome:
    codes = LabelEncoder().fit_transform(y)
    half = halves(row_numbers(X), codes)
    some = half.y.copy()
    some[::3] = -1
    for texts in (X[half.X.ravel()], X[half.X]):
        attempt = SelfTrainingClassifier(classifier)
        refused(ValueError, NOT_NUMBERS, lambda texts=texts, m=attempt: m.fit(texts, some))
    model = SelfTrainingClassifier(by_row_number(classifier, X), criterion="k_best", k_best=4)
    model.set_params(max_iter=1).fit(half.X, some)
    accuracy = (model.predict(half.X_test) == half.y_test).mean()
    return no(
        "its check of X turns it into numbers",
        f"{BY_ROW} (accuracy {accuracy:.2f})",
        model,
    )


def _enter_calibration(method: str, since: tuple[int, int] = (1, 7)) -> None:
    @tool(f"CalibratedClassifierCV(method='{method}')", since=since)
    def calibrate(classifier: GPTTextClassifier, X: Texts, y: Labels) -> Outcome:
        return judged(CalibratedClassifierCV(classifier, method=method, cv=N_FOLDS), X, y)

    @tool(f"CalibratedClassifierCV(FrozenEstimator, method='{method}')", since=since)
    def calibrate_frozen(classifier: GPTTextClassifier, X: Texts, y: Labels) -> Outcome:
        half = halves(X, y)
        fitted = clone(classifier).fit(half.X, half.y)
        before = fitted.predict_proba(half.X_test)
        model = CalibratedClassifierCV(FrozenEstimator(fitted), method=method)
        after = model.fit(half.X_test, half.y_test).predict_proba(half.X_test)
        losses = [log_loss(half.y_test, proba) for proba in (before, after)]
        result = "log-loss {:.2f} -> {:.2f} on the rows it was calibrated on".format(*losses)
        return Outcome(result, (fitted, before, after))


_enter_calibration("sigmoid")
_enter_calibration("isotonic")
_enter_calibration("temperature", since=(1, 8))


def _enter_selector(selector: Any, **options: Any) -> None:
    @tool(selector.__name__)
    def select(classifier: GPTTextClassifier, X: Texts, y: Labels) -> Outcome:
        # As an array: scikit-learn before 1.9 doesn't know pandas' own strings for what they are.
        table = title_and_body(X).to_numpy(dtype=object)
        refused(ValueError, NOT_NUMBERS, lambda: selector(classifier, **options).fit(table, y))
        return no(
            "its check of X turns it into numbers",
            "choose columns with GridSearchCV over a ColumnTransformer",
        )


_enter_selector(RFE, n_features_to_select=1)
_enter_selector(RFECV, cv=N_FOLDS)
_enter_selector(SequentialFeatureSelector, n_features_to_select=1, cv=N_FOLDS)


@tool("SelectFromModel")
def select_from_model(classifier: GPTTextClassifier, X: Texts, y: Labels) -> Outcome:
    half = halves(title_and_body(X), y)
    refused(
        ValueError,
        "should have `coef_` or `feature_importances_` attribute",
        lambda: SelectFromModel(classifier).fit(half.X, half.y).transform(half.X),
    )

    def importances(fitted: Any) -> Any:
        return permutation_importance(
            fitted, half.X_test, half.y_test, n_repeats=1, random_state=0
        ).importances_mean

    model = SelectFromModel(
        classifier, importance_getter=importances, threshold=-np.inf, max_features=1
    ).fit(half.X, half.y)
    (best,) = model.get_feature_names_out()
    return as_a_column(
        "needs importance_getter=, such as permutation importances: there is no `coef_`",
        Outcome(f"keeps {best!r} of three columns", (model, half)),
    )


@tool("GridSearchCV over the columns of a ColumnTransformer")
def choose_columns(classifier: GPTTextClassifier, X: Texts, y: Labels) -> Outcome:
    pipeline = Pipeline([("columns", _kept([])), ("gpt", classifier)])
    choices = [["title"], ["body"], ["title", "body"]]
    grid = {"columns__transformers": [_kept(names).transformers for names in choices]}
    search = GridSearchCV(pipeline, grid, cv=N_FOLDS, error_score="raise")
    search.fit(title_and_body(X), y)
    best = choices[search.best_index_]
    return Outcome(f"accuracy {search.best_score_:.2f}, best {' and '.join(best)}", search)


def _kept(columns: str | list[str]) -> ColumnTransformer:
    return ColumnTransformer([("kept", "passthrough", columns)])


@tool("ColumnTransformer, make_column_transformer")
def columns(classifier: GPTTextClassifier, X: Texts, y: Labels) -> Outcome:
    frame = title_and_body(X)
    refused(
        ValueError,
        "The output of the 'kept' transformer should be 2D",
        lambda: make_pipeline(_kept("title"), clone(classifier)).fit(frame, y),
    )
    pipeline = make_pipeline(_kept(["title", "body"]), clone(classifier))
    return judged(pipeline, frame, y, " of ['title', 'body']; 'title' alone is written ['title']")


@tool("ColumnTransformer before a template")
def columns_for_a_template(classifier: GPTTextClassifier, X: Texts, y: Labels) -> Outcome:
    kept = _kept(["title", "body"]).set_params(verbose_feature_names_out=False)
    laid_out = clone(classifier).set_params(template="{title}\n{body}")
    pipeline = make_pipeline(kept.set_output(transform="pandas"), laid_out)
    names = "verbose_feature_names_out=False and set_output(transform='pandas') keep the names"
    return judged(pipeline, title_and_body(X), y, f", {names}")


@tool("FeatureUnion, make_union")
def union(classifier: GPTTextClassifier, X: Texts, y: Labels) -> Outcome:
    words = "All estimators should implement fit and transform"
    refused(TypeError, words, lambda: FeatureUnion([("gpt", classifier)]).fit(X, y))
    return no("a classifier is not a transformer", "a GPTTextEmbedder is one")


def clean(texts: Texts) -> Texts:
    """Return the texts without digits."""
    return np.array(["".join(c for c in text if not c.isdigit()) for text in texts], dtype=object)


@tool("make_pipeline(FunctionTransformer(clean), classifier)")
def cleaning(classifier: GPTTextClassifier, X: Texts, y: Labels) -> Outcome:
    return judged(make_pipeline(FunctionTransformer(clean), clone(classifier)), X, y)


@tool("Pipeline(memory=...)")
def cached_pipeline(classifier: GPTTextClassifier, X: Texts, y: Labels) -> Outcome:
    with tempfile.TemporaryDirectory() as folder:
        memory = joblib.Memory(folder, verbose=0)
        steps = [("clean", FunctionTransformer(clean)), ("gpt", clone(classifier))]
        return judged(Pipeline(steps, memory=memory), X, y)


@tool("joblib.dump and load of a Pipeline")
def dump_and_load(classifier: GPTTextClassifier, X: Texts, y: Labels) -> Outcome:
    half = halves(X, y)
    pipeline = make_pipeline(FunctionTransformer(clean), clone(classifier)).fit(half.X, half.y)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pipeline.joblib"
        joblib.dump(pipeline, path)
        size, loaded = path.stat().st_size, joblib.load(path)
    before, after = (model.predict_proba(half.X_test) for model in (pipeline, loaded))
    assert np.array_equal(before, after)
    return Outcome(f"{size / 1e6:.1f} MB, the same probabilities", (before, after))


@tool("clone")
def cloning(classifier: GPTTextClassifier, X: Texts, y: Labels) -> Outcome:
    half = halves(X, y)
    fitted = clone(classifier).fit(half.X, half.y)
    made = [fitted, clone(fitted).fit(half.X, half.y)]
    return Outcome("a clone of the fitted model fits to the same model", made)


@tool("FrozenEstimator")
def frozen(classifier: GPTTextClassifier, X: Texts, y: Labels) -> Outcome:
    half = halves(X, y)
    fitted = clone(classifier).fit(half.X, half.y)
    before = fitted.predict_proba(half.X_test)
    model = FrozenEstimator(fitted).fit(half.X_test, half.y_test)
    return Outcome("fit leaves it as it was", (before, model.predict_proba(half.X_test)))


@tool("LabelEncoder")
def encoded(classifier: GPTTextClassifier, X: Texts, y: Labels) -> Outcome:
    encoder = LabelEncoder().fit(y)
    half = halves(X, y)
    by_code = clone(classifier).fit(half.X, encoder.transform(half.y))
    by_name = clone(classifier).fit(half.X, half.y)
    predicted = encoder.inverse_transform(by_code.predict(half.X_test))
    return Outcome("codes or names, the same", (predicted, by_name.predict(half.X_test)))


@tool("estimator_html_repr")
def html(classifier: GPTTextClassifier, X: Texts, y: Labels) -> Outcome:
    assert is_classifier(classifier)
    made = [estimator_html_repr(model) for model in (classifier, clone(classifier).fit(X, y))]
    return Outcome(f"{len(made[0]) // 1000} kB before, {len(made[1]) // 1000} kB after fit", made)
