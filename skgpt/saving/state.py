"""A network as numpy arrays and text, and back: what a pickle of a fitted estimator holds.

What the network learned is always inside. The base it stands on is inside only if it can't be
had again by name, or if that is asked for; otherwise its name, revision and fingerprint are.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args, get_type_hints

import torch
from torch import Tensor

from skgpt.exceptions import ModelNotFoundError, SkgptError, StateFormatError
from skgpt.network.lora import base_name, by_module, is_linear
from skgpt.network.network import POOLINGS, NetworkSpec, TextNetwork
from skgpt.pretrained.default_models import ALIASES, cache_folder, no_downloads, quiet_transformers
from skgpt.pretrained.loading import PretrainedModel, load_pretrained, make_pretrained
from skgpt.pretrained.tokenizer import TextTokenizer
from skgpt.pretrained.trust import harmless_config
from skgpt.tensor_files import check_checksum, from_bytes, to_bytes, with_checksum
from skgpt.trunk.layers import copy_with_tensors, find_blocks, truncate

# 1: estimators that knew neither templates nor several labels. 2: no seal; a base that is not
# inside can be fetched again.
FORMAT = 3
_READABLE = (2, 3)

StoreBase = Literal["auto", True, False]


def pack(network: TextNetwork, store_base: StoreBase = "auto") -> dict[str, Any]:
    """Return the network as a dict of text, numbers and uint8 arrays.

    Parameters
    ----------
    network : TextNetwork
    store_base : "auto" or bool, default="auto"
        Whether the base goes in. "auto": only if it can't be fetched again by name.

    Returns
    -------
    state : dict
        ``format``, ``spec``, ``pretrained``, ``learned`` and ``sha256``, and where the base goes in
        ``config``, ``tokenizer`` and ``base``.

    Raises
    ------
    ValueError
        If `store_base` is something else.
    """
    pretrained = network.pretrained
    learned = {f"trunk.{name}": tensor for name, tensor in network.learnable.items()}
    learned["head.weight"] = network.head.weight
    state: dict[str, Any] = {
        "format": FORMAT,
        "spec": asdict(network.spec),
        "pretrained": {
            "model": pretrained.model,
            "revision": pretrained.revision,
            "fingerprint": pretrained.fingerprint,
            "downloadable": pretrained.downloadable,
        },
        "learned": to_bytes(learned),
    }
    if _goes_in(pretrained, store_base):
        shared = _base_of(network)
        # The uncut configuration: cutting one is up to the class that it belongs to.
        state["config"] = json.dumps(pretrained.config, sort_keys=True)
        state["tokenizer"] = pretrained.tokenizer.files()
        state["base"] = to_bytes(shared)
    return with_checksum(state)


@torch.inference_mode(False)  # a copy may be fitted on, whatever the caller is in
def twin_of(network: TextNetwork) -> TextNetwork:
    """Return a copy that shares the base in memory, and has what was learned for itself."""
    twin = TextNetwork(network.pretrained, network.spec, network.dtype, network.device)
    twin.take_over(network)
    return twin


def _goes_in(pretrained: PretrainedModel, store_base: StoreBase) -> bool:
    if isinstance(store_base, str):
        if store_base != "auto":
            raise ValueError(f"`store_base` must be 'auto', True or False. Got {store_base!r}.")
        return not pretrained.downloadable
    return bool(store_base)


def _base_of(network: TextNetwork) -> dict[str, Tensor]:
    """Return what the network stands on and has not learned, under the base's own names."""
    # Buffers too: the rotary frequencies and their like are in no state dict.
    trunk = dict(network.trunk.named_parameters()) | dict(network.trunk.named_buffers())
    base = {base_name(name): t for name, t in trunk.items() if name not in network.learnable}
    if network.spec.quantize_base is None:
        return base
    # Whole, to be put in 4 bits again where it is opened.
    whole = network.pretrained.trunk
    whole = dict(whole.named_parameters()) | dict(whole.named_buffers())
    return {name: tensor for name, tensor in whole.items() if name in base}


@torch.inference_mode(False)  # an opened model may be fitted on, whatever the caller is in
def unpack(state: dict[str, Any], *, dtype: torch.dtype, device: torch.device) -> TextNetwork:
    """Make the network again.

    Parameters
    ----------
    state : dict
        From `pack`.
    dtype : torch.dtype
        Of the trunk's arithmetic, on this machine.
    device : torch.device

    Returns
    -------
    network : TextNetwork

    Raises
    ------
    StateFormatError
        If the state was written by a later version or by one that is too old, or is damaged.
    ModelNotFoundError
        If the base is not here, or is not what it was.
    """
    if state.get("format") not in _READABLE:
        raise StateFormatError(
            f"A saved model must be of format {_READABLE[0]} to {FORMAT}. Got "
            f"{state.get('format')!r}: open it with the version of skgpt that wrote it."
        )
    check_checksum(state, "A saved model")
    learned = from_bytes(state["learned"])
    spec: NetworkSpec = _read_dataclass(NetworkSpec, state["spec"])
    if "base" in state:
        pretrained = _pretrained_inside(state, spec, learned)
    else:
        pretrained = _pretrained_by_name(state["pretrained"])
    _check_outputs(spec, learned, pretrained)
    network = TextNetwork(pretrained, _by_whole_names(spec, learned, pretrained), dtype, device)
    network.spec = spec
    targets = {f"trunk.{name}": master for name, master in network.learnable.items()}
    targets["head.weight"] = network.head.weight
    _check_same(learned, targets, "weights that were learned")
    with torch.no_grad():
        for name, target in targets.items():
            target.copy_(learned[name])
    network.refresh()
    return network


