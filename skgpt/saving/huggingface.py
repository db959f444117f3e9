"""A FittedModel as a Hugging Face sequence-classification checkpoint, and back.

What is written is read back with transformers alone and must give the same raw scores. Only
safetensors are read: nothing is unpickled and no code of a checkpoint is run.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from skgpt import __version__
from skgpt._files import atomic_folder, check_nothing_else, from_plain, storage_errors, to_plain
from skgpt.data.targets import Target
from skgpt.data.tokenization import Tokens, tokenise
from skgpt.data.values import AnyTarget, Units, Values
from skgpt.exceptions import (
    ModelNotFoundError,
    ModelNotSupportedError,
    SkgptError,
    StateFormatError,
)
from skgpt.fitted_model import FittedClassifier, FittedModel, FittedRegressor
from skgpt.network.layout import Layout, ids_of
from skgpt.network.lora import base_name, merged
from skgpt.network.network import TextNetwork
from skgpt.pretrained.default_models import ALIASES, quiet_transformers
from skgpt.pretrained.loading import PretrainedModel, place_of, read_model_files
from skgpt.pretrained.tokenizer import TextTokenizer
from skgpt.saving.model_card import model_card
from skgpt.trunk.layers import PROBE_ERRORS, copy_with_tensors, find_blocks

NOTES = "skgpt.json"  # what transformers' files have no word for; the configuration names it
_FORMAT = 1
_WRITTEN_BY = "skgpt save_pretrained"
_SEVERAL = "multi_label_classification"
_NUMBERS = "regression"
_WEIGHTS = "model.safetensors"
_UNKNOWN_LENGTH = 10**9  # transformers notes a number beyond it where it knows none
# Parameters that the checkpoint says itself, or that are of a machine and not of a model.
_NOT_NOTED = frozenset(
    {"model", "revision", "n_layers", "lora", "pooling", "template", "label_words", "long_text"}
    | {"device", "precision", "store_base", "checkpoint_dir"}
)
CPU = torch.device("cpu")
# Of unequal lengths, so that one of them is padded.
PROBES = ("It was good.", "What came of it in the end was not what anybody had hoped for.")
_NEGLIGIBLE = 1e-6  # of a deviation of y
_TOLERANCE = 1e-4  # relative to the largest raw score, or to one


# Writing.


def export(
    model: FittedModel, folder: Path, params: Mapping[str, Any], defaults: Mapping[str, Any]
) -> None:
    """Write a checkpoint with a model card, whole or not at all; `params` are the estimator's."""
    _check_exportable(model)
    with (
        storage_errors("`folder`", folder, "name another"),
        atomic_folder(folder, _is_ours) as draft,
    ):
        write_checkpoint(model, draft)
        card = model_card(model, params, defaults)
        (draft / "README.md").write_text(card, encoding="utf-8")
        files = sorted([NOTES, *(path.name for path in draft.iterdir())])
        notes = json.dumps(to_plain({**_notes(model, params), "files": files}), indent=2)
        (draft / NOTES).write_text(notes + "\n", encoding="utf-8")


def _check_exportable(model: FittedModel) -> None:
    """Check that the format can say what the model does."""
    pretrained, pooling = model.network.pretrained, model.network.spec.pooling
    template = model.template
    one_column = len(template.fields) == 1 and model.columns.get("n_features_in_", 1) == 1
    # What must hold, in words, what there is instead.
    checks = (
        (
            pretrained.capabilities.causal,
            "`model` must be a decoder: that is what the format pools at the last token of",
            f"{pretrained.model!r} is an encoder",
        ),
        (
            pooling == "last",
            "`pooling` must be 'last': transformers' sequence classifiers pool no other way",
            f"This model was fitted with {pooling!r}",
        ),
        (
            model.network.attention == "causal",
            "`attention` must be 'causal': the format's decoders see only what stands before",
            "This model was fitted with 'bidirectional'",
        ),
        (
            not model.multioutput,
            "y must be a single column of labels, or an indicator: the format has no word for "
            "several outputs",
            f"This model was fitted with {len(model.known) if model.multioutput else 1} columns",
        ),
        (
            model.long_text == "cut",
            "`long_text` must be 'cut': the format has no word for texts in windows",
            f"This model was fitted with {model.long_text!r}",
        ),
        (
            not model.network.spec.prompted,
            "`label_words` must be None: the format has no word for the prompt, nor for what is "
            "taken off the raw scores",
            "This model was fitted with some",
        ),
        (
            one_column and not any(template.words),
            "`template` must be None, and X a single column: the format has no word for how texts "
            "are put together",
            "This model puts them together",
        ),
    )
    for holds, wanted, got in checks:
        if not holds:
            raise ModelNotSupportedError(f"{wanted}. {got}: fit another, or use skgpt.save.")


