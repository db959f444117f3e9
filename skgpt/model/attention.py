"""Packed attention: texts lie end to end, and none of them sees another.

One function, registered with transformers under a name of ours, does the attention of every
architecture that goes through transformers' registry. Where the texts begin and end travels as a
keyword argument of the model's forward pass, never in a global: threads must not meet. Whether an
architecture hands it down, and needs no more than it, is proved when the model is loaded.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from skgpt.model.attention_on_cuda import fits_one_kernel, in_one_kernel, padded, padded_ends, pays
from skgpt.model.boundaries import Boundaries, sees

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
