"""Low-rank adapters in a trunk: where they go, how they start, dropout, merging; a base in 4 bits.

Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models" (2021), in peft's layers; Dettmers
et al., "QLoRA: Efficient Finetuning of Quantized LLMs" (2023), with bitsandbytes' NF4.
"""

import math
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from skgpt.exceptions import ModelNotSupportedError, import_optional
from skgpt.pretrained.loading import PretrainedModel
from skgpt.trunk.layers import find_blocks

_ADAPTER = "default"  # peft's name for the only one
_ALL = "all-linear"


@dataclass(frozen=True)
class AdapterSpec:
    """What the adapters of a network are, as in `skgpt.LoRA`; it goes into a pickle as it is."""

    rank: int
    alpha: float
    dropout: float
    target_modules: str | tuple[str, ...]
    quantize_base: int | None = None


# Micro-batches that run at once draw from one each.
_GENERATOR: ContextVar[torch.Generator | None] = ContextVar("skgpt_generator", default=None)


class SeededDropout(nn.Module):
    """Dropout from a generator of its own; it drops within `seeded`, where gradients are on.

    torch's own draws from the global generator, which no fit may touch and all threads share.
    """

    def __init__(self, p: float, device: torch.device) -> None:
        super().__init__()
        self.p = p
        self.device = device

    @contextmanager
    def seeded(self, *key: int) -> Iterator[None]:
        """Drop in the body's forward passes, drawn from these numbers: the seed, the step, ..."""
        (seed,) = np.random.SeedSequence(key).generate_state(1, np.uint64).tolist()
        token = _GENERATOR.set(torch.Generator(self.device).manual_seed(seed))
        try:
            yield
        finally:
            _GENERATOR.reset(token)

    def forward(self, x: Tensor) -> Tensor:
        """Return x, a share p of it zero and the rest scaled up."""
        generator = _GENERATOR.get()
        if self.p == 0 or generator is None or not torch.is_grad_enabled():
            return x
        kept = torch.empty_like(x).bernoulli_(1 - self.p, generator=generator)
        return x * kept.div_(1 - self.p)


def is_linear(module: nn.Module) -> bool:
    """Say whether a module is a matrix and a bias; GPT-2's are of transformers' own class."""
    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"


def targets_of(trunk: Any, spec: AdapterSpec, n_frozen: int) -> list[str]:
    """Return the names of the modules that get an adapter, all in the blocks that learn.

    An error if there are none, or if one of several names matches nothing.
    """
    learning = list(find_blocks(trunk))[n_frozen:]
    inside = {id(module) for block in learning for module in block.modules()}
    linear = [n for n, m in trunk.named_modules() if id(m) in inside and is_linear(m)]
    wanted = spec.target_modules
    if isinstance(wanted, str):
        patterns = {wanted: _compiled(".*" if wanted == _ALL else wanted)}
    else:
        patterns = {end: re.compile(rf"(.*\.)?{re.escape(end)}") for end in wanted}
    found = [name for name in linear if any(p.fullmatch(name) for p in patterns.values())]
    if unknown := [end for end, p in patterns.items() if not any(map(p.fullmatch, linear))]:
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


def _compiled(pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except re.error as error:
        raise ModelNotSupportedError(
            f"`lora__target_modules` must be 'all-linear', a list of module names or a regular "
            f"expression for whole names. Got {pattern!r}: {error}."
        ) from error


def add_adapters(trunk: Any, spec: AdapterSpec, n_frozen: int, dropout: SeededDropout) -> list[str]:
    """Put adapters beside the linear layers of the blocks behind the frozen ones.

    The trunk must be the caller's own. Returns the names of the adapters' parameters, which are on
    the meta device until the caller sets them.
    """
    peft = import_optional("peft", "`lora`")
    targets = targets_of(trunk, spec, n_frozen)
    config = peft.LoraConfig(
        r=spec.rank,
        lora_alpha=cast(int, spec.alpha),  # a fraction is as good; dropout is ours, below
        target_modules="|".join(re.escape(name) for name in targets),
        task_type="FEATURE_EXTRACTION",
        fan_in_fan_out=any(type(trunk.get_submodule(t)).__name__ == "Conv1D" for t in targets),
    )
    # On the meta device nothing is drawn from a global generator.
    try:
        with torch.device("meta"):
            peft.inject_adapter_in_model(config, trunk, adapter_name=_ADAPTER)
    except ValueError as error:
        raise ModelNotSupportedError(
            f"`lora__target_modules` must name layers that peft can be beside. Got "
            f"{spec.target_modules!r}, and of {type(trunk).__name__} peft says: {error}"
        ) from error
    for name in targets:
        trunk.get_submodule(name).lora_dropout[_ADAPTER] = dropout
    own = re.compile(rf"\.lora_[AB]\.{_ADAPTER}\.")
    return [name for name, _ in trunk.named_parameters() if own.search(name)]


def first_values(trunk: Any, names: list[str], seed: int) -> dict[str, Tensor]:
    """Return what adapters start from, in fp32 on the CPU: A is drawn, B is zero.

    So they add nothing at first. A is drawn as torch draws a linear layer, from a generator of
    its own.
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
    """Return the adapted weights with their adapters added, in fp32.

    `weights` are those of the trunk without adapters, by its own names; `adapters` are fp32, by
    `add_adapters`' names.
    """
    done = {}
    for module, down in by_module(adapters).items():
        up = adapters[f"{module}.lora_B.{_ADAPTER}.weight"]
        added = (up @ down) * (spec.alpha / spec.rank)
        weight = weights[f"{module}.weight"].to(added.device, torch.float32)
        is_turned = type(trunk.get_submodule(module).base_layer).__name__ == "Conv1D"
        done[f"{module}.weight"] = weight + (added.T if is_turned else added)
    return done


def quantise(
    pretrained: PretrainedModel, n_layers: int, dtype: torch.dtype, device: torch.device
) -> Any:
    """Return a trunk of the caller's own whose blocks hold their linear layers in 4 bits.

    Arithmetic, embeddings, norms and biases are in `dtype`. Needs CUDA and bitsandbytes.
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
    return import_optional("bitsandbytes", "`lora__quantize_base`")


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
