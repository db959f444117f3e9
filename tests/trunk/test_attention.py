"""Packed attention: texts end to end are as good as each alone, on every way that there is."""

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from torch import Tensor

from skgpt.network.layout import Layout
from skgpt.pretrained.loading import load_pretrained
from skgpt.trunk import attention
from skgpt.trunk.attention import (
    NAME,
    Boundaries,
    Prefix,
    Rule,
    in_context,
    in_padded_rows,
    in_varlen_kernel,
    pack,
    packed_attention,
    padding_is_cheap,
    text_by_text,
    varlen_kernel_is_right,
)
from skgpt.trunk.capabilities import probe
from skgpt.trunk.layers import find_blocks

CPU = torch.device("cpu")
GENERATOR = torch.Generator().manual_seed(0)
LENGTHS = [3, 1, 70, 12]


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=GENERATOR)


def drawn(heads: tuple[int, int]) -> list[Tensor]:
    return [random(sum(LENGTHS), n, 8).requires_grad_() for n in (heads[0], heads[1], heads[1])]


def by_the_formula(
    q: Tensor, k: Tensor, v: Tensor, scale: float, causal: bool, window: int | None
) -> Tensor:
    text = np.repeat(np.arange(len(LENGTHS)), LENGTHS)
    back = np.arange(len(text))[:, None] - np.arange(len(text))[None, :]
    seen = (text[:, None] == text[None, :]) & (np.abs(back) < (window or len(text)))
    if causal:
        seen &= back >= 0
    k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], dim=1).transpose(0, 1) for x in (k, v))
    scores = q.transpose(0, 1) @ k.transpose(1, 2) * scale
    weights = scores.masked_fill(~torch.from_numpy(seen), -torch.inf).softmax(-1)
    return (weights @ v).transpose(0, 1)


