"""What a model's own masks let a token see, held against what packed attention lets it see.

Two short texts can't tell: a window of a thousand tokens, or attention within chunks, shows in long
texts alone. transformers describes a mask by a function of two places in the text, so that function
is asked about places that are far apart, and nothing long has to be run.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from skgpt.model.attention import is_causal_in
from skgpt.model.boundaries import sees

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
