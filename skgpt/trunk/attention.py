"""Packed attention: texts lie end to end in one row, and no token sees another text.

One function, registered with transformers, does the attention of every architecture that goes
through transformers' registry. Where the texts begin and end travels as a keyword argument of the
model's forward pass, never in a global, since threads run at once. Whether an architecture hands
it down, and needs nothing else, is probed when the model is loaded (`skgpt.trunk.capabilities`).
"""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from inspect import signature
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from skgpt.device import ran_out, to_device

NAME = "skgpt_packed"  # in transformers' registry

_LOG = logging.getLogger("skgpt")
_MAX_PADDING = 4  # padded rows may hold so many times the tokens; beyond it, memory goes first


class Prefix:
    """Keys and values of tokens that all texts of a row stand behind, (P, heads, D) by layer.

    A run whose boundaries have an empty one fills it with those of its first text.
    """

    def __init__(self, layers: Mapping[int, tuple[Tensor, Tensor]] | None = None) -> None:
        self.layers = dict(layers or {})
        self.length = next((len(k) for k, _ in self.layers.values()), 0)

    @property
    def nbytes(self) -> int:
        """How much memory they take."""
        return sum(k.nbytes + v.nbytes for k, v in self.layers.values())

    def first(self, n: int) -> "Prefix":
        """Return that of the first n tokens alone: they have seen no later one."""
        return Prefix({layer: (k[:n], v[:n]) for layer, (k, v) in self.layers.items()})


@dataclass(frozen=True)
class Boundaries:
    """Where the texts of a packed row begin and end; made once a batch, not once a layer.

    `cumulative_B1` is where each text begins, int32 on the device, and where the last one ends.
    With `ends_only`, the last block need return nothing but the last token of each text.

    All texts stand behind the `prefix`, if there is one. With a `tree_MM`, the last M tokens of a
    text are ways to go on from its others: it says which of them each of them sees.
    """

    lengths: tuple[int, ...]
    cumulative_B1: Tensor
    longest: int
    ends_only: bool = False
    prefix: Prefix | None = None
    tree_MM: Tensor | None = None
    _masks: dict[int | None, Tensor] = field(default_factory=dict)  # every layer asks

    @classmethod
    def of(cls, lengths: Sequence[int], device: torch.device) -> "Boundaries":
        """Make the boundaries of texts of these lengths."""
        ends = np.cumsum([0, *lengths], dtype=np.int32)
        return cls(tuple(lengths), to_device(ends, device), max(lengths))

    @property
    def lengths_B(self) -> Tensor:
        """Tokens of each text, on the device."""
        return self.cumulative_B1.diff()

    @property
    def ends_B(self) -> Tensor:
        """The position of each text's last token in the row."""
        return self.cumulative_B1[1:].long() - 1

    @cached_property  # every layer asks
    def text_and_position_2T(self) -> tuple[Tensor, Tensor]:
        """Which text each token belongs to, and its position there."""
        starts_B1 = self.cumulative_B1.long()
        n_tokens = sum(self.lengths)
        texts_T = torch.repeat_interleave(starts_B1.diff(), output_size=n_tokens)
        return texts_T, torch.arange(n_tokens, device=starts_B1.device) - starts_B1[texts_T]

    @cached_property
    def positions_T(self) -> Tensor:
        """The position of each token, counted from where the prefix begins."""
        texts_T, at_T = self.text_and_position_2T
        return self.n_before + self.place(at_T, self.lengths_B[texts_T])

    def place(self, at: Tensor, lengths: Tensor) -> Tensor:
        """Return how many of its text's tokens stand in line before the one `at` a place."""
        if self.tree_MM is None:
            return at
        depth_M = self.tree_MM.sum(1) - 1
        aside_M = torch.arange(len(depth_M), device=at.device) - depth_M
        node = at - lengths + len(depth_M)
        aside = torch.where(node < 0, 0, aside_M[node.clamp(0, len(depth_M) - 1)])
        return (at - aside).clamp(min=0)  # a filler may be shorter than the tree

    def mask(self, window: int | None) -> Tensor:
        """Say what the tokens of each text see of the prefix and of their text, (B, L, P + L)."""
        if window not in self._masks:
            self._masks[window] = self._mask(window)
        return self._masks[window]

    def _mask(self, window: int | None) -> Tensor:
        at_L = torch.arange(self.longest, device=self.cumulative_B1.device)
        lengths_B1 = self.lengths_B[:, None]
        place_BL = self.place(at_L, lengths_B1).expand(len(lengths_B1), -1)
        before_BP = torch.arange(-self.n_before, 0, device=at_L.device).expand(len(lengths_B1), -1)
        key_BK = torch.cat([before_BP, place_BL], dim=1)
        seen_BLK = sees(place_BL[:, :, None], key_BK[:, None], True, window)
        own_BLL = seen_BLK[:, :, self.n_before :]  # a view, to be narrowed
        if self.tree_MM is not None:
            node_BL = at_L - lengths_B1 + len(self.tree_MM)
            both_BLL = (node_BL[:, :, None] >= 0) & (node_BL[:, None] >= 0)
            node_BL = node_BL.clamp(0, len(self.tree_MM) - 1)
            own_BLL &= ~both_BLL | self.tree_MM[node_BL[:, :, None], node_BL[:, None]]
        own_BLL &= (at_L < lengths_B1)[:, None]
        # Padding sees itself: a row that sees nothing would be nan.
        own_BLL |= torch.eye(len(at_L), dtype=torch.bool, device=at_L.device)
        return seen_BLK

    @cached_property
    def own_masks(self) -> list[Tensor]:
        """What is added to the scores of each text's tokens of one another, without a window."""
        hidden_BLL = ~self.mask(None)[:, :, self.n_before :]
        added_BLL = torch.zeros(hidden_BLL.shape).masked_fill(hidden_BLL, -torch.inf)
        return [mask[:n, :n] for mask, n in zip(added_BLL, self.lengths, strict=True)]

    @property
    def n_before(self) -> int:
        """Tokens of the prefix."""
        return 0 if self.prefix is None else self.prefix.length

    def fit_in(self, window: int | None) -> bool:
        """Say whether a sliding window hides nothing, as no text is longer with its prefix."""
        return window is None or window >= self.n_before + self.longest


