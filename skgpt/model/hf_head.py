"""The head of a Hugging Face sequence-classification checkpoint; its trunk is read as any other's.

Only safetensors are read, so nothing is unpickled, and no code of a checkpoint's own is run.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from skgpt.exceptions import ModelNotFoundError, ModelNotSupportedError, SkgptError
from skgpt.model.conversion import ALIASES, quiet_transformers
from skgpt.model.folders import opened_by
from skgpt.model.network import TextNetwork
from skgpt.model.sources import Source, offline_first, refuse_misnomers

NOTES = "skgpt.json"  # what transformers' files have no word for; the configuration names it
SEVERAL = "multi_label_classification"
_WEIGHTS = "model.safetensors"


@dataclass(frozen=True)
class SavedHead:
    """What a checkpoint says beyond its trunk and tokenizer.

    Parameters
    ----------
    weight : ndarray of shape (n_outputs, H), float32
    labels : tuple of str
        One for each row of the weight.
    multilabel : bool
        Whether each label has a probability of its own.
    notes : str or None
        The text of the file of ours beside it, where there is one.
    """

    weight: NDArray[np.float32]
    labels: tuple[str, ...]
    multilabel: bool
    notes: str | None


def read_head(model: str, revision: str | None) -> SavedHead:
    """Read the head of a decoder's sequence-classification checkpoint, safetensors only.

    Parameters
    ----------
    model : str
        A folder or a hub id.
    revision : str or None
        Hub revision.

    Returns
    -------
    head : SavedHead

    Raises
    ------
    ModelNotFoundError
        If there is nothing of that name, or it can't be read.
    ModelNotSupportedError
        If it is no such checkpoint.
    """
    path = Path(model).expanduser()
    local = bool(model) and path.exists() and model not in ALIASES
    if model in ALIASES or path.is_file():
        fits = model in ALIASES or path.suffix == ".gguf"
        what = f"a model without a head: fit it, with model={model!r}" if fits else "a file"
        raise ModelNotSupportedError(
            "`folder_or_id` must be a sequence-classification checkpoint: a folder or a hub id. "
            f"{model!r} is {what}."
        )
    if local and not (path / "config.json").is_file():
        raise ModelNotFoundError(
            f"`folder_or_id` must be a transformers folder (config.json, safetensors weights, "
            f"tokenizer files) or a hub id. {model!r} is a folder without a config.json"
            f"{opened_by(path)}."
        )
    if not local:
        refuse_misnomers(model)
    where = str(path) if local else model
    try:
        with quiet_transformers():
            return offline_first(
                lambda offline: _read_head(where, revision, offline), hub=not local
            )
    except (SkgptError, MemoryError):
        raise
    except Exception as error:  # readers of damaged files raise whatever they like
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ModelNotFoundError(
            f"`folder_or_id` must be a transformers folder (config.json, safetensors weights, "
            f"tokenizer files) or a hub id. {model!r} can't be read: {reason}"
        ) from error


def _read_head(where: str, revision: str | None, local_files_only: bool) -> SavedHead:
    from transformers import AutoConfig
    from transformers.utils import cached_file

    options: dict[str, Any] = {
        "revision": revision or "main",
        "local_files_only": local_files_only,
    }

    def find(name: str) -> Path | None:
        found = cached_file(where, name, _raise_exceptions_for_missing_entries=False, **options)
        return None if found is None else Path(found)

    config = AutoConfig.from_pretrained(where, trust_remote_code=False, **options)
    labels = _labels_of(config, where)
    skeleton = classifier_skeleton(config, where)
    name = head_name(skeleton, where)
    weight = _read_tensor(find, name, where)
    shape = skeleton.get_parameter(name).shape
    if weight.shape != shape:
        raise ModelNotSupportedError(
            f"`folder_or_id` must have a head of as many rows as `id2label` has labels. That of "
            f"{where!r} has shape {tuple(weight.shape)}, not {tuple(shape)}: it belongs to another "
            "configuration."
        )
    # Not looked for where there can be none, so that nothing is asked of the hub in vain.
    notes = find(NOTES) if getattr(config, "skgpt_notes", None) == NOTES else None
    return SavedHead(
        weight.float().numpy(),
        labels,
        config.problem_type == SEVERAL,
        None if notes is None else notes.read_text("utf-8"),
    )


def _labels_of(config: Any, where: str) -> tuple[str, ...]:
    named = config.id2label or {}
    if config.problem_type == "regression" or len(named) < 2:
        raise ModelNotSupportedError(
            f"`folder_or_id` must be a classifier with a raw score for each of two or more "
            f"labels. {where!r} has {len(named)} and problem_type={config.problem_type!r}: a "
            "single score or a regression can't be opened."
        )
    labels: tuple[Any, ...] = tuple(named.get(i) for i in range(len(named)))
    if not all(isinstance(label, str) for label in labels) or len(set(labels)) < len(labels):
        raise ModelNotSupportedError(
            f"`id2label` of {where!r} must name the labels 0 to {len(labels) - 1}, each with "
            f"another text. Got {dict(named)}."
        )
    return labels


def _read_tensor(find: Callable[[str], Path | None], name: str, where: str) -> Tensor:
    from safetensors import safe_open

    file: Path | None = find(_WEIGHTS)
    if file is not None:
        with safe_open(file, framework="pt") as weights:
            there: Mapping[str, str] = dict.fromkeys(weights.keys(), _WEIGHTS)
    elif (index := find(f"{_WEIGHTS}.index.json")) is not None:
        there = json.loads(index.read_text("utf-8"))["weight_map"]
    else:
        raise ModelNotFoundError(
            f"`folder_or_id` must hold its weights as safetensors. {where!r} has no {_WEIGHTS}: "
            "save it anew with transformers."
        )
    head = name.removesuffix("weight")
    if (own := sorted(key for key in there if key.startswith(head))) != [name]:
        raise ModelNotSupportedError(
            f"`folder_or_id` must have a head that is one matrix, {name!r}. Got {own} in "
            f"{where!r}: a head with a bias or of several layers can't be opened, and a model "
            "without one is to be fitted, as model=."
        )
    file = find(there[name])
    if file is None:
        raise ModelNotFoundError(f"{where!r} must hold {there[name]!r}, which its index names.")
    with safe_open(file, framework="pt") as weights:
        tensor: Tensor = weights.get_tensor(name).clone()  # not a view of a file
    return tensor


def check_pooling(source: Source) -> None:
    """Check that transformers pools a checkpoint's texts at their true last token.

    Raises
    ------
    ModelNotSupportedError
        If its tokenizer puts the padding token behind every text.
    """
    last = source.tokenizer.suffix_ids[-1:]
    if last and last[0] == source.trunk.config.pad_token_id:
        raise ModelNotSupportedError(
            f"`pad_token_id` of {source.model!r} must be a token that texts don't end in. Its "
            "tokenizer puts it behind every text, so transformers pools before it, and skgpt on it."
        )


@torch.no_grad()
def put_head(network: TextNetwork, weight: NDArray[np.float32]) -> None:
    """Give a network this head."""
    network.head.weight.copy_(torch.from_numpy(weight))


def classifier_skeleton(config: Any, model: str) -> Any:
    """Return transformers' sequence-classification model of a configuration, without weights.

    Raises
    ------
    ModelNotSupportedError
        If it has none.
    """
    from transformers import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING as MAPPING
    from transformers import AutoModelForSequenceClassification

    if type(config) not in MAPPING:
        raise ModelNotSupportedError(
            f"`model` must be of an architecture that transformers has a sequence-classification "
            f"class for. {model!r} is of type {config.model_type!r}, which has none: use "
            "skgpt.save."
        )
    with torch.device("meta"), quiet_transformers():
        return AutoModelForSequenceClassification.from_config(config)


def head_name(model: Any, name: str) -> str:
    """Return the name of a sequence-classification model's head, one matrix without a bias.

    Raises
    ------
    ModelNotSupportedError
        If it is something else.
    """
    prefix = f"{model.base_model_prefix}."
    heads = [(n, p) for n, p in model.named_parameters() if not n.startswith(prefix)]
    if len(heads) != 1 or heads[0][1].ndim != 2:
        raise ModelNotSupportedError(
            f"`model` must be a decoder whose sequence-classification head is one matrix without "
            f"a bias. {type(model).__name__} of {name!r} has {[n for n, _ in heads]}: use a "
            "decoder."
        )
    return heads[0][0]
