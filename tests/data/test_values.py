"""Numbers: what counts as y of a regressor, and the units that it is learned in."""

from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import sparse

from skgpt.data.values import Values, encode_values
from skgpt.exceptions import InvalidTextError

NAN = float("nan")


def encode(y: Any, n: int = 3, **options: Any) -> Values:
    return encode_values(y, n, name="It", **options)


def learned(y: Any, weight: Any = None) -> Values:
    weight = np.ones(len(y)) if weight is None else np.array(weight, dtype=float)
    return encode(y, len(y)).learned_on(np.arange(len(y)), weight)


@pytest.mark.parametrize(
    "y",
    [
        [1, 2.5, True],
        (1, 2.5, 1),
        np.array([1, 2.5, 1], dtype=np.float32),
        np.array([1, 2.5, 1], dtype=object),
        [Fraction(1), Decimal("2.5"), np.True_],
        pd.Series([1, 2.5, 1], index=[7, 8, 9], dtype="Float64"),
        pl.Series([1.0, 2.5, 1.0]),
    ],
    ids=lambda y: type(y).__module__.partition(".")[0],
)
def test_encode_values__any_container__the_same_numbers(y: Any) -> None:
    found = encode(y)
    assert found.labels.tolist() == [1.0, 2.5, 1.0] and found.labels.dtype == np.float64
    assert (len(found), found.width) == (3, 1)


@pytest.mark.parametrize(
    "y",
    [
        [[1, 2], [3, 4], [5, 6]],
        pd.DataFrame({"a": [1, 3, 5], "b": [2, 4, 6]}),
        pl.DataFrame({"a": [1, 3, 5], "b": [2, 4, 6]}),
        sparse.csr_array([[1, 2], [3, 4], [5, 6]]),
    ],
    ids=["lists", "pandas", "polars", "sparse"],
)
def test_encode_values__several_columns__stay_a_table(y: Any) -> None:
    assert encode(y).labels.tolist() == [[1, 2], [3, 4], [5, 6]]
    assert encode([[1], [2], [3]]).labels.shape == (3, 1)  # so does one


@pytest.mark.parametrize(
    ("y", "message"),
    [
        (None, "requires y to be passed"),
        ("abc", "must be a list"),
        ([1, NAN, 2], r"NaN, infinity or a missing number: row 1 holds nan"),
        ([1, 2, np.inf], "row 2 holds inf"),
        ([1, None, 2], "row 1 holds None"),
        (pd.Series([1, pd.NA, 2], dtype="Int64"), "row 1 holds"),
        ([[1, 2], [3, NAN], [5, 6]], "row 1, column 1, holds nan"),
        ([1, "good", 2], "expects numbers in y. Row 1 holds 'good'.*GPTTextClassifier"),
        (["1", "2", "3"], "Row 0 holds '1'"),
        (pd.DataFrame({"a": [1, 2, 3], "b": ["x", "y", "z"]}), "Row 0, column 'b', holds 'x'"),
        ([[1, 2], [3], [4, 5]], r"Row 0 holds \[1, 2\]"),
        (np.array([1j, 2, 3]), r"Row 0 holds 1j"),
        (np.array(["2026-01-01"] * 3, dtype="M8[D]"), "Row 0 holds"),
        (np.zeros((3, 0)), "a number per text"),
        (np.zeros((3, 1, 1)), "a number per text"),
        ([1, 2], r"one label per text.*\[3, 2\]"),
    ],
    ids=lambda value: "",
)
def test_encode_values__what_are_no_numbers__are_refused_by_row(y: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        encode(y)


def test_encode_values__with_units__wants_as_many_columns() -> None:
    units = learned([1, 2, 3]).units
    assert encode([7, 7, 7], units=units).units is units  # they may be all the same now
    assert encode([[7], [7], [7]], units=units).labels.shape == (3,)
    with pytest.raises(InvalidTextError, match=r"as many columns as It was fitted on, 1. Got 2"):
        encode([[1, 2]] * 3, units=units)
    with pytest.raises(InvalidTextError, match=r"y_val must have as many columns as y, 1. Got 2"):
        encode([1, 2, 3]).join(encode([[1, 2]] * 3))


@pytest.mark.parametrize(
    ("y", "weight", "message"),
    [
        ([3, 3, 3], None, "all 3 hold 3.0: there is nothing to learn"),
        ([[1, 5], [2, 5]], None, "all 2 hold 5.0 in column 1"),
        ([1, 2, 2], [0, 1, 1], "weigh something.*all 2 hold 2.0"),
        ([1], None, "the 1 sample there is holds 1.0"),
    ],
)
def test_learned_on__y_is_constant__is_refused(y: Any, weight: Any, message: str) -> None:
    with pytest.raises(InvalidTextError, match=message):
        learned(y, weight)


values = st.lists(
    st.floats(-1e300, 1e300, allow_subnormal=False), min_size=2, max_size=8, unique=True
)


@given(y=values, seed=st.integers(0, 9))
def test_learned_on__any_numbers__have_mean_zero_and_deviation_one_by_weight(
    y: list[float], seed: int
) -> None:
    weight = np.random.default_rng(seed).integers(1, 4, len(y))
    found, twice = learned(y, weight), learned(np.repeat(y, weight))
    assert found.units is not None and twice.units is not None
    np.testing.assert_allclose(found.units.scale, twice.units.scale, rtol=1e-6)
    codes = found.codes.astype(np.float64)[:, 0]
    share = weight / weight.sum()
    np.testing.assert_allclose([share @ codes, share @ codes**2], [0, 1], atol=1e-5)
    back = found.units.values_of(found.codes)
    np.testing.assert_allclose(back, y, atol=1e-6 * np.abs(y).max())


def test_learned_on__held_out_rows__are_not_seen() -> None:
    target = encode([1, 3, 100], 3)
    units = target.learned_on(np.array([0, 1]), np.ones(3)).units
    assert units is not None and (units.mean, units.scale) == ([2.0], [1.0])