@pytest.mark.parametrize("attend", [text_by_text, in_padded_rows])
@pytest.mark.parametrize("heads", [(4, 4), (4, 2), (4, 1)])
@pytest.mark.parametrize("window", [None, 1, 5, 70])
@pytest.mark.parametrize(("causal", "ends_only"), [(True, False), (False, False), (True, True)])
def test_packed_attention__each_text__attends_to_itself_alone(
    causal: bool,
    ends_only: bool,
    window: int | None,
    heads: tuple[int, int],
    attend: Callable[..., Tensor],
) -> None:
    inputs, boundaries = drawn(heads), Boundaries.of(LENGTHS, CPU)
    asked = boundaries.ends_B if ends_only else torch.arange(sum(LENGTHS))
    (q, k, v) = inputs
    got = attend(q[asked], k, v, boundaries, Rule(0.3, causal, window, ends_only))
    expected = by_the_formula(*inputs, 0.3, causal, window)[asked]
    grads = [torch.autograd.grad(out.square().sum(), inputs) for out in (got, expected)]
    for one, two in zip((got, *grads[0]), (expected, *grads[1]), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("heads", [(4, 4), (4, 2), (4, 1)])
@pytest.mark.parametrize("ends_only", [False, True])
@pytest.mark.parametrize("window", [None, 5])
def test_attention__behind_a_prefix__as_if_it_stood_before_each_text(
    heads: tuple[int, int], ends_only: bool, window: int | None
) -> None:
    n_before = 6
    before = [random(n_before, n, 8) for n in (heads[0], heads[1], heads[1])]
    inputs = [x.detach() for x in drawn(heads)]
    whole = [
        torch.cat([piece for text in x.split(LENGTHS) for piece in (first, text)])
        for first, x in zip(before, inputs, strict=True)
    ]
    longer = Boundaries.of([n_before + n for n in LENGTHS], CPU)
    expected = text_by_text(*whole, longer, Rule(0.3, window=window))
    ends = zip(longer.ends_B, LENGTHS, strict=True)
    own = torch.cat([torch.arange(end - n + 1, end + 1) for end, n in ends])
    prefix = Prefix({0: (before[1], before[2])})
    boundaries = replace(Boundaries.of(LENGTHS, CPU), prefix=prefix)
    asked = boundaries.ends_B if ends_only else torch.arange(sum(LENGTHS))
    rule = Rule(0.3, window=window, ends_only=ends_only, layer=0)
    args = (inputs[0][asked], *inputs[1:], boundaries, rule)
    for attend in (in_context, packed_attention):
        torch.testing.assert_close(attend(*args), expected[own][asked], rtol=1e-4, atol=1e-5)


def test_boundaries__ends__are_those_of_the_texts() -> None:
    assert Boundaries.of(LENGTHS, CPU).ends_B.tolist() == [2, 3, 73, 85]


@pytest.mark.parametrize("option", [{"softcap": 50.0}, {"s_aux": torch.zeros(4)}])
def test_attention__what_it_does_not_compute__is_refused(option: dict[str, Any]) -> None:
    from transformers import AttentionInterface

    class Holder:
        config = None

    pack(type("Trunk", (), {"config": Holder()})())
    x = random(1, 4, 5, 8)
    with pytest.raises(NotImplementedError):
        AttentionInterface()[NAME](None, x, x, x, None, **option)


def test_probe__a_trunk__is_left_as_it_is(tiny_llama: str) -> None:
    trunk = load_pretrained(tiny_llama).trunk
    before = (trunk.config._attn_implementation, [type(block) for block in find_blocks(trunk)])
    probe(trunk)
    assert before == (trunk.config._attn_implementation, [type(b) for b in find_blocks(trunk)])
    assert before[0] != NAME


def test_padding__one_long_text_among_short_ones__is_not_cheap() -> None:
    assert padding_is_cheap(Boundaries.of(LENGTHS, CPU))
    assert not padding_is_cheap(Boundaries.of([1] * 100 + [500], CPU))


@pytest.mark.parametrize("takes_groups", [True, False])
def test_varlen_kernel__with_and_without_groups_of_heads__is_called_as_it_wants(
    takes_groups: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Torch 2.11's takes as many heads of keys as of queries."""

    def attend(*args: Any, scale: float, window_size: tuple[int, int]) -> Tensor:
        query, key, value, _, cumulative_keys, *_ = args
        assert window_size == (-1, 0)
        assert takes_groups or query.shape[1] == key.shape[1]
        boundaries = Boundaries.of(cumulative_keys.diff().tolist(), CPU)
        return in_padded_rows(query, key, value, boundaries, Rule(scale))

    def with_groups(*args: Any, enable_gqa: bool = False, **options: Any) -> Tensor:
        assert enable_gqa == (args[0].shape[1] != args[1].shape[1])
        return attend(*args, **options)

    kernel = with_groups if takes_groups else attend
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", kernel)
    boundaries = Boundaries.of(LENGTHS, CPU)
    for heads in ((4, 4), (4, 2)):
        inputs = drawn(heads)
        got = in_varlen_kernel(*inputs, boundaries, Rule(0.3))
        expected = in_padded_rows(*inputs, boundaries, Rule(0.3))
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)


def test_varlen_kernel__it_does_not_run__is_said(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "skgpt"), torch.no_grad():
        assert not varlen_kernel_is_right(CPU)  # the kernel is one for GPUs
    assert "doesn't run on cpu" in caplog.text


def test_varlen_kernel__memory_runs_out__is_no_verdict(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    kernel = Mock(side_effect=torch.OutOfMemoryError("CUDA out of memory."))
    monkeypatch.setattr(attention, "in_varlen_kernel", kernel)
    with pytest.raises(torch.OutOfMemoryError):
        varlen_kernel_is_right(CPU)
    assert not caplog.messages


@pytest.mark.parametrize("factor", [1.0, 1.2])
def test_varlen_kernel__wrong_values__are_noticed(
    factor: float, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def kernel(*args: Any) -> Tensor:
        return factor * in_padded_rows(*args)

    monkeypatch.setattr(attention, "in_varlen_kernel", kernel)
    with torch.no_grad():
        assert varlen_kernel_is_right(CPU) == (factor == 1.0)
    assert ("is wrong there" in caplog.text) == (factor != 1.0)


def test_layout__any_number_of_tokens__few_widths_and_little_filler(tiny_llama: str) -> None:
    pretrained = load_pretrained(tiny_llama)
    widths = set()
    for total in range(1, 2049):
        layout = Layout.of(np.array([total]), pretrained, CPU)
        width = sum(layout.boundaries.lengths)
        assert width - total < (64 if total > 512 else 16)
        widths.add(width)
    assert len(widths) <= 32 + 24
