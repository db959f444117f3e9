"""A network as numpy arrays and text, and back: what a pickle of a fitted estimator holds.

What the network learned is always inside. The base it stands on is inside only if it can't be
had again by name; otherwise its name, revision and fingerprint are.
"""

import json
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load, save
from torch import Tensor

from skgpt.exceptions import ModelNotFoundError, ModelNotSupportedError, StateFormatError
from skgpt.model.adapters import base_name
from skgpt.model.blocks import copy_around, find_blocks, truncate
from skgpt.model.conversion import quiet_transformers
from skgpt.model.network import NetworkSpec, TextNetwork
from skgpt.model.sources import Source, load_source, make_source
from skgpt.model.tokenizer import TextTokenizer

FORMAT = 2  # 1: estimators that knew neither templates nor several labels


def pack(network: TextNetwork) -> dict[str, Any]:
    """Return the network as a dict of text, numbers and uint8 arrays.

    Parameters
    ----------
    network : TextNetwork

    Returns
    -------
    state : dict
        ``format``, ``spec``, ``source`` and ``learned``, and for a base that can't be fetched
        again by name ``config``, ``tokenizer`` and ``base``.
    """
    source, spec = network.source, network.spec
    if spec.quantize_base is not None and not source.refetchable:
        raise ModelNotSupportedError(
            "A pickle can't hold a base in 4 bits, and this one can't be fetched again by name "
            f"({source.model!r}): fit with quantize_base=None to pickle it."
        )
    learned = {f"trunk.{name}": tensor for name, tensor in network.masters.items()}
    learned["head.weight"] = network.head.weight
    state: dict[str, Any] = {
        "format": FORMAT,
        "spec": spec.plain(),
        "source": {
            "model": source.model,
            "revision": source.revision,
            "fingerprint": source.fingerprint,
        },
        "learned": _to_bytes(learned),
    }
    if not source.refetchable:
        # Buffers too: the rotary frequencies and their like are in no state dict.
        trunk = dict(network.trunk.named_parameters()) | dict(network.trunk.named_buffers())
        shared = {base_name(name): t for name, t in trunk.items() if name not in network.masters}
        # The uncut configuration: cutting one is up to the class that it belongs to.
        state["config"] = json.dumps(source.config, sort_keys=True)
        state["tokenizer"] = source.tokenizer.files()
        state["base"] = _to_bytes(shared)
    return state


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
        If the state was written by a later version.
    ModelNotFoundError
        If the base is not here, or is not what it was.
    """
    if state.get("format") != FORMAT:
        raise StateFormatError(
            f"A saved model must be of format {FORMAT}. Got {state.get('format')!r}: open it with "
            "the version of skgpt that wrote it."
        )
    learned = _from_bytes(state["learned"])
    spec = NetworkSpec.from_plain(state["spec"])
    if "base" in state:
        source = _source_inside(state, spec, learned)
    else:
        source = _source_by_name(state["source"])
    network = TextNetwork(source, spec, dtype, device)
    with torch.no_grad():
        network.head.weight.copy_(learned["head.weight"])
        for name, master in network.masters.items():
            master.copy_(learned[f"trunk.{name}"])
    network.refresh()
    return network


def _source_by_name(named: dict[str, Any]) -> Source:
    model, revision = named["model"], named["revision"]
    try:
        source = load_source(model, revision)
    except OSError as error:
        raise ModelNotFoundError(
            f"This fitted model stands on {model!r}, which can't be had here: {error}"
        ) from error
    if source.fingerprint != named["fingerprint"]:
        raise ModelNotFoundError(
            f"This fitted model stands on {model!r} (revision {revision!r}) as it was when it was "
            "fitted. What has that name here holds other weights: name the revision in "
            "`revision`, or copy the cache folder of the machine that fitted it."
        )
    return source


def _source_inside(state: dict[str, Any], spec: NetworkSpec, learned: dict[str, Tensor]) -> Source:
    from transformers import AutoConfig, AutoModel

    tensors = _from_bytes(state["base"])
    for name, tensor in learned.items():
        if name.startswith("trunk."):
            tensors[name.removeprefix("trunk.")] = tensor
    # A skeleton without weights, so that nothing is drawn and nothing is written twice.
    config = json.loads(state["config"])
    with torch.device("meta"), quiet_transformers():
        skeleton = AutoModel.from_config(AutoConfig.for_model(**config))
    full_depth = len(find_blocks(skeleton))
    truncate(skeleton, spec.n_layers)
    trunk = copy_around(skeleton, tensors)
    source = make_source(
        trunk,
        TextTokenizer.from_files(state["tokenizer"]),
        model=state["source"]["model"],
        revision=state["source"]["revision"],
        refetchable=False,
        resident=False,
        config=config,
        full_depth=full_depth,
    )
    # The print of the base it was fitted on, not of what it has learned since.
    return replace(source, fingerprint=state["source"]["fingerprint"])


def _to_bytes(tensors: dict[str, Tensor]) -> NDArray[np.uint8]:
    plain = {name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}
    return np.frombuffer(save(plain), dtype=np.uint8)


def _from_bytes(array: NDArray[np.uint8]) -> dict[str, Tensor]:
    # A copy: the array may be a read-only memory map, and nothing may ever write to that.
    tensors: dict[str, Tensor] = load(array.tobytes())
    return tensors
