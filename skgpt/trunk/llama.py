"""The block of the Llama family, computed packed and with fewer passes over memory.

The same arithmetic as transformers' block on the same modules and parameters. A small model spends
a third of its time on element-wise work, so norms, rotations and gates have backward passes of
their own that read and write each tensor once. A block is swapped by its class, so names,
parameters and hooks stay. That it computes the same is probed when the model is loaded.
"""

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.nn import functional as F

from skgpt.trunk.attention import Boundaries, Rule, is_causal_in, packed_attention

# Blocks that are RMS norm, rotated attention, RMS norm, gated SiLU, and nothing else.
_BLOCKS = (
    *("LlamaDecoderLayer", "MistralDecoderLayer"),
    *("Qwen2DecoderLayer", "Qwen3DecoderLayer"),  # biases; norms of queries and keys
)
_SILU = ("SiLU", "SiLUActivation")


def use_fast_blocks(blocks: nn.ModuleList) -> bool:
    """Give blocks the forward pass of this module; False if they are not of the Llama family."""
    own: Any = blocks
    for block in own:
        if type(block).__name__ not in _BLOCKS or type(block.mlp.act_fn).__name__ not in _SILU:
            return False
    for block in own:
        kind: Any = type(block)
        block.__class__ = _fast(kind)
        block._is_final = block is own[-1]
    return True


@cache
def _fast(kind: Any) -> type:
    return type(f"Fast{kind.__name__}", (_FastBlock, kind), {})


class _FastBlock(nn.Module):
    """The forward pass of a block; it is mixed into the block's own class."""

    _is_final: bool

    def forward(
        self,
        hidden_states: Tensor,
        *args: Any,
        position_embeddings: tuple[Tensor, Tensor] | None = None,
        boundaries: Boundaries | None = None,
        **kwargs: Any,
    ) -> Tensor:
        if boundaries is None or position_embeddings is None:  # not one of our packed passes
            given = {"position_embeddings": position_embeddings, **kwargs}
            return super().forward(hidden_states, *args, **given)
        block: Any = self
        x_TH = hidden_states[0]
        ends = boundaries.ends_B if boundaries.ends_only and self._is_final else None
        attended = _attend(block, x_TH, position_embeddings, boundaries, ends)
        # The rest of a block treats each token alone: with `ends`, only the pooled ones.
        x_TH = (x_TH if ends is None else x_TH[ends]) + attended
        mlp, norm = block.mlp, block.post_attention_layernorm
        normed_TH = _rms_norm(x_TH, norm)
        gated = _Gate.apply(mlp.gate_proj(normed_TH), mlp.up_proj(normed_TH))
        return (x_TH + mlp.down_proj(gated))[None]


def _attend(
    block: Any,
    x_TH: Tensor,
    position_embeddings: tuple[Tensor, Tensor],
    boundaries: Boundaries,
    ends: Tensor | None,
) -> Tensor:
    """Return what attention adds to every token, or to those at `ends` alone."""
    attention = block.self_attn
    normed_TH = _rms_norm(x_TH, block.input_layernorm)
    queries_TH = normed_TH if ends is None else normed_TH[ends]
    q_THD, k_THD, v_THD = (
        project(x).view(len(x), -1, attention.head_dim)
        for project, x in (
            (attention.q_proj, queries_TH),
            (attention.k_proj, normed_TH),
            (attention.v_proj, normed_TH),
        )
    )
    if hasattr(attention, "q_norm"):
        q_THD, k_THD = _rms_norm(q_THD, attention.q_norm), _rms_norm(k_THD, attention.k_norm)
    # Both halves of the cosines and sines are equal, so one is enough.
    half = attention.head_dim // 2
    cos_T1D, sin_T1D = (t[0, :, None, :half].float() for t in position_embeddings)
    k_THD = _Rotate.apply(k_THD, cos_T1D, sin_T1D)
    if ends is not None:
        cos_T1D, sin_T1D = cos_T1D[ends], sin_T1D[ends]
    q_THD = _Rotate.apply(q_THD, cos_T1D, sin_T1D)
    # Mistral's window holds for all layers; a Llama ignores one that its configuration may have.
    holder = attention.config if type(attention).__name__ == "MistralAttention" else attention
    window = getattr(holder, "sliding_window", None)
    rule = Rule(
        attention.scaling,
        is_causal_in(attention),
        window,
        ends_only=ends is not None,
        layer=attention.layer_idx,
    )
    out_THD = packed_attention(q_THD, k_THD, v_THD, boundaries, rule)
    return attention.o_proj(out_THD.reshape(len(out_THD), -1).to(x_TH.dtype))