@dataclass(frozen=True)
class Rule:
    """What a token sees of its text, and what scores are scaled by.

    A token sees `window` tokens, itself included, back and, if not causal, ahead. With `ends_only`
    (causal), the queries are those of each text's last token alone, (B, heads, D).
    """

    scale: float
    causal: bool = True
    window: int | None = None
    ends_only: bool = False
    layer: int | None = None


def sees(query: Tensor, key: Tensor, causal: bool, window: int | None) -> Tensor:
    """Say which keys a query sees, by their positions in the text."""
    back = query - key
    seen = back >= 0 if causal else torch.ones_like(back, dtype=torch.bool)
    return seen if window is None else seen & (back.abs() < window)


# --- As transformers calls it -----------------------------------------------------------------


def pack(trunk: Any) -> None:
    """Have a trunk compute its attention packed; its caller must own it, configuration included."""
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(NAME, _for_transformers)
    AttentionMaskInterface.register(NAME, lambda *args, **kwargs: None)  # no mask
    trunk.config._attn_implementation = NAME


def _for_transformers(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    boundaries: Boundaries | None = None,
    within_BT: Tensor | None = None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    is_causal: bool | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention in transformers' shapes: (1, heads, T, D) in, (1, T, heads, D) out.

    Without `boundaries` each row is a text, padded where it isn't `within_BT`.
    """
    if softcap is not None or s_aux is not None:
        raise NotImplementedError("capped scores and attention sinks are not computed packed")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    layer = getattr(module, "layer_idx", None)
    rule = Rule(scale, is_causal_in(module, is_causal), sliding_window, layer=layer)
    if boundaries is None:
        return _attend(query, key, value, rule, within_BT).transpose(1, 2), None
    q_THD, k_THD, v_THD = (x[0].transpose(0, 1) for x in (query, key, value))
    return packed_attention(q_THD, k_THD, v_THD, boundaries, rule)[None], None


def is_causal_in(module: Any, is_causal: bool | None = None) -> bool:
    """Say whether a call from a module is causal: as the call says, or else as the module does."""
    return bool(getattr(module, "is_causal", True) if is_causal is None else is_causal)


def make_bidirectional(blocks: Iterable[Any]) -> None:
    """Have every token of a text see the whole of it in these blocks of a packed trunk."""
    for block in blocks:
        for module in block.modules():
            if hasattr(module, "is_causal"):
                module.is_causal = False


# --- Packed attention, on any device ----------------------------------------------------------


def packed_attention(
    q_THD: Tensor, k_THD: Tensor, v_THD: Tensor, boundaries: Boundaries, rule: Rule
) -> Tensor:
    """Let each token attend to its own text; return (T, heads, D) in the queries' dtype.

    `k_THD` and `v_THD` may have fewer heads, each of which then serves several of the queries'.
    """
    prefix = boundaries.prefix
    if prefix is not None and rule.layer not in prefix.layers:  # to be filled
        if rule.layer is None or prefix.length:
            raise NotImplementedError("its layers have no numbers")
        n_first = boundaries.lengths[0]
        prefix.layers[rule.layer] = k_THD[:n_first].clone(), v_THD[:n_first].clone()
    elif prefix is not None or boundaries.tree_MM is not None:
        attend = in_two_parts if _can_part(q_THD, boundaries, rule) else in_context
        return attend(q_THD, k_THD, v_THD, boundaries, rule)
    # The kernel documents no window to both sides, and none for the last token alone.
    documented = boundaries.fit_in(rule.window) or (rule.causal and not rule.ends_only)
    if documented and _fits_varlen_kernel(q_THD, k_THD, v_THD):
        attend = in_varlen_kernel
    elif q_THD.is_cuda and padding_is_cheap(boundaries):
        attend = in_padded_rows
    else:
        attend = text_by_text
    return attend(q_THD, k_THD, v_THD, boundaries, rule)


def text_by_text(
    q_THD: Tensor, k_THD: Tensor, v_THD: Tensor, boundaries: Boundaries, rule: Rule
) -> Tensor:
    """Packed attention with one launch for each text: the CPU's way."""
    dtype = q_THD.dtype
    if q_THD.device.type == "cpu":
        # In bf16 the backward pass takes three times as long, so the whole of it is fp32.
        q_THD, k_THD, v_THD = q_THD.float(), k_THD.float(), v_THD.float()
    # Split, not sliced: the gradients of slices would each fill all T tokens. And along the tokens
    # before heads go first: the kernel keeps a token's heads together, so that what it returns,
    # forwards and backwards, is laid end to end by plain copies.
    queries = q_THD.split(1 if rule.ends_only else boundaries.lengths)
    keys, values = k_THD.split(boundaries.lengths), v_THD.split(boundaries.lengths)
    attended = []
    for q, k, v in zip(queries, keys, values, strict=True):
        if rule.ends_only and rule.window is not None:
            k, v = k[-rule.window :], v[-rule.window :]
        q, k, v = (x.transpose(0, 1)[None] for x in (q, k, v))
        # A last token sees all that is left: no mask.
        out = _attend(q, k, v, Rule(rule.scale, causal=False) if rule.ends_only else rule)
        attended.append(out[0].transpose(0, 1))
    return torch.cat(attended).to(dtype)


def _attend(q: Tensor, k: Tensor, v: Tensor, rule: Rule, within_BT: Tensor | None = None) -> Tensor:
    """Plain attention of rows that are a text each, (B, heads, L, D)."""
    seen = None
    if within_BT is not None or (rule.window is not None and rule.window < q.shape[2]):
        at = torch.arange(q.shape[2], device=q.device)
        seen = sees(at[:, None], at[None, :], rule.causal, rule.window)
        if within_BT is not None:
            seen = seen & within_BT[:, None, None, :]
    return _scaled_dot_product(q, k, v, seen, rule.causal and seen is None, rule.scale)


def _scaled_dot_product(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool, scale: float
) -> Tensor:
    grouped = q.shape[1] != k.shape[1]
    return F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, is_causal=causal, scale=scale, enable_gqa=grouped
    )


