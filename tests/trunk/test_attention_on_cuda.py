"""What a GPU's attention does, as far as a CPU can say."""

import logging
from typing import Any

import pytest
import torch

from skgpt.trunk import attention as attention_on_cuda
from skgpt.trunk.attention import (
    Boundaries,
    in_padded_rows,
    in_varlen_kernel,
    packed_attention,
    padding_is_cheap,
    varlen_kernel_is_right,
)
from tests.trunk.test_attention import CPU, LENGTHS, random


def gradients_of(out: torch.Tensor, inputs: list[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    return torch.autograd.grad(out.square().sum(), inputs)


def drawn(heads: tuple[int, int]) -> list[torch.Tensor]:
    return [random(sum(LENGTHS), n, 8).requires_grad_() for n in (heads[0], heads[1], heads[1])]


@pytest.mark.parametrize("heads", [(4, 4), (4, 2)])
@pytest.mark.parametrize("window", [None, 5])
@pytest.mark.parametrize("causal", [True, False])
def test_padded__gradients__are_those_of_a_text_at_a_time(
    causal: bool, window: int | None, heads: tuple[int, int]
) -> None:
    inputs, boundaries = drawn(heads), Boundaries.of(LENGTHS, CPU)
    one = in_padded_rows(*inputs, boundaries, 0.3, causal, window)
    other = packed_attention(*inputs, boundaries, scale=0.3, causal=causal, window=window)
    pairs = zip(gradients_of(one, inputs), gradients_of(other, inputs), strict=True)
    for got, expected in ((one, other), *pairs):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("heads", [(4, 4), (4, 2)])
@pytest.mark.parametrize("window", [None, 1, 5, 70])
def test_padded_ends__value_and_gradients__are_those_of_a_text_at_a_time(
    window: int | None, heads: tuple[int, int]
) -> None:
    boundaries = Boundaries.of(LENGTHS, CPU)
    q, k, v = drawn(heads)
    ends = boundaries.ends_B
    one = in_padded_rows(q[ends], k, v, boundaries, 0.3, True, window, ends_only=True)
    other = packed_attention(q[ends], k, v, boundaries, scale=0.3, window=window, ends_only=True)
    pairs = zip(gradients_of(one, [q, k, v]), gradients_of(other, [q, k, v]), strict=True)
    for got, expected in ((one, other), *pairs):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


def test_places__asked_by_every_layer__are_made_once() -> None:
    boundaries = Boundaries.of([2, 3], CPU)
    texts, places = boundaries.text_and_position_2T
    assert (texts.tolist(), places.tolist()) == ([0, 0, 1, 1, 1], [0, 1, 0, 1, 2])
    assert boundaries.text_and_position_2T[0] is texts


def test_pays__one_long_text_among_short_ones__does_not() -> None:
    assert padding_is_cheap(Boundaries.of(LENGTHS, CPU))
    assert not padding_is_cheap(Boundaries.of([1] * 100 + [500], CPU))


@pytest.mark.parametrize("takes_groups", [True, False])
def test_in_varlen_kernel__a_kernel_with_and_without_groups_of_heads__is_called_as_it_wants(
    takes_groups: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Torch 2.11's takes as many heads of keys as of queries."""

    def attend(
        query: Any,
        key: Any,
        value: Any,
        cu_q: Any,
        cu_k: Any,
        max_q: int,
        max_k: int,
        **options: Any,
    ) -> Any:
        boundaries = Boundaries.of(cu_k.diff().tolist(), CPU)
        assert options["window_size"] == (-1, 0)
        return in_padded_rows(query, key, value, boundaries, options["scale"], True, None)

    def with_groups(
        *args: Any, scale: float, window_size: tuple[int, int], enable_gqa: bool = False
    ) -> Any:
        assert enable_gqa == (args[0].shape[1] != args[1].shape[1])
        return attend(*args, scale=scale, window_size=window_size)

    def without(*args: Any, scale: float, window_size: tuple[int, int]) -> Any:
        assert args[0].shape[1] == args[1].shape[1]
        return attend(*args, scale=scale, window_size=window_size)

    kernel = with_groups if takes_groups else without
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", kernel)
    boundaries = Boundaries.of(LENGTHS, CPU)
    for heads in ((4, 4), (4, 2)):
        inputs = drawn(heads)
        got = in_varlen_kernel(*inputs, boundaries, 0.3, True, None)
        expected = in_padded_rows(*inputs, boundaries, 0.3, True, None)
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)


def test_proof_of_the_kernel__it_does_not_run__is_said(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "skgpt"), torch.inference_mode():
        assert not varlen_kernel_is_right(CPU)  # the kernel is one for GPUs
    assert "doesn't run on cpu" in caplog.text


def test_proof_of_the_kernel__memory_runs_out__is_no_verdict(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def kernel(*args: Any) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(attention_on_cuda, "in_varlen_kernel", kernel)
    with pytest.raises(torch.OutOfMemoryError):
        varlen_kernel_is_right(CPU)
    assert not caplog.messages


@pytest.mark.parametrize("factor", [1.0, 1.2])
def test_proof_of_the_kernel__wrong_values__are_noticed(
    factor: float, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def kernel(*args: Any) -> torch.Tensor:
        assert not args[3].cumulative_B1.is_inference()  # torch's kernel keeps them
        return factor * in_padded_rows(*args)

    monkeypatch.setattr(attention_on_cuda, "in_varlen_kernel", kernel)
    with torch.inference_mode():
        assert varlen_kernel_is_right(CPU) == (factor == 1.0)
    assert ("is wrong on cpu" in caplog.text) == (factor != 1.0)
