"""What rows and labels weigh in the loss."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.utils.class_weight import compute_class_weight, compute_sample_weight

from skgpt.data.targets import Target, encode_target
from skgpt.data.weights import loss_weights
from skgpt.exceptions import InvalidTextError

ABB = encode_target(["a", "b", "b"], 3, name="It")
SETS = encode_target([[1, 0, 0], [0, 0, 1], [1, 0, 1], [1, 0, 0]], 4, name="It")
COLUMNS = encode_target([["a", 3], ["b", 3], ["b", 4], ["b", 3]], 4, name="It")
SEEDS = st.integers(0, 2**32 - 1)


def rows_of(target: Target, rows: np.ndarray) -> Target:
    return type(target)(target.classes, target.codes[rows])


def random_target(rng: np.random.Generator, n: int, *, multilabel: bool) -> Target:
    if multilabel:
        share = rng.random(4)
        return Target(np.arange(4), (rng.random((n, 4)) < share).astype(np.float32))
    return Target(np.array(["a", "b", "c"]), rng.choice(3, size=n, p=[0.7, 0.2, 0.1]))


@pytest.mark.parametrize("target", [ABB, SETS, COLUMNS])
def test_loss_weights__none__are_the_rows_weights_to_the_bit(target: Target) -> None:
    ones = loss_weights(target, np.ones(len(target)), None, np.arange(len(target)))
    assert ones.dtype == np.float64
    assert np.array_equal(ones, np.ones(target.codes.shape))
    weight = np.random.default_rng(0).random(len(target))
    weight.flags.writeable = False
    got = loss_weights(target, weight, None, np.arange(len(target)))
    assert got.shape == target.codes.shape
    assert not np.shares_memory(got, weight)
    assert np.array_equal(got.reshape(len(target), -1).T, [weight] * (got.size // len(target)))


@settings(max_examples=60, deadline=None)
@given(SEEDS)
def test_loss_weights__balanced__same_as_scikit_learn_on_the_training_rows(seed: int) -> None:
    rng = np.random.default_rng(seed)
    target = random_target(rng, 30, multilabel=False)
    train = np.sort(rng.choice(30, size=20, replace=False))
    got = loss_weights(target, np.ones(30), "balanced", train)
    expected = compute_sample_weight("balanced", target.codes, indices=train)
    known = np.isin(target.codes, target.codes[train])  # of other classes it has nothing to say
    assert got[known] == pytest.approx(expected[known])


@settings(max_examples=60, deadline=None)
@given(SEEDS)
def test_loss_weights__balanced_label_sets__each_label_same_as_scikit_learn(seed: int) -> None:
    rng = np.random.default_rng(seed)
    target = random_target(rng, 12, multilabel=True)
    train = np.sort(rng.choice(12, size=8, replace=False))
    got = loss_weights(target, np.ones(12), "balanced", train)
    for label, column in enumerate(target.codes.T):
        per_value = {0: 1.0, 1: 1.0}
        if len(set(column[train])) == 2:
            weights = compute_class_weight("balanced", classes=np.array([0, 1]), y=column[train])
            per_value = dict(enumerate(weights))
        assert got[:, label].tolist() == pytest.approx([per_value[int(v)] for v in column])


@settings(max_examples=60, deadline=None)
@given(SEEDS, st.booleans(), st.sampled_from(["balanced", None]))
def test_loss_weights__integer_weights__equal_the_rows_as_often(
    seed: int, multilabel: bool, class_weight: str | None
) -> None:
    rng = np.random.default_rng(seed)
    target = random_target(rng, 10, multilabel=multilabel)
    weight = rng.integers(0, 4, size=10).astype(float)
    weight[:2] = 1
    train = np.sort(rng.permutation(10)[:7]) if rng.random() < 0.5 else np.arange(10)
    train = np.union1d(train, [0])  # one that weighs something
    often = np.repeat(np.arange(10), weight.astype(int))
    repeated = rows_of(target, often)
    once = loss_weights(target, weight, class_weight, train)
    twice = loss_weights(
        repeated, np.ones(len(often)), class_weight, np.flatnonzero(np.isin(often, train))
    )
    total = np.zeros_like(once)
    np.add.at(total, often, twice)
    assert total == pytest.approx(once)


def test_loss_weights__dict__multiplies_and_leaves_others_alone() -> None:
    weight = loss_weights(ABB, np.array([1.0, 2.0, 3.0]), {"b": 10.0}, np.arange(3))
    assert weight.tolist() == [1.0, 20.0, 30.0]
    with_more = {"a": 2.0, "b": 3.0, "a label that this fold lacks": 9.0}
    assert loss_weights(ABB, np.ones(3), with_more, np.arange(3)).tolist() == [2.0, 3.0, 3.0]


def test_loss_weights__list_of_dicts__multiplies_and_leaves_others_alone() -> None:
    per_label = [{0: 2.0, 1: 3.0}, {1: 9.0}, {}]
    weight = loss_weights(SETS, np.array([1.0, 2.0, 3.0, 4.0]), per_label, np.arange(4))
    assert weight.tolist() == [[3, 1, 1], [4, 2, 2], [9, 3, 3], [12, 4, 4]]
    by_bool = [{False: 2.0, True: 3.0}, {True: 9.0}, {}]
    assert np.array_equal(loss_weights(SETS, np.ones(4), by_bool, np.arange(4))[:, 0], [3, 2, 3, 3])


@pytest.mark.parametrize(
    ("target", "class_weight", "message"),
    [
        (ABB, {"z": 1.0}, "not among"),
        (ABB, {"a": "1", "b": 1.0}, "finite weights >= 0"),
        (ABB, {"a": float("inf")}, "finite weights >= 0"),
        (ABB, {"a": 0.0, "b": 0.0}, "zero for all"),
        (ABB, [{0: 1.0, 1: 2.0}] * 2, "must be a dict.*where each text has one class"),
        (ABB, "balance", "'balance'"),
        (SETS, {0: 1.0, 1: 2.0}, "must be a list.*pass a list of 3 dicts"),
        (SETS, [{1: 2.0}] * 2, "per label, 3 in all. Got 2"),
        (SETS, [{1: 2.0}, {1: 2.0}, 2.0], r"Got 2\.0 for label 2"),
        (SETS, [{1: 2.0}, {2: 2.0}, {}], r"Got \{2: 2\.0\} for label 1"),
        (SETS, [{1: 2.0}, {}, {0: -1.0}], r"class_weight\[2\] must hold finite weights >= 0"),
        (SETS, [{0: 0, 1: 0}] * 3, "zero for all"),
    ],
)
def test_loss_weights__bad__is_refused(target: Target, class_weight: Any, message: str) -> None:
    with pytest.raises(InvalidTextError, match=message):
        loss_weights(target, np.ones(len(target)), class_weight, np.arange(len(target)))


@pytest.mark.parametrize("class_weight", [None, "balanced"])
@pytest.mark.parametrize("target", [ABB, SETS])
def test_loss_weights__only_held_out_rows_weigh_something__is_refused(
    target: Target, class_weight: str | None
) -> None:
    weight = np.zeros(len(target))
    weight[2] = 1.0
    with pytest.raises(InvalidTextError, match="at least one training row"):
        loss_weights(target, weight, class_weight, np.array([0, 1]))
    assert loss_weights(target, weight, class_weight, np.array([0, 2])).sum() > 0


@pytest.mark.parametrize("class_weight", ["balanced", [{"a": 3.0}, "balanced"], [None, {4: 2.0}]])
def test_loss_weights__several_outputs__each_column_as_if_it_were_alone(class_weight: Any) -> None:
    weight, train = np.array([1.0, 2.0, 1.0, 0.5]), np.array([0, 1, 2])
    each = class_weight if isinstance(class_weight, list) else 2 * [class_weight]
    alone = [
        loss_weights(output, weight, own, train)
        for output, own in zip(COLUMNS.outputs, each, strict=True)
    ]
    got = loss_weights(COLUMNS, weight, class_weight, train)
    assert np.array_equal(got, np.stack(alone, axis=1))
