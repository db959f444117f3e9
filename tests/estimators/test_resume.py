"""Fits that were killed go on from their own checkpoint, and end as if nothing had happened."""

import signal
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from sklearn.metrics import make_scorer, matthews_corrcoef

from skgpt import GPTTextClassifier, LoRA
from skgpt.exceptions import CheckpointError, ContinuationError, InterruptedFitWarning
from skgpt.run_key import described
from tests.estimators.dying import broken_off, checkpoints_in, folders_in, interrupted, watched
from tests.estimators.killed import EXIT_OF_HANDLER, FitProcess
from tests.estimators.recorders import Recorder
from tests.helpers import make, make_text_data, needs_sigterm

pytestmark = pytest.mark.usefixtures("every_step")

X, Y = make_text_data(n_classes=2)
WHOLE: dict[str, Any] = {"trainable_layers": "all", "batch_size": 10, "max_epochs": 4}


@pytest.mark.parametrize("n_kills", [2, pytest.param(5, marks=pytest.mark.thorough)])
def test_fit__killed_at_random_moments__ends_as_an_unbroken_one(
    n_kills: int, tiny_llama: str, tmp_path: Path
) -> None:
    options = {**WHOLE, "trainable_layers": 1, "precision": "bf16", "early_stopping": True}
    expected = FitProcess(folder=tiny_llama, **options).result()
    rng = np.random.default_rng(0)
    options = {**options, "checkpoint_dir": str(tmp_path)}
    begun = []
    for _ in range(n_kills):
        process = FitProcess(folder=tiny_llama, **options).steps(int(rng.integers(2, 4)))
        time.sleep(rng.uniform(0.0, 0.03))
        process.ended(process.process.kill)
        begun += process.began_at
    process = FitProcess(folder=tiny_llama, **options)
    assert process.result() == expected
    begun += process.began_at
    assert begun == sorted(begun) and begun[-1] >= n_kills
    assert folders_in(tmp_path) == []


@needs_sigterm
@pytest.mark.parametrize("handler", [pytest.param(False, marks=pytest.mark.thorough), True])
def test_sigterm__in_a_fit__writes_a_checkpoint_and_is_handed_on(
    handler: bool, tiny_llama: str, tmp_path: Path
) -> None:
    options = {"folder": tiny_llama, "checkpoint_dir": tmp_path, "every": 1e9, **WHOLE}
    process = FitProcess(handler=handler, **options).steps(3)
    expected = EXIT_OF_HANDLER if handler else -signal.SIGTERM
    assert process.ended(process.process.terminate) == expected
    assert len(checkpoints_in(tmp_path)) == 1
    process = FitProcess(**options)
    found = process.result()
    assert 3 <= process.began_at[0] < 6  # no epoch's end: it is SIGTERM that wrote it
    assert found == FitProcess(folder=tiny_llama, **WHOLE).result()


def test_sigterm__a_handler_that_returns__leaves_the_fit_going(
    tiny_llama: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("skgpt.training.checkpoint._EVERY_SECONDS", 1e9)
    seen = []

    def own(number: int, frame: Any) -> None:
        seen.append(len(checkpoints_in(tmp_path)))

    clf = make(tiny_llama, checkpoint_dir=tmp_path)
    former = signal.signal(signal.SIGTERM, own)
    try:
        with watched(clf, lambda: signal.raise_signal(signal.SIGTERM), 2, 4):
            clf.fit(X, Y)
        assert signal.getsignal(signal.SIGTERM) is own
    finally:
        signal.signal(signal.SIGTERM, former)
    assert seen == [1, 1]
    assert clf.n_iter_ == 6


@pytest.mark.parametrize("given", [True, False])
def test_sigterm__a_fit_in_a_thread_or_without_a_folder__keeps_its_hands_off(
    given: bool, tiny_llama: str, tmp_path: Path
) -> None:
    before = signal.getsignal(signal.SIGTERM)
    during = []
    clf = make(tiny_llama, max_epochs=1, checkpoint_dir=tmp_path if given else None)
    with watched(clf, lambda: during.append(signal.getsignal(signal.SIGTERM))):
        if given:
            thread = threading.Thread(target=clf.fit, args=(X, Y))
            thread.start()
            thread.join()
        else:
            clf.fit(X, Y)
    assert set(during) == {before} == {signal.getsignal(signal.SIGTERM)}
    assert clf.n_iter_ == 1


def test_fit__no_folder_or_in_parts__writes_nothing(
    tiny_llama: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        "skgpt.training.checkpoint.write_state", lambda *_: pytest.fail("something is written")
    )
    make(tiny_llama).fit(X, Y)
    make(tiny_llama, checkpoint_dir=tmp_path / "c").partial_fit(X, Y, classes=["money", "sport"])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("random_state", "early_stopping"), [(0, True), (None, False)])
