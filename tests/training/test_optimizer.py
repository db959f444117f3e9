"""The optimiser: clipping, working copies, and the loss scale that fp16 needs."""

import numpy as np
import pytest
import torch

from skgpt.network.layout import Layout
from skgpt.network.network import TextNetwork, TrainableLayers, build_network
from skgpt.pretrained.loading import load_pretrained
from skgpt.training.optimizer import Optimizer
from tests.training.test_config import make_config


def build(folder: str, dtype: torch.dtype, trainable_layers: TrainableLayers = 1) -> TextNetwork:
    return build_network(
        load_pretrained(folder),
        n_layers=None,
        trainable_layers=trainable_layers,
        pooling="mean",
        n_outputs=2,
        dtype=dtype,
        device=torch.device("cpu"),
    )


def a_loss(network: TextNetwork, first: int = 3) -> torch.Tensor:
    ids = torch.tensor([3, 4, 5, 6, 7]) - 3 + first
    logits = network(ids, Layout.of(np.array([3, 2]), network.pretrained, network.device))
    return torch.nn.functional.cross_entropy(logits, torch.tensor([0, 1]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_optimiser__a_step__lowers_the_loss(dtype: torch.dtype, tiny_llama: str) -> None:
    network = build(tiny_llama, dtype)
    optimiser = Optimizer(network, make_config(warmup_ratio=0.0))
    losses = []
    for _ in range(6):
        loss = a_loss(network)
        losses.append(float(loss.detach()))
        optimiser.backward(loss)
        optimiser.step()
    assert losses[-1] < losses[0] - 0.01


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_optimiser__two_halves__add_up_to_the_whole_gradient(
    dtype: torch.dtype, tiny_llama: str
) -> None:
    grads = []
    for parts in (1, 2):
        network = build(tiny_llama, dtype)
        torch.nn.init.ones_(network.head.weight[0].data)
        optimiser = Optimizer(network, make_config())
        for _ in range(parts):
            optimiser.backward(a_loss(network) / parts)
        grads.append([m.grad for m in network.learnable.values()])
    for whole, halves in zip(*grads, strict=True):
        assert whole is not None and halves is not None
        assert whole.dtype == halves.dtype == torch.float32
        torch.testing.assert_close(whole, halves, rtol=1e-2, atol=1e-5)


def test_optimiser__fp16_overflow__voids_the_step_and_halves_the_scale(tiny_llama: str) -> None:
    network = build(tiny_llama, torch.float16)
    optimiser = Optimizer(network, make_config(warmup_ratio=0.0))
    before = {name: m.clone() for name, m in network.learnable.items()}
    scale = optimiser._scale
    optimiser.backward(a_loss(network) * float("inf"))
    optimiser.step()
    assert optimiser._scale == scale / 2
    assert all(torch.equal(m, before[name]) for name, m in network.learnable.items())
    assert torch.count_nonzero(network.head.weight) == 0


@pytest.mark.parametrize(("max_norm", "expected"), [(1e-9, 1e-9), (0.5, 0.5), (2.0, 1.0)])
def test_optimiser__a_gradient_of_norm_one__is_clipped_to_at_most_the_limit(
    max_norm: float, expected: float, tiny_llama: str
) -> None:
    network = build(tiny_llama, torch.float32)
    optimiser = Optimizer(network, make_config(max_grad_norm=max_norm, warmup_ratio=0.0))
    optimiser.backward(a_loss(network))
    learned = [*network.learnable.values(), network.head.weight]
    size = float(torch.nn.utils.get_total_norm([p.grad for p in learned if p.grad is not None]))
    optimiser.zero_grad()
    optimiser.backward(a_loss(network) / size)
    norms: list[float] = []
    adam_step = optimiser._adam.step

    def spy() -> None:
        grads = [p.grad for p in [*network.learnable.values(), network.head.weight]]
        norms.append(float(torch.cat([g.flatten() for g in grads if g is not None]).norm()))
        adam_step()

    optimiser._adam.step = spy  # type: ignore[method-assign, assignment]
    optimiser.step()
    assert norms[0] == pytest.approx(expected, rel=1e-3)


def test_optimiser__released__leaves_nothing_that_wants_a_gradient(tiny_llama: str) -> None:
    network = build(tiny_llama, torch.bfloat16)
    optimiser = Optimizer(network, make_config())
    optimiser.backward(a_loss(network))
    optimiser.__exit__()
    tensors = [*network.parameters(), *network.learnable.values()]
    assert not any(t.requires_grad for t in tensors)
    assert all(t.grad is None for t in tensors)


def test_optimiser__embeddings__learn_from_the_rows_of_their_tokens_as_from_all(
    tiny_llama: str,
) -> None:
    trained = []
    for by_rows in (True, False):
        network = build(tiny_llama, torch.bfloat16, "all")
        torch.nn.init.normal_(network.head.weight, generator=torch.Generator().manual_seed(0))
        optimiser = Optimizer(network, make_config(warmup_ratio=0.0))
        embeddings = optimiser._embeddings
        assert [embedding.sparse for embedding in embeddings] == [True]
        embeddings[0].sparse = by_rows
        name = next(n for n in network.learnable if "embed_tokens" in n)
        grads = []
        for step in range(4):
            for part in range(2):  # tokens of their own in each step and part, and common ones
                optimiser.backward(a_loss(network, first=9 * step + 3 * part))
                if (step, part) == (1, 1):  # as where memory runs out: begun again
                    optimiser.zero_grad()
                    for again in range(2):
                        optimiser.backward(a_loss(network, first=9 * step + 3 * again))
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
