"""Whose a checkpoint is, and what becomes of one that is damaged, foreign or can't be written."""

import os
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import make_scorer, matthews_corrcoef

from skgpt import GPTTextClassifier
from skgpt.exceptions import CheckpointError, ContinuationError
from skgpt.run_key import described
from tests.estimators.dying import Dies, broken_off, checkpoints_in, folders_in
from tests.estimators.test_classifier import make
from tests.helpers import TextData


def half(estimator: Any, X: Any, y: Any) -> float:
    return 0.5


OTHERS: dict[str, dict[str, Any]] = {
    "learning_rate": {"learning_rate": 2e-3},
    "max_epochs": {"max_epochs": 7},
    "random_state": {"random_state": 1},
    "scoring": {"scoring": "f1_macro"},
    "scorer": {"scoring": make_scorer(matthews_corrcoef)},
    "function": {"scoring": half},
    "class_weight": {"class_weight": {"money": 2.0}},
    "precision": {"precision": "bf16"},
    "template": {"template": "News: {text}"},
}
SAME: dict[str, dict[str, Any]] = {
    "verbose": {"verbose": 1},
    "device": {"device": "cpu"},
    "number": {"batch_size": np.int64(8)},
}


@pytest.mark.parametrize("name", OTHERS)
def test_fit__another_parameter__has_a_checkpoint_of_its_own(
    name: str,
    tiny_llama: str,
    two_class_data: TextData,
    tmp_path: Path,
    dies_at: Any,
) -> None:
    X, y = two_class_data
    dies_at(3)
    options: dict[str, Any] = {"checkpoint_dir": tmp_path, "precision": "fp32"}
    broken_off(make(tiny_llama, **options), X, y, X_val=X, y_val=y)
    for _ in range(2):
        other = make(tiny_llama, **{**options, **OTHERS[name]})
        broken_off(other, X, y, X_val=X, y_val=y)
    assert len(folders_in(tmp_path)) == 2


@pytest.mark.parametrize("name", SAME)
def test_fit__a_parameter_that_changes_nothing__goes_on(
    name: str,
    tiny_llama: str,
    two_class_data: TextData,
    tmp_path: Path,
    dies_at: Any,
    begins_at: list[int],
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(GPTTextClassifier, "_monitors", lambda *_: [Dies(3)])
        broken_off(make(tiny_llama, checkpoint_dir=tmp_path), *two_class_data)
    make(tiny_llama, checkpoint_dir=str(tmp_path), **SAME[name]).fit(*two_class_data)
    assert begins_at == [2]


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
