"""A fitted model as a `State`, tensors and plain values by name, and back: for pickles and folders.

What was learned is always inside. The base model is inside only if its name is not enough to get it
again, or if the user asks for it; otherwise its name, revision and fingerprint are.
"""

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from torch import Tensor

from skgpt.data.template import Template
from skgpt.data.values import Units
from skgpt.device import resolve_device, resolve_precision
from skgpt.exceptions import (
    InvalidArgumentError,
    ModelNotFoundError,
    ModelNotSupportedError,
    SkgptError,
    StateFormatError,
)
from skgpt.fitted_model import (
    FittedClassifier,
    FittedEmbedder,
    FittedModel,
    FittedRegressor,
    TextModel,
)
from skgpt.network.lora import AdapterSpec, base_name, by_module, is_linear
from skgpt.network.network import POOLINGS, NetworkSpec, TextNetwork
from skgpt.pretrained.default_models import ALIASES, cache_folder, no_downloads, quiet_transformers
from skgpt.pretrained.loading import PretrainedModel, load_pretrained, make_pretrained
from skgpt.pretrained.tokenizer import TextTokenizer
from skgpt.pretrained.trust import harmless_config
from skgpt.tensor_files import State
from skgpt.training.optimizer import Moments
from skgpt.trunk.layers import copy_with_tensors, find_blocks, truncate

_LOG = logging.getLogger("skgpt")
FORMAT = 1

StoreBase = Literal["auto", True, False]

M = TypeVar("M", bound=TextModel)

# Fields that go in as they are.
_OF_ALL = ("max_length", "long_text", "device", "precision")
_OF_TRAINED = (
    *_OF_ALL,
    *("split_seed", "trained_on", "history", "validation_scores", "best_iteration"),
)
_PLAIN: dict[type[TextModel], tuple[str, ...]] = {
    FittedClassifier: (*_OF_TRAINED, "multilabel", "calibration"),
    FittedRegressor: _OF_TRAINED,
    FittedEmbedder: (*_OF_ALL, "layers"),
}


def pack(model: TextModel, store_base: StoreBase = "auto") -> State:
    """Return a fitted model but for what it has `outside`."""
    values = {
        "format": FORMAT,
        **{name: getattr(model, name) for name in _PLAIN[type(model)]},
        "columns": dict(model.columns),
        "template": asdict(model.template),
        "fitted_on": str(model.network.device),
    }
    if isinstance(model, FittedRegressor):
        values["units"] = asdict(model.units)
    parts = {"model": State(values=values), "network": pack_network(model.network, store_base)}
    if isinstance(model, FittedModel) and model.moments is not None:
        parts["moments"] = model.moments.state()
    if isinstance(model, FittedEmbedder) and model.mean is not None:
        statistics = {"mean": model.mean, "scale": model.scale}
        parts["statistics"] = State({n: torch.from_numpy(v) for n, v in statistics.items()})
    return State.of(**parts)


def unpack(state: State, kind: type[M], fitted_by: str, **outside: Any) -> M:
    """Make the fitted model again, on the device that its fit asked for if this machine has it.

    Raises StateFormatError if it is of another format or makes no sense, ModelNotFoundError if the
    base is not here, or is not what it was.
    """
    values = state.part("model").values
    check_format(values)
    device, dtype = where_to_open(values["device"], values["precision"])
    if values["fitted_on"] != str(device):
        _LOG.warning("%s was fitted on %s and is on %s now", fitted_by, values["fitted_on"], device)
    more: dict[str, Any] = {}
    if "moments" in state.values:
        more["moments"] = Moments.of_state(state.part("moments"))
    if "statistics" in state.values:
        more |= {n: t.numpy() for n, t in state.part("statistics").tensors.items()}
    if kind is FittedRegressor:
        more["units"] = Units(**values["units"])
    model = kind(
        **{name: values[name] for name in _PLAIN[kind]},
        **outside,
        **more,
        columns=values["columns"],
        template=Template(**values["template"]),
        network=unpack_network(state.part("network"), dtype, device),
        fitted_by=fitted_by,
    )
    if isinstance(model, FittedEmbedder):
        _check_embedder(model)
    if isinstance(model, FittedRegressor):
        _check_units(model)
    return model


