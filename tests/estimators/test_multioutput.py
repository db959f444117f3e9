"""Several columns of classes on one trunk: what it learns, what it promises, what it refuses."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow
import pytest
from numpy.typing import NDArray
from scipy.special import softmax
from sklearn.exceptions import DataConversionWarning
from sklearn.metrics import log_loss, make_scorer
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.multioutput import MultiOutputClassifier
from sklearn.utils import get_tags

from skgpt import GPTTextClassifier, LoRA
from skgpt.exceptions import ContinuationError, InvalidTextError, ModelNotSupportedError
from skgpt.plots import ErrorTableDisplay
from tests.estimators.dying import broken_off
from tests.helpers import Fitted, columns_of_classes, make, make_text_data

X, LABELS = make_text_data(n_classes=3)
Y = columns_of_classes(LABELS)  # "topic" is a str, "n" an int, "sport" a bool
TEXTS = np.stack([LABELS, np.where(LABELS == "sport", "yes", "no")], axis=1)
ALONE = {"trainable_layers": 0, "precision": "fp32"}
EXACT = {"rtol": 0, "atol": 2e-3}  # of probabilities: L-BFGS stops near the minimum


def stacked(probabilities: list[NDArray[Any]]) -> NDArray[Any]:
    return np.hstack(probabilities)


def share_of_topics(y: Any, predicted: Any) -> float:
    return float((y[:, 0] == predicted[:, 0]).mean())


def topics_right(estimator: Any, X: Any, y: Any) -> float:
    return share_of_topics(np.asarray(y), estimator.predict(X))


def test_fit__columns_of_classes__learns_and_predictions_agree(tiny_llama: str) -> None:
    clf = make(tiny_llama, trainable_layers="all", max_epochs=20).fit(X, Y)
    assert [classes.tolist() for classes in clf.classes_] == [
        ["money", "space", "sport"],
        [0, 1],
        [False, True],
    ]
    predicted = clf.predict(X)
    assert predicted.shape == (60, 3)
    assert [type(label) for label in predicted[0]] == [str, int, bool]
    assert (predicted[:, [0, 2]] == Y[["topic", "sport"]].to_numpy()).mean() > 0.9
    found = zip(
        clf.classes_,
        clf.predict_proba(X),
        clf.predict_log_proba(X),
        clf.decision_function(X),
        predicted.T,
        strict=True,
    )
    for classes, proba, log_proba, scores, labels in found:
        assert proba.shape == (60, len(classes))
        np.testing.assert_allclose(proba.sum(axis=1), 1)
        np.testing.assert_allclose(log_proba, np.log(proba), atol=1e-6)
        assert classes[proba.argmax(axis=1)].tolist() == labels.tolist()
        if len(classes) == 2:
            np.testing.assert_allclose(scores, log_proba[:, 1] - log_proba[:, 0], atol=1e-5)
        else:
            np.testing.assert_allclose(softmax(scores, axis=1), proba, atol=1e-6)
    tags = get_tags(clf).target_tags
    assert tags.multi_output and tags.single_output


def test_score__several_columns__is_that_of_scikit_learns_multi_output_classifier(
    fitted_model: Callable[[str], Fitted],
) -> None:
    clf, X, y = fitted_model("several outputs")
    theirs = MultiOutputClassifier(clf)
    theirs.estimators_ = [_Column(clf, j) for j in range(3)]
    assert clf.score(X, y) == theirs.score(X, y.to_numpy()) < 1
    all_right = (clf.predict(X) == y.to_numpy()).all(axis=1)
    weight = np.arange(60.0)
    assert clf.score(X, y, sample_weight=weight) == pytest.approx(weight @ all_right / weight.sum())
    unseen = y.assign(topic="tennis")  # a label that the fit hadn't is a mistake, no error
    assert clf.score(X, unseen) == 0
    for wrong in (LABELS, y[["topic", "n"]], y[:5]):
        with pytest.raises(InvalidTextError, match=r"the shape \(60, 3\). Got"):
            clf.score(X, wrong)


class _Column:
    def __init__(self, clf: GPTTextClassifier, j: int) -> None:
        self.clf, self.j = clf, j

    def predict(self, X: Any) -> Any:
        return self.clf.predict(X)[:, self.j]


@pytest.mark.parametrize(
    "make_y",
    [
        lambda y: pl.DataFrame({name: y[name].tolist() for name in y}),
        lambda y: pyarrow.table({name: y[name].tolist() for name in y}),
        lambda y: y.astype({"topic": "category", "n": "Int64", "sport": "boolean"}),
        lambda y: y.astype(object).to_numpy(),
        lambda y: y.astype(object).to_numpy().tolist(),
    ],
    ids=["polars", "pyarrow", "pandas' own types", "objects", "rows"],
)
def test_fit__any_container__each_column_keeps_its_type(
    make_y: Callable[[Any], Any], tiny_llama: str, fitted_model: Callable[[str], Fitted]
) -> None:
    expected = fitted_model("several outputs").clf
    clf = make(tiny_llama).fit(X, make_y(Y))
    assert [each.tolist() for each in clf.classes_] == [each.tolist() for each in expected.classes_]
    np.testing.assert_array_equal(stacked(clf.predict_proba(X)), stacked(expected.predict_proba(X)))
    assert clf.score(X, make_y(Y)) == expected.score(X, Y)


def test_predict__columns_of_one_kind__is_an_array_of_it(tiny_llama: str) -> None:
    numbers = np.stack([np.arange(60) % 3, np.arange(60) % 2 + 5], axis=1)
    assert make(tiny_llama, max_epochs=1).fit(X, numbers).predict(X).dtype == np.int64
    texts = make(tiny_llama, max_epochs=1).fit(X, TEXTS.astype(str).tolist()).predict(X)
    assert texts.dtype == "<U5"


# Identities


def test_fit__one_column__is_ravelled_with_a_warning(tiny_llama: str) -> None:
    with pytest.warns(DataConversionWarning):
        column = make(tiny_llama).fit(X, LABELS[:, None])
    plain = make(tiny_llama).fit(X, LABELS)
    np.testing.assert_array_equal(column.predict_proba(X), plain.predict_proba(X))


def test_fit__the_same_column_twice__predicts_it_twice(tiny_llama: str) -> None:
    options = {"precision": "fp32", "max_grad_norm": None}
    clf = make(tiny_llama, **options).fit(X, np.stack([LABELS, LABELS], axis=1))
    first, second = clf.predict_proba(X)
    np.testing.assert_allclose(first, second, atol=1e-5)
    assert np.array_equal(*clf.predict(X).T)
    # The loss is a mean over columns, so the trunk's gradient is that of one.
    plain = make(tiny_llama, **options).fit(X, LABELS)
    np.testing.assert_allclose(plain.loss_curve_, clf.loss_curve_, rtol=1e-3)
    np.testing.assert_allclose(plain.predict_proba(X), first, atol=1e-3)


def test_fit__head_alone__columns_equal_fits_of_their_own(tiny_llama: str) -> None:
    options = {**ALONE, "label_smoothing": 0.1}
    together = make(tiny_llama, **options).fit(X, Y)
    for j, name in enumerate(Y):
        apart = make(tiny_llama, **options).fit(X, Y[name])
        np.testing.assert_allclose(together.predict_proba(X)[j], apart.predict_proba(X), **EXACT)


def test_fit__weight_two__equals_the_row_twice(tiny_llama: str) -> None:
    weight = np.where(np.arange(60) % 4 == 0, 2, 1)
    twice = np.repeat(np.arange(60), weight)
    options = {**ALONE, "class_weight": "balanced"}
    heavy = make(tiny_llama, **options).fit(X, Y, sample_weight=weight)
    repeated = make(tiny_llama, **options).fit(X[twice], Y.iloc[twice])
    np.testing.assert_allclose(
        stacked(heavy.predict_proba(X)), stacked(repeated.predict_proba(X)), **EXACT
    )


def test_class_weight__a_list__is_of_the_columns(tiny_llama: str) -> None:
    weights = [{"money": 3.0}, None, {True: 5.0}]
    together = make(tiny_llama, **ALONE, class_weight=weights).fit(X, Y)
    plain = make(tiny_llama, **ALONE).fit(X, Y)
    up = [a.mean(0) - b.mean(0) for a, b in _pairs(together.predict_proba(X), plain)]
    assert up[0][0] > 0.01 and up[2][1] > 0.01 and abs(up[1]).max() < 0.01


def _pairs(proba: Any, clf: GPTTextClassifier) -> Any:
    return zip(proba, clf.predict_proba(X), strict=True)


@pytest.mark.parametrize(
    "options",
    [
        {"lora": LoRA(rank=2)},
        pytest.param({"long_text": "windows", "max_length": 12}, marks=pytest.mark.thorough),
        pytest.param({"head_first_epochs": 1}, marks=pytest.mark.thorough),
        pytest.param({"trainable_layers": "all", "pooling": "last"}, marks=pytest.mark.thorough),
    ],
    ids=str,
)
def test_fit__every_way_to_learn__learns_all_columns(
    options: dict[str, Any], tiny_llama: str
) -> None:
    clf = make(tiny_llama, **{"max_epochs": 12, "learning_rate": 3e-3, **options}).fit(X, TEXTS)
    assert (clf.predict(X) == TEXTS).mean() > 0.8


# Held-out rows


def test_early_stopping__several_columns__each_gives_its_share_and_the_loss_is_their_mean(
    tiny_llama: str,
) -> None:
    clf = make(tiny_llama, early_stopping=True, validation_fraction=0.2, n_iter_no_change=20)
    seen: list[Any] = []

    def note(estimator: Any, X: Any, y: Any) -> float:
        seen.append((X, y))
        columns = zip(estimator.classes_, y.T, estimator.predict_proba(X), strict=True)
        return -float(
            np.mean([log_loss(c.searchsorted(t.astype(c.dtype)), p) for c, t, p in columns])
        )

    clf.set_params(scoring=note).fit(X, Y)
    assert len(seen) > len(clf.history_)  # it is tried before the first step
    held_out = seen[-1][1]
    for name, column in zip(Y, held_out.T, strict=True):
        for label, n in Y[name].value_counts().items():
            assert abs((column == label).sum() - 0.2 * n) <= 1.5
    for record in clf.history_:
        assert record["validation_loss"] == pytest.approx(-record["validation_score"], rel=1e-4)


def test_early_stopping__groups_or_x_val__are_held_out(tiny_llama: str) -> None:
    clf = make(tiny_llama, early_stopping=True, validation_fraction=0.3, max_epochs=2)
    clf.fit(X, Y, groups=np.arange(60) // 5)
    assert clf.validation_scores_
    # All of them zeros and ones, and columns all the same, as the fitted y says.
    codes = np.stack([np.arange(60) % 3, np.arange(60) % 2], axis=1)
    clf.fit(X, codes, X_val=X[:2], y_val=codes[:2])
    assert len(clf.validation_scores_) >= 1
    with pytest.raises(InvalidTextError, match=r"column 0 of y_val must hold classes.*7"):
        clf.fit(X, codes, X_val=X[:2], y_val=codes[:2] + 7)


@pytest.mark.usefixtures("no_training")
@pytest.mark.parametrize("scoring", ["accuracy", "neg_log_loss", "f1_macro", "roc_auc_ovr"])
def test_scoring__a_metric_of_one_column__is_refused_before_training(
    scoring: str, tiny_llama: str
) -> None:
    with pytest.raises(InvalidTextError, match=r"can't: .*of several, pass a callable"):
        make(tiny_llama, early_stopping=True, scoring=scoring).fit(X, Y)


def test_scoring__a_metric_of_columns__is_watched(tiny_llama: str) -> None:
    clf = make(tiny_llama, early_stopping=True, scoring=make_scorer(share_of_topics)).fit(X, Y)
    assert all(0 <= score <= 1 for score in clf.validation_scores_)


def test_calibrate__several_columns__each_has_a_temperature(tiny_llama: str) -> None:
    options = {"validation_fraction": 0.3, "random_state": 1}
    clf = make(tiny_llama, **options, calibrate=True).fit(X, Y)
    temperatures = [found["temperature"] for found in clf.calibration_]
    assert len({*temperatures}) == 3
    topics = clf.decision_function(X)[0]
    expected = softmax(topics / temperatures[0], axis=1)
    np.testing.assert_allclose(clf.predict_proba(X)[0], expected, atol=1e-5)
    clf.calibration_.clear()  # a copy
    np.testing.assert_allclose(clf.predict_proba(X)[0], expected, atol=1e-5)


# Going on


OPTIONS: dict[str, Any] = {"lr_schedule": "constant", "warmup_ratio": 0.0}
CLASSES = [["money", "space", "sport"], [0, 1], [False, True]]


def test_partial_fit__classes_of_each_column__equals_fit(tiny_llama: str) -> None:
    parts = make(tiny_llama, **OPTIONS).partial_fit(X, Y, classes=CLASSES).partial_fit(X, Y)
    whole = make(tiny_llama, **OPTIONS, max_epochs=2).fit(X, Y)
    np.testing.assert_array_equal(stacked(parts.predict_proba(X)), stacked(whole.predict_proba(X)))
    binary = [[0, 1, 2], [0, 1]]  # of zeros and ones alone, and columns all the same
    clf = make(tiny_llama).partial_fit(X[:2], [[0, 1], [1, 0]], classes=binary)
    assert [p.shape for p in clf.partial_fit(X[:1], [[0, 1]]).predict_proba(X)] == [
        (60, 3),
        (60, 2),
    ]


def test_partial_fit__new_classes_in_a_column__others_keep_their_scores(tiny_llama: str) -> None:
    clf = make(tiny_llama).partial_fit(X, Y, classes=CLASSES)
    before = clf.predict_log_proba(X)
    more = [["art", *CLASSES[0]], [0, 1, 2], CLASSES[2]]
    silent = np.zeros(60)
    silent[0] = 1e-30
    clf.set_params(learning_rate=1e-12, head_learning_rate=1e-12, weight_decay=0.0)
    clf.partial_fit(X, Y, classes=more, sample_weight=silent)
    assert [each.tolist() for each in clf.classes_] == more
    after = clf.predict_log_proba(X)
    np.testing.assert_allclose(after[2], before[2], atol=1e-3)
    for old, new in ((before[0], after[0][:, 1:]), (before[1], after[1][:, :2])):
        np.testing.assert_allclose(old[:, 1:] - old[:, :1], new[:, 1:] - new[:, :1], atol=1e-3)


@pytest.mark.parametrize(
    ("y", "classes", "message"),
    [
        (Y, None, "a list of them for each"),
        (Y, ["money", "sport"], "the classes .*Got 3 columns of labels"),
        (Y, CLASSES[:2], "Got 3 columns of labels"),
        (LABELS, CLASSES, "Got one label per text"),
        (Y, [["money"], [0, 1], [True, False]], r"`classes\[0\]` must name at least 2"),
        (Y, [["money", "sport"], [0, 1], [True, False]], r"column 'topic' of y .*'space'"),
    ],
)
def test_partial_fit__classes_that_do_not_fit__are_refused(
    y: Any, classes: Any, message: str, tiny_llama: str
) -> None:
    clf = make(tiny_llama)
    with pytest.raises(ValueError, match=message):
        clf.partial_fit(X, y, classes=classes)
    assert not hasattr(clf, "classes_")


def test_warm_start__the_same_columns__go_on_and_others_are_refused(
    tiny_llama: str, fitted_model: Callable[[str], Fitted]
) -> None:
    clf = copy.deepcopy(fitted_model("several outputs").clf).set_params(warm_start=True)
    first = clf.loss_curve_[0]
    assert clf.fit(X, Y).loss_curve_[0] < first
    assert clf.plan(X).classes_assumed is None
    model = clf._model
    for other, message in (
        (LABELS, "Got one label per text"),
        (Y[["topic", "n"]], "Got 2 columns of labels"),
        (Y.assign(topic="tennis"), "column 'topic' of y must hold classes"),
        (Y.assign(n=Y["topic"]), "column 'n' of y must hold classes"),
    ):
        with pytest.raises(InvalidTextError, match=message):
            clf.fit(X, other)
    with pytest.raises(ContinuationError, match="of the kind that was fitted"):
        clf.partial_fit(X, Y, classes=["money", "sport"])
    single = make(tiny_llama, max_epochs=1, warm_start=True).fit(X, LABELS)
    with pytest.raises(InvalidTextError, match="Got 3 columns of labels"):
        single.fit(X, Y)
    assert clf._model is model


@pytest.mark.usefixtures("every_step")
def test_checkpoint__after_a_fault__ends_as_an_unbroken_fit(
    tiny_llama: str, tmp_path: Path, begins_at: list[int]
) -> None:
    clf = make(tiny_llama, checkpoint_dir=tmp_path)
    broken_off(clf, X, Y, step=9)
    make(tiny_llama, max_epochs=1, checkpoint_dir=tmp_path).fit(X, Y[["topic", "n"]])
    clf.fit(X, Y)
    assert begins_at == [0, 8]
    whole = make(tiny_llama).fit(X, Y)
    np.testing.assert_array_equal(stacked(clf.predict_proba(X)), stacked(whole.predict_proba(X)))


# Searches


def test_searches__several_columns__score_by_all_right_or_a_callable(tiny_llama: str) -> None:
    texts = TEXTS.astype(str)
    clf = make(tiny_llama, max_epochs=1)
    found = GridSearchCV(clf, {"max_epochs": [1, 8]}, cv=2).fit(X, texts)
    assert found.best_params_ == {"max_epochs": 8}
    assert found.score(X, texts) == (found.predict(X) == texts).all(axis=1).mean()
    scores = cross_val_score(clf, X, texts, cv=2, scoring=topics_right)
    assert ((scores >= 0) & (scores <= 1)).all()


# What is refused


@pytest.mark.usefixtures("no_training")
@pytest.mark.parametrize(
    ("y", "message"),
    [
        (Y.assign(n=np.linspace(0, 1, 60)), "Unknown label type: continuous.*column 'n' of y"),
        (Y.assign(n=["a", 1] * 30), "labels in column 'n' of y must be of one type"),
        (Y.assign(n=[np.nan, "a"] * 30), "Input column 'n' of y contains NaN.*row 0 is nan"),
        (Y.assign(n=7), "at least 2 classes in column 'n' of y, .* only one class: 7"),
        (Y.assign(n=[{1}, {2}] * 30), "The labels in column 'n' of y must be str, int or bool"),
        (Y.to_numpy()[:7], r"\[60, 7\]"),
        ([["a", ["b"]]] * 60, r"y must hold one label in each column. Row 0 holds \['b'\]"),
        ([["a", "b"]] * 59 + [["a"]], "one label per text"),
    ],
)
def test_fit__columns_that_are_no_classes__are_refused_by_name(
    y: Any, message: str, tiny_llama: str
) -> None:
    clf = make(tiny_llama)
    with pytest.raises(InvalidTextError, match=message):
        clf.fit(X, y)


@pytest.mark.usefixtures("no_training")
@pytest.mark.parametrize(
    ("class_weight", "message"),
    [
        ({"money": 2.0}, "a list with a dict .* for each column of y.* for 3 columns"),
        ([{}, {}], "for 3 columns"),
        ([{"monay": 2.0}, None, None], "class_weight must name labels of y.*'monay'"),
        ([{"money": -1.0}, None, None], "finite weights >= 0"),
        ([3, None, None], "a dict of weights by class"),
    ],
)
def test_class_weight__that_fits_no_columns__is_refused(
    class_weight: Any, message: str, tiny_llama: str
) -> None:
    with pytest.raises(InvalidTextError, match=message):
        make(tiny_llama, class_weight=class_weight).fit(X, Y)


def test_explain__one_of_the_outputs__adds_up_to_its_own_scores(
    fitted_model: Callable[[str], Fitted],
) -> None:
    clf = fitted_model("several outputs").clf
    predictions, decisions = clf.predict(X[:3]), clf.decision_function(X[:3])
    for output, classes in enumerate(clf.classes_):
        table = clf.explain(X[:3], output=output)
        shown = table.groupby("text")["class"].unique()
        assert [each.tolist() for each in shown] == [[label] for label in predictions[:, output]]
        of_text = table.groupby("text")
        total = of_text["value"].sum() + of_text["baseline"].first()
        places = [classes.tolist().index(label) for label in predictions[:, output]]
        scores = decisions[output]
        if scores.ndim == 1:
            scores = np.stack([-scores, scores], axis=1)
        np.testing.assert_allclose(total, scores[np.arange(3), places], atol=1e-4)
    asked = clf.explain(X[:3], output=0, target="space")
    assert asked["class"].unique().tolist() == ["space"]
    with pytest.raises(InvalidTextError, match="`target`"):
        clf.explain(X[:3], output=1, target="space")


def test_what_has_no_word_for_columns__says_so(
    fitted_model: Callable[[str], Fitted], tmp_path: Path
) -> None:
    clf = fitted_model("several outputs").clf
    for output in (None, 3, -1, "topic", True):
        with pytest.raises(InvalidTextError, match=r"`output` must say which column.*0 to 2"):
            clf.explain(X[:1], output=output)
    with pytest.raises(InvalidTextError, match=r"`output` is for models.*Got 0"):
        fitted_model("default").clf.explain(X[:1], output=0)
    with pytest.raises(InvalidTextError, match="of several outputs show one"):
        ErrorTableDisplay.from_estimator(clf, X, Y)
    last = make(clf.model, pooling="last", attention="causal", max_epochs=1).fit(X, Y)
    with pytest.raises(ModelNotSupportedError, match=r"y must be a single column.*3 columns"):
        last.save_pretrained(tmp_path / "out")
    assert not any(tmp_path.iterdir())
