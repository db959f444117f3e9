"""The words of a text, coloured by what they add to the score of its class."""

from collections.abc import Sequence
from html import escape
from typing import Any, NamedTuple, Self

import numpy as np

from skgpt.data.inputs import find_columns
from skgpt.exceptions import InvalidTextError
from skgpt.plots.drawing import axes_or_new, drawable

# Dark orange, white, dark blue: ColorBrewer's PuOr is told apart with any colour vision, this is
# its like with more contrast; white is zero.
_AGAINST, _FOR = (179, 88, 6), (5, 97, 160)
_COLUMNS = {"text", "class", "column", "word_start", "word", "value", "baseline"}
_LINE, _INDENT, _GAP = 1.75, 0.3, 0.7  # in letters' heights: line to line, before, between words
_SIZE = 11  # points


class _Word(NamedTuple):
    column: Any
    text: str
    value: float


class TokenAttributionDisplay:
    """Words of one text, coloured by what they add to the score of a class.

    Blue words speak for the class, orange ones against it, white ones neither. The colours can be
    told apart with any colour vision. It is best made by `from_estimator` or `from_predictions`.

    Parameters
    ----------
    words : list of str
        In the order of the text.
    values : array-like of shape (n_words,)
        What each word adds.
    columns : list of (str or int), default=None
        The column of X that each word is of; None for a single one.
    class_name : object, default=None
        The class.
    baseline : float, default=None
        The score without the words.

    Attributes
    ----------
    figure_ : matplotlib.figure.Figure
        Of the last `plot`.
    ax_ : matplotlib.axes.Axes
    texts_ : list of matplotlib.text.Text
        The words in `ax_`.

    Examples
    --------
    >>> from skgpt.plots import TokenAttributionDisplay
    >>> TokenAttributionDisplay.from_estimator(clf, "a late goal")  # doctest: +SKIP
    """

    def __init__(
        self,
        words: Sequence[str],
        values: Any,
        *,
        columns: Sequence[Any] | None = None,
        class_name: Any = None,
        baseline: float | None = None,
    ) -> None:
        self.words = words
        self.values = values
        self.columns = columns
        self.class_name = class_name
        self.baseline = baseline

    @classmethod
    def from_estimator(
        cls, estimator: Any, X: Any, *, class_name: Any = None, ax: Any = None
    ) -> Self:
        """Explain one text and plot it.

        Parameters
        ----------
        estimator : GPTTextClassifier
            Fitted.
        X : str, or array-like of shape (1,) or (1, n_columns)
            The text.
        class_name : object, default=None
            Which label to show of a multilabel classifier; None for the one of the highest score.
        ax : matplotlib.axes.Axes, default=None
            Where to draw; None for a figure of its own.

        Returns
        -------
        display : TokenAttributionDisplay

        Raises
        ------
        ValueError
            If X is more than one text, or has no word.
        ImportError
            If matplotlib or pandas is not installed.
        """
        X = [X] if isinstance(X, str) else X
        n_texts = len(find_columns(X))
        if n_texts > 1:  # before they are explained
            raise InvalidTextError(
                f"A display shows one text. Got {n_texts}: pass one, or the table of "
                "estimator.explain(X) to from_predictions with text=i."
            )
        table = estimator.explain(X)
        return cls.from_predictions(table, class_name=class_name, ax=ax)

    @classmethod
    def from_predictions(
        cls, table: Any, *, text: int | None = None, class_name: Any = None, ax: Any = None
    ) -> Self:
        """Plot one text of a table that `explain` returned.

        Parameters
        ----------
        table : pandas.DataFrame
            What ``explain(X)`` returned.
        text : int, default=None
            The row of X; None for the first in the table.
        class_name : object, default=None
            Which label to show where there are several; None for the one of the highest score.
        ax : matplotlib.axes.Axes, default=None
            Where to draw; None for a figure of its own.

        Returns
        -------
        display : TokenAttributionDisplay

        Raises
        ------
        ValueError
            If the table is none of `explain`, or has no such text or class.
        ImportError
            If matplotlib is not installed.
        """
        missing = _COLUMNS - set(getattr(table, "columns", ()))
        if missing:
            raise InvalidTextError(
                "`table` must be what estimator.explain(X) returned. Got "
                f"{type(table).__name__} without the columns {', '.join(sorted(missing))}."
            )
        if len(table) and text is None:
            text = table["text"].iloc[0]
        rows = table[table["text"] == text]
        if not len(rows):
            raise InvalidTextError(
                f"`table` must hold a word of the text to show. It has none of text={text}: an "
                "empty text has no words."
            )
        if class_name is None:
            each = rows.groupby("class", sort=False)
            scores = each["value"].sum() + each["baseline"].first()
            class_name = scores.idxmax()
        rows = rows[rows["class"] == class_name]
        if not len(rows):
            raise InvalidTextError(
                f"`class_name` must be a class that is explained of the text. Got {class_name!r}."
            )
        by_word = rows.groupby(["column", "word_start", "word"], sort=False)["value"].sum()
        columns, _, words = zip(*by_word.index, strict=True)
        display = cls(
            list(words),
            by_word.to_numpy(),
            columns=list(columns),
            class_name=class_name,
            baseline=float(rows["baseline"].iloc[0]),
        )
        return display.plot(ax)

    def plot(self, ax: Any = None) -> Self:
        """Draw the words in lines that fit the axes.

        Parameters
        ----------
        ax : matplotlib.axes.Axes, default=None
            Where to draw; None for a figure of its own, as high as its lines need. In axes that
            are too small for the text the letters are smaller.

        Returns
        -------
        display : TokenAttributionDisplay

        Raises
        ------
        ImportError
            If matplotlib is not installed.
        """
        own = ax is None
        self.ax_ = ax = axes_or_new(ax, 8, 3)
        self.figure_ = ax.figure
        ax.set_axis_off()
        ax.set(xlim=(0, 1), ylim=(0, 1))
        ax.set_title(self._title(), fontsize=_SIZE, loc="left")
        self._draw_scale()
        self._draw_words(own)
        return self

    def _draw_scale(self) -> None:
        from matplotlib import cm, colors

        cmap = colors.LinearSegmentedColormap.from_list(
            "against_for", [tuple(c / 255 for c in _rgb(share)) for share in np.linspace(-1, 1, 65)]
        )
        bar = self.figure_.colorbar(
            cm.ScalarMappable(colors.Normalize(-self._largest, self._largest), cmap),
            ax=self.ax_,
            orientation="horizontal",
            fraction=0.08,
            aspect=30,
            pad=0.02,
        )
        bar.set_label("against the class  ←  what a word adds to the score  →  for it")

    def _draw_words(self, own: bool) -> None:
        """Write the words in lines; a figure of its own gets their height, else letters shrink."""
        ax, figure, size = self.ax_, self.figure_, _SIZE
        figure.draw_without_rendering()  # so that the axes have the place they will have
        height = ax.get_window_extent().height / figure.dpi
        lines, needed = self._lines(size)
        if own:
            figure.set_figheight(max(2.0, figure.get_figheight() - height + needed))
            figure.draw_without_rendering()
        while not own and needed > height and size > 4:
            size -= 1
            lines, needed = self._lines(size)
        # In letters' heights, as the lines are.
        box = ax.get_window_extent()
        across, down = (side / figure.dpi * 72 / size for side in (box.width, box.height))
        self.texts_ = []
        for i, line in enumerate(lines):
            for word, x in line:
                rgb = _rgb(word.value / self._largest)
                text = ax.text(
                    x / across,
                    1 - (i + 0.5) * _LINE / down,
                    drawable(word.text),
                    size=size,
                    color="black" if _is_light(rgb) else "white",
                    va="center_baseline",
                    parse_math=False,
                    bbox={
                        "facecolor": [c / 255 for c in rgb],
                        "edgecolor": "none",
                        "boxstyle": "round,pad=0.2,rounding_size=0.2",
                    },
                )
                self.texts_.append(text)

    def _lines(self, size: int) -> tuple[list[list[tuple[_Word, float]]], float]:
        """Break the words into lines, a new one for each column, and return the inches needed.

        Each word comes with where it begins, in heights of letters of so many points.
        """
        across = self.ax_.get_window_extent().width / self.figure_.dpi * 72 / size
        lines: list[list[tuple[_Word, float]]] = [[]]
        x, before = _INDENT, None
        for word in self._words:
            width = _width(word.text, size)
            if lines[-1] and (x + width + 0.2 > across or word.column != before):
                lines.append([])
                x = _INDENT
            lines[-1].append((word, x))
            x += width + _GAP
            before = word.column
        return lines, _LINE * size * len(lines) / 72

    @property
    def _words(self) -> list[_Word]:
        columns = self.columns if self.columns is not None else [0] * len(self.words)
        values = np.asarray(self.values, dtype=float).tolist()
        return [_Word(*word) for word in zip(columns, self.words, values, strict=True)]

    @property
    def _largest(self) -> float:
        return float(np.abs(np.asarray(self.values, dtype=float)).max(initial=0.0)) or 1.0

    def _title(self) -> str:
        said = "" if self.class_name is None else f"Words for and against {self.class_name}"
        if self.baseline is None:
            return said
        score = self.baseline + float(np.sum(self.values))
        # Rounded before, and no -0.00.
        score, baseline = (round(float(value), 2) + 0.0 for value in (score, self.baseline))
        return f"{said}\nscore {score:.2f}, without words {baseline:.2f}".lstrip()

    def _repr_html_(self) -> str:
        """Return the words as HTML, for notebooks."""
        parts, before = [], None
        for word in self._words:
            if before is not None and word.column != before:
                parts.append("<br>")
            before = word.column
            rgb = _rgb(word.value / self._largest)
            style = (
                f"background:rgb{rgb};color:{'#000' if _is_light(rgb) else '#fff'};"
                "padding:0.1em 0.25em;border-radius:0.25em"
            )
            said = f'<span title="{word.value:+.3g}" style="{style}">{escape(word.text)}</span>'
            parts.append(said)
        low, high = (f"rgb{_rgb(share)}" for share in (-1, 1))
        scale = (
            f'<span>{-self._largest:.2g}</span> <span style="display:inline-block;width:10em;'
            "height:0.8em;vertical-align:middle;border:1px solid #888;"
            f'background:linear-gradient(90deg,{low},#fff,{high})"></span> '
            f"<span>{self._largest:+.2g}</span>"
        )
        return (
            '<div style="max-width:50em;line-height:1.9;font-family:sans-serif">'
            f'<div style="font-size:0.9em">{escape(self._title()).replace(chr(10), "<br>")}</div>'
            f"<div>{' '.join(parts)}</div>"
            f'<div style="font-size:0.8em">against {scale} for</div></div>'
        )


def _width(text: str, size: int) -> float:
    """Return the width of a word in heights of letters of so many points."""
    from matplotlib.textpath import TextPath

    # A dollar sign is one, not the beginning of a formula.
    path = TextPath((0, 0), drawable(text).replace("$", r"\$"), size=size)
    return float(path.get_extents().x1) / size if len(path.vertices) else 0.0


def _rgb(share: float) -> tuple[int, int, int]:
    """Return the colour of a value from -1 to 1: white is zero."""
    end = _FOR if share > 0 else _AGAINST
    red, green, blue = (round(255 + (c - 255) * min(1.0, abs(share))) for c in end)
    return red, green, blue


def _is_light(rgb: tuple[int, int, int]) -> bool:
    """Say whether black has more contrast on a colour than white, by WCAG 2's luminance."""
    linear = [c / 3294.6 if c <= 10 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in rgb]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2] > 0.179
