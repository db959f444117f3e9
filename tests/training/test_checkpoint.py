"""Checkpoints: a run that broke off ends as an unbroken one; each fit has a folder of its own."""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch

from skgpt.exceptions import CheckpointError, ContinuationError, DivergedError
from skgpt.network.lora import AdapterSpec
from skgpt.network.network import TextNetwork
from skgpt.tensor_files import State
from skgpt.training.callbacks import EpochRecord, TrainingCallback
from skgpt.training.checkpoint import Checkpoint, claimed_checkpoint
from skgpt.training.early_stopping import StoppingRule, Validation
from skgpt.training.run import FitResult
from tests.estimators.dying import AfterSteps, raising
from tests.training.poison import PoisonedLoss
from tests.training.test_loop import run
from tests.training.test_skips import HELD_OUT, SIX_STEPS, assert_same, assert_same_moments, looks

__all__ = ["looks"]

LORA = AdapterSpec(rank=2, alpha=4.0, dropout=0.2, target_modules="all-linear")
STEPS = {**SIX_STEPS, "split": HELD_OUT}  # five of them an epoch


def without_times(history: list[EpochRecord]) -> list[dict[str, Any]]:
    return [{k: v for k, v in record.items() if "second" not in k} for record in history]


KINDS: list[dict[str, Any]] = [
    {"dtype": torch.float32, "trainable": "all"},
    {"dtype": torch.bfloat16, "trainable": "all"},
    {"dtype": torch.bfloat16, "trainable": 1},
    {"dtype": torch.float16, "trainable": 0},
    {"dtype": torch.bfloat16, "trainable": "all", "lora": LORA},
    {"dtype": torch.float32, "trainable": 1, "head_first_epochs": 2},
    {"dtype": torch.bfloat16, "trainable": 1, "head_first_epochs": 2, "lora": LORA},
]


def breaks() -> Iterator[Any]:
    """Yield each kind with each step to die at; once per kind in the first tier."""
    steps = [(die_at, every) for die_at in (2, 5, 6, 9, 20) for every in (True, False)]
    for i, kind in enumerate(KINDS):
        for k, step in enumerate(steps):
            marks = [] if k == 3 * i % len(steps) else [pytest.mark.thorough]
            yield pytest.param(kind, *step, marks=marks)


