"""Texts to ragged token ids: one flat array and the offsets of the texts in it.

Long texts as overlapping windows: nothing is cut, and each window is a text to the trunk.

Where in the texts that somebody handed in the tokens of a row lie, and in which words.
"""

import re
from bisect import bisect_right
from collections.abc import Collection, Hashable, Iterable, Sequence
from dataclasses import dataclass
from sys import getsizeof
from typing import Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from skgpt.caching import Store
from skgpt.data.template import Template
from skgpt.exceptions import InvalidTextError

Ids = NDArray[np.int32]

_ENTRY = 400  # bytes of an entry beside its ids and text
_IDS: Store[tuple[Ids, int]] = Store("token ids", 2**27)  # with the bytes of ids and text


class TextEncoder(Protocol):
    """A tokenizer as the code above transformers sees it."""

    prefix_ids: tuple[int, ...]
    suffix_ids: tuple[int, ...]
    empty_id: int
    identity: object | None  # under which its ids are kept in this process; None keeps none

    def encode(self, texts: list[str]) -> list[list[int]]:
        """Return the ids of each text, special tokens neither added nor recognised."""
        ...

    def heads(self, texts: list[str], n_tokens: list[int]) -> list[str]:
        """Return of each text a longest beginning that is at most so many tokens by itself.

        It ends between two characters, and where it can between two tokens of the whole text; a
        text that fits is returned as it is.
        """
        ...

    def places(self, texts: list[str]) -> list[list[tuple[int, int]]]:
        """Return where in its text each of `encode`'s tokens begins and ends, in characters."""
        ...


@dataclass(frozen=True)
class Tokens:
    """Token ids of N texts, laid end to end.

    Parameters
    ----------
    ids : ndarray of shape (n_tokens,), int64
        All ids, text after text.
    offsets : ndarray of shape (N + 1,), int64
        Text i is ``ids[offsets[i]:offsets[i + 1]]``.
    n_cut : int, default=0
        Of how many texts something was cut off.
    """

    ids: NDArray[np.int64]
    offsets: NDArray[np.int64]
    n_cut: int = 0

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Number of tokens of every text, shape (N,)."""
        return np.diff(self.offsets)

    def row(self, i: int) -> NDArray[np.int64]:
        """Return the ids of text i."""
        return self.ids[self.offsets[i] : self.offsets[i + 1]]

    def distinct(self) -> tuple[list[bytes], dict[bytes, int]]:
        """Return the ids of every text as a key, and where each distinct one comes first."""
        keys = [self.row(i).tobytes() for i in range(len(self))]
        return keys, {key: row for row, key in reversed([*enumerate(keys)])}


def clean(text: str) -> str:
    """Replace what is not valid Unicode (lone surrogates) by U+FFFD; tokenizers raise on it."""
    if text.isascii():
        return text
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def tokenise(texts: list[str], encoder: TextEncoder, max_length: int) -> Tokens:
    """Turn texts into token ids, each distinct text once.

    Parameters
    ----------
    texts : list of str
    encoder : TextEncoder
    max_length : int
        Tokens per text, the special tokens that the tokenizer adds included; the text's end is
        cut. An empty text becomes the tokenizer's bos or eos token.

    Returns
    -------
    tokens : Tokens
    """
    distinct = list(dict.fromkeys(texts))
    room = max(1, room_for(encoder, max_length))
    ids = _encode(encoder, [clean(text) for text in distinct])
    cut = {text for text, row in zip(distinct, ids, strict=True) if len(row) > room}
    return _lay_out(texts, distinct, (row[:room] for row in ids), encoder, max_length, cut)


def tokenise_columns(
    columns: list[list[str]], template: Template, encoder: TextEncoder, max_length: int
) -> Tokens:
    """Turn columns of texts into token ids under a template, each distinct row once.

    A row's text is encoded whole, so that the tokens where words and values meet are those the
    model knows. In a row that is too long the values are cut at their ends, a token of the longest
    at a time, and the text is encoded again; the template's own words are never cut. Where they
    are white space alone (no template) and there is no room for them, the text's end is cut.

    Parameters
    ----------
    columns : list of list of str, n_columns times n
    template : Template
    encoder : TextEncoder
    max_length : int
        Tokens per text, the template's words and the special tokens that the tokenizer adds
        included. A text that is empty becomes the tokenizer's bos or eos token.

    Returns
    -------
    tokens : Tokens

    Raises
    ------
    InvalidTextError
        If the template's words leave less than one token for each of its fields, and are more
        than white space.
    """
    if template.is_plain:
        return tokenise(columns[template.fields[0]], encoder, max_length)
    if not _words_fit(template, encoder, max_length):
        # Blank lines between very many columns: nothing that anybody wrote is lost by a cut.
        texts = [template.render(row) for row in zip(*columns, strict=True)]
        return tokenise(texts, encoder, max_length)
    whole = encode_whole(columns, template, encoder)
    kept, ids = _cut_to_fit(whole, encoder, room_for(encoder, max_length))
    return _lay_out(whole.rows, whole.distinct, ids, encoder, max_length, kept)


class WholeRows(NamedTuple):
    """Rows of columns, and of each distinct one its clean values and its ids, nothing cut.

    `template` lays out the columns that are used, the only ones here.
    """

    rows: list[tuple[str, ...]]
    distinct: list[tuple[str, ...]]
    values: list[tuple[str, ...]]
    ids: list[Ids]
    template: Template


def encode_whole(columns: list[list[str]], template: Template, encoder: TextEncoder) -> WholeRows:
    """Encode each distinct row under a template, however long it is; no special tokens yet."""
    used = sorted(set(template.fields))
    template = Template(template.words, tuple(used.index(field) for field in template.fields))
    rows = list(zip(*(columns[field] for field in used), strict=True))
    distinct = list(dict.fromkeys(rows))
    # Each value by itself, or two halves of a character would find each other across a seam.
    cleaned = [tuple(map(clean, row)) for row in distinct]
    return WholeRows(rows, distinct, cleaned, _encode_rows(cleaned, template, encoder), template)


def as_encoded(
    columns: list[list[str]], template: Template, encoder: TextEncoder, max_length: int
) -> list[tuple[str, ...]]:
    """Return the rows as `tokenise_columns` has them encoded: valid Unicode, cut if too long.

    Parameters
    ----------
    columns : list of list of str, n_columns times n
    template : Template
    encoder : TextEncoder
    max_length : int

    Returns
    -------
    rows : list of tuple of str
        A beginning of each cell; what no field of the template names is whole. Where it is a
        text's end that is cut, in a row of one field or one without room, it is still there.
    """
    rows = [tuple(map(clean, row)) for row in zip(*columns, strict=True)]
    if template.is_plain or not _words_fit(template, encoder, max_length):
        return rows
    whole = encode_whole(columns, template, encoder)
    kept, _ = _cut_to_fit(whole, encoder, room_for(encoder, max_length))
    used = sorted(set(template.fields))
    for i, row in enumerate(whole.rows):
        if row in kept:
            new = dict(zip(used, kept[row], strict=True))
            rows[i] = tuple(new.get(column, cell) for column, cell in enumerate(rows[i]))
    return rows


def room_for(encoder: TextEncoder, max_length: int) -> int:
    """Return how many tokens of a text's own there may be beside the special ones."""
    return max_length - len(encoder.prefix_ids) - len(encoder.suffix_ids)


