"""The head learns alone first: nothing else moves, layers run once, then all of it learns."""

from dataclasses import replace
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch

from skgpt.data.splits import Split
from skgpt.network.features import TextFeatures
from skgpt.network.lora import AdapterSpec
from tests.training.test_loop import run
from tests.training.test_skips import learned

LORA = AdapterSpec(rank=2, alpha=4.0, dropout=0.0, target_modules="all-linear")
KINDS = [{"trainable": "all"}, {"trainable": 1}, {"trainable": "all", "lora": LORA}]
CONSTANT = {"schedule": "constant", "warmup_ratio": 0.0}


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_head_first__as_long_as_it_lasts__moves_the_head_alone(
    kind: dict[str, Any], dtype: torch.dtype, tiny_llama: str
) -> None:
    start, _ = run(tiny_llama, n_epochs=1, learning_rate=0.0, **kind)
    options = {"dtype": dtype, "start": start, **kind}
    head, _ = run(tiny_llama, n_epochs=3, head_first_epochs=3, **options)
    still = learned(start)
    for name, tensor in learned(head).items():
        assert torch.equal(tensor, still[name]) != (name == "head.weight"), name
    both, _ = run(tiny_llama, n_epochs=4, head_first_epochs=3, **options)
    moved = [n for n, tensor in learned(both).items() if not torch.equal(tensor, still[n])]
    assert {n.rpartition(".")[0] for n in moved} > {"head"}


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_head_first__then_all__equals_two_runs(kind: dict[str, Any], tiny_llama: str) -> None:
    options = {**CONSTANT, **kind}
    whole, result = run(tiny_llama, n_epochs=5, head_first_epochs=2, **options)
    first, before = run(tiny_llama, n_epochs=2, head_first_epochs=2, **options)
    going_on = {"first_epoch": 2, "start": first, "moments": before.moments}
    second, after = run(tiny_llama, n_epochs=3, **going_on, **options)
    losses = [record["loss"] for record in (*before.history, *after.history)]
    np.testing.assert_allclose([r["loss"] for r in result.history], losses, rtol=1e-5)
    for name, tensor in learned(second).items():
        torch.testing.assert_close(learned(whole)[name], tensor, rtol=1e-4, atol=1e-6)
    assert [r["learning_rate"] > 0 for r in result.history] == [False] * 2 + [True] * 3


@pytest.mark.parametrize("trainable", ["all", 1])
def test_head_first__layers__run_once_for_all_its_epochs(trainable: Any, tiny_llama: str) -> None:
    split = Split(train=np.arange(9), held_out=np.arange(9, 12))
    options = {"trainable": trainable, "split": split, "n_epochs": 4}
    with patch.object(TextFeatures, "_run", autospec=True, side_effect=TextFeatures._run) as spied:
        run(tiny_llama, head_first_epochs=4, **options)
    rows_run = np.concatenate([call.args[1] for call in spied.mock_calls])
    assert sorted(rows_run) == list(range(12))


def test_head_first__no_room_for_states__runs_layers_without_dropout(tiny_llama: str) -> None:
    lora = replace(LORA, dropout=0.5)
    options: dict[str, Any] = {"trainable": "all", "lora": lora}
    start, _ = run(tiny_llama, n_epochs=2, **options)  # its adapters add something
    options |= {"start": start, "n_epochs": 4, "head_first_epochs": 2}
    roomy, _ = run(tiny_llama, **options)
    none, _ = run(tiny_llama, memory_budget=0, **options)
    for name, tensor in learned(none).items():
        torch.testing.assert_close(learned(roomy)[name], tensor, rtol=1e-3, atol=1e-5)
