"""Cut rows into batches; it stands alone as training, prediction and the cost estimate share it.

The optimiser batches depend on nothing but the seed and the epoch. How one is cut into
micro-batches changes the speed only: the loss is summed over them and divided once.
"""

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.int64]
Progress = Callable[[int, int], None]  # tokens or texts done, and in all


def no_progress(done: int, total: int) -> None:
    """Show nothing."""


def optimiser_batches(n: int, batch_size: int, seed: int, epoch: int) -> Iterator[Rows]:
    """Yield the batches of one epoch, each of n rows once, in an order drawn from (seed, epoch)."""
    order = np.random.default_rng([seed, epoch]).permutation(n).astype(np.int64)
    for start in range(0, n, batch_size):
        yield order[start : start + batch_size]


def micro_batches(
    rows: Rows,
    lengths: NDArray[np.int64],
    token_budget: int,
    *,
    padded: bool,
    n_workers: int = 1,
) -> list[Rows]:
    """Cut a batch into micro-batches of texts of like length, whose tokens fit the budget.

    `lengths` are those of every row of the data set. `padded` texts are as long as the longest of
    their micro-batch. A single text above the budget gets a micro-batch of its own. The longest
    texts come first, so that a lack of memory shows at once. There are as many parts as keep all
    workers busy to the end, or about as many where they are padded.
    """
    ordered = rows[np.argsort(-lengths[rows], kind="stable")]
    if not padded:
        return _even_parts(ordered, lengths[ordered], token_budget, n_workers)
    if len(ordered):
        in_all = len(ordered) * int(lengths[ordered[0]])
        token_budget = min(token_budget, -(-in_all // n_workers))
    parts: list[Rows] = []
    start = 0
    while start < len(ordered):
        size = max(1, int(token_budget // lengths[ordered[start]]))
        parts.append(ordered[start : start + size])
        start += size
    return parts


def _even_parts(
    ordered: Rows, lengths: NDArray[np.int64], token_budget: int, n_workers: int
) -> list[Rows]:
    """Cut where the tokens so far pass the next share of them all, in as few parts as fit.

    Their number is a multiple of the workers'.
    """
    ends = np.cumsum(lengths)
    n_parts = max(1, -(-int(ends[-1]) // token_budget)) if len(ends) else 0
    n_parts = -(-n_parts // n_workers) * n_workers
    while n_parts:
        # A text belongs to the share that its middle lies in.
        share = ((ends - lengths / 2) * n_parts // ends[-1]).astype(np.int64)
        totals = np.bincount(share, weights=lengths, minlength=n_parts)
        counts = np.bincount(share, minlength=n_parts)
        if np.all((totals <= token_budget) | (counts <= 1)):
            return [ordered[share == part] for part in range(n_parts) if counts[part]]
        n_parts += n_workers
    return []