def _check_units(model: FittedRegressor) -> None:
    """Check that there are a mean and a scale for each raw score."""
    units, n = model.units, model.network.spec.n_outputs
    sizes = [np.shape(each) for each in (units.mean, units.scale)]
    makes_sense = np.isfinite([*units.mean, *units.scale]).all() and min(units.scale) > 0
    if sizes != [(n,), (n,)] or not makes_sense or (units.is_1d and n != 1):
        raise _other_version(f"have units of {n} columns", str(units))


def _check_embedder(model: FittedEmbedder) -> None:
    """Check layers and statistics against the network."""
    layers, deepest = model.layers, model.network.spec.n_layers
    known = isinstance(layers, list) and all(type(n) is int and n >= 1 for n in layers)
    each_once = known and len({*layers}) == len(layers) and max(layers, default=0) == deepest
    sizes = [None if each is None else each.shape for each in (model.mean, model.scale)]
    if not each_once or sizes not in ([None, None], 2 * [(model.n_features,)]):
        raise _other_version("have statistics of its layers", f"layers {layers} of {deepest}")


def check_format(values: Mapping[str, Any]) -> None:
    """Raise StateFormatError if a saved model is of another format."""
    if values.get("format") != FORMAT:
        raise _other_version(f"be of format {FORMAT}", repr(values.get("format")))


def _other_version(wanted: str, got: str) -> StateFormatError:
    return StateFormatError(
        f"A saved model must {wanted}. Got {got}: open it with the versions of skgpt and "
        "transformers that wrote it."
    )


def where_to_open(device: str, precision: Any) -> tuple[torch.device, torch.dtype]:
    """Return device and dtype as asked for at fit, or what this machine has instead."""
    try:
        found = resolve_device(device)
    except InvalidArgumentError:
        found = resolve_device("auto")
    try:
        return found, resolve_precision(precision, found)
    except ModelNotSupportedError:
        return found, resolve_precision("auto", found)


def pack_network(network: TextNetwork, store_base: StoreBase) -> State:
    """Return what was learned and, if it goes in, the base with its tokenizer."""
    pretrained = network.pretrained
    values = {
        "spec": asdict(network.spec),
        "model": pretrained.model,
        "revision": pretrained.revision,
        "fingerprint": pretrained.fingerprint,
        "downloadable": pretrained.downloadable,
    }
    learned = {f"trunk.{name}": tensor for name, tensor in network.learnable.items()}
    learned |= _head_of(network)
    parts = {"learned": State(learned, values)}
    if holds_base(pretrained, store_base):
        # The uncut configuration: cutting one is up to the class that it belongs to. As a text
        # with sorted keys, as its dicts come in another order from another process.
        config = json.dumps(pretrained.config, sort_keys=True)
        parts["base"] = State(_base_of(network), {"config": config})
        # As tensors of bytes: a tokenizer is too large for safetensors' metadata.
        files = {n: bytearray(text, "latin-1") for n, text in pretrained.tokenizer.files().items()}
        parts["tokenizer"] = State(
            {n: torch.from_numpy(np.frombuffer(file, np.uint8)) for n, file in files.items()}
        )
    return State.of(**parts)


def _head_of(network: TextNetwork) -> dict[str, Tensor]:
    return {"head.weight": network.head.weight, "head.offset": network.offset}


def holds_base(pretrained: PretrainedModel, store_base: StoreBase) -> bool:
    """Say whether the base goes in."""
    if isinstance(store_base, str):
        if store_base != "auto":
            raise ValueError(f"`store_base` must be 'auto', True or False. Got {store_base!r}.")
        return not pretrained.downloadable
    return bool(store_base)


