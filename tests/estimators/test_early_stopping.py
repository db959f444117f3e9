"""early_stopping, X_val, scoring and groups, through the estimator."""

import gc
import pickle
import weakref
from typing import Any

import numpy as np
import pytest
import sklearn
from scipy import sparse
from sklearn.base import clone
from sklearn.metrics import log_loss
from sklearn.model_selection import GroupKFold, cross_validate

from skgpt import GPTTextClassifier
from skgpt._sklearn import HAS_CALLBACKS
from skgpt.exceptions import DivergedError, InterruptedFitWarning, MissingScoreWarning
from skgpt.plots import TrainingCurveDisplay
from tests.helpers import TextData, make, make_text_data

X, y = make_text_data(n_classes=2)
WATCHED: dict[str, Any] = {"X": X[:30], "y": y[:30], "X_val": X[30:], "y_val": y[30:]}
FLAT: dict[str, Any] = {"lr_schedule": "constant", "warmup_ratio": 0.0, "precision": "fp32"}


def held_out_rows(clf: GPTTextClassifier, data: TextData, **options: Any) -> np.ndarray:
    """Return the rows that a fit held out: those that a scorer is shown."""
    seen: list[Any] = []

    def scorer(estimator: Any, X: Any, y: Any) -> float:
        seen.append(np.asarray(X))
        return 0.0

    clone(clf).set_params(early_stopping=True, scoring=scorer).fit(data.X, data.y, **options)
    assert all(np.array_equal(rows, seen[0]) for rows in seen)
    return np.flatnonzero(np.isin(data.X, seen[0]))