def framed(bare: Ids, encoder: TextEncoder, max_length: int) -> NDArray[np.int64]:
    """Return ids with the special tokens around them, or the one that stands for no text."""
    whole = np.concatenate([encoder.prefix_ids, bare, encoder.suffix_ids])[:max_length]
    return (whole if len(whole) else np.array([encoder.empty_id])).astype(np.int64)


def _lay_out(
    rows: Sequence[Hashable],
    distinct: Sequence[Hashable],
    ids: Iterable[Ids],
    encoder: TextEncoder,
    max_length: int,
    cut: Collection[Hashable],
) -> Tokens:
    """Put special tokens around the ids of the distinct rows, and all rows end to end."""
    each = {row: framed(bare, encoder, max_length) for row, bare in zip(distinct, ids, strict=True)}
    n_cut = sum(row in cut for row in rows)
    return end_to_end([each[row] for row in rows], n_cut)


def end_to_end(ids: Sequence[NDArray[np.int64]], n_cut: int = 0) -> Tokens:
    """Lay the ids of texts end to end."""
    offsets = np.concatenate([[0], np.cumsum([len(row) for row in ids])]).astype(np.int64)
    return Tokens(np.concatenate(ids), offsets, n_cut)


def _encode_rows(
    rows: Sequence[Sequence[str]], template: Template, encoder: TextEncoder
) -> list[Ids]:
    # Cleaned once more, because the template's words may hold a lone surrogate as well.
    return _encode(encoder, [clean(template.render(row)) for row in rows])


def _encode(encoder: TextEncoder, texts: list[str]) -> list[Ids]:
    """Return the ids of each text, each text encoded once in this process.

    Folds, candidates, a refit and predict ask for the same texts over and over.
    """
    if encoder.identity is None:
        return [np.asarray(ids, dtype=np.int32) for ids in encoder.encode(texts)]
    found = _IDS.find_many([(encoder.identity, text) for text in texts])
    missing = [text for text, entry in zip(texts, found, strict=True) if entry is None]
    encoded = [np.asarray(ids, dtype=np.int32) for ids in encoder.encode(missing)]
    new = dict(zip(missing, encoded, strict=True))
    kept = {(encoder.identity, t): (ids, ids.nbytes + getsizeof(t)) for t, ids in new.items()}
    _IDS.put_many(kept, lambda entry: entry[1] + _ENTRY)
    known = zip(texts, found, strict=True)
    return [new[text] if entry is None else entry[0] for text, entry in known]


