"""Token ids to raw scores, without gradients."""

import numpy as np
import torch
from numpy.typing import NDArray

from skgpt.model.network import TextNetwork, pad_id_of, pad_rows
from skgpt.text.batches import micro_batches
from skgpt.text.tokens import Tokens


def raw_scores(network: TextNetwork, tokens: Tokens, token_budget: int) -> NDArray[np.float32]:
    """Return the raw scores of every text, shape (N, K).

    Texts of like length run together, so hardly any padding is computed; the order of the rows
    is that of the texts.

    Parameters
    ----------
    network : TextNetwork
    tokens : Tokens
    token_budget : int
        Padded tokens to run at once.

    Returns
    -------
    logits_NK : ndarray of shape (N, K), float32
    """
    logits_NK = np.empty((len(tokens), network.spec.n_outputs), dtype=np.float32)
    pad_id = pad_id_of(network.source)
    rows = np.arange(len(tokens), dtype=np.int64)
    with torch.no_grad():
        for part in micro_batches(rows, tokens.lengths, token_budget):
            ids_BT, lengths_B = pad_rows(tokens, part, pad_id, network.device)
            logits_NK[part] = network(ids_BT, lengths_B).cpu().numpy()
    return logits_NK