def test_fit__after_a_fault__goes_on_with_the_same_rows_in_the_same_order(
    random_state: Any, early_stopping: bool, tiny_llama: str, tmp_path: Path, begins_at: list[int]
) -> None:
    options = {"early_stopping": early_stopping, "batch_size": 6, "random_state": random_state}
    clf = make(tiny_llama, **options, checkpoint_dir=tmp_path)
    np.random.seed(5)
    broken_off(clf, X, Y, step=9)
    assert not hasattr(clf, "classes_")
    assert len(checkpoints_in(tmp_path)) == 1
    np.random.seed(6)
    clf.fit(X, Y)
    np.random.seed(5)
    whole = make(tiny_llama, **options).fit(X, Y)
    assert begins_at == [8, 0]
    assert np.array_equal(clf.predict_proba(X), whole.predict_proba(X))
    assert clf.loss_curve_ == whole.loss_curve_
    assert folders_in(tmp_path) == []


def test_warm_start__after_a_fault__goes_on_from_the_same_fitted_model_only(
    tiny_llama: str, tmp_path: Path, begins_at: list[int]
) -> None:
    options = {"warm_start": True, "checkpoint_dir": tmp_path}
    clf = make(tiny_llama, **options).fit(X, Y)
    before = clf.predict_proba(X)
    broken_off(clf, X, Y)
    assert np.array_equal(clf.predict_proba(X), before)
    make(tiny_llama, **options).fit(X, Y)  # from the pretrained model: another fit
    clf.fit(X, Y)
    assert begins_at == [0, 0, 2]
    expected = make(tiny_llama, warm_start=True).fit(X, Y).fit(X, Y)
    assert np.array_equal(clf.predict_proba(X), expected.predict_proba(X))


def test_warm_start__adapters_drawn_for_more_layers__goes_on_without_a_seed_too(
    tiny_llama: str, tmp_path: Path, begins_at: list[int]
) -> None:
    clf = make(tiny_llama, trainable_layers=1, lora=LoRA(rank=2), random_state=None).fit(X, Y)
    clf.set_params(trainable_layers=2, warm_start=True, checkpoint_dir=tmp_path)
    broken_off(clf, X, Y)
    clf.fit(X, Y)
    assert begins_at == [0, 2]


def test_fit__ctrl_c__is_fitted_and_keeps_the_checkpoint(
    tiny_llama: str, tmp_path: Path, begins_at: list[int]
) -> None:
    clf = make(tiny_llama, checkpoint_dir=tmp_path)
    with interrupted(clf, 4), pytest.warns(InterruptedFitWarning):
        clf.fit(X, Y)
    assert clf.predict(X).shape == (40,)
    clf.fit(X, Y)
    assert begins_at == [3]
    assert np.array_equal(clf.predict_proba(X), make(tiny_llama).fit(X, Y).predict_proba(X))


def test_callbacks__of_a_fit_that_goes_on__see_the_epochs_left_and_the_whole_history(
    tiny_llama: str, tmp_path: Path
) -> None:
    pytest.importorskip("sklearn.callback", reason="scikit-learn has them from 1.9 on")
    clf = make(tiny_llama, checkpoint_dir=tmp_path, max_epochs=4)  # of five steps
    broken_off(clf, X, Y, step=13)
    recorder = Recorder()
    clf.set_callbacks(recorder).fit(X, Y)
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
    {"long_text": "windows"},
]
SAME: list[dict[str, Any]] = [{"verbose": 1}, {"device": "cpu"}, {"batch_size": np.int64(8)}]


def test_fit__another_parameter__has_its_own_checkpoint(tiny_llama: str, tmp_path: Path) -> None:
    for _ in range(2):  # the second time, each goes on with its own
        for other in ({}, *OTHERS):
            options = {"precision": "fp32", **other}
            broken_off(make(tiny_llama, checkpoint_dir=tmp_path, **options), X, Y, X_val=X, y_val=Y)
    assert len(folders_in(tmp_path)) == 1 + len(OTHERS)


