"""The optimiser: clipping, embeddings, fp16's scale; Ctrl-C leaves a whole step."""

import signal
import threading
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch

from skgpt.network.layout import Layout
from skgpt.network.network import TextNetwork
from skgpt.pretrained.loading import load_pretrained
from skgpt.training.optimizer import HEAD, Optimizer
from tests.estimators.dying import AfterSteps, raising
from tests.network.test_network import build
from tests.training.test_config import make_config
from tests.training.test_loop import run, scores_of


def a_loss(network: TextNetwork, first: int = 3) -> torch.Tensor:
    ids = torch.tensor([3, 4, 5, 6, 7]) - 3 + first
    logits = network(ids, Layout.of(np.array([3, 2]), network.pretrained, network.device))
    return torch.nn.functional.cross_entropy(logits, torch.tensor([0, 1]))


def test_optimiser__fp16_overflow__voids_the_step_and_halves_the_scale(tiny_llama: str) -> None:
    network = build(load_pretrained(tiny_llama), dtype=torch.float16)
    optimiser = Optimizer(network, make_config(warmup_ratio=0.0))
    before = {name: m.clone() for name, m in network.learnable.items()}
    scale = optimiser._scaler.get_scale()
    optimiser.add(optimiser.gradients(a_loss(network) * float("inf")))
    optimiser.step()
    assert optimiser._scaler.get_scale() == scale / 2
    assert all(torch.equal(m, before[name]) for name, m in network.learnable.items())
    assert torch.count_nonzero(network.head.weight) == 0


@pytest.mark.parametrize("max_norm", [1e-3, 1e3])
def test_train__a_large_gradient__is_clipped_to_the_limit(max_norm: float, tiny_llama: str) -> None:
    norms = []
    for limit in (None, max_norm):
        _, result = run(tiny_llama, n_epochs=1, batch_size=12, max_grad_norm=limit)
        assert result.moments is not None
        means = [mean.flatten() for mean in result.moments.means.values()]
        norms.append(10 * float(torch.cat(means).norm()))  # of a single step: a tenth is kept
    assert 1e-2 < norms[0] < 1e2
    assert norms[1] == pytest.approx(min(norms[0], max_norm), rel=1e-3)


def test_optimiser__embeddings__learn_from_their_tokens_rows_as_from_all(tiny_llama: str) -> None:
    trained = []
    for by_rows in (True, False):
        network = build(load_pretrained(tiny_llama), dtype=torch.bfloat16, trainable_layers="all")
        torch.nn.init.normal_(network.head.weight, generator=torch.Generator().manual_seed(0))
        optimiser = Optimizer(network, make_config(warmup_ratio=0.0))
        embeddings = optimiser._embeddings
        assert [embedding.sparse for embedding in embeddings] == [True]
        embeddings[0].sparse = by_rows
        name = next(n for n in network.learnable if "embed_tokens" in n)
        grads = []
        for step in range(4):
            for part in range(2):  # tokens of their own in each step and part, and common ones
                optimiser.add(optimiser.gradients(a_loss(network, first=9 * step + 3 * part)))
                if (step, part) == (1, 1):  # as where memory runs out: begun again
                    optimiser.zero_grad()
                    for again in range(2):
                        optimiser.add(
                            optimiser.gradients(a_loss(network, first=9 * step + 3 * again))
                        )
            grad = network.learnable[name].grad
            assert grad is not None
            grads.append(grad.clone())
            optimiser.step()
        optimiser.__exit__()
        assert not embeddings[0].sparse
        trained.append((grads, network.learnable[name].clone()))
    (rows, learned), (whole, expected) = trained
    for one, two in zip(rows, whole, strict=True):
        assert (one != 0).any(1).sum() == (two != 0).any(1).sum() > 3
        torch.testing.assert_close(one, two, rtol=2e-2, atol=1e-3 * float(two.abs().max()))
    # AdamW divides by the gradient's size, so that where it is small its rounding shows.
    assert (learned - expected).abs().mean() < 1e-2 * 4e-3


FLAT: dict[str, Any] = {"schedule": "constant", "warmup_ratio": 0.0}


def test_grown__a_head_with_more_rows__old_rows_move_and_new_ones_are_zero(tiny_llama: str) -> None:
    _, result = run(tiny_llama, n_epochs=1)
    assert result.moments is not None
    grown = result.moments.grown(np.array([0, 2, 3]), 5)
    for old, new in (
        (result.moments.means[HEAD], grown.means[HEAD]),
        (result.moments.squares[HEAD], grown.squares[HEAD]),
    ):
        assert torch.equal(new[[0, 2, 3]], old)
        assert not new[[1, 4]].any()
    assert grown.steps[HEAD] == result.moments.steps[HEAD]
    assert result.moments.means[HEAD].shape[0] == 3


def test_train__interrupted__is_as_the_last_step_left_it(
    tiny_llama: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Two steps an epoch: step 3 is the first of the second epoch.
    interrupts = AfterSteps(raising(KeyboardInterrupt), 3)
    network, result = run(tiny_llama, callbacks=(interrupts,), **FLAT)
    assert isinstance(result.interrupt, KeyboardInterrupt)
    assert len(result.history) == 1
    assert result.moments is not None and result.moments.steps[HEAD] == 3
    # The same, interrupted in the middle of the fourth step: what it had added up is forgotten.
    add, calls = Optimizer.add, []

    def interrupted(self: Optimizer, gradients: Any) -> None:
        calls.append(1)
        add(self, gradients)
        if len(calls) == 4:
            raise KeyboardInterrupt

    monkeypatch.setattr(Optimizer, "add", interrupted)
    other, result = run(tiny_llama, **FLAT)
    assert isinstance(result.interrupt, KeyboardInterrupt)
    assert np.array_equal(scores_of(network), scores_of(other))
    tensors = [*other.parameters(), *other.learnable.values()]
    assert not any(t.requires_grad or t.grad is not None for t in tensors)


def test_train__interrupted_first__raises(tiny_llama: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Optimizer, "step", Mock(side_effect=KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        run(tiny_llama)


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
    network, result = run(tiny_llama, **FLAT)
    assert len(done) == 2
    assert isinstance(result.interrupt, KeyboardInterrupt)
    assert signal.getsignal(signal.SIGINT) is handler
    monkeypatch.undo()
    # Two steps are one epoch here, so both updates were whole if it equals one.
    one, _ = run(tiny_llama, n_epochs=1, **FLAT)
    assert np.array_equal(scores_of(network), scores_of(one))
