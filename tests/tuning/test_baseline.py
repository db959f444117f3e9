"""The baseline guard: same folds, same texts, same weights, and an honest verdict."""

import json
import math
import subprocess
import sys
from typing import Any, Self

import numpy as np
import pandas as pd
import pytest
import sklearn
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.model_selection import GroupKFold, KFold, ShuffleSplit, cross_val_score
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import FunctionTransformer

from skgpt import GPTZeroShotClassifier
from skgpt.exceptions import BaselineWarning, TuningError
from skgpt.tuning import BaselineReport, compare_with_baseline
from skgpt.tuning.baseline import LinearTextClassifier, compare_scores, rivals_of, tfidf_rival
from skgpt.tuning.folds import FoldScores, draw_splits
from tests.helpers import columns_of_classes, make, make_text_data
from tests.tuning.searching import DATA, X, y


class Oracle(ClassifierMixin, BaseEstimator):
    """Knows the label of each text, or none of them; remembers what it was fitted on."""

    seen: list[Any] = []

    def __init__(self, truth: Any = None, template: Any = None, class_weight: Any = None) -> None:
        self.truth = truth
        self.template = template
        self.class_weight = class_weight

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        Oracle.seen.append((list(X), sample_weight))
        self.classes_ = np.unique(y)
        return self

    def predict(self, X: Any) -> Any:
        truth = self.truth or {}
        return np.array([truth.get(text, self.classes_[0]) for text in X])


def report(own: list[float], other: list[float], test_to_train: float = 0.25) -> BaselineReport:
    ones = np.ones(len(own))
    return BaselineReport(np.array(own), np.array(other), ones, ones, test_to_train)


def right(estimator: Any, X: Any, y: Any) -> float:
    return float(np.mean(estimator.predict(X) == y))


def lower(X: Any) -> list[str]:
    return [text.lower() for text in X]


def test_compare__a_model_that_knows_nothing__warns_and_says_who_won() -> None:
    with pytest.warns(BaselineWarning, match=r"The baseline, TF-IDF .* wins .* 30 texts") as caught:
        found = compare_with_baseline(Oracle(), *DATA, cv=4)
    assert caught[0].filename == __file__
    assert found.winner == "baseline" and found.difference < -0.3
    assert len(found.scores) == len(found.baseline_scores) == 4
    assert (found.seconds > 0).all() and (found.baseline_seconds > 0).all()


def test_compare__a_model_that_knows_all__wins_without_a_warning() -> None:
    noisy = np.where(np.arange(len(y)) % 3 == 0, y[::-1], y)  # words don't say these
    names = np.array([f"text{i} {text}" for i, text in enumerate(X)], dtype=object)
    truth = dict(zip(names, noisy, strict=True))
    found = compare_with_baseline(Oracle(truth), names, noisy, cv=5, scoring=right)
    assert found.winner == "estimator" and found.scores.tolist() == [1.0] * 5
    assert found.verdict.startswith("Oracle wins by") and "(right)" in found.verdict


@pytest.mark.filterwarnings("ignore::skgpt.exceptions.BaselineWarning")
def test_compare__a_cv_that_draws__both_see_the_same_folds() -> None:
    np.random.seed(3)
    cv = ShuffleSplit(4, random_state=None)
    Oracle.seen.clear()
    found = compare_with_baseline(Oracle(), X, y, cv=cv, baseline=Oracle(), scoring="accuracy")
    fitted = [texts for texts, _ in Oracle.seen]
    assert fitted[:4] == fitted[4:] and fitted[0] != fitted[1]
    assert found.winner is None and found.difference == 0 == found.n_std


@pytest.mark.filterwarnings("ignore::skgpt.exceptions.BaselineWarning")
def test_compare__our_classifier__scores_are_those_of_cross_val_score(tiny_llama: str) -> None:
    clf = make(tiny_llama, max_epochs=2)
    cv = KFold(3)
    found = compare_with_baseline(clf, *DATA, cv=cv, scoring="neg_log_loss")
    np.testing.assert_array_equal(
        found.scores, cross_val_score(clf, *DATA, cv=cv, scoring="neg_log_loss")
    )
    np.testing.assert_array_equal(
        found.baseline_scores,
        cross_val_score(LinearTextClassifier(), *DATA, cv=cv, scoring="neg_log_loss"),
    )
    assert (found.name, found.scoring) == ("GPTTextClassifier", "neg_log_loss")
    assert not hasattr(clf, "classes_")  # clones were fitted


