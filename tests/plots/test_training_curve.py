"""The display of a fit: what is in its history is what is drawn, whatever the fit was like."""

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from matplotlib import pyplot as plt
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer

from skgpt import GPTTextClassifier
from skgpt.plots import TrainingCurveDisplay
from tests.helpers import make_text_data

DATA = make_text_data(n_classes=2, n_per_class=8)


def record(epoch: int, **more: float) -> dict[str, Any]:
    return {"epoch": epoch, "loss": 1 / epoch, "learning_rate": 0.1, "skipped_steps": 0, **more}


def held_out(epoch: int, score: float) -> dict[str, Any]:
    return record(epoch, validation_loss=0.5, validation_score=score)


def names(display: TrainingCurveDisplay) -> list[str]:
    return [text.get_text() for text in display.ax_.get_legend().get_texts()]


def test_from_estimator__early_stopping__curves_are_the_history(tiny_llama: str) -> None:
    clf = GPTTextClassifier(
        tiny_llama, max_epochs=3, early_stopping=True, validation_fraction=0.25, random_state=0
    )
    clf.set_params(scoring="balanced_accuracy").fit(DATA.X, DATA.y)
    pipe = make_pipeline(FunctionTransformer(), clf)
    display = TrainingCurveDisplay.from_estimator(pipe)
    assert len(display.axes_) == 3
    assert display.axes_[1].get_ylabel() == "balanced\naccuracy"
    curves = ("loss", "validation_loss", "validation_score", "learning_rate")
    assert set(display.lines_) == set(curves)
    for name, line in display.lines_.items():
        assert line.get_xdata().tolist() == [*range(1, clf.n_iter_ + 1)]
        assert line.get_ydata().tolist() == [entry[name] for entry in clf.history_]
    assert f"best epoch ({clf.best_iter_})" in names(display)


def test_from_estimator__nothing_held_out__one_curve_and_no_best(tiny_llama: str) -> None:
    clf = GPTTextClassifier(tiny_llama, random_state=0)
    clf.partial_fit(DATA.X, DATA.y, classes=["money", "sport"]).partial_fit(DATA.X, DATA.y)
    display = TrainingCurveDisplay.from_estimator(clf)
    assert set(display.lines_) == {"loss", "learning_rate"}
    assert names(display) == ["training"]
    assert display.lines_["loss"].get_xdata().tolist() == [1, 2]


def test_from_history__score_that_is_minus_the_loss__has_no_panel() -> None:
    history = [record(i, validation_loss=1 / i, validation_score=-1 / i) for i in (1, 2)]
    display = TrainingCurveDisplay.from_history(history)
    assert len(display.axes_) == 2
    assert "best epoch (2)" in names(display)


def test_from_history__equal_scores__the_first_is_best() -> None:
    history = [held_out(1, 0.5), held_out(2, 0.9), held_out(3, 0.9), record(4)]
    display = TrainingCurveDisplay.from_history(history)
    assert display.best_iter == 2
    assert np.isnan(display.lines_["validation_score"].get_ydata()[3])


def test_plot__skipped_steps_and_no_loss__says_how_many() -> None:
    history = [record(1), {**record(2), "loss": np.nan, "skipped_steps": 3}]
    display = TrainingCurveDisplay.from_history(history)
    display.figure_.draw_without_rendering()
    assert "3 steps skipped" in names(display)


@pytest.mark.parametrize("n_epochs", [1, 2, 100])
def test_plot__any_number_of_epochs__ticks_are_epochs(n_epochs: int) -> None:
    history = [held_out(i, 0.5) for i in range(1, n_epochs + 1)]
    display = TrainingCurveDisplay.from_history(history)
    display.figure_.draw_without_rendering()
    low, high = display.ax_.get_xlim()
    ticks = [tick for tick in display.ax_.get_xticks() if low <= tick <= high]
    assert ticks and all(tick == round(tick) for tick in ticks)


@pytest.mark.parametrize("in_grid", [True, False])
def test_plot__given_axes__panels_stay_in_their_place(in_grid: bool) -> None:
    figure = plt.figure()
    ax = figure.subplots(1, 2)[1] if in_grid else figure.add_axes((0.2, 0.2, 0.6, 0.6))
    before = ax.get_position()
    display = TrainingCurveDisplay.from_history([held_out(1, 0.5), held_out(2, 0.7)], ax=ax)
    assert display.ax_ is ax and display.figure_ is figure
    places = [panel.get_position() for panel in display.axes_]
    assert all(place.x0 == pytest.approx(before.x0) for place in places)
    assert all(place.y1 <= before.y1 + 1e-9 for place in places)
    assert places[-1].y0 == pytest.approx(before.y0)
    assert all(a.y0 > b.y1 for a, b in pairwise(places))


def test_display__what_it_cannot_show__is_refused() -> None:
    with pytest.raises(NotFittedError):
        TrainingCurveDisplay.from_estimator(GPTTextClassifier())
    with pytest.raises(ValueError, match="Got LogisticRegression"):
        TrainingCurveDisplay.from_estimator(LogisticRegression().fit([[0], [1]], [0, 1]))
    with pytest.raises(ValueError, match="empty"):
        TrainingCurveDisplay.from_history([])
    with pytest.raises(ValueError, match="Entry 1 has no loss, learning_rate"):
        TrainingCurveDisplay([record(1), {"epoch": 2}]).plot()
