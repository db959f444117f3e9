"""Which weights of a trunk learn; those become the network's own, the rest stay shared.

Trunk, pooling and head: token ids of some texts in, one row of raw scores per text out.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from skgpt.exceptions import ContinuationError, ModelNotSupportedError
from skgpt.network.layout import Layout
from skgpt.network.lora import AdapterSpec, SeededDropout, add_adapters, first_values, quantise
from skgpt.pretrained.loading import PretrainedModel
from skgpt.trunk.layers import SplitTrunk, find_blocks, parameters_after_blocks

TrainableLayers = int | Literal["all"]


def check_depth(
    pretrained: PretrainedModel, n_layers: int | None, trainable_layers: TrainableLayers
) -> tuple[int, TrainableLayers]:
    """Check the depth parameters against the trunk.

    Parameters
    ----------
    pretrained : PretrainedModel
    n_layers : int or None
        Blocks to keep; None keeps all.
    trainable_layers : int or "all"

    Returns
    -------
    n_layers : int
        Blocks kept.
    trainable_layers : int or "all"

    Raises
    ------
    ModelNotSupportedError
        If the model has fewer blocks than asked for.
    ContinuationError
        If it has as many, but they are not here: the model is out of a pickle.
    """
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


def trainable_names(trunk: Any, trainable_layers: TrainableLayers) -> list[str]:
    """Return the names of the trunk's parameters that learn, in the trunk's own order.

    "all" is every parameter; n is the last n blocks and whatever acts after them (the final
    norm); 0 is none.
    """
    names = [name for name, p in trunk.named_parameters() if p.is_floating_point()]
    if trainable_layers == "all":
        return names
    if trainable_layers == 0:
        return []
    blocks = find_blocks(trunk)
    chosen = {id(p) for block in list(blocks)[-trainable_layers:] for p in block.parameters()}
    after = parameters_after_blocks(trunk)
    named = dict(trunk.named_parameters())
    return [name for name in names if id(named[name]) in chosen or name in after]


def own(trunk: Any, name: str, value: Tensor) -> nn.Parameter:
    """Put a tensor of the network's own in the place of a shared parameter, ties included."""
    old = trunk.get_parameter(name)
    new = nn.Parameter(value, requires_grad=True)
    for module in trunk.modules():
        for key, parameter in list(module._parameters.items()):
            if parameter is old:
                module._parameters[key] = new
    return new


Pooling = Literal["last", "mean"]


@dataclass(frozen=True)
class NetworkSpec:
    """All that, with a pretrained model, says what a network is; it goes into a pickle as it is.

    Parameters
    ----------
    n_layers : int
        Blocks kept.
    trainable_layers : int or "all"
    pooling : {"last", "mean"}
    n_outputs : int
        Raw scores per text.
    lora : AdapterSpec or None
        Adapters learn, in the blocks that would learn otherwise.
    """

    n_layers: int
    trainable_layers: TrainableLayers
    pooling: Pooling
    n_outputs: int
    lora: AdapterSpec | None = None

    @property
    def n_frozen(self) -> int:
        """Blocks, from the first on, that never learn."""
        return 0 if self.trainable_layers == "all" else self.n_layers - self.trainable_layers

    @property
    def quantize_base(self) -> int | None:
        """Bits of the base's matrices; None for those of the trunk's precision."""
        return None if self.lora is None else self.lora.quantize_base


