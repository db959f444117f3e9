"""max_seconds: a fit is shortened before it starts, a clock ends it at a step; slow fits say so."""

import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from skgpt import clear_cache, cost, fitting
from skgpt.cost import Rates
from skgpt.exceptions import ShortFitWarning, SlowFitWarning, TimeLimitWarning
from skgpt.pretrained.loading import load_pretrained
from skgpt.training import run
from skgpt.trunk.layers import find_blocks
from tests.helpers import make, make_text_data

X, y = make_text_data(n_classes=2)  # 40 rows: 5 steps of 8 make an epoch
AUTO = {"n_layers": "auto", "trainable_layers": 1}  # two of the three layers


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Set what a measurement finds, and what the clock shows: it stands still unless told."""

    clear_cache()  # or frozen layers would have run over these texts

    def install(ticks: Iterator[float] | None = None, **rates: float) -> None:
        clear_cache()  # frozen layers that have run already cost nothing
        found = Rates(**{"frozen": 0.0, "forward": 0.0, "learning": 0.0, "update": 0.0, **rates})
        monkeypatch.setattr(cost, "measure", lambda *args, **options: found)
        clock = {"monotonic": lambda: 0.0, "perf_counter": time.perf_counter}
        monkeypatch.setattr(fitting, "time", SimpleNamespace(**clock))
        if ticks is not None:
            clock["monotonic"] = lambda: next(ticks)
        monkeypatch.setattr(run, "time", SimpleNamespace(**clock))

    return install


def test_fit__too_many_epochs_for_the_time__is_the_fit_of_fewer(
    tiny_llama: str, measured: Any
) -> None:
    measured(update=1.0)
    clf = make(tiny_llama, max_seconds=17)  # of which 15.3 are reckoned with
    with pytest.warns(
        TimeLimitWarning, match=r"^max_seconds=17 made .*: 3 of 6 epochs\."
    ) as caught:
        clf.fit(X, y)
    assert caught[0].filename == __file__
    shorter = make(tiny_llama, max_epochs=3).fit(X, y)
    np.testing.assert_array_equal(clf.predict_proba(X), shorter.predict_proba(X))
    assert [record.get("cut_short") for record in clf.history_] == [None, None, "3 of 6 epochs"]
    make(tiny_llama, max_seconds=34).fit(X, y)  # warnings are errors here


@pytest.mark.filterwarnings("ignore::skgpt.exceptions.TimeLimitWarning")
def test_fit__one_epoch_is_too_long__keeps_fewer_layers_where_their_number_is_open(
    tiny_llama: str, measured: Any
) -> None:
    measured(frozen=1.0)
    clf = make(tiny_llama, **AUTO, max_seconds=9).fit(X, y)
    assert (clf.n_layers_, clf.trainable_layers_) == (1, 1)
    assert clf.history_[-1]["cut_short"] == "1 of 2 layers, 1 of 6 epochs"
    shorter = make(tiny_llama, n_layers=1, max_epochs=1).fit(X, y)
    np.testing.assert_array_equal(clf.predict_proba(X), shorter.predict_proba(X))
    assert make(tiny_llama, max_seconds=9).fit(X, y).n_layers_ == 3
    # A fit that goes on has the layers it has.
    clf.set_params(warm_start=True).fit(X, y)
    assert clf.n_layers_ == 1 and clf.n_iter_ == 6


@pytest.mark.parametrize(("late_after", "n_epochs"), [(1, 1), (7, 2), (10, 2)])
def test_fit__the_clock_runs_out__ends_at_that_step(
    late_after: int, n_epochs: int, tiny_llama: str, measured: Any
) -> None:
    measured(iter([0.0] * (late_after - 1) + [99.0] * 30))
    clf = make(tiny_llama, max_seconds=50, early_stopping=True, validation_fraction=0.05)
    said = f"{late_after} of the 30 steps"
    with pytest.warns(TimeLimitWarning, match=said):
        clf.fit(X, y)
    assert clf.n_iter_ == len(clf.validation_scores_) == n_epochs
    assert clf.history_[-1]["cut_short"] == f"{said} of these"


def test_fit__the_clock_runs_out_at_the_last_step__nothing_was_cut(
    tiny_llama: str, measured: Any
) -> None:
    measured(iter([0.0] * 29 + [99.0] * 30))
    clf = make(tiny_llama, max_seconds=50).fit(X, y)
    whole = make(tiny_llama).fit(X, y)
    np.testing.assert_array_equal(clf.predict_proba(X), whole.predict_proba(X))
    assert "cut_short" not in clf.history_[-1]


def test_fit__enough_time_by_a_real_measurement__is_the_fit_without_a_limit(
    tiny_llama: str,
) -> None:
    clf = make(tiny_llama, max_seconds=1e6).fit(X, y)
    np.testing.assert_array_equal(clf.predict_proba(X), make(tiny_llama).fit(X, y).predict_proba(X))


@pytest.mark.parametrize(
    ("params", "says"),
    [
        ({}, "about 15 minutes. max_seconds=600 ends it within ten, with 3 of 6 epochs. "),
        ({"early_stopping": True, "validation_fraction": 0.1}, "up to 15 minutes"),
        ({"max_epochs": 1}, None),
        ({"max_seconds": 1e6}, None),  # its own warning would say what was cut
    ],
)
def test_fit__over_ten_minutes__says_so_before_it_trains_with_what_would_end_within_them(
    params: dict[str, Any],
    says: str | None,
    tiny_llama: str,
    measured: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    measured(update=30.5)
    monkeypatch.setattr(fitting, "_WORTH_MEASURING", (0.0, 0.0))
    clf = make(tiny_llama, **params)
    if says is None:
        clf.fit(X, y)  # warnings are errors here
        return
    with pytest.raises(SlowFitWarning, match=says):
        clf.fit(X, y)
    assert not hasattr(clf, "history_")


def test_fit__small_as_counted__is_not_measured(
    tiny_llama: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(cost, "measure")
    make(tiny_llama).fit(X, y)
    monkeypatch.setattr(fitting, "_WORTH_MEASURING", (0.0, 0.0))
    with pytest.raises(NameError):
        make(tiny_llama).fit(X, y)


def test_count_products__each_layer_that_learns_runs_forwards_and_twice_back(
    tiny_llama: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = []

    def noting(*args: Any) -> float:
        counted.append(cost.count_products(*args))
        return 0.0

    monkeypatch.setattr(fitting, "count_products", noting)
    texts = ["abc" * 10, "abc" * 100]  # of ten tokens, and of more than max_length
    for params in ({"trainable_layers": 0}, {"trainable_layers": 1, "max_epochs": 5}):
        make(tiny_llama, **params, max_length=40).fit(texts, [0, 1])
    block = find_blocks(load_pretrained(tiny_llama).trunk)[0]
    per_pass = 50 * sum(parameter.numel() for parameter in block.parameters())
    assert counted == pytest.approx([3 * per_pass, (2 + 15) * per_pass])


@pytest.mark.filterwarnings("error::skgpt.exceptions.ShortFitWarning")
def test_fit__loss_still_falls_steeply_in_the_last_epoch__says_so(tiny_llama: str) -> None:
    short = {"max_epochs": 2, "lr_schedule": "constant"}
    with pytest.raises(ShortFitWarning, match=r"the last of 2 epochs took \d\d% of"):
        make(tiny_llama, **short).fit(X, y)
    make(tiny_llama, max_epochs="auto").fit(X, y)
    make(tiny_llama, **short, trainable_layers=0).fit(X, y)
