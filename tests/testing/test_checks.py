"""check_text_estimator passes what is right, catches planted faults, and counts what it ran."""

import random
from typing import Any, Self

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin, TransformerMixin
from sklearn.feature_extraction.text import HashingVectorizer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.utils import Tags, check_random_state
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import (
    check_array,
    check_consistent_length,
    check_is_fitted,
    column_or_1d,
    validate_data,
)

from skgpt.data.inputs import find_columns
from skgpt.data.tokenization import clean
from skgpt.testing import TextEstimatorReport, check_text_estimator
from skgpt.testing.text_checks import TEXT_CHECKS

# A number that falls means that checks went missing in silence.
N_TEXT_CHECKS = 14


def _vectorise(estimator: Any, X: Any, *, reset: bool) -> Any:
    """Return texts, or a table of numbers laid out as texts, as hashed letter counts."""
    columns = find_columns(X, estimator=estimator).read()
    validate_data(estimator, X, reset=reset, skip_check_array=True)
    texts = [clean(" ".join(row)) for row in zip(*columns, strict=True)]
    return HashingVectorizer(n_features=64, analyzer="char_wb").transform(texts).toarray()


class TakesTexts:
    """The tags of an estimator of texts that can't learn scikit-learn's tables of numbers."""

    def __sklearn_tags__(self) -> Tags:
        tags: Tags = super().__sklearn_tags__()  # type: ignore[misc]
        tags.input_tags.string = True
        for of_kind in filter(None, (tags.classifier_tags, tags.regressor_tags)):
            of_kind.poor_score = True
        return tags


class GoodClassifier(TakesTexts, ClassifierMixin, BaseEstimator):
    """A text classifier with nothing wrong about it."""

    def __init__(self, C: float = 1.0, random_state: int | None = None) -> None:
        self.C = C
        self.random_state = random_state

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        if y is None:
            raise ValueError("This estimator requires y to be passed, but the target y is None")
        features = _vectorise(self, X, reset=True)
        check_classification_targets(y)
        y = column_or_1d(y, warn=True)
        check_consistent_length(features, y)
        seed = check_random_state(self.random_state).randint(2**31)
        model = LogisticRegression(C=self.C, solver="newton-cholesky", random_state=seed)
        self.model_ = model.fit(features, y, sample_weight)
        self.classes_ = self.model_.classes_
        return self

    def decision_function(self, X: Any) -> NDArray[Any]:
        check_is_fitted(self)
        return self.model_.decision_function(_vectorise(self, X, reset=False))

    def predict_proba(self, X: Any) -> NDArray[Any]:
        check_is_fitted(self)
        return self.model_.predict_proba(_vectorise(self, X, reset=False))

    def predict(self, X: Any) -> NDArray[Any]:
        check_is_fitted(self)
        return self.classes_[self.predict_proba(X).argmax(axis=1)]


class GoodRegressor(TakesTexts, RegressorMixin, BaseEstimator):
    """A text regressor with nothing wrong about it."""

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        if y is None:
            raise ValueError("This estimator requires y to be passed, but the target y is None")
        features = _vectorise(self, X, reset=True)
        y = check_array(column_or_1d(y, warn=True), ensure_2d=False, dtype=float)
        check_consistent_length(features, y)
        self.model_ = Ridge().fit(features, y, sample_weight)
        return self

    def predict(self, X: Any) -> NDArray[Any]:
        check_is_fitted(self)
        return self.model_.predict(_vectorise(self, X, reset=False))


class GoodTransformer(TakesTexts, TransformerMixin, BaseEstimator):
    """A text transformer with nothing wrong about it."""

    def fit(self, X: Any, y: Any = None) -> Self:
        _vectorise(self, X, reset=True)
        self.fitted_ = True
        return self

    def transform(self, X: Any) -> NDArray[Any]:
        check_is_fitted(self)
        return _vectorise(self, X, reset=False)


class ReadsNoneAsText(GoodClassifier):
    """Planted fault: str() around every element."""

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        return super().fit([str(x) for x in X] if np.ndim(X) == 1 else X, y, sample_weight)


