"""Token ids to raw scores, without gradients."""

import numpy as np
import torch
from numpy.typing import NDArray

from skgpt.model.network import TextNetwork
from skgpt.model.prefix import choose_forward
from skgpt.text.batches import micro_batches
from skgpt.text.tokens import Tokens


def raw_scores(
    network: TextNetwork, tokens: Tokens, token_budget: int, memory_budget: int
) -> NDArray[np.float32]:
    """Return the raw scores of every text, shape (N, K).

    A text that is there several times runs once, and layers that are frozen don't run again for
    texts that they have seen in this process.

    Parameters
    ----------
    network : TextNetwork
    tokens : Tokens
    token_budget : int
        Tokens to run at once.
    memory_budget : int
        Bytes that the states behind frozen layers may take; above that all layers run.

    Returns
    -------
    logits_NK : ndarray of shape (N, K), float32
    """
    texts = [tokens.row(i).tobytes() for i in range(len(tokens))]
    first = {text: row for row, text in reversed([*enumerate(texts)])}
    logits_NK = np.empty((len(tokens), network.spec.n_outputs), dtype=np.float32)
    rows = np.array(sorted(first.values()), dtype=np.int64)
    padded = not network.source.proof.packs
    with torch.no_grad():
        forward = choose_forward(
            network,
            tokens,
            token_budget=token_budget,
            memory_budget=memory_budget,
            progress=lambda done, total: None,
        )
        for part in micro_batches(rows, tokens.lengths, token_budget, padded=padded):
            logits_NK[part] = forward(part).cpu().numpy()
    return logits_NK[[first[text] for text in texts]]
