"""The rows that a classifier is most wrong about: where the model errs, or the label."""

from html import escape
from textwrap import wrap
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from skgpt.data.inputs import as_known_container, find_columns
from skgpt.data.targets import Target, as_numpy, encode_target, has_columns, missing_rows
from skgpt.data.tokenization import clean
from skgpt.exceptions import InvalidTextError, import_optional
from skgpt.plots.drawing import BLUE, GREY, ORANGE, axes_or_new, drawable

_COLUMNS = ("row", "true", "predicted", "confidence", "margin")
_TEXT_WIDTH, _NAME_WIDTH = 48, 28  # letters in the picture; the frame has all of them
_ROW_HEIGHT = 0.5  # inches


class ErrorTableDisplay:
    """The rows that a classifier is most wrong about, the worst first.

    Where the model is sure and wrong, the label is often the one that is wrong. A row is an error
    if the class of the highest probability is not the true one; of multilabel y, each label of each
    row whose probability is on the wrong side of one half. It is best made by `from_estimator` or
    `from_predictions`.

    Parameters
    ----------
    frame : pandas.DataFrame
        See the attribute.
    n_errors : int, default=None
        How many there are in all.
    n_predictions : int, default=None
        Out of how many.

    Attributes
    ----------
    frame : pandas.DataFrame
        A row for each error. Its columns:

        - ``row``: the row of X, from 0.
        - ``label``: only for multilabel y, the label; ``true`` and ``predicted`` are then 1 where
          the text has it and 0 where not.
        - ``true``, ``predicted``: the classes.
        - ``confidence``: the probability of what is predicted.
        - ``margin``: the probability of what is true less that of what is predicted; -1 is as
          wrong as can be. Rows are sorted by it, those of equal margin by ``row``.
        - ``text``: the text, columns joined by " | "; only if X is known.
    figure_ : matplotlib.figure.Figure
        Of the last `plot`.
    ax_ : matplotlib.axes.Axes

    Examples
    --------
    >>> from skgpt.plots import ErrorTableDisplay
    >>> ErrorTableDisplay.from_estimator(clf, X_test, y_test).frame  # doctest: +SKIP
    """

    def __init__(
        self, frame: Any, *, n_errors: int | None = None, n_predictions: int | None = None
    ) -> None:
        self.frame = frame
        self.n_errors = n_errors
        self.n_predictions = n_predictions

    @classmethod
    def from_estimator(
        cls, estimator: Any, X: Any, y: Any, *, n_rows: int = 10, ax: Any = None
    ) -> Self:
        """Predict texts and plot those that the estimator is most wrong about.

        Parameters
        ----------
        estimator : classifier of texts, or Pipeline that ends in one
            Fitted, with `predict_proba`.
        X : array-like of shape (n,) or (n, n_columns)
            Texts. Best such that it wasn't trained on. What a Pipeline takes besides texts is shown
            as it prints, and not at all where it is missing.
        y : array-like of shape (n,) or (n, n_labels)
            What is true of them.
        n_rows : int, default=10
            How many errors to show at most.
        ax : matplotlib.axes.Axes, default=None
            Where to draw; None for a figure of its own, as high as its rows need.

        Returns
        -------
        display : ErrorTableDisplay

        Raises
        ------
        ValueError
            If X, y or `n_rows` is not as described, or the estimator has no `predict_proba`.
        ImportError
            If matplotlib or pandas is not installed.
        """
        _check_n_rows(n_rows)
        if not hasattr(estimator, "predict_proba"):
            raise InvalidTextError(
                "`estimator` must be a classifier with predict_proba. Got "
                f"{type(estimator).__name__}: CalibratedClassifierCV gives one to any classifier."
            )
        X = as_known_container(X)
        texts = _texts_of_pipeline(X)  # before a prediction that may take long
        prob = estimator.predict_proba(X)
        return cls.from_predictions(
            y, prob, X=texts, classes=estimator.classes_, n_rows=n_rows, ax=ax
        )

    @classmethod
    def from_predictions(
        cls,
        y_true: Any,
        y_prob: Any,
        *,
        X: Any = None,
        classes: Any = None,
        n_rows: int = 10,
        ax: Any = None,
    ) -> Self:
        """Plot the errors among predicted probabilities.

        Parameters
        ----------
        y_true : array-like of shape (n,) or (n, n_labels)
            Labels, or an indicator matrix.
        y_prob : array-like of shape (n, n_classes), or (n,) for two classes
            What `predict_proba` gave; 1-D, the probability of the second class.
        X : array-like of shape (n,) or (n, n_columns), default=None
            The texts; None shows row numbers.
        classes : array-like of shape (n_classes,), default=None
            The class of each column of `y_prob`, or the name of each label of an indicator. None
            for the sorted labels of `y_true`, or the columns' numbers.
        n_rows : int, default=10
            How many errors to show at most.
        ax : matplotlib.axes.Axes, default=None
            Where to draw; None for a figure of its own, as high as its rows need.

        Returns
        -------
        display : ErrorTableDisplay

        Raises
        ------
        ValueError
            If something is not as described.
        ImportError
            If matplotlib or pandas is not installed.
        """
        _check_n_rows(n_rows)
        pandas = import_optional("pandas", "A table of errors")
        prob = _check_prob(y_prob)
        names = None if classes is None else np.asarray(classes)
        is_sets = y_true is not None and np.ndim(y_true) == 2 and has_columns(y_true)
        known = None if is_sets else names
        target = encode_target(y_true, len(prob), name=cls.__name__, classes=known, what="y_true")
        names = target.classes if names is None else names
        if prob.shape[1] != target.width or len(names) != target.width:
            raise InvalidTextError(
                f"`y_prob` must have a column for each of {target.width} classes. Got "
                f"{prob.shape[1]} columns and {len(names)} classes: pass `classes`, the classes "
                "of the columns."
            )
        found = pandas.DataFrame(_errors(target, prob, names))
        worst = found.sort_values("margin", kind="stable").head(n_rows).reset_index(drop=True)
        if X is not None:
            texts = _texts(X)
            if len(texts) != len(prob):
                raise InvalidTextError(
                    f"X must have a row for each of `y_prob`. Found {len(texts)} and {len(prob)}."
                )
            worst["text"] = np.array([texts[row] for row in worst["row"]], dtype=object)
        display = cls(worst, n_errors=len(found), n_predictions=target.codes.size)
        return display.plot(ax)

    def plot(self, ax: Any = None) -> Self:
        """Draw the errors: how probable what is true and what is predicted is, for each row.

        Long texts and names are cut in the picture, not in `frame`.

        Parameters
        ----------
        ax : matplotlib.axes.Axes, default=None
            Where to draw; None for a figure of its own, as high as its rows need.

        Returns
        -------
        display : ErrorTableDisplay

        Raises
        ------
        ValueError
            If `frame` lacks a column.
        ImportError
            If matplotlib is not installed.
        """
        missing = [name for name in _COLUMNS if name not in self.frame.columns]
        if missing:
            raise InvalidTextError(
                f"`frame` must have the columns {', '.join(_COLUMNS)}. It lacks "
                f"{', '.join(missing)}: make the display by from_estimator or from_predictions."
            )
        n = len(self.frame)
        ax = axes_or_new(ax, 10.5, 1.5 + _ROW_HEIGHT * max(n, 1))
        self.ax_, self.figure_ = ax, ax.figure
        ax.set_title(self._title(), loc="left")
        if not n:
            ax.set_axis_off()
            return self
        at = np.arange(n)
        confidence = self.frame["confidence"].to_numpy()
        truth = confidence + self.frame["margin"].to_numpy()
        ax.hlines(at, truth, confidence, color=GREY, linewidth=1.5, alpha=0.6, zorder=1)
        ax.scatter(truth, at, marker="o", s=45, color=BLUE, clip_on=False)
        ax.scatter(confidence, at, marker="D", s=40, color=ORANGE, clip_on=False)
        ax.set(xlim=(0, 1), ylim=(n - 0.5, -0.5), xlabel="probability")
        ax.set_yticks(at, self._row_labels(), parse_math=False, ha="right")
        ax.grid(axis="x", alpha=0.3)
        ax.tick_params(axis="y", length=0)
        ax.spines[["top", "right", "left"]].set_visible(False)
        self._name_classes()
        return self

    def _title(self) -> str:
        if self.n_errors is None or self.n_predictions is None:
            return ""
        said = f"{self.n_errors:,} error{'s' * (self.n_errors != 1)}"
        if not self.n_errors:
            said = "No error"
        elif len(self.frame) < self.n_errors:
            said = f"The worst {len(self.frame)} of {said}"
        return f"{said} in {self.n_predictions:,} predictions"

    def _row_labels(self) -> list[str]:
        if "text" not in self.frame.columns:
            return [f"row {row}" for row in self.frame["row"]]
        labels = []
        for row, text in zip(self.frame["row"], self.frame["text"], strict=True):
            label = f"{row}: {drawable(' '.join(text.split())) or '(empty)'}"
            labels.append("\n".join(wrap(label, _TEXT_WIDTH, max_lines=2, placeholder=" …")))
        return labels

    def _name_classes(self) -> None:
        """Write the predicted and the true class beside each row, marked as the dots are."""
        labels = self.frame.get("label", [None] * len(self.frame))
        for name, mark, color, up in (("predicted", "◆", ORANGE, 8), ("true", "●", BLUE, -8)):
            self._beside(1, 14 + up, f"{mark} {name}", color, "axes fraction")  # as a legend
            for y, (label, value) in enumerate(zip(labels, self.frame[name], strict=True)):
                said = str(value) if label is None else f"{label}" if value else f"not {label}"
                self._beside(y, up, f"{mark} {_shorten(drawable(said))}", color, "data")

    def _beside(self, y: float, up: int, said: str, color: str, coordinates: str) -> None:
        self.ax_.annotate(
            said,
            (1, y),
            xycoords=("axes fraction", coordinates),
            xytext=(14, up),
            textcoords="offset points",
            va="center",
            fontsize="small",
            color=color,
            annotation_clip=False,
            parse_math=False,
        )

    def _repr_html_(self) -> str:
        """Return the table as HTML, for notebooks."""
        names = list(self.frame.columns)
        left = 'style="text-align:left"'
        head = "".join(f"<th {left}>{escape(str(name))}</th>" for name in names)
        rows = []
        for values in self.frame.itertuples(index=False):
            cells = (f"{v:.3f}" if isinstance(v, float) else str(v) for v in values)
            row = "".join(f"<td {left}>{escape(clean(cell))}</td>" for cell in cells)
            rows.append(f"<tr>{row}</tr>")
        return (
            f"<div><div>{escape(self._title())}</div><table><thead><tr>{head}</tr></thead>"
            f"<tbody>{''.join(rows)}</tbody></table></div>"
        )


