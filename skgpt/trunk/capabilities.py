"""What a trunk can do, found out by running its first blocks on two short texts.

Nothing here knows an architecture: what holds on two texts is relied on; what doesn't is done in
the slower way that holds for all. Two short texts can't show windows or chunks of a thousand
tokens, so the trunk's masks are compared as functions of two positions, which may be far apart.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from skgpt.exceptions import ModelNotSupportedError
from skgpt.trunk.attention import (
    Boundaries,
    Prefix,
    is_causal_in,
    make_bidirectional,
    pack,
    sees,
)
from skgpt.trunk.layers import (
    PROBE_ERRORS,
    agree,
    copy_with_tensors,
    find_blocks,
    parameters_after_blocks,
    truncate,
)
from skgpt.trunk.llama import use_fast_blocks

# Blocks repeat, with a period of six at most in the families there are, so the first few tell;
# running all of them would read every weight from disk before a fit needs it.
_N_BLOCKS = 6
_SHORT, _LONG = [5, 7, 11, 13], [2, 3, 5, 7, 11, 13, 17]
# The texts stand behind the prefix, and go on in two ways.
_PREFIX, _TEXTS, _PATHS = [2, 3, 5], [[7, 11], [13, 2]], [[17, 19], [19, 7]]
_TOLERANCE = 1e-4
_FAR = 1 << 16  # longer windows and chunks show in no text
_MASKS = "skgpt_mask_check"  # in transformers' registry
_LOG = logging.getLogger("skgpt")


@dataclass(frozen=True)
class Capabilities:
    """What was found out about a trunk.

    - `causal`: a token sees only what stands before it.
    - `needs_mask`: right padding changes the result unless it is masked.
    - `supports_packing`: texts that lie end to end in one row are as good as alone.
    - `supports_context`: texts can stand behind a prefix whose keys and values were kept, and end
      in a tree of continuations (`skgpt.trunk.attention.in_context`).
    - `supports_fast_blocks`: its blocks may be swapped for those of `skgpt.trunk.llama`.
    - `supports_bidirectional`: a decoder's blocks can do without their causal mask, packed.
    - `casts_buffers`: in half precision, buffers have to be in the weights' dtype. Rotary
      frequencies lose too much by it, so they are not where it can be helped.
    - `hidden_size`: the width of the last hidden states.
    - `after_blocks`: the names of the parameters that act after the last block.
    """

    causal: bool
    needs_mask: bool
    supports_packing: bool
    supports_context: bool
    supports_fast_blocks: bool
    supports_bidirectional: bool
    casts_buffers: bool
    hidden_size: int
    after_blocks: frozenset[str]


@torch.no_grad()
def probe(trunk: Any) -> Capabilities:
    """Find out what a trunk can do; it is left as it is.

    Raises ModelNotSupportedError if hidden states depend on the padding behind a text, masked or
    not.
    """
    few = first_blocks(trunk)

    def run(ids: Tensor, **extra: Any) -> Tensor:
        return few(input_ids=ids, use_cache=False, **extra).last_hidden_state.float()

    # Causality: does the last token change what stands before it?
    short, changed = run(torch.tensor([_SHORT, [*_SHORT[:-1], _SHORT[-1] + 1]]))
    causal = agree(changed[:-1], short[:-1], _TOLERANCE)

    # Packing: are two texts end to end as good as each alone?
    alone = torch.cat([short, run(torch.tensor([_LONG]))[0]])
    ends = torch.tensor([len(_SHORT) - 1, len(alone) - 1])
    packs = _agrees(trunk, "packed", lambda: alone, checked=True)
    fast = (
        packs
        and _agrees(trunk, "run in fast blocks", lambda: alone, fast=True)
        and _agrees(trunk, "pooled early", lambda: alone[ends], fast=True, ends_only=True)
    )

    # Context: is each path through a tree behind kept keys and values as good as a whole text?
    what, whole = "run behind kept keys and values", partial(_whole_paths, run)
    context = causal and packs and _agrees(trunk, what, whole, fast=fast, in_context=True)

    # Both ways: is a packed run as good as a mask that hides nothing, of each text alone?
    def unmasked() -> Tensor:
        found: list[Tensor] = []
        for ids in (_SHORT, _LONG):
            mask, positions = torch.zeros(1, 1, len(ids), len(ids)), torch.arange(len(ids))[None]
            found += run(torch.tensor([ids]), position_ids=positions, attention_mask=mask)
        return torch.cat(found)

    what = "run without its causal mask"
    bidirectional = causal and packs and _agrees(trunk, what, unmasked, fast=fast, both_ways=True)

    # Padding: is a text beside a longer one as good as alone, without a mask or with one?
    pad = 1 if trunk.config.pad_token_id != 1 else 0
    n_pads = len(_LONG) - len(_SHORT)
    batch = torch.tensor([_SHORT + [pad] * n_pads, _LONG])
    mask = torch.tensor([[1] * len(_SHORT) + [0] * n_pads, [1] * len(_LONG)])
    needs_mask = not (causal and agree(run(batch)[0, : len(_SHORT)], short, _TOLERANCE))
    if needs_mask:
        masked = run(batch, attention_mask=mask)[0, : len(_SHORT)]
        if not agree(masked, short, _TOLERANCE):
            raise ModelNotSupportedError(
                f"A text's hidden states must not depend on the padding behind it. Those of "
                f"{type(trunk).__name__} do, masked or not: use another model."
            )
    return Capabilities(
        causal=causal,
        needs_mask=needs_mask,
        supports_packing=packs,
        supports_context=context,
        supports_fast_blocks=fast,
        supports_bidirectional=bidirectional,
        casts_buffers=not _runs_with_fp32_buffers(trunk),
        hidden_size=short.shape[-1],
        after_blocks=parameters_after_blocks(first_blocks(trunk)),
    )


def first_blocks(trunk: Any) -> Any:
    """Return a copy of a trunk with a few of its blocks, in fp32."""
    tensors = dict(trunk.named_parameters()) | dict(trunk.named_buffers())
    few = copy_with_tensors(trunk, {name: tensor.detach() for name, tensor in tensors.items()})
    truncate(few, min(len(find_blocks(few)), _N_BLOCKS))
    return few.float()  # so that a checkpoint's rounding can't pass for agreement


def _agrees(
    trunk: Any,
    what: str,
    expected: Callable[[], Tensor],
    *,
    in_context: bool = False,
    **how: bool,
) -> bool:
    """Say whether a packed run gives the expected states."""
    packed = _packed_in_context if in_context else _packed
    try:
        return agree(packed(trunk, **how), expected(), _TOLERANCE)
    except PROBE_ERRORS as error:
        _LOG.info("%s can't be %s: %r", type(trunk).__name__, what, error)
        return False


def _runs_with_fp32_buffers(trunk: Any) -> bool:
    """Say whether a trunk runs with weights in half precision and buffers in full."""
    few = first_blocks(trunk)
    for parameter in few.parameters():
        if parameter.is_floating_point():
            parameter.data = parameter.data.bfloat16()
    try:
        few(input_ids=torch.tensor([_SHORT]), use_cache=False)
    except PROBE_ERRORS as error:
        _LOG.info("%s needs buffers of its weights' dtype: %r", type(few).__name__, error)
        return False
    return True


def _packed(
    trunk: Any,
    *,
    checked: bool = False,
    fast: bool = False,
    both_ways: bool = False,
    ends_only: bool = False,
) -> Tensor:
    """Return the hidden states of both texts, end to end in one row."""
    few = first_blocks(trunk)
    if checked:
        check_masks(few, _SHORT)
    if both_ways:
        make_bidirectional(find_blocks(few))
    _prepare(few, fast=fast)
    return _run_packed(few, _SHORT, _LONG, ends_only=ends_only)


def _whole_paths(run: Callable[[Tensor], Tensor]) -> Tensor:
    """Return the hidden states of each path through each text, less those of what is before it."""
    ids = torch.tensor([[*_PREFIX, *text, *path] for text in _TEXTS for path in _PATHS])
    return run(ids)[:, len(_PREFIX) :].flatten(0, 1)


def _packed_in_context(trunk: Any, *, fast: bool) -> Tensor:
    """Return the same behind kept keys and values, the paths of a text as its tree."""
    few, prefix = first_blocks(trunk), Prefix()
    _prepare(few, fast=fast)
    _run_packed(few, _PREFIX, prefix=prefix)
    tree_MM = torch.block_diag(*[torch.ones(len(path), len(path)).tril() for path in _PATHS]).bool()
    texts = [[*text, *chain(*_PATHS)] for text in _TEXTS]
    states = _run_packed(few, *texts, prefix=prefix.first(len(_PREFIX)), tree_MM=tree_MM)
    n_text, n_path = len(_TEXTS[0]), len(_PATHS[0])
    return torch.cat(
        [
            torch.cat([of_text[:n_text], of_text[start : start + n_path]])
            for of_text in states.split(len(texts[0]))
            for start in range(n_text, len(of_text), n_path)
        ]
    )


def _prepare(few: Any, *, fast: bool) -> None:
    """Have a trunk of the caller's own run packed."""
    if fast and not use_fast_blocks(find_blocks(few)):
        raise NotImplementedError("its blocks are of another kind")
    pack(few)