def _words_fit(template: Template, encoder: TextEncoder, max_length: int) -> bool:
    """Say whether there is room for the template's words; raise if they are more than space."""
    n_words = len(encoder.encode([clean("".join(template.words))])[0])
    n_fields = len(template.fields)
    needed = n_words + n_fields + max_length - room_for(encoder, max_length)
    if needed > max_length and "".join(template.words).strip():
        raise InvalidTextError(
            f"`max_length` must leave room for the template. Its own words take {n_words} tokens, "
            f"so with one for each of its {n_fields} field{'s' * (n_fields > 1)} and the special "
            f"tokens it needs at least {needed}. Got max_length={max_length}: raise it, or use a "
            "template of fewer words or fields."
        )
    return needed <= max_length


def _cut_to_fit(
    whole: WholeRows, encoder: TextEncoder, room: int
) -> tuple[dict[tuple[str, ...], Sequence[str]], list[Ids]]:
    """Return what is kept of the values of each row that is too long, and all rows' ids."""
    ids = list(whole.ids)
    too_long = [i for i, row in enumerate(ids) if len(row) > room]
    if not too_long:
        return {}, ids
    lengths = np.array([len(ids[i]) for i in too_long])
    values = [whole.values[i] for i in too_long]
    kept, cut = _cut_rows(values, lengths, whole.template, encoder, room)
    for i, row in zip(too_long, cut, strict=True):
        ids[i] = row
    return dict(zip((whole.distinct[i] for i in too_long), kept, strict=True)), ids


def _cut_rows(
    rows: list[tuple[str, ...]],
    lengths: NDArray[np.int64],
    template: Template,
    encoder: TextEncoder,
    room: int,
) -> tuple[list[Sequence[str]], list[Ids]]:
    """Return rows that are too long with their values cut until each row fits, and their ids.

    `lengths` are the tokens of the whole rows.
    """
    n_uses = np.bincount(template.fields)
    values = [value for row in rows for value in row]
    sizes = np.array([len(ids) for ids in encoder.encode(values)]).reshape(len(rows), -1)
    # What all values of a row may take together; the rest is words and what the seams cost.
    budgets = np.maximum(n_uses.sum(), room - (lengths - sizes @ n_uses))
    done: list[Ids] = [np.empty(0, dtype=np.int32) for _ in rows]
    kept: list[Sequence[str]] = list(rows)
    left = np.arange(len(rows))
    while len(left):
        caps = _caps(sizes[left], n_uses, budgets[left])
        cut = _cut_values([rows[i] for i in left], sizes[left], caps, encoder)
        for spent in np.flatnonzero(budgets[left] == 0):
            # The words alone, which were checked to fit, so the loop ends; a value that is no
            # token by itself may be one between two words.
            cut[spent] = [""] * len(n_uses)
        over = np.empty(len(left), dtype=np.int64)
        for k, ids in enumerate(_encode_rows(cut, template, encoder)):
            done[left[k]], kept[left[k]] = ids, cut[k]
            over[k] = len(ids) - room
        budgets[left] = np.maximum(0, budgets[left] - np.maximum(0, over))
        left = left[over > 0]
    return kept, done


