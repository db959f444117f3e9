"""Splitting and shortening a trunk; test_architectures.py splits every architecture."""

import weakref
from collections.abc import Callable

import pytest
import torch

from skgpt.pretrained.loading import load_pretrained
from skgpt.testing.tiny import _ARCHITECTURES as ARCHITECTURES
from skgpt.trunk.layers import SplitTrunk, find_blocks

CPU = torch.device("cpu")
IDS = torch.tensor([[5, 9, 17, 33, 64, 3], [8, 2, 90, 41, 7, 11]])


@torch.no_grad()
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_truncated_trunk__n_layers__runs_the_first_blocks_and_the_final_norm(
    architecture: str, tiny_model: Callable[[str], str]
) -> None:
    pretrained = load_pretrained(tiny_model(architecture))
    trunk = pretrained.copy_trunk(2, torch.float32, CPU)
    assert len(find_blocks(trunk)) == 2
    needs_mask = pretrained.capabilities.needs_mask
    inputs = {"attention_mask": torch.ones_like(IDS)} if needs_mask else {}
    short = trunk(input_ids=IDS, **inputs).last_hidden_state
    # The same by another way: what the whole trunk has after block 2, with block 3 stepped over.
    whole = pretrained.copy_trunk(3, torch.float32, CPU)
    after_two = SplitTrunk(pretrained.copy_trunk(2, torch.float32, CPU), 2).run_lower(
        input_ids=IDS, **inputs
    )
    last = SplitTrunk(whole, 3)
    whole(input_ids=IDS, **inputs)
    torch.testing.assert_close(last.run_upper(after_two, **inputs), short)


def test_split_trunk__dropped__leaves_no_cycle(tiny_llama: str) -> None:
    trunk = load_pretrained(tiny_llama).copy_trunk(3, torch.float32, CPU)
    split = SplitTrunk(trunk, 2)
    blocks = [weakref.ref(block) for block in find_blocks(trunk)]
    kind = type(find_blocks(trunk)[2])
    assert type(blocks[0]()) is not kind
    del trunk, split
    assert all(block() is None for block in blocks)  # freed at once, not when gc comes by
