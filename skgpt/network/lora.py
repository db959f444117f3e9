"""Dropout that is drawn for each row by itself: however a batch is cut, a row's is the same.

Low-rank adapters in a trunk: where they go, what they start from, what merging them gives.

Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models" (2021), in peft's layers.

The base's matrices in 4 bits, under adapters that stay whole: QLoRA.

Dettmers et al., "QLoRA: Efficient Finetuning of Quantized LLMs" (2023), with bitsandbytes' NF4.
"""

import hashlib
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from skgpt.exceptions import ModelNotSupportedError, missing_package
from skgpt.trunk.layers import find_blocks

_LEVELS = 1 << 16  # a share is rounded to as many


@dataclass(frozen=True)
class _Draw:
    key: tuple[int, ...]
    rows: Sequence[int]
    lengths: Sequence[int]


class RowNoise:
    """Says which rows a training step is at; without it there is no dropout.

    Parameters
    ----------
    padded : bool
        Whether texts lie side by side, not end to end.
    """

    def __init__(self, *, padded: bool) -> None:
        self.padded = padded
        self._draw: _Draw | None = None

    @contextmanager
    def at(
        self, key: tuple[int, ...], rows: NDArray[np.int64], lengths: NDArray[np.int64]
    ) -> Iterator[None]:
        """Have the body's forward passes drop.

        Parameters
        ----------
        key : tuple of int
            The seed, and where in the run the step is.
        rows : ndarray of shape (B,)
            The numbers of the texts that are run, in the order they lie in.
        lengths : ndarray of shape (B,)
            Their tokens.
        """
        self._draw = _Draw(key, rows.tolist(), lengths.tolist())
        try:
            yield
        finally:
            self._draw = None

    @contextmanager
    def over(self, rows: NDArray[np.int64], lengths: NDArray[np.int64]) -> Iterator[None]:
        """Have the body's forward passes drop, if they would, for other rows in the same step.

        Parameters
        ----------
        rows : ndarray of shape (B,)
            The numbers of what is run, in the order it lies in.
        lengths : ndarray of shape (B,)
            Its tokens.
        """
        draw = self._draw
        if draw is not None:
            self._draw = _Draw(draw.key, rows.tolist(), lengths.tolist())
        try:
            yield
        finally:
            self._draw = draw

    @contextmanager
    def off(self) -> Iterator[None]:
        """Have the body's forward passes drop nothing, whatever step is under way."""
        draw, self._draw = self._draw, None
        try:
            yield
        finally:
            self._draw = draw

    def mask(self, x: Tensor, index: int, share: float) -> Tensor | None:
        """Return what to multiply with, of x's shape; None where nothing is dropped.

        Parameters
        ----------
        x : Tensor of shape (B, L, H), or (T, H) or (1, T, H) where texts lie end to end
        index : int
            Of the layer that asks: each drops others.
        share : float
            Of the values, to drop.
        """
        draw = self._draw
        if draw is None:
            return None
        mask = x.new_ones(x.shape)
        texts = mask if self.padded else mask.view(-1, x.shape[-1]).split(_with_rest(draw, x))
        for row, length, text in zip(draw.rows, draw.lengths, texts, strict=False):
            kept = _drawn((*draw.key, row, index), (length, x.shape[-1]), share, x.device)
            text[:length] = kept
        return mask.div_(1 - share)


def _with_rest(draw: _Draw, x: Tensor) -> list[int]:
    """Return the lengths of what lies end to end, with filler tokens behind the texts."""
    rest = x.numel() // x.shape[-1] - sum(draw.lengths)
    return [*draw.lengths, rest]