def _notes(model: FittedModel, params: Mapping[str, Any]) -> dict[str, Any]:
    """Return what comes back from the folder beside the network."""
    noted = {**params, "max_length": model.max_length}
    return {
        "written_by": _WRITTEN_BY,
        "format": _FORMAT,
        "skgpt": __version__,
        **_notes_of_target(model),
        "params": {k: v for k, v in noted.items() if k not in _NOT_NOTED and _is_plain(v)},
        "split_seed": model.split_seed,
        "trained_on": model.trained_on,
    }


def _notes_of_target(model: FittedModel) -> dict[str, Any]:
    if isinstance(model, FittedClassifier):
        return {"classes": model.classes}
    assert isinstance(model, FittedRegressor)
    return {"scale": model.units.scale}


def _is_plain(value: Any) -> bool:
    """Say whether a parameter is plain data; callables and generators are not."""
    try:
        to_plain(value)
    except TypeError:
        return False
    return True


def _is_ours(folder: Path) -> bool:
    """Say whether `save_pretrained` wrote a folder, and all that is in it."""
    try:
        notes = _own_notes((folder / NOTES).read_text("utf-8"))
    except (OSError, ValueError, RecursionError):  # no such file, or somebody else's
        return False
    if notes:
        names = notes.get("files")
        check_nothing_else(folder, map(str, names) if isinstance(names, list) else ())
    return bool(notes)


def _own_notes(text: str) -> dict[str, Any]:
    """Return what `save_pretrained` noted; nothing if somebody else wrote it."""
    notes = from_plain(json.loads(text))
    is_ours = isinstance(notes, dict) and notes.get("written_by") == _WRITTEN_BY
    return notes if is_ours else {}


def write_checkpoint(model: FittedModel, folder: Path) -> None:
    """Write configuration, weights and tokenizer as transformers would, and compare the scores.

    A calibrated model's head is divided by the temperature, and a regressor's has the units of y:
    it is a matrix without a bias.
    """
    network, pretrained = model.network, model.network.pretrained
    scale_K, mean_K = _outputs_of(model)
    pad_id = _pad_id(pretrained)
    skeleton, config = _skeleton(model, pad_id)

    # Our tensors under the names of transformers' own class.
    head, prefix = head_name(skeleton, pretrained.model), f"{skeleton.base_model_prefix}."
    tensors = {f"{prefix}{name}": tensor for name, tensor in whole_tensors(network).items()}
    tensors[head] = network.head.weight.detach().cpu() * scale_K[:, None]
    if mean_K.any():
        name = prefix + _bias_behind_blocks(skeleton.base_model, pretrained.model)
        to_add_H = torch.linalg.lstsq(tensors[head].double(), mean_K[:, None], driver="gelsd")
        tensors[name] = (tensors[name].double() + to_add_H.solution[:, 0]).float()
    shapes = {name: tuple(p.shape) for name, p in skeleton.named_parameters()}
    if {name: tuple(t.shape) for name, t in tensors.items()} != shapes:
        raise _other_class(network, f"{type(skeleton).__name__} has other weights")
    buffers = dict(pretrained.trunk.named_buffers())
    for name, _ in skeleton.named_buffers():
        tensors[name] = buffers[name.removeprefix(prefix)]

    _save(copy_with_tensors(skeleton, tensors), config, folder)
    _tokenizer(pretrained, pad_id, model.max_length).save_pretrained(folder)
    _compare_scores(network, folder, model.max_length, lambda ours: ours * scale_K + mean_K)


