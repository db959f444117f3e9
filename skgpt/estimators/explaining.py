"""A classifier's attributions as a table: what each token added to the score of its class."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from skgpt.data.template import Template
from skgpt.data.tokenization import (
    Places,
    Span,
    Tokens,
    Windows,
    clean,
    locate,
    run_by_trunk,
    word_at,
    words_of,
)
from skgpt.exceptions import MissingPackageError
from skgpt.network.network import TextNetwork
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
    texts = fitted._checked_texts(X)
    columns = texts.cells
    scores = fitted._scores(X)
    network = fitted._network
    tokens, places = locate(
        columns,
        Template(*fitted._fitted_with["template"]),
        network.source.tokenizer,
        fitted._fitted_with["max_length"],
        fitted._fitted_with.get("long_text", "cut"),  # older pickles know no other way
    )
    explained, directions = _explained(scores, fitted._fitted_with["multilabel"])
    run = run_by_trunk(tokens)
    counts = tokens.counts if isinstance(tokens, Windows) else np.ones(len(tokens), dtype=np.int64)
    of_run = np.repeat(np.arange(len(tokens)), counts)
    found = _attributed(network, run, places, explained[of_run], directions[of_run])
    ends = np.cumsum(counts).tolist()
    parts = [
        _text_of(found[end - count : end], run.offsets[end - count : end + 1], places)
        for end, count in zip(ends, counts.tolist(), strict=True)
    ]
    table = _table(columns, fitted.classes_[explained], parts)
    if texts.names is not None:
        table["column"] = np.array(texts.names, dtype=object)[table["column"]]
    return pandas.DataFrame(table)


def _pandas() -> Any:
    try:
        import pandas
    except ImportError as error:
        raise MissingPackageError(
            "explain returns a pandas DataFrame, and pandas is not installed: pip install pandas."
        ) from error
    return pandas


class _Text(NamedTuple):
    """What is explained of one text: D scores by the T tokens of its own.

    A text of several windows has the mean of their scores, as the head is linear, so a token has
    the mean of what it adds to each, nothing where it isn't inside.
    """

    column_T: NDArray[np.int64]
    start_T: NDArray[np.int64]
    end_T: NDArray[np.int64]
    values_TD: NDArray[np.float64]
    baseline_D: NDArray[np.float64]


def _attributed(
    network: TextNetwork,
    run: Tokens,
    places: Places,
    explained_ND: NDArray[np.int64],
    directions_NDK: NDArray[np.float32],
) -> list[Attributions]:
    """Return the attributions of all texts or windows, equal ones computed once."""
    replaced = places.column >= 0
    # Equal tokens may be others' words, where a template repeats what stands in a cell, and equal
    # windows may be of texts of different classes.
    keys = [
        (text, replaced[start:end].tobytes(), explained.tobytes())
        for text, start, end, explained in zip(
            run.distinct()[0], run.offsets[:-1], run.offsets[1:], explained_ND, strict=True
        )
    ]
    first = {key: row for row, key in reversed([*enumerate(keys)])}
    rows = np.array(sorted(first.values()))
    found = attribute(network, *_taken(run, replaced, rows), directions_NDK[rows])
    made = dict(zip(rows.tolist(), found, strict=True))
    return [made[first[key]] for key in keys]


def _text_of(windows: list[Attributions], offsets: NDArray[np.int64], places: Places) -> _Text:
    """Put a text together from its windows, which lie behind each other at these offsets."""
    within = np.arange(offsets[0], offsets[-1])
    own = within[places.column[within] >= 0]
    _, at, token = np.unique(places.index[own], return_index=True, return_inverse=True)
    each_TD = np.concatenate([window.values_TD for window in windows])[own - offsets[0]]
    values_TD = np.zeros((len(at), each_TD.shape[1]))
    np.add.at(values_TD, token, each_TD / len(windows))
    baseline_D = np.mean([window.baseline_D for window in windows], axis=0)
    kept = own[at]
    return _Text(places.column[kept], places.start[kept], places.end[kept], values_TD, baseline_D)


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
    columns: list[list[str]], classes_ND: NDArray[Any], parts: list[_Text]
) -> dict[str, Any]:
    """Return the columns of the table."""
    words: dict[tuple[int, int], list[Span]] = {}
    rows: list[tuple[Any, ...]] = []
    for text, (part, classes) in enumerate(zip(parts, classes_ND, strict=True)):
        for explained, (label, baseline) in enumerate(zip(classes, part.baseline_D, strict=True)):
            spans = zip(part.column_T, part.start_T, part.end_T, strict=True)
            for token, (column, start, end) in enumerate(spans):
                cell = columns[column][text]
                if (column, text) not in words:
                    words[column, text] = words_of(cell)
                word_start, word_end = word_at(words[column, text], cell, start, end)
                value = part.values_TD[token, explained]
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