@pytest.mark.filterwarnings("ignore::skgpt.exceptions.BaselineWarning")
def test_compare__a_pipeline_with_weights__both_get_them_and_its_steps(tiny_llama: str) -> None:
    weight = np.linspace(0.1, 2, len(X))
    pipeline = make_pipeline(FunctionTransformer(lower), Oracle(template="{text}"))
    Oracle.seen.clear()
    compare_with_baseline(pipeline, [t.upper() for t in X], y, cv=KFold(2), sample_weight=weight)
    first, weights = Oracle.seen[0]
    assert first == X[20:].tolist()
    np.testing.assert_array_equal(weights, weight[20:])
    rival = tfidf_rival(pipeline)
    assert isinstance(rival[-1], LinearTextClassifier) and rival[-1].template == "{text}"
    assert rival[0] is not pipeline[0] and isinstance(pipeline[-1], Oracle)
    clf = make(tiny_llama, max_epochs=1)
    whole = Pipeline([("clean", FunctionTransformer(lower)), ("gpt", clf)])
    assert len(compare_with_baseline(whole, X, y, cv=2, sample_weight=weight).scores) == 2


@pytest.mark.filterwarnings("ignore::skgpt.exceptions.BaselineWarning")
def test_compare__metadata_routing__weights_reach_both(tiny_llama: str) -> None:
    weight = np.where(y == y[0], 1.0, 0.0)  # who gets them, knows one class alone
    with sklearn.config_context(enable_metadata_routing=True):
        clf = make(tiny_llama, max_epochs=4, learning_rate=1e-2)
        clf.set_fit_request(sample_weight=True).set_score_request(sample_weight=False)
        found = compare_with_baseline(clf, X, y, cv=2, sample_weight=weight)
    np.testing.assert_array_equal(found.scores, [0.5, 0.5])
    np.testing.assert_array_equal(found.baseline_scores, [0.5, 0.5])


@pytest.mark.filterwarnings("ignore::skgpt.exceptions.BaselineWarning")
def test_compare__label_sets_in_nested_pipelines__both_are_scored(tiny_llama: str) -> None:
    tags = np.column_stack([y == "sport", np.arange(len(y)) % 2 == 0]).astype(int)
    clf = make(tiny_llama, max_epochs=1, class_weight=[{1: 2.0}, {0: 3.0}])
    nested = make_pipeline(FunctionTransformer(lower), make_pipeline(clf))
    rival = tfidf_rival(nested)
    assert rival[-1][-1].class_weight == clf.class_weight and nested[-1][-1] is clf
    found = compare_with_baseline(nested, X, tags, cv=2, scoring="f1_micro")
    assert found.name == "GPTTextClassifier" and (found.baseline_scores > 0.4).all()


@pytest.mark.filterwarnings("ignore::skgpt.exceptions.BaselineWarning")
def test_compare__several_outputs__all_are_scored_by_rows_all_right(tiny_llama: str) -> None:
    columns = columns_of_classes(y)
    clf = make(tiny_llama, max_epochs=1, class_weight=[None, {1: 2.0}, "balanced"])
    found = compare_with_baseline(make_pipeline(FunctionTransformer(lower), clf), X, columns, cv=2)
    splits = KFold(2).split(X)
    rival = tfidf_rival(clf)
    expected = [rival.fit(X[a], columns.iloc[a]).score(X[b], columns.iloc[b]) for a, b in splits]
    assert {*found.others.values(), found.baseline_scores.mean()} >= {np.mean(expected)}