def _base_of(network: TextNetwork) -> dict[str, Tensor]:
    """Return the pretrained tensors that the network has not learned, under the base's names."""
    # Buffers too: the rotary frequencies and their like are in no state dict.
    trunk = dict(network.trunk.named_parameters()) | dict(network.trunk.named_buffers())
    base = {base_name(name): t for name, t in trunk.items() if name not in network.learnable}
    if network.spec.quantize_base is None:
        return base
    # Whole, to be put in 4 bits again where it is opened.
    whole = network.pretrained.trunk
    whole = dict(whole.named_parameters()) | dict(whole.named_buffers())
    return {name: tensor for name, tensor in whole.items() if name in base}


def unpack_network(state: State, dtype: torch.dtype, device: torch.device) -> TextNetwork:
    """Make the network again, on the base that is inside or has that name here."""
    learned, values = state.part("learned").tensors, state.part("learned").values
    spec = _read_spec(values["spec"])
    if "base" in state.values:
        pretrained = _pretrained_inside(state, spec)
    else:
        pretrained = _pretrained_by_name(values)
    _check_outputs(spec, learned, pretrained)

    # Copy what was learned into a new network on that base.
    network = TextNetwork(pretrained, _with_module_names(spec, learned, pretrained), dtype, device)
    network.spec = spec
    targets = {f"trunk.{name}": tensor for name, tensor in network.learnable.items()}
    targets |= _head_of(network)
    _check_same(learned, targets)
    with torch.no_grad():
        for name, target in targets.items():
            target.copy_(learned[name])
    network.refresh()
    return network


def _read_spec(plain: Mapping[str, Any]) -> NetworkSpec:
    try:
        adapters = plain["lora"] and AdapterSpec(**plain["lora"])
        return NetworkSpec(**{**plain, "lora": adapters})
    except TypeError as error:
        raise _other_version("have settings that are known", str(error)) from error


def _check_outputs(
    spec: NetworkSpec, learned: Mapping[str, Tensor], pretrained: PretrainedModel
) -> None:
    """Check sizes before anything is made: the file alone decides them."""
    head = learned.get("head.weight")
    expected = (spec.n_outputs, pretrained.capabilities.hidden_size)
    if head is None or tuple(head.shape) != expected:
        found = "none" if head is None else str(tuple(head.shape))
        raise _other_version(f"have a head of the shape {expected}", found)
    known = spec.pooling in POOLINGS and 1 <= spec.n_layers <= pretrained.full_depth
    may_be_bidirectional = spec.n_layers if pretrained.capabilities.supports_bidirectional else 0
    if not known or not 0 <= spec.n_bidirectional <= may_be_bidirectional:
        raise _other_version(f"be of a shape that {pretrained.model!r} can have", str(spec))


def _with_module_names(
    spec: NetworkSpec, learned: Mapping[str, Tensor], pretrained: PretrainedModel
) -> NetworkSpec:
    """Return the spec with the adapted modules named one by one, the adapters' sizes checked.

    In a stranger's file, a pattern may take for ever to match, and a wrong rank all the memory.
    """
    if spec.lora is None:
        return spec
    linear = {
        name: module for name, module in pretrained.trunk.named_modules() if is_linear(module)
    }
    adapters = by_module({name.removeprefix("trunk."): t for name, t in learned.items()})
    for name, down in adapters.items():
        sizes = tuple(linear[name].weight.shape) if name in linear else ()
        if down.ndim != 2 or down.shape[0] != spec.lora.rank or down.shape[1] not in sizes:
            raise _other_version(
                f"have adapters of rank {spec.lora.rank} beside linear layers",
                f"one of shape {tuple(down.shape)} at {name!r}",
            )
    return replace(spec, lora=replace(spec.lora, target_modules=tuple(adapters)))


