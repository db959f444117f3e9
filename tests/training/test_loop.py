"""The loop's identities: weights are exact, micro-batches don't show, caches don't show."""

from collections.abc import Callable
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch

from skgpt.caching import clear_cache
from skgpt.data.splits import Split, all_rows
from skgpt.data.template import parse_template
from skgpt.data.tokenization import Tokens, tokenise, tokenise_rows
from skgpt.exceptions import DivergedError
from skgpt.network.lora import AdapterSpec
from skgpt.network.network import TextNetwork
from skgpt.pretrained.loading import load_pretrained
from skgpt.training.callbacks import TrainingCallback
from skgpt.training.checkpoint import Checkpoint
from skgpt.training.early_stopping import Validation
from skgpt.training.loop import raw_scores, train
from skgpt.training.loss import BinaryCrossEntropy, CrossEntropy, Loss
from skgpt.training.optimizer import Moments
from skgpt.training.run import FitResult, TrainingRows
from tests.helpers import make_text_data
from tests.network.test_network import build
from tests.training.test_config import make_config

DATA = make_text_data(n_classes=3, n_per_class=4)
TEXTS = list(DATA.X)
CODES = np.unique(DATA.y.astype(str), return_inverse=True)[1].astype(np.int64)


def run(
    folder: str,
    texts: list[str] = TEXTS,
    codes: np.ndarray = CODES,
    weight: np.ndarray | None = None,
    *,
    trainable: Any = 1,
    dtype: torch.dtype = torch.float32,
    callbacks: tuple[TrainingCallback, ...] = (),
    split: Split | None = None,
    validation: Validation | None = None,
    moments: Moments | None = None,
    start: TextNetwork | None = None,
    loss: Loss | None = None,
    lora: AdapterSpec | None = None,
    checkpoint: Checkpoint | None = None,
    window: int | None = None,
    **options: Any,
) -> tuple[TextNetwork, FitResult]:
    """Train on 12 texts of three classes, or on others; return the network and what came of it."""
    network = build(load_pretrained(folder), trainable_layers=trainable, dtype=dtype, lora=lora)
    if start is not None:
        network.take_over(start)
    split = split or all_rows(len(texts))
    result = train(
        network,
        TrainingRows(
            ids_of(texts, network, window),
            codes,
            np.ones(len(texts)) if weight is None else weight,
            split,
        ),
        loss=loss or CrossEntropy(),
        config=make_config(n_rows=len(split.train), **options),
        validation=validation,
        moments=moments,
        callbacks=callbacks,
        checkpoint=checkpoint,
    )
    return network, result


def ids_of(texts: list[str], network: TextNetwork, window: int | None = None) -> Tokens:
    """Return the ids of texts, cut or in windows of so many tokens."""
    if window is None:
        return tokenise(texts, network.pretrained.tokenizer, 64)
    template = parse_template(None, 1, None)
    return tokenise_rows([texts], template, network.pretrained.tokenizer, window, "windows")


def scores_of(network: TextNetwork, token_budget: int = 512) -> np.ndarray:
    return raw_scores(
        network, tokenise(TEXTS, network.pretrained.tokenizer, 64), token_budget, 2**30
    )


@pytest.mark.first_tier(architecture=["llama"], trainable=["all", 0], budget=[40])
@pytest.mark.first_tier(architecture=["bloom"], trainable=[1], budget=[1, 40])
@pytest.mark.parametrize("budget", [1, 40, 100])
@pytest.mark.parametrize("trainable", ["all", 1, 0])
@pytest.mark.parametrize("architecture", ["llama", "gemma3", "bloom"])  # the last one is padded
@pytest.mark.parametrize(("window", "n_labels"), [(None, 0), (16, 0), (None, 3)])
def test_train__any_token_budget__gives_the_losses_and_gradients_of_one_micro_batch(
    window: int | None,
    n_labels: int,
    architecture: str,
    trainable: Any,
    budget: int,
    tiny_model: Callable[[str], str],
) -> None:
    target = np.eye(n_labels, dtype=np.float32)[CODES] if n_labels else CODES
    weight = np.resize([0.0, 0.3, 1.0, 20.0, 0.7], target.shape)
    options: dict[str, Any] = {"trainable": trainable, "window": window, "n_epochs": 2}
    options |= {"batch_size": 12, "learning_rate": 1e-6}
    options["loss"] = BinaryCrossEntropy() if n_labels else CrossEntropy()
    losses, means = [], []
    for token_budget in (budget, 10**6):
        clear_cache()  # or the states of the first would serve the second
        options["token_budget"] = token_budget
        _, result = run(tiny_model(architecture), TEXTS, target, weight, **options)
        losses.append([record["loss"] for record in result.history])
        assert result.moments is not None
        means.append(result.moments.means)
    np.testing.assert_allclose(*losses, rtol=1e-5)
    largest = max(float(mean.abs().max()) for mean in means[1].values())
    for name, mean in means[1].items():
        assert float((means[0][name] - mean).abs().max()) < 1e-4 * largest, name


