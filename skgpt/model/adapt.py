"""Which weights of a trunk learn; those become the network's own, the rest stay shared."""

from typing import Any, Literal

import torch
from torch import Tensor, nn

from skgpt.exceptions import ModelNotSupportedError
from skgpt.model.blocks import Cut, find_blocks, parameters_after
from skgpt.model.sources import Source

TrainableLayers = int | Literal["all"]


def check_depth(
    source: Source, n_layers: int | None, trainable_layers: TrainableLayers
) -> tuple[int, int]:
    """Check the depth parameters against the trunk.

    Parameters
    ----------
    source : Source
    n_layers : int or None
        Blocks to keep; None keeps all.
    trainable_layers : int or "all"

    Returns
    -------
    n_layers, n_frozen : int
        Blocks kept, and how many of them, from the first on, never learn.

    Raises
    ------
    ModelNotSupportedError
        If the trunk has fewer blocks than asked for.
    """
    depth = source.depth
    if n_layers is not None and n_layers > depth:
        raise ModelNotSupportedError(
            f"`n_layers` must be at most the depth of {source.model!r}, {depth}. Got {n_layers}."
        )
    kept = depth if n_layers is None else n_layers
    if trainable_layers == "all":
        return kept, 0
    if trainable_layers > kept:
        raise ModelNotSupportedError(
            f"`trainable_layers` must be at most the {kept} layers that are kept of "
            f"{source.model!r}. Got {trainable_layers}: lower it, raise n_layers, or use 'all'."
        )
    return kept, kept - trainable_layers


def trainable_names(trunk: Any, trainable_layers: TrainableLayers) -> list[str]:
    """Return the names of the trunk's parameters that learn, in the trunk's own order.

    "all" is every parameter; n is the last n blocks and whatever acts after them (the final
    norm); 0 is none.
    """
    names = [name for name, p in trunk.named_parameters() if p.is_floating_point()]
    if trainable_layers == "all":
        return names
    if trainable_layers == 0:
        return []
    blocks = find_blocks(trunk)
    chosen = {id(p) for block in list(blocks)[-trainable_layers:] for p in block.parameters()}
    after = _names_after(trunk)
    named = dict(trunk.named_parameters())
    return [name for name in names if id(named[name]) in chosen or name in after]


def _names_after(trunk: Any) -> set[str]:
    forwards = [(block, block.forward) for block in find_blocks(trunk)]
    device = next(trunk.parameters()).device
    cut = Cut(trunk, len(forwards))
    try:
        with torch.no_grad():
            cut.take(input_ids=torch.tensor([[2, 3]], device=device))
        return parameters_after(trunk, cut)
    finally:
        for block, forward in forwards:
            block.forward = forward


def own(trunk: Any, name: str, value: Tensor) -> nn.Parameter:
    """Put a tensor of the network's own in the place of a shared parameter, ties included."""
    old = trunk.get_parameter(name)
    new = nn.Parameter(value, requires_grad=True)
    for module in trunk.modules():
        for key, parameter in list(module._parameters.items()):
            if parameter is old:
                module._parameters[key] = new
    return new
