"""Rows held out: shares, groups, and what never leaves training."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skgpt.data.batching import optimiser_batches
from skgpt.data.splits import Split, group_codes, hold_out
from skgpt.exceptions import InvalidTextError

SEEDS = st.integers(0, 2**32 - 1)
FRACTIONS = st.sampled_from([0.05, 0.1, 0.25, 0.5, 0.9, 1 - 1e-12])


def random_strata(seed: int, n: int) -> list[np.ndarray]:
    """Class codes with rare classes, label sets with rare labels, and no strata."""
    rng = np.random.default_rng(seed)
    share = 0.5 ** np.arange(5)
    codes = rng.choice(5, size=n, p=share / share.sum())
    return [codes, (rng.random((n, 5)) < share).astype(np.float32), np.zeros(n, dtype=np.int64)]


def membership(strata: np.ndarray) -> np.ndarray:
    return strata if strata.ndim == 2 else np.eye(strata.max() + 1)[strata]


def check_split(split: Split, strata: np.ndarray) -> None:
    """What holds of every split: whole, sorted, and each class still in training."""
    assert split.train.dtype == split.held_out.dtype == np.int64
    rows = np.sort(np.concatenate([split.train, split.held_out]))
    assert np.array_equal(rows, np.arange(len(strata)))
    for rows in split.train, split.held_out:
        assert len(rows)
        assert (np.diff(rows) > 0).all()
    member = membership(strata)
    assert np.array_equal(member[split.train].any(axis=0), member.any(axis=0))


@settings(max_examples=60, deadline=None)
@given(SEEDS, FRACTIONS, st.integers(20, 80), st.sampled_from([None, 2, 5, 30]))
def test_hold_out__anything__is_disjoint_complete_and_leaves_each_class_in_training(
    seed: int, fraction: float, n: int, n_groups: int | None
) -> None:
    rng = np.random.default_rng(seed)
    groups = None if n_groups is None else rng.integers(n_groups, size=n)
    for strata in random_strata(seed, n):
        strata.flags.writeable = False
        try:
            split = hold_out(strata, fraction, seed, groups)
        except InvalidTextError:
            # Only where each group holds all the rows of some class, or is all there is.
            member = membership(strata)
            assert groups is not None
            for group in np.unique(groups):
                left = member[groups != group].any(axis=0)
                assert (left != member.any(axis=0)).any() or (groups == group).all()
            continue
        check_split(split, strata)
        if groups is not None:
            assert not set(groups[split.train]) & set(groups[split.held_out])


@settings(max_examples=60, deadline=None)
@given(SEEDS, FRACTIONS, st.integers(2, 300), st.integers(1, 6))
def test_hold_out__classes__each_gives_its_share_within_a_row(
    seed: int, fraction: float, n: int, n_classes: int
) -> None:
    codes = np.random.default_rng(seed).integers(n_classes, size=n)
    counts = np.bincount(codes)
    if counts.max() < 2:
        return
    split = hold_out(codes, fraction, seed)
    check_split(split, codes)
    held = np.bincount(codes[split.held_out], minlength=len(counts))
    assert (np.abs(held - fraction * counts) <= 1 + 1e-9).all()
    assert len(split.held_out) <= max(1, round(fraction * n))
    if fraction <= 0.5 and counts[counts > 0].min() > 1:  # no class held back its last row
        assert len(split.held_out) == max(1, round(fraction * n))


def test_hold_out__shares_that_are_no_whole_rows__largest_remainders_round_up() -> None:
    codes = np.repeat([0, 1, 2], [19, 11, 15])  # shares of 1.9, 1.1 and 1.5; 4.5 of 45 round to 4
    for seed in range(20):
        assert np.bincount(codes[hold_out(codes, 0.1, seed).held_out]).tolist() == [2, 1, 1]
    for n, fraction, n_held in ((100, 0.1, 10), (4, 0.1, 1), (2, 0.9, 1), (1001, 0.25, 250)):
        assert len(hold_out(np.zeros(n, dtype=np.int64), fraction, 0).held_out) == n_held


def test_hold_out__label_sets__share_of_each_label_and_of_all_is_close() -> None:
    off = []
    for seed in range(40):
        sets = random_strata(seed, 300)[1]
        split = hold_out(sets, 0.25, seed)
        check_split(split, sets)
        held, n_held = sets[split.held_out].sum(axis=0), len(split.held_out)
        off.append(np.abs(held - 0.25 * sets.sum(axis=0)).max())
        assert abs(n_held - 0.25 * 300) <= 4
    assert max(off) <= 3
    assert np.mean(off) < 1  # 3 to 4 for rows drawn at random


@pytest.mark.parametrize("kind", [0, 1, 2])
def test_hold_out__groups__share_of_each_class_and_of_all_is_close(kind: int) -> None:
    off = []
    for seed in range(20):
        strata = random_strata(seed, 1000)[kind]
        groups = np.random.default_rng(seed).integers(250, size=1000)
        split = hold_out(strata, 0.2, seed, groups)
        check_split(split, strata)
        member = membership(strata)
        off.append(np.abs(member[split.held_out].sum(axis=0) - 0.2 * member.sum(axis=0)).max())
        assert abs(len(split.held_out) - 200) <= 10
    assert max(off) <= 8  # two groups
    assert np.mean(off) < 2  # 10 or more for groups drawn at random


@pytest.mark.parametrize("kind", [0, 1, 2])
@pytest.mark.parametrize("grouped", [False, True])
def test_hold_out__seed__decides_it_and_nothing_else(kind: int, grouped: bool) -> None:
    strata = random_strata(0, 200)[kind]
    groups = np.arange(200) // 2 if grouped else None
    np.random.seed(1)
    before = np.random.get_state()[1].copy()
    first, again, other = (hold_out(strata, 0.2, seed, groups) for seed in (7, 7, 8))
    assert np.array_equal(first.held_out, again.held_out)
    assert not np.array_equal(first.held_out, other.held_out)
    assert np.array_equal(before, np.random.get_state()[1])


def test_hold_out__every_row__is_drawn_about_as_often() -> None:
    codes = np.array([0] * 15 + [1] * 15)  # a share of 1.5 rows each: which gets two is drawn
    times = np.bincount(
        np.concatenate([hold_out(codes, 0.1, seed).held_out for seed in range(1000)]), minlength=30
    )
    assert np.abs(times / 1000 - 0.1).max() < 0.04
    assert abs(times[:15].sum() - times[15:].sum()) < 150


def test_hold_out__the_order_of_the_batches__is_another_draw() -> None:
    codes = np.zeros(1000, dtype=np.int64)
    held = hold_out(codes, 0.1, 0).held_out
    for epoch in range(20):
        (order,) = optimiser_batches(1000, 1000, 0, epoch)
        for end in order[:100], order[-100:]:
            assert len(np.intersect1d(end, held)) < 30


def test_hold_out__groups_larger_than_the_share__one_goes_all_the_same() -> None:
    codes = np.tile([0, 1], 50)
    split = hold_out(codes, 0.1, 0, np.repeat([0, 1], 50))
    assert len(split.held_out) == 50
    unequal = np.repeat([0, 1, 2], [60, 22, 18])
    assert np.array_equal(hold_out(codes, 0.01, 0, unequal).held_out, np.arange(82, 100))


@pytest.mark.parametrize(
    ("strata", "groups", "message"),
    [
        (np.arange(5), None, "each class has one row only.*X_val and y_val.*calibrate to False"),
        (np.zeros(1, dtype=np.int64), None, "one sample only"),
        (np.eye(3, dtype=np.float32), None, "each row holds all there is of some label"),
        (np.array([0, 1, 0, 1]), np.zeros(4, dtype=np.int64), "all rows are of one group"),
        (
            np.array([0, 0, 1, 1]),
            np.array([0, 0, 1, 1]),
            "each group holds all the rows of some class",
        ),
    ],
)
def test_hold_out__no_row_may_go__says_why(strata: np.ndarray, groups: Any, message: str) -> None:
    with pytest.raises(InvalidTextError, match=message):
        hold_out(strata, 0.5, 0, groups)


@pytest.mark.parametrize(
    "make",
    [
        list,
        pl.Series,
        pd.Categorical,
        lambda labels: np.array(labels)[:, np.newaxis],
        lambda labels: pd.Series(labels, dtype="string"),
        lambda labels: np.array(labels, dtype=np.dtypes.StringDType()),
        lambda labels: [(label, 0) for label in labels],
        lambda labels: [1 if label == "gb" else label for label in labels],
        lambda labels: pd.to_datetime([f"2020-01-0{ord(label[1]) - 96}" for label in labels]),
    ],
)
def test_group_codes__labels_of_any_kind__are_numbered(make: Callable[[list[str]], Any]) -> None:
    codes = group_codes(make(["gb", "ga", "gb", "gc"]), 4)
    assert codes.dtype == np.int64
    assert codes[0] == codes[2]
    assert sorted(set(codes)) == [0, 1, 2]


def test_group_codes__1_and_the_string_1__are_two_groups() -> None:
    assert group_codes([1, "1", 1, "1"], 4).tolist() == [0, 1, 0, 1]


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        (["a", "b", "c"], r"one label per text. Got shape \(3,\) for 4 texts"),
        (np.zeros((4, 2)), r"Got shape \(4, 2\)"),
        (["a", None, "b", "c"], "Row 1 is None"),
        (np.array([1.0, 2.0, np.nan, 2.0]), "Row 2 is .*nan"),
        (pd.Series(["a", "b", pd.NA, "c"], dtype="string"), "Row 2 is <NA>"),
        (np.array(["2020-01-01", "NaT", "2020-01-01", "2020-01-01"], "M8[D]"), "Row 1 is .*NaT"),
        ("abcd", "Got a str"),
        ({"a", "b", "c", "d"}, "Got a set"),
        (7, "Got a int"),
    ],
)
def test_group_codes__unusable__are_refused(groups: Any, message: str) -> None:
    with pytest.raises(InvalidTextError, match=f"`groups` must.*{message}"):
        group_codes(groups, 4)