def _read_dataclass(kind: type, plain: Mapping[str, Any]) -> Any:
    """Make again what `dataclasses.asdict` took apart, dataclasses inside of it as well."""
    names = {field.name for field in fields(kind)}
    if unknown := set(plain) - names:
        raise StateFormatError(
            f"This saved model has a setting {min(unknown)!r}, which this version of skgpt doesn't "
            "know: open it with the version that wrote it, or a later one."
        )
    hints = get_type_hints(kind)
    values: dict[str, Any] = {}
    for name, value in plain.items():
        kinds = [k for k in (hints[name], *get_args(hints[name])) if is_dataclass(k)]
        of_kind = bool(kinds) and isinstance(value, Mapping)
        values[name] = _read_dataclass(kinds[0], value) if of_kind else value  # type: ignore[arg-type]
    return kind(**values)


def _check_outputs(
    spec: NetworkSpec, learned: Mapping[str, Tensor], pretrained: PretrainedModel
) -> None:
    """Check before anything is made whose size the file alone decides."""
    head = learned.get("head.weight")
    expected = (spec.n_outputs, pretrained.capabilities.hidden_size)
    if head is None or tuple(head.shape) != expected:
        found = "none" if head is None else tuple(head.shape)
        raise StateFormatError(
            f"The head of a saved model must have the shape {expected}. Got {found}: the file is "
            "damaged. Take another copy of it."
        )
    if spec.pooling not in POOLINGS or not 1 <= spec.n_layers <= pretrained.full_depth:
        raise StateFormatError(
            f"A saved model must be of a shape that {pretrained.model!r} can have. Got {spec}."
        )


def _by_whole_names(
    spec: NetworkSpec, learned: Mapping[str, Tensor], pretrained: PretrainedModel
) -> NetworkSpec:
    """Return the spec with the adapted modules by their whole names, the adapters' sizes checked.

    A stranger's pattern may take for ever to match, and a rank that is not that of what was
    learned all the memory there is.
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
            raise StateFormatError(
                f"Adapters in a saved model must be of rank {spec.lora.rank} and beside linear "
                f"layers. Got one of shape {tuple(down.shape)} at {name!r}: the file is damaged. "
                "Take another copy of it."
            )
    return replace(spec, lora=replace(spec.lora, target_modules=tuple(adapters)))


def _check_same(found: Mapping[str, Tensor], expected: Mapping[str, Tensor], what: str) -> None:
    """Check names and shapes; copying a tensor of one value into a large one would be silent."""
    for name, tensor in expected.items():
        if name not in found or found[name].shape != tensor.shape:
            shape = tuple(found[name].shape) if name in found else "nothing"
            raise StateFormatError(
                f"The {what} must hold {name!r} of shape {tuple(tensor.shape)}. Got {shape}: the "
                "file is damaged, or this version of transformers lays the model out in another "
                "way. Open it with the versions that wrote it."
            )


def _pretrained_by_name(named: Mapping[str, Any]) -> PretrainedModel:
    model, revision = named["model"], named["revision"]
    is_path = not named.get("downloadable", True)
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


def _pretrained_inside(
    state: dict[str, Any], spec: NetworkSpec, learned: dict[str, Tensor]
) -> PretrainedModel:
    tensors = from_bytes(state["base"])
    for name, tensor in learned.items():
        if name.startswith("trunk."):
            tensors[name.removeprefix("trunk.")] = tensor
    named = state["pretrained"]
    try:
        # What is inside is all that there is to it: nothing is fetched for it.
        with no_downloads(), quiet_transformers():
            config = harmless_config(json.loads(state["config"]))
            trunk, full_depth = _trunk_of(config, spec, tensors)
            pretrained = make_pretrained(
                trunk,
                TextTokenizer.from_files(state["tokenizer"]),
                model=named["model"],
                revision=named["revision"],
                downloadable=named.get("downloadable", False),
                shared=False,
                config=config,
                full_depth=full_depth,
            )
    except (SkgptError, MemoryError):
        raise
    except Exception as error:  # transformers raises whatever it likes about a configuration
        raise StateFormatError(
            f"The base inside a saved model must be one that transformers can make. It can't "
            f"({error!r}): the file is damaged, or needs the version of transformers it was "
            "written with."
        ) from error
    # The print of the base it was fitted on, not of what it has learned since.
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
    _check_same(tensors, dict(skeleton.named_parameters()), "base inside a saved model")
    return copy_with_tensors(skeleton, tensors), full_depth
