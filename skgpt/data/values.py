"""Numbers of any container to what a regressor's loss takes: standardised, column by column.

`Values` is to a regressor what `Target` is to a classifier: fits ask both for the same things.
"""

import numbers
import reprlib
from dataclasses import asdict, dataclass, replace
from decimal import Decimal
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from skgpt.data.inputs import as_known_container, frame_columns, frame_names
from skgpt.data.targets import Target, as_numpy, check_is_array, check_length, missing_rows
from skgpt.exceptions import InvalidTextError


@dataclass(frozen=True)
class Units:
    """What raw scores are multiplied with, and what is added, to be numbers like those of y.

    An entry per column, in lists, as a saved model has them; `is_1d` says that y was no table.
    """

    mean: list[float]
    scale: list[float]
    is_1d: bool

    @classmethod
    def of(
        cls, values_NK: NDArray[np.float64], weight_N: NDArray[np.float64], is_1d: bool
    ) -> "Units":
        """Return the weighted mean and deviation of each column; refuse one that never changes."""
        values_NK, weight_N = values_NK[weight_N > 0], weight_N[weight_N > 0]
        for column in np.flatnonzero((values_NK == values_NK[0]).all(axis=0)):
            which = "" if is_1d else f" in column {column}"
            n = (
                f"all {len(values_NK)} hold"
                if len(values_NK) > 1
                else "the 1 sample there is holds"
            )
            raise InvalidTextError(
                "y must hold different numbers in the rows that are trained on: those that weigh "
                f"something and are not held out. Of these, {n} {values_NK[0, column]}{which}: "
                "there is nothing to learn."
            )
        # In shares of the largest, or the squares of large numbers would overflow.
        largest_K = np.abs(values_NK).max(axis=0)
        share_N = weight_N / weight_N.max()
        share_N /= share_N.sum()
        mean_K = share_N @ (values_NK / largest_K)
        deviation_K = np.sqrt(share_N @ (values_NK / largest_K - mean_K) ** 2)
        return cls((mean_K * largest_K).tolist(), (deviation_K * largest_K).tolist(), is_1d)

    def standardise(self, values_NK: NDArray[np.float64]) -> NDArray[np.float32]:
        """Return the raw scores that stand for these values."""
        return ((values_NK - self.mean) / self.scale).astype(np.float32)

    def values_of(self, scores_NK: NDArray[np.floating]) -> NDArray[np.float64]:
        """Return what raw scores stand for, in the shape of y."""
        values_NK = scores_NK.astype(np.float64) * self.scale + self.mean
        return values_NK[:, 0] if self.is_1d else values_NK


@dataclass(frozen=True)
class Values:
    """A checked y of numbers, shape (n, n_columns).

    `units` are None until it is known which rows are trained on, or those of the fit before.
    """

    values: NDArray[np.float64]
    is_1d: bool
    units: Units | None = None

    def __len__(self) -> int:
        return len(self.values)

    @property
    def width(self) -> int:
        """Number of raw scores per text."""
        return self.values.shape[1]

    @property
    def codes(self) -> NDArray[np.float32]:
        """What the loss takes: the values, standardised."""
        assert self.units is not None
        return self.units.standardise(self.values)

    @property
    def known(self) -> Units | None:
        """What the targets of later fits have to go by."""
        return self.units

    @property
    def plain_known(self) -> dict[str, Any]:
        """The same as plain values."""
        assert self.units is not None
        return asdict(self.units)

    @property
    def meaning(self) -> dict[str, Any]:
        """What a fitted model keeps of y: the fields of its record."""
        return {"units": self.units}

    @property
    def strata(self) -> NDArray[np.int64]:
        """What rows are held out by: nothing."""
        return np.zeros(len(self), dtype=np.int64)

    @property
    def labels(self) -> NDArray[np.float64]:
        """The values in the shape of y."""
        return self.values[:, 0] if self.is_1d else self.values

    def truth(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return raw scores, shape (len(rows), width), that predict the values of these rows."""
        return self.codes[rows]

    def count(self, rows: NDArray[np.int64]) -> dict[str, int]:
        """Return no counts, as there are no labels."""
        return {}

    def learned_on(self, rows: NDArray[np.int64], weight: NDArray[np.float64]) -> "Values":
        """Return the target with units, those of the rows that are trained on if it has none."""
        if self.units is not None:
            return self
        return replace(self, units=Units.of(self.values[rows], weight[rows], self.is_1d))

    def join(self, other: "Values") -> "Values":
        """Put the rows of another target behind these."""
        if self.width != other.width:
            raise InvalidTextError(
                f"y_val must have as many columns as y, {self.width}. Got {other.width}."
            )
        return replace(self, values=np.concatenate([self.values, other.values]))


AnyTarget = Target | Values


def encode_values(
    y: Any, n: int, *, name: str, units: Units | None = None, what: str = "y"
) -> Values:
    """Check numbers for n rows, one or several per row.

    With `units`, those of a fit before, y must have as many columns. Messages name the estimator,
    `name`, and call y `what`.
    """
    y = as_known_container(y)
    check_is_array(y, name, what)
    if sparse.issparse(y):
        y = y.toarray()
    # As objects: numpy would turn the numbers of a list that holds a text into texts.
    table = np.array(y, dtype=object) if isinstance(y, list | tuple) else as_numpy(y)
    if table.ndim not in (1, 2) or table.shape[1:] == (0,):
        raise InvalidTextError(
            f"{what} must hold a number per text, or a row of numbers per text. Got an array of "
            f"shape {table.shape}."
        )
    check_length(len(table), n, what)
    names = frame_names(y) if frame_columns(y) is not None else None
    values = _numbers(table.reshape(len(table), -1), names, name, what)
    is_1d = table.ndim == 1
    if units is not None and (values.shape[1] != len(units.mean)):
        raise InvalidTextError(
            f"{what} must have as many columns as {name} was fitted on, {len(units.mean)}. Got "
            f"{values.shape[1]}: pass as many, or fit anew."
        )
    return Values(values, is_1d if units is None else units.is_1d, units)


def _numbers(
    table: NDArray[Any], columns: list[str] | None, name: str, what: str
) -> NDArray[np.float64]:
    """Return a table of numbers as fp64; an error names the row and column of anything else."""
    n_columns = table.shape[1]

    def place(at: int) -> str:
        which = columns[at % n_columns] if columns else at % n_columns
        column = f", column {which!r}," if n_columns > 1 else ""
        (value,) = table.ravel()[at : at + 1].tolist()
        return f"row {at // n_columns}{column} holds {reprlib.repr(value)}"

    for at in map(int, missing_rows(table.ravel())):
        raise InvalidTextError(
            f"Input {what} contains NaN, infinity or a missing number: {place(at)}. Every row "
            "needs numbers: drop the rows without one."
        )
    is_number = table.dtype.kind in "buif"
    wrong = () if is_number else (i for i, v in enumerate(table.flat) if not _is_number(v))
    for at in wrong:
        raise InvalidTextError(
            f"{name} expects numbers in {what}. {place(at).replace('row', 'Row', 1)}: convert it, "
            f"as np.asarray({what}, dtype=float) does with '4.5', or use GPTTextClassifier where "
            f"{what} are classes."
        )
    return np.ascontiguousarray(table, dtype=np.float64)


def _is_number(value: Any) -> bool:
    return isinstance(value, numbers.Real | Decimal | np.bool_)