def _caps(
    sizes: NDArray[np.int64], n_uses: NDArray[np.int64], budgets: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Return how many tokens each value of a row may keep, shape (n_rows, n_values).

    As if a token were taken from the longest value, the last of equals, until the budget is met:
    all that are cut end at the same height, some one token above it where the budget allows.
    """
    low, high = np.zeros_like(budgets), sizes.max(axis=1)
    while np.any(low < high):
        middle = (low + high + 1) // 2
        fits = np.minimum(sizes, middle[:, None]) @ n_uses <= budgets
        low, high = np.where(fits, middle, low), np.where(fits, high, middle - 1)
    caps = np.minimum(sizes, low[:, None])
    rest = budgets - caps @ n_uses
    for value, cost in enumerate(n_uses):
        more = (sizes[:, value] > low) & (rest >= cost)
        caps[:, value] += more
        rest -= cost * more
    return caps


def _cut_values(
    rows: list[tuple[str, ...]],
    sizes: NDArray[np.int64],
    caps: NDArray[np.int64],
    encoder: TextEncoder,
) -> list[list[str]]:
    cut = [list(row) for row in rows]
    where = [(int(i), int(j)) for i, j in zip(*np.nonzero(caps < sizes), strict=True)]
    heads = encoder.heads([rows[i][j] for i, j in where], [int(caps[i, j]) for i, j in where])
    for (i, j), head in zip(where, heads, strict=True):
        cut[i][j] = head
    return cut


LongText = Literal["cut", "windows"]


@dataclass(frozen=True)
class Windows:
    """Token ids of N texts, each in one window or more.

    Parameters
    ----------
    each : Tokens
        The windows, those of one text behind each other, special tokens around every one.
    first : ndarray of shape (N + 1,), int64
        Text i has the windows ``first[i]`` to ``first[i + 1] - 1``.
    """

    each: Tokens
    first: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.first) - 1

    @property
    def n_cut(self) -> int:
        """Of how many texts something was cut off: of none."""
        return 0

    @property
    def counts(self) -> NDArray[np.int64]:
        """Number of windows of every text, shape (N,)."""
        return np.diff(self.first)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Number of tokens of every text in all of its windows, shape (N,)."""
        return np.diff(self.each.offsets[self.first])

    def of(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the numbers of the windows of some texts, text after text."""
        return np.concatenate([np.arange(self.first[i], self.first[i + 1]) for i in rows])

    def distinct(self) -> tuple[list[bytes], dict[bytes, int]]:
        """Return the ids of every text as a key, and where each distinct one comes first."""
        # All windows of a text that has several are of one length, so no two texts are one key.
        return Tokens(self.each.ids, self.each.offsets[self.first]).distinct()


TextIds = Tokens | Windows


def run_by_trunk(tokens: TextIds) -> Tokens:
    """Return what a trunk is run over: each window of the texts, or each text."""
    return tokens.each if isinstance(tokens, Windows) else tokens


def tokenise_rows(
    columns: list[list[str]],
    template: Template,
    encoder: TextEncoder,
    max_length: int,
    long_text: LongText,
) -> TextIds:
    """Turn columns of texts into token ids under a template, long ones cut or in windows.

    Parameters
    ----------
    columns : list of list of str, n_columns times n
    template : Template
    encoder : TextEncoder
    max_length : int
        Tokens per text, or per window, the special tokens included.
    long_text : {"cut", "windows"}

    Returns
    -------
    tokens : Tokens or Windows

    Raises
    ------
    InvalidTextError
        If texts are to be cut and `max_length` has no room for the template's words.
    """
    if long_text == "windows":
        return tokenise_windows(columns, template, encoder, max_length)
    return tokenise_columns(columns, template, encoder, max_length)


def tokenise_windows(
    columns: list[list[str]], template: Template, encoder: TextEncoder, max_length: int
) -> Windows:
    """Turn columns of texts into windows under a template, each distinct row encoded once.

    A row of more than `max_length` tokens becomes windows of as many, each half of what it has
    room for behind the one before. The last is moved back to the row's end, so that it is full. A
    row that fits is one window, the same ids as where rows are cut.

    Parameters
    ----------
    columns : list of list of str, n_columns times n
    template : Template
    encoder : TextEncoder
    max_length : int
        Tokens per window, the special tokens around it included.

    Returns
    -------
    windows : Windows
    """
    whole = encode_whole(columns, template, encoder)
    room = max(1, room_for(encoder, max_length))
    windows_of = {
        row: [
            framed(ids[start : start + room], encoder, max_length)
            for start in starts_of(len(ids), room)
        ]
        for row, ids in zip(whole.distinct, whole.ids, strict=True)
    }
    windows = [windows_of[row] for row in whole.rows]
    first = np.concatenate([[0], np.cumsum([len(of_row) for of_row in windows])])
    return Windows(
        end_to_end([one for of_row in windows for one in of_row]), first.astype(np.int64)
    )


def lengths_in_windows(
    lengths: NDArray[np.int64], encoder: TextEncoder, max_length: int
) -> NDArray[np.int64]:
    """Return how many tokens texts would have in all of their windows.

    Parameters
    ----------
    lengths : ndarray of shape (n,), int64
        Tokens of the whole texts, special ones included.
    encoder : TextEncoder
    max_length : int
        Tokens per window, the special tokens around it included.
    """
    room = max(1, room_for(encoder, max_length))
    beyond = lengths - (max_length - room_for(encoder, max_length)) - room
    n_windows = 1 + -(-np.maximum(0, beyond) // _stride(room))
    return np.where(beyond > 0, n_windows * max_length, lengths)


def starts_of(n_tokens: int, room: int) -> list[int]:
    """Return where the windows of a text begin, which have room for so many of its tokens."""
    last = max(0, n_tokens - room)
    return [*range(0, last, _stride(room)), last]


def _stride(room: int) -> int:
    return max(1, room // 2)


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