def _rms_norm(x: Tensor, norm: Any) -> Tensor:
    if x.is_cuda:  # torch's is one kernel there, and a small model waits for each launch
        return F.rms_norm(x, x.shape[-1:], norm.weight, norm.variance_epsilon)
    return _RMSNorm.apply(x, norm.weight, norm.variance_epsilon)


class _RMSNorm(Function):
    """``weight * x / rms(x)``: the quotient in fp32, rounded, then the product, as in Llama.

    Zhang and Sennrich, "Root Mean Square Layer Normalization" (2019); over the last dimension.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        x32 = x.float()
        square = torch.linalg.vector_norm(x32, dim=-1, keepdim=True).square_()
        scale = square.div_(x.shape[-1]).add_(eps).rsqrt_()
        scaled = (x32 * scale).to(x.dtype)
        ctx.save_for_backward(scaled, scale, weight)
        return scaled * weight

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        (grad,) = grads
        scaled, scale, weight = ctx.saved_tensors
        grad_weight = None
        if ctx.needs_input_grad[1]:
            grad_weight = (grad * scaled).flatten(0, -2).sum(0)
        inner, scaled32 = (grad * weight).float(), scaled.float()
        along = torch.linalg.vecdot(inner, scaled32).div_(scaled.shape[-1])[..., None]
        grad_x = torch.addcmul(inner, scaled32, along, value=-1).mul_(scale)
        return grad_x.to(grad.dtype), grad_weight, None


class _Rotate(Function):
    """Rotary positions, Su et al., "RoFormer" (2021), with halves paired as in Llama.

    On a CPU the result is fp32, as attention is computed in fp32 there.
    """

    @staticmethod
    def forward(ctx: Any, x_THD: Tensor, cos_T1D: Tensor, sin_T1D: Tensor) -> Tensor:
        ctx.save_for_backward(cos_T1D, sin_T1D)
        ctx.dtype = x_THD.dtype
        turned_THD = _turned(x_THD, cos_T1D, sin_T1D)
        return turned_THD if x_THD.device.type == "cpu" else turned_THD.to(x_THD.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        cos_T1D, sin_T1D = ctx.saved_tensors
        return _turned(grads[0], cos_T1D, -sin_T1D).to(ctx.dtype), None, None


def _turned(x_THD: Tensor, cos_T1D: Tensor, sin_T1D: Tensor) -> Tensor:
    half = x_THD.shape[-1] // 2
    first, second = x_THD[..., :half], x_THD[..., half:]
    out = torch.empty(x_THD.shape, dtype=torch.float32, device=x_THD.device)
    first, second = first.float(), second.float()
    torch.mul(first, cos_T1D, out=out[..., :half]).addcmul_(second, sin_T1D, value=-1)
    torch.mul(second, cos_T1D, out=out[..., half:]).addcmul_(first, sin_T1D)
    return out


class _Gate(Function):
    """``silu(gate) * up``, Shazeer, "GLU Variants Improve Transformer" (2020)."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return F.silu(gate).mul_(up)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        (grad,) = grads
        gate, up = ctx.saved_tensors
        grad_gate = torch.ops.aten.silu_backward(grad * up, gate)
        return grad_gate, F.silu(gate).mul_(grad)