def test_rivals__of_our_classifier__are_the_same_but_for_what_learns(tiny_llama: str) -> None:
    clf = make(tiny_llama, template="{0}", early_stopping=True, attention="causal", n_layers=2)
    names = ["tfidf", "frozen", "minilm-l6", Oracle()]
    tfidf, frozen, encoder, oracle = rivals_of(make_pipeline("passthrough", clf), names).values()
    assert isinstance(tfidf[-1], LinearTextClassifier) and isinstance(oracle, Oracle)
    theirs = {"trainable_layers": 0, "early_stopping": False}
    assert frozen[-1].get_params() == {**clf.get_params(), **theirs}
    theirs |= {"model": "minilm-l6", "n_layers": "auto", "attention": "auto"}
    assert encoder[-1].get_params() == {**clf.get_params(), **theirs}
    assert len(rivals_of(clf, None)) == 2 and len(rivals_of(frozen, None)) == 1
    clf.set_params(label_words="auto")  # which an encoder has no head for
    frozen, encoder = rivals_of(clf, ["frozen", "minilm-l6"]).values()
    assert (frozen.label_words, encoder.label_words) == ("auto", None)


@pytest.mark.filterwarnings("ignore::skgpt.exceptions.BaselineWarning")
def test_compare__prompt_of_the_whole_row__is_that_of_all_columns_for_all(tiny_llama: str) -> None:
    prompt: Any = {"template": "{text}\nTopic:", "label_words": "auto", "max_length": 512}
    clf = make(tiny_llama, **prompt, max_epochs=1)
    scores = []
    for rows in (np.stack([X, X], axis=1), [f"{text}\n\n{text}" for text in X]):
        found = compare_with_baseline(clf, rows, y, cv=2, baseline=["tfidf", "frozen", "zero-shot"])
        scores.append([*found.scores, *found.baseline_scores, *found.others.values()])
    assert scores[0] == scores[1]


@pytest.mark.filterwarnings("ignore::skgpt.exceptions.BaselineWarning")
def test_compare__zero_shot__is_the_same_model_asked_for_the_labels(tiny_llama: str) -> None:
    prompt = "News: {text}\nTopic:"
    clf = make(tiny_llama, template=prompt, max_epochs=1, precision="fp32")
    shared = {"max_length": 64, "precision": "fp32", "random_state": 0}
    asked = GPTZeroShotClassifier(tiny_llama, template=prompt, **shared)
    named = {"baseline": ["tfidf", "zero-shot"], "cv": 2, "sample_weight": np.ones(len(y))}
    found = compare_with_baseline(make_pipeline(clf), X, y, **named)
    means = {**found.others, found.baseline_name: found.baseline_scores.mean()}
    assert means["zero-shot"] == cross_val_score(asked, X, y, cv=2).mean()
    for template, used in ((None, "{text}\nTopic:"), ("T: {text} ", "{text}\nTopic:")):
        clf.set_params(template=template)
        (rival,) = rivals_of(clf, "zero-shot").values()
        assert rival.get_params() == {**asked.get_params(), "template": used}
    for words, used in (("auto", None), ({"sport": "match"}, {"sport": "match"})):
        (rival,) = rivals_of(clf.set_params(label_words=words), "zero-shot").values()
        assert rival.label_words == used
    with pytest.raises(TuningError, match="needs skgpt's classifier"):
        rivals_of(LinearTextClassifier(), "zero-shot")


def test_compare_scores__no_number__names_the_fold() -> None:
    splits = draw_splits(Oracle(), *DATA, cv=4)
    theirs = FoldScores(np.zeros(4), np.ones(4))
    ours = FoldScores(np.array([1, 1, np.nan, 1]), np.ones(4))
    with pytest.raises(TuningError, match="For Oracle it gives none on fold 2"):
        compare_scores(Oracle(), ours, {"other": theirs}, splits)


def test_draw_splits__groups__are_never_split_and_the_ratio_is_the_folds_mean() -> None:
    groups = np.arange(len(DATA.X)) // 4
    for train, test in draw_splits(Oracle(), *DATA, GroupKFold(3), groups=groups):
        assert not set(groups[train]) & set(groups[test])
    rows = [(np.arange(10), np.arange(5)), (np.arange(10), np.arange(2))]
    scores = FoldScores(np.zeros(2), np.ones(2))
    theirs = {"worse": FoldScores(np.full(2, -1.0), np.ones(2)), "better": scores}
    found = compare_scores(Oracle(), scores, theirs, rows)
    assert found.test_to_train == pytest.approx(0.35) and found.n_texts == 10
    assert (found.baseline_name, found.others) == ("better", {"worse": -1.0})
    assert "Other baselines: worse: -1.0000." in str(found)