@pytest.mark.parametrize("trainable", [1, 0])
@pytest.mark.parametrize(("window", "head_first"), [(None, 0), (16, 0), (16, 2)])
def test_train__cached_states__give_what_running_everything_gives(
    window: int | None, head_first: int, trainable: int, tiny_llama: str
) -> None:
    options = {"trainable": trainable, "window": window, "head_first_epochs": head_first}
    both = [scores_of(run(tiny_llama, memory_budget=memory, **options)[0]) for memory in (2**30, 0)]
    np.testing.assert_allclose(*both, rtol=1e-3, atol=1e-4)


def test_train__windows_of_weight_two__equal_the_row_twice_in_one_batch(tiny_llama: str) -> None:
    # One batch an epoch, so that both runs take the same steps over the same rows.
    options: dict[str, Any] = {"batch_size": 64, "window": 16}
    weight = np.where(np.arange(len(TEXTS)) < 4, 2.0, 1.0)
    weighted, _ = run(tiny_llama, weight=weight, **options)
    texts, codes = [*TEXTS, *TEXTS[:4]], np.concatenate([CODES, CODES[:4]])
    repeated, _ = run(tiny_llama, texts, codes, **options)
    np.testing.assert_allclose(scores_of(weighted), scores_of(repeated), rtol=1e-3, atol=1e-4)


def test_history__tokens_per_second__are_of_all_windows(tiny_llama: str) -> None:
    network, result = run(tiny_llama, window=16, n_epochs=1)
    (record,) = result.history
    n_tokens = record["tokens_per_second"] * record["seconds"]
    assert n_tokens == pytest.approx(ids_of(TEXTS, network, 16).lengths.sum())


def test_train__batches_that_weigh_nothing__count_as_steps(tiny_llama: str) -> None:
    noting = Mock(spec=TrainingCallback, on_epoch=Mock(return_value=False))
    weight = np.zeros(len(TEXTS))
    weight[0] = 1.0
    network, result = run(tiny_llama, weight=weight, batch_size=2, n_epochs=2, callbacks=(noting,))
    assert [call.args[0].step for call in noting.on_step.mock_calls] == list(range(1, 13))
    assert all(np.isfinite(record["loss"]) for record in result.history)
    assert np.isfinite(scores_of(network)).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_train__half_precision__stays_close_to_fp32(dtype: torch.dtype, tiny_llama: str) -> None:
    full, _ = run(tiny_llama, n_epochs=8)
    half, _ = run(tiny_llama, n_epochs=8, dtype=dtype)
    assert np.abs(scores_of(full) - scores_of(half)).max() < 0.15 * np.abs(scores_of(full)).max()


def test_train__small_updates_in_bf16__are_not_lost(tiny_llama: str) -> None:
    # Updates of 1e-5 vanish in bf16 weights; in the fp32 originals they add up.
    network, _ = run(tiny_llama, dtype=torch.bfloat16, learning_rate=1e-5, n_epochs=2)
    source = load_pretrained(tiny_llama)
    moved = [
        float((m - source.fp32_copy(n, network.device)).abs().max())
        for n, m in network.learnable.items()
        if m.ndim > 1
    ]
    assert min(moved) > 1e-6


def test_train__weights_that_fall_off_steeply__give_finite_scores(tiny_llama: str) -> None:
    weight = 0.5 ** (np.arange(len(TEXTS)) * 20.0)
    network, _ = run(tiny_llama, weight=weight, batch_size=4)
    assert np.isfinite(scores_of(network)).all()


def test_train__a_loss_that_runs_off__is_an_error(tiny_llama: str) -> None:
    with pytest.raises(DivergedError, match="lower `learning_rate`"):
        run(tiny_llama, head_learning_rate=1e38, max_grad_norm=None, n_epochs=30)


def test_train__a_last_step_that_runs_off__is_an_error(tiny_llama: str) -> None:
    # One step: its loss is still finite, only the weights after it are not.
    with pytest.raises(DivergedError, match="What was learned must stay finite"):
        run(tiny_llama, head_learning_rate=1e39, n_epochs=1, batch_size=64)
