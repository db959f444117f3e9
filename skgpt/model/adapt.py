"""Which weights of a trunk learn; those become the network's own, the rest stay shared."""

from typing import Any, Literal

from torch import Tensor, nn

from skgpt.exceptions import ContinuationError, ModelNotSupportedError
from skgpt.model.blocks import find_blocks, parameters_after_blocks
from skgpt.model.sources import Source

TrainableLayers = int | Literal["all"]


def check_depth(
    source: Source, n_layers: int | None, trainable_layers: TrainableLayers
) -> tuple[int, TrainableLayers]:
    """Check the depth parameters against the trunk.

    Parameters
    ----------
    source : Source
    n_layers : int or None
        Blocks to keep; None keeps all.
    trainable_layers : int or "all"

    Returns
    -------
    n_layers : int
        Blocks kept.
    trainable_layers : int or "all"

    Raises
    ------
    ModelNotSupportedError
        If the model has fewer blocks than asked for.
    ContinuationError
        If it has as many, but they are not here: the source is out of a pickle.
    """
    for name, value in {"n_layers": n_layers, "trainable_layers": trainable_layers}.items():
        if isinstance(value, bool):
            raise ModelNotSupportedError(f"`{name}` must be an int. Got {value}.")
    # Plain ints: a search hands in numpy's, which don't go into a JSON configuration.
    n_layers = None if n_layers is None else int(n_layers)
    trainable_layers = "all" if trainable_layers == "all" else int(trainable_layers)
    depth = source.full_depth
    if n_layers is not None and n_layers > depth:
        raise ModelNotSupportedError(
            f"`n_layers` must be at most the depth of {source.model!r}, {depth}. Got {n_layers}."
        )
    kept = depth if n_layers is None else n_layers
    if kept > source.depth:
        raise ContinuationError(
            f"To go on from a fitted model, `n_layers` must be as it was, {source.depth}. Got "
            f"{n_layers}: the others of the {depth} layers were left out when the model was "
            "pickled. Set it back, or call fit with warm_start=False to start anew."
        )
    if trainable_layers != "all" and trainable_layers > kept:
        raise ModelNotSupportedError(
            f"`trainable_layers` must be at most the {kept} layers that are kept of "
            f"{source.model!r}. Got {trainable_layers}: lower it, raise n_layers, or use 'all'."
        )
    return kept, trainable_layers


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
    after = parameters_after_blocks(trunk)
    named = dict(trunk.named_parameters())
    return [name for name in names if id(named[name]) in chosen or name in after]


def own(trunk: Any, name: str, value: Tensor) -> nn.Parameter:
    """Put a tensor of the network's own in the place of a shared parameter, ties included."""
    old = trunk.get_parameter(name)
    new = nn.Parameter(value, requires_grad=True)
    for module in trunk.modules():
        for key, parameter in list(module._parameters.items()):
            if parameter is old:
                module._parameters[key] = new
    return new
