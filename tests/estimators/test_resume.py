"""Fits that were killed go on from their own checkpoint, and end as if nothing had happened."""

import os
import signal
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import make_scorer, matthews_corrcoef

import skgpt
from skgpt import GPTTextClassifier, LoRA
from skgpt.exceptions import CheckpointError, ContinuationError, DivergedError
from skgpt.run_key import described
from skgpt.training.callbacks import StepDone, TrainingCallback
from tests.estimators.dying import Dies, broken_off, checkpoints_in, folders_in
from tests.estimators.killed import EXIT_OF_HANDLER, FitProcess, assert_same
from tests.estimators.recorders import Recorder
from tests.helpers import TextData, make, needs_sigterm
from tests.training.poison import PoisonedLoss

WHOLE: dict[str, Any] = {"trainable_layers": "all", "batch_size": 10, "max_epochs": 4}


@pytest.mark.parametrize(
    ("n_kills", "options"),
    [
        pytest.param(5, WHOLE, marks=pytest.mark.thorough),
        (2, {**WHOLE, "trainable_layers": 1, "precision": "bf16", "early_stopping": True}),
        pytest.param(
            *(2, {**WHOLE, "trainable_layers": 0, "precision": "fp32"}), marks=pytest.mark.thorough
        ),
    ],
)
def test_fit__killed_at_random_moments__ends_as_an_unbroken_one(
    n_kills: int, options: dict[str, Any], tiny_llama: str, tmp_path: Path
) -> None:
    expected = FitProcess(folder=tiny_llama, **options).result()
    rng = np.random.default_rng(0)
    options = {**options, "checkpoint_dir": str(tmp_path)}
    begun = []
    for _ in range(n_kills):
        process = FitProcess(folder=tiny_llama, **options).steps(int(rng.integers(2, 4)))
        time.sleep(rng.uniform(0.0, 0.03))
        process.kill()
        begun += process.began_at
    process = FitProcess(folder=tiny_llama, **options)
    assert_same(process.result(), expected)
    begun += process.began_at
    assert begun == sorted(begun) and begun[-1] >= n_kills
    assert folders_in(tmp_path) == []


@pytest.mark.thorough
def test_cross_validation__killed__ends_as_an_unbroken_one(tiny_llama: str, tmp_path: Path) -> None:
    options = {"folder": tiny_llama, "folds": 2, **WHOLE}
    expected = FitProcess(**options).result()
    options["checkpoint_dir"] = tmp_path
    for n in (5, 17):  # twelve steps a fold
        process = FitProcess(**options).steps(n)
        process.kill()
        assert len(checkpoints_in(tmp_path)) == 1
    process = FitProcess(**options)
    assert_same(process.result(), expected)
    first, second = process.began_at
    assert first == 0 and second >= 8  # the first fold had ended, and was taken away
    assert folders_in(tmp_path) == []


@needs_sigterm
@pytest.mark.parametrize("handler", [pytest.param(False, marks=pytest.mark.thorough), True])
def test_sigterm__in_a_fit__writes_a_checkpoint_and_is_handed_on(
    handler: bool, tiny_llama: str, tmp_path: Path
) -> None:
    options = {"folder": tiny_llama, "checkpoint_dir": tmp_path, "every": 1e9, **WHOLE}
    process = FitProcess(handler=handler, **options).steps(3)
    expected = EXIT_OF_HANDLER if handler else -signal.SIGTERM
    assert process.signalled(signal.SIGTERM) == expected
    assert len(checkpoints_in(tmp_path)) == 1
    process = FitProcess(**options)
    found = process.result()
    assert 3 <= process.began_at[0] < 6  # no epoch's end: it is SIGTERM that wrote it
    assert_same(found, FitProcess(folder=tiny_llama, **WHOLE).result())


