"""Attention over all texts at once, as a GPU wants it: one launch a layer, not one a text.

In half precision a kernel of torch's takes texts that lie end to end. Before it is trusted on a
device it is proved there. Where it doesn't run, in fp32 for one, each text gets a row, filled up to
the longest.
"""

import logging
from functools import cache
from inspect import signature
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from skgpt.model.boundaries import Boundaries, sees
from skgpt.model.device import ran_out

_LOG = logging.getLogger("skgpt")
_MOST_FILLER = 4  # rows hold up to so many times the tokens; beyond it, memory goes before time


def fits_one_kernel(q: Tensor, k: Tensor, v: Tensor) -> bool:
    """Say whether one kernel of torch's takes all texts: on CUDA, in half precision."""
    if not q.is_cuda or q.dtype not in (torch.bfloat16, torch.float16):
        return False
    width = q.shape[-1]
    of_one_width = width == k.shape[-1] == v.shape[-1]
    return of_one_width and width % 8 == 0 and width <= 256 and _has_one_kernel(q.device)


@cache
def _has_one_kernel(device: torch.device) -> bool:
    from torch.nn.attention.varlen import varlen_attn

    if torch.cuda.get_device_capability(device) < (8, 0):
        return False
    return "window_size" in signature(varlen_attn).parameters and _is_proved(device)


def _is_proved(device: torch.device) -> bool:
    """Say whether the kernel agrees with plain attention, forwards and backwards, on a device."""
    generator = torch.Generator().manual_seed(0)
    drawn = [torch.randn(12, heads, 16, generator=generator) for heads in (4, 2, 2)]
    found = []
    # A prediction may be the first to ask, and what it makes can't be kept for a backward pass.
    with torch.inference_mode(False), torch.enable_grad():
        boundaries = Boundaries.of([7, 5], device)
        for attend in (in_one_kernel, padded):
            q, k, v = (x.to(device, torch.bfloat16).requires_grad_() for x in drawn)
            try:
                out = attend(q, k, v, boundaries, 0.25, True, None)
                grads = torch.autograd.grad(out.float().square().sum(), (q, k, v))
            except (RuntimeError, NotImplementedError, TypeError, ValueError) as error:
                if ran_out(error):
                    raise  # which says nothing about the kernel
                _LOG.warning(
                    "attention over texts end to end doesn't run on %s, so texts are padded "
                    "for it, which is slower: %s",
                    device,
                    error,
                )
                return False
            found.append([x.detach().float().cpu() for x in (out, *grads)])
    agrees = all(
        torch.allclose(one, two, rtol=0.05, atol=0.05) for one, two in zip(*found, strict=True)
    )
    if not agrees:
        _LOG.warning(
            "attention over texts end to end is wrong on %s, so texts are padded for it, which is "
            "slower",
            device,
        )
    return agrees


def pays(boundaries: Boundaries) -> bool:
    """Say whether rows of one length hold little but texts."""
    n_places = len(boundaries.lengths) * boundaries.longest
    return n_places <= _MOST_FILLER * sum(boundaries.lengths)


def padded(
    q_THD: Tensor,
    k_THD: Tensor,
    v_THD: Tensor,
    boundaries: Boundaries,
    scale: float,
    causal: bool,
    window: int | None,
) -> Tensor:
    """Attention with a row for each text: one launch for all, where each costs its time."""
    q, k, v = (_in_rows(x_THD, boundaries) for x_THD in (q_THD, k_THD, v_THD))
    shared = q.shape[1] != k.shape[1]
    if causal and (window is None or window >= boundaries.longest):
        # What fills a row up stands behind its text, which looks back only.
        out = F.scaled_dot_product_attention(
            q, k, v, is_causal=True, scale=scale, enable_gqa=shared
        )
    else:
        at = torch.arange(boundaries.longest, device=q.device)
        seen_B1LL = _filled(boundaries, at)[:, None, None, :] & sees(
            at[:, None], at[None, :], causal, window
        )
        # A row of nothing but what isn't seen would be nan: what fills up sees itself.
        seen_B1LL = seen_B1LL | torch.eye(len(at), dtype=torch.bool, device=q.device)
        out = F.scaled_dot_product_attention(
            q, k, v, attn_mask=seen_B1LL, scale=scale, enable_gqa=shared
        )
    return out.transpose(1, 2)[boundaries.places_2T]


def padded_ends(
    q_BHD: Tensor,
    k_THD: Tensor,
    v_THD: Tensor,
    boundaries: Boundaries,
    scale: float,
    window: int | None,
) -> Tensor:
    """Attention of each text's last token, with a row for each text."""
    k, v = (_in_rows(x_THD, boundaries) for x_THD in (k_THD, v_THD))
    at = torch.arange(boundaries.longest, device=k.device)
    seen_BL = _filled(boundaries, at)
    if window is not None:
        last_B1 = boundaries.cumulative_B1.diff()[:, None] - 1
        seen_BL = seen_BL & (last_B1 - at < window)
    out = F.scaled_dot_product_attention(
        q_BHD[:, :, None],
        k,
        v,
        attn_mask=seen_BL[:, None, None],
        scale=scale,
        enable_gqa=q_BHD.shape[1] != k.shape[1],
    )
    return out[:, :, 0]


def _in_rows(x_THD: Tensor, boundaries: Boundaries) -> Tensor:
    """Return (B, heads, L, D), zero behind each text."""
    shape = (len(boundaries.lengths), boundaries.longest, *x_THD.shape[1:])
    return x_THD.new_zeros(shape).index_put(boundaries.places_2T, x_THD).transpose(1, 2)


def _filled(boundaries: Boundaries, at_L: Tensor) -> Tensor:
    """Say which places of each row are its text's: (B, L)."""
    return at_L < boundaries.cumulative_B1.diff()[:, None]


def in_one_kernel(
    q_THD: Tensor,
    k_THD: Tensor,
    v_THD: Tensor,
    boundaries: Boundaries,
    scale: float,
    causal: bool,
    window: int | None,
    queries: Boundaries | None = None,
) -> Tensor:
    """Attention of texts that lie end to end; `queries` where these are fewer than the keys."""
    queries = queries or boundaries
    from torch.nn.attention.varlen import varlen_attn

    n_shared = q_THD.shape[1] // k_THD.shape[1]
    options: dict[str, Any] = {}
    if n_shared > 1:
        if "enable_gqa" in signature(varlen_attn).parameters:
            options["enable_gqa"] = True
        else:  # torch 2.11
            k_THD, v_THD = (x.repeat_interleave(n_shared, dim=1) for x in (k_THD, v_THD))
    reach = -1 if window is None or window >= boundaries.longest else window - 1
    out_THD: Any = varlen_attn(
        q_THD.contiguous(),
        k_THD.contiguous(),
        v_THD.contiguous(),
        queries.cumulative_B1,
        boundaries.cumulative_B1,
        queries.longest,
        boundaries.longest,
        scale=scale,
        window_size=(reach, 0) if causal else (-1, -1),
        **options,
    )
    attended_THD: Tensor = out_THD
    return attended_THD