def _shorten(name: str) -> str:
    """Leave out the middle of a long name: names may differ at their ends."""
    half = _NAME_WIDTH // 2
    return name if len(name) <= _NAME_WIDTH else f"{name[:half]}…{name[1 - half :]}"


def _errors(target: Target, prob_NK: NDArray[np.float64], names: NDArray[Any]) -> dict[str, Any]:
    """Return the columns of the frame, an entry for each error in the order of the rows."""
    true: NDArray[Any]
    if target.is_multilabel:
        rows, labels = np.nonzero((prob_NK > 0.5) != (target.codes > 0))
        true = target.codes[rows, labels].astype(np.int64)
        of_label = prob_NK[rows, labels]
        confidence = np.where(true == 1, 1 - of_label, of_label)
        what = {"label": names[labels], "true": true, "predicted": 1 - true}
        margin = 1 - 2 * confidence
    else:
        predicted_N = prob_NK.argmax(axis=1)
        rows = np.flatnonzero(predicted_N != target.codes)
        true, predicted = target.codes[rows], predicted_N[rows]
        confidence = prob_NK[rows, predicted]
        what = {"true": names[true], "predicted": names[predicted]}
        margin = prob_NK[rows, true] - confidence
    return {"row": rows, **what, "confidence": confidence, "margin": margin}