@pytest.mark.parametrize(
    ("estimator", "options", "message"),
    [
        (TfidfVectorizer(), {}, "must be a classifier or a regressor of texts"),
        (Oracle(), {"scoring": ["accuracy", "f1_macro"]}, "must be one scorer"),
        (Oracle(), {"cv": []}, "at least one fold"),
        (Oracle(), {"scoring": lambda *_: math.nan}, "none on fold 0"),
        (
            Oracle(),
            {"baseline": "svm"},
            "one of tfidf, frozen, minilm-l6, zero-shot, or a list.*Got 'svm'",
        ),
        (Oracle(), {"baseline": ["tfidf", "frozen"]}, "'frozen'` needs skgpt's classifier"),
        (Oracle(), {"baseline": 3}, "must be an estimator or one of .*Got 3"),
        (Oracle(), {"baseline": []}, "must name a model to beat"),
    ],
)
def test_compare__what_it_can_not_do__is_said_before_the_estimator_is_fitted(
    estimator: Any, options: dict[str, Any], message: str
) -> None:
    Oracle.seen.clear()
    with pytest.raises(TuningError, match=message):
        compare_with_baseline(estimator, *DATA, **options)
    assert not Oracle.seen


def test_report__known_differences__nadeau_and_bengio_by_hand() -> None:
    found = report([0.9, 0.8, 0.7], [0.8, 0.8, 0.6], test_to_train=0.5)
    assert found.difference == pytest.approx(0.2 / 3)
    spread = np.var([0.1, 0.0, 0.1], ddof=1)
    assert found.std == pytest.approx(math.sqrt(spread * (1 / 3 + 0.5)))
    assert found.n_std == pytest.approx(found.difference / found.std)
    # Swapped, the other wins by as much.
    other = BaselineReport(
        found.baseline_scores, found.scores, found.seconds, found.baseline_seconds, 0.5
    )
    assert (other.winner, found.winner) == ("baseline", "estimator")
    assert other.n_std == pytest.approx(-found.n_std) and other.std == pytest.approx(found.std)


def test_report__one_fold_or_equal_differences__says_what_can_be_said() -> None:
    single = report([0.9], [0.8])
    assert math.isnan(single.std) and math.isnan(single.n_std)
    assert "standard deviations" not in single.verdict and single.winner == "estimator"
    assert report([1.0, 0.5], [0.5, 0.0]).n_std == math.inf
    assert report([0.5, 0.0], [1.0, 0.5]).n_std == -math.inf
    assert "level" in report([0.5, 0.5], [0.5, 0.5]).verdict
    assert "may be chance" in report([0.9, 0.5], [0.5, 0.8]).verdict
    assert "may be chance" not in report([0.9, 0.8], [0.5, 0.39]).verdict


def test_report__shown__holds_every_fold_and_nothing_raw() -> None:
    found = report([0.91, 0.82], [0.73, 0.64])
    for number in ("0.9100", "0.8200", "0.7300", "0.6400", "fold 1", found.verdict):
        assert number in str(found) and number in found._repr_html_()
    spiteful = BaselineReport(
        found.scores, found.scores, found.seconds, found.seconds, 0.2, "<b>", "a&b"
    )
    assert "<b>" not in spiteful._repr_html_() and "a&amp;b" in spiteful._repr_html_()
    again = json.loads(json.dumps(found.to_dict()))
    assert again["scores"] == [0.91, 0.82] and again["winner"] == "estimator"
    frame = found.to_frame()
    assert isinstance(frame, pd.DataFrame) and frame.shape == (2, 5)
    assert frame["difference"].mean() == pytest.approx(found.difference)


@pytest.mark.parametrize("n_classes", [2, 3])
def test_linear__predictions__agree_and_two_classes_are_one_regression(n_classes: int) -> None:
    X, y = make_text_data(n_classes=n_classes)
    clf = LinearTextClassifier().fit(X, y)
    assert clf.score(X, y) == 1.0 and len(clf.models_) == {2: 1, 3: 3}[n_classes]
    proba = clf.predict_proba(X)
    np.testing.assert_allclose(proba.sum(axis=1), 1)
    assert (clf.classes_[proba.argmax(axis=1)] == clf.predict(X)).all()
    # Each class's own probability, over the sum of them.
    features = clf.vectorizer_.transform(X)
    own = np.stack([model.predict_proba(features)[:, 1] for model in clf.models_], axis=1)
    own = own if n_classes > 2 else np.hstack([1 - own, own])
    np.testing.assert_allclose(proba, own / own.sum(axis=1, keepdims=True), rtol=1e-5)


