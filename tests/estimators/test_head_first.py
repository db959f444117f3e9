"""`head_first_epochs` behind the estimator: on top of the other epochs, and they stop nothing."""

import pytest

from tests.helpers import TextData, make


def test_head_first__epochs__come_on_top(tiny_llama: str, two_class_data: TextData) -> None:
    clf = make(tiny_llama, head_first_epochs=3, max_epochs=2).fit(*two_class_data)
    assert clf.n_iter_ == 5
    assert [record["learning_rate"] > 0 for record in clf.history_] == [False] * 3 + [True] * 2


def test_head_first__early_stopping__counts_no_epoch_of_it(
    tiny_llama: str, two_class_data: TextData
) -> None:
    # No epoch improves by so much: each that counts is one without an improvement.
    options = {"early_stopping": True, "n_iter_no_change": 1, "tol": 1e6}
    clf = make(tiny_llama, head_first_epochs=4, max_epochs=5, **options).fit(*two_class_data)
    assert clf.n_iter_ == 5
    assert 1 <= clf.best_iter_ <= 5


def test_head_first__partial_fit__makes_none(tiny_llama: str, two_class_data: TextData) -> None:
    X, y = two_class_data
    clf = make(tiny_llama, head_first_epochs=2).partial_fit(X, y, classes=["money", "sport"])
    assert clf.n_iter_ == 1
    assert clf.history_[0]["learning_rate"] > 0


@pytest.mark.parametrize("value", [-1, 1.5, "all", None])
def test_head_first__no_number_of_epochs__is_refused(
    value: object, tiny_llama: str, two_class_data: TextData
) -> None:
    with pytest.raises(ValueError, match="'head_first_epochs' parameter"):
        make(tiny_llama, head_first_epochs=value).fit(*two_class_data)