def _outputs_of(model: FittedModel) -> tuple[Tensor, Tensor]:
    """Return what raw scores are multiplied with in a checkpoint, and what is added to them."""
    n = model.network.spec.n_outputs
    if isinstance(model, FittedRegressor):
        scale, mean = np.array(model.units.scale), np.array(model.units.mean)
        mean[np.abs(mean) <= _NEGLIGIBLE * scale] = 0.0  # of a y that somebody centred
    else:
        assert isinstance(model, FittedClassifier)
        scale, mean = np.full(n, 1 / model.temperature), np.zeros(n)
    return torch.from_numpy(scale).float(), torch.from_numpy(mean)


def _bias_behind_blocks(trunk: Any, model: str) -> str:
    """Return the name of the bias of a trunk's final norm, which a constant can go into."""
    inside = {id(parameter) for parameter in find_blocks(trunk).parameters()}
    behind = [name for name, p in trunk.named_parameters() if id(p) not in inside]
    if biases := [name for name in behind if name.endswith("bias")]:
        return biases[-1]
    raise ModelNotSupportedError(
        "`y` must have a mean of zero over the training rows: the format's head has no bias to add "
        f"it with, nor has the final norm of {model!r}. Fit on y less a constant that you add to "
        "what is predicted, or use skgpt.save."
    )


def whole_tensors(network: TextNetwork) -> dict[str, Tensor]:
    """Return the trunk's parameters on the CPU, under the base's names, adapters merged in.

    What was learned is fp32; the rest is as the base came, whatever the network computes in.
    """
    base, lora = dict(network.pretrained.trunk.named_parameters()), network.spec.lora
    learned = {name: master.detach().cpu() for name, master in network.learnable.items()}
    names = [name for name, _ in network.trunk.named_parameters()]
    if lora is not None:
        names = [base_name(name) for name in names if name not in learned]
        learned = merged(network.trunk, lora, base, learned)
    return {n: (learned[n] if n in learned else base[n]).detach().cpu() for n in names}


def _pad_id(pretrained: PretrainedModel) -> int:
    """Return a special token that no text ends in: transformers pools at the last other one.

    A tokenizer that puts nothing behind a text leaves all of them free, as special tokens' strings
    inside a text are plain text. (A text that is empty may be one alone: pooled, as it is all
    there is.)
    """
    hf = pretrained.tokenizer.hf
    ends = (*pretrained.tokenizer.suffix_ids[-1:], hf.unk_token_id)
    special = [i for i, token in sorted(hf.added_tokens_decoder.items()) if token.special]
    n_rows = pretrained.trunk.get_input_embeddings().weight.shape[0]
    for i in (hf.pad_token_id, hf.eos_token_id, hf.bos_token_id, *special):
        if i is not None and i not in ends and i < n_rows:
            return int(i)
    raise ModelNotSupportedError(
        f"`model` must have a special token that texts don't end in, to pad with: transformers "
        f"pools at the last token before the padding. {pretrained.model!r} has none: use "
        "skgpt.save."
    )


def _skeleton(model: FittedModel, pad_id: int) -> tuple[Any, Any]:
    """Return transformers' own model for this network without weights, and its configuration."""
    from transformers import AutoConfig

    network, pretrained = model.network, model.network.pretrained
    config = AutoConfig.for_model(**pretrained.config)
    _cut(config, pretrained.full_depth, network.spec.n_layers)
    if isinstance(model, FittedClassifier):
        labels = [str(label) for label in model.classes.tolist()]
        config.problem_type = _SEVERAL if model.multilabel else "single_label_classification"
    else:
        labels = [f"LABEL_{i}" for i in range(network.spec.n_outputs)]  # transformers' own
        config.problem_type = _NUMBERS
    config.id2label = dict(enumerate(labels))
    config.label2id = {label: i for i, label in enumerate(labels)}
    config.pad_token_id = pad_id
    config.skgpt_notes = NOTES
    try:
        return classifier_skeleton(config, pretrained.model), config
    except PROBE_ERRORS as error:
        if isinstance(error, SkgptError):
            raise
        raise _other_class(network, repr(error)) from error


