"""Packed attention: texts lie end to end, and none of them sees another.

One function, registered with transformers under a name of ours, does the attention of every
architecture that goes through transformers' registry. Where the texts begin and end travels as a
keyword argument of the model's forward pass, never in a global: threads must not meet. Whether an
architecture hands it down, and needs no more than it, is proved when the model is loaded.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from inspect import signature
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from skgpt.model.device import to_device

NAME = "skgpt_packed"


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

    @classmethod
    def of(cls, lengths: Sequence[int], device: torch.device) -> "Boundaries":
        """Make the boundaries of texts of these lengths."""
        ends = np.cumsum([0, *lengths], dtype=np.int32)
        return cls(tuple(lengths), to_device(ends, device), max(lengths))


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
    if documented and _fits_one_kernel(q_THD, k_THD, v_THD):
        return _in_one_kernel(q_THD, k_THD, v_THD, boundaries, scale, causal, window)
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
    if whole and _fits_one_kernel(q_BHD, k_THD, v_THD):
        ones = Boundaries.of([1] * len(q_BHD), q_BHD.device)
        return _in_one_kernel(q_BHD, k_THD, v_THD, boundaries, scale, False, None, queries=ones)
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


def sees(query: Tensor, key: Tensor, causal: bool, window: int | None) -> Tensor:
    """Say which keys a query sees, by their places in the text."""
    back = query - key
    seen = back >= 0 if causal else torch.ones_like(back, dtype=torch.bool)
    return seen if window is None else seen & (back.abs() < window)


def _fits_one_kernel(q: Tensor, k: Tensor, v: Tensor) -> bool:
    """Say whether one kernel of torch's takes all texts: on CUDA, in half precision."""
    if not q.is_cuda or q.dtype not in (torch.bfloat16, torch.float16):
        return False
    width = q.shape[-1]
    of_one_width = width == k.shape[-1] == v.shape[-1]
    return of_one_width and width % 8 == 0 and width <= 256 and _has_one_kernel(q.device)


@cache
def _has_one_kernel(device: torch.device) -> bool:
    from torch.nn.attention.varlen import varlen_attn

    takes_all = {"window_size", "enable_gqa"} <= set(signature(varlen_attn).parameters)
    return takes_all and torch.cuda.get_device_capability(device) >= (8, 0)


def _in_one_kernel(
    q_THD: Tensor,
    k_THD: Tensor,
    v_THD: Tensor,
    boundaries: Boundaries,
    scale: float,
    causal: bool,
    window: int | None,
    queries: Boundaries | None = None,
) -> Tensor:
    queries = queries or boundaries
    from torch.nn.attention.varlen import varlen_attn

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
        enable_gqa=q_THD.shape[1] != k_THD.shape[1],
    )
    attended_THD: Tensor = out_THD
    return attended_THD