@pytest.mark.parametrize(("kind", "die_at", "every_step"), [*breaks()])
def test_run__broken_off__ends_as_an_unbroken_one(
    kind: dict[str, Any],
    die_at: int,
    every_step: bool,
    looks: str,
    tiny_llama: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        "skgpt.training.checkpoint._EVERY_SECONDS", 0.0 if every_step else float("inf")
    )
    skipped = {2, 5, 6, 7}

    def go(done: int, **options: Any) -> tuple[TextNetwork, FitResult]:
        validation = Validation(rule=StoppingRule(9, 0.0))
        loss = PoisonedLoss({step - done for step in skipped})
        return run(tiny_llama, validation=validation, loss=loss, **STEPS, **kind, **options)

    network, expected = go(0)
    file = tmp_path / "c"
    with pytest.raises(MemoryError):
        go(
            0,
            checkpoint=Checkpoint(file, {}, 0),
            callbacks=(AfterSteps(raising(MemoryError), die_at),),
        )
    assert file.exists() == (die_at > 5 or every_step)
    found = Checkpoint(file, {}, 0)
    done = die_at - 1 if every_step else (die_at - 1) // 5 * 5
    noting, begun = Mock(spec=TrainingCallback, on_epoch=Mock(return_value=False)), []
    noting.on_train_begin = lambda config, n_steps, history: begun.append((n_steps, [*history]))
    again, result = go(done, checkpoint=found, callbacks=(noting,))
    assert [n_steps for n_steps, _ in begun] == [done]
    assert without_times(begun[0][1]) == without_times(expected.history[: done // 5])
    steps = [told.args[0].step for told in noting.on_step.mock_calls]
    assert steps == list(range(done + 1, 21))
    epochs = [told.args[0]["epoch"] for told in noting.on_epoch.mock_calls]
    assert epochs == list(range(done // 5 + 1, 5))
    assert_same(again, network)
    assert_same_moments(result, expected)
    assert without_times(result.history) == without_times(expected.history)
    assert result.validation_scores == expected.validation_scores
    assert result.best_iteration == expected.best_iteration
    assert result.n_skipped == expected.n_skipped == 4


def test_run__broken_off__counts_skipped_steps_on(
    tiny_llama: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("skgpt.training.checkpoint._EVERY_SECONDS", 0.0)
    file = tmp_path / "c"
    loss = PoisonedLoss({3, 4, 5})
    options: dict[str, Any] = {"callbacks": (AfterSteps(raising(MemoryError), 6),), **SIX_STEPS}
    with pytest.raises(MemoryError):
        run(tiny_llama, checkpoint=Checkpoint(file, {}, 0), loss=loss, **options)
    loss = PoisonedLoss({1, 2})
    with pytest.raises(DivergedError, match="5 steps in a row"):
        run(tiny_llama, checkpoint=Checkpoint(file, {}, 0), loss=loss, **SIX_STEPS)


STATE = State({"a": torch.arange(3.0)}, {"step": 3})


def leave_one(root: Path, seed: int = 0, **belongs_to: Any) -> Path:
    with suppress(ZeroDivisionError), claimed_checkpoint(root, belongs_to, seed) as checkpoint:
        checkpoint.write(STATE)
        raise ZeroDivisionError
    return checkpoint.file


def folders_in(root: Path) -> list[Path]:
    return sorted(path for path in root.iterdir() if path.is_dir())


def test_claimed_checkpoint__left_by_a_fault__is_found_with_its_seed_and_gone_in_the_end(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "skgpt")
    root = tmp_path / "new" / "root"
    file = leave_one(root, seed=7, a=(1, 2))
    assert not caplog.messages
    with claimed_checkpoint(root, {"a": (1, 2)}, 8) as checkpoint:
        assert checkpoint.file == file
        assert checkpoint.seed == 7
        assert checkpoint.found is not None
        assert torch.equal(checkpoint.found.tensors["a"], STATE.tensors["a"])
        assert checkpoint.found.values == STATE.values
    assert [str(file) in message for message in caplog.messages] == [True]
    assert folders_in(root) == []
    with claimed_checkpoint(root, {"a": (1, 2)}, 8) as checkpoint:
        assert checkpoint.found is None and checkpoint.seed == 8


def test_claimed_checkpoint__diverged__is_gone(tmp_path: Path) -> None:
    with suppress(DivergedError), claimed_checkpoint(tmp_path, {}, 0) as checkpoint:
        checkpoint.write(STATE)
        assert checkpoint.file.exists()
        raise DivergedError
    assert folders_in(tmp_path) == []


def test_claimed_checkpoint__a_fault_before_a_write__leaves_no_folder(tmp_path: Path) -> None:
    with suppress(ZeroDivisionError), claimed_checkpoint(tmp_path, {}, 0):
        assert len(folders_in(tmp_path)) == 1
        raise ZeroDivisionError
    assert folders_in(tmp_path) == []


def test_claimed_checkpoint__an_equal_fit_at_once__has_none_and_says_so(tmp_path: Path) -> None:
    with claimed_checkpoint(tmp_path, {}, 1) as one:
        for _ in range(2):
            with (
                pytest.warns(UserWarning, match="An equal fit is running"),
                claimed_checkpoint(tmp_path, {}, 2) as two,
            ):
                assert two is None
        assert folders_in(tmp_path) == [one.file.parent]
        one.write(STATE)
    assert folders_in(tmp_path) == []


def test_claimed_checkpoint__left_half_written__is_cleared_away(tmp_path: Path) -> None:
    file = leave_one(tmp_path)
    half = file.with_name(f".{file.name}.1-00000000.tmp")
    half.write_bytes(b"half")
    with claimed_checkpoint(tmp_path, {}, 0) as checkpoint:
        assert checkpoint.found is not None
        assert not half.exists()


def test_claimed_checkpoint__of_other_things__is_refused_by_name_and_let_go(tmp_path: Path) -> None:
    theirs = leave_one(tmp_path, a=1, b=2, c=[3])
    own = leave_one(tmp_path, a=1, b=3, d=4)
    own.write_bytes(theirs.read_bytes())
    for _ in range(2):  # it is not locked any more the second time
        with (
            pytest.raises(ContinuationError, match=r"differs: b, c, d\. Delete it"),
            claimed_checkpoint(tmp_path, {"a": 1, "b": 3, "d": 4}, 0),
        ):
            pass
    assert own.exists()


def test_checkpoint__its_folder_is_gone__is_an_error_that_names_the_file(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path / "gone" / "c", {}, 0)
    with pytest.raises(CheckpointError, match="gone"):
        checkpoint.write(STATE)
