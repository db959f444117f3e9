"""Cutting a trunk, proved on every architecture that the tiny models know."""

import weakref
from collections.abc import Callable

import pytest
import torch

from skgpt.pretrained.loading import Source, load_source
from skgpt.testing.tiny import _ARCHITECTURES as ARCHITECTURES
from skgpt.trunk.layers import Cut, find_blocks

CPU = torch.device("cpu")
IDS = torch.tensor([[5, 9, 17, 33, 64, 3], [8, 2, 90, 41, 7, 11]])


@pytest.fixture(params=ARCHITECTURES)
def source(request: pytest.FixtureRequest, tiny_model: Callable[[str], str]) -> Source:
    return load_source(tiny_model(request.param))


def inputs_of(source: Source) -> dict[str, torch.Tensor]:
    return {"attention_mask": torch.ones_like(IDS)} if source.proof.needs_mask else {}


@torch.no_grad()
def test_cut__every_architecture_and_depth__equals_the_whole_trunk(source: Source) -> None:
    inputs = inputs_of(source)
    whole = source.copy_trunk(3, torch.float32, CPU)(input_ids=IDS, **inputs).last_hidden_state
    for k in (1, 2, 3):
        before = Cut(source.copy_trunk(k, torch.float32, CPU), k)
        trunk = source.copy_trunk(3, torch.float32, CPU)
        after = Cut(trunk, k)
        trunk(input_ids=IDS, **inputs)  # a cut learns what its blocks return from a real run
        hidden = before.take(input_ids=IDS, **inputs)
        torch.testing.assert_close(after.put(hidden, **inputs), whole)


@torch.no_grad()
def test_cut__hidden_states_put_in__are_what_counts(source: Source) -> None:
    inputs = inputs_of(source)
    trunk = source.copy_trunk(3, torch.float32, CPU)
    cut = Cut(trunk, 2)
    hidden = cut.take(input_ids=IDS, **inputs)
    same = cut.put(hidden, **inputs)
    other = cut.put(hidden.flip(0), **inputs)
    torch.testing.assert_close(other, same.flip(0))
    assert not torch.allclose(other, same, atol=1e-2)


@torch.no_grad()
def test_cut__neither_taking_nor_putting__leaves_the_trunk_as_it_was(source: Source) -> None:
    inputs = inputs_of(source)
    trunk = source.copy_trunk(3, torch.float32, CPU)
    before = trunk(input_ids=IDS, **inputs).last_hidden_state
    cut = Cut(trunk, 2)
    cut.put(cut.take(input_ids=IDS, **inputs), **inputs)
    assert torch.equal(trunk(input_ids=IDS, **inputs).last_hidden_state, before)


@torch.no_grad()
def test_truncated_trunk__n_layers__runs_the_first_blocks_and_the_final_norm(
    source: Source,
) -> None:
    trunk = source.copy_trunk(2, torch.float32, CPU)
    assert len(find_blocks(trunk)) == 2
    inputs = inputs_of(source)
    short = trunk(input_ids=IDS, **inputs).last_hidden_state
    # The same by another way: what the whole trunk has after block 2, with block 3 stepped over.
    whole = source.copy_trunk(3, torch.float32, CPU)
    after_two = Cut(source.copy_trunk(2, torch.float32, CPU), 2).take(input_ids=IDS, **inputs)
    last = Cut(whole, 3)
    whole(input_ids=IDS, **inputs)
    torch.testing.assert_close(last.put(after_two, **inputs), short)


def test_cut__closed__leaves_no_wrapper_and_no_cycle(source: Source) -> None:
    trunk = source.copy_trunk(3, torch.float32, CPU)
    cut = Cut(trunk, 2)
    blocks = [weakref.ref(block) for block in find_blocks(trunk)]
    kind = type(find_blocks(trunk)[2])
    assert type(blocks[0]()) is not kind
    cut.close()
    assert all(type(block()) is kind and "_door" not in vars(block()) for block in blocks)
    del trunk, cut
    assert all(block() is None for block in blocks)  # freed at once, not when gc comes by
