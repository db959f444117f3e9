"""Trunk, pooling and head: token ids of some texts in, one row of raw scores per text out.

Weights that learn are a network's own; all others are shared with every network on the same
pretrained model.
"""

from collections.abc import Callable, Hashable, Sequence, Set
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from skgpt.exceptions import ContinuationError, ModelNotSupportedError
from skgpt.network.layout import Layout
from skgpt.network.lora import AdapterSpec, SeededDropout, add_adapters, first_values, quantise
from skgpt.pretrained.loading import PretrainedModel
from skgpt.pretrained.tokenizer import TextTokenizer
from skgpt.trunk.attention import make_bidirectional
from skgpt.trunk.layers import SplitTrunk, find_blocks

TrainableLayers = int | Literal["all"]
Attention = Literal["causal", "bidirectional"]
HEAD = "head.weight"  # among the names of the trunk's parameters


# --- Pooling ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pooling:
    """How the hidden states of each text become one: (T, H) of any dtype in, (B, H) in fp32 out.

    `last_token_only`: no other token's state is used, so the model must be a decoder.
    """

    pool: Callable[[Tensor, Layout], Tensor]
    last_token_only: bool = False


def _last_of_each(hidden_TH: Tensor, layout: Layout) -> Tensor:
    return hidden_TH[layout.ends_B].float()


def _mean_of_each(hidden_TH: Tensor, layout: Layout) -> Tensor:
    return mean_of_each(hidden_TH.float(), layout.lengths_B, layout.lengths)


def mean_of_each(hidden_TH: Tensor, lengths_B: Tensor, lengths: Sequence[int]) -> Tensor:
    """Return the mean of each text's states; `lengths_B` are on their device, `lengths` not."""
    if hidden_TH.device.type == "mps":
        return _means_one_by_one(hidden_TH, lengths)
    # One kernel, however many texts; `unsafe` spares a look at the lengths, which are right.
    return torch.segment_reduce(hidden_TH, "mean", lengths=lengths_B, unsafe=True)


def _means_one_by_one(hidden_TH: Tensor, lengths: Sequence[int]) -> Tensor:
    """Return the same where torch has no kernel for it."""
    return torch.stack([part_TH.mean(0) for part_TH in hidden_TH.split(list(lengths))])


# What the parameter `pooling` may be, beside "auto". Texts in windows: the head is given the mean
# of the pooled states of a text's windows, whichever it is.
POOLINGS = {"last": Pooling(_last_of_each, last_token_only=True), "mean": Pooling(_mean_of_each)}


def resolve_pooling(pooling: str, pretrained: PretrainedModel, prompted: bool) -> str:
    """Turn the parameter `pooling` into one of `POOLINGS` that the model can do.

    "auto" is the mean: on topics (Reuters R8) it is worth five points of accuracy over the last
    token, on sentiment it costs one, so it is the choice with the smaller regret. Behind a prompt
    it is the last token, which a language model goes on from.
    """
    name = ("last" if prompted else "mean") if pooling == "auto" else pooling
    if POOLINGS[name].last_token_only and not pretrained.capabilities.causal:
        others = [repr(other) for other, rule in POOLINGS.items() if not rule.last_token_only]
        raise ModelNotSupportedError(
            f"pooling={name!r} needs a decoder, whose last token has seen the whole text. "
            f"{pretrained.model!r} is an encoder: use pooling={' or '.join(others)}."
        )
    return name


# --- Attention --------------------------------------------------------------------------------


def resolve_attention(
    attention: Literal["auto"] | Attention, pooling: str, n_frozen: int, pretrained: PretrainedModel
) -> Attention:
    """Turn the parameter `attention` into what the layers that learn do.

    "auto" is both ways where a mean of all tokens is taken behind frozen layers: there it was worth
    two to four points of accuracy on sentiment, and nothing or little on topics.
    """
    can = pretrained.capabilities
    if not can.causal and attention == "causal":
        raise ModelNotSupportedError(
            "attention='causal' needs a decoder, whose tokens see only what stands before them. "
            f"{pretrained.model!r} is an encoder: use attention='auto'."
        )
    if can.causal and not can.supports_bidirectional and attention == "bidirectional":
        raise ModelNotSupportedError(
            "attention='bidirectional' needs a model whose layers can do without their causal "
            f"mask. Those of {pretrained.model!r} ({type(pretrained.trunk).__name__}) can't: use "
            "attention='auto'."
        )
    if attention != "auto":
        return attention
    if not can.causal:
        return "bidirectional"
    pays = not POOLINGS[pooling].last_token_only and n_frozen > 0
    return "bidirectional" if pays and can.supports_bidirectional else "causal"