def _check_prob(y_prob: Any) -> NDArray[np.float64]:
    """Check probabilities; return them with a column for each class."""
    if isinstance(y_prob, list) and y_prob and np.ndim(y_prob[0]) == 2:
        raise InvalidTextError(
            "`y_prob` must be an array of shape (n, n_labels). Got a list of arrays: of several "
            "outputs show one, from_predictions(y[:, j], y_prob[j], classes=classes_[j]); of "
            "labels, np.column_stack([p[:, 1] for p in y_prob]) makes an array."
        )
    try:
        prob = np.asarray(y_prob, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InvalidTextError(
            f"`y_prob` must hold probabilities, as predict_proba gives them. ({error})"
        ) from error
    if prob.ndim == 1:
        prob = np.column_stack([1 - prob, prob])
    if prob.ndim != 2:
        raise InvalidTextError(
            "`y_prob` must be of shape (n, n_classes), or (n,) for two classes. Got shape "
            f"{prob.shape}."
        )
    for row in np.flatnonzero(~((prob >= 0) & (prob <= 1)).all(axis=1)):
        raise InvalidTextError(
            f"`y_prob` must hold probabilities, from 0 to 1. Row {row} holds {prob[row].tolist()}: "
            "pass what predict_proba gives, not raw scores."
        )
    return prob


def _texts(X: Any) -> list[str]:
    return [clean(" | ".join(cells)) for cells in zip(*find_columns(X).read(), strict=True)]


def _texts_of_pipeline(X: Any) -> list[str] | None:
    """Return each row as a text, whatever it holds: a Pipeline may make texts of it."""
    try:
        return _texts(X)
    except InvalidTextError:  # numbers, or missing cells
        rows = as_numpy(X if hasattr(X, "to_numpy") else np.asarray(X, dtype=object))
    if rows.ndim not in (1, 2):
        return None  # the display shows the rows' numbers
    columns = rows.reshape(len(rows), -1).astype(object).T
    texts = [np.array([str(cell) for cell in column], dtype=object) for column in columns]
    for column, cells in zip(columns, texts, strict=True):
        cells[missing_rows(column)] = ""
    return [clean(" | ".join(filter(None, cells))) for cells in zip(*texts, strict=True)]


def _check_n_rows(n_rows: Any) -> None:
    if isinstance(n_rows, bool) or not isinstance(n_rows, int | np.integer) or n_rows < 1:
        raise InvalidTextError(f"`n_rows` must be an int >= 1. Got {n_rows!r}.")
