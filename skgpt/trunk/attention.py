"""Where the texts of a packed row begin and end, and what a token of one sees.

Attention over all texts at once, as a GPU wants it: one launch a layer, not one a text.

In half precision a kernel of torch's takes texts that lie end to end. Before it is trusted on a
device it is proved there. Where it doesn't run, in fp32 for one, each text gets a row, filled up to
the longest.

Packed attention: texts lie end to end, and none of them sees another.

One function, registered with transformers under a name of ours, does the attention of every
architecture that goes through transformers' registry. Where the texts begin and end travels as a
keyword argument of the model's forward pass, never in a global: threads must not meet. Whether an
architecture hands it down, and needs no more than it, is proved when the model is loaded.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from inspect import signature
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from skgpt.device import ran_out, to_device


@dataclass(frozen=True)
class Boundaries:
    """Where the texts of a packed row begin and end; made once a batch, not once a layer.

    Parameters
    ----------
    lengths : tuple of int
        Tokens of each text.
    cumulative_B1 : Tensor of shape (B + 1,), int32
        Where each text begins, on the device, and where the last one ends.
    longest : int
    ends_only : bool, default=False
        Whether the last block need return nothing but the last token of each text.
    """

    lengths: tuple[int, ...]
    cumulative_B1: Tensor
    longest: int
    ends_only: bool = False

    @property
    def ends_B(self) -> Tensor:
        """The place of each text's last token among all T."""
        return self.cumulative_B1[1:].long() - 1

    @cached_property  # every layer asks
    def places_2T(self) -> tuple[Tensor, Tensor]:
        """Which text each token is of, and its place there."""
        starts_B1 = self.cumulative_B1.long()
        n_tokens = sum(self.lengths)
        texts_T = torch.repeat_interleave(starts_B1.diff(), output_size=n_tokens)
        return texts_T, torch.arange(n_tokens, device=starts_B1.device) - starts_B1[texts_T]

    @classmethod
    def of(cls, lengths: Sequence[int], device: torch.device) -> "Boundaries":
        """Make the boundaries of texts of these lengths."""
        ends = np.cumsum([0, *lengths], dtype=np.int32)
        return cls(tuple(lengths), to_device(ends, device), max(lengths))


def sees(query: Tensor, key: Tensor, causal: bool, window: int | None) -> Tensor:
    """Say which keys a query sees, by their places in the text."""
    back = query - key
    seen = back >= 0 if causal else torch.ones_like(back, dtype=torch.bool)
    return seen if window is None else seen & (back.abs() < window)


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


__all__ = ["Boundaries", "attention_of_ends", "pack", "packed_attention"]

NAME = "skgpt_packed"


def pack(trunk: Any) -> None:
    """Have a trunk compute its attention packed; its caller must own it, configuration included."""
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(NAME, _for_transformers)
    AttentionMaskInterface.register(NAME, _no_mask)
    trunk.config._attn_implementation = NAME


def _no_mask(*args: Any, **kwargs: Any) -> None:
    return None


