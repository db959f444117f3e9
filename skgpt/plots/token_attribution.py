"""The words of texts, coloured by what they add to the score of a class."""

from html import escape
from itertools import groupby
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
_SPACE = 0.35  # between words of a caption
_SIZE = 11  # points
_MOST_TEXTS = 50  # in one picture
# The scale ends at so many times this quantile of the values' sizes, if one is larger. Of values
# that are spread evenly or fall off exponentially, none is.
_TIMES, _QUANTILE = 3.0, 0.9


class _Word(NamedTuple):
    column: Any
    text: str
    value: float


class _Text(NamedTuple):
    """A text, or one of several labels of it."""

    caption: list[str]
    words: list[_Word]


class TokenAttributionDisplay:
    """Words of texts, coloured by what they add to the score of a class, or to a number.

    Blue words speak for the class, or raise the number; orange ones do the opposite, white ones
    neither. The colours can be told apart with any colour vision. All texts share a scale. It ends
    at three times what nine of ten words stay below, so that one large value doesn't bleach all
    others; the scale then ends in an arrow. It is best made by `from_estimator` or
    `from_predictions`. Of a regressor, a column of y stands in a class's place, by its number, and
    the prediction in that of its score.

    Parameters
    ----------
    frame : pandas.DataFrame
        See the attribute.

    Attributes
    ----------
    frame : pandas.DataFrame
        A row for each word of each text and explained class, in the order of the texts, with the
        columns ``text``, ``class``, ``column``, ``word_start``, ``word``, ``value`` and
        ``baseline`` of the table that `GPTTextClassifier.explain` returns.
    figure_ : matplotlib.figure.Figure
        Of the last `plot`.
    ax_ : matplotlib.axes.Axes
    texts_ : list of matplotlib.text.Text
        The words in `ax_`.

    Examples
    --------
    >>> from skgpt.plots import TokenAttributionDisplay
    >>> TokenAttributionDisplay.from_estimator(clf, ["a late goal", "up 3 %"])  # doctest: +SKIP
    """

    def __init__(self, frame: Any) -> None:
        self.frame = frame

    @classmethod
    def from_estimator(
        cls, estimator: Any, X: Any, *, target: Any = None, output: Any = None, ax: Any = None
    ) -> Self:
        """Explain texts and plot them.

        Parameters
        ----------
        estimator : GPTTextClassifier, GPTTextRegressor or GPTZeroShotClassifier
            Fitted.
        X : str, or array-like of shape (n,) or (n, n_columns)
            A text, or up to 50.
        target : label or array-like, default=None
            Which class to explain, as in `GPTTextClassifier.explain`; None for the predicted one.
        output : int, default=None
            Of a classifier of several outputs, the column of y whose class to explain.
        ax : matplotlib.axes.Axes, default=None
            Where to draw; None for a figure of its own.

        Returns
        -------
        display : TokenAttributionDisplay

        Raises
        ------
        ValueError
            If X is more than 50 texts, or has no word.
        ImportError
            If matplotlib or pandas is not installed.
        """
        X = [X] if isinstance(X, str) else X
        _check_number(len(find_columns(X)))  # before they are explained
        which = {} if output is None else {"output": output}  # classifiers alone have it
        return cls.from_predictions(estimator.explain(X, target=target, **which), ax=ax)

    @classmethod
    def from_predictions(
        cls, table: Any, *, text: Any = None, class_name: Any = None, ax: Any = None
    ) -> Self:
        """Plot texts of a table that `explain` returned.

        Parameters
        ----------
        table : pandas.DataFrame
            What ``explain(X)`` returned.
        text : int or list of int, default=None
            The rows of X to show, up to 50; None for all in the table.
        class_name : object, default=None
            Which class to show; None for all that are explained, each by itself.
        ax : matplotlib.axes.Axes, default=None
            Where to draw; None for a figure of its own.

        Returns
        -------
        display : TokenAttributionDisplay

        Raises
        ------
        ValueError
            If the table is none of `explain`, or has no such text or class, or more than 50 texts.
        ImportError
            If matplotlib is not installed.
        """
        missing = _COLUMNS - set(getattr(table, "columns", ()))
        if missing:
            raise InvalidTextError(
                "`table` must be what estimator.explain(X) returned. Got "
                f"{type(table).__name__} without the columns {', '.join(sorted(missing))}."
            )
        shown = table["text"].unique() if text is None else np.atleast_1d(text)
        _check_number(len(shown))
        rows = table[table["text"].isin(shown)]
        absent = sorted({*shown.tolist()} - {*rows["text"].tolist()})
        if absent or not len(rows):
            raise InvalidTextError(
                f"`table` must hold a word of each text to show. It has none of text={absent}: an "
                "empty text has no words."
            )
        if class_name is not None:
            rows = rows[rows["class"] == class_name]
        if not len(rows):
            raise InvalidTextError(
                f"`class_name` must be a class that is explained of the text. Got {class_name!r}."
            )
        by_word = rows.groupby(
            ["text", "class", "column", "word_start", "word"], sort=False, as_index=False
        )
        frame = by_word.agg({"value": "sum", "baseline": "first"})
        frame.attrs.update(table.attrs)
        return cls(frame).plot(ax)

    def plot(self, ax: Any = None) -> Self:
        """Draw the words in lines that fit the axes.

        Parameters
        ----------
        ax : matplotlib.axes.Axes, default=None
            Where to draw; None for a figure of its own, as high as its lines need. In axes that
            are too small for the texts the letters are smaller.

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
        self._draw_scale()
        self._draw_words(own)
        return self

    def _draw_scale(self) -> None:
        from matplotlib import cm, colors

        shares = np.linspace(-1, 1, 65)
        cmap = colors.LinearSegmentedColormap.from_list(
            "against_for", [tuple(c / 255 for c in _rgb(share)) for share in shares]
        )
        end, beyond = self._end, self._beyond
        bar = self.figure_.colorbar(
            cm.ScalarMappable(colors.Normalize(-end, end), cmap),
            ax=self.ax_,
            orientation="horizontal",
            fraction=0.08,
            aspect=30,
            pad=0.02,
            extend=[["neither", "max"], ["min", "both"]][beyond[0]][beyond[1]],
        )
        low, high = self._words_of_ends
        bar.set_label(f"{low}  ←  what a word adds  →  {high}")

    def _draw_words(self, own: bool) -> None:
        """Write the words in lines; a figure of its own gets their height, else letters shrink."""
        ax, figure, size = self.ax_, self.figure_, _SIZE
        figure.draw_without_rendering()  # so that the axes have the place they will have
        height = ax.get_window_extent().height / figure.dpi
        lines, needed = self._lines(size)
        if own:
            figure.set_figheight(max(1.5, figure.get_figheight() - height + needed))
            figure.draw_without_rendering()
        while not own and needed > height and size > 4:
            size -= 1
            lines, needed = self._lines(size)
        # In letters' heights, as the lines are.
        box = ax.get_window_extent()
        across, down = (side / figure.dpi * 72 / size for side in (box.width, box.height))
        end = self._end
        self.texts_ = []
        for i, line in enumerate(lines):
            for piece, x in line:
                at = (x / across, 1 - (i + 0.5) * _LINE / down)
                style = {"size": size, "va": "center_baseline", "parse_math": False}
                if isinstance(piece, str):
                    ax.text(*at, drawable(piece), **style)
                    continue
                rgb = _rgb(piece.value / end)
                box_style = {
                    "facecolor": [c / 255 for c in rgb],
                    "edgecolor": "none",
                    "boxstyle": "round,pad=0.2,rounding_size=0.2",
                }
                color = "black" if _is_light(rgb) else "white"
                word = ax.text(*at, drawable(piece.text), color=color, bbox=box_style, **style)
                self.texts_.append(word)

    def _lines(self, size: int) -> tuple[list[list[tuple[str | _Word, float]]], float]:
        """Break captions and words into lines, and return the inches needed.

        Each piece comes with where it begins, in heights of letters of so many points.
        """
        across = self.ax_.get_window_extent().width / self.figure_.dpi * 72 / size
        lines: list[list[tuple[str | _Word, float]]] = []
        for text in self._texts:
            lines += [[]] if lines else []  # an empty line before the next text
            for sentence in text.caption:
                lines += _break(sentence.split(" "), across, size, 0.0, _SPACE)
            for _, words in groupby(text.words, lambda word: word.column):
                lines += _break([*words], across, size, _INDENT, _GAP)
        return lines, _LINE * size * len(lines) / 72

    @property
    def _texts(self) -> list[_Text]:
        by_text = self.frame.groupby(["text", "class"], sort=False)
        several = by_text.ngroups > 1
        found = []
        for (number, label), rows in by_text:
            words = zip(rows["column"], rows["word"], rows["value"], strict=True)
            name = f"Text {number}: " if several else ""
            values, baseline = rows["value"].to_numpy(), float(rows["baseline"].iloc[0])
            if self._of_numbers:
                label = f"column {label}" if self.frame["class"].nunique() > 1 else "the number"
            caption = _caption(label, values, baseline, self._of_numbers)
            found.append(
                _Text([f"{name}{caption[0]}", caption[1]], [_Word(*word) for word in words])
            )
        return found

    @property
    def _of_numbers(self) -> bool:
        """Whether a regressor is explained: then ``class`` is a column of y."""
        return bool(self.frame.attrs.get("numbers"))

    @property
    def _words_of_ends(self) -> tuple[str, str]:
        return ("lowers it", "raises it") if self._of_numbers else ("against the class", "for it")

    @property
    def _end(self) -> float:
        """The value that has the strongest colour."""
        sizes = np.abs(self.frame["value"].to_numpy(dtype=float))
        usual = float(np.quantile(sizes, _QUANTILE))
        return min(float(sizes.max()), _TIMES * usual) or float(sizes.max()) or 1.0

    @property
    def _beyond(self) -> tuple[bool, bool]:
        """Whether a value lies below the scale, or above it."""
        values, end = self.frame["value"], self._end
        return bool(values.min() < -end), bool(values.max() > end)

    def _repr_html_(self) -> str:
        """Return the words as HTML, for notebooks."""
        end, beyond = self._end, self._beyond
        parts = []
        for text in self._texts:
            caption = "<br>".join(escape(sentence) for sentence in text.caption)
            columns = groupby(text.words, lambda word: word.column)
            words = "<br>".join(" ".join(_html(word, end) for word in of) for _, of in columns)
            parts.append(
                f'<div style="font-size:0.9em;margin-top:0.7em">{caption}</div><div>{words}</div>'
            )
        low, high = (f"rgb{_rgb(share)}" for share in (-1, 1))
        scale = (
            f"<span>{-end:.2g}{' or less' * beyond[0]}</span> "
            '<span style="display:inline-block;width:10em;'
            "height:0.8em;vertical-align:middle;border:1px solid #888;"
            f'background:linear-gradient(90deg,{low},#fff,{high})"></span> '
            f"<span>{end:+.2g}{' or more' * beyond[1]}</span>"
        )
        lowest, highest = self._words_of_ends
        return (
            '<div style="max-width:50em;line-height:1.9;font-family:sans-serif">'
            f"{''.join(parts)}"
            f'<div style="font-size:0.8em">{lowest} {scale} {highest}</div></div>'
        )


def _check_number(n_texts: int) -> None:
    if n_texts > _MOST_TEXTS:
        raise InvalidTextError(
            f"A display shows up to {_MOST_TEXTS} texts. Got {n_texts}: pass fewer, or the table "
            "of estimator.explain(X) to from_predictions with text=[...]."
        )


def _caption(label: Any, values: Any, baseline: float, of_numbers: bool) -> list[str]:
    """Say what is shown, and how the values make up the score, or a regressor's number."""
    gain, loss = (float(np.abs(values[of]).sum()) for of in (values > 0, values < 0))
    # Rounded before, and no -0.00.
    score, gain, loss, baseline = (
        round(value, 2) + 0.0 for value in (baseline + float(values.sum()), gain, loss, baseline)
    )
    if of_numbers:
        return [
            f"What raises {label} (blue) and lowers it (orange)",
            f"It is {score:.2f}: {baseline:.2f} without the words, plus {gain:.2f} from words that "
            f"raise it, less {loss:.2f} from words that lower it.",
        ]
    return [
        f"What speaks for {label} (blue) and against it (orange)",
        f"Its score is {score:.2f}: {baseline:.2f} without the words, plus {gain:.2f} from words "
        f"for it, less {loss:.2f} from words against it.",
    ]


