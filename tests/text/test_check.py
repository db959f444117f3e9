"""Texts and weights: what is taken as it is, and what is refused, by the number of its row."""

import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from skgpt.exceptions import InvalidTextError
from skgpt.text.check import check_texts, check_weight

TEXTS = ["one", "", "three \ud800", "\U0001f600"]


@pytest.mark.parametrize(
    "X",
    [
        TEXTS,
        tuple(TEXTS),
        np.array(TEXTS, dtype=object),
        pd.Series(TEXTS),
        pd.Series(TEXTS, index=[7, 3, 1, 0]),
    ],
    ids=["list", "tuple", "object", "series", "shuffled index"],
)
def test_check_texts__any_column__gives_the_texts_in_order(X: object) -> None:
    assert check_texts(X) == TEXTS


def test_check_texts__numpy_strings__become_plain_str() -> None:
    texts = check_texts(np.array(["a", "bc"]))
    assert texts == ["a", "bc"]
    assert {type(t) for t in texts} == {str}


@pytest.mark.parametrize("dtype", ["string", "category", "object"])
def test_check_texts__pandas_dtypes__are_taken(dtype: str) -> None:
    assert check_texts(pd.Series(["a", "b"], dtype=dtype)) == ["a", "b"]


def test_check_texts__columns__are_joined_with_a_blank_line() -> None:
    frame = pd.DataFrame({"title": ["a", "b"], "n": [1, 2.5]})
    assert check_texts(frame) == ["a\n\n1", "b\n\n2.5"]
    assert check_texts([["a", "x"], ["b", "y"]]) == ["a\n\nx", "b\n\ny"]


def test_check_texts__a_table_of_numbers__is_formatted() -> None:
    assert check_texts(np.array([[1.0, 0.125], [2.0, 1e9]])) == ["1\n\n0.125", "2\n\n1000000000"]


@pytest.mark.parametrize("bad", [None, float("nan"), pd.NA, 3, 2.5, True, b"bytes", ["list"]])
def test_check_texts__a_bad_row__is_named(bad: object) -> None:
    column = np.array(["fine", "also fine", "x"], dtype=object)
    column[1] = bad
    with pytest.raises(InvalidTextError, match=r"Row 1 is "):
        check_texts(column)


@pytest.mark.parametrize("bad", [None, float("nan"), pd.NA, b"bytes"])
def test_check_texts__a_bad_cell__is_named_with_its_column(bad: object) -> None:
    frame = pd.DataFrame({"a": ["x", "y"], "b": ["x", bad]}, dtype=object)
    with pytest.raises(InvalidTextError, match=r"Row 1, column 1 is "):
        check_texts(frame)


@pytest.mark.parametrize(
    ("X", "message"),
    [
        ("a text", "wrap it in a list"),
        (b"bytes", "wrap it in a list"),
        ([], "at least one text"),
        (np.array([], dtype=object), "at least one text"),
        (np.array([]), "at least one text"),
        ([1, 2, 3], "Reshape your data"),
        (np.array([1.0, 2.0]), "Reshape your data"),
        (np.zeros((2, 2, 2)), "Reshape your data"),
        ([["a", "b"], ["c"]], "row 1 is"),
        ([["a", "b"], None], "row 1 is None"),
        (["abc", ["x"]], "row 0 is 'abc'"),
        ([["a", "b"], "ab"], "row 1 is 'ab'"),
        (np.array([[1.0, np.nan]]), "NaN"),
        (np.array([[1.0, np.inf]]), "infinity"),
        (np.zeros((0, 3)), "0 sample"),
        (np.zeros((3, 0)), "0 feature"),
        ({"a", "b"}, "Got set"),
        ((t for t in TEXTS), "Got generator"),
    ],
)
def test_check_texts__not_a_column_of_texts__says_what_to_do(X: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_texts(X)


def test_check_texts__sparse__is_refused() -> None:
    with pytest.raises(TypeError, match=r"[Ss]parse"):
        check_texts(sparse.csr_matrix(np.eye(3)))


def test_check_weight__none__is_ones() -> None:
    assert check_weight(None, 3).tolist() == [1.0, 1.0, 1.0]


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        ([1.0, -1.0, 1.0], "[Nn]egative"),
        ([0.0, 0.0, 0.0], "zero"),
        (0.0, "zero"),
        ([1.0, 2.0], "expected"),
        ([1.0, np.nan, 1.0], "NaN"),
        ([1.0, np.inf, 1.0], "infinity"),
        ([[1.0], [1.0], [1.0]], "1D"),
    ],
)
def test_check_weight__unusable__is_refused(weight: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_weight(weight, 3)


def test_check_texts__floats_that_differ_late__stay_apart() -> None:
    texts = check_texts([[20240131.0, 1234567.89], [20240132.0, 1234568.11]])
    assert texts == ["20240131\n\n1234567.89", "20240132\n\n1234568.11"]
