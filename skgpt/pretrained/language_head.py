"""The language-model head of a decoder: from its last hidden state to logits over the vocabulary.

What a model does behind its trunk (biases, capped or scaled logits) stays its own code:
transformers' causal model is given the hidden states in its trunk's place. Whether that is all it
does is compared, on two short texts, with the same model run whole.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from skgpt.caching import Store
from skgpt.device import total_memory
from skgpt.exceptions import ModelNotSupportedError
from skgpt.pretrained.default_models import ALIASES, alias_folder, quiet_transformers
from skgpt.pretrained.loading import PretrainedModel, hash_tensors, place_of, read_model_files
from skgpt.trunk.capabilities import first_blocks
from skgpt.trunk.layers import PROBE_ERRORS, agree, copy_with_tensors

_CPU = torch.device("cpu")
_SHORT_TEXTS = [[5, 7, 11, 13], [2, 3, 5, 7]]
_TOLERANCE = 1e-4
_LOGITS_AT_ONCE = 1 << 24  # as many as are in memory together


@dataclass(frozen=True)
class LanguageHead:
    """What a causal model has beside its trunk; it is read-only, and networks share it.

    `skeleton` is the causal model without weights or a trunk. `tied` are its parameters that are
    the trunk's, by the names there; `own` are all others.
    """

    skeleton: Any
    tied: Mapping[str, str]
    own: Mapping[str, Tensor]
    fingerprint: str  # of `own`

    def on(self, trunk: Any, device: torch.device) -> Any:
        """Return the head in fp32 on a device, `trunk` a copy that is there in any precision."""
        shared = {name: trunk.get_parameter(there) for name, there in self.tied.items()}
        tensors = {name: tensor.detach() for name, tensor in {**self.own, **shared}.items()}
        return _filled(self.skeleton, tensors, device)


def log_probabilities(head: Any, hidden_BH: Tensor, tokens: Tensor) -> Tensor:
    """Return the log-probabilities of these tokens as the next one, (B, n_tokens), in fp32.

    `head` is what `LanguageHead.on` returned. They are normalised over the whole vocabulary.
    """
    n_at_once = max(1, _LOGITS_AT_ONCE // head.config.get_text_config().vocab_size)
    found = []
    for part_BH in hidden_BH.split(n_at_once):
        logits_BV = _logits(head, part_BH[None])[0]
        found.append(logits_BV[:, tokens] - logits_BV.logsumexp(dim=1, keepdim=True))
    return torch.cat(found)


def linear_part(head: Any, tokens: Tensor, hidden_BH: Tensor) -> tuple[Tensor, Tensor]:
    """Return weight (n_tokens, H) and bias (n_tokens,) of these tokens' logits, in fp32.

    `head` is what `LanguageHead.on` returned; `hidden_BH` are states to try them on. Raises
    ModelNotSupportedError where logits are no linear function of the states.
    """
    n_at_once = max(1, _LOGITS_AT_ONCE // head.config.get_text_config().vocab_size)
    weights, biases = list[Tensor](), list[Tensor]()
    for some in tokens.split(n_at_once):
        zero_BH = hidden_BH.new_zeros(len(some), hidden_BH.shape[1]).requires_grad_()
        with torch.enable_grad():
            logits_B = _logits(head, zero_BH[None])[0].gather(1, some[:, None])[:, 0]
            weights += torch.autograd.grad(logits_B.sum(), zero_BH)
        biases.append(logits_B.detach())
    weight, bias = torch.cat(weights), torch.cat(biases)
    with torch.no_grad():
        expected = _logits(head, hidden_BH[None])[0][:, tokens]
    if not agree(hidden_BH @ weight.T + bias, expected, _TOLERANCE):
        raise ModelNotSupportedError(
            "`label_words` must be None for this model: its logits are no linear function of its "
            "last hidden state (they are capped, say), and so no head of a classifier. Use "
            "GPTZeroShotClassifier, or another model."
        )
    return weight, bias


_HEADS: Store[LanguageHead] = Store("language heads", total_memory(_CPU) // 8)


def language_head(
    pretrained: PretrainedModel, own: Mapping[str, Tensor] | None = None
) -> LanguageHead:
    """Return the language-model head of a decoder, reading it only if this process doesn't hold it.

    `own` are its weights out of a pickle. Raises ModelNotSupportedError for an encoder, for a
    model without such a head, and for one whose logits are computed in another way.
    """
    if not pretrained.capabilities.causal:
        raise ModelNotSupportedError(
            "Label words are scored by a decoder's language-model head. "
            f"{pretrained.model!r} is an encoder and predicts no next token: use a decoder, such "
            "as 'smollm2-135m', or train a GPTTextClassifier on it."
        )
    if not pretrained.shared:
        return _make(pretrained, own)
    return _HEADS.get_or_make(
        pretrained.identity,
        make=lambda: _make(pretrained, own),
        size_of=lambda head: sum(tensor.nbytes for tensor in head.own.values()),
    )


def _make(pretrained: PretrainedModel, own: Mapping[str, Tensor] | None) -> LanguageHead:
    skeleton, tied, missing = _skeleton_of(pretrained)
    if own is None:
        own = _read(pretrained, missing) if missing else {}
    if wrong := [name for name, shape in missing.items() if _shape(own.get(name)) != shape]:
        raise _none_in(pretrained, f"it lacks {wrong[0]!r} of shape {missing[wrong[0]]}")
    head = LanguageHead(skeleton, tied, own, hash_tensors(type(skeleton).__name__, own))
    _check_logits(head, pretrained)
    return head


def _skeleton_of(
    pretrained: PretrainedModel,
) -> tuple[Any, dict[str, str], dict[str, tuple[int, ...]]]:
    """Return the causal model without a trunk, what it ties to it, and the shapes of the rest."""
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        with quiet_transformers(), torch.device("meta"):
            causal = AutoModelForCausalLM.from_config(
                AutoConfig.for_model(**pretrained.config), trust_remote_code=False
            )
    except PROBE_ERRORS as error:  # no such class for this configuration
        raise _none_in(pretrained, "transformers knows no causal model of its kind") from error
    trunk = causal.base_model
    if type(trunk) is not type(pretrained.trunk):
        raise _none_in(pretrained, f"its causal model has a trunk of {type(trunk).__name__}")
    of_trunk = {id(parameter): name for name, parameter in trunk.named_parameters()}
    _put_trunk(causal, _HiddenStates())
    parameters = dict(causal.named_parameters())
    tied = {name: of_trunk[id(p)] for name, p in parameters.items() if id(p) in of_trunk}
    rest = {name: p for name, p in parameters.items() if name not in tied}
    rest |= dict(causal.named_buffers())
    return causal.eval(), tied, {name: tuple(tensor.shape) for name, tensor in rest.items()}


def _read(pretrained: PretrainedModel, wanted: Mapping[str, Any]) -> dict[str, Tensor]:
    """Read tensors of the causal model that the trunk doesn't have, from where that came from."""
    from transformers import AutoModelForCausalLM

    path, local = place_of(pretrained.model)

    def read(where: str, local_files_only: bool) -> dict[str, Tensor]:
        options: dict[str, Any] = {"dtype": "auto", "revision": pretrained.revision or "main"}
        if local and path.is_file():
            where = str(path.parent)
            options = {"dtype": torch.float32, "gguf_file": path.name}
        elif pretrained.model in ALIASES:
            where = str(alias_folder(pretrained.model))
        # Weights that are not found are drawn, from the generator that is the user's.
        with torch.random.fork_rng(devices=[]):
            causal, report = AutoModelForCausalLM.from_pretrained(
                where,
                local_files_only=local_files_only,
                trust_remote_code=False,
                output_loading_info=True,
                **options,
            )
        if missing := sorted(set(report["missing_keys"]) & set(wanted)):
            raise _none_in(pretrained, f"the checkpoint has no {missing[0]!r}")
        tensors = dict(causal.named_parameters()) | dict(causal.named_buffers())
        # Copies: the rest of the model goes, and a file of the user's may be written over.
        return {name: tensors[name].detach().clone() for name in wanted}

    what = f"The language-model head of `model` must be where its trunk is. That of {path.name!r}"
    return read_model_files(pretrained.model, pretrained.revision, read, what)


