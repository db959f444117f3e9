"""Dropout of each row's own: what shares its batch, and where it lies, shows in nothing."""

import numpy as np
import pytest
import torch
from torch import Tensor

from skgpt.network.lora import RowDropout, RowNoise

WIDTH = 6
LENGTHS = np.array([3, 1, 5, 2])


def dropped(
    rows: list[int],
    *,
    padded: bool = False,
    filler: int = 0,
    index: int = 0,
    key: tuple[int, ...] = (0, 0),
    share: float = 0.5,
) -> dict[int, Tensor]:
    """Return what is left of ones, row by row."""
    noise = RowNoise(padded=padded)
    layer = RowDropout(share, noise, index)
    lengths = LENGTHS[rows]
    if padded:
        x = torch.ones(len(rows), int(lengths.max()) + filler, WIDTH)
    else:
        x = torch.ones(1, int(lengths.sum()) + filler, WIDTH)
    with noise.at(key, np.array(rows), lengths):
        left = layer(x)
    if padded:
        return {row: left[i, : LENGTHS[row]] for i, row in enumerate(rows)}
    texts = left[0, : int(lengths.sum())].split(lengths.tolist())
    return dict(zip(rows, texts, strict=True))


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("rows", [[0, 1, 2, 3], [3, 2, 1, 0], [2, 0]])
@pytest.mark.parametrize("filler", [0, 4])
def test_dropout__whatever_shares_the_batch__is_the_rows_own(
    padded: bool, rows: list[int], filler: int
) -> None:
    for row, left in dropped(rows, padded=padded, filler=filler).items():
        (alone,) = dropped([row]).values()
        assert torch.equal(left, alone)


def test_dropout__flat_states__are_as_those_with_a_batch_dimension() -> None:
    noise = RowNoise(padded=False)
    layer = RowDropout(0.5, noise, 0)
    with noise.at((0, 0), np.array([0, 1]), LENGTHS[:2]):
        flat = layer(torch.ones(4, WIDTH))
        row = layer(torch.ones(1, 4, WIDTH))
    assert torch.equal(flat, row[0])


@pytest.mark.parametrize("change", [{"index": 1}, {"key": (0, 1)}, {"key": (1, 0)}])
def test_dropout__another_layer_step_or_seed__drops_others(change: dict[str, object]) -> None:
    one, other = dropped([0, 1, 2, 3]), dropped([0, 1, 2, 3], **change)  # type: ignore[arg-type]
    assert not torch.equal(one[2], other[2])


def test_dropout__two_rows_of_a_step__drop_others() -> None:
    left = dropped([0, 2])
    assert not torch.equal(left[0], left[2][: LENGTHS[0]])


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_dropout__many_values__drops_its_share_and_keeps_the_mean(share: float) -> None:
    noise = RowNoise(padded=False)
    layer = RowDropout(share, noise, 0)
    lengths = np.array([100, 101])
    with noise.at((3,), np.array([0, 1]), lengths):
        left = layer(torch.ones(201, 999, dtype=torch.float64))
    assert set(left.unique().tolist()) == {0.0, 1 / (1 - share)}
    assert float((left == 0).double().mean()) == pytest.approx(share, abs=0.005)
    assert float(left.mean()) == pytest.approx(1, abs=0.02)


def test_dropout__no_step_under_way__is_none() -> None:
    noise = RowNoise(padded=False)
    layer = RowDropout(0.5, noise, 0)
    x = torch.ones(3, WIDTH)
    assert layer(x) is x
    with noise.at((0,), np.array([0]), np.array([3])):
        assert not torch.equal(layer(x), x)
    assert layer(x) is x
