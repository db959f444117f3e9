"""scikit-learn's callbacks on GPTTextClassifier: what they are told, given, and may stop."""

import copy
import pickle
import re
import warnings
from functools import partial
from typing import Any

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.pipeline import Pipeline, make_pipeline

from skgpt import GPTTextClassifier, fitting
from skgpt.exceptions import InterruptedFitWarning
from skgpt.network.network import TextNetwork
from tests import helpers
from tests.estimators.recorders import Copier, Listener, Recorder
from tests.helpers import make_text_data

X, y = make_text_data(n_classes=2)
# So that a fit of k epochs is the first k epochs of a longer one.
make = partial(helpers.make, max_epochs=3, lr_schedule="constant", warmup_ratio=0.0)
callback = pytest.importorskip("sklearn.callback", reason="scikit-learn has them from 1.9 on")
OF_A_FIT = {"_callback_fit_ctx", "_skl_callbacks_to_teardown", "_parent_callback_ctx"}


def test_callbacks__a_fit_of_two_epochs__are_told_of_each_task(tiny_llama: str) -> None:
    listener = Listener()
    assert isinstance(listener, callback.FitCallback)
    clf = make(tiny_llama, max_epochs=2)
    assert clf.set_callbacks(listener) is clf
    clf.fit(X, y)
    assert listener.told == [
        ("setup", "fit", 0),
        ("begin", "fit", 0),
        ("begin", "epoch", 0),
        ("end", "epoch", 0),
        ("begin", "epoch", 1),
        ("end", "epoch", 1),
        ("end", "fit", 0),
        ("teardown", "fit", 0),
    ]
    assert listener.tasks["fit"].max_subtasks == 2
    assert listener.tasks["epoch"].max_subtasks == 0
    assert listener.tasks["epoch"].parent is listener.tasks["fit"]
    assert not OF_A_FIT & set(vars(clf))


def test_fit__with_and_without_callbacks__is_the_same_bit_for_bit(tiny_llama: str) -> None:
    plain = make(tiny_llama).fit(X, y)

    def predict(estimator: Any, fitted: Any) -> None:
        fitted.predict(X)

    watched = make(tiny_llama).set_callbacks(Recorder(predict), Listener()).fit(X, y)
    assert np.array_equal(plain.predict_proba(X), watched.predict_proba(X))
    assert plain.loss_curve_ == watched.loss_curve_


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_fitted_estimator__kept__is_of_its_epoch_for_good(tiny_llama: str, precision: str) -> None:
    then: list[Any] = []
    recorder = Recorder(lambda estimator, fitted: then.append(fitted.predict_proba(X)))
    clf = make(tiny_llama, precision=precision).set_callbacks(recorder).fit(X, y)
    *epochs, whole = recorder.ended
    assert len(epochs) == 3
    for i, fitted in enumerate(epochs):
        assert type(fitted) is GPTTextClassifier and fitted is not clf
        assert np.array_equal(fitted.predict_proba(X), then[i])
        assert fitted.n_iter_ == i + 1
        assert fitted.history_ == clf.history_[: i + 1]
        assert not OF_A_FIT & set(vars(fitted))
        alone = make(tiny_llama, precision=precision, max_epochs=i + 1).fit(X, y)
        assert np.array_equal(alone.predict_proba(X), then[i])
    assert not np.array_equal(then[0], then[1])
    assert not np.array_equal(then[1], then[2])
    assert np.array_equal(whole.predict_proba(X), clf.predict_proba(X))
    assert whole is not clf


def test_fitted_estimator__as_an_epoch_begins__is_that_of_the_one_before(tiny_llama: str) -> None:
    recorder = Recorder()
    make(tiny_llama, max_epochs=2).set_callbacks(recorder).fit(X, y)
    of_fit, first, second = recorder.begun
    assert of_fit is None
    assert (first.predict_proba(X) == 0.5).all() and first.n_iter_ == 0
    assert np.array_equal(second.predict_proba(X), recorder.ended[0].predict_proba(X))


