"""The base's matrices in 4 bits, under adapters that stay whole: QLoRA.

Dettmers et al., "QLoRA: Efficient Finetuning of Quantized LLMs" (2023), with bitsandbytes' NF4.
"""

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from skgpt.exceptions import MissingPackageError, ModelNotSupportedError
from skgpt.model.blocks import find_blocks

if TYPE_CHECKING:
    from skgpt.model.sources import Source


def quantise(source: "Source", n_layers: int, dtype: torch.dtype, device: torch.device) -> Any:
    """Return a trunk whose blocks hold their linear layers in 4 bits.

    Parameters
    ----------
    source : Source
    n_layers : int
        Blocks to keep.
    dtype : torch.dtype
        Of the arithmetic; embeddings, norms and biases are kept in it.
    device : torch.device

    Returns
    -------
    trunk : transformers.PreTrainedModel
        The caller's own; its weights are not shared.

    Raises
    ------
    ModelNotSupportedError
        If the device isn't CUDA.
    MissingPackageError
        If bitsandbytes can't be imported.
    """
    _check_device(device)
    bnb = _bitsandbytes()
    # From the CPU's copy, so that the whole base is never on the device.
    trunk = source.copy_trunk(n_layers, dtype, torch.device("cpu"))
    for block in find_blocks(trunk):
        named = [(n, m) for n, m in block.named_modules() if type(m) is nn.Linear]
        for name, linear in named:
            parent, _, own = name.rpartition(".")
            setattr(block.get_submodule(parent), own, _in_4_bits(bnb.nn, linear, dtype))
    return trunk.to(device)  # which is when bitsandbytes packs them


def _check_device(device: torch.device) -> None:
    if device.type != "cuda":
        raise ModelNotSupportedError(
            f"`lora__quantize_base` needs a CUDA device. Got device={str(device)!r}: set "
            "quantize_base=None, or n_layers to keep fewer layers in memory."
        )


def _bitsandbytes() -> Any:
    try:
        import bitsandbytes
    except ImportError as error:
        raise MissingPackageError(
            "`lora__quantize_base` needs the package bitsandbytes, which can't be imported: run "
            f"`pip install bitsandbytes`. ({error})"
        ) from error
    return bitsandbytes


def _in_4_bits(bnb: Any, linear: nn.Linear, dtype: torch.dtype) -> nn.Module:
    with torch.device("meta"):  # nothing drawn, no memory taken
        small: nn.Module = bnb.Linear4bit(
            linear.in_features,
            linear.out_features,
            bias=linear.bias is not None,
            compute_dtype=dtype,
            quant_type="nf4",
        )
    small.weight = bnb.Params4bit(linear.weight.data, requires_grad=False, quant_type="nf4")
    if linear.bias is not None:
        small.bias = nn.Parameter(linear.bias.data, requires_grad=False)
    return small