def _html(word: _Word, end: float) -> str:
    rgb = _rgb(word.value / end)
    style = (
        f"background:rgb{rgb};color:{'#000' if _is_light(rgb) else '#fff'};"
        "padding:0.1em 0.25em;border-radius:0.25em"
    )
    return f'<span title="{word.value:+.3g}" style="{style}">{escape(word.text)}</span>'


def _break(
    pieces: list[Any], across: float, size: int, indent: float, gap: float
) -> list[list[tuple[Any, float]]]:
    """Break words, or a caption's, into lines; each comes with where it begins."""
    lines: list[list[tuple[Any, float]]] = [[]]
    x = indent
    for piece in pieces:
        width = _width(piece if isinstance(piece, str) else piece.text, size)
        if lines[-1] and x + width + 0.2 > across:
            lines.append([])
            x = indent
        lines[-1].append((piece, x))
        x += width + gap
    return lines


def _width(text: str, size: int) -> float:
    """Return the width of a word in heights of letters of so many points."""
    from matplotlib.textpath import TextPath

    # A dollar sign is one, not the beginning of a formula.
    path = TextPath((0, 0), drawable(text).replace("$", r"\$"), size=size)
    return float(path.get_extents().x1) / size if len(path.vertices) else 0.0


def _rgb(share: float) -> tuple[int, int, int]:
    """Return the colour of a value from -1 to 1, and beyond: white is zero."""
    end = _FOR if share > 0 else _AGAINST
    red, green, blue = (round(255 + (c - 255) * min(1.0, abs(share))) for c in end)
    return red, green, blue


def _is_light(rgb: tuple[int, int, int]) -> bool:
    """Say whether black has more contrast on a colour than white, by WCAG 2's luminance."""
    linear = [c / 3294.6 if c <= 10 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in rgb]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2] > 0.179
