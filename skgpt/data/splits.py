"""Which rows train and which are held out: drawn from a seed, stratified, groups kept whole.

scikit-learn's splitters refuse classes of one row, know no label sets, and with groups draw folds
instead of a share.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from skgpt.data.targets import missing_rows
from skgpt.exceptions import InvalidTextError

Rows = NDArray[np.int64]

# Tells this generator from those of the batches' order, which are seeded with [seed, epoch]: no
# fit has that many epochs.
_STREAM = int.from_bytes(b"hold", "big")
_CHUNK = 4096  # units whose gains are computed in one go
_MAX_ROUNDS = 20
_TINY = 1e-9  # a gain that is no more than rounding


@dataclass(frozen=True)
class Split:
    """Sorted numbers of the training rows and the held-out rows, of which there may be none."""

    train: Rows
    held_out: Rows


def all_rows(n: int) -> Split:
    """Return a split that trains on every row."""
    return Split(np.arange(n), np.arange(0))


def hold_out(strata: NDArray[Any], fraction: float, seed: int, groups: Rows | None = None) -> Split:
    """Draw the rows to hold out, at least one; `groups` are codes of groups to keep whole.

    `strata` are class codes, shape (n,), or an indicator of label sets, shape (n, n_labels).

    Every class gives its share, by largest remainders. Where that can't be exact, because rows
    have several labels or come in groups, units (rows or groups) with the same counts of labels
    give their share first; the rest is passed through in random order, to and fro, and moved where
    that brings the held-out rows nearer to `fraction` of each label and of all rows. Every class
    that occurs keeps a row in training; an InvalidTextError says why no row can be held out.
    """
    rng = np.random.default_rng([seed, _STREAM])
    if groups is None and strata.ndim == 1:
        held = _by_class(strata, fraction, rng)
    else:
        unit_of = np.arange(len(strata))
        if groups is not None:
            unit_of = np.unique(groups, return_inverse=True)[1].astype(np.int64)
        held = _by_unit(_count_labels(strata, unit_of), fraction, rng)[unit_of]
    if not held.any():
        raise InvalidTextError(
            "Early stopping and calibrating hold out rows, and every class must keep at least one "
            f"row in training. Here no row can be held out: {_why_not(strata, groups)}. Pass "
            "X_val and y_val, merge or drop rare classes, or set early_stopping and calibrate to "
            "False."
        )
    return Split(np.flatnonzero(~held), np.flatnonzero(held))


def _by_class(codes: Rows, fraction: float, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Say which rows to hold out: the share of each class, by largest remainders."""
    counts = np.bincount(codes)
    spare = np.maximum(counts - 1, 0)
    share = np.round(fraction * counts, 9)  # so that equal remainders are ties
    take = np.minimum(np.floor(share).astype(np.int64), spare)
    missing = max(1, round(fraction * len(codes))) - int(take.sum())
    order = rng.permutation(len(counts))  # ties are drawn
    order = order[np.argsort((np.floor(share) - share)[order], kind="stable")]
    take[order[(take < spare)[order]][: max(0, missing)]] += 1
    return _ranks(codes, rng) < take[codes]


def _by_unit(
    counts: sparse.csr_array, fraction: float, rng: np.random.Generator
) -> NDArray[np.bool_]:
    """Say which units to hold out, from the rows of each label, and of all, in each unit."""
    # Units with the same counts give their share.
    kinds = _kinds(counts, rng)
    size = np.bincount(kinds)
    take = np.minimum(np.floor(fraction * size + 1e-9), size - 1)[kinds]
    rank = _ranks(kinds, rng)
    held = rank < take
    # Of each kind one more unit may go, and one at least stays: move those that bring a gain.
    candidates = rng.permutation(np.flatnonzero(rank == take))
    total = counts.sum(axis=0)
    wanted = fraction * total
    wanted[-1] = max(1, round(wanted[-1]))
    greedy = _Greedy(counts, wanted, held)
    for _ in range(_MAX_ROUNDS):
        inside, outside = candidates[held[candidates]], candidates[~held[candidates]]
        there = greedy.move(outside, 1)
        back = greedy.move(inside, -1)
        held[there] = True
        held[back] = False
        if len(there) + len(back) == 0:
            break
    # Each unit is too large for the share: hold out the least bad one that may go.
    if not held.any():
        for unit in candidates[np.argsort(-greedy.gains(candidates, 1), kind="stable")]:
            if greedy.may_go(*greedy.labels_of(unit)):
                held[unit] = True
                break
    return held