def test_what_callbacks_may_ask_for__nobody_asks__is_never_made(
    tiny_llama: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = []
    take_over = TextNetwork.take_over

    def counting(self: TextNetwork, *args: Any) -> None:
        taken.append(self)
        take_over(self, *args)

    def never(*args: Any) -> None:
        raise AssertionError("nobody asked for X or y")

    monkeypatch.setattr(TextNetwork, "take_over", counting)
    with monkeypatch.context() as patch:
        patch.setattr(fitting, "rows_of", never)
        make(tiny_llama, early_stopping=True).set_callbacks(Listener()).fit(X, y)
    assert taken == []
    make(tiny_llama).set_callbacks(Recorder(), Recorder()).fit(X, y)
    assert len(taken) == 6  # at the two ends of each epoch, once for both


def test_callbacks__rows_held_out_or_given__are_given_the_rows_that_train(tiny_llama: str) -> None:
    weight = np.linspace(1, 2, len(X))
    recorder = Recorder()
    clf = make(tiny_llama, early_stopping=True, validation_fraction=0.25)
    clf.set_callbacks(recorder).fit(X.tolist(), y, sample_weight=weight)
    X_seen, y_seen, metadata = recorder.given[0]
    rows = np.flatnonzero(np.isin(weight, metadata["sample_weight"]))
    assert len(rows) == 30 and set(metadata) == {"sample_weight"}
    assert X_seen == X[rows].tolist()
    assert np.array_equal(y_seen, y[rows])
    *epochs, whole = recorder.ended
    for i, fitted in enumerate(epochs):
        assert fitted.validation_scores_ == clf.validation_scores_[: i + 1]
        assert fitted.best_iter_ == 1 + np.argmax(fitted.validation_scores_)
    assert np.array_equal(whole.predict_proba(X), clf.predict_proba(X))
    clf.set_callbacks(recorder := Recorder()).fit(X[:30], y[:30], X_val=X[30:], y_val=y[30:])
    given = [(len(rows), len(labels), metadata) for rows, labels, metadata in recorder.given]
    assert given == [(30, 30, None)] * 4


def test_partial_fit__each_call__is_a_fit_of_one_epoch_that_goes_on(tiny_llama: str) -> None:
    recorder = Recorder()
    clf = make(tiny_llama).set_callbacks(recorder)
    for _ in range(2):
        clf.partial_fit(X, y, classes=np.unique(y))
    assert [fitted.n_iter_ for fitted in recorder.ended] == [1, 1, 2, 2]
    assert np.array_equal(recorder.ended[2].predict_proba(X), clf.predict_proba(X))
    assert not OF_A_FIT & set(vars(clf))


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_fit__fails__tears_callbacks_down(tiny_llama: str, error: type[BaseException]) -> None:

    def fail(estimator: Any, fitted: Any) -> None:
        raise error("in a callback")

    listener = Listener()
    clf = make(tiny_llama).set_callbacks(listener, Recorder(fail))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", InterruptedFitWarning)
        with pytest.raises(error, match="in a callback"):
            clf.fit(X, y)
    assert listener.told[-2:] == [("end", "epoch", 0), ("teardown", "fit", 0)]
    assert not OF_A_FIT & set(vars(clf))


def test_copies__in_a_fit_and_after__keep_the_callbacks_and_no_task(tiny_llama: str) -> None:
    copier = Copier()
    clf = make(tiny_llama, max_epochs=1).set_callbacks(copier)
    assert clone(clf)._skl_callbacks == [copier]
    make_pipeline(clf).fit(X, y)
    after = [copy.copy(clf), copy.deepcopy(clf), pickle.loads(pickle.dumps(clf))]
    assert len(copier.copies) == 12
    for other in copier.copies + after:
        assert isinstance(other._skl_callbacks[0], Copier)
        assert not OF_A_FIT & set(vars(other))
    for other in after + copier.copies[3:]:  # the first three are of the unfitted estimator
        assert np.array_equal(other.predict_proba(X), clf.predict_proba(X))
    assert after[2].fit(X, y)._skl_callbacks[0].copies


@pytest.mark.parametrize("how", ["whole", "by_callback", "by_early_stopping"])
def test_progress_bar__however_the_fit_ends__finishes(
    how: str, tiny_llama: str, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("rich", reason="scikit-learn's ProgressBar needs it")
    early = how == "by_early_stopping"
    clf = make(tiny_llama, max_epochs=5, early_stopping=early, tol=10.0, verbose=1)
    stop_after = 3 if how == "by_callback" else None
    clf.set_callbacks(callback.ProgressBar(), Listener(stop_after)).fit(X, y)
    assert clf.n_iter_ == (5 if how == "whole" else 3)
    shown = capsys.readouterr()
    assert "GPTTextClassifier - fit" in shown.out and "100%" in shown.out
    assert not re.search(r"\b\d{1,2}%", shown.out)
    assert f"epoch {clf.n_iter_}/5" in shown.err  # verbose=1 has a bar of its own


def test_callbacks__in_a_pipeline__report_the_epochs(
    tiny_llama: str, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("rich", reason="scikit-learn's ProgressBar needs it")
    monitor = callback.ScoringMonitor(scoring="accuracy")
    clf = make(tiny_llama).set_callbacks(monitor)
    pipeline = Pipeline([("nothing", "passthrough"), ("clf", clf)])
    pipeline.set_callbacks(callback.ProgressBar()).fit(X, y)
    shown = capsys.readouterr().out
    assert re.search(r"fit-final-estimator \| GPTTextClassifier - fit #1\b.*100%", shown)
    paths = [row["task_id_path"] for row in monitor.get_logs().data]
    assert paths == [(0, 1), *((0, 1, epoch) for epoch in range(3))]
    assert clf._skl_callbacks == [monitor]
    assert not OF_A_FIT & set(vars(clf))