# --- Behind a prefix, or ending in a tree -----------------------------------------------------


def in_context(
    q_THD: Tensor, k_THD: Tensor, v_THD: Tensor, boundaries: Boundaries, rule: Rule
) -> Tensor:
    """Packed attention of texts in their context, with a padded row for each text."""
    k, v = _to_rows(k_THD, boundaries), _to_rows(v_THD, boundaries)
    q = q_THD[:, :, None] if rule.ends_only else _to_rows(q_THD, boundaries)
    if boundaries.prefix is not None and rule.layer is not None:
        before = (x.to(k.dtype).transpose(0, 1) for x in boundaries.prefix.layers[rule.layer])
        k, v = (
            torch.cat([x_HPD.expand(len(x), -1, -1, -1), x], dim=2)
            for x_HPD, x in zip(before, (k, v), strict=True)
        )
    seen = boundaries.mask(rule.window)
    if rule.ends_only:
        seen = seen[torch.arange(len(seen), device=q.device), boundaries.lengths_B - 1][:, None]
    out = _scaled_dot_product(q.to(k.dtype), k, v, seen[:, None], False, rule.scale)
    out = out[:, :, 0] if rule.ends_only else out.transpose(1, 2)[boundaries.text_and_position_2T]
    return out.to(q_THD.dtype)