class TextNetwork(nn.Module):
    """A trunk of one's own with pooling and a bias-free fp32 head.

    The head has no bias so that it can leave as a Hugging Face sequence-classification head.

    Parameters
    ----------
    pretrained : PretrainedModel
        Whose tensors the frozen part shares.
    spec : NetworkSpec
    dtype : torch.dtype
        Of the trunk's arithmetic.
    device : torch.device
    seed : int, default=0
        What adapters are drawn from.

    Attributes
    ----------
    learnable : dict of str to Tensor
        fp32 originals of the trunk's parameters that learn. Under fp32 they are the parameters
        themselves; otherwise the parameters are working copies, refreshed by `refresh`.
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
        self.trunk: Any = self.base_trunk(spec.n_layers)
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
        self.dropout = SeededDropout(0.0 if spec.lora is None else spec.lora.dropout, device)
        self.learnable: dict[str, Tensor] = {}
        for name, master in self._first_values(seed).items():
            parameter = own(self.trunk, name, master.to(dtype))
            self.learnable[name] = parameter if dtype == torch.float32 else master
        partly = 0 < spec.n_frozen < spec.n_layers
        self._split = SplitTrunk(self.trunk, spec.n_frozen) if partly else None
        # The last block need compute no more than what is pooled, where it is ours.
        self._ends_only = spec.pooling == "last" and pretrained.capabilities.supports_fast_blocks

    @property
    def cache_key(self) -> tuple[Hashable, ...]:
        """Everything that, with the depth, decides what frozen layers return."""
        return (self.pretrained.identity, self.dtype, str(self.device), self.spec.quantize_base)

    def base_trunk(self, n_layers: int) -> Any:
        """Return a trunk of the first blocks of the base, as this network computes them."""
        if self.spec.quantize_base is None:
            return self.pretrained.copy_trunk(n_layers, self.dtype, self.device)
        return quantise(self.pretrained, n_layers, self.dtype, self.device)

    def _first_values(self, seed: int) -> dict[str, Tensor]:
        """Return what the trunk's weights that learn start from, each an fp32 tensor of its own."""
        spec, device = self.spec, self.device
        if spec.lora is None:
            names = trainable_names(self.trunk, spec.trainable_layers)
            return {name: self.pretrained.fp32_copy(name, device) for name in names}
        names = add_adapters(self.trunk, spec.lora, spec.n_frozen, self.dropout)
        drawn = first_values(self.trunk, names, seed)
        return {name: value.to(device) for name, value in drawn.items()}

    @torch.no_grad()
    def refresh(self) -> None:
        """Copy the fp32 originals into the working copies."""
        if self.dtype != torch.float32 and self.learnable:
            working = [self.trunk.get_parameter(name) for name in self.learnable]
            torch._foreach_copy_(working, list(self.learnable.values()))

    @torch.no_grad()
    def take_over(self, other: "TextNetwork", rows: NDArray[np.int64] | None = None) -> None:
        """Start from what another network has learned.

        Parameters
        ----------
        other : TextNetwork
            On the same model and depth; it learns nothing that this one does not learn too.
        rows : ndarray of int64, default=None
            Where each row of its head goes, if this network has more outputs; what is new starts
            at zero. None for the same outputs.
        """
        weight = other.head.weight.to(self.device)
        if rows is None:
            self.head.weight.copy_(weight)
        else:
            self.head.weight[torch.from_numpy(rows).to(self.device)] = weight
        for name, master in other.learnable.items():
            self.learnable[name].copy_(master)
        self.refresh()

    def hidden(self, ids_T: Tensor, layout: Layout) -> Tensor:
        """Return the last hidden states of texts end to end, shape (T, H)."""
        laid_out = layout.lay(ids_T, pad_id_of(self.pretrained))
        inputs = layout.inputs()
        return layout.flat(self.trunk(input_ids=laid_out, **inputs).last_hidden_state)

    def pooled(self, ids_T: Tensor, layout: Layout) -> Tensor:
        """Return the pooled states of texts end to end, in fp32, shape (B, H)."""
        laid_out = layout.lay(ids_T, pad_id_of(self.pretrained))
        inputs = layout.inputs(ends_only=self._ends_only)
        last = self.trunk(input_ids=laid_out, **inputs).last_hidden_state
        return self._pooled(last, layout)

    def embedded(self, ids_T: Tensor) -> Tensor:
        """Return what the trunk's embedding makes of token ids, shape (T, E)."""
        embedded_TE: Tensor = self.trunk.get_input_embeddings()(ids_T[None])[0]
        return embedded_TE

    def pooled_from(self, embedded_TE: Tensor, layout: Layout) -> Tensor:
        """Return the pooled states of texts whose embeddings are given, in fp32, shape (B, H)."""
        inputs = layout.inputs(ends_only=self._ends_only)
        laid_out = layout.lay(embedded_TE)
        return self._pooled(self.trunk(inputs_embeds=laid_out, **inputs).last_hidden_state, layout)

    def after(self, hidden_TH: Tensor, layout: Layout) -> Tensor:
        """Return the pooled states of hidden states behind the frozen layers, shape (B, H)."""
        assert self._split is not None
        inputs = layout.inputs(ends_only=self._ends_only)
        return self._pooled(self._split.run_upper(layout.lay(hidden_TH), **inputs), layout)

    def _pooled(self, last: Tensor, layout: Layout) -> Tensor:
        if self._ends_only:
            return last[0, : len(layout.lengths_B)].float()
        return self.pool(layout.flat(last), layout)

    def pool(self, hidden_TH: Tensor, layout: Layout) -> Tensor:
        """Pool the hidden states of each text, in fp32, shape (B, H)."""
        if self.spec.pooling == "last":
            return hidden_TH[layout.ends_B].float()
        return mean_of_each(hidden_TH.float(), layout.lengths_B, layout.lengths)

    def forward(self, ids_T: Tensor, layout: Layout) -> Tensor:
        """Return the raw scores, shape (B, K), fp32."""
        return self.score(self.pooled(ids_T, layout))

    def score(self, pooled_BH: Tensor) -> Tensor:
        """Return the raw scores of pooled states, shape (B, K), fp32."""
        logits_BK: Tensor = self.head(pooled_BH)
        return logits_BK


