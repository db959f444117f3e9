"""Dropout that is drawn for each row by itself: however a batch is cut, a row's is the same."""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

_LEVELS = 1 << 16  # a share is rounded to as many


@dataclass(frozen=True)
class _Draw:
    key: tuple[int, ...]
    rows: Sequence[int]
    lengths: Sequence[int]


class RowNoise:
    """Says which rows a training step is at; without it there is no dropout.

    Parameters
    ----------
    padded : bool
        Whether texts lie side by side, not end to end.
    """

    def __init__(self, *, padded: bool) -> None:
        self.padded = padded
        self._draw: _Draw | None = None

    @contextmanager
    def at(
        self, key: tuple[int, ...], rows: NDArray[np.int64], lengths: NDArray[np.int64]
    ) -> Iterator[None]:
        """Have the body's forward passes drop.

        Parameters
        ----------
        key : tuple of int
            The seed, and where in the run the step is.
        rows : ndarray of shape (B,)
            The numbers of the texts that are run, in the order they lie in.
        lengths : ndarray of shape (B,)
            Their tokens.
        """
        self._draw = _Draw(key, rows.tolist(), lengths.tolist())
        try:
            yield
        finally:
            self._draw = None

    @contextmanager
    def over(self, rows: NDArray[np.int64], lengths: NDArray[np.int64]) -> Iterator[None]:
        """Have the body's forward passes drop, if they would, for other rows in the same step.

        Parameters
        ----------
        rows : ndarray of shape (B,)
            The numbers of what is run, in the order it lies in.
        lengths : ndarray of shape (B,)
            Its tokens.
        """
        draw = self._draw
        if draw is not None:
            self._draw = _Draw(draw.key, rows.tolist(), lengths.tolist())
        try:
            yield
        finally:
            self._draw = draw

    @contextmanager
    def off(self) -> Iterator[None]:
        """Have the body's forward passes drop nothing, whatever step is under way."""
        draw, self._draw = self._draw, None
        try:
            yield
        finally:
            self._draw = draw

    def mask(self, x: Tensor, index: int, share: float) -> Tensor | None:
        """Return what to multiply with, of x's shape; None where nothing is dropped.

        Parameters
        ----------
        x : Tensor of shape (B, L, H), or (T, H) or (1, T, H) where texts lie end to end
        index : int
            Of the layer that asks: each drops others.
        share : float
            Of the values, to drop.
        """
        draw = self._draw
        if draw is None:
            return None
        mask = x.new_ones(x.shape)
        texts = mask if self.padded else mask.view(-1, x.shape[-1]).split(_with_rest(draw, x))
        for row, length, text in zip(draw.rows, draw.lengths, texts, strict=False):
            kept = _drawn((*draw.key, row, index), (length, x.shape[-1]), share, x.device)
            text[:length] = kept
        return mask.div_(1 - share)


def _with_rest(draw: _Draw, x: Tensor) -> list[int]:
    """Return the lengths of what lies end to end, with filler tokens behind the texts."""
    rest = x.numel() // x.shape[-1] - sum(draw.lengths)
    return [*draw.lengths, rest]


def _drawn(
    key: tuple[int, ...], shape: tuple[int, int], share: float, device: torch.device
) -> Tensor:
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    generator = torch.Generator(device).manual_seed(int.from_bytes(digest, "little") >> 1)
    n = shape[0] * shape[1]
    # Four values out of each draw: a generator on a CPU is slow.
    raw = torch.empty(-(-n // 4), dtype=torch.int64, device=device)
    raw.random_(-(2**63), None, generator=generator)
    level = round(share * _LEVELS) - _LEVELS // 2
    return (raw.view(torch.int16)[:n] >= level).view(shape)


class RowDropout(nn.Module):
    """Dropout of each row's own, off unless its `RowNoise` says which rows there are.

    Parameters
    ----------
    share : float
        Of the values, to drop; the rest are scaled up.
    noise : RowNoise
    index : int
        Of this layer among all.
    """

    def __init__(self, share: float, noise: RowNoise, index: int) -> None:
        super().__init__()
        self.share = share
        self.noise = noise
        self.index = index

    def forward(self, x: Tensor) -> Tensor:
        """Return x, some of it zero and the rest scaled up."""
        mask = self.noise.mask(x, self.index, self.share)
        return x if mask is None else x * mask