def _drawn(
    key: tuple[int, ...], shape: tuple[int, int], share: float, device: torch.device
) -> Tensor:
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    generator = torch.Generator(device).manual_seed(int.from_bytes(digest, "little") >> 1)
    n = shape[0] * shape[1]
    # Four values out of each draw: a generator on a CPU is slow.
    raw = torch.empty(-(-n // 4), dtype=torch.int64, device=device)
    raw.random_(-(2**63), None, generator=generator)
    level = round(share * _LEVELS) - _LEVELS // 2
    return (raw.view(torch.int16)[:n] >= level).view(shape)


class RowDropout(nn.Module):
    """Dropout of each row's own, off unless its `RowNoise` says which rows there are.

    Parameters
    ----------
    share : float
        Of the values, to drop; the rest are scaled up.
    noise : RowNoise
    index : int
        Of this layer among all.
    """

    def __init__(self, share: float, noise: RowNoise, index: int) -> None:
        super().__init__()
        self.share = share
        self.noise = noise
        self.index = index

    def forward(self, x: Tensor) -> Tensor:
        """Return x, some of it zero and the rest scaled up."""
        mask = self.noise.mask(x, self.index, self.share)
        return x if mask is None else x * mask


_ADAPTER = "default"  # peft's name for the only one
_ALL = "all-linear"


@dataclass(frozen=True)
class AdapterSpec:
    """What the adapters of a network are; it goes into a pickle as it is.

    Parameters
    ----------
    rank : int
    alpha : float
        What an adapter adds is scaled by ``alpha / rank``.
    dropout : float
        Share of an adapter's inputs that is dropped in training.
    target_modules : str or tuple of str
        "all-linear", a regular expression for whole module names, or ends of module names.
    quantize_base : {4, None}
        Bits of the weights that adapters are beside.
    """

    rank: int
    alpha: float
    dropout: float
    target_modules: str | tuple[str, ...]
    quantize_base: int | None = None


def is_linear(module: nn.Module) -> bool:
    """Say whether a module is a matrix and a bias; GPT-2's are of transformers' own class."""
    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"


def targets_of(trunk: Any, spec: AdapterSpec, n_frozen: int) -> list[str]:
    """Return the names of the modules that get an adapter, all in the blocks that learn.

    Raises
    ------
    ModelNotSupportedError
        If there are none, or one of several names is none of theirs.
    """
    learning = list(find_blocks(trunk))[n_frozen:]
    inside = {id(module) for block in learning for module in block.modules()}
    linear = [n for n, m in trunk.named_modules() if id(m) in inside and is_linear(m)]
    wanted = spec.target_modules
    if isinstance(wanted, str):
        pattern = None if wanted == _ALL else _compiled(wanted)
        found = [name for name in linear if pattern is None or pattern.fullmatch(name)]
        unknown = [] if found else [wanted]
    else:
        found = [n for n in linear if any(_ends(n, end) for end in wanted)]
        unknown = [end for end in wanted if not any(_ends(n, end) for n in linear)]
    if unknown:
        ends = ", ".join(sorted({name.rpartition(".")[2] for name in linear}))
        hint = ""
        if linear and isinstance(wanted, str):
            hint = (
                f" A text is a regular expression for whole names, like {linear[0]!r}: pass a list "
                "for ends of names."
            )
        raise ModelNotSupportedError(
            f"`lora__target_modules` must name linear layers in the blocks that learn. Got "
            f"{unknown[0]!r}, and those of {type(trunk).__name__} are called {ends}.{hint}"
        )
    return found


def _ends(name: str, end: str) -> bool:
    return name == end or name.endswith(f".{end}")


def _compiled(pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except re.error as error:
        raise ModelNotSupportedError(
            f"`lora__target_modules` must be 'all-linear', a list of module names or a regular "
            f"expression for whole names. Got {pattern!r}: {error}."
        ) from error


def add_adapters(trunk: Any, spec: AdapterSpec, n_frozen: int, noise: RowNoise) -> list[str]:
    """Put adapters beside the linear layers of the blocks that learn.

    Parameters
    ----------
    trunk : transformers.PreTrainedModel
        The caller's own.
    spec : AdapterSpec
    n_frozen : int
        Blocks, from the first on, that get none.
    noise : RowNoise
        Where their dropout comes from.

    Returns
    -------
    names : list of str
        Of the adapters' parameters, which are on the meta device until the caller sets them.

    Raises
    ------
    ModelNotSupportedError
        If there is nothing to put one beside, or peft refuses to.
    MissingPackageError
        If peft can't be imported.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise missing_package("`lora`", "peft", error) from error

    targets = targets_of(trunk, spec, n_frozen)
    config = LoraConfig(
        r=spec.rank,
        lora_alpha=cast(int, spec.alpha),  # a fraction is as good; dropout is ours, below
        target_modules="|".join(re.escape(name) for name in targets),
        task_type="FEATURE_EXTRACTION",
        fan_in_fan_out=any(type(trunk.get_submodule(t)).__name__ == "Conv1D" for t in targets),
    )
    # On the meta device nothing is drawn from a global generator.
    try:
        with torch.device("meta"):
            inject_adapter_in_model(config, trunk, adapter_name=_ADAPTER)
    except ValueError as error:
        raise ModelNotSupportedError(
            f"`lora__target_modules` must name layers that peft can be beside. Got "
            f"{spec.target_modules!r}, and of {type(trunk).__name__} peft says: {error}"
        ) from error
    if spec.dropout > 0:
        for index, name in enumerate(targets):
            dropout = RowDropout(spec.dropout, noise, index)
            trunk.get_submodule(name).lora_dropout[_ADAPTER] = dropout
    return [name for name, _ in trunk.named_parameters() if _is_adapters(name)]


def _is_adapters(name: str) -> bool:
    return f".lora_A.{_ADAPTER}." in name or f".lora_B.{_ADAPTER}." in name


def first_values(trunk: Any, names: list[str], seed: int) -> dict[str, Tensor]:
    """Return what adapters start from, in fp32 on the CPU: A is drawn, B is zero.

    So they add nothing at first. A is drawn as torch draws a linear layer, from a generator of
    its own.

    Parameters
    ----------
    trunk : transformers.PreTrainedModel
    names : list of str
        From `add_adapters`.
    seed : int
    """
    generator = torch.Generator().manual_seed(seed % 2**63)
    values = {}
    for name in names:
        shape = trunk.get_parameter(name).shape
        values[name] = torch.zeros(shape)
        if ".lora_A." in name:
            bound = 1 / math.sqrt(shape[1])
            values[name].uniform_(-bound, bound, generator=generator)
    return values


def by_module(adapters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the A of each adapter, by the name of the module that it is beside."""
    between = f".lora_A.{_ADAPTER}."
    return {name.partition(between)[0]: a for name, a in adapters.items() if between in name}


def base_name(name: str) -> str:
    """Return what a parameter of an adapted trunk is called in one without adapters."""
    return name.replace(".base_layer.", ".")


def merged(
    trunk: Any, spec: AdapterSpec, weights: Mapping[str, Tensor], adapters: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Return the weights that do alone what they and their adapters do, in fp32.

    Parameters
    ----------
    trunk : transformers.PreTrainedModel
        With adapters, for its shape.
    spec : AdapterSpec
    weights : mapping of str to Tensor
        Of the trunk without adapters, by its own names.
    adapters : mapping of str to Tensor
        fp32, by `add_adapters`' names.

    Returns
    -------
    merged : dict of str to Tensor
        Those weights that have an adapter.
    """
    done = {}
    for module, down in by_module(adapters).items():
        up = adapters[f"{module}.lora_B.{_ADAPTER}.weight"]
        added = (up @ down) * (spec.alpha / spec.rank)
        weight = weights[f"{module}.weight"].to(added.device, torch.float32)
        is_turned = type(trunk.get_submodule(module).base_layer).__name__ == "Conv1D"
        done[f"{module}.weight"] = weight + (added.T if is_turned else added)
    return done


if TYPE_CHECKING:
    from skgpt.pretrained.loading import PretrainedModel


def quantise(
    pretrained: "PretrainedModel", n_layers: int, dtype: torch.dtype, device: torch.device
) -> Any:
    """Return a trunk whose blocks hold their linear layers in 4 bits.

    Parameters
    ----------
    pretrained : PretrainedModel
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
    trunk = pretrained.copy_trunk(n_layers, dtype, torch.device("cpu"))
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
        raise missing_package("`lora__quantize_base`", "bitsandbytes", error) from error
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
