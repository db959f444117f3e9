"""Fits that were killed go on where their last checkpoint was, and end as if nothing had been."""

import signal
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import skgpt
from skgpt import GPTTextClassifier, LoRA
from skgpt.exceptions import DivergedError
from skgpt.training.callbacks import StepDone, TrainingCallback
from tests.estimators.dying import Dies, broken_off, checkpoints_in, folders_in
from tests.estimators.killed import EXIT_OF_HANDLER, FitProcess, assert_same
from tests.estimators.recorders import Recorder
from tests.estimators.test_classifier import make
from tests.helpers import TextData, needs_sigterm
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

    monkeypatch.setattr(GPTTextClassifier, "_monitors", lambda *_: [Terminating()])
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
    clf._monitors = lambda *_: [Looking()]  # type: ignore[method-assign]
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
        "skgpt.training.checkpoint.write_tensors", lambda *_: pytest.fail("something is written")
    )
    make(tiny_llama).fit(*two_class_data)
    assert list(tmp_path.iterdir()) == []


def test_partial_fit__with_a_folder__writes_nothing(
    tiny_llama: str, two_class_data: TextData, tmp_path: Path
) -> None:
    X, y = two_class_data
    make(tiny_llama, checkpoint_dir=tmp_path / "c").partial_fit(X, y, classes=["money", "sport"])
    assert not (tmp_path / "c").exists()


@pytest.mark.first_tier(early_stopping=[True])
@pytest.mark.first_tier(random_state=[0])
@pytest.mark.parametrize("random_state", [0, None, "instance"])
@pytest.mark.parametrize("early_stopping", [False, True])
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
    note = GPTTextClassifier._monitors
    clf = make(tiny_llama, **options, random_state=a_state())
    np.random.seed(5)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(GPTTextClassifier, "_monitors", lambda *_: [Dies(9)])
        broken_off(clf, X, y)
    assert GPTTextClassifier._monitors is note
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
        clf._monitors = lambda *_: [Meeting()]  # type: ignore[method-assign]
        return clf.fit(X, y)

    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(2) as threads:
        first, second = threads.map(one, range(2))
    assert all(len(names) == 2 and names[1] == f"{names[0]}-2" for names in seen)
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
        patch.setattr(GPTTextClassifier, "_monitors", lambda *_: [Dies(3)])
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
        patch.setattr(GPTTextClassifier, "_monitors", lambda *_: [Dies(3)])
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
        patch.setattr(GPTTextClassifier, "_monitors", lambda *_: [Pressed()])
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