def test_fit__a_parameter_that_changes_nothing__goes_on(
    tiny_llama: str, tmp_path: Path, begins_at: list[int]
) -> None:
    for other in SAME:
        broken_off(make(tiny_llama, checkpoint_dir=tmp_path), X, Y)
        make(tiny_llama, checkpoint_dir=str(tmp_path), **other).fit(X, Y)
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


def test_warm_start__other_rows__has_its_own_checkpoint(tiny_llama: str, tmp_path: Path) -> None:
    make(tiny_llama, pooling="last").fit(X, Y).save_pretrained(tmp_path / "out")
    (tmp_path / "out" / "skgpt.json").unlink()  # which says what they were drawn from
    for seed in (0, 1):
        clf = GPTTextClassifier.from_pretrained(tmp_path / "out", random_state=seed)
        clf.set_params(random_state=None, warm_start=True, early_stopping=True, batch_size=8)
        clf.set_params(checkpoint_dir=tmp_path / "root", max_epochs=4)
        broken_off(clf, X, Y)
    assert len(folders_in(tmp_path / "root")) == 2


@pytest.mark.parametrize(
    ("what", "options", "rows", "given"),
    [
        ("`learning_rate`", {"learning_rate": 2e-3}, (X, Y), {}),
        ("the texts", {}, (["other"] * 40, Y), {}),
        ("the labels", {}, (X, Y[::-1]), {}),
        ("the sample weights", {}, (X, Y), {"sample_weight": np.arange(1.0, 41.0)}),
        ("the rows of `X_val`", {}, (X, Y), {"X_val": ["goal"], "y_val": ["sport"]}),
    ],
    ids=["parameter", "texts", "labels", "weights", "validation"],
)
def test_checkpoint__copied_from_another_fit__is_refused_by_the_name_of_what_differs(
    what: str,
    options: dict[str, Any],
    rows: tuple[Any, Any],
    given: dict[str, Any],
    tiny_llama: str,
    tmp_path: Path,
) -> None:
    broken_off(make(tiny_llama, checkpoint_dir=tmp_path), X, Y)
    (theirs,) = checkpoints_in(tmp_path)
    clf = make(tiny_llama, checkpoint_dir=tmp_path, **options)
    broken_off(clf, *rows, **given)
    (own,) = {*checkpoints_in(tmp_path)} - {theirs}
    own.write_bytes(theirs.read_bytes())
    with pytest.raises(ContinuationError, match=f"{what}.*Delete") as caught:
        clf.fit(*rows, **given)
    assert str(own) in str(caught.value)
    assert not options or "the texts" not in str(caught.value)


def test_checkpoint__damaged__is_refused_and_nothing_lost(tiny_llama: str, tmp_path: Path) -> None:
    clf = make(tiny_llama, checkpoint_dir=tmp_path).fit(X, Y)
    before = clf.predict_proba(X)
    broken_off(clf, X, Y)
    (file,) = checkpoints_in(tmp_path)
    whole = file.read_bytes()
    for damaged in (whole[:-1], whole[:100], b"", whole[:2000] + b"\x00" + whole[2001:]):
        file.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=r"\.safetensors can't be gone on from.*Delete"):
            clf.fit(X, Y)
        assert file.read_bytes() == damaged  # neither gone nor begun anew
    assert np.array_equal(clf.predict_proba(X), before)
    file.write_bytes(whole)
    assert np.array_equal(clf.fit(X, Y).predict_proba(X), before)


@pytest.mark.usefixtures("no_training")
def test_checkpoint_dir__not_to_be_written_to__is_refused(tiny_llama: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(CheckpointError, match="`checkpoint_dir` must be a folder"):
        make(tiny_llama, checkpoint_dir=tmp_path / "file" / "c").fit(X, Y)
    with pytest.raises(ValueError, match="checkpoint_dir"):
        make(tiny_llama, checkpoint_dir=3).fit(X, Y)


def test_fit__the_disk_fills_up__is_an_error_and_the_last_checkpoint_is_good(
    tiny_llama: str, tmp_path: Path, begins_at: list[int]
) -> None:
    clf = make(tiny_llama, checkpoint_dir=tmp_path)
    # A file's and its folder's, each time.
    syncs = [*[None] * 8, OSError(28, "No space left on device")]
    with (
        patch("os.fsync", side_effect=syncs),
        pytest.raises(CheckpointError, match="No space left on device"),
    ):
        clf.fit(X, Y)
    clf.fit(X, Y)
    assert begins_at == [0, 4]
    assert np.array_equal(clf.predict_proba(X), make(tiny_llama).fit(X, Y).predict_proba(X))
