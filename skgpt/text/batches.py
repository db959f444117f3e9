"""Row numbers to optimiser batches, and those to micro-batches that fit a token budget.

The optimiser batches are random and depend on nothing but the seed and the epoch. How one is cut
into micro-batches changes the speed only: the loss is summed over them and divided once.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.int64]


def optimiser_batches(n: int, batch_size: int, seed: int, epoch: int) -> Iterator[Rows]:
    """Yield the batches of one epoch, each row once, in an order drawn from (seed, epoch).

    Parameters
    ----------
    n : int
        Number of rows.
    batch_size : int
        Rows per batch; the last one may be smaller.
    seed, epoch : int
        What the order depends on, and nothing else.

    Yields
    ------
    rows : ndarray of int64
    """
    order = np.random.default_rng([seed, epoch]).permutation(n).astype(np.int64)
    for start in range(0, n, batch_size):
        yield order[start : start + batch_size]


def micro_batches(rows: Rows, lengths: NDArray[np.int64], token_budget: int) -> list[Rows]:
    """Cut a batch into micro-batches of texts of like length, padded tokens within the budget.

    Parameters
    ----------
    rows : ndarray of int64
        The batch.
    lengths : ndarray of shape (N,)
        Tokens of every row of the data set.
    token_budget : int
        The longest text of a micro-batch times its number of texts stays within it; a single
        text above it gets a micro-batch of its own.

    Returns
    -------
    parts : list of ndarray
        The longest texts first, so that a lack of memory shows at once.
    """
    ordered = rows[np.argsort(-lengths[rows], kind="stable")]
    parts: list[Rows] = []
    start = 0
    while start < len(ordered):
        size = max(1, int(token_budget // lengths[ordered[start]]))
        parts.append(ordered[start : start + size])
        start += size
    return parts
