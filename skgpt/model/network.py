"""Trunk, pooling and head: right-padded token ids in, one row of raw scores per text out."""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from skgpt.exceptions import ModelNotSupportedError
from skgpt.model.adapt import TrainableLayers, check_depth, own, trainable_names
from skgpt.model.sources import Source
from skgpt.text.tokens import Tokens

Pooling = Literal["last", "mean"]


@dataclass(frozen=True)
class NetworkSpec:
    """Everything that, with a source, says what a network is; it goes into a pickle as it is.

    Parameters
    ----------
    n_layers : int
        Blocks kept.
    trainable_layers : int or "all"
    pooling : {"last", "mean"}
    n_outputs : int
        Raw scores per text.
    """

    n_layers: int
    trainable_layers: TrainableLayers
    pooling: Pooling
    n_outputs: int

    @property
    def n_frozen(self) -> int:
        """Blocks, from the first on, that never learn."""
        return 0 if self.trainable_layers == "all" else self.n_layers - self.trainable_layers


class TextNetwork(nn.Module):
    """A trunk of one's own with pooling and a bias-free fp32 head.

    The head has no bias so that it can leave as a Hugging Face sequence-classification head.

    Parameters
    ----------
    source : Source
        Whose tensors the frozen part shares.
    spec : NetworkSpec
    dtype : torch.dtype
        Of the trunk's arithmetic.
    device : torch.device

    Attributes
    ----------
    masters : dict of str to Tensor
        fp32 originals of the trunk's parameters that learn. Under fp32 they are the parameters
        themselves; otherwise the parameters are working copies, refreshed by `refresh`.
    """

    def __init__(
        self, source: Source, spec: NetworkSpec, dtype: torch.dtype, device: torch.device
    ) -> None:
        super().__init__()
        self.source = source
        self.spec = spec
        self.dtype = dtype
        self.device = device
        self.trunk: Any = source.copy_trunk(spec.n_layers, dtype, device)
        # skip_init: nn.Linear would draw its weights from torch's global generator.
        self.head = nn.utils.skip_init(
            nn.Linear, source.width, spec.n_outputs, bias=False, dtype=torch.float32, device=device
        )
        nn.init.zeros_(self.head.weight)
        self.masters: dict[str, Tensor] = {}
        for name in trainable_names(self.trunk, spec.trainable_layers):
            master = source.master(name, device)
            parameter = own(self.trunk, name, master.to(dtype))
            self.masters[name] = parameter if dtype == torch.float32 else master

    @torch.no_grad()
    def refresh(self) -> None:
        """Copy the fp32 originals into the working copies."""
        if self.dtype != torch.float32 and self.masters:
            working = [self.trunk.get_parameter(name) for name in self.masters]
            torch._foreach_copy_(working, list(self.masters.values()))

    @torch.no_grad()
    def take_over(self, other: "TextNetwork", rows: NDArray[np.int64] | None = None) -> None:
        """Start from what another network has learned.

        Parameters
        ----------
        other : TextNetwork
            On the same source and depth; it learns nothing that this one does not learn too.
        rows : ndarray of int64, default=None
            Where each row of its head goes, if this network has more outputs; what is new starts
            at zero. None for the same outputs.
        """
        weight = other.head.weight.to(self.device)
        if rows is None:
            self.head.weight.copy_(weight)
        else:
            self.head.weight[torch.from_numpy(rows).to(self.device)] = weight
        for name, master in other.masters.items():
            self.masters[name].copy_(master)
        self.refresh()

    def trunk_inputs(self, lengths_B: Tensor, width: int) -> dict[str, Any]:
        """Return what the trunk needs beside the ids: nothing, or a mask where padding shows."""
        if not self.source.needs_mask:
            return {}
        return {"attention_mask": _within(lengths_B, width).long()}

    def hidden(self, ids_BT: Tensor, lengths_B: Tensor) -> Tensor:
        """Return the last hidden states, shape (B, T, H)."""
        inputs = self.trunk_inputs(lengths_B, ids_BT.shape[1])
        hidden_BTH: Tensor = self.trunk(input_ids=ids_BT, **inputs).last_hidden_state
        return hidden_BTH

    def pool(self, hidden_BTH: Tensor, lengths_B: Tensor) -> Tensor:
        """Pool over the true length of each text, in fp32, shape (B, H)."""
        if self.spec.pooling == "last":
            rows = torch.arange(len(lengths_B), device=lengths_B.device)
            return hidden_BTH[rows, lengths_B - 1].float()
        within_BT1 = _within(lengths_B, hidden_BTH.shape[1])[..., None]
        # where(), not a product: what stands behind a text may be anything, inf included
        total_BH = torch.where(within_BT1, hidden_BTH.float(), 0.0).sum(1)
        return total_BH / lengths_B[:, None]

    def forward(self, ids_BT: Tensor, lengths_B: Tensor) -> Tensor:
        """Return the raw scores, shape (B, K), fp32."""
        return self.score(self.pool(self.hidden(ids_BT, lengths_B), lengths_B))

    def score(self, pooled_BH: Tensor) -> Tensor:
        """Return the raw scores of pooled states, shape (B, K), fp32."""
        logits_BK: Tensor = self.head(pooled_BH)
        return logits_BK