def _can_part(q_THD: Tensor, boundaries: Boundaries, rule: Rule) -> bool:
    """Say whether `in_two_parts` is right: it has no gradient, and every token sees the prefix."""
    is_on_cpu = q_THD.device.type == "cpu"
    return is_on_cpu and not q_THD.requires_grad and boundaries.fit_in(rule.window)


def in_two_parts(
    q_THD: Tensor, k_THD: Tensor, v_THD: Tensor, boundaries: Boundaries, rule: Rule
) -> Tensor:
    """Compute the same on a CPU: attention to the prefix in one launch, to each text in another.

    Their share of the result follows from the sums that both softmaxes are divided by.
    """
    dtype, n_tokens, n_grouped = q_THD.dtype, len(q_THD), q_THD.shape[1] // k_THD.shape[1]
    q_THD = q_THD.float()
    keys, values = (
        x.float().repeat_interleave(n_grouped, dim=1).split(boundaries.lengths)
        for x in (k_THD, v_THD)
    )
    queries = q_THD.split(1 if rule.ends_only else boundaries.lengths)
    masks: Sequence[Tensor | None] = [None] * len(queries)
    if boundaries.tree_MM is not None:
        masks = [mask[-len(q) :] for mask, q in zip(boundaries.own_masks, queries, strict=True)]
    causal = boundaries.tree_MM is None and not rule.ends_only
    own, own_sums = [], []
    for q, k, v, mask in zip(queries, keys, values, masks, strict=True):
        out, log_sum = _flash_on_cpu(q, k, v, causal, mask, rule.scale)
        own.append(out)
        own_sums.append(log_sum)
    own_THD = torch.cat(own)
    if boundaries.prefix is None or rule.layer is None:
        return own_THD.to(dtype)
    # One head of the prefix serves several of the queries', as more tokens of one.
    k, v = (x.float() for x in boundaries.prefix.layers[rule.layer])
    grouped = q_THD.unflatten(1, (-1, n_grouped)).transpose(1, 2).flatten(0, 1)
    out, log_sum = _flash_on_cpu(grouped, k, v, False, None, rule.scale)
    out, log_sum = (
        x.unflatten(0, (n_tokens, n_grouped)).transpose(1, 2).flatten(1, 2) for x in (out, log_sum)
    )
    share_TH = torch.sigmoid(torch.cat(own_sums) - log_sum)
    return torch.lerp(out, own_THD, share_TH[..., None]).to(dtype)


def _flash_on_cpu(
    q: Tensor, k: Tensor, v: Tensor, causal: bool, mask: Tensor | None, scale: float
) -> tuple[Tensor, Tensor]:
    """Return the attention of one text, (L, heads, D), and the logarithms of its sums, (L, heads).

    It is what torch calls on a CPU, whose public door returns no sums.
    """
    rows = (x.transpose(0, 1)[None] for x in (q, k, v))
    out, log_sum = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        *rows, 0.0, causal, attn_mask=mask, scale=scale
    )
    return out[0].transpose(0, 1), log_sum[0].T


# --- On CUDA: one launch for all texts --------------------------------------------------------


def padding_is_cheap(boundaries: Boundaries) -> bool:
    """Say whether rows padded to the longest text would hold little but texts."""
    n_places = len(boundaries.lengths) * boundaries.longest
    return n_places <= _MAX_PADDING * sum(boundaries.lengths)