def _cut(config: Any, depth: int, n_layers: int) -> None:
    """Say in a configuration that only the first layers are there."""
    if n_layers == depth:
        return
    config.num_hidden_layers = n_layers
    if hasattr(config, "attention_types"):  # GPT-Neo's way of writing one setting per layer
        kinds = config.attention_layers[:n_layers]
        config.attention_types = [[[kind], 1] for kind in kinds]
        config.attention_layers = kinds
    for key, value in config.to_dict().items():
        if isinstance(value, list) and len(value) == depth and key != "attention_types":
            setattr(config, key, value[:n_layers])


def _save(model: Any, config: Any, folder: Path) -> None:
    with quiet_transformers():
        model.save_pretrained(folder)
    # What is frozen may be bf16 in the file: everything is computed in fp32 all the same.
    config.architectures = [type(model).__name__]
    config.dtype = torch.float32
    config.save_pretrained(folder)


def _tokenizer(pretrained: PretrainedModel, pad_id: int, max_length: int) -> Any:
    """Return a tokenizer that encodes and cuts as skgpt does."""
    hf = TextTokenizer.from_files(pretrained.tokenizer.files()).hf
    hf.pad_token = hf.convert_ids_to_tokens(pad_id)
    settings = {
        "model_max_length": max_length,
        "model_input_names": ["input_ids", "attention_mask"],
        "padding_side": "right",
        "truncation_side": "right",
        "split_special_tokens": True,
    }
    for name, value in settings.items():
        setattr(hf, name, value)
    hf.init_kwargs |= settings  # what it saves
    return hf


def _compare_scores(
    network: TextNetwork, folder: Path, max_length: int, written: Callable[[Tensor], Tensor]
) -> None:
    """Compare the raw scores of a padded batch with the network's own, in fp32 on the CPU."""
    try:
        theirs = _read_scores(folder)
    except PROBE_ERRORS as error:
        raise _other_class(network, repr(error)) from error
    ours = written(_scores(network, max_length))
    scale = max(1.0, float(ours.abs().max()))
    far = float((ours - theirs).abs().max())
    if not far <= _TOLERANCE * scale:
        raise _other_class(network, f"raw scores differ by {far:.2g}")


def _other_class(network: TextNetwork, reason: str) -> ModelNotSupportedError:
    pretrained = network.pretrained
    named = "model" if network.spec.n_layers == pretrained.full_depth else "n_layers"
    return ModelNotSupportedError(
        f"`{named}` must be such that transformers' own class gives the same raw scores. With "
        f"{network.spec.n_layers} of the {pretrained.full_depth} layers of {pretrained.model!r} it "
        f"doesn't ({reason}): use skgpt.save."
    )


@torch.no_grad()
def _read_scores(folder: Path) -> Tensor:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    with quiet_transformers():
        tokenizer = AutoTokenizer.from_pretrained(folder, **options)
        model = AutoModelForSequenceClassification.from_pretrained(
            folder, dtype="auto", use_safetensors=True, **options
        )
        batch = tokenizer(list(PROBES), padding=True, truncation=True, return_tensors="pt")
        return model.eval()(**batch).logits


def _scores(network: TextNetwork, max_length: int) -> Tensor:
    return exact_scores(network, tokenise(list(PROBES), network.tokenizer, max_length))


@torch.no_grad()
def exact_scores(network: TextNetwork, tokens: Tokens) -> Tensor:
    """Return the raw scores of texts in fp32 on the CPU, shape (N, K), on the whole base.

    So is what is written, whatever the network computes in and was fitted on.
    """
    if network.dtype != torch.float32 or network.device != CPU:
        spec = network.spec
        if spec.lora is not None:
            spec = replace(spec, lora=replace(spec.lora, quantize_base=None))
        exact = TextNetwork(network.pretrained, spec, torch.float32, CPU)
        exact.take_over(network)
        network = exact
    layout = Layout.of(tokens.lengths, network.pretrained, CPU)
    return network(ids_of(tokens, np.arange(len(tokens)), CPU), layout)


# Reading.


