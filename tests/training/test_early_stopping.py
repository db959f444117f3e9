"""Held-out rows: never trained on, scored as they are, and the best weights come back."""

import signal
from collections.abc import Callable
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch

from skgpt.data.splits import Split
from skgpt.training.callbacks import TrainingCallback
from skgpt.training.early_stopping import EarlyStopping, StoppingRule, Validation
from skgpt.training.loss import BinaryCrossEntropy, CrossEntropy
from tests.training.test_loop import CODES, TEXTS, run, scores_of

SPLIT = Split(np.arange(0, 8), np.arange(8, 12))
FLAT: dict[str, Any] = {"schedule": "constant", "warmup_ratio": 0.0}


def judged_by(scores: list[float], rule: StoppingRule | None) -> Validation:
    """Give these scores, one per epoch, whatever the network says."""
    coming = iter(scores)
    return Validation(lambda logits: next(coming), rule)


@pytest.mark.parametrize("trainable", ["all", 1, 0])
@pytest.mark.parametrize("architecture", ["llama", "bloom"])  # the last one is padded
@pytest.mark.parametrize("budget", [1, 40])
def test_validation_loss__any_token_budget__is_that_of_the_network_after_the_epoch(
    budget: int, architecture: str, trainable: Any, tiny_model: Callable[[str], str]
) -> None:
    weight = np.linspace(0.5, 2, len(TEXTS))
    weight[9] = 0.0
    options: dict[str, Any] = {"weight": weight, "trainable": trainable, "n_epochs": 2}
    network, result = run(tiny_model(architecture), split=SPLIT, token_budget=budget, **options)
    logits = scores_of(network)[8:]
    losses = -CrossEntropy().log_probabilities(logits)[np.arange(4), CODES[8:]]
    expected = np.average(losses, weights=weight[8:])
    assert result.history[-1]["validation_loss"] == pytest.approx(expected, rel=1e-4)
    assert result.validation_scores == [-r["validation_loss"] for r in result.history]
    assert result.best_iteration == 1 + int(np.argmax(result.validation_scores))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_early_stopping__no_improvement__stops_and_puts_the_best_weights_back(
    dtype: torch.dtype, tiny_llama: str
) -> None:
    options: dict[str, Any] = {"split": SPLIT, "dtype": dtype, **FLAT}
    scores = [0.1, 0.5, 0.5, 0.4, 0.9]
    validation = judged_by(scores, StoppingRule(n_iter_no_change=2, tol=1e-4))
    network, result = run(tiny_llama, validation=validation, n_epochs=5, **options)
    assert result.validation_scores == scores[:4]
    assert result.best_iteration == 2
    two, _ = run(tiny_llama, n_epochs=2, **options)
    assert np.array_equal(scores_of(network), scores_of(two))


@pytest.mark.parametrize(
    ("scores", "tol", "best"),
    [
        ([0.5, 0.55, 0.59, 0.9], 0.1, 3),  # rises below tol are kept but buy no time
        ([1.0, 0.5, 0.6, 0.5, 0.6], 0.0, 1),  # each rise is over the epoch before, not the best
    ],
)
def test_early_stopping__no_rise_over_the_best__ends_the_fit(
    scores: list[float], tol: float, best: int, tiny_llama: str
) -> None:
    validation = judged_by(scores, StoppingRule(n_iter_no_change=2, tol=tol))
    _, result = run(tiny_llama, split=SPLIT, validation=validation, n_epochs=5)
    assert (len(result.history), result.best_iteration) == (3, best)


NAN = float("nan")


@pytest.mark.parametrize(
    ("scores", "n_epochs", "best"),
    [
        ([0.1, 0.5, NAN, 0.6, 0.2], 5, 4),
        ([0.1, 0.5, NAN, 0.4, 0.9], 4, 2),  # two in a row without a rise
        ([NAN, 0.3, 0.2, 0.1, 0.9], 4, 2),
        ([NAN, float("-inf"), 0.2, 0.1, 0.0], 5, 3),
        ([NAN, NAN, 0.2, 0.3, 0.4], 2, 0),
    ],
)
def test_early_stopping__a_score_that_is_no_number__is_no_improvement(
    scores: list[float], n_epochs: int, best: int, tiny_llama: str
) -> None:
    options: dict[str, Any] = {"split": SPLIT, **FLAT}
    validation = judged_by(scores, StoppingRule(n_iter_no_change=2, tol=1e-4))
    network, result = run(tiny_llama, validation=validation, n_epochs=5, **options)
    assert np.array_equal(result.validation_scores, scores[:n_epochs], equal_nan=True)
    assert result.best_iteration == best
    expected, _ = run(tiny_llama, n_epochs=best or n_epochs, **options)
    assert np.array_equal(scores_of(network), scores_of(expected))


def test_callback__that_asks_to_end__ends_the_fit_and_all_are_told(tiny_llama: str) -> None:
    first, second = Mock(spec=TrainingCallback), Mock(spec=TrainingCallback)
    first.on_epoch.side_effect = lambda record: record["epoch"] == 2
    second.on_epoch.return_value = False
    network, result = run(tiny_llama, callbacks=(first, second), **FLAT)
    for callback in (first, second):
        assert [call.args[0] for call in callback.on_epoch_begin.mock_calls] == [1, 2]
        assert [call.args[0]["epoch"] for call in callback.on_epoch.mock_calls] == [1, 2]
    assert len(result.history) == 2
    two, _ = run(tiny_llama, n_epochs=2, **FLAT)
    assert np.array_equal(scores_of(network), scores_of(two))


def test_multilabel__weights_of_single_elements__make_up_the_loss(tiny_llama: str) -> None:
    target = (np.arange(36).reshape(12, 3) % 5 == 0).astype(np.float32)
    weight = np.linspace(0.5, 2, 36).reshape(12, 3)
    network, result = run(
        tiny_llama, TEXTS, target, weight, loss=BinaryCrossEntropy(), split=SPLIT, n_epochs=2
    )
    logits = scores_of(network)[8:].astype(np.float64)
    losses = np.log1p(np.exp(-logits)) + (1 - target[8:]) * logits
    expected = np.average(losses, weights=weight[8:])
    assert result.history[-1]["validation_loss"] == pytest.approx(expected, rel=1e-4)


def test_restore_best__ctrl_c_in_the_middle__waits_until_it_is_whole(tiny_llama: str) -> None:
    network, _ = run(tiny_llama, n_epochs=1, trainable="all")
    best = EarlyStopping(network, StoppingRule(1, 0.0))
    best.update(1.0)
    wanted = {name: tensor.clone() for name, tensor in network.learnable.items()}
    with torch.no_grad():
        for tensor in network.learnable.values():
            tensor.add_(1.0)
    first = next(iter(best._weights))

    class Pressed(dict[str, Any]):
        def __getitem__(self, name: str) -> Any:
            if name == first:
                signal.raise_signal(signal.SIGINT)
            return super().__getitem__(name)

    best._weights = Pressed(best._weights)
    with pytest.raises(KeyboardInterrupt):
        best.restore_best()
    assert all(torch.equal(network.learnable[name], wanted[name]) for name in wanted)
