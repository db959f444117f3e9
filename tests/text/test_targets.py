"""Labels to codes, class weights to row weights."""

import numpy as np
import pandas as pd
import pytest

from skgpt.exceptions import InvalidTextError
from skgpt.text.targets import encode_classes, row_weights


@pytest.mark.parametrize(
    "y",
    [
        ["b", "a", "c", "a"],
        [3, 1, 7, 1],
        [True, False, True, False],
        np.array(["b", "a", "c", "a"], dtype=object),
        np.array([3, 1, 7, 1], dtype=object),
        np.array([True, False, True, False], dtype=object),
        pd.Series([3, 1, 7, 1], dtype="Int64"),
        pd.Series(["b", "a", "c", "a"], dtype="category"),
        pd.Series(["b", "a", "c", "a"], dtype="string"),
    ],
    ids=[
        "str",
        "int",
        "bool",
        "object",
        "int object",
        "bool object",
        "Int64",
        "category",
        "string",
    ],
)
def test_encode_classes__any_labels__are_sorted_and_come_back(y: list[object]) -> None:
    target = encode_classes(y, 4, name="It")
    assert target.classes.tolist() == sorted(set(y))
    assert target.classes[target.codes].tolist() == list(y)


@pytest.mark.parametrize(
    ("y", "message"),
    [
        (None, "requires y to be passed, but the target y is None"),
        (["a", "b"], r"\[3, 2\]"),
        (["a", None, "b"], "row 1 is None"),
        (["a", float("nan"), "b"], "row 1 is nan"),
        (["a", 1, "b"], "of one type"),
        ("abc", "Got a str"),
        ({"a", "b", "c"}, "Got a set"),
        (iter("abc"), "Got a str_"),
        ([["a"], ["b", "c"], ["a"]], "one label per text"),
        ([["a", "b"], ["b", "c"], ["a", "c"]], "one label per text"),
        (["a", pd.NA, "b"], "row 1 is <NA>"),
        ([1.0, float("nan"), 2.0], "row 1 is nan"),
        ([0.5, 1.25, 3.1], "Unknown label type: continuous.*regressor"),
        (["a", "a", "a"], "only one class: 'a'"),
        (np.array(["a", 1, "b"], dtype=object), "of one type"),
    ],
)
def test_encode_classes__unusable__is_refused(y: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        encode_classes(y, 3, name="It")


def test_row_weights__balanced__makes_classes_weigh_the_same() -> None:
    target = encode_classes(["a", "a", "a", "b"], 4, name="It")
    weight = row_weights(target, np.ones(4), "balanced")
    assert weight[:3].sum() == pytest.approx(weight[3])
    assert weight.sum() == pytest.approx(4)


def test_row_weights__balanced_with_weight_two__equals_the_row_twice() -> None:
    weighted = encode_classes(["a", "a", "b"], 3, name="It")
    repeated = encode_classes(["a", "a", "a", "b"], 4, name="It")
    once = row_weights(weighted, np.array([2.0, 1.0, 1.0]), "balanced")
    twice = row_weights(repeated, np.ones(4), "balanced")
    assert once.tolist() == pytest.approx([twice[0] + twice[1], twice[2], twice[3]])


def test_row_weights__balanced_with_a_weightless_row__equals_the_row_left_out() -> None:
    full = encode_classes(["a", "a", "b", "c"], 4, name="It")
    part = encode_classes(["a", "a", "b"], 3, name="It")
    got = row_weights(full, np.array([1.0, 1.0, 1.0, 0.0]), "balanced")
    assert got.tolist() == pytest.approx([*row_weights(part, np.ones(3), "balanced"), 0.0])


def test_row_weights__dict__multiplies_and_leaves_others_alone() -> None:
    target = encode_classes(["a", "b", "b"], 3, name="It")
    weight = row_weights(target, np.array([1.0, 2.0, 3.0]), {"b": 10.0})
    assert weight.tolist() == [1.0, 20.0, 30.0]


@pytest.mark.parametrize(
    ("class_weight", "message"),
    [
        ({"z": 1.0}, "not among"),
        ({"a": "1", "b": 1.0}, "finite weights >= 0"),
        ({"a": -1.0}, "finite weights >= 0"),
        ({"a": 0.0, "b": 0.0}, "zero for all"),
    ],
)
def test_row_weights__unusable_dict__is_refused(
    class_weight: dict[str, float], message: str
) -> None:
    target = encode_classes(["a", "b"], 2, name="It")
    with pytest.raises(InvalidTextError, match=message):
        row_weights(target, np.ones(2), class_weight)


def test_row_weights__dict_with_a_label_that_this_fold_lacks__is_taken() -> None:
    target = encode_classes(["a", "b"], 2, name="It")
    weight = row_weights(target, np.ones(2), {"a": 2.0, "b": 3.0, "rare": 9.0})
    assert weight.tolist() == [2.0, 3.0]
