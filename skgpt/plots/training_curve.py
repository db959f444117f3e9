"""How a fit went: losses, the score of the held-out rows, the learning rate."""

from collections.abc import Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.pipeline import Pipeline
from sklearn.utils.validation import check_is_fitted

from skgpt.exceptions import InvalidTextError
from skgpt.plots.drawing import BLUE, GREEN, GREY, ORANGE, axes_or_new

_NEEDED = ("epoch", "loss", "learning_rate")
_MARKED = 30  # epochs up to which each has a marker of its own


class TrainingCurveDisplay:
    """Losses, validation score and learning rate of each epoch, one above the other.

    A dotted line marks the best epoch, crosses the epochs in which steps were skipped. The colours
    can be told apart with any colour vision. It is best made by `from_estimator` or
    `from_history`.

    Parameters
    ----------
    history : list of dict
        As in the attribute ``history_`` of a fitted estimator.
    best_iter : int, default=None
        The best epoch, 1 being the first; None marks none.
    score_name : str, default=None
        What the validation score is; None for "validation score".

    Attributes
    ----------
    figure_ : matplotlib.figure.Figure
        Of the last `plot`.
    ax_ : matplotlib.axes.Axes
        With the losses.
    axes_ : list of matplotlib.axes.Axes
        From top to bottom: losses, validation score where there is one that is not the validation
        loss, learning rate.
    lines_ : dict of str to matplotlib.lines.Line2D
        The curves by their name in `history`.

    Examples
    --------
    >>> from skgpt.plots import TrainingCurveDisplay
    >>> TrainingCurveDisplay.from_estimator(clf)  # doctest: +SKIP
    """

    def __init__(
        self, history: Sequence[Any], *, best_iter: int | None = None, score_name: str | None = None
    ) -> None:
        self.history = history
        self.best_iter = best_iter
        self.score_name = score_name

    @classmethod
    def from_estimator(cls, estimator: Any, *, ax: Any = None) -> Self:
        """Plot how a fitted estimator was trained.

        Parameters
        ----------
        estimator : GPTTextClassifier, or Pipeline whose last step is one
            Fitted.
        ax : matplotlib.axes.Axes, default=None
            Where to draw; None for a figure of its own.

        Returns
        -------
        display : TrainingCurveDisplay

        Raises
        ------
        sklearn.exceptions.NotFittedError
            If the estimator is not fitted.
        ValueError
            If it has no ``history_``.
        ImportError
            If matplotlib is not installed.
        """
        while isinstance(estimator, Pipeline):
            estimator = estimator[-1]
        check_is_fitted(estimator)
        if not hasattr(estimator, "history_"):
            raise InvalidTextError(
                "`estimator` must be one of skgpt's or a Pipeline that ends in one, as these have "
                f"a history_. Got {type(estimator).__name__}: pass its best_estimator_ or "
                "estimator_ if there is one inside."
            )
        scoring = getattr(estimator, "scoring", None)
        display = cls(
            estimator.history_,
            best_iter=getattr(estimator, "best_iter_", None) or None,  # 0: no score was a number
            score_name=scoring if isinstance(scoring, str) else None,
        )
        return display.plot(ax)

    @classmethod
    def from_history(
        cls,
        history: Sequence[Any],
        *,
        best_iter: int | None = None,
        score_name: str | None = None,
        ax: Any = None,
    ) -> Self:
        """Plot a history.

        Parameters
        ----------
        history : list of dict
            As in the attribute ``history_`` of a fitted estimator.
        best_iter : int, default=None
            The best epoch; None for the one of the highest ``validation_score`` if there is one.
        score_name : str, default=None
            What the validation score is; None for "validation score".
        ax : matplotlib.axes.Axes, default=None
            Where to draw; None for a figure of its own.

        Returns
        -------
        display : TrainingCurveDisplay

        Raises
        ------
        ValueError
            If the history is empty or no history.
        ImportError
            If matplotlib is not installed.
        """
        _check_history(history)
        scores = _values(history, "validation_score")
        if best_iter is None and np.isfinite(scores).any():
            best_iter = int(history[int(np.nanargmax(scores))]["epoch"])
        return cls(history, best_iter=best_iter, score_name=score_name).plot(ax)

    def plot(self, ax: Any = None) -> Self:
        """Draw the curves.

        Parameters
        ----------
        ax : matplotlib.axes.Axes, default=None
            Whose place is shared out among the panels, the losses staying in it; None for a figure
            of its own.

        Returns
        -------
        display : TrainingCurveDisplay

        Raises
        ------
        ValueError
            If the history is empty or no history.
        ImportError
            If matplotlib is not installed.
        """
        _check_history(self.history)
        heights = [3.0, 2.0, 1.2] if self._has_score else [3.0, 1.2]
        ax = axes_or_new(ax, 6.4, 1.6 + 0.8 * sum(heights))
        self.ax_, self.figure_ = ax, ax.figure
        self.axes_ = _stacked(ax, heights)
        self.lines_: dict[str, Any] = {}
        self._draw(ax, "loss", "training", BLUE, "o-")
        if np.isfinite(_values(self.history, "validation_loss")).any():
            self._draw(ax, "validation_loss", "validation", ORANGE, "s--")
        ax.set_ylabel("loss")
        if self._has_score:
            label = (self.score_name or "validation score").replace("_", " ")
            self._draw(self.axes_[1], "validation_score", label, GREEN, "^-")
            self.axes_[1].set_ylabel(label.replace(" ", "\n"))
        rates = self.axes_[-1]
        self._draw(rates, "learning_rate", "learning rate", "black", ".-")
        rates.set_ylabel("learning\nrate")
        rates.yaxis.set_major_formatter("{x:.2g}")  # 5e-05; an exponent on top would be in the way
        rates.set_ylim(bottom=0)
        self._mark()
        self._finish()
        return self

    @property
    def _has_score(self) -> bool:
        """Whether there is a score that says something else than the validation loss."""
        score = _values(self.history, "validation_score")
        minus_loss = -_values(self.history, "validation_loss")
        return bool(np.isfinite(score).any()) and not np.array_equal(score, minus_loss, True)

    def _draw(self, ax: Any, name: str, label: str, color: str, style: str) -> None:
        epochs, values = _values(self.history, "epoch"), _values(self.history, name)
        marker = style[0] if len(epochs) <= _MARKED else None
        options = {"marker": marker, "markersize": 5, "color": color, "label": label}
        (self.lines_[name],) = ax.plot(epochs, values, style[1:], **options)

    def _mark(self) -> None:
        """Mark the best epoch in every panel, and skipped steps beside the loss."""
        if self.best_iter is not None:
            for panel in self.axes_:
                label = f"best epoch ({self.best_iter})" if panel is self.ax_ else None
                panel.axvline(self.best_iter, color=GREY, linestyle=":", zorder=0, label=label)
        skipped = np.nan_to_num(_values(self.history, "skipped_steps"))
        if skipped.any():
            where = skipped > 0
            n = int(skipped.sum())
            self.ax_.plot(
                _values(self.history, "epoch")[where],
                np.full(int(where.sum()), 0.04),  # of the height: the loss may be missing there
                "x",
                color="black",
                transform=self.ax_.get_xaxis_transform(),
                label=f"{n} step{'s' * (n != 1)} skipped",
            )

    def _finish(self) -> None:
        from matplotlib.ticker import MaxNLocator

        epochs = _values(self.history, "epoch")
        room = 0.5 if len(epochs) == 1 else 0.03 * np.ptp(epochs)
        for panel in self.axes_:
            panel.set_xlim(epochs.min() - room, epochs.max() + room)
            panel.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
            panel.grid(alpha=0.3)
            panel.tick_params(labelbottom=panel is self.axes_[-1])
        self.axes_[-1].set_xlabel("epoch")
        # Above, as small axes have no place that is free of curves.
        above = {"loc": "lower left", "bbox_to_anchor": (0, 1), "borderaxespad": 0.2}
        self.ax_.legend(**above, ncols=2, frameon=False)
        self.figure_.align_ylabels(self.axes_)