def test_sigterm__a_handler_that_returns__leaves_the_fit_going(
    tiny_llama: str, two_class_data: TextData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Terminating(TrainingCallback):
        def on_step(self, event: StepDone) -> None:
            if event.step in (2, 4):
                signal.raise_signal(signal.SIGTERM)

    seen = []

    def own(number: int, frame: Any) -> None:
        seen.append(len(checkpoints_in(tmp_path)))

    monkeypatch.setattr(GPTTextClassifier, "_training_callbacks", lambda *_: [Terminating()])
    former = signal.signal(signal.SIGTERM, own)
    try:
        clf = make(tiny_llama, checkpoint_dir=tmp_path).fit(*two_class_data)
        assert signal.getsignal(signal.SIGTERM) is own
    finally:
        signal.signal(signal.SIGTERM, former)
    assert seen == [1, 1]
    assert clf.n_iter_ == 6


@pytest.mark.parametrize("given", [True, False])
def test_sigterm__a_fit_in_a_thread_or_without_a_folder__keeps_its_hands_off(
    given: bool, tiny_llama: str, two_class_data: TextData, tmp_path: Path, dies_at: Any
) -> None:
    before = signal.getsignal(signal.SIGTERM)
    during = []

    class Looking(TrainingCallback):
        def on_step(self, event: StepDone) -> None:
            during.append(signal.getsignal(signal.SIGTERM))

    clf = make(tiny_llama, max_epochs=1, checkpoint_dir=tmp_path if given else None)
    clf._training_callbacks = lambda *_: [Looking()]  # type: ignore[method-assign]
    if given:
        thread = threading.Thread(target=clf.fit, args=two_class_data)
        thread.start()
        thread.join()
    else:
        clf.fit(*two_class_data)
    assert set(during) == {before} == {signal.getsignal(signal.SIGTERM)}
    assert clf.n_iter_ == 1


def test_fit__no_folder__writes_nothing(
    tiny_llama: str,
    two_class_data: TextData,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    dies_at: Any,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        "skgpt.training.checkpoint.write_state", lambda *_: pytest.fail("something is written")
    )
    make(tiny_llama).fit(*two_class_data)
    assert list(tmp_path.iterdir()) == []


def test_partial_fit__with_a_folder__writes_nothing(
    tiny_llama: str, two_class_data: TextData, tmp_path: Path
) -> None:
    X, y = two_class_data
    make(tiny_llama, checkpoint_dir=tmp_path / "c").partial_fit(X, y, classes=["money", "sport"])
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize(
    ("random_state", "early_stopping"),
    [(0, True), (None, False), pytest.param("instance", True, marks=pytest.mark.thorough)],
)
def test_fit__after_a_fault__goes_on_with_the_same_rows_in_the_same_order(
    random_state: Any,
    early_stopping: bool,
    tiny_llama: str,
    two_class_data: TextData,
    tmp_path: Path,
    dies_at: Any,
    begins_at: list[int],
) -> None:
    def a_state() -> Any:
        return np.random.RandomState(3) if random_state == "instance" else random_state

    X, y = two_class_data
    options = {"checkpoint_dir": tmp_path, "early_stopping": early_stopping, "batch_size": 6}
    note = GPTTextClassifier._training_callbacks
    clf = make(tiny_llama, **options, random_state=a_state())
    np.random.seed(5)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(GPTTextClassifier, "_training_callbacks", lambda *_: [Dies(9)])
        broken_off(clf, X, y)
    assert GPTTextClassifier._training_callbacks is note
    assert not hasattr(clf, "classes_")
    assert len(checkpoints_in(tmp_path)) == 1
    np.random.seed(6)
    clf.set_params(random_state=a_state()).fit(X, y)
    np.random.seed(5)
    whole = make(tiny_llama, early_stopping=early_stopping, batch_size=6, random_state=a_state())
    whole.fit(X, y)
    assert begins_at == [8, 0]
    assert np.array_equal(clf.predict_proba(X), whole.predict_proba(X))
    assert clf.loss_curve_ == whole.loss_curve_
    assert folders_in(tmp_path) == []


def test_fits__two_of_the_same_at_once__do_not_meet(
    tiny_llama: str, two_class_data: TextData, tmp_path: Path, dies_at: Any
) -> None:
    X, y = two_class_data
    seen: list[list[str]] = []
    barrier = threading.Barrier(2)

    class Meeting(TrainingCallback):
        def on_step(self, event: StepDone) -> None:
            barrier.wait(30)
            seen.append(folders_in(tmp_path))
            barrier.wait(30)

    def one(random_state: int) -> GPTTextClassifier:
        clf = make(tiny_llama, checkpoint_dir=tmp_path, random_state=0, max_epochs=2)
        clf._training_callbacks = lambda *_: [Meeting()]  # type: ignore[method-assign]
        return clf.fit(X, y)

    from concurrent.futures import ThreadPoolExecutor

    with (
        pytest.warns(UserWarning, match="An equal fit is running"),
        ThreadPoolExecutor(2) as threads,
    ):
        first, second = threads.map(one, range(2))
    assert all(len(names) == 1 for names in seen)
    assert np.array_equal(first.predict_proba(X), second.predict_proba(X))
    assert folders_in(tmp_path) == []


def test_warm_start__after_a_fault__goes_on_from_the_same_fitted_model_only(
    tiny_llama: str,
    two_class_data: TextData,
    tmp_path: Path,
    dies_at: Any,
    begins_at: list[int],
) -> None:
    X, y = two_class_data
    options = {"warm_start": True, "checkpoint_dir": tmp_path}
    clf = make(tiny_llama, **options).fit(X, y)
    before = clf.predict_proba(X)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(GPTTextClassifier, "_training_callbacks", lambda *_: [Dies(3)])
        broken_off(clf, X, y)
    assert np.array_equal(clf.predict_proba(X), before)
    make(tiny_llama, **options).fit(X, y)  # from the pretrained model: another fit
    clf.fit(X, y)
    assert begins_at == [0, 0, 2]
    expected = make(tiny_llama, warm_start=True).fit(X, y).fit(X, y)
    assert np.array_equal(clf.predict_proba(X), expected.predict_proba(X))


def test_warm_start__adapters_drawn_for_more_layers__goes_on_without_a_seed_too(
    tiny_llama: str, two_class_data: TextData, tmp_path: Path, dies_at: Any, begins_at: list[int]
) -> None:
    X, y = two_class_data
    options: dict[str, Any] = {"lora": LoRA(rank=2), "random_state": None}
    clf = make(tiny_llama, trainable_layers=1, **options).fit(X, y)
    clf.set_params(trainable_layers=2, warm_start=True, checkpoint_dir=tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(GPTTextClassifier, "_training_callbacks", lambda *_: [Dies(3)])
        broken_off(clf, X, y)
    clf.fit(X, y)
    assert begins_at == [0, 2]


def test_fit__diverged__leaves_no_checkpoint_to_diverge_from(
    tiny_llama: str,
    two_class_data: TextData,
    tmp_path: Path,
    dies_at: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loss = PoisonedLoss(range(8, 99))
    monkeypatch.setattr(GPTTextClassifier, "_loss", lambda self, target: loss)
    with pytest.raises(DivergedError):
        make(tiny_llama, checkpoint_dir=tmp_path).fit(*two_class_data)
    assert folders_in(tmp_path) == []


def test_fit__ctrl_c__is_fitted_and_keeps_the_checkpoint(
    tiny_llama: str,
    two_class_data: TextData,
    tmp_path: Path,
    dies_at: Any,
    begins_at: list[int],
) -> None:
    class Pressed(TrainingCallback):
        def on_step(self, event: StepDone) -> None:
            if event.step == 4:
                raise KeyboardInterrupt

    X, y = two_class_data
    clf = make(tiny_llama, checkpoint_dir=tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(GPTTextClassifier, "_training_callbacks", lambda *_: [Pressed()])
        with (
            pytest.warns(skgpt.exceptions.InterruptedFitWarning),
            pytest.raises(KeyboardInterrupt),
        ):
            clf.fit(X, y)
    assert clf.predict(X).shape == (40,)
    clf.fit(X, y)
    assert begins_at == [3]
    assert np.array_equal(clf.predict_proba(X), make(tiny_llama).fit(X, y).predict_proba(X))


def test_callbacks__of_a_fit_that_goes_on__see_the_epochs_left_and_the_whole_history(
    tiny_llama: str, two_class_data: TextData, tmp_path: Path, dies_at: Any
) -> None:
    pytest.importorskip("sklearn.callback", reason="scikit-learn has them from 1.9 on")
    X, y = two_class_data
    clf = make(tiny_llama, checkpoint_dir=tmp_path, max_epochs=4)  # of five steps
    dies_at(13)
    broken_off(clf, X, y)
    dies_at(None)
    recorder = Recorder()
    clf.set_callbacks(recorder).fit(X, y)
    epochs = recorder.ended[:-1]  # the last one is the fit's
    assert [len(one.history_) for one in epochs] == [3, 4]
    assert epochs[-1].history_ == clf.history_
    assert np.array_equal(epochs[-1].predict_proba(X), clf.predict_proba(X))


def half(estimator: Any, X: Any, y: Any) -> float:
    return 0.5


OTHERS: list[dict[str, Any]] = [
    {"learning_rate": 2e-3},
    {"max_epochs": 7},
    {"random_state": 1},
    {"scoring": "f1_macro"},
    {"scoring": make_scorer(matthews_corrcoef)},
    {"scoring": half},
    {"class_weight": {"money": 2.0}},
    {"precision": "bf16"},
    {"template": "News: {text}"},
]
SAME: list[dict[str, Any]] = [{"verbose": 1}, {"device": "cpu"}, {"batch_size": np.int64(8)}]


def test_fit__another_parameter__has_a_checkpoint_of_its_own(
    tiny_llama: str, two_class_data: TextData, tmp_path: Path, dies_at: Any
) -> None:
    X, y = two_class_data
    dies_at(3)
    for _ in range(2):  # the second time, each goes on with its own
        for other in ({}, *OTHERS):
            options = {"precision": "fp32", **other}
            broken_off(make(tiny_llama, checkpoint_dir=tmp_path, **options), X, y, X_val=X, y_val=y)
    assert len(folders_in(tmp_path)) == 1 + len(OTHERS)


def test_fit__a_parameter_that_changes_nothing__goes_on(
    tiny_llama: str, two_class_data: TextData, tmp_path: Path, dies_at: Any, begins_at: list[int]
) -> None:
    for other in SAME:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(GPTTextClassifier, "_training_callbacks", lambda *_: [Dies(3)])
            broken_off(make(tiny_llama, checkpoint_dir=tmp_path), *two_class_data)
        make(tiny_llama, checkpoint_dir=str(tmp_path), **other).fit(*two_class_data)
    assert begins_at == [2] * len(SAME)


class Rate:
    """Something whose method scores."""

    def __init__(self, rate: float) -> None:
        self.rate = rate

    def score(self, estimator: Any, X: Any, y: Any) -> float:
        return self.rate


def test_described__callables__go_by_name_and_a_method_by_what_it_is_bound_to_too() -> None:
    assert described(half) == f"{__name__}.half" != described(make)
    assert described(Rate(1).score) == described(Rate(1).score) != described(Rate(0).score)
    assert described(matthews_corrcoef) == described(make_scorer(matthews_corrcoef)._score_func)


@pytest.mark.parametrize(
    "nameless",
    [lambda e, X, y: 0.5, partial(lambda rate, e, X, y: rate, 0.5)],
    ids=["lambda", "partial"],
)
def test_described__a_function_without_a_name__is_refused(nameless: Any) -> None:
    with pytest.raises(ContinuationError, match="named functions of a module"):
        described(nameless)


def test_warm_start__other_rows_held_out__has_a_checkpoint_of_its_own(
    tiny_llama: str, two_class_data: TextData, tmp_path: Path, dies_at: Any
) -> None:
    X, y = two_class_data
    make(tiny_llama, pooling="last").fit(X, y).save_pretrained(tmp_path / "out")
    (tmp_path / "out" / "skgpt.json").unlink()  # which says what they were drawn from
    dies_at(3)
    for seed in (0, 1):
        clf = GPTTextClassifier.from_pretrained(tmp_path / "out", random_state=seed)
        clf.set_params(random_state=None, warm_start=True, early_stopping=True, batch_size=8)
        clf.set_params(checkpoint_dir=tmp_path / "root", max_epochs=4)
        broken_off(clf, X, y)
    assert len(folders_in(tmp_path / "root")) == 2


def _copied(root: Path, clf: GPTTextClassifier, X: Any, y: Any, dies_at: Any, **given: Any) -> Any:
    """Have a fit die, and put the one checkpoint that was there in the place of its own."""
    (theirs,) = checkpoints_in(root)
    dies_at(3)
    broken_off(clf, X, y, **given)
    (own,) = [path for path in checkpoints_in(root) if path != theirs]
    own.write_bytes(theirs.read_bytes())
    return own


@pytest.mark.parametrize(
    ("what", "change"),
    [
        ("`learning_rate`", {"options": {"learning_rate": 2e-3}}),
        ("the texts", {"X": ["other"] * 40}),
        ("the labels", {"reverse": True}),
        ("the sample weights", {"given": {"sample_weight": np.arange(1.0, 41.0)}}),
        ("the rows of `X_val`", {"given": {"X_val": ["goal"], "y_val": ["sport"]}}),
    ],
)
def test_checkpoint__copied_from_another_fit__is_refused_by_the_name_of_what_differs(
    what: str,
    change: dict[str, Any],
    tiny_llama: str,
    two_class_data: TextData,
    tmp_path: Path,
    dies_at: Any,
) -> None:
    X, y = two_class_data
    dies_at(3)
    broken_off(make(tiny_llama, checkpoint_dir=tmp_path), X, y)
    X = change.get("X", X)
    y = y[::-1] if change.get("reverse") else y
    given = change.get("given", {})
    clf = make(tiny_llama, checkpoint_dir=tmp_path, **change.get("options", {}))
    own = _copied(tmp_path, clf, X, y, dies_at, **given)
    with pytest.raises(ContinuationError, match=f"{what}.*Delete") as caught:
        clf.fit(X, y, **given)
    assert str(own) in str(caught.value)
    if "options" in change:
        assert "the texts" not in str(caught.value)


def test_checkpoint__damaged__is_refused_and_a_fitted_model_kept(
    tiny_llama: str, two_class_data: TextData, tmp_path: Path, dies_at: Any
) -> None:
    X, y = two_class_data
    dies_at(None)
    clf = make(tiny_llama, checkpoint_dir=tmp_path).fit(X, y)
    before = clf.predict_proba(X)
    dies_at(3)
    broken_off(clf, X, y)
    (file,) = checkpoints_in(tmp_path)
    whole = file.read_bytes()
    for damaged in (whole[:-1], whole[:100], b"", whole[:2000] + b"\x00" + whole[2001:]):
        file.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=r"\.safetensors can't be gone on from.*Delete"):
            clf.fit(X, y)
        assert file.read_bytes() == damaged  # neither gone nor begun anew
    assert np.array_equal(clf.predict_proba(X), before)
    file.write_bytes(whole)
    dies_at(None)
    assert np.array_equal(clf.fit(X, y).predict_proba(X), before)


def test_checkpoint_dir__not_to_be_written_to__is_an_error_before_training(
    tiny_llama: str, two_class_data: TextData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setattr("skgpt.fitting.train", lambda *a, **k: pytest.fail("training began"))
    with pytest.raises(CheckpointError, match="`checkpoint_dir` must be a folder"):
        make(tiny_llama, checkpoint_dir=tmp_path / "file" / "c").fit(*two_class_data)
    with pytest.raises(ValueError, match="checkpoint_dir"):
        make(tiny_llama, checkpoint_dir=3).fit(*two_class_data)


def test_fit__the_disk_fills_up__is_an_error_and_the_last_checkpoint_is_good(
    tiny_llama: str,
    two_class_data: TextData,
    tmp_path: Path,
    dies_at: Any,
    begins_at: list[int],
) -> None:
    X, y = two_class_data
    clf = make(tiny_llama, checkpoint_dir=tmp_path)
    sync, syncs = os.fsync, iter(range(99))

    def full(file: int) -> None:
        if next(syncs) >= 8:  # a file's and its folder's, each time
            raise OSError(28, "No space left on device")
        sync(file)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.fsync", full)
        with pytest.raises(CheckpointError, match="No space left on device"):
            clf.fit(X, y)
    assert not hasattr(clf, "classes_")
    assert [path.name for path in checkpoints_in(tmp_path)] == ["checkpoint.safetensors"]
    assert not list(tmp_path.rglob("*.tmp"))
    clf.fit(X, y)
    assert begins_at == [0, 4]
    assert np.array_equal(clf.predict_proba(X), make(tiny_llama).fit(X, y).predict_proba(X))