def _run_packed(few: Any, *texts: list[int], **options: Any) -> Tensor:
    boundaries = Boundaries.of([len(text) for text in texts], torch.device("cpu"))
    boundaries = replace(boundaries, **options)
    packed = few(
        input_ids=torch.tensor([[*chain(*texts)]]),
        position_ids=boundaries.positions_T[None],
        boundaries=boundaries,
        use_cache=False,
    )
    return packed.last_hidden_state[0].float()


# --- Masks ------------------------------------------------------------------------------------


class _Mask(Tensor):
    """A mask that carries transformers' function of two positions."""

    function: Callable[..., Tensor]


def check_masks(trunk: Any, ids: list[int]) -> None:
    """Run a trunk and compare each of its masks with what packed attention does in its place.

    The trunk must be the caller's own. Raises NotImplementedError if a mask is another.
    """
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(_MASKS, _compare_mask)
    AttentionMaskInterface.register(_MASKS, _make_mask)
    trunk.config._attn_implementation = _MASKS
    trunk(input_ids=torch.tensor([ids]), use_cache=False)


def _make_mask(
    *, q_length: int, kv_length: int, mask_function: Callable[..., Tensor], **kwargs: Any
) -> Tensor:
    mask = torch.zeros(1, 1, q_length, kv_length).as_subclass(_Mask)
    mask.function = mask_function
    return mask


def _compare_mask(
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
    """Compare a mask in the place of attention; what is returned only has the right shape."""
    if attention_mask is not None:
        zero, query_at = torch.tensor(0), torch.tensor(_FAR)
        key_at = torch.arange(2 * _FAR)
        theirs = attention_mask.function(zero, zero, query_at, key_at)
        ours = sees(query_at, key_at, is_causal_in(module, is_causal), sliding_window)
        if not torch.equal(theirs.expand_as(ours), ours):
            raise NotImplementedError("its masks are not those of packed attention")
    n_grouped = query.shape[1] // value.shape[1]
    return value.repeat_interleave(n_grouped, dim=1).transpose(1, 2), None