class NamesNoRow(GoodClassifier):
    """Planted fault: the error for a bad row doesn't say which."""

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        if isinstance(X, list) and any(x is None for x in X):
            raise ValueError("X must hold str.")
        return super().fit(X, y, sample_weight)


class DependsOnRowOrder(GoodClassifier):
    """Planted fault: what is said of a row depends on where it stands."""

    def predict_proba(self, X: Any) -> NDArray[Any]:
        drift = np.linspace(0, 0.01, len(X))[:, None]
        probabilities = super().predict_proba(X) + drift
        return probabilities / probabilities.sum(axis=1, keepdims=True)


class UsesGlobalGenerators(GoodClassifier):
    """Planted fault: draws from the random module, and seeds numpy at everybody's expense."""

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        random.random()
        np.random.seed(self.random_state)
        return super().fit(X, y, sample_weight)


class IgnoresSeed(GoodClassifier):
    """Planted fault: two fits with one seed differ."""

    def decision_function(self, X: Any) -> NDArray[Any]:
        return super().decision_function(X) + np.random.default_rng().normal(scale=1e-9)


class ForgetsOnPickle(GoodClassifier):
    """Planted fault: a pickle rounds the weights."""

    def __getstate__(self) -> dict[str, Any]:
        state = dict(super().__getstate__())
        if "model_" in state:
            rounded = LogisticRegression()
            rounded.__dict__.update(vars(state["model_"]), coef_=state["model_"].coef_.round(2))
            state["model_"] = rounded
        return state


class StoresTargetFirst(GoodClassifier):
    """Planted fault: a fit that fails has already replaced classes_."""

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        if y is not None and np.ndim(y) == 1 and np.asarray(y).dtype.kind not in "fc":
            self.classes_ = np.unique(y)
        return super().fit(X, y, sample_weight)


class RefusesTables(GoodClassifier):
    """Planted fault: tags under which scikit-learn runs nothing."""

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = False
        return tags


class ForgetsStringTag(GoodClassifier):
    """Planted fault: the tags don't say that texts are taken."""

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.string = False
        return tags


class WritesToInput(GoodClassifier):
    """Planted fault: changes the list that it was given."""

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        super().fit(X, y, sample_weight)
        if isinstance(X, list) and isinstance(X[0], str):
            X[0] = X[0].upper()
        return self


class UnsortedClasses(GoodClassifier):
    """Planted fault: classes_ in order of appearance."""

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        super().fit(X, y, sample_weight)
        self.classes_ = np.array(list(dict.fromkeys(np.ravel(y))))
        return self


class CutsToShortest(GoodClassifier):
    """Planted fault: surplus texts are dropped."""

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        return super().fit(X[: len(y)], y, sample_weight)


class ListsOnly(GoodClassifier):
    """Planted fault: what is not a list is read backwards."""

    def predict_proba(self, X: Any) -> NDArray[Any]:
        probabilities = super().predict_proba(X)
        return probabilities if isinstance(X, list) else probabilities[::-1]


class SumsAboveOne(GoodClassifier):
    """Planted fault: probabilities of labels that don't exclude each other."""

    def predict_proba(self, X: Any) -> NDArray[Any]:
        return super().predict_proba(X) * 1.1


class RefusesEmptyText(NamesNoRow):
    """Planted faults: an empty text is an error, and so is a bad row without its number."""

    def predict_proba(self, X: Any) -> NDArray[Any]:
        if isinstance(X, list) and "" in X:
            raise ValueError("empty text")
        return super().predict_proba(X)


class ReadsLetterByLetter(GoodClassifier):
    """Planted fault: a single str is taken for a list of letters."""

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        return super().fit(list(X) if isinstance(X, str) else X, y, sample_weight)


def test_check_text_estimator__good_classifier__report_counts_what_ran() -> None:
    estimator = GoodClassifier(C=2.0)
    report = check_text_estimator(estimator)
    assert vars(estimator) == {"C": 2.0, "random_state": None}  # never fitted itself
    assert report.n_sklearn_checks >= 60
    assert report.n_text_checks == len(TEXT_CHECKS) == N_TEXT_CHECKS
    assert report.n_passed == report.n_sklearn_checks + report.n_text_checks
    assert report.expected_failures == {}
    assert report.unexpected_passes == ()
    assert "check_array_api_input" not in report.skipped
    assert str(report).startswith(f"GoodClassifier: {report.n_passed} checks passed; ran ")


