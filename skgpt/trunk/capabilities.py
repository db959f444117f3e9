"""What a model's own masks let a token see, held against what packed attention lets it see.

Two short texts can't tell: a window of a thousand tokens, or attention within chunks, shows in long
texts alone. transformers describes a mask by a function of two places in the text, so that function
is asked about places that are far apart, and nothing long has to be run.

What a trunk does, found out by running its first blocks on two short texts.

Nothing here knows an architecture: what holds on two texts is relied on, what doesn't is done the
slower way that holds for all.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from skgpt.exceptions import ModelNotSupportedError
from skgpt.trunk.attention import Boundaries, is_causal_in, pack, sees
from skgpt.trunk.layers import PROBE_ERRORS, agree, copy_with_tensors, find_blocks, truncate
from skgpt.trunk.llama import use_fast_blocks

_NAME = "skgpt_checked"
_PLACE = 1 << 16  # windows and chunks that are longer show in no text


class _Mask(Tensor):
    """A mask that is asked, not read."""

    asked: Callable[..., Tensor]


def check_masks(trunk: Any, ids: list[int]) -> None:
    """Run a trunk and compare each of its masks with what packed attention does in its place.

    Parameters
    ----------
    trunk : transformers.PreTrainedModel
        The caller's own; its configuration is changed.
    ids : list of int
        A text.

    Raises
    ------
    NotImplementedError
        If a mask is not the one of packed attention.
    """
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(_NAME, _checked)
    AttentionMaskInterface.register(_NAME, _described)
    trunk.config._attn_implementation = _NAME
    trunk(input_ids=torch.tensor([ids]), use_cache=False)


def _described(
    *, q_length: int, kv_length: int, mask_function: Callable[..., Tensor], **kwargs: Any
) -> Tensor:
    mask = torch.zeros(1, 1, q_length, kv_length).as_subclass(_Mask)
    mask.asked = mask_function
    return mask


def _checked(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Any,  # a _Mask, unless the model made something else of it
    *,
    is_causal: bool | None = None,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    if attention_mask is not None:
        zero, place = torch.tensor(0), torch.tensor(_PLACE)
        others = torch.arange(2 * _PLACE)
        asked = attention_mask.asked(zero, zero, place, others)
        ours = sees(place, others, is_causal_in(module, is_causal), sliding_window)
        if not torch.equal(asked.expand_as(ours), ours):
            raise NotImplementedError("its masks are not those of packed attention")
    # What comes out is of no interest, only its shape.
    shared = query.shape[1] // value.shape[1]
    return value.repeat_interleave(shared, dim=1).transpose(1, 2), None


# Blocks repeat, with a period of six at most in the families there are, so the first few tell;
# running all of them would read every weight from disk before a fit needs it.
_BLOCKS = 6
_IDS = ([5, 7, 11, 13], [2, 3, 5, 7, 11, 13, 17])
_TOLERANCE = 1e-4
_LOG = logging.getLogger("skgpt")


@dataclass(frozen=True)
class Capabilities:
    """What was found out about a trunk.

    Parameters
    ----------
    causal : bool
        Whether a token sees only what stands before it.
    needs_mask : bool
        Whether right padding changes the result unless it is masked.
    supports_packing : bool
        Whether texts that lie end to end in one row are as good as alone.
    supports_fast_blocks : bool
        Whether its blocks may be swapped for those of `skgpt.trunk.llama`.
    casts_buffers : bool
        Whether buffers have to be of the weights' dtype in half precision. Rotary frequencies
        lose too much by it, so they are not where it can be helped.
    hidden_size : int
        Of the last hidden states.
    """

    causal: bool
    needs_mask: bool
    supports_packing: bool
    supports_fast_blocks: bool
    casts_buffers: bool
    hidden_size: int


@torch.no_grad()
def probe(trunk: Any) -> Capabilities:
    """Find out what holds for a trunk.

    Parameters
    ----------
    trunk : transformers.PreTrainedModel
        Left as it is.

    Returns
    -------
    capabilities : Capabilities

    Raises
    ------
    ModelNotSupportedError
        If its hidden states depend on the padding behind a text, masked or not.
    """
    few = _few_blocks(trunk)
    short, long = _IDS
    pad = 1 if trunk.config.pad_token_id != 1 else 0
    batch = torch.tensor([short + [pad] * (len(long) - len(short)), long])
    mask = torch.tensor([[i < len(short) for i in range(len(long))], [True] * len(long)])

    def run(ids: Tensor, **extra: Any) -> Tensor:
        hidden: Tensor = few(input_ids=ids, use_cache=False, **extra).last_hidden_state
        return hidden.float()

    alone, changed = run(torch.tensor([short, [*short[:-1], short[-1] + 1]]))
    causal = agree(changed[:-1], alone[:-1], _TOLERANCE)
    other = run(torch.tensor([long]))[0]
    together = torch.cat([alone, other])
    packs = _holds("laid end to end", trunk, lambda: _checked_proof(_few_blocks(trunk)), together)
    ends = torch.tensor([len(short) - 1, len(together) - 1])
    fast = (
        packs
        and _holds("sped up", trunk, lambda: _packed(_fast(_few_blocks(trunk))), together)
        and _holds("pooled early", trunk, lambda: _ends(_fast(_few_blocks(trunk))), together[ends])
    )
    found = {
        "supports_packing": packs,
        "supports_fast_blocks": fast,
        "casts_buffers": not _mixes(_few_blocks(trunk)),
    }
    width = alone.shape[-1]
    if causal and agree(run(batch)[0, : len(short)], alone, _TOLERANCE):
        return Capabilities(causal=True, needs_mask=False, hidden_size=width, **found)
    if agree(run(batch, attention_mask=mask.long())[0, : len(short)], alone, _TOLERANCE):
        return Capabilities(causal=causal, needs_mask=True, hidden_size=width, **found)
    raise ModelNotSupportedError(
        f"A text's hidden states must not depend on the padding behind it. Those of "
        f"{type(trunk).__name__} do, masked or not: use another model."
    )


def _few_blocks(trunk: Any) -> Any:
    own = dict(trunk.named_parameters()) | dict(trunk.named_buffers())
    few = copy_with_tensors(trunk, {name: tensor.detach() for name, tensor in own.items()})
    truncate(few, min(len(find_blocks(few)), _BLOCKS))
    return few.float()  # so that a checkpoint's rounding can't pass for agreement


def _fast(few: Any) -> Any:
    if not use_fast_blocks(find_blocks(few)):
        raise NotImplementedError("its blocks are of another kind")
    return few


def _checked_proof(few: Any) -> Tensor:
    check_masks(few, _IDS[0])
    return _packed(few)


def _ends(few: Any) -> Tensor:
    return _packed(few, ends_only=True)


def _packed(few: Any, *, ends_only: bool = False) -> Tensor:
    pack(few)
    lengths = [len(ids) for ids in _IDS]
    boundaries = replace(Boundaries.of(lengths, torch.device("cpu")), ends_only=ends_only)
    hidden: Tensor = few(
        input_ids=torch.tensor([[i for ids in _IDS for i in ids]]),
        position_ids=torch.tensor([[i for n in lengths for i in range(n)]]),
        boundaries=boundaries,
        use_cache=False,
    ).last_hidden_state
    return hidden[0].float()


def _mixes(few: Any) -> bool:
    """Say whether a trunk runs with weights in half precision and buffers in full."""
    for parameter in few.parameters():
        if parameter.is_floating_point():
            parameter.data = parameter.data.bfloat16()
    try:
        few(input_ids=torch.tensor(_IDS[:1]), use_cache=False)
    except PROBE_ERRORS as error:
        _LOG.info("%s needs buffers of its weights' dtype: %r", type(few).__name__, error)
        return False
    return True


def _holds(what: str, trunk: Any, run: Callable[[], Tensor], expected: Tensor) -> bool:
    try:
        return agree(run(), expected, _TOLERANCE)
    except PROBE_ERRORS as error:
        _LOG.info("%s can't be %s: %r", type(trunk).__name__, what, error)
        return False