@dataclass(frozen=True)
class SavedHead:
    """What a checkpoint says beyond its trunk and tokenizer.

    There is a label for each row of the weight, of shape (n_outputs, H), but not for one of
    `units`, where raw scores are numbers. `notes` are those of `save_pretrained`, empty in a
    checkpoint of somebody else's.
    """

    weight: NDArray[np.float32]
    labels: tuple[str, ...]
    multilabel: bool
    notes: Mapping[str, Any]
    units: Units | None = None

    def target(self) -> tuple[AnyTarget, NDArray[np.int64]]:
        """Return the target of no rows, and the rows of the weight in the order of its classes."""
        order = np.arange(len(self.weight))
        if self.units is not None:
            return Values(np.zeros((0, len(order))), self.units.is_1d, self.units), order
        if self.multilabel:
            return Target(order, np.zeros((0, len(order)), dtype=np.float32)), order
        classes = self.notes.get("classes")
        if classes is None:
            classes = np.array(self.labels)
            order = np.argsort(classes)
            classes = classes[order]
        return Target(classes, np.zeros(0, dtype=np.int64)), order

    def params(self, pretrained: PretrainedModel, known: set[str]) -> dict[str, Any]:
        """Return the constructor parameters that the checkpoint notes, of those known."""
        noted = self.notes.get("params", {})
        params = {k: v for k, v in noted.items() if k in known - _NOT_NOTED}
        limits = (pretrained.tokenizer.hf.model_max_length, pretrained.max_positions)
        if lengths := [int(n) for n in limits if n is not None and n < _UNKNOWN_LENGTH]:
            params.setdefault("max_length", min(lengths))
        return params


def check_params_fit_format(params: Mapping[str, Any]) -> None:
    """Check that parameters passed to `from_pretrained` agree with what a checkpoint is."""
    only = {
        "pooling": ("last", "auto"),
        "attention": ("causal", "auto"),
        "template": (None,),
        "label_words": (None,),
        "n_layers": (None, "auto"),
        "long_text": ("cut",),
    }
    for name, allowed in only.items():
        if name in params and params[name] not in allowed:
            raise ModelNotSupportedError(
                f"`{name}` must be {allowed[0]!r} with from_pretrained: the checkpoint's head was "
                f"trained that way. Got {params[name]!r}: leave it out."
            )
    if "model" in params:
        raise ModelNotSupportedError(
            "`model` must be left out with from_pretrained: it is `folder_or_id`."
        )


def read_head(model: str, revision: str | None, *, numbers: bool = False) -> SavedHead:
    """Read the head of a decoder's sequence-classification checkpoint, safetensors only.

    `model` is a folder or a hub id; its scores are those of classes, or `numbers`. Raises
    ModelNotFoundError if there is nothing of that name or it can't be read, ModelNotSupportedError
    if it is no such checkpoint.
    """
    path, _ = place_of(model)
    if model in ALIASES or path.is_file():
        fits = model in ALIASES or path.suffix == ".gguf"
        what = f"a model without a head: fit it, with model={model!r}" if fits else "a file"
        raise ModelNotSupportedError(
            "`folder_or_id` must be a sequence-classification checkpoint: a folder or a hub id. "
            f"{model!r} is {what}."
        )
    wanted = (
        "`folder_or_id` must be a transformers folder (config.json, safetensors weights, "
        "tokenizer files) or a hub id."
    )
    return read_model_files(
        model,
        revision,
        lambda where, offline: _read_head(model, where, revision, offline, numbers),
        wanted,
    )


