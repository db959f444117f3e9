"""What watches a fit: the word about one that takes very long."""

import warnings

import pytest

from skgpt.exceptions import SlowFitWarning
from skgpt.training.callbacks import SlowFitNotice, StepDone
from tests.training.test_config import make_config


class Clock:
    """Seconds that pass only when told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def run(notice: SlowFitNotice, clock: Clock, n_steps: int, seconds_per_step: float) -> None:
    plan = make_config(n_rows=n_steps * 8, batch_size=8, n_epochs=1)
    notice.on_train_begin(plan)
    for step in range(1, n_steps + 1):
        clock.now += seconds_per_step
        notice.on_step(StepDone(step, 1, 100, lambda: 0.5))


def test_slow_fit_notice__over_ten_minutes__warns_once_with_advice() -> None:
    clock = Clock()
    with pytest.warns(SlowFitWarning, match=r"about 20 minutes.*fewer layers") as caught:
        run(SlowFitNotice("keep fewer layers", clock), clock, n_steps=600, seconds_per_step=2.0)
    assert len(caught) == 1


def test_slow_fit_notice__under_ten_minutes__is_silent() -> None:
    clock = Clock()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(SlowFitNotice("", clock), clock, n_steps=280, seconds_per_step=2.0)


def test_slow_fit_notice__one_slow_first_step__is_no_reason() -> None:
    clock = Clock()
    notice = SlowFitNotice("", clock)
    clock.now += 60.0  # whatever the first step has to warm up
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(notice, clock, n_steps=100, seconds_per_step=1.0)


def test_slow_fit_notice__frozen_layers_alone__are_enough() -> None:
    clock = Clock()
    notice = SlowFitNotice("cut texts shorter", clock)
    clock.now = 30.0
    with pytest.warns(SlowFitWarning, match="at least 50 minutes"):
        notice.on_progress(100, 10_000)


def test_slow_fit_notice__frozen_layers_done__estimates_nothing_from_them() -> None:
    clock = Clock()
    notice = SlowFitNotice("x", clock)
    clock.now = 30.0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        notice.on_progress(10_000, 10_000)  # done: nothing left to estimate
