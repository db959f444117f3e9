"""Labels to codes, label sets to indicators, and what is refused in plain words."""

import datetime
import decimal
import enum
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pytest
from scipy import sparse
from sklearn.preprocessing import MultiLabelBinarizer
from sklearn.utils.multiclass import unique_labels

from skgpt.data.targets import check_classes, encode_target
from skgpt.exceptions import InvalidTextError

INDICATOR = np.array([[1, 0, 0], [0, 0, 0], [1, 1, 0], [0, 1, 0]])  # the last label never occurs


@pytest.mark.parametrize(
    "y",
    [
        ["b", "a", "c", "a"],
        [3, 1, 7, 1],
        [True, False, True, False],
        np.array([3, 1, 7, 1], dtype=object),
        np.array([True, False, True, False], dtype=object),
        pd.Series([3, 1, 7, 1], dtype="Int64"),
        pd.Series(["b", "a", "c", "a"], dtype="category"),
    ],
)
def test_encode_target__any_labels__are_sorted_and_come_back(y: list[object]) -> None:
    target = encode_target(y, 4, name="It")
    assert not target.is_multilabel
    assert (len(target), target.width) == (4, len(set(y)))
    assert target.codes.dtype == np.int64
    assert target.classes.tolist() == sorted(set(y))
    assert target.classes[target.codes].tolist() == list(y)


class Team(str, enum.Enum):  # noqa: UP042, not a StrEnum: str() says something else
    UK = "sport-uk"
    US = "sport-us"
    MONEY = "money"


def test_encode_target__members_of_an_enum_of_str__are_their_texts() -> None:
    target = encode_target([Team.UK, Team.US, Team.MONEY], 3, name="It")
    assert target.classes.tolist() == ["money", "sport-uk", "sport-us"]
    assert target.labels.tolist() == ["sport-uk", "sport-us", "money"]


@pytest.mark.parametrize(
    "labels",
    [
        [datetime.date(2026, 1, 1), datetime.date(2026, 1, 2)],
        [decimal.Decimal("1.5"), decimal.Decimal("2")],
        [b"a", b"b"],
        [{"a"}, {"b"}],
        [True, 2],
    ],
)
def test_labels__of_a_type_that_scikit_learn_refuses__are_refused(labels: Any) -> None:
    for y in (labels, np.array(labels, dtype=object), pd.Series(labels, dtype=object)):
        for check in (encode_target, lambda y, n, name: check_classes(y, name=name)):
            with pytest.raises(InvalidTextError, match=r"must be (str, int or bool|of one type)"):
                check(y, 2, name="It")


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["a\0", "a"], r"Row 0 is 'a\\x00': strip it"),
        ([10**30, 1], "Row 0 is 10{30}: turn them into texts"),
        ([1, -(2**63) - 1], "Row 1 is -9223372036854775809"),
    ],
)
def test_labels__that_numpy_would_take_for_others__are_refused(labels: Any, message: str) -> None:
    for y in (labels, np.array(labels, dtype=object)):
        for check in (encode_target, lambda y, n, name: check_classes(y, name=name)):
            with pytest.raises(InvalidTextError, match=message):
                check(y, 2, name="It")