def count_weights(network: TextNetwork) -> tuple[int, int]:
    """Return how many weights learn, the head's among them, and how many of the trunk don't."""
    learning = sum(master.numel() for master in network.learnable.values())
    # Of the pretrained model, as 4-bit weights are packed into tensors of other shapes.
    trunk = network.pretrained.trunk
    dropped = find_blocks(trunk)[network.spec.n_layers :]
    base = sum(p.numel() for p in trunk.parameters()) - sum(p.numel() for p in dropped.parameters())
    return learning + network.head.weight.numel(), base - (0 if network.spec.lora else learning)


def mean_of_each(hidden_TH: Tensor, lengths_B: Tensor, lengths: Sequence[int]) -> Tensor:
    """Return the mean of each text's states, shape (B, H).

    Parameters
    ----------
    hidden_TH : Tensor of shape (T, H)
    lengths_B : Tensor of shape (B,), int64
        How many of the states are each text's; on the device of the states.
    lengths : sequence of int
        The same on the host.
    """
    if hidden_TH.device.type == "mps":
        return _means_one_by_one(hidden_TH, lengths)
    # One kernel, however many texts; `unsafe` spares a look at the lengths, which are right.
    return torch.segment_reduce(hidden_TH, "mean", lengths=lengths_B, unsafe=True)


def _means_one_by_one(hidden_TH: Tensor, lengths: Sequence[int]) -> Tensor:
    """Return the same where torch has no kernel for it."""
    return torch.stack([part_TH.mean(0) for part_TH in hidden_TH.split(list(lengths))])


def pad_id_of(pretrained: PretrainedModel) -> int:
    """Return an id to pad with that transformers won't take for padding and warn about."""
    return 1 if pretrained.trunk.config.pad_token_id == 0 else 0


def resolve_pooling(pooling: str, pretrained: PretrainedModel) -> Pooling:
    """Turn the `pooling` parameter into what the network does.

    "auto" is the mean: on topics (Reuters R8) it is worth five points of accuracy over the last
    token, on sentiment it costs one, so it is the choice with the smaller regret.

    Raises
    ------
    ModelNotSupportedError
        For "last" on an encoder, whose last token sums up nothing.
    """
    if pooling == "last" and not pretrained.capabilities.causal:
        raise ModelNotSupportedError(
            f"pooling='last' needs a decoder, whose last token has seen the whole text. "
            f"{pretrained.model!r} is an encoder: use pooling='mean'."
        )
    return "last" if pooling == "last" else "mean"


@torch.inference_mode(False)  # its weights are to be trained, whatever the caller is in
def build_network(
    pretrained: PretrainedModel,
    *,
    n_layers: int | None,
    trainable_layers: TrainableLayers,
    pooling: str,
    n_outputs: int,
    dtype: torch.dtype,
    device: torch.device,
    lora: AdapterSpec | None = None,
    seed: int = 0,
) -> TextNetwork:
    """Build a network on a pretrained model: share what is frozen, own what learns.

    The head starts at zero, and adapters add nothing at first: every class is equally likely before
    the first step, and the trunk is left alone until the head has a direction.

    Parameters
    ----------
    pretrained : PretrainedModel
    n_layers : int or None
    trainable_layers : int or "all"
    pooling : {"last", "mean", "auto"}
    n_outputs : int
    dtype : torch.dtype
    device : torch.device
    lora : AdapterSpec, default=None
    seed : int, default=0
        What adapters are drawn from.

    Returns
    -------
    network : TextNetwork

    Raises
    ------
    ModelNotSupportedError
        If the depths don't fit the trunk, or the pooling doesn't fit the model.
    """
    kept, learning = check_depth(pretrained, n_layers, trainable_layers)
    if lora is not None and learning == 0:
        raise ModelNotSupportedError(
            "`lora` puts adapters into the layers that learn, and trainable_layers=0 leaves none: "
            "raise trainable_layers, or set lora=None for the head alone."
        )
    spec = NetworkSpec(kept, learning, resolve_pooling(pooling, pretrained), n_outputs, lora)
    return TextNetwork(pretrained, spec, dtype, device, seed)
