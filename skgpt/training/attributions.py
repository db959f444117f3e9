"""What each token of a text adds to a raw score: integrated gradients along a path of embeddings.

Sundararajan, Taly and Yan, "Axiomatic Attribution for Deep Networks" (2017). The path leads from a
baseline, where tokens are replaced by punctuation in turn, to the text. A vector of zeros is no
good start: norms magnify it until the first step decides everything. Nor is a row of one and the
same token, least of all the one that begins texts: a decoder parks attention on the first token,
takes every token of such a row for one, and the first word of the text is then given what leaving
that state is worth (docs/failures.md has figures).

A trunk is too rough along that path for a quadrature of few steps to add up to the change of the
score: in the default model one of 128 was still off by a tenth. But the scores at both ends of
each step are known, so what a step's gradients leave unexplained is handed to its tokens, in
proportion to what they have. The sum is then exact whatever the number of steps or the precision,
and what is handed out vanishes as the steps get short.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from skgpt.data.tokenization import Tokens
from skgpt.device import to_device
from skgpt.exceptions import ModelNotSupportedError
from skgpt.network.layout import Layout, Rows, ids_of
from skgpt.network.microbatches import Budget, needs_memory, token_budget
from skgpt.network.network import TextNetwork
from skgpt.trunk.layers import PROBE_ERRORS

N_STEPS = 16
_TEXTS_AT_ONCE = 128  # whose gradients along the path are kept until they are added up


@dataclass(frozen=True)
class Attributions:
    """What is explained of one text: D scores of T tokens.

    Parameters
    ----------
    values_TD : ndarray of shape (T, D), float64
        Zero for tokens that the baseline keeps.
    baseline_D : ndarray of shape (D,), float64
        The scores of the baseline; with a column's values they add up to the text's score.
    """

    values_TD: NDArray[np.float64]
    baseline_D: NDArray[np.float64]


@needs_memory
def attribute(
    network: TextNetwork,
    tokens: Tokens,
    replaced: NDArray[np.bool_],
    directions_NDK: NDArray[np.float32],
    n_steps: int = N_STEPS,
) -> list[Attributions]:
    """Return what each token adds to scores of its text.

    No weight gets a gradient and nothing of the network is changed, so others may predict with it
    in the meantime.

    Parameters
    ----------
    network : TextNetwork
    tokens : Tokens
        Of N texts.
    replaced : ndarray of shape (n_tokens,), bool
        Which tokens the baseline replaces.
    directions_NDK : ndarray of shape (N, D, K)
        The scores to explain, each as weights of the raw scores.
    n_steps : int, default=16

    Returns
    -------
    attributions : list of Attributions, length N

    Raises
    ------
    ModelNotSupportedError
        If the trunk can't be entered with embeddings.
    """
    path = _Path(network, tokens, replaced, directions_NDK, n_steps)
    path.check()
    found: list[Attributions] = []
    for start in range(0, len(tokens), _TEXTS_AT_ONCE):
        found += path.attributions(range(start, min(start + _TEXTS_AT_ONCE, len(tokens))))
    return found


class _Path:
    """The path of every text from its baseline to itself, in equal steps."""

    def __init__(
        self,
        network: TextNetwork,
        tokens: Tokens,
        replaced: NDArray[np.bool_],
        directions_NDK: NDArray[np.float32],
        n_steps: int,
    ) -> None:
        self.network = network
        self.tokens = tokens
        self.replaced = replaced
        self.directions_NDK = directions_NDK
        self.n_steps = n_steps
        neutral = np.array(network.source.tokenizer.neutral_ids())
        with torch.no_grad():
            self.neutral_PE = network.embedded(to_device(neutral, network.device)).float()

    def check(self) -> None:
        """Check that embeddings put in are as good as the ids that they come from."""
        network = self.network
        rows = np.array([int(self.tokens.lengths.argmin())])
        layout = Layout.of(self.tokens.lengths[rows], network.source, network.device)
        ids_T = ids_of(self.tokens, rows, network.device)
        tolerance = 1e-3 if network.dtype == torch.float32 else 5e-2
        with torch.no_grad():
            expected_BH = network.pooled(ids_T, layout)
            try:
                got_BH = network.pooled_from(network.embedded(ids_T), layout)
                holds = bool((got_BH - expected_BH).norm() <= tolerance * expected_BH.norm())
            except PROBE_ERRORS as error:
                raise ModelNotSupportedError(self._refusal(f"it raises {error!r}")) from error
        if not holds:
            raise ModelNotSupportedError(self._refusal("it computes something else"))

    def _refusal(self, what: str) -> str:
        return (
            "To be explained, a model must take embeddings in the place of token ids. Given them, "
            f"{type(self.network.trunk).__name__} is not the same: {what}. Use another model."
        )

    def attributions(self, texts: range) -> Iterator[Attributions]:
        """Yield the attributions of some texts."""
        n_nodes = self.n_steps + 1
        rows = np.arange(len(texts) * n_nodes)
        lengths = np.repeat(self.tokens.lengths[texts.start : texts.stop], n_nodes)
        scores: dict[int, NDArray[np.float64]] = {}
        slopes: dict[int, NDArray[np.float64]] = {}
        limit = token_budget(self.network, learning=True, frozen_too=True)

        def work(part: Rows) -> tuple[Tensor, Tensor]:
            return self._gradients(texts.start + part // n_nodes, (part % n_nodes) / self.n_steps)

        for part, made in Budget(self.network, limit, learning=True).each(rows, lengths, work):
            scores_BD, slopes_TD = (x.double().cpu().numpy() for x in made)
            each = np.split(slopes_TD, np.cumsum(lengths[part])[:-1])
            for row, score_D, slope_TD in zip(part.tolist(), scores_BD, each, strict=True):
                scores[row], slopes[row] = score_D, slope_TD
        for place, text in enumerate(texts):
            nodes = range(place * n_nodes, (place + 1) * n_nodes)
            within = slice(self.tokens.offsets[text], self.tokens.offsets[text + 1])
            yield _add_up(
                np.stack([scores[node] for node in nodes]),
                np.stack([slopes[node] for node in nodes]),
                self.replaced[within],
            )

    @torch.inference_mode(False)
    def _gradients(self, texts: Rows, at: NDArray[np.float64]) -> tuple[Tensor, Tensor]:
        """Return the scores at places of the texts' paths, (B, D), and their slopes, (T, D)."""
        network, device = self.network, self.network.device
        layout = Layout.of(self.tokens.lengths[texts], network.source, device)
        with torch.no_grad():
            embedded_TE = network.embedded(ids_of(self.tokens, texts, device)).float()
            in_turn = [np.arange(n) % len(self.neutral_PE) for n in self.tokens.lengths[texts]]
            baseline_TE = self.neutral_PE[to_device(np.concatenate(in_turn), device)]
            offsets = self.tokens.offsets
            replaced = [self.replaced[offsets[text] : offsets[text + 1]] for text in texts]
            replaced_T1 = to_device(np.concatenate(replaced), device)[:, None]
            whole_TE = torch.where(replaced_T1, embedded_TE - baseline_TE, 0.0)
            share_B = to_device(1 - at.astype(np.float32), device)
            left_T1 = share_B.repeat_interleave(layout.lengths_B)[:, None]
            on_path_TE = (embedded_TE - left_T1 * whole_TE).to(network.dtype)
        directions_BDK = to_device(self.directions_NDK[texts], device)
        with torch.enable_grad():
            on_path_TE.requires_grad_()
            logits_BK = network.score(network.pooled_from(on_path_TE, layout))
            scores_BD = (logits_BK[:, None] * directions_BDK).sum(-1)
            totals = scores_BD.sum(0).unbind()
        slopes = []
        for k, total in enumerate(totals):
            # Asked for this one gradient, torch leaves out the products that weights' would take.
            (grad_TE,) = torch.autograd.grad(total, on_path_TE, retain_graph=k + 1 < len(totals))
            slopes.append((grad_TE.float() * whole_TE).sum(-1))
        return scores_BD.detach(), torch.stack(slopes, dim=-1)


def _add_up(
    scores_SD: NDArray[np.float64],
    slopes_STD: NDArray[np.float64],
    replaced_T: NDArray[np.bool_],
) -> Attributions:
    """Integrate slopes along a path, such that each step adds up to what the scores change by."""
    steps_STD = (slopes_STD[1:] + slopes_STD[:-1]) / (2 * (len(scores_SD) - 1))
    rest_SD = np.diff(scores_SD, axis=0) - steps_STD.sum(axis=1)
    shares_STD = np.abs(steps_STD)
    # Where no token moved the score, rounding did; it is shared alike.
    shares_STD[:, replaced_T] += np.finfo(np.float64).tiny
    totals_S1D = shares_STD.sum(axis=1, keepdims=True)
    if replaced_T.any():
        steps_STD = steps_STD + rest_SD[:, None] * shares_STD / totals_S1D
    return Attributions(steps_STD.sum(axis=0), scores_SD[0])
