"""Token ids to raw scores, without gradients."""

import numpy as np
import torch
from numpy.typing import NDArray

from skgpt.model.memory import Budget, needs_memory
from skgpt.model.network import TextNetwork
from skgpt.model.windows import forward_over
from skgpt.text.windows import TextIds
from skgpt.training.progress import PredictBar


@needs_memory
def raw_scores(
    network: TextNetwork,
    tokens: TextIds,
    token_budget: int,
    memory_budget: int,
    bar: PredictBar | None = None,
) -> NDArray[np.float32]:
    """Return the raw scores of every text, shape (N, K).

    A text that is there several times runs once, and layers that are frozen don't run again for
    texts that they have seen in this process.

    Parameters
    ----------
    network : TextNetwork
    tokens : Tokens or Windows
    token_budget : int
        Tokens to run at once.
    memory_budget : int
        Bytes that the states behind frozen layers may take; above that all layers run.
    bar : PredictBar, default=None
        Shows how far it is; None shows nothing.

    Returns
    -------
    logits_NK : ndarray of shape (N, K), float32
    """
    texts, first = tokens.distinct()
    logits_NK = np.empty((len(tokens), network.spec.n_outputs), dtype=np.float32)
    rows = np.array(sorted(first.values()), dtype=np.int64)
    with torch.no_grad(), bar or PredictBar(verbose=0) as shown:
        forward = forward_over(
            network,
            tokens,
            token_budget=token_budget,
            memory_budget=memory_budget,
            progress=shown.frozen,
        )
        lengths = tokens.lengths
        done, total = 0, int(lengths[rows].sum())
        budget = Budget(network, token_budget)
        for part, logits_BK in budget.each(rows, lengths, lambda part: forward(part).cpu()):
            logits_NK[part] = logits_BK.numpy()
            done += int(lengths[part].sum())
            shown.scored(done, total)
    return logits_NK[[first[text] for text in texts]]