def _check_history(history: Sequence[Any]) -> None:
    if not len(history):
        raise InvalidTextError(
            "`history` must hold a record per epoch. Got an empty one: not one epoch was ended."
        )
    for i, record in enumerate(history):
        missing = [name for name in _NEEDED if name not in record]
        if missing:
            raise InvalidTextError(
                "`history` must be a list of dicts like the history_ of a fitted estimator. "
                f"Entry {i} has no {', '.join(missing)}."
            )


def _values(history: Sequence[Any], name: str) -> NDArray[np.float64]:
    """Return a value of every epoch; NaN where there is none."""
    return np.array([record.get(name, np.nan) for record in history], dtype=np.float64)


def _stacked(ax: Any, heights: list[float]) -> list[Any]:
    """Share the place of axes out among panels one above the other; the first stays in `ax`."""
    spec, shares = ax.get_subplotspec(), {"height_ratios": heights, "hspace": 0.1}
    if spec is not None:
        cells = spec.subgridspec(len(heights), 1, **shares)
    else:  # axes that are in no grid, with room for the legend above
        place = ax.get_position()
        sides = {"left": place.x0, "right": place.x1, "bottom": place.y0}
        top = place.y1 - 0.1 * place.height
        cells = ax.figure.add_gridspec(len(heights), 1, **sides, top=top, **shares)
    ax.set_subplotspec(cells[0])
    return [ax, *(ax.figure.add_subplot(cells[i], sharex=ax) for i in range(1, len(heights)))]
