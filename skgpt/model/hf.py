"""A network as a Hugging Face sequence-classification checkpoint.

Whatever is written is read back with transformers alone and has to say what the network says.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from skgpt.exceptions import ModelNotSupportedError, SkgptError
from skgpt.model.adapters import base_name, merged
from skgpt.model.blocks import PROBE_ERRORS, copy_around
from skgpt.model.conversion import quiet_transformers
from skgpt.model.hf_head import NOTES, SEVERAL, classifier_skeleton, head_name
from skgpt.model.layout import Layout, ids_of
from skgpt.model.network import TextNetwork
from skgpt.model.sources import Source
from skgpt.model.tokenizer import TextTokenizer
from skgpt.text.tokens import tokenise

_CPU = torch.device("cpu")
# Of unequal lengths, so that one of them is padded.
_PROBES = ("It was good.", "What came of it in the end was not what anybody had hoped for.")
_TOLERANCE = 1e-4  # relative to the largest raw score, or to one


def whole_tensors(network: TextNetwork) -> dict[str, Tensor]:
    """Return the trunk's parameters on the CPU, under the names that the base has for them.

    Parameters
    ----------
    network : TextNetwork

    Returns
    -------
    tensors : dict of str to Tensor
        What was learned in fp32, adapters merged into what they are beside; the rest as the base
        came, whatever the network computes in.
    """
    base, lora = dict(network.source.trunk.named_parameters()), network.spec.lora
    learned = {name: master.detach().cpu() for name, master in network.masters.items()}
    names = [name for name, _ in network.trunk.named_parameters()]
    if lora is not None:
        names = [base_name(name) for name in names if name not in learned]
        learned = merged(network.trunk, lora, base, learned)
    return {n: (learned[n] if n in learned else base[n]).detach().cpu() for n in names}


def write_checkpoint(
    network: TextNetwork,
    folder: Path,
    *,
    labels: Sequence[str],
    multilabel: bool,
    max_length: int,
    temperature: float = 1.0,
) -> None:
    """Write configuration, weights and tokenizer as transformers would, and prove them.

    Parameters
    ----------
    network : TextNetwork
        Pooled at the last token.
    folder : Path
        There already; what is written stays there when something fails.
    labels : sequence of str
        One for each raw score.
    multilabel : bool
        Whether each label has a probability of its own.
    max_length : int
        Tokens per text.
    temperature : float, default=1.0
        What raw scores are divided by. As the head is a matrix without a bias, it is the head that
        is divided.

    Raises
    ------
    ModelNotSupportedError
        If transformers can't say the same with a class of its own.
    """
    source = network.source
    pad_id = _pad_id(source)
    model, config = _skeleton(network, labels, multilabel, pad_id)
    head, prefix = head_name(model, source.model), f"{model.base_model_prefix}."
    tensors = {f"{prefix}{name}": tensor for name, tensor in whole_tensors(network).items()}
    tensors[head] = network.head.weight.detach().cpu() / temperature
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    if {name: tuple(t.shape) for name, t in tensors.items()} != shapes:
        raise _other_class(network, f"{type(model).__name__} has other weights")
    buffers = dict(source.trunk.named_buffers())
    for name, _ in model.named_buffers():
        tensors[name] = buffers[name.removeprefix(prefix)]
    _save(copy_around(model, tensors), config, folder)
    _tokenizer(source, pad_id, max_length).save_pretrained(folder)
    _prove(network, folder, max_length, temperature)


def _pad_id(source: Source) -> int:
    """Return a special token that no text ends in: transformers pools at the last other one.

    A tokenizer that puts nothing behind a text leaves all of them free, as special tokens' strings
    inside a text are plain text. (A text that is empty may be one alone: pooled, as it is all
    there is.)
    """
    hf = source.tokenizer.hf
    ends = (*source.tokenizer.suffix_ids[-1:], hf.unk_token_id)
    special = [i for i, token in sorted(hf.added_tokens_decoder.items()) if token.special]
    n_rows = source.trunk.get_input_embeddings().weight.shape[0]
    for i in (hf.pad_token_id, hf.eos_token_id, hf.bos_token_id, *special):
        if i is not None and i not in ends and i < n_rows:
            return int(i)
    raise ModelNotSupportedError(
        f"`model` must have a special token that texts don't end in, to pad with: transformers "
        f"pools at the last token before the padding. {source.model!r} has none: use skgpt.save."
    )


def _skeleton(
    network: TextNetwork, labels: Sequence[str], multilabel: bool, pad_id: int
) -> tuple[Any, Any]:
    """Return transformers' own model for this network without weights, and its configuration."""
    from transformers import AutoConfig

    source = network.source
    config = AutoConfig.for_model(**source.config)
    _cut(config, source.full_depth, network.spec.n_layers)
    config.id2label = dict(enumerate(labels))
    config.label2id = {label: i for i, label in enumerate(labels)}
    config.problem_type = SEVERAL if multilabel else "single_label_classification"
    config.pad_token_id = pad_id
    config.skgpt_notes = NOTES
    try:
        return classifier_skeleton(config, source.model), config
    except (*PROBE_ERRORS, SkgptError) as error:
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
    from safetensors import SafetensorError

    try:
        with quiet_transformers():
            model.save_pretrained(folder)
    except SafetensorError as error:  # how it reports that a write failed
        raise OSError(str(error)) from error
    # What is frozen may be bf16 in the file: everything is computed in fp32 all the same.
    config.architectures = [type(model).__name__]
    config.dtype = torch.float32
    config.save_pretrained(folder)


def _tokenizer(source: Source, pad_id: int, max_length: int) -> Any:
    """Return a tokenizer of one's own that encodes and cuts as `skgpt` does by itself."""
    hf = TextTokenizer.from_files(source.tokenizer.files()).hf
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


def _prove(network: TextNetwork, folder: Path, max_length: int, temperature: float) -> None:
    """Compare the raw scores of a padded batch with the network's own, in fp32 on the CPU."""
    try:
        theirs = _read_scores(folder)
    except PROBE_ERRORS as error:
        raise _other_class(network, repr(error)) from error
    ours = _scores(network, max_length) / temperature
    scale = max(1.0, float(ours.abs().max()))
    far = float((ours - theirs).abs().max())
    if not far <= _TOLERANCE * scale:
        raise _other_class(network, f"raw scores differ by {far:.2g}")


def _other_class(network: TextNetwork, reason: str) -> ModelNotSupportedError:
    source = network.source
    named = "model" if network.spec.n_layers == source.full_depth else "n_layers"
    return ModelNotSupportedError(
        f"`{named}` must be such that transformers' own class gives the same raw scores. With "
        f"{network.spec.n_layers} of the {source.full_depth} layers of {source.model!r} it "
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
        batch = tokenizer(list(_PROBES), padding=True, truncation=True, return_tensors="pt")
        logits: Tensor = model.eval()(**batch).logits
    return logits


@torch.no_grad()
def _scores(network: TextNetwork, max_length: int) -> Tensor:
    source = network.source
    if network.dtype != torch.float32 or network.device != _CPU:
        spec = network.spec
        if spec.lora is not None:  # what is written is the whole base, whatever it was fitted on
            spec = replace(spec, lora=replace(spec.lora, quantize_base=None))
        exact = TextNetwork(source, spec, torch.float32, _CPU)
        exact.take_over(network)
        network = exact
    tokens = tokenise(list(_PROBES), source.tokenizer, max_length)
    layout = Layout.of(tokens.lengths, source, _CPU)
    scores: Tensor = network(ids_of(tokens, np.arange(len(_PROBES)), _CPU), layout)
    return scores
