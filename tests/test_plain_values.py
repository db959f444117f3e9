"""Values as JSON and back: equal, of the same type, to the last bit."""

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from skgpt._files import from_plain, to_plain
from skgpt.exceptions import StateFormatError

_LEAVES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text()
    | st.floats(allow_nan=False).map(np.float64)
    | st.integers(-(2**31), 2**31 - 1).map(np.int32)
    | st.text(alphabet="ab\u00e9\ud83d").filter(lambda s: not s.endswith("\0")).map(np.str_)
)
_VALUES = st.recursive(
    _LEAVES,
    lambda inner: (
        st.lists(inner)
        | st.lists(inner).map(tuple)
        | st.dictionaries(st.text() | st.integers() | st.just("!"), inner)
    ),
    max_leaves=12,
)


def round_trip(value: Any) -> Any:
    return from_plain(json.loads(json.dumps(to_plain(value))))


@given(_VALUES)
def test_plain__any_value__comes_back_equal_and_of_its_type(value: Any) -> None:
    again = round_trip(value)
    assert again == value
    assert type(again) is type(value)
    assert repr(again) == repr(value)  # 0.0 and -0.0, 1 and True, and what lies inside


@pytest.mark.parametrize(
    "array",
    [
        np.array(["a", "bcd"]),
        np.array([["a", 1], [None, 2.5]], dtype=object),
        np.array([1, -2], dtype=np.int8),
        np.array([[0.1, np.inf], [-0.0, 1e-320]]),
        np.array([0.1, 3.0], dtype=np.float32),
        np.array([True, False]),
        np.zeros((0, 3)),
        np.array(["2026-01-01", "1969-12-31", "NaT"], dtype="datetime64[D]"),
        np.array([1, -2], dtype="timedelta64[ns]"),
        np.array(5),
    ],
    ids=str,
)
def test_plain__array__comes_back_bit_for_bit(array: Any) -> None:
    again = round_trip(array)
    assert again.dtype == array.dtype
    assert again.shape == array.shape
    assert np.array_equal(again, array, equal_nan=array.dtype.kind == "M")
    if array.dtype.kind == "f":
        assert again.tobytes() == array.tobytes()


def test_plain__not_a_number_and_objects_in_an_array__come_back() -> None:
    assert np.isnan(round_trip(float("nan")))
    assert np.isnan(round_trip(np.array([np.nan]))[0])
    array = np.empty(2, dtype=object)
    array[:] = [("a", 1), ["b"]]
    assert round_trip(array).tolist() == [("a", 1), ["b"]]


@pytest.mark.parametrize("value", [object(), {"a": [len]}, {1, 2}, b"x", np.array([1j])])
def test_to_plain__something_else__is_refused(value: Any) -> None:
    with pytest.raises(TypeError, match="can't be written as JSON"):
        to_plain(value)


@pytest.mark.parametrize(
    "plain",
    [
        {"!": "pickle", "value": "x"},
        {"!": "array", "dtype": "V8", "shape": [0], "items": []},
        {"!": "array", "dtype": "<f8", "shape": [3], "items": [1.0]},
        {"!": "array", "dtype": "<i1", "shape": [1], "items": [1000]},
        {"!": "tuple"},
        {"!": "dict", "items": [[[], 1]]},
        {"!": ["a"]},
    ],
    ids=str,
)
def test_from_plain__what_was_never_written__is_refused(plain: Any) -> None:
    with pytest.raises(StateFormatError):
        from_plain(plain)


def test_from_plain__nested_beyond_reason__is_refused() -> None:
    plain: Any = []
    for _ in range(100_000):
        plain = [plain]
    with pytest.raises(StateFormatError):
        from_plain(plain)