def _check_same(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Check names and shapes; copying a tensor of one value into a large one would be silent."""
    for name, tensor in expected.items():
        if name not in found or found[name].shape != tensor.shape:
            shape = tuple(found[name].shape) if name in found else "nothing"
            raise _other_version(f"hold {name!r} of shape {tuple(tensor.shape)}", str(shape))


def _pretrained_by_name(named: Mapping[str, Any]) -> PretrainedModel:
    model, revision = named["model"], named["revision"]
    is_path = not named["downloadable"]
    try:
        if is_path and not Path(model).expanduser().exists():
            raise FileNotFoundError("there is no such file or folder.")  # no name of the hub's
        pretrained = load_pretrained(model, revision)
    except OSError as error:
        raise ModelNotFoundError(
            f"This fitted model stands on {model!r}{_at(revision)}, which is not inside its file "
            f"and can't be had here. It was looked for in {_looked_in(model, is_path)}. "
            f"{_cure(model, is_path)}Or copy that from the machine that fitted it; or, on that "
            "machine, make a file with the base inside: set_params(store_base=True) and save "
            f"again. What went wrong: {error}"
        ) from error
    if pretrained.fingerprint != named["fingerprint"]:
        raise ModelNotFoundError(
            f"This fitted model stands on {model!r}{_at(revision)} as it was when it was fitted. "
            f"What has that name here, in {_looked_in(model, is_path)}, holds other weights: name "
            "the revision in `revision` when fitting, copy that from the machine that fitted it, "
            "or save there with store_base=True."
        )
    return pretrained


def _at(revision: str | None) -> str:
    return f" (revision {revision!r})" if revision else ""


def _cure(model: str, is_path: bool) -> str:
    if model in ALIASES:
        return (
            f"Fetch it with `python -m skgpt fetch {model}`, or have it fetched: skgpt.load("
            "folder, allow_download=True). "
        )
    return "" if is_path else "Have it fetched: skgpt.load(folder, allow_download=True). "


def _looked_in(model: str, is_path: bool) -> str:
    if model in ALIASES:
        return f"skgpt's cache folder {cache_folder()}"
    path = Path(model).expanduser()
    if is_path or path.exists():
        return str(path.absolute())
    from huggingface_hub.constants import HF_HUB_CACHE

    return f"the hub's cache folder {HF_HUB_CACHE}"


def _pretrained_inside(state: State, spec: NetworkSpec) -> PretrainedModel:
    learned, base = state.part("learned"), state.part("base")
    named = learned.values
    tensors = dict(base.tensors)
    for name, tensor in learned.tensors.items():
        if name.startswith("trunk."):
            tensors[name.removeprefix("trunk.")] = tensor
    try:
        # What is inside is all that there is to it: nothing is fetched for it.
        with no_downloads(), quiet_transformers():
            config = harmless_config(json.loads(base.values["config"]))
            trunk, full_depth = _trunk_of(config, spec, tensors)
            files = state.part("tokenizer").tensors.items()
            pretrained = make_pretrained(
                trunk,
                TextTokenizer.from_files(
                    {n: t.numpy().tobytes().decode("latin-1") for n, t in files}
                ),
                model=named["model"],
                revision=named["revision"],
                downloadable=named["downloadable"],
                shared=False,
                config=config,
                full_depth=full_depth,
            )
    except (SkgptError, MemoryError):
        raise
    except Exception as error:  # transformers raises whatever it likes about a configuration
        raise _other_version("hold a base that transformers can make", repr(error)) from error
    # The fingerprint of the base that was fitted, not of what it has learned since.
    return replace(pretrained, fingerprint=named["fingerprint"])


def _trunk_of(
    config: Mapping[str, Any], spec: NetworkSpec, tensors: Mapping[str, Tensor]
) -> tuple[Any, int]:
    """Return the trunk, cut, and how many blocks it has uncut."""
    from transformers import AutoConfig, AutoModel

    # A skeleton without weights, so that nothing is drawn and nothing is written twice.
    with torch.device("meta"):
        skeleton = AutoModel.from_config(AutoConfig.for_model(**config), trust_remote_code=False)
    full_depth = len(find_blocks(skeleton))
    truncate(skeleton, spec.n_layers)
    _check_same(tensors, dict(skeleton.named_parameters()) | dict(skeleton.named_buffers()))
    return copy_with_tensors(skeleton, tensors), full_depth
