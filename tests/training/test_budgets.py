"""How a batch is cut into micro-batches shows in nothing: loss, gradients, weights, predictions."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor

from skgpt.caching import clear_cache
from skgpt.network.lora import AdapterSpec
from skgpt.network.network import TextNetwork
from skgpt.pretrained.loading import load_pretrained
from skgpt.training.loop import raw_scores
from skgpt.training.loss import BinaryCrossEntropy
from skgpt.training.optimizer import Optimizer
from tests.network.test_network import build
from tests.training.test_loop import ids_of, run

HUGE = 1_000_000
RATE = 1e-3
ONE_STEP = {
    "n_epochs": 1,
    "batch_size": 64,
    "max_grad_norm": None,
    "warmup_ratio": 0.0,
    "schedule": "constant",
    "learning_rate": RATE,
    "head_learning_rate": RATE,
}


class Rows(NamedTuple):
    """What `run` is given."""

    texts: list[str]
    target: np.ndarray
    weight: np.ndarray


class Step(NamedTuple):
    """One optimiser step: the loss and the gradients that it was made of, and what it left."""

    loss: float
    grads: dict[str, Tensor]
    learned: dict[str, Tensor]
    network: TextNetwork


def some_rows(lengths: list[int], n_labels: int = 0) -> Rows:
    """Return texts of these lengths, with codes or labels, and weights, zeros among them."""
    rng = np.random.default_rng(lengths)
    texts = ["".join(rng.choice(list("abcdefgh "), n)) for n in lengths]
    shape = (len(texts), n_labels) if n_labels else (len(texts),)
    weight = rng.choice([0.0, 0.3, 1.0, 20.0], shape)
    weight[0] = 0.7  # or a batch may weigh nothing
    if n_labels:
        return Rows(texts, rng.integers(0, 2, shape).astype(np.float32), weight)
    return Rows(texts, rng.integers(0, 3, shape), weight)


ROWS = some_rows([3, 60, 1, 12, 33, 7])


def start_of(folder: str, trainable: Any, lora: AdapterSpec | None = None) -> TextNetwork:
    """Return where to start: from a head of zeros nothing would reach the layers."""
    start = build(load_pretrained(folder), trainable_layers=trainable, lora=lora)
    generator = torch.Generator().manual_seed(0)
    torch.nn.init.normal_(start.head.weight, generator=generator)
    for name, master in start.learnable.items() if lora else ():
        if "lora_B" in name:
            torch.nn.init.normal_(master, std=0.1, generator=generator)
    start.refresh()
    return start


def step(folder: str, rows: Rows, budget: int, trainable: Any, **options: Any) -> Step:
    """Make one step over all rows under a token budget."""
    clear_cache()  # or the states of the first budget would serve the second
    grads: dict[str, Tensor] = {}
    own = Optimizer.step

    def spied(self: Optimizer, shares: Sequence[Tensor]) -> Tensor:
        named = {name: p.grad for name, p in self.network.learned.items()}
        grads.update({name: grad.clone() for name, grad in named.items() if grad is not None})
        return own(self, shares)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Optimizer, "step", spied)
        start = start_of(folder, trainable, options.get("lora"))
        options = {"start": start, **ONE_STEP, **options}
        network, result = run(folder, *rows, trainable=trainable, token_budget=budget, **options)
    learned = {**network.learnable, "head.weight": network.head.weight}
    return Step(result.history[0]["loss"], grads, learned, network)


def assert_same_step(one: Step, two: Step) -> None:
    assert one.loss == pytest.approx(two.loss, rel=1e-5)
    assert one.grads.keys() == two.grads.keys()
    largest = max(float(grad.abs().max()) for grad in two.grads.values())
    assert largest > 0
    for name, grad in two.grads.items():
        assert float((one.grads[name] - grad).abs().max()) < 1e-5 * largest, name
        apart = (one.learned[name] - two.learned[name]).abs()
        # AdamW's first step is the sign of the gradient: where that is rounding, so is the sign.
        clear = grad.abs() > 1e-3 * largest
        assert not clear.any() or float(apart[clear].max()) < 1e-3 * RATE, name
        assert float(apart.max()) < 2.1 * RATE, name


def scores_of(step: Step, rows: Rows, budget: int, window: int | None) -> np.ndarray:
    clear_cache()
    return raw_scores(step.network, ids_of(rows.texts, step.network, window), budget, 2**30)


def assert_budget_does_not_show(
    folder: str, rows: Rows, budget: int, trainable: Any, window: int | None = None
) -> None:
    in_parts, whole = (step(folder, rows, b, trainable, window=window) for b in (budget, HUGE))
    assert_same_step(in_parts, whole)
    scores = [scores_of(in_parts, rows, b, window) for b in (budget, HUGE)]
    np.testing.assert_allclose(*scores, rtol=1e-4, atol=1e-5 * np.abs(scores).max())


@pytest.mark.first_tier(architecture=["llama"], trainable=["all", 0])
@pytest.mark.first_tier(architecture=["bloom"], trainable=[1])
@pytest.mark.parametrize("trainable", ["all", 1, 0])
@pytest.mark.parametrize("architecture", ["llama", "gemma3", "bloom"])  # the last one is padded
@settings(
    max_examples=12,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.generate],  # the rows are small as they are, and shrinking takes minutes
)
@given(
    lengths=st.lists(st.integers(1, 6) | st.integers(1, 90), min_size=2, max_size=8),
    budget=st.integers(1, 300),
)
def test_step__any_token_budget__has_the_loss_gradients_weights_and_predictions_of_one_micro_batch(
    architecture: str,
    trainable: Any,
    lengths: list[int],
    budget: int,
    tiny_model: Callable[[str], str],
) -> None:
    assert_budget_does_not_show(tiny_model(architecture), some_rows(lengths), budget, trainable)


@pytest.mark.first_tier(architecture=["llama"], trainable=["all", 0], budget=[40])
@pytest.mark.first_tier(architecture=["bloom"], trainable=[1], budget=[40])
@pytest.mark.parametrize("trainable", ["all", 1, 0])
@pytest.mark.parametrize("architecture", ["llama", "gemma3", "bloom"])  # the last one is padded
@pytest.mark.parametrize("budget", [1, 40, 100])
def test_step__in_windows_any_token_budget__is_the_step_of_one_micro_batch(
    budget: int, architecture: str, trainable: Any, tiny_model: Callable[[str], str]
) -> None:
    assert_budget_does_not_show(tiny_model(architecture), ROWS, budget, trainable, window=16)


@pytest.mark.parametrize("architecture", ["llama", "bloom"])
@pytest.mark.parametrize("budget", [1, 40, 100])
def test_step__weights_for_each_label__any_token_budget_is_the_same(
    budget: int, architecture: str, tiny_model: Callable[[str], str]
) -> None:
    folder, rows = tiny_model(architecture), some_rows([3, 60, 1, 12, 33, 7], n_labels=3)
    steps = [step(folder, rows, b, 1, loss=BinaryCrossEntropy()) for b in (budget, HUGE)]
    assert_same_step(*steps)