def in_padded_rows(
    q_THD: Tensor, k_THD: Tensor, v_THD: Tensor, boundaries: Boundaries, rule: Rule
) -> Tensor:
    """Packed attention with a padded row for each text."""
    k, v = _to_rows(k_THD, boundaries), _to_rows(v_THD, boundaries)
    q = q_THD[:, :, None] if rule.ends_only else _to_rows(q_THD, boundaries)
    seen = None
    # Padding stands behind its text, so a causal query sees none of it: no mask.
    if rule.ends_only or not rule.causal or not boundaries.fit_in(rule.window):
        at_L = torch.arange(boundaries.longest, device=q.device)
        lengths_B1 = boundaries.lengths_B[:, None]
        at_query = (lengths_B1 - 1)[:, None] if rule.ends_only else at_L[:, None]
        seen = (at_L < lengths_B1)[:, None] & sees(at_query, at_L, rule.causal, rule.window)
        if not rule.ends_only:  # padding sees itself: a row that sees nothing would be nan
            seen = seen | torch.eye(len(at_L), dtype=torch.bool, device=q.device)
        seen = seen[:, None]
    out = _scaled_dot_product(q, k, v, seen, seen is None, rule.scale)
    if rule.ends_only:
        return out[:, :, 0]
    return out.transpose(1, 2)[boundaries.text_and_position_2T]


def _to_rows(x_THD: Tensor, boundaries: Boundaries) -> Tensor:
    """Return (B, heads, L, D), zero behind each text."""
    shape = (len(boundaries.lengths), boundaries.longest, *x_THD.shape[1:])
    rows = x_THD.new_zeros(shape).index_put(boundaries.text_and_position_2T, x_THD)
    return rows.transpose(1, 2)


def in_varlen_kernel(
    q_THD: Tensor, k_THD: Tensor, v_THD: Tensor, boundaries: Boundaries, rule: Rule
) -> Tensor:
    """Packed attention in torch's kernel for texts of different lengths, in half precision."""
    from torch.nn.attention.varlen import varlen_attn

    queries, causal = boundaries, rule.causal
    if rule.ends_only:
        queries, causal = Boundaries.of([1] * len(q_THD), q_THD.device), False
    n_grouped = q_THD.shape[1] // k_THD.shape[1]
    options: dict[str, Any] = {}
    if n_grouped > 1:
        if "enable_gqa" in signature(varlen_attn).parameters:
            options["enable_gqa"] = True
        else:  # torch 2.11
            k_THD, v_THD = (x.repeat_interleave(n_grouped, dim=1) for x in (k_THD, v_THD))
    reach = -1 if rule.window is None or boundaries.fit_in(rule.window) else rule.window - 1
    out_THD: Any = varlen_attn(
        q_THD.contiguous(),
        k_THD.contiguous(),
        v_THD.contiguous(),
        queries.cumulative_B1,
        boundaries.cumulative_B1,
        queries.longest,
        boundaries.longest,
        scale=rule.scale,
        window_size=(reach, 0) if causal else (-1, -1),
        **options,
    )
    return out_THD


def _fits_varlen_kernel(q: Tensor, k: Tensor, v: Tensor) -> bool:
    """Say whether torch's kernel takes these: on CUDA, in half precision, of a fitting width."""
    if not q.is_cuda or q.dtype not in (torch.bfloat16, torch.float16):
        return False
    width = q.shape[-1]
    same_width = width == k.shape[-1] == v.shape[-1]
    return same_width and width % 8 == 0 and width <= 256 and _has_varlen_kernel(q.device)


@cache
def _has_varlen_kernel(device: torch.device) -> bool:
    from torch.nn.attention.varlen import varlen_attn

    if torch.cuda.get_device_capability(device) < (8, 0):
        return False
    return "window_size" in signature(varlen_attn).parameters and varlen_kernel_is_right(device)


def varlen_kernel_is_right(device: torch.device) -> bool:
    """Say whether the kernel agrees with plain attention, forwards and backwards, on a device."""
    generator = torch.Generator().manual_seed(0)
    drawn = [torch.randn(12, heads, 16, generator=generator) for heads in (4, 2, 2)]
    results = []
    try:
        # A prediction may be the first to ask, without gradients.
        with torch.enable_grad():
            boundaries = Boundaries.of([7, 5], device)
            for attend in (in_varlen_kernel, in_padded_rows):
                q, k, v = (x.to(device, torch.bfloat16).requires_grad_() for x in drawn)
                out = attend(q, k, v, boundaries, Rule(0.25))
                grads = torch.autograd.grad(out.float().square().sum(), (q, k, v))
                results.append([x.detach().float() for x in (out, *grads)])
        torch.testing.assert_close(*results, rtol=0.05, atol=0.05)
    except (RuntimeError, NotImplementedError, TypeError, ValueError, AssertionError) as error:
        if ran_out(error):
            raise  # which says nothing about the kernel
        _LOG.warning(
            "attention over texts end to end doesn't run on %s, or is wrong there, so texts are "
            "padded for it, which is slower: %s",
            device,
            error,
        )
        return False
    return True