class _Greedy:
    """The held-out rows of each label so far, and what moving another unit would gain.

    A gain is what the sum of squared distances to the wanted rows falls by, each relative to the
    wanted rows as in a chi-squared statistic.
    """

    def __init__(
        self, counts: sparse.csr_array, wanted: NDArray[np.float64], held: NDArray[np.bool_]
    ) -> None:
        rows_held = counts[held].sum(axis=0).astype(np.float64)
        self.counts = counts
        self.in_training = counts.sum(axis=0) - rows_held
        self.lacking = wanted - rows_held
        self.importance = 1 / np.maximum(wanted, 1)

    def gains(self, units: Rows, sign: int) -> NDArray[np.float64]:
        """Return what holding out each of many units would gain (sign 1), or putting it back."""
        counts = self.counts[units]
        slope = 2 * sign * self.importance * self.lacking
        return np.asarray(counts @ slope - counts.power(2) @ self.importance)

    def move(self, units: Rows, sign: int) -> Rows:
        """Hold out (sign 1) or put back (-1) in turn what brings a gain; return which."""
        moved = []
        for start in range(0, len(units), _CHUNK):
            chunk = units[start : start + _CHUNK]
            # A move only lowers the gains of those after it: what gains nothing now never will.
            for unit in chunk[self.gains(chunk, sign) > _TINY]:
                labels, rows = self.labels_of(unit)
                change = sign * rows
                gains = self.importance[labels] * change * (2 * self.lacking[labels] - change)
                if gains.sum() > _TINY and (sign < 0 or self.may_go(labels, rows)):
                    self.in_training[labels] -= change
                    self.lacking[labels] -= change
                    moved.append(unit)
        return np.array(moved, dtype=np.int64)

    def may_go(self, labels: Rows, rows: Rows) -> bool:
        """Say whether the labels of a unit would all keep a row in training."""
        return bool((self.in_training[labels] > rows).all())

    def labels_of(self, unit: int) -> tuple[Rows, Rows]:
        """Return the labels that a unit has, and the rows of each."""
        part = slice(self.counts.indptr[unit], self.counts.indptr[unit + 1])
        return self.counts.indices[part], self.counts.data[part]


def _count_labels(strata: NDArray[Any], unit_of: Rows) -> sparse.csr_array:
    """Return the rows of each label in each unit, and in the last column the rows of the unit."""
    if strata.ndim == 1:
        rows, labels, n_labels = np.arange(len(strata)), strata, int(strata.max()) + 1
    else:
        rows, labels = np.nonzero(strata)
        n_labels = strata.shape[1]
    units = np.concatenate([unit_of[rows], unit_of])
    columns = np.concatenate([labels, np.full(len(unit_of), n_labels)])
    ones = np.ones(len(units), dtype=np.int64)
    shape = (int(unit_of.max()) + 1, n_labels + 1)
    return sparse.coo_array((ones, (units, columns)), shape=shape).tocsr()


def _kinds(counts: sparse.csr_array, rng: np.random.Generator) -> Rows:
    """Give units with the same counts the same number.

    By a random linear hash of 64 bits, as sorting whole rows takes seconds.
    """
    factors = rng.integers(np.iinfo(np.uint64).max, size=counts.shape[1], dtype=np.uint64)
    _, kinds = np.unique(counts.astype(np.uint64) @ (factors | np.uint64(1)), return_inverse=True)
    return np.asarray(kinds, dtype=np.int64)


def _ranks(kinds: Rows, rng: np.random.Generator) -> Rows:
    """Return the place of each entry among those of its kind, in random order."""
    order = rng.permutation(len(kinds))
    order = order[np.argsort(kinds[order], kind="stable")]
    counts = np.bincount(kinds)
    ranks = np.empty(len(kinds), dtype=np.int64)
    ranks[order] = np.arange(len(kinds)) - np.repeat(np.cumsum(counts) - counts, counts)
    return ranks


def _why_not(strata: NDArray[Any], groups: Rows | None) -> str:
    if len(strata) == 1:
        return "there is one sample only"
    if groups is not None:
        if len(np.unique(groups)) == 1:
            return "all rows are of one group"
        return "each group holds all the rows of some class"
    if strata.ndim == 1:
        return "each class has one row only"
    return "each row holds all there is of some label"


def group_codes(groups: Any, n: int) -> Rows:
    """Check `groups`, a label of any kind for each of n rows, and number them."""
    if isinstance(groups, str | bytes | set | dict) or not hasattr(groups, "__len__"):
        raise InvalidTextError(
            "`groups` must be a list, an array or a Series with a label per text. Got a "
            f"{type(groups).__name__}."
        )
    if isinstance(groups, list | tuple):  # numpy would make 1 and "1" the same
        labels = np.fromiter(groups, dtype=object, count=len(groups))
    else:
        labels = groups.to_numpy() if hasattr(groups, "to_numpy") else np.asarray(groups)
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.shape != (n,):
        raise InvalidTextError(
            f"`groups` must have one label per text. Got shape {labels.shape} for {n} texts."
        )
    for row in missing_rows(labels):
        raise InvalidTextError(
            f"`groups` must have a label for every text. Row {row} is {labels[row]!r}: give such "
            "rows a group each, or drop them."
        )
    if labels.dtype != object:
        return np.unique(labels, return_inverse=True)[1].astype(np.int64)
    numbers: dict[Any, int] = {}  # labels of several types can't be sorted
    return np.array([numbers.setdefault(label, len(numbers)) for label in labels], dtype=np.int64)