def _read_head(
    model: str, where: str, revision: str | None, local_files_only: bool, numbers: bool
) -> SavedHead:
    from transformers import AutoConfig
    from transformers.utils import cached_file

    options: dict[str, Any] = {"revision": revision or "main", "local_files_only": local_files_only}

    def find(name: str) -> Path | None:
        found = cached_file(where, name, _raise_exceptions_for_missing_entries=False, **options)
        return None if found is None else Path(found)

    config = AutoConfig.from_pretrained(where, trust_remote_code=False, **options)
    labels = () if numbers else _labels_of(config, where)
    if numbers and not (config.problem_type == _NUMBERS or config.num_labels == 1):
        raise ModelNotSupportedError(
            f"`folder_or_id` must be a regression, or have a single score. {where!r} has "
            f"{config.num_labels} and problem_type={config.problem_type!r}: open it with "
            "GPTTextClassifier.from_pretrained."
        )
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
    noted = {} if notes is None else _read_notes(notes.read_text("utf-8"), model)
    if not numbers:
        _check_classes_noted(noted, labels, model)
        return SavedHead(weight.float().numpy(), labels, config.problem_type == _SEVERAL, noted)
    scale = noted.get("scale", [1.0] * len(weight))  # to go on learning in; the mean is in a bias
    if np.shape(scale) != (len(weight),) or not np.all(np.array(scale) > 0):
        raise StateFormatError(
            f"{NOTES} of {model!r} must name a scale for each score. Got {scale}: delete {NOTES}."
        )
    units = Units([0.0] * len(scale), list(scale), len(scale) == 1)
    learned = weight.double().numpy() / np.array(scale)[:, None]
    return SavedHead(learned.astype(np.float32), (), False, noted, units)


def _labels_of(config: Any, where: str) -> tuple[str, ...]:
    named = config.id2label or {}
    if config.problem_type == "regression" or len(named) < 2:
        raise ModelNotSupportedError(
            f"`folder_or_id` must be a classifier with a raw score for each of two or more "
            f"labels. {where!r} has {len(named)} and problem_type={config.problem_type!r}: open a "
            "single score or a regression with GPTTextRegressor.from_pretrained."
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


def _read_notes(text: str, model: str) -> dict[str, Any]:
    """Return what `save_pretrained` noted."""
    try:
        notes = _own_notes(text)
    except (ValueError, RecursionError) as error:
        raise StateFormatError(f"{NOTES} of {model!r} can't be read: {error}") from error
    if notes.get("format") != _FORMAT:
        raise StateFormatError(
            f"{NOTES} of {model!r} must be of format {_FORMAT} of save_pretrained. Got "
            f"{notes.get('format')!r}: open it with the version of skgpt that wrote it, or delete "
            f"{NOTES} to have the checkpoint opened as transformers' own."
        )
    return notes


def _check_classes_noted(
    notes: Mapping[str, Any], saved_labels: tuple[str, ...], model: str
) -> None:
    """Check the classes that `save_pretrained` noted, if it did, against the configuration."""
    if not notes:
        return
    classes = notes.get("classes")
    labels = classes.tolist() if isinstance(classes, np.ndarray) else []
    texts = [str(label) for label in labels]
    if texts != list(saved_labels) or labels != sorted(labels):
        raise StateFormatError(
            f"{NOTES} and `id2label` of {model!r} must name the same labels, sorted. Got {texts} "
            f"and {list(saved_labels)}: delete {NOTES} if id2label is right."
        )


def check_pooling(pretrained: PretrainedModel) -> None:
    """Check that transformers pools at the last token: padding must not be what texts end in."""
    last = pretrained.tokenizer.suffix_ids[-1:]
    if last and last[0] == pretrained.trunk.config.pad_token_id:
        raise ModelNotSupportedError(
            f"`pad_token_id` of {pretrained.model!r} must be a token that texts don't end in. Its "
            "tokenizer puts it behind every text, so transformers pools before it, and skgpt on it."
        )


@torch.no_grad()
def put_head(network: TextNetwork, weight: NDArray[np.float32]) -> None:
    """Give a network this head."""
    network.head.weight.copy_(torch.from_numpy(weight))


def classifier_skeleton(config: Any, model: str) -> Any:
    """Return transformers' sequence-classification model of a configuration, without weights."""
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
    """Return the name of a sequence-classification model's head, one matrix without a bias."""
    prefix = f"{model.base_model_prefix}."
    heads = [(n, p) for n, p in model.named_parameters() if not n.startswith(prefix)]
    if len(heads) != 1 or heads[0][1].ndim != 2:
        raise ModelNotSupportedError(
            f"`model` must be a decoder whose sequence-classification head is one matrix without "
            f"a bias. {type(model).__name__} of {name!r} has {[n for n, _ in heads]}: use a "
            "decoder."
        )
    return heads[0][0]