def _within(lengths_B: Tensor, width: int) -> Tensor:
    return torch.arange(width, device=lengths_B.device)[None, :] < lengths_B[:, None]


def pad_rows(
    tokens: Tokens, rows: NDArray[np.int64], pad_id: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Lay texts side by side, padded on the right.

    Parameters
    ----------
    tokens : Tokens
    rows : ndarray of int64
        Which texts.
    pad_id : int
        Any valid id: nothing looks at what stands behind a text.
    device : torch.device

    Returns
    -------
    ids_BT, lengths_B : Tensor
    """
    lengths = tokens.lengths[rows]
    ids = np.full((len(rows), int(lengths.max())), pad_id, dtype=np.int64)
    for i, row in enumerate(rows):
        ids[i, : lengths[i]] = tokens.row(int(row))
    return torch.from_numpy(ids).to(device), torch.from_numpy(lengths).to(device)


def pad_id_of(source: Source) -> int:
    """Return an id to pad with that transformers won't take for padding and warn about."""
    return 1 if source.trunk.config.pad_token_id == 0 else 0


def resolve_pooling(pooling: str, source: Source) -> Pooling:
    """Turn the `pooling` parameter into what the network does.

    "auto" is the mean: on topics (Reuters R8) it is worth five points of accuracy over the last
    token, on sentiment it costs one, so it is the choice with the smaller regret.

    Raises
    ------
    ModelNotSupportedError
        For "last" on an encoder, whose last token sums up nothing.
    """
    if pooling == "last" and not source.causal:
        raise ModelNotSupportedError(
            f"pooling='last' needs a decoder, whose last token has seen the whole text. "
            f"{source.model!r} is an encoder: use pooling='mean'."
        )
    return "last" if pooling == "last" else "mean"


@torch.inference_mode(False)  # its weights are to be trained, whatever the caller is in
def build_network(
    source: Source,
    *,
    n_layers: int | None,
    trainable_layers: TrainableLayers,
    pooling: str,
    n_outputs: int,
    dtype: torch.dtype,
    device: torch.device,
) -> TextNetwork:
    """Build a network on a source: check the depths, share what is frozen, own what learns.

    The head starts at zero, so nothing is drawn: every class is equally likely before the first
    step, and the trunk is left alone until the head has a direction.

    Parameters
    ----------
    source : Source
    n_layers : int or None
    trainable_layers : int or "all"
    pooling : {"last", "mean", "auto"}
    n_outputs : int
    dtype : torch.dtype
    device : torch.device

    Returns
    -------
    network : TextNetwork

    Raises
    ------
    ModelNotSupportedError
        If the depths don't fit the trunk, or the pooling doesn't fit the model.
    """
    kept, learning = check_depth(source, n_layers, trainable_layers)
    spec = NetworkSpec(kept, learning, resolve_pooling(pooling, source), n_outputs)
    return TextNetwork(source, spec, dtype, device)