@pytest.mark.parametrize(
    ("y", "message"),
    [
        (None, "requires y to be passed, but the target y is None"),
        (["a", "b"], r"\[3, 2\]"),
        (["a", None, "b"], "row 1 is None"),
        (["a", float("nan"), "b"], "row 1 is nan"),
        ("abc", "Got a str"),
        (iter("abc"), "Got a str_"),
        ([["a"], ["b", "c"], ["a"]], "one label per text"),
        ([["a"], "b", ["a"]], "one label per text"),
        (["a", pd.NA, "b"], "row 1 is <NA>"),
        ([0.5, 1.25, 3.1], "Unknown label type: continuous.*GPTTextRegressor"),
        (["a", "a", "a"], "only one class: 'a'"),
        (np.array(["a", 1, "b"], dtype=object), "of one type"),
    ],
)
def test_encode_target__unusable__is_refused(y: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        encode_target(y, 3, name="It")


def test_encode_target__a_column__warns_and_is_the_labels() -> None:
    with pytest.warns(UserWarning, match="column-vector"):
        target = encode_target(np.array([[1], [0], [1]]), 3, name="It")
    assert not target.is_multilabel
    assert target.codes.tolist() == [1, 0, 1]


@pytest.mark.parametrize(
    "make",
    [
        np.asarray,
        lambda y: list(y),
        lambda y: tuple(map(tuple, y.tolist())),
        lambda y: y.astype(bool).tolist(),
        lambda y: y.astype(np.float16),
        lambda y: y.astype(object),
        np.asfortranarray,
        lambda y: pd.DataFrame(y).astype("Int64"),
        lambda y: pd.DataFrame(y).astype({0: bool}),
        lambda y: pd.DataFrame(y).astype(pd.SparseDtype("int64", 0)),
        lambda y: pl.DataFrame(y.astype(bool)),
        *[
            lambda y, name=name, kind=kind: getattr(sparse, f"{name}_{kind}")(y)
            for name in ("csr", "csc", "coo", "lil", "dok", "dia", "bsr")
            for kind in ("matrix", "array")
        ],
        lambda y: sparse.csr_array(y.astype(np.float32)),
        lambda y: MultiLabelBinarizer(sparse_output=True, classes=[0, 1, 2]).fit_transform(
            [np.flatnonzero(row) for row in y]
        ),
    ],
)
def test_encode_target__any_indicator__is_label_sets(make: Callable[[np.ndarray], Any]) -> None:
    target = encode_target(make(INDICATOR), 4, name="It")
    assert target.is_multilabel
    assert (len(target), target.width) == (4, 3)
    assert target.classes.tolist() == [0, 1, 2]
    assert target.codes.dtype == np.float32
    assert target.codes.flags.c_contiguous
    assert target.codes.tolist() == INDICATOR.tolist()


def test_encode_target__an_indicator__is_not_touched() -> None:
    dense = INDICATOR.astype(np.float32)
    dense.flags.writeable = False
    assert not np.shares_memory(encode_target(dense, 4, name="It").codes, dense)


def test_encode_target__sparse_with_an_element_in_two_parts__counts_their_sum() -> None:
    places = np.array([0, 1, 1]), np.array([0, 1, 3])  # row 1 has its second element twice
    y = sparse.csr_array((np.array([1, 0, 1]), *places), shape=(2, 2))
    assert encode_target(y, 2, name="It").codes.tolist() == [[1, 0], [0, 1]]
    twice = sparse.csr_array((np.array([1, 1, 1]), *places), shape=(2, 2))
    with pytest.raises(InvalidTextError, match=r"Row 1 holds.*2"):
        encode_target(twice, 2, name="It")
    assert (y.nnz, twice.nnz) == (3, 3)


def _with(value: object) -> np.ndarray:
    y = INDICATOR.astype(object)
    y[2, 1] = value
    return y


@pytest.mark.parametrize(
    ("y", "message"),
    [
        (_with(2).astype(int), r"2 classes in column 2 of y, .* only one class: 0"),
        (INDICATOR + 1, r"2 classes in column 2 of y, .* only one class: 1"),
        (_with(0.5).astype(float), "Unknown label type: continuous.*column 1 of y.*Regressor"),
        (_with(np.nan).astype(float), "NaN.*row 2 holds.*nan"),
        (_with(None), "row 2 holds None"),
        (_with([1, 2]), r"list"),
        (_with(pd.NA), "row 2 holds <NA>"),
        (_with("a"), "labels in column 1 of y must be of one type"),
        (_with(1j), "labels in column 1 of y must be of one type"),
        ([[1, [0]], [1, [1]], [0, [1]], [0, [0]]], r"one label in each column. Row 0 holds \[0\]"),
        (pd.DataFrame(INDICATOR).astype("Int64").mask(INDICATOR == 1), "row 0 holds <NA>"),
        (sparse.csr_array(_with(2).astype(int)), "Row 2 holds.*2"),
        (sparse.csc_array(_with(0.5).astype(float)), "Row 2 holds.*must be dense"),
        (sparse.coo_array(_with(np.nan).astype(float)), "row 2 holds.*nan"),
        (INDICATOR[:3], r"\[4, 3\]"),
        (np.empty((4, 0)), r"shape \(4, 0\)"),
        ([[1, 0], [1], [0, 1], [1, 1]], "MultiLabelBinarizer"),
        ([["a", "b"], [], ["a"], []], "MultiLabelBinarizer"),
        (np.zeros((4, 2, 2)), "dim 3"),
    ],
)
def test_encode_target__2d_but_no_indicator__is_refused(y: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        encode_target(y, 4, name="It")


COLUMNS = [["b", 3, True], ["a", 1, False], ["c", 3, False], ["a", 1, True]]


@pytest.mark.parametrize(
    "y",
    [
        COLUMNS,
        tuple(map(tuple, COLUMNS)),
        np.array(COLUMNS, dtype=object),
        pd.DataFrame(COLUMNS),
        pd.DataFrame(COLUMNS).astype({0: "category", 1: "Int64", 2: "boolean"}),
        pl.DataFrame(COLUMNS, orient="row"),
    ],
    ids=["rows", "tuples", "objects", "pandas", "pandas' own types", "polars"],
)
def test_encode_target__columns_of_classes__are_targets_side_by_side(y: Any) -> None:
    target = encode_target(y, 4, name="It")
    assert target.is_multioutput and not target.is_multilabel
    assert (len(target), target.width) == (4, 7)
    assert [each.tolist() for each in target.classes] == [["a", "b", "c"], [1, 3], [False, True]]
    assert target.labels.tolist() == COLUMNS
    for output, column in zip(target.outputs, zip(*COLUMNS, strict=True), strict=True):
        alone = encode_target(list(column), 4, name="It")
        assert output.codes.tolist() == alone.codes.tolist()
        assert output.classes.dtype.kind in (alone.classes.dtype.kind, "O")
    rows = np.array([3, 0])
    parts = [output.truth(rows) for output in target.outputs]
    assert np.array_equal(target.truth(rows), np.hstack(parts))
    assert np.array_equal(target.strata.sum(axis=0), [*target.count(np.arange(4)).values()])
    assert target.count(rows) == {
        "0: a": 1,
        "0: b": 1,
        "0: c": 0,
        "1: 1": 1,
        "1: 3": 1,
        "2: False": 0,
        "2: True": 2,
    }


def test_encode_target__known_classes_of_columns__say_what_zeros_and_ones_are() -> None:
    known = [np.array([0, 1, 2]), np.array([0, 1])]
    assert encode_target([[0, 1], [1, 0]], 2, name="It", classes=known).is_multioutput
    assert encode_target(sparse.eye_array(2), 2, name="It", classes=known).is_multioutput
    assert encode_target([[0, 1], [1, 0]], 2, name="It").is_multilabel
    for y, got in (
        (["a", "b"], "one label per text"),
        ([[0, 1, 1], [1, 1, 1]], "3 columns of labels"),
    ):
        with pytest.raises(InvalidTextError, match=rf"\[0, 1, 2\] and \[0, 1\]. Got {got}"):
            encode_target(y, 2, name="It", classes=known)
    with pytest.raises(InvalidTextError, match=r"classes \['a', 'b'\]. Got 3 columns of labels"):
        encode_target(COLUMNS, 4, name="It", classes=np.array(["a", "b"]))


# Known classes


@pytest.mark.parametrize("labels", [["a", "b", "c"], [3, 5, 9], [0.0, 1.0, 2.0]])
@pytest.mark.parametrize("make", [list, np.array, pd.Series])
def test_encode_target__known_classes__codes_are_positions_in_them(
    labels: list[Any], make: Callable[[list[Any]], Any]
) -> None:
    classes = check_classes(labels, name="It")
    some = [labels[2], labels[0], labels[2]]
    target = encode_target(make(some), 3, name="It", classes=classes)
    assert target.classes is classes
    assert target.codes.dtype == np.int64
    assert target.codes.tolist() == [2, 0, 2]
    one = encode_target(make(labels[1:2]), 1, name="It", classes=classes)
    assert one.codes.tolist() == [1]


def test_encode_target__many_known_classes__no_word_about_regression() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        target = encode_target(list(range(30)), 30, name="It", classes=np.arange(40))
    assert target.codes.tolist() == list(range(30))


@pytest.mark.parametrize(
    ("y", "message"),
    [
        (["a", "z", "b", "y"], r"y_val .*It knows: \['a', 'b'\].*\['y', 'z'\], first in row 1"),
        ([1, 1, 1, 1], r"\[1\], first in row 0"),
        (["a", None, "b", "b"], "row 1 is None"),
        (["a", "b"], r"X_val and y_val.*\[4, 2\]"),
        ([0.5, 1.5, 2.5, 3.5], "Unknown label type: continuous"),
        (INDICATOR, r"y_val must fit.*indicator of 3 columns"),
        (INDICATOR[:, :2], r"y_val must fit.*indicator of 2 columns"),
    ],
)
def test_encode_target__not_of_the_known_classes__is_refused(y: object, message: str) -> None:
    with pytest.raises(InvalidTextError, match=message):
        encode_target(y, 4, name="It", classes=np.array(["a", "b"]), what="y_val")


def test_encode_target__thousands_of_known_classes__message_stays_short() -> None:
    with pytest.raises(InvalidTextError, match="and 4990 more") as raised:
        encode_target([-1, -2, 3], 3, name="It", classes=np.arange(5000))
    assert len(str(raised.value)) < 500


# check_classes and join


@pytest.mark.filterwarnings("ignore:The number of unique classes")  # of older scikit-learns
@pytest.mark.parametrize(
    "classes",
    [["bb", "a", "bb"], [3, 1, 3], [True, False], [1.0, 2.0], pd.Series(["bb", "a"]), range(30)],
)
def test_check_classes__any_order__same_as_scikit_learn(classes: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        checked = check_classes(classes, name="It")
    assert checked.tolist() == unique_labels(classes).tolist()
    if len(checked) < 20:  # above, scikit-learn warns that y looks like numbers
        encoded = encode_target(classes, len(classes), name="It").classes
        assert (checked.dtype, checked.tolist()) == (encoded.dtype, encoded.tolist())


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (["a"], r"at least 2 classes.*It.*Got \['a'\]"),
        ([], "at least 2 classes"),
        (["a", None], "`classes` contains.*row 1 is None"),
        (["a", 1], "labels in `classes` must be of one type"),
        ([0.5, 1.5], "Unknown label type: continuous"),
        ([["a", "b"]], "1d array"),
        (np.eye(2), "must be 1-D"),
        ("ab", "Got a str"),
        (None, "`classes` is None"),
    ],
)
def test_check_classes__unusable__is_refused(classes: object, message: str) -> None:
    with pytest.raises(InvalidTextError, match=message):
        check_classes(classes, name="It")


@pytest.mark.parametrize("y", [["a", "b", "c", "b"], INDICATOR, COLUMNS])
def test_join__a_target_in_two_parts__is_the_whole(y: Any) -> None:
    whole = encode_target(y, 4, name="It")
    first = encode_target(y[:3], 3, name="It", classes=whole.classes)
    second = encode_target(y[3:], 1, name="It", classes=whole.classes)
    joined = first.join(second)
    assert type(joined) is type(whole)
    assert joined.codes.dtype == whole.codes.dtype
    assert joined.codes.tolist() == whole.codes.tolist()
    assert joined.classes is first.classes
    assert joined.labels.tolist() == whole.labels.tolist()


def test_join__other_classes_or_another_kind__is_refused() -> None:
    letters = encode_target(["a", "b"], 2, name="It")
    for other in (["a", "c"], ["a", "b", "c"]):
        with pytest.raises(InvalidTextError, match="the same classes"):
            letters.join(encode_target(other, len(other), name="It"))
    with pytest.raises(InvalidTextError, match="one kind"):
        encode_target([0, 1, 2], 3, name="It").join(encode_target(INDICATOR, 4, name="It"))
    with pytest.raises(InvalidTextError, match="the same classes"):
        encode_target(COLUMNS, 4, name="It").join(letters)


def test_truth__of_some_rows__is_what_they_are_predicted_by() -> None:
    classes, sets = (encode_target(y, 4, name="It") for y in (["b", "a", "c", "a"], INDICATOR))
    scores = classes.truth(np.array([3, 0]))
    assert classes.classes[scores.argmax(axis=1)].tolist() == ["a", "b"]
    assert np.array_equal(sets.truth(np.array([3, 0])) > 0, INDICATOR[[3, 0]] == 1)
    assert np.array_equal(sets.labels, INDICATOR)
    assert scores.dtype == sets.truth(np.array([3])).dtype == np.float32