@pytest.mark.parametrize("scoring", [None, "accuracy", "neg_log_loss"])
def test_early_stopping__rows_held_out__equal_them_as_x_val(scoring: Any, tiny_llama: str) -> None:
    X, y = data = make_text_data(n_classes=3)
    clf = make(tiny_llama, early_stopping=True, scoring=scoring, max_epochs=6, **FLAT)
    held = held_out_rows(clf, data)
    assert len(held) == 6
    assert len(set(y[held])) == 3  # stratified
    rest = np.setdiff1d(np.arange(len(X)), held)
    one = clone(clf).fit(X, y)
    two = clone(clf).fit(X[rest], y[rest], X_val=X[held], y_val=y[held])
    np.testing.assert_allclose(one.predict_proba(X), two.predict_proba(X), rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(one.validation_scores_, two.validation_scores_, rtol=1e-3)
    assert one.best_iter_ == two.best_iter_ == 1 + int(np.argmax(one.validation_scores_))
    assert one.n_iter_ == len(one.history_) == len(one.validation_scores_)


def test_x_val__without_early_stopping__is_scored_and_stops_nothing(tiny_llama: str) -> None:
    clf = make(tiny_llama, max_epochs=4, trainable_layers="all", scoring="accuracy")
    watched = clone(clf).fit(**WATCHED)
    plain = clone(clf).fit(X[:30], y[:30])
    assert np.array_equal(watched.predict_proba(X), plain.predict_proba(X))
    assert watched.n_iter_ == len(watched.validation_scores_) == 4
    assert watched.validation_scores_[-1] == watched.score(X[30:], y[30:])
    assert not hasattr(plain, "validation_scores_")
    assert not hasattr(watched.fit(X, y), "validation_scores_")


@pytest.mark.parametrize("weighted", [False, True])
def test_scoring__by_name__is_what_the_estimator_scores(weighted: bool, tiny_llama: str) -> None:
    weight = np.linspace(0.1, 3, 10) if weighted else None
    clf = make(tiny_llama, max_epochs=3, scoring="neg_log_loss", precision="fp32")
    clf.fit(**WATCHED, sample_weight_val=weight)
    proba = clf.predict_proba(X[30:])
    expected = -log_loss(y[30:], proba, sample_weight=weight, labels=clf.classes_)
    assert clf.validation_scores_[-1] == pytest.approx(expected, rel=1e-4)
    # Without class weights and smoothing, that is the loss it trains on.
    assert clf.history_[-1]["validation_loss"] == pytest.approx(-expected, rel=1e-4)


def test_scoring__a_callable__may_predict_other_texts_too(tiny_llama: str) -> None:
    shapes = []

    def scorer(estimator: Any, X_val: Any, y_val: Any) -> float:
        shapes.append(estimator.predict_proba(X[:7]).shape)
        assert estimator.classes_.tolist() == ["money", "sport"]
        return float(estimator.score(X_val, y_val))

    make(tiny_llama, early_stopping=True, scoring=scorer, max_epochs=2).fit(X, y)
    assert shapes == [(7, 2)] * 3


@pytest.mark.usefixtures("no_training")
def test_scoring__a_scorer_that_fails__is_named_before_training(tiny_llama: str) -> None:
    X, y = make_text_data(n_classes=3)
    clf = make(tiny_llama, early_stopping=True)
    for scoring, reason in [
        ("roc_auc", "multi_class"),
        ("r2", "could not convert"),
        (lambda estimator: 0.0, "positional argument"),
        (lambda *_: "high", "could not convert"),
    ]:
        with pytest.raises(ValueError, match=f"`scoring` must be able to score.*{reason}"):
            clf.set_params(scoring=scoring).fit(X, y)
    with pytest.raises(ValueError, match=r"get_scorer_names\(\).* Got 'acuracy'") as caught:
        clf.set_params(scoring="acuracy").fit(X, y)
    assert "jaccard" not in str(caught.value)
    with pytest.raises(ValueError, match="even where all of them are predicted right"):
        clf.set_params(scoring=lambda *_: float("nan")).fit(X, y)


@pytest.mark.usefixtures("no_training")
def test_scoring__that_needs_a_class_of_one_row__says_what_can_be_done(tiny_llama: str) -> None:
    clf = make(tiny_llama, early_stopping=True, scoring="neg_log_loss")
    with pytest.raises(ValueError, match=r"none of the classes \['space'\].*pass X_val and y_val"):
        clf.fit([*X, "a text"], [*y, "space"])


def test_weight_zero__with_early_stopping__is_never_held_out(tiny_llama: str) -> None:
    weight = (np.arange(40) % 2).astype(float)
    seen: list[Any] = []

    def scorer(estimator: Any, X_val: Any, y_val: Any, sample_weight: Any) -> float:
        seen.append(sample_weight)
        return float(np.isin(X_val, X[1::2]).all())

    clf = make(tiny_llama, early_stopping=True, scoring=scorer, max_epochs=1)
    clf.fit(X, y, sample_weight=weight)
    assert clf.validation_scores_ == [1.0]
    assert (seen[-1] > 0).all()


BAD = [
    ({"X_val": ["a"]}, "`X_val` needs its labels"),
    ({"y_val": ["a"]}, "`y_val` belongs to `X_val`"),
    ({"sample_weight_val": [1.0]}, "`sample_weight_val` belongs to `X_val`"),
    ({"X_val": ["a"], "y_val": ["other"]}, "other"),
    ({"X_val": ["a"], "y_val": ["money", "sport"]}, r"\[1, 2\]"),
    ({"X_val": [["a", "b"]], "y_val": ["money"]}, "columns as at fit"),
    ({"X_val": ["a"], "y_val": ["money"], "sample_weight_val": [0.0]}, "zero"),
    ({"groups": [1, 2]}, r"one label per text. Got shape \(2,\) for 40"),
    ({"X_val": ["a", None], "y_val": ["money"]}, "In `X_val`: .*Row 1 is None"),
    (
        {"X_val": ["a"], "y_val": ["money"], "sample_weight_val": [-1.0]},
        "In `sample_weight_val`: Negative",
    ),
]


@pytest.mark.usefixtures("no_training")
@pytest.mark.parametrize(("options", "message"), BAD)
def test_fit__bad_validation_data__is_refused_before_training(
    options: dict[str, Any], message: str, tiny_llama: str
) -> None:
    with pytest.raises(ValueError, match=message):
        make(tiny_llama, early_stopping=True).fit(X, y, **options)


def test_routing__groups__go_to_the_splitter_alone_unless_asked_for(tiny_llama: str) -> None:
    groups = np.arange(40) % 4
    with sklearn.config_context(enable_metadata_routing=True):
        clf = make(tiny_llama, max_epochs=1, early_stopping=True)
        options: dict[str, Any] = {"cv": GroupKFold(2), "params": {"groups": groups}}
        cross_validate(clf, X, y, error_score="raise", **options)
        assert clf.get_metadata_routing().fit.requests["groups"] is False
        told = clone(clf).set_fit_request(groups=True)
        assert told.get_metadata_routing().fit.requests["groups"] is True
        cross_validate(told, X, y, error_score="raise", **options)


def test_early_stopping__sparse_y__is_like_dense(tiny_llama: str) -> None:
    Y = np.column_stack([np.arange(40) % 2, np.arange(40) % 3 == 0]).astype(int)
    clf = make(tiny_llama, early_stopping=True, scoring="f1_macro", max_epochs=1)
    dense = clone(clf).fit(X, Y)
    for container in (sparse.coo_array, sparse.dok_matrix):  # neither has rows to take
        other = clone(clf).fit(X, container(Y))
        assert np.array_equal(other.predict_proba(X), dense.predict_proba(X))
        assert other.validation_scores_ == dense.validation_scores_


@pytest.mark.parametrize("random_state", [None, np.random.RandomState(0)])
def test_warm_start__random_state_none__holds_out_the_same_rows_again(
    random_state: Any, tiny_llama: str
) -> None:
    seen: list[Any] = []

    def scorer(estimator: Any, X: Any, y: Any) -> float:
        seen.append(set(map(str, X)))
        return 0.0

    clf = make(tiny_llama, warm_start=True, early_stopping=True, scoring=scorer, max_epochs=1)
    clf.set_params(random_state=random_state, validation_fraction=0.3)
    texts = [f"{text} {i}" for i, text in enumerate(X)]
    clf.fit(texts, y)
    first = seen[-1]
    clf = pickle.loads(pickle.dumps(clf.set_params(scoring="accuracy"))).set_params(scoring=scorer)
    clf.fit(texts, y)
    assert seen[-1] == first
    clf.set_params(warm_start=False).fit(texts, y)
    assert seen[-1] != first  # anew, so drawn anew


def test_groups__with_rows_that_weigh_nothing__stay_together(tiny_llama: str) -> None:
    data = TextData(np.array([f"{text} {i}" for i, text in enumerate(X)], dtype=object), y)
    groups = np.array([f"author {i // 4}" for i in range(40)])
    weight = np.ones(40)
    weight[:6] = 0.0  # of what is left, rows and groups stand at other places
    clf = make(tiny_llama, max_epochs=1, validation_fraction=0.3)
    held = held_out_rows(clf, data, groups=groups, sample_weight=weight)
    rest = np.setdiff1d(np.flatnonzero(weight), held)
    assert len(held) and not set(groups[held]) & set(groups[rest])
    assert set(y[rest]) == set(y)


def test_class_weight__nothing_for_all_that_is_held_out__is_refused(tiny_llama: str) -> None:
    clf = make(tiny_llama, class_weight={"money": 1.0, "sport": 0.0})
    with pytest.raises(ValueError, match="held-out rows must weigh something"):
        clf.fit(X, y, X_val=X[y == "sport"], y_val=y[y == "sport"])


def test_scoring__that_takes_no_weights__gets_none(tiny_llama: str) -> None:
    weight = np.linspace(0.1, 3, 10)
    clf = make(tiny_llama, max_epochs=1, scoring="rand_score", precision="fp32")
    clf.fit(**WATCHED, sample_weight_val=weight)
    assert len(clf.validation_scores_) == 1
    clf.set_params(scoring=lambda e, X, y: e.score(X, y))
    clf.fit(**WATCHED, sample_weight_val=weight)
    assert clf.validation_scores_[-1] == clf.score(X[30:], y[30:])


@pytest.mark.parametrize("scoring", [None, "roc_auc"])
def test_early_stopping__weights_that_run_off__are_named(scoring: Any, tiny_llama: str) -> None:
    rates: dict[str, Any] = {"learning_rate": 1e38, "head_learning_rate": 1e38}
    clf = make(tiny_llama, early_stopping=True, scoring=scoring, max_grad_norm=None, **rates)
    with pytest.raises(DivergedError, match="raw scores must stay finite"):
        clf.set_params(batch_size=64, trainable_layers="all", warmup_ratio=0.0).fit(X, y)
    assert not hasattr(clf, "classes_")


def test_scoring__fitted_and_let_go__frees_the_network_at_once(tiny_llama: str) -> None:
    clf = make(tiny_llama, early_stopping=True, scoring="accuracy", max_epochs=1)
    gc.collect()
    gc.disable()
    try:
        networks = []
        for _ in range(3):
            clf = clone(clf).fit(X, y)
            networks.append(weakref.ref(clf._model.network))
        del clf
        assert [network() for network in networks] == [None] * 3
    finally:
        gc.enable()


def test_fit__ctrl_c_while_the_first_epoch_is_scored__leaves_no_half_epoch(tiny_llama: str) -> None:
    asked = iter([0.0])  # before training; then comes Ctrl-C

    def scorer(estimator: Any, X: Any, y: Any) -> float:
        for score in asked:
            return score
        raise KeyboardInterrupt

    clf = make(tiny_llama, early_stopping=True, scoring=scorer)
    with pytest.warns(InterruptedFitWarning), pytest.raises(KeyboardInterrupt):
        clf.fit(X, y)
    assert clf.n_iter_ == 0 and clf.history_ == []
    assert not hasattr(clf, "best_iter_") and not hasattr(clf, "validation_scores_")
    assert clf.predict(X).shape == (40,)


# Scorers and callbacks that fail in the middle.


def scores_in_turn(*scores: Any) -> Any:
    """Return a scorer that gives these, one a call; the first is asked for before training."""
    coming = iter(scores)

    def scorer(estimator: Any, X: Any, y: Any) -> Any:
        score = next(coming)
        if isinstance(score, Exception):
            raise score
        return score

    return scorer


def test_scoring__nan_after_good_epochs__goes_on_and_warns(tiny_llama: str) -> None:
    scorer = scores_in_turn(0.5, 0.5, 0.6, np.nan, 0.8, 0.7)
    clf = make(tiny_llama, early_stopping=True, scoring=scorer, max_epochs=5)
    with pytest.warns(MissingScoreWarning, match=r"after epochs \[3\] of 5"):
        clf.fit(X, y)
    assert (clf.n_iter_, clf.best_iter_) == (5, 4)
    assert np.isnan(clf.history_[2]["validation_score"])
    again = pickle.loads(pickle.dumps(clf.set_params(scoring=None)))
    assert again.best_iter_ == 4 and np.isnan(again.validation_scores_[2])
    TrainingCurveDisplay.from_estimator(again)


def test_scoring__nan_in_every_epoch__fits_all_the_same(tiny_llama: str) -> None:
    scorer = scores_in_turn(0.5, np.nan, np.nan)
    clf = make(tiny_llama, scoring=scorer, max_epochs=2)
    with pytest.warns(MissingScoreWarning, match=r"\[1, 2\] of 2"):
        clf.fit(**WATCHED)
    assert clf.best_iter_ == 0
    TrainingCurveDisplay.from_estimator(clf)


@pytest.mark.parametrize("trainable", [1, "all"])
@pytest.mark.parametrize("error", [ValueError, "not a number", None])
def test_scoring__raises_after_good_epochs__keeps_the_best_of_them(
    error: Any, trainable: Any, tiny_llama: str
) -> None:
    clf = make(tiny_llama, early_stopping=True, max_epochs=6, trainable_layers=trainable, **FLAT)
    error = error("of mine") if error is ValueError else error
    clf.set_params(scoring=scores_in_turn(0.5, 0.5, 0.7, 0.6, error))
    with pytest.raises((ValueError, TypeError)) as caught:
        clf.fit(X, y)
    assert caught.value.__notes__ == [
        "The estimator is fitted with the weights of epoch 2, the best so far."
    ]
    assert (clf.n_iter_, clf.best_iter_) == (3, 2) and clf.validation_scores_ == [0.5, 0.7, 0.6]
    two = clone(clf).set_params(max_epochs=2, scoring=scores_in_turn(0.5, 0.5, 0.7)).fit(X, y)
    assert np.array_equal(clf.predict_proba(X), two.predict_proba(X))


def test_scoring__raises_without_early_stopping__keeps_the_last_step(tiny_llama: str) -> None:
    clf = make(tiny_llama, max_epochs=3, scoring=scores_in_turn(0.5, 0.7, KeyError("a")), **FLAT)
    with pytest.raises(KeyError) as caught:
        clf.fit(**WATCHED)
    assert caught.value.__notes__ == ["The estimator is fitted with the weights of the last step."]
    assert len(clf.history_) == 1
    two = clone(clf).set_params(max_epochs=2, scoring=None).fit(**WATCHED)
    assert np.array_equal(clf.predict_proba(X), two.predict_proba(X))


@pytest.mark.skipif(not HAS_CALLBACKS, reason="scikit-learn's callbacks came with 1.9")
@pytest.mark.parametrize("when", ["begin", "end"])
def test_callback__raises_after_good_epochs__keeps_them(when: str, tiny_llama: str) -> None:
    class Failing:
        n_epochs = 0

        def setup(self, estimator: Any, context: Any) -> None: ...

        teardown = setup

        def on_fit_task_begin(self, estimator: Any, context: Any) -> None:
            self.n_epochs += context.task_name == "epoch"
            if self.n_epochs == 3 and when == "begin":
                raise RuntimeError("of a callback")

        def on_fit_task_end(self, estimator: Any, context: Any) -> None:
            if self.n_epochs == 3 and when == "end":
                raise RuntimeError("of a callback")

    clf = make(tiny_llama, early_stopping=True, max_epochs=6).set_callbacks(Failing())
    with pytest.raises(RuntimeError, match="of a callback") as caught:
        clf.fit(X, y)
    assert f"the weights of epoch {clf.best_iter_}, the best" in caught.value.__notes__[0]
    assert clf.n_iter_ == (2 if when == "begin" else 3)


def test_scoring__raises_in_a_refit__replaces_the_fit_before(tiny_llama: str) -> None:
    clf = make(tiny_llama, max_epochs=1).fit(X, y)
    clf.set_params(scoring=scores_in_turn(0.5, 0.7, 0.8, ValueError("of mine")), max_epochs=3)
    with pytest.raises(ValueError, match="of mine"):
        clf.fit(**WATCHED)
    assert clf.validation_scores_ == [0.7, 0.8]