def _check_logits(head: LanguageHead, pretrained: PretrainedModel) -> None:
    """Compare the logits of hidden states with those of the causal model run whole."""
    trunk = first_blocks(pretrained.trunk)
    tensors = {**head.own, **{n: pretrained.trunk.get_parameter(t) for n, t in head.tied.items()}}
    try:
        with torch.no_grad():
            whole = _filled(head.skeleton, tensors, _CPU)
            _put_trunk(whole, trunk)
            ids = torch.tensor(_SHORT_TEXTS)
            expected = whole(input_ids=ids, use_cache=False).logits.float()
            hidden = trunk(input_ids=ids, use_cache=False).last_hidden_state
            same = agree(_logits(head.on(pretrained.trunk, _CPU), hidden), expected, _TOLERANCE)
    except PROBE_ERRORS as error:
        raise _none_in(pretrained, f"its causal model can't be run apart: {error!r}") from error
    if not same:
        raise _none_in(pretrained, "its logits don't follow from the last hidden states alone")


def _filled(skeleton: Any, tensors: Mapping[str, Tensor], device: torch.device) -> Any:
    """Return the causal model with these weights, in fp32."""
    cast = {
        name: tensor.detach().to(device, torch.float32 if tensor.is_floating_point() else None)
        for name, tensor in tensors.items()
    }
    return copy_with_tensors(skeleton, cast)


def _logits(head: Any, hidden_BTH: Tensor) -> Tensor:
    logits: Tensor = head(inputs_embeds=hidden_BTH, use_cache=False).logits
    return logits.float()


def _put_trunk(causal: Any, trunk: Any) -> None:
    setattr(causal, causal.base_model_prefix, trunk)


class _HiddenStates(nn.Module):
    """Stands where a causal model has its trunk: what comes in as embeddings are hidden states."""

    @property
    def decoder(self) -> "_HiddenStates":
        """OPT's causal model calls this part of its trunk."""
        return self

    def forward(self, *args: Any, inputs_embeds: Tensor, **kwargs: Any) -> "_Output":
        return _Output(inputs_embeds)


class _Output(tuple[Tensor]):
    """Hidden states as any trunk returns them; what else it may return beside them is None."""

    def __new__(cls, hidden: Tensor) -> "_Output":
        return super().__new__(cls, (hidden,))

    @property
    def last_hidden_state(self) -> Tensor:
        return self[0]

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)


def _none_in(pretrained: PretrainedModel, why: str) -> ModelNotSupportedError:
    return ModelNotSupportedError(
        "Label words are scored by a decoder's language-model head. None can be had of "
        f"{pretrained.model!r}: {why}. Use a checkpoint of a language model, or train a "
        "GPTTextClassifier."
    )


def _shape(tensor: Tensor | None) -> tuple[int, ...] | None:
    return None if tensor is None else tuple(tensor.shape)
