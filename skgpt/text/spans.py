"""Where in the texts that somebody handed in the tokens of a row lie, and in which words."""

import re
from bisect import bisect_right
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from skgpt.text.template import Template
from skgpt.text.tokens import TextEncoder, as_encoded, clean
from skgpt.text.windows import LongText, TextIds, run_by_trunk, starts_of, tokenise_rows

# What stands between white space is a word; Chinese and Japanese have none between theirs, so
# each of their characters is one.
_WIDE = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_WORD = re.compile(rf"[{_WIDE}]|[^\s{_WIDE}]+")
_NOWHERE = (-1, 0, 0)
_SPECIAL = (*_NOWHERE, -1)

Span = tuple[int, int]


@dataclass(frozen=True)
class Places:
    """Where each token lies; the arrays are parallel to the ids that a trunk is run over.

    Parameters
    ----------
    column : ndarray of shape (n_tokens,), int64
        The column whose cell the token is of; -1 for special tokens and the template's own words.
    start, end : ndarray of shape (n_tokens,), int64
        Where in that cell it begins and ends, in characters.
    index : ndarray of shape (n_tokens,), int64
        Which token of its text it is, the special ones not counted; those have -1. A token of two
        windows has the same number in both.
    """

    column: NDArray[np.int64]
    start: NDArray[np.int64]
    end: NDArray[np.int64]
    index: NDArray[np.int64]


def locate(
    columns: list[list[str]],
    template: Template,
    encoder: TextEncoder,
    max_length: int,
    long_text: LongText = "cut",
) -> tuple[TextIds, Places]:
    """Tokenise rows as `tokenise_rows` does, and say where each token lies.

    A token that reaches from one cell into another, or into the template's words, is the cell's
    of which it has most.

    Parameters
    ----------
    columns : list of list of str, n_columns times n
    template : Template
    encoder : TextEncoder
    max_length : int
    long_text : {"cut", "windows"}, default="cut"

    Returns
    -------
    tokens : Tokens or Windows
    places : Places
        Of the texts' tokens, or of their windows'.

    Raises
    ------
    InvalidTextError
        As `tokenise_rows`.
    ModelNotSupportedError
        If the tokenizer doesn't say where its tokens lie.
    """
    tokens = tokenise_rows(columns, template, encoder, max_length, long_text)
    lengths = run_by_trunk(tokens).lengths
    if long_text == "cut":
        rows = as_encoded(columns, template, encoder, max_length)
    else:
        rows = [tuple(map(clean, row)) for row in zip(*columns, strict=True)]
    found = encoder.places([clean(template.render(row)) for row in rows])
    n_before, n_after = len(encoder.prefix_ids), len(encoder.suffix_ids)
    room = max(1, max_length - n_before - n_after)
    places: list[tuple[int, int, int, int]] = []
    n_run = 0
    for i, (row, spans) in enumerate(zip(rows, found, strict=True)):
        cells = _cells(row, template)
        maps = {column: _undo_clean(columns[column][i]) for column in template.fields}
        kept = spans[:room] if long_text == "cut" else spans
        inside = [(*_place(span, cells, maps), k) for k, span in enumerate(kept)]
        for first in starts_of(len(inside), room):
            within = inside[first : first + room]
            framed = [_SPECIAL] * n_before + within + [_SPECIAL] * n_after
            framed = framed[:max_length] or [_SPECIAL]  # an empty text is a special token
            assert len(framed) == lengths[n_run], "tokens and places are not of one encoding"
            places += framed
            n_run += 1
    return tokens, Places(*np.array(places, dtype=np.int64).T)


def words_of(text: str) -> list[Span]:
    """Return where the words of a text begin and end; one empty word where there is none."""
    return [found.span() for found in _WORD.finditer(text)] or [(0, 0)]


def word_at(words: list[Span], text: str, start: int, end: int) -> Span:
    """Return the word that a token is of.

    Parameters
    ----------
    words : list of (int, int)
        Of the text, as `words_of` returns them.
    text : str
    start, end : int
        Where the token lies. White space alone is of the word that follows it, as the tokens of
        most models begin with the space before a word, or at the text's end of the last one.

    Returns
    -------
    word : (int, int)
    """
    piece = text[start:end]
    first = start + len(piece) - len(piece.lstrip())
    at = bisect_right([word_end for _, word_end in words], first)
    return words[min(at, len(words) - 1)]


def _cells(row: tuple[str, ...], template: Template) -> list[tuple[int, int, int]]:
    """Return where in a rendered row each field begins and ends, and its column."""
    at = len(clean(template.words[0]))
    cells = []
    for field, word in zip(template.fields, template.words[1:], strict=True):
        cells.append((at, at + len(row[field]), field))
        at += len(row[field]) + len(clean(word))
    return cells


def _place(
    span: Span, cells: list[tuple[int, int, int]], maps: dict[int, list[int] | None]
) -> tuple[int, int, int]:
    """Return the column that a token is of, and where in the cell it lies."""
    start, end = span
    shares = [(min(end, stop) - max(start, at), at, stop, column) for at, stop, column in cells]
    share, at, stop, column = max(shares, key=lambda found: found[0])
    if share <= 0:
        return _NOWHERE
    first, last = max(start, at) - at, min(end, stop) - at
    back = maps[column]
    return (column, first, last) if back is None else (column, back[first], back[last])


def _undo_clean(cell: str) -> list[int] | None:
    """Return where in a cell each character of the cleaned one stood; None where nothing moved.

    Two surrogates in a row are one character of the cleaned text.
    """
    if len(clean(cell)) == len(cell):
        return None
    back, at = [], 0
    for character in clean(cell):
        back.append(at)
        paired = ord(character) > 0xFFFF and 0xD800 <= ord(cell[at]) <= 0xDFFF
        at += 2 if paired else 1
    return [*back, at]
