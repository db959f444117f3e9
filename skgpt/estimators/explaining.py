"""A classifier's attributions as a table: what each token added to the score of its class."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from skgpt.exceptions import MissingPackageError, ModelNotSupportedError
from skgpt.text.check import column_names
from skgpt.text.spans import Places, Span, locate, word_at, words_of
from skgpt.text.template import Template
from skgpt.text.tokens import Tokens, clean
from skgpt.text.windows import tokenise_windows
from skgpt.training.attributions import Attributions, attribute


def explanations(fitted: Any, X: Any) -> Any:
    """Return the attributions of texts, a row for each token and explained class.

    Parameters
    ----------
    fitted : GPTTextClassifier
        Nobody else's copy: another thread's fit must not change it in the meantime.
    X : array-like of shape (n,) or (n, n_columns)

    Returns
    -------
    table : pandas.DataFrame
        As `GPTTextClassifier.explain` describes it.

    Raises
    ------
    MissingPackageError
        If pandas is not installed.
    ValueError
        If X is not as in `fit`, or the model can't be explained.
    """
    pandas = _pandas()
    columns = fitted._checked_columns(X)
    _check_one_window_each(fitted, columns)
    scores = fitted._scores(X)
    network = fitted._network
    tokens, places = locate(
        columns,
        Template(*fitted._fitted_with["template"]),
        network.source.tokenizer,
        fitted._fitted_with["max_length"],
    )
    explained, directions = _explained(scores, fitted._fitted_with["multilabel"])
    replaced = places.column >= 0
    # Equal tokens may be others' words, where a template repeats what stands in a cell.
    keys = [
        (text, replaced[start:end].tobytes())
        for text, start, end in zip(
            tokens.distinct()[0], tokens.offsets, tokens.offsets[1:], strict=False
        )
    ]
    first = {key: row for row, key in reversed([*enumerate(keys)])}
    rows = np.array(sorted(first.values()))
    found = attribute(network, *_taken(tokens, replaced, rows), directions[rows])
    made = dict(zip(rows.tolist(), found, strict=True))
    attributions = [made[first[key]] for key in keys]
    table = _table(columns, tokens, places, fitted.classes_[explained], attributions)
    names = column_names(X)
    if names is not None:
        table["column"] = np.array(names, dtype=object)[table["column"]]
    return pandas.DataFrame(table)


def _pandas() -> Any:
    try:
        import pandas
    except ImportError as error:
        raise MissingPackageError(
            "explain returns a pandas DataFrame, and pandas is not installed: pip install pandas."
        ) from error
    return pandas


def _check_one_window_each(fitted: Any, columns: list[list[str]]) -> None:
    """Check that texts are read in one piece; a token of several windows has several places."""
    if fitted._fitted_with.get("long_text", "cut") == "cut":  # older pickles know no other way
        return
    max_length = fitted._fitted_with["max_length"]
    template = Template(*fitted._fitted_with["template"])
    encoder = fitted._network.source.tokenizer
    several = np.flatnonzero(tokenise_windows(columns, template, encoder, max_length).counts > 1)
    if len(several):
        raise ModelNotSupportedError(
            "To be explained, texts must fit into one window. This model was fitted with "
            f"long_text='windows' and max_length={max_length}, and {len(several)} of "
            f"{len(columns[0])} texts take more than one, the first of them X[{several[0]}]: pass "
            "parts of them, fit with a larger max_length, or fit with long_text='cut'."
        )


def _explained(
    scores_NK: NDArray[np.float32], multilabel: bool
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return the classes to explain, (N, D), and as weights of raw scores, (N, D, K).

    The predicted class, or every label. Of two classes the score is what tells them apart, their
    difference, as in `decision_function`.
    """
    n, width = scores_NK.shape
    each = np.eye(width, dtype=np.float32)
    if multilabel:
        return np.tile(np.arange(width), (n, 1)), np.tile(each, (n, 1, 1))
    if width == 2:
        each = np.array([[1, -1], [-1, 1]], dtype=np.float32)
    predicted = scores_NK.argmax(axis=1)[:, None]
    return predicted, each[predicted]


def _taken(
    tokens: Tokens, replaced: NDArray[np.bool_], rows: NDArray[np.int64]
) -> tuple[Tokens, NDArray[np.bool_]]:
    """Return the tokens of some rows, and which of them are replaced."""
    taken = [slice(tokens.offsets[row], tokens.offsets[row + 1]) for row in rows]
    ids = [tokens.ids[part] for part in taken]
    masks = np.concatenate([replaced[part] for part in taken])
    return Tokens(np.concatenate(ids), np.cumsum([0, *map(len, ids)])), masks


def _table(
    columns: list[list[str]],
    tokens: Tokens,
    places: Places,
    classes_ND: NDArray[Any],
    attributions: list[Attributions],
) -> dict[str, Any]:
    """Return the columns of the table."""
    words: dict[tuple[int, int], list[Span]] = {}
    rows: list[tuple[Any, ...]] = []
    for text, (found, classes) in enumerate(zip(attributions, classes_ND, strict=True)):
        first = int(tokens.offsets[text])
        inside = np.flatnonzero(places.column[first : tokens.offsets[text + 1]] >= 0)
        for explained, (label, baseline) in enumerate(zip(classes, found.baseline_D, strict=True)):
            for token in inside:
                at = first + token
                column, start, end = places.column[at], places.start[at], places.end[at]
                cell = columns[column][text]
                if (column, text) not in words:
                    words[column, text] = words_of(cell)
                word_start, word_end = word_at(words[column, text], cell, start, end)
                value = found.values_TD[token, explained]
                # Cleaned, as pandas' texts hold no lone surrogates.
                place = (column, start, end, clean(cell[start:end]))
                word = (word_start, clean(cell[word_start:word_end]))
                rows.append((text, label, *place, *word, value, baseline))
    names = ("text", "class", "column", "start", "end", "token", "word_start", "word")
    values = list(zip(*rows, strict=True)) or [()] * (len(names) + 2)
    kinds: dict[str, Any] = dict.fromkeys(
        ("text", "column", "start", "end", "word_start"), np.int64
    )
    kinds |= {"class": classes_ND.dtype, "token": object, "word": object}
    return {
        name: np.array(column, dtype=kinds.get(name, np.float64))
        for name, column in zip((*names, "value", "baseline"), values, strict=True)
    }
