"""Going on: runs in pieces equal one run, a head may grow, Ctrl-C leaves a whole step."""

import signal
import threading
from typing import Any

import numpy as np
import pytest
import torch

from skgpt.tensor_files import from_bytes, to_bytes
from skgpt.training.callbacks import StepDone, TrainingCallback
from skgpt.training.optimizer import HEAD, Moments, Optimizer
from tests.training.test_loop import CODES, TEXTS, run, scores_of

FLAT: dict[str, Any] = {"schedule": "constant", "warmup_ratio": 0.0}


@pytest.mark.parametrize("trainable", ["all", 1, 0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("packed", [False, True])
def test_train__in_pieces_with_moments__equals_one_run(
    trainable: Any, dtype: torch.dtype, packed: bool, tiny_llama: str
) -> None:
    options: dict[str, Any] = {"trainable": trainable, "dtype": dtype, **FLAT}
    whole, _ = run(tiny_llama, TEXTS, CODES, n_epochs=3, **options)
    network, moments = None, None
    for epoch in range(3):
        network, result = run(
            tiny_llama,
            TEXTS,
            CODES,
            n_epochs=1,
            first_epoch=epoch,
            moments=moments,
            start=network,
            **options,
        )
        moments = result.moments
        assert moments is not None
        if packed:
            moments = Moments.of_state(from_bytes(to_bytes(moments.state())))
    assert network is not None and moments is not None
    assert moments.step == 6
    assert np.array_equal(scores_of(network), scores_of(whole))


def test_train__in_pieces_without_moments__differs(tiny_llama: str) -> None:
    whole, _ = run(tiny_llama, TEXTS, CODES, n_epochs=2, **FLAT)
    first, _ = run(tiny_llama, TEXTS, CODES, n_epochs=1, **FLAT)
    second, _ = run(tiny_llama, TEXTS, CODES, n_epochs=1, first_epoch=1, start=first, **FLAT)
    assert not np.array_equal(scores_of(second), scores_of(whole))


def test_grown__a_head_with_more_rows__old_rows_move_and_new_ones_are_zero(
    tiny_llama: str,
) -> None:
    _, result = run(tiny_llama, TEXTS, CODES, n_epochs=1)
    assert result.moments is not None
    grown = result.moments.grown(np.array([0, 2, 3]), 5)
    for old, new in (
        (result.moments.means[HEAD], grown.means[HEAD]),
        (result.moments.squares[HEAD], grown.squares[HEAD]),
    ):
        assert torch.equal(new[[0, 2, 3]], old)
        assert not new[[1, 4]].any()
    assert grown.step == result.moments.step
    assert result.moments.means[HEAD].shape[0] == 3


class _InterruptAt(TrainingCallback):
    def __init__(self, step: int) -> None:
        self.at = step

    def on_step(self, event: StepDone) -> None:
        if event.step == self.at:
            raise KeyboardInterrupt


def test_train__interrupted__is_as_the_last_step_left_it(
    tiny_llama: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Two steps an epoch: step 3 is the first of the second epoch.
    network, result = run(tiny_llama, TEXTS, CODES, callbacks=(_InterruptAt(3),), **FLAT)
    assert isinstance(result.interrupt, KeyboardInterrupt)
    assert len(result.history) == 1
    assert result.moments is not None and result.moments.step == 3
    # The same, interrupted in the middle of the fourth step: what it had added up is forgotten.
    backward, calls = Optimizer.backward, []

    def interrupted(self: Optimizer, loss: torch.Tensor) -> None:
        calls.append(1)
        backward(self, loss)
        if len(calls) == 4:
            raise KeyboardInterrupt

    monkeypatch.setattr(Optimizer, "backward", interrupted)
    other, result = run(tiny_llama, TEXTS, CODES, **FLAT)
    assert isinstance(result.interrupt, KeyboardInterrupt)
    assert np.array_equal(scores_of(network), scores_of(other))
    assert not any(p.requires_grad or p.grad is not None for p in other.parameters())


def test_train__interrupted_before_the_first_step__raises(
    tiny_llama: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Optimizer, "step", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run(tiny_llama, TEXTS, CODES)


def test_step__ctrl_c_in_the_middle__waits_until_the_update_is_whole(
    tiny_llama: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGINT)
    update = torch.optim.AdamW.step
    done: list[int] = []

    def interrupted(self: torch.optim.AdamW, *args: Any, **options: Any) -> Any:
        if len(done) == 1:
            signal.raise_signal(signal.SIGINT)  # Ctrl-C, and Python would raise here at once
        result = update(self, *args, **options)
        done.append(1)
        return result

    monkeypatch.setattr(torch.optim.AdamW, "step", interrupted)
    network, result = run(tiny_llama, TEXTS, CODES, **FLAT)
    assert len(done) == 2
    assert isinstance(result.interrupt, KeyboardInterrupt)
    assert signal.getsignal(signal.SIGINT) is handler
    monkeypatch.undo()
    # Two steps are one epoch here, so both updates were whole if it equals one.
    one, _ = run(tiny_llama, TEXTS, CODES, n_epochs=1, **FLAT)
    assert np.array_equal(scores_of(network), scores_of(one))