def test_linear__n_grams_and_penalty__are_chosen_on_the_training_rows() -> None:
    rng = np.random.default_rng(0)
    pairs = [("not", "good") if good else ("good", "not") for good in rng.integers(0, 2, 80)]
    rng = np.random.default_rng(0)
    order = LinearTextClassifier().fit([" ".join(pair) for pair in pairs], [a for a, _ in pairs])
    assert order.n_grams_ == (1, 2)
    # Words that say nothing explain wrong labels, where the penalty lets them.
    labels = np.arange(150) % 2
    said = [["bad", "good"][label] for label in labels]
    letters = list("abcdefghijklmnopqrstuvwxyz")
    noisy = [f"{word} {' '.join(rng.choice(letters, 40))}" for word in said]
    labels[rng.permutation(150)[:30]] ^= 1
    assert LinearTextClassifier().fit(noisy, labels).C_ < 300


def test_linear__weights__two_is_the_row_twice_and_scale_is_nothing() -> None:
    X, y = DATA[0][:12], DATA[1][:12]

    def scores(weight: Any, **options: Any) -> Any:
        return LinearTextClassifier(**options).fit(X, y, weight).decision_function(X)

    weight = np.linspace(1, 3, 12)
    np.testing.assert_allclose(scores(weight), scores(1000 * weight), rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(scores(None), scores(np.ones(12)))
    by_class = scores(None, class_weight={y[0]: 3.0})
    np.testing.assert_allclose(by_class, scores(np.where(y == y[0], 3.0, 1.0)), rtol=1e-6)
    assert np.abs(by_class - scores(None)).max() > 0.01


def test_linear__multilabel__with_a_label_of_no_row_and_one_of_all() -> None:
    tags = np.column_stack([y == "sport", np.zeros(len(y)), np.ones(len(y))]).astype(int)
    clf = LinearTextClassifier(class_weight="balanced").fit(X, tags)
    np.testing.assert_array_equal(clf.predict(X), tags)
    proba = clf.predict_proba(X)
    assert proba.shape == (len(X), 3) and ((proba > 0) & (proba < 1)).all()


def test_linear__several_outputs__each_as_if_it_were_alone() -> None:
    columns = np.column_stack([y, np.where(y == "sport", "yes", "no")]).astype(str)
    clf = LinearTextClassifier().fit(X, columns)
    np.testing.assert_array_equal(clf.predict(X), columns)
    assert clf.score(X, columns) == 1
    for j, (proba, logits) in enumerate(
        zip(clf.predict_proba(X), clf.decision_function(X), strict=True)
    ):
        assert proba.shape == logits.shape == (len(X), len(clf.classes_[j]))
        np.testing.assert_allclose(proba.sum(axis=1), 1)
        np.testing.assert_array_equal(clf.classes_[j][proba.argmax(axis=1)], columns[:, j])


def test_linear__columns__joined_as_the_template_says() -> None:
    table = pd.DataFrame({"title": ["a", "b"] * 6, "body": ["same", "same"] * 6})
    labels = [0, 1] * 6
    assert LinearTextClassifier().fit(table, labels).score(table, labels) == 1.0
    blind = LinearTextClassifier(template="{body}").fit(table, labels)
    assert len(set(blind.predict(table))) == 1
    assert LinearTextClassifier().fit(["😀", "😡"] * 3, [0, 1] * 3).predict(["😡"]).tolist() == [1]


def test_import__compare_with_baseline__needs_no_optuna() -> None:
    code = (
        "import sys; sys.modules['optuna'] = None\n"
        "import skgpt\n"
        "skgpt.tuning.compare_with_baseline\n"
        "try:\n    skgpt.tuning.objective\n"
        "except ImportError as error:\n    print(type(error).__name__, 'optuna' in str(error))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.split() == ["MissingPackageError", "True"], done.stderr