def test_check_text_estimator__good_regressor__skips_what_is_for_classifiers() -> None:
    report = check_text_estimator(GoodRegressor())
    assert report.n_sklearn_checks >= 50
    assert {"check_text_label_order", "check_text_probabilities"} <= set(report.skipped)
    assert "check_text_label_order: the estimator is not a classifier" in str(report)


def test_check_text_estimator__good_transformer__passes() -> None:
    report = check_text_estimator(GoodTransformer())
    assert report.n_sklearn_checks >= 40
    assert "check_text_lengths_differ" in report.skipped


@pytest.mark.parametrize(
    ("estimator", "failed_check", "message"),
    [
        (ReadsNoneAsText(), "check_text_bad_rows", "None among the texts must raise"),
        (NamesNoRow(), "check_text_bad_rows", "must name row 7"),
        (DependsOnRowOrder(), "check_text_rows_independent", "predict_proba must give the same"),
        (UsesGlobalGenerators(), "check_text_global_random_state", "Changed: random, numpy"),
        (IgnoresSeed(), "check_text_same_seed", "decision_function must give the same values"),
        (ForgetsOnPickle(), "check_text_pickle", "after pickle"),
        (StoresTargetFirst(), "check_text_failed_fit", "after a second fit that failed"),
        (ForgetsStringTag(), "check_text_tags", r"input_tags\.string = True"),
        (WritesToInput(), "check_text_input_unchanged", "must not write to the lists"),
        (UnsortedClasses(), "check_text_label_order", "classes_ must be the sorted labels"),
        (SumsAboveOne(), "check_text_probabilities", "must sum to one"),
        (CutsToShortest(), "check_text_lengths_differ", "Nothing was raised"),
        (ListsOnly(), "check_text_containers", "a tuple"),
        (ReadsLetterByLetter(), "check_text_single_string", "Nothing was raised"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseEstimator) else "",
)
def test_check__a_fault__caught(estimator: BaseEstimator, failed_check: str, message: str) -> None:
    TEXT_CHECKS[failed_check](GoodClassifier())
    with pytest.raises(AssertionError, match=message):
        TEXT_CHECKS[failed_check](estimator)


def test_check_text_estimator__several_faults__all_named_with_their_errors() -> None:
    with pytest.raises(AssertionError) as caught:
        check_text_estimator(RefusesEmptyText())
    lines = str(caught.value).splitlines()
    assert lines[0].startswith("RefusesEmptyText failed 2 of ")
    assert lines[1].startswith("  - check_text_bad_rows: AssertionError: the error for fit with")
    assert lines[2] == "  - check_text_odd_texts: ValueError: empty text"


def test_check_text_estimator__tags_refuse_tables__says_which_tags_to_set() -> None:
    with pytest.raises(AssertionError, match=r"check_sklearn_checks_ran.*It ran 1,.*two_d_array"):
        check_text_estimator(RefusesTables())


def test_check_text_estimator__expected_failure__reported_with_its_reason() -> None:
    expected = {
        "check_text_global_random_state": "planted",
        "check_estimators_pickle": "not so",
        "check_of_a_later_version": "unknown here",
    }
    report = check_text_estimator(UsesGlobalGenerators(), expected_failed_checks=expected)
    assert report.expected_failures == {"check_text_global_random_state": "planted"}
    assert report.unexpected_passes == ("check_estimators_pickle",)
    assert report.n_text_checks == N_TEXT_CHECKS
    assert "  - check_text_global_random_state: planted" in str(report).splitlines()


def test_check_text_estimator__class_for_instance__type_error() -> None:
    with pytest.raises(TypeError, match="instance"):
        check_text_estimator(GoodClassifier)


def test_text_estimator_report__nothing_skipped__one_line() -> None:
    report = TextEstimatorReport("Some", 3, 2, 1, {}, (), {})
    assert str(report) == "Some: 3 checks passed; ran 2 of scikit-learn's and 1 on texts."
