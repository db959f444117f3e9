"""Folds that advance together, and trials that are pruned on the way."""

import gc
import signal
import threading
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from optuna.pruners import BasePruner
from optuna.trial import TrialState
from sklearn.metrics import get_scorer
from sklearn.model_selection import StratifiedKFold, cross_validate

from skgpt import clear_cache, fitting
from skgpt.exceptions import warn_user
from skgpt.training.callbacks import TrainingCallback
from skgpt.tuning.trial import Evaluator, Room, drop_tracebacks
from tests.estimators.dying import folders_in
from tests.helpers import TextData, make
from tests.tuning.searching import DATA, X, piped, search, y


def evaluation(estimator: Any, data: TextData, scoring: str = "neg_log_loss") -> Evaluator:
    X, y = data
    splits = list(StratifiedKFold(3).split(X, y))
    return Evaluator(estimator, X, y, splits, get_scorer(scoring), {}, {})


def never(epoch: int, score: float) -> bool:
    return False


@pytest.fixture(autouse=True)
def _no_thread_stays() -> Iterator[None]:
    yield
    assert [t.name for t in threading.enumerate() if t.name.startswith("skgpt")] == []


@pytest.mark.parametrize(
    ("make_it", "options"), [(piped, {}), (make, {"early_stopping": True, "n_iter_no_change": 1})]
)
def test_evaluate__folds_together__are_those_one_after_the_other_bit_for_bit(
    tiny_llama: str, make_it: Any, options: dict[str, Any]
) -> None:
    estimator = make_it(tiny_llama, max_epochs=4, **options)
    work = evaluation(estimator, DATA)
    clear_cache()
    expected = cross_validate(estimator, *DATA, cv=work.splits, scoring="neg_log_loss")
    clear_cache()
    outcome = work.evaluate({}, never)
    assert outcome.test_scores == expected["test_score"].tolist()
    assert outcome.state == "COMPLETE" and outcome.value == np.mean(outcome.test_scores)


def test_evaluate__each_epoch__reports_what_a_shorter_fit_would_score(tiny_llama: str) -> None:
    told: list[tuple[int, float]] = []
    options = {"lr_schedule": "constant", "warmup_ratio": 0.0}
    work = evaluation(piped(tiny_llama, max_epochs=3, **options), DATA)
    work.evaluate({}, lambda epoch, score: bool(told.append((epoch, score))))
    assert [epoch for epoch, _ in told] == [1, 2, 3]
    for epoch, score in told:
        short = piped(tiny_llama, max_epochs=epoch, **options)
        found = cross_validate(short, X, y, cv=work.splits, scoring="neg_log_loss")
        assert score == pytest.approx(found["test_score"][:2].mean(), rel=1e-6)


def test_evaluate__one_fold_at_a_time__epoch_by_epoch(tiny_llama: str, at_epochs: Any) -> None:
    seen: list[tuple[int, int]] = []
    running: set[int] = set()

    def begin(epoch: int) -> None:
        assert not running
        running.add(threading.get_ident())
        seen.append((epoch, threading.get_ident()))

    at_epochs(begin, lambda record: running.clear())
    evaluation(make(tiny_llama, max_epochs=3), DATA).evaluate({}, never)
    assert [epoch for epoch, _ in seen] == [1, 1, 2, 2, 3, 3, 1, 2, 3]  # two go ahead
    threads = [thread for _, thread in seen]
    assert threads[:2] == threads[2:4] == threads[4:6] and len(set(threads[:6])) == 2
    assert len(set(threads[6:])) == 1


def test_evaluate__a_fold_warns__points_at_the_call(tiny_llama: str, at_epochs: Any) -> None:
    at_epochs(begin=lambda epoch: warn_user("slow", UserWarning))
    with pytest.warns(UserWarning, match="slow") as caught:
        evaluation(make(tiny_llama, max_epochs=1), DATA).evaluate({}, never)
    assert {warning.filename for warning in caught} == {__file__}