# --- The network ------------------------------------------------------------------------------


@dataclass(frozen=True)
class NetworkSpec:
    """All that, with a pretrained model, says what a network is; it goes into a pickle as it is.

    `n_layers` blocks are kept; with `lora`, adapters learn in the blocks that would learn
    otherwise; `n_outputs` are the raw scores per text. In the last `n_bidirectional` blocks of a
    decoder, every token sees its whole text. With `prompted`, texts end in a prompt that words of
    the labels would follow: nothing is put behind them, and the head starts as those words'.
    """

    n_layers: int
    trainable_layers: TrainableLayers
    pooling: str
    n_outputs: int
    lora: AdapterSpec | None = None
    n_bidirectional: int = 0
    prompted: bool = False

    @property
    def n_frozen(self) -> int:
        """Blocks, from the first on, that never learn."""
        return 0 if self.trainable_layers == "all" else self.n_layers - self.trainable_layers

    @property
    def quantize_base(self) -> int | None:
        """Bits of the base's matrices; None for those of the trunk's precision."""
        return None if self.lora is None else self.lora.quantize_base


class TextNetwork(nn.Module):
    """A trunk of one's own with pooling and an fp32 head.

    The head has no bias so that it can leave as a Hugging Face sequence-classification head.

    Attributes
    ----------
    offset : Tensor of shape (K,)
        What is added to the raw scores, zero but for a head that starts as label words'. It never
        learns.
    learnable : dict of str to Tensor
        fp32 originals of the trunk's parameters that learn. Under fp32 they are the parameters
        themselves; otherwise the parameters are working copies, updated by `refresh`.
    dropout : SeededDropout
        Of the adapters; a training step seeds it.
    """

    def __init__(
        self,
        pretrained: PretrainedModel,
        spec: NetworkSpec,
        dtype: torch.dtype,
        device: torch.device,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.pretrained = pretrained
        self.spec = spec
        self.dtype = dtype
        self.device = device
        if spec.quantize_base is None:
            self.trunk: Any = pretrained.copy_trunk(spec.n_layers, dtype, device)
        else:
            self.trunk = quantise(pretrained, spec.n_layers, dtype, device)
        make_bidirectional(find_blocks(self.trunk)[spec.n_layers - spec.n_bidirectional :])
        # skip_init: nn.Linear would draw its weights from torch's global generator.
        self.head = nn.utils.skip_init(
            nn.Linear,
            pretrained.capabilities.hidden_size,
            spec.n_outputs,
            bias=False,
            dtype=torch.float32,
            device=device,
        )
        nn.init.zeros_(self.head.weight)
        self.offset = torch.zeros(spec.n_outputs, device=device)

        self.dropout = SeededDropout(0.0 if spec.lora is None else spec.lora.dropout, device)
        self.learnable: dict[str, Tensor] = {}
        for name, original in self._first_values(seed).items():
            parameter = _replace_parameter(self.trunk, name, original.to(dtype))
            self.learnable[name] = parameter if dtype == torch.float32 else original

        partly = 0 < spec.n_frozen < spec.n_layers
        self._split = SplitTrunk(self.trunk, spec.n_frozen) if partly else None
        self._pooling = POOLINGS[spec.pooling]
        # A fast last block computes no more than what is pooled.
        fast = pretrained.capabilities.supports_fast_blocks
        self._ends_only = self._pooling.last_token_only and fast

    def _first_values(self, seed: int) -> dict[str, Tensor]:
        """Return what the trunk's learnable weights start from, each a new fp32 tensor."""
        spec, device = self.spec, self.device
        if spec.lora is None:
            after_blocks = self.pretrained.capabilities.after_blocks
            names = trainable_names(self.trunk, spec.trainable_layers, after_blocks)
            return {name: self.pretrained.fp32_copy(name, device) for name in names}
        names = add_adapters(self.trunk, spec.lora, spec.n_frozen, self.dropout)
        drawn = first_values(self.trunk, names, seed)
        return {name: value.to(device) for name, value in drawn.items()}

    @property
    def learned(self) -> dict[str, Tensor]:
        """The fp32 originals of all that learns: what is `learnable`, and the head."""
        return {**self.learnable, HEAD: self.head.weight}

    @property
    def tokenizer(self) -> TextTokenizer:
        """What makes tokens of the network's texts."""
        tokenizer = self.pretrained.tokenizer
        return tokenizer.open_ended() if self.spec.prompted else tokenizer

    @property
    def attention(self) -> Attention:
        """What the layers that learn do."""
        causal = self.pretrained.capabilities.causal and not self.spec.n_bidirectional
        return "causal" if causal else "bidirectional"

    @property
    def cache_key(self) -> tuple[Hashable, ...]:
        """Everything that, with the depth, decides what frozen layers return."""
        return (self.pretrained.identity, self.dtype, str(self.device), self.spec.quantize_base)

    @torch.no_grad()
    def refresh(self) -> None:
        """Copy the fp32 originals into the working copies."""
        if self.dtype != torch.float32 and self.learnable:
            working = [self.trunk.get_parameter(name) for name in self.learnable]
            torch._foreach_copy_(working, list(self.learnable.values()))

    @torch.no_grad()
    def take_over(self, other: "TextNetwork", rows: NDArray[np.int64] | None = None) -> None:
        """Start from what another network has learned, on the same model and depth.

        `rows` says where each row of its head goes, if this network has more outputs; new ones stay
        as they start, and so do all offsets, which are what these outputs together start from. The
        other must learn nothing that this one doesn't.
        """
        places = slice(None) if rows is None else torch.from_numpy(rows).to(self.device)
        self.head.weight[places] = other.head.weight.to(self.device)
        if rows is None:
            self.offset.copy_(other.offset)
        for name, tensor in other.learnable.items():
            self.learnable[name].copy_(tensor)
        self.refresh()

    def forward(self, ids_T: Tensor, layout: Layout) -> Tensor:
        """Return the raw scores, shape (B, K), fp32."""
        return self.score(self.pooled(ids_T, layout))

    def score(self, pooled_BH: Tensor) -> Tensor:
        """Return the raw scores of pooled states, shape (B, K), fp32."""
        if self.spec.trainable_layers == 0 and self.device.type != "mps":
            # The weights of a head that was solved for are large, and their sums in fp32 would
            # depend on how many rows there are. MPS has no fp64.
            weight, offset = self.head.weight.double(), self.offset.double()
            return F.linear(pooled_BH.double(), weight, offset).float()
        return self.head(pooled_BH) + self.offset

    def run_frozen(self, ids_T: Tensor, layout: Layout) -> Tensor:
        """Run the frozen layers alone; return the hidden states behind them, shape (T, H)."""
        assert self._split is not None
        laid_out = layout.lay(ids_T, pad_id_of(self.pretrained))
        return layout.flat(self._split.run_lower(input_ids=laid_out, **layout.inputs()))

    def run_frozen_after(self, hidden_TH: Tensor, n_run: int, layout: Layout) -> Tensor:
        """Run the other frozen layers on what the first `n_run` return; the same, shape (T, H)."""
        assert self._split is not None
        laid_out = layout.lay(hidden_TH)
        return layout.flat(self._split.run_between(laid_out, n_run, **layout.inputs()))

    def hidden(self, ids_T: Tensor, layout: Layout) -> Tensor:
        """Run all layers on token ids; return the last hidden states, shape (T, H)."""
        laid_out = layout.lay(ids_T, pad_id_of(self.pretrained))
        return layout.flat(self.trunk(input_ids=laid_out, **layout.inputs()).last_hidden_state)

    # The next three return the pooled states of texts, in fp32, shape (B, H).

    def pooled(self, ids_T: Tensor, layout: Layout) -> Tensor:
        """Run all layers on token ids, and pool."""
        laid_out = layout.lay(ids_T, pad_id_of(self.pretrained))
        inputs = layout.inputs(ends_only=self._ends_only)
        return self._pool_output(self.trunk(input_ids=laid_out, **inputs).last_hidden_state, layout)

    def pooled_from_embeddings(self, embedded_TE: Tensor, layout: Layout) -> Tensor:
        """Run all layers on what `embed` returns, and pool."""
        inputs = layout.inputs(ends_only=self._ends_only)
        output = self.trunk(inputs_embeds=layout.lay(embedded_TE), **inputs)
        return self._pool_output(output.last_hidden_state, layout)

    def pooled_from_hidden(self, hidden_TH: Tensor, layout: Layout) -> Tensor:
        """Run the layers after the frozen ones on what those return, and pool."""
        assert self._split is not None
        inputs = layout.inputs(ends_only=self._ends_only)
        return self._pool_output(self._split.run_upper(layout.lay(hidden_TH), **inputs), layout)

    def _pool_output(self, last: Tensor, layout: Layout) -> Tensor:
        if self._ends_only:  # the last block returned nothing else
            return last[0, : len(layout.lengths_B)].float()
        return self._pooling.pool(layout.flat(last), layout)

    def embed(self, ids_T: Tensor) -> Tensor:
        """Return what the trunk's embedding makes of token ids, shape (T, E)."""
        return self.trunk.get_input_embeddings()(ids_T[None])[0]


def _replace_parameter(trunk: Any, name: str, value: Tensor) -> nn.Parameter:
    """Put a tensor of the network's own in the place of a shared parameter, ties included."""
    old = trunk.get_parameter(name)
    new = nn.Parameter(value, requires_grad=True)
    for module in trunk.modules():
        for key, parameter in list(module._parameters.items()):
            if parameter is old:
                module._parameters[key] = new
    return new


def pad_id_of(pretrained: PretrainedModel) -> int:
    """Return an id to pad with that transformers won't take for padding and warn about."""
    return 1 if pretrained.trunk.config.pad_token_id == 0 else 0


def count_weights(network: TextNetwork) -> tuple[int, int]:
    """Return how many weights learn, the head's among them, and how many of the trunk don't."""
    learning = sum(tensor.numel() for tensor in network.learnable.values())
    # Of the pretrained model, as 4-bit weights are packed into tensors of other shapes.
    trunk = network.pretrained.trunk
    dropped = find_blocks(trunk)[network.spec.n_layers :]
    base = sum(p.numel() for p in trunk.parameters()) - sum(p.numel() for p in dropped.parameters())
    return learning + network.head.weight.numel(), base - (0 if network.spec.lora else learning)


# --- Building one -----------------------------------------------------------------------------


def build_network(
    pretrained: PretrainedModel,
    *,
    n_layers: int | Literal["auto"] | None,
    trainable_layers: TrainableLayers | Literal["auto"],
    pooling: str,
    n_outputs: int,
    dtype: torch.dtype,
    device: torch.device,
    lora: AdapterSpec | None = None,
    attention: Literal["auto"] | Attention = "auto",
    n_bidirectional: int | None = None,
    prompted: bool = False,
    seed: int = 0,
) -> TextNetwork:
    """Check an estimator's parameters against a pretrained model, and build a network on it.

    The head starts at zero, and adapters (drawn from `seed`) add nothing at first: every class is
    equally likely before the first step, and the trunk stands still until the head has a direction.
    With `n_bidirectional`, of a fit that this one goes on from, `attention` decides nothing.
    """
    kept, learning = resolve_depth(pretrained, n_layers, trainable_layers, prompted)
    n_layers, trainable_layers = check_depth(pretrained, kept, learning)
    if lora is not None and trainable_layers == 0:
        raise ModelNotSupportedError(
            "`lora` puts adapters into the layers that learn, and trainable_layers=0 leaves none: "
            "raise trainable_layers, or set lora=None for the head alone."
        )
    pooling = resolve_pooling(pooling, pretrained, prompted)
    spec = NetworkSpec(n_layers, trainable_layers, pooling, n_outputs, lora, prompted=prompted)
    if n_bidirectional is None:
        attention = resolve_attention(attention, pooling, spec.n_frozen, pretrained)
        both_ways = attention == "bidirectional" and pretrained.capabilities.causal
        n_bidirectional = n_layers - spec.n_frozen if both_ways else 0
    spec = replace(spec, n_bidirectional=n_bidirectional)
    if prompted:
        _check_is_language_model(spec, pretrained)
    return TextNetwork(pretrained, spec, dtype, device, seed)


# Of a decoder's layers, the share that "auto" keeps, and of those, how many learn. Measured on
# SmolLM2-135M alone: docs/decisions/recipe.md. The last layers serve to predict the next token.
_KEPT_SHARE = 0.8
_LEARNING = 4


def resolve_depth(
    pretrained: PretrainedModel,
    n_layers: int | Literal["auto"] | None,
    trainable_layers: TrainableLayers | Literal["auto"],
    prompted: bool = False,
) -> tuple[int | None, TrainableLayers]:
    """Turn "auto" into numbers.

    All layers are kept of an encoder, as it predicts no next token, and of a decoder that is to.
    """
    depth = pretrained.full_depth
    if n_layers == "auto":
        shorter = pretrained.capabilities.causal and not prompted
        n_layers = max(1, round(_KEPT_SHARE * depth)) if shorter else None
        if n_layers is not None and trainable_layers not in ("auto", "all"):
            n_layers = min(depth, max(n_layers, int(trainable_layers)))
    if trainable_layers == "auto":
        return n_layers, min(_LEARNING, depth if n_layers is None else n_layers)
    return n_layers, trainable_layers


def resolve_layers(
    layer: int | Sequence[int] | Literal["auto"], pretrained: PretrainedModel
) -> list[int]:
    """Turn the parameter `layer` into depths, counted from 1; "auto" is `resolve_depth`'s."""
    depth = pretrained.full_depth
    if isinstance(layer, str):
        return [resolve_depth(pretrained, "auto", "auto")[0] or depth]
    asked: Sequence[Any] = layer if isinstance(layer, list | tuple) else [layer]
    there = [
        n
        for n in asked
        if isinstance(n, int | np.integer) and not isinstance(n, bool) and 1 <= n <= depth
    ]
    if not asked or len({*there}) < len(asked):
        raise ModelNotSupportedError(
            f"`layer` must be an int from 1 to {depth}, the number of layers of "
            f"{pretrained.model!r}, a list of such ints that all differ, or 'auto'. Got {layer!r}."
        )
    return [int(n) for n in asked]


def check_depth(
    pretrained: PretrainedModel, n_layers: int | None, trainable_layers: TrainableLayers
) -> tuple[int, TrainableLayers]:
    """Return both depths as plain values, `n_layers=None` resolved, if the trunk has as many."""
    for name, value in {"n_layers": n_layers, "trainable_layers": trainable_layers}.items():
        if isinstance(value, bool):
            raise ModelNotSupportedError(f"`{name}` must be an int. Got {value}.")
    # Plain ints: a search hands in numpy's, which don't go into a JSON configuration.
    n_layers = None if n_layers is None else int(n_layers)
    trainable_layers = "all" if trainable_layers == "all" else int(trainable_layers)

    depth = pretrained.full_depth
    if n_layers is not None and n_layers > depth:
        raise ModelNotSupportedError(
            f"`n_layers` must be at most the depth of {pretrained.model!r}, {depth}. "
            f"Got {n_layers}."
        )
    kept = depth if n_layers is None else n_layers
    if kept > pretrained.depth:
        raise ContinuationError(
            f"To go on from a fitted model, `n_layers` must be as it was, {pretrained.depth}. Got "
            f"{n_layers}: the others of the {depth} layers were left out when the model was "
            "pickled. Set it back, or call fit with warm_start=False to start anew."
        )
    if trainable_layers != "all" and trainable_layers > kept:
        raise ModelNotSupportedError(
            f"`trainable_layers` must be at most the {kept} layers that are kept of "
            f"{pretrained.model!r}. Got {trainable_layers}: lower it, raise n_layers, or use 'all'."
        )
    return kept, trainable_layers


def _check_is_language_model(spec: NetworkSpec, pretrained: PretrainedModel) -> None:
    """Check that what is pooled is what the language-model head of a decoder goes on from."""
    checks = (
        ("n_layers", spec.n_layers == pretrained.full_depth, "None", spec.n_layers),
        ("pooling", POOLINGS[spec.pooling].last_token_only, "'last'", spec.pooling),
        ("attention", spec.n_bidirectional == 0, "'causal'", "bidirectional"),
    )
    for name, holds, wanted, got in checks:
        if not holds:
            raise ModelNotSupportedError(
                f"With `label_words`, `{name}` must be 'auto' or {wanted}: the head starts as the "
                f"language model's, which stands on the last token behind all layers. Got {got!r}."
            )


def trainable_names(
    trunk: Any, trainable_layers: TrainableLayers, after_blocks: Set[str]
) -> list[str]:
    """Return the names of the trunk's parameters that learn, in the trunk's own order.

    "all" is every parameter; n is the last n blocks and whatever acts `after_blocks` (the final
    norm); 0 is none.
    """
    names = [name for name, p in trunk.named_parameters() if p.is_floating_point()]
    if trainable_layers == "all":
        return names
    if trainable_layers == 0:
        return []
    last_blocks = list(find_blocks(trunk))[-trainable_layers:]
    chosen = {id(p) for block in last_blocks for p in block.parameters()}
    parameters = dict(trunk.named_parameters())
    return [name for name in names if id(parameters[name]) in chosen or name in after_blocks]