def _for_transformers(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    boundaries: Boundaries | None = None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    is_causal: bool | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention as transformers calls it: (1, heads, T, D) in, (1, T, heads, D) out."""
    if softcap is not None or s_aux is not None:
        raise NotImplementedError("capped scores and attention sinks are not computed packed")
    causal = is_causal_in(module, is_causal)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if boundaries is None:  # each row is a text
        rows = _one_text(query, key, value, scale, causal, sliding_window)
        return rows.transpose(1, 2), None
    q_THD, k_THD, v_THD = (x[0].transpose(0, 1) for x in (query, key, value))
    out_THD = packed_attention(
        q_THD, k_THD, v_THD, boundaries, scale=scale, causal=causal, window=sliding_window
    )
    return out_THD[None], None


def is_causal_in(module: Any, is_causal: bool | None) -> bool:
    """Say whether a call from a module is causal: as it says, or else as the module says."""
    return bool(getattr(module, "is_causal", True) if is_causal is None else is_causal)


def packed_attention(
    q_THD: Tensor,
    k_THD: Tensor,
    v_THD: Tensor,
    boundaries: Boundaries,
    *,
    scale: float,
    causal: bool = True,
    window: int | None = None,
) -> Tensor:
    """Let each token attend to its own text.

    Parameters
    ----------
    q_THD : Tensor of shape (T, heads, D)
    k_THD, v_THD : Tensor of shape (T, kv_heads, D)
        With fewer heads than the queries have, each serves several of theirs.
    boundaries : Boundaries
    scale : float
        What the scores are multiplied with.
    causal : bool, default=True
        Whether a token sees only itself and what stands before it.
    window : int, default=None
        How many tokens one sees, itself included, looking back and, if it is not causal, looking
        ahead; None for all.

    Returns
    -------
    out_THD : Tensor of shape (T, heads, D)
        Of the queries' dtype.
    """
    # To both sides the kernel documents no window, only to look back.
    documented = causal or window is None or window >= boundaries.longest
    if documented and fits_one_kernel(q_THD, k_THD, v_THD):
        return in_one_kernel(q_THD, k_THD, v_THD, boundaries, scale, causal, window)
    if q_THD.is_cuda and pays(boundaries):
        return padded(q_THD, k_THD, v_THD, boundaries, scale, causal, window)
    dtype = q_THD.dtype
    if q_THD.device.type == "cpu":
        # In bf16 the backward pass takes three times as long, so the whole of it is fp32.
        q_THD, k_THD, v_THD = q_THD.float(), k_THD.float(), v_THD.float()
    # Split, not sliced: the gradients of slices would each fill all T tokens. And along the tokens
    # before heads go first: the kernel keeps a token's heads together, so that what it returns,
    # forwards and backwards, is laid end to end by plain copies.
    split = [x_THD.split(boundaries.lengths) for x_THD in (q_THD, k_THD, v_THD)]
    out = []
    for text in zip(*split, strict=True):
        q, k, v = (x_LHD.transpose(0, 1)[None] for x_LHD in text)
        out.append(_one_text(q, k, v, scale, causal, window)[0].transpose(0, 1))
    return torch.cat(out).to(dtype)


def attention_of_ends(
    q_BHD: Tensor,
    k_THD: Tensor,
    v_THD: Tensor,
    boundaries: Boundaries,
    *,
    scale: float,
    window: int | None = None,
) -> Tensor:
    """Let the last token of each text attend to its text, as `packed_attention` does for all.

    Parameters
    ----------
    q_BHD : Tensor of shape (B, heads, D)
        Of the last tokens alone.
    k_THD, v_THD : Tensor of shape (T, kv_heads, D)
    boundaries : Boundaries
    scale : float
    window : int, default=None

    Returns
    -------
    out_BHD : Tensor of shape (B, heads, D)
        Of the queries' dtype.
    """
    whole = window is None or window >= boundaries.longest
    if whole and fits_one_kernel(q_BHD, k_THD, v_THD):
        ones = Boundaries.of([1] * len(q_BHD), q_BHD.device)
        return in_one_kernel(q_BHD, k_THD, v_THD, boundaries, scale, False, None, queries=ones)
    if q_BHD.is_cuda and pays(boundaries):
        return padded_ends(q_BHD, k_THD, v_THD, boundaries, scale, window)
    dtype = q_BHD.dtype
    if q_BHD.device.type == "cpu":
        q_BHD, k_THD, v_THD = q_BHD.float(), k_THD.float(), v_THD.float()
    keys, values = (x_THD.split(boundaries.lengths) for x_THD in (k_THD, v_THD))
    first = 0 if window is None else -window
    out = [
        # The last token sees all that its window reaches: nothing has to be hidden from it.
        _one_text(
            q_HD[None, :, None],
            k[first:].transpose(0, 1)[None],
            v[first:].transpose(0, 1)[None],
            scale,
            causal=False,
            window=None,
        )
        for q_HD, k, v in zip(q_BHD, keys, values, strict=True)
    ]
    return torch.cat(out)[:, :, 0].to(dtype)


def _one_text(
    q: Tensor, k: Tensor, v: Tensor, scale: float, causal: bool, window: int | None
) -> Tensor:
    length, shared = q.shape[2], q.shape[1] != k.shape[1]
    if window is not None and window < length:
        at = torch.arange(length, device=q.device)
        seen = sees(at[:, None], at[None, :], causal, window)
        return F.scaled_dot_product_attention(
            q, k, v, attn_mask=seen, scale=scale, enable_gqa=shared
        )
    return F.scaled_dot_product_attention(q, k, v, is_causal=causal, scale=scale, enable_gqa=shared)