def test_evaluate__a_device_without_room__runs_the_folds_one_after_the_other(
    tiny_llama: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = evaluation(make(tiny_llama, max_epochs=3), DATA)
    clear_cache()
    expected = work.evaluate({}, never)
    monkeypatch.setattr(Room, "is_short_for", lambda self, network: self.n_others == 1)
    clear_cache()
    told: list[int] = []
    outcome = work.evaluate({}, lambda epoch, score: bool(told.append(epoch)))
    assert outcome.test_scores == expected.test_scores
    assert outcome.n_epochs == 3 and told == [3]


def test_evaluate__pruned__stops_all_and_leaves_nothing(tiny_llama: str, tmp_path: Path) -> None:
    clf = make(tiny_llama, max_epochs=50, checkpoint_dir=tmp_path)
    outcome = evaluation(clf, DATA).evaluate({}, lambda epoch, score: epoch == 2)
    assert outcome.state == "PRUNED" and outcome.n_epochs == 2 and np.isnan(outcome.value)
    assert folders_in(tmp_path) == []


def test_evaluate__pruned_by_the_folds_that_go_ahead__begins_no_other(
    tiny_llama: str, fits: Any
) -> None:
    outcome = evaluation(make(tiny_llama, max_epochs=2), DATA).evaluate(
        {}, lambda epoch, _: epoch == 2
    )
    assert outcome.state == "PRUNED" and outcome.n_epochs == 2 and fits.call_count == 2


def test_evaluate__ctrl_c__stops_all_and_keeps_checkpoints(tiny_llama: str, tmp_path: Path) -> None:
    clf = make(tiny_llama, max_epochs=500, random_state=0, checkpoint_dir=tmp_path)

    def interrupt(epoch: int, score: float) -> bool:
        if epoch == 2:
            threading.Timer(0.05, signal.raise_signal, [signal.SIGINT]).start()
        return False

    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        evaluation(clf, DATA).evaluate({}, interrupt)
    assert time.monotonic() - began < 20
    assert len(folders_in(tmp_path)) == 2


def test_evaluate__a_fold_that_fails__ends_the_trial(tiny_llama: str, at_epochs: Any) -> None:
    made = iter(range(100))

    def fail(epoch: int) -> None:
        if next(made) == 3:  # the second fold's second epoch
            raise MemoryError("no room")

    at_epochs(fail)
    outcome = evaluation(make(tiny_llama), DATA).evaluate({}, never)
    assert outcome.state == "FAIL" and isinstance(outcome.error, MemoryError)
    assert outcome.n_epochs == 2 and next(made) == 4


def test_evaluate__times__are_a_folds_own(tiny_llama: str, at_epochs: Any) -> None:
    at_epochs(begin=lambda epoch: time.sleep(0.2))
    began = time.perf_counter()
    outcome = evaluation(make(tiny_llama, max_epochs=2), DATA).evaluate({}, never)
    whole = time.perf_counter() - began
    assert all(seconds >= 0.4 for seconds in outcome.fit_time)
    assert sum(outcome.fit_time) + sum(outcome.score_time) <= whole


@pytest.mark.parametrize("state", ["COMPLETE", "PRUNED", "FAIL"])
def test_evaluate__however_it_ends__no_network_stays(
    tiny_llama: str, monkeypatch: pytest.MonkeyPatch, state: str
) -> None:
    networks: list[weakref.ref[Any]] = []

    class Fails(TrainingCallback):
        def on_epoch(self, record: Any) -> bool:
            assert len(networks) < 2
            return False

    def noting(estimator: Any, data: Any, network: Any) -> list[TrainingCallback]:
        networks.append(weakref.ref(network))
        return [*callbacks(estimator, data, network), *([Fails()] if state == "FAIL" else [])]

    callbacks = fitting.make_callbacks
    monkeypatch.setattr(fitting, "make_callbacks", noting)
    work = evaluation(make(tiny_llama, max_epochs=2), DATA)
    gc.disable()
    try:
        outcome = work.evaluate({}, lambda epoch, score: state == "PRUNED")
        if outcome.error is not None:
            drop_tracebacks(outcome.error)
        n_begun = 3 if state == "COMPLETE" else 2
        assert outcome.state == state and len(networks) == n_begun
        assert [network() for network in networks] == [None] * n_begun
    finally:
        gc.enable()


class _BelowChance(BasePruner):
    def prune(self, study: Any, trial: Any) -> bool:
        return trial.number % 2 == 1


def test_search__trials_that_are_pruned__are_pruned_not_failed(tiny_llama: str) -> None:
    found = search(tiny_llama, pruner=_BelowChance(), n_trials=4).fit(*DATA)
    results = found.cv_results_
    assert results["trial_state"].tolist() == ["COMPLETE", "PRUNED"] * 2
    assert results["n_epochs"].tolist() == [3, 1] * 2
    assert np.isnan(results["mean_test_score"][1::2]).all()
    assert (results["rank_test_score"][1::2] == 3).all()
    assert [t.state for t in found.study_.trials] == [TrialState.COMPLETE, TrialState.PRUNED] * 2
    assert list(found.study_.trials[1].intermediate_values) == [1]
