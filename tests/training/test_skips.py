"""Steps that are not finite change nothing, whoever finds out; too many of them end the fit."""

from typing import Any

import numpy as np
import pytest
import torch

from skgpt.data.batching import optimiser_batches
from skgpt.data.splits import Split
from skgpt.exceptions import DivergedError
from skgpt.network.network import HEAD, TextNetwork
from skgpt.training.early_stopping import StoppingRule, Validation
from skgpt.training.optimizer import RunningLoss
from skgpt.training.run import FitResult
from tests.training.poison import PoisonedLoss
from tests.training.test_loop import TEXTS, run

SIX_STEPS: dict[str, Any] = {"batch_size": 2, "token_budget": 10_000}
HELD_OUT = Split(np.arange(10), np.array([10, 11]))


@pytest.fixture(params=["at once", "later"])
def looks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Have the host look after each step, or leave it to the device as on CUDA."""
    at_once = request.param == "at once"
    monkeypatch.setattr("skgpt.training.optimizer.host_looks", lambda device: at_once)
    return str(request.param)


def learned(network: TextNetwork) -> dict[str, torch.Tensor]:
    return {**network.learnable, "head.weight": network.head.weight}


def assert_same(one: TextNetwork, two: TextNetwork) -> None:
    for name, tensor in learned(one).items():
        assert torch.equal(tensor, learned(two)[name]), name


def assert_same_moments(one: FitResult, two: FitResult) -> None:
    assert one.moments is not None and two.moments is not None
    assert one.moments.steps[HEAD] == two.moments.steps[HEAD]
    for mine, others in (
        (one.moments.means, two.moments.means),
        (one.moments.squares, two.moments.squares),
    ):
        assert mine.keys() == others.keys()
        assert all(torch.equal(mine[name], others[name]) for name in mine)


@pytest.mark.first_tier(step=[3])
@pytest.mark.parametrize("what", ["loss_at", "gradient_at"])
@pytest.mark.parametrize("step", [1, 3, 6])
@pytest.mark.parametrize(
    ("dtype", "max_norm"),
    [(torch.float32, 1e-3), (torch.bfloat16, 1e-3), (torch.bfloat16, None)],
)
def test_skipped_step__any__is_a_batch_that_weighs_nothing(
    what: str, step: int, dtype: torch.dtype, max_norm: float | None, looks: str, tiny_llama: str
) -> None:
    options = {**SIX_STEPS, "n_epochs": 1, "trainable": "all", "max_grad_norm": max_norm}
    loss = PoisonedLoss(**{what: {step}})
    skipping, result = run(tiny_llama, dtype=dtype, loss=loss, **options)
    weight = np.ones(len(TEXTS))
    weight[list(optimiser_batches(len(TEXTS), 2, 0, 0))[step - 1]] = 0.0
    expected, without = run(tiny_llama, weight=weight, dtype=dtype, **options)
    assert_same(skipping, expected)
    assert_same_moments(result, without)
    assert result.n_skipped == 1 == result.history[0]["skipped_steps"]
    assert without.n_skipped == 0 == without.history[0]["skipped_steps"]
    assert result.history[0]["loss"] == without.history[0]["loss"]


def test_skipped_steps__five_in_a_row__end_the_fit_and_say_why(looks: str, tiny_llama: str) -> None:
    # The fourth and later, over the end of an epoch.
    with pytest.raises(DivergedError) as caught:
        run(tiny_llama, loss=PoisonedLoss(range(4, 9)), **SIX_STEPS)
    for part in ("5 steps in a row", "`learning_rate` (0.001)", "`head_learning_rate` (0.01)"):
        assert part in str(caught.value)
    assert str(caught.value).endswith("The estimator is as it was before this fit.")


@pytest.mark.parametrize("n_steps", [1, 3])
def test_skipped_steps__all__are_an_error(n_steps: int, looks: str, tiny_llama: str) -> None:
    options = {"n_epochs": 1, "batch_size": 12 // n_steps, "token_budget": 10_000}
    with pytest.raises(DivergedError, match="They did in no step, up to step"):
        run(tiny_llama, loss=PoisonedLoss(range(9)), **options)


def test_skipped_steps__a_whole_epoch__has_no_loss(looks: str, tiny_llama: str) -> None:
    options = {"n_epochs": 3, "batch_size": 6, "token_budget": 10_000}
    _, result = run(tiny_llama, loss=PoisonedLoss({3, 4}), **options)
    assert [np.isnan(r["loss"]) for r in result.history] == [False, True, False]
    assert [r["skipped_steps"] for r in result.history] == [0, 2, 0]


@pytest.mark.parametrize("poison", [{"loss_at": range(11, 99)}, {"held_out_at": {3}}])
def test_diverged_run__a_best_epoch_kept__gives_its_weights_back(
    poison: dict[str, Any], looks: str, tiny_llama: str
) -> None:
    options = {**SIX_STEPS, "split": HELD_OUT, "schedule": "constant", "warmup_ratio": 0.0}
    rule, loss = StoppingRule(9, 0.0), PoisonedLoss(**poison)
    network, result = run(tiny_llama, loss=loss, validation=Validation(rule=rule), **options)
    assert isinstance(result.interrupt, DivergedError)
    assert f"weights of epoch {result.best_iteration}" in str(result.interrupt)
    assert len(result.history) == len(result.validation_scores) == 2
    expected, _ = run(
        tiny_llama, n_epochs=result.best_iteration, validation=Validation(rule=rule), **options
    )
    assert_same(network, expected)


def test_diverged_run__no_rule_to_keep_weights_by__is_an_error(tiny_llama: str) -> None:
    options = {**SIX_STEPS, "split": HELD_OUT, "validation": Validation()}
    with pytest.raises(DivergedError, match="as it was before this fit"):
        run(tiny_llama, loss=PoisonedLoss(held_out_at={3}), **options)


def test_fp16__an_overflow_of_scaled_gradients__is_no_skipped_step(
    tiny_llama: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("skgpt.training.optimizer._FIRST_SCALE", 2.0**40)
    loss = PoisonedLoss({70})
    _, result = run(tiny_llama, dtype=torch.float16, loss=loss, n_epochs=12, **SIX_STEPS)
    assert result.moments is not None
    assert result.moments.scale < 2.0**40  # it did overflow, in more than five steps in a row
    assert result.moments.steps[HEAD] < 71 - 5
    assert result.n_skipped == 1


def test_running_loss__looking_later__reads_many_steps_at_a_time_and_in_order() -> None:
    running = RunningLoss(at_once=False)
    for step in range(64):
        assert running.n_steps == 0
        running.add([torch.tensor(1.0)], 2.0, torch.tensor(float(step % 3 == 0)))
    assert running.n_steps == 64 and running.in_a_row == 1
    running.add([torch.tensor(float("nan"))], 1.0, torch.tensor(1.0))
    running.add([torch.tensor(0.5), torch.tensor(0.25)], 84.0, torch.tensor(0.0))
    assert running.n_steps == 64
    assert running.mean() == (42 * 2.0 + 0.75 * 84.0) / (42 * 2.0 + 84.0)
    assert running.n_skipped == 23 == running.n_skipped_in_all
    assert running.n_steps == 66 and running.in_a_row == 0
