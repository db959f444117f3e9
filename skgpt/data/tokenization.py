"""Turn texts into token ids: ragged arrays, long texts cut or in windows, spans of the tokens.

Each distinct row is encoded once, whole. A row that is too long loses the ends of its longest
columns, or becomes overlapping windows of which each is a text to the trunk.
"""

import re
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from skgpt.caching import Store, keeps_texts
from skgpt.data.batching import Progress, no_progress
from skgpt.data.template import Template
from skgpt.exceptions import InvalidTextError

Ids = NDArray[np.int32]
LongText = Literal["cut", "windows"]
Span = tuple[int, int]

_SEAM = 2  # tokens that a value may have more than by itself, between a template's words

_IDS: Store[Ids] = Store("token ids", 2**27, share=1 / 8)


class TextEncoder(Protocol):
    """A tokenizer as this package sees it."""

    prefix_ids: tuple[int, ...]
    suffix_ids: tuple[int, ...]
    empty_id: int
    identity: object | None  # the key of its ids in this process' store; None stores none

    def encode(self, texts: list[str], progress: Progress = no_progress) -> list[list[int]]:
        """Return the ids of each text, special tokens neither added nor recognised."""
        ...

    def truncate(self, texts: list[str], n_tokens: list[int]) -> list[str]:
        """Return the longest beginning of each text that is at most so many tokens by itself.

        It ends between two characters, and where it can between two tokens of the whole text; a
        text that fits is returned as it is.
        """
        ...

    def spans(self, texts: list[str]) -> list[list[Span]]:
        """Return where in its text each of `encode`'s tokens begins and ends, in characters."""
        ...


@dataclass(frozen=True)
class Tokens:
    """Token ids of N texts, end to end: text i is ``ids[offsets[i]:offsets[i + 1]]``.

    The trunk runs over each text by itself or, if there are `window_offsets`, over each window,
    ``ids[window_offsets[j]:window_offsets[j + 1]]``. `n_cut` texts have lost their ends.
    """

    ids: NDArray[np.int64]
    offsets: NDArray[np.int64]
    n_cut: int = 0
    window_offsets: NDArray[np.int64] | None = None

    @classmethod
    def of(
        cls,
        sequences: Sequence[NDArray[np.int64]],
        n_windows: Sequence[int] | NDArray[np.int64] | None = None,
        n_cut: int = 0,
    ) -> "Tokens":
        """Lay texts end to end, or windows, of which the texts have so many each."""
        offsets = np.cumsum([0, *map(len, sequences)], dtype=np.int64)
        ids = np.concatenate(sequences)
        if n_windows is None:
            return cls(ids, offsets, n_cut)
        return cls(ids, offsets[np.cumsum([0, *n_windows])], n_cut, offsets)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Number of tokens of every text, in all of its windows, shape (N,)."""
        return np.diff(self.offsets)

    @property
    def run(self) -> "Tokens":
        """What the trunk runs over, each as a text: the windows, or the texts."""
        return self if self.window_offsets is None else Tokens(self.ids, self.window_offsets)

    @property
    def first(self) -> NDArray[np.int64]:
        """Text i is run as ``first[i]`` to ``first[i + 1] - 1``, shape (N + 1,)."""
        if self.window_offsets is None:
            return np.arange(len(self) + 1)
        return np.searchsorted(self.window_offsets, self.offsets)

    def row(self, i: int) -> NDArray[np.int64]:
        """Return the ids of text i."""
        return self.ids[self.offsets[i] : self.offsets[i + 1]]

    def take(self, rows: NDArray[np.int64]) -> "Tokens":
        """Return the tokens of some texts."""
        run, first = self.run, self.first
        n_windows = None if self.window_offsets is None else np.diff(first)[rows]
        return Tokens.of([run.row(int(j)) for j in ranges(first, rows)], n_windows)

    def distinct(self) -> tuple[list[bytes], dict[bytes, int]]:
        """Return the ids of every text as a key, and the first row of each distinct key."""
        # All windows of a text that has several are of one length, so no two texts share a key.
        keys = [self.row(i).tobytes() for i in range(len(self))]
        return keys, {key: row for row, key in reversed([*enumerate(keys)])}


def ranges(first: NDArray[np.int64], rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the numbers ``first[i]`` to ``first[i + 1] - 1`` of each of some rows."""
    return np.concatenate([np.arange(first[i], first[i + 1]) for i in rows])


# From texts to tokens


def tokenise(texts: list[str], encoder: TextEncoder, max_length: int) -> Tokens:
    """Tokenise single texts; the ends of those that are too long are cut."""
    return tokenise_rows([texts], Template(("", ""), (0,)), encoder, max_length)


def tokenise_rows(
    columns: list[list[str]],
    template: Template,
    encoder: TextEncoder,
    max_length: int,
    long_text: LongText = "cut",
    progress: Progress = no_progress,
) -> Tokens:
    """Tokenise columns of texts under a template; `max_length` counts the special tokens too.

    A row's text is encoded whole, so that the tokens where words and values meet are those the
    model knows; an empty one becomes the tokenizer's bos or eos token. Of a row that is too long:

    - "cut" cuts the values at their ends, a token of the longest at a time, and encodes the text
      again. The template's own words are never cut: an InvalidTextError says that they leave no
      room. Where they are white space alone (no template), the text's end is cut instead.
    - "windows" makes windows of `max_length` tokens, each half of what it has room for behind the
      one before. The last is moved back to the row's end, so that it is full.
    """
    return _Rows(columns, template, encoder, max_length, long_text, progress).tokens()


def cut_row(
    values: list[str], template: Template, encoder: TextEncoder, max_length: int
) -> list[str]:
    """Return the values of one row, the longest cut at their ends until it fits."""
    rows = _Rows([[value] for value in values], template, encoder, max_length, "cut")
    return list(rows.values[0])


def in_windows(
    columns: list[list[str]], template: Template, encoder: TextEncoder, max_length: int
) -> tuple[list[list[str]], NDArray[np.int64]]:
    """Return columns of which a row that is too long is several, and how many each row became.

    For templates whose words each window needs: a row's longest value becomes windows of itself
    that overlap by half, the last of which may be shorter. Other values stay as they are.
    """
    room = _room(encoder, max_length)
    rows, counts = [], []
    texts = [template.render([*map(clean, row)]) for row in zip(*columns, strict=True)]
    for row, ids in zip(zip(*columns, strict=True), _encode(encoder, texts), strict=True):
        windows = [row]
        if len(ids) > room:
            sizes = {i: len(encoder.encode([clean(row[i])])[0]) for i in template.fields}
            longest = max(sizes, key=lambda i: sizes[i])
            n_uses = template.fields.count(longest)
            others = len(ids) - n_uses * sizes[longest]
            size = (room - others) // n_uses - _SEAM
            values = _windows_of(clean(row[longest]), max(1, size), encoder)
            windows = [(*row[:longest], value, *row[longest + 1 :]) for value in values]
        rows += windows
        counts.append(len(windows))
    return [list(column) for column in zip(*rows, strict=True)], np.array(counts)


def _windows_of(text: str, n_tokens: int, encoder: TextEncoder) -> list[str]:
    """Return the windows of a text of so many tokens each, by themselves."""
    windows: list[str] = []
    while True:
        window, half = encoder.truncate([text, text], [n_tokens, (n_tokens + 1) // 2])
        windows.append(window)
        if len(window) >= len(text) or not window:
            return windows
        text = text[max(1, len(half)) :]


def lengths_in_windows(
    lengths: NDArray[np.int64], encoder: TextEncoder, max_length: int
) -> NDArray[np.int64]:
    """Return how many tokens texts of these lengths would have in all of their windows.

    Both lengths count the special tokens.
    """
    room = _room(encoder, max_length)
    beyond = lengths - _n_special(encoder) - room
    n_windows = 1 + -(-np.maximum(0, beyond) // _stride(room))
    return np.where(beyond > 0, n_windows * max_length, lengths)


def clean(text: str) -> str:
    """Replace what is not valid Unicode (lone surrogates) by U+FFFD; tokenizers raise on it."""
    if text.isascii():
        return text
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _n_special(encoder: TextEncoder) -> int:
    return len(encoder.prefix_ids) + len(encoder.suffix_ids)


def _room(encoder: TextEncoder, max_length: int) -> int:
    """Return how many tokens are read beside the special ones, one at least."""
    return max(1, max_length - _n_special(encoder))


def window_starts(n_tokens: int, room: int) -> list[int]:
    """Return where the windows of a text begin, which have room for so many of its tokens."""
    last = max(0, n_tokens - room)
    return [*range(0, last, _stride(room)), last]


def _stride(room: int) -> int:
    return max(1, room // 2)


def _frame(ids: Ids, encoder: TextEncoder, max_length: int) -> NDArray[np.int64]:
    """Put the special tokens around ids; no tokens at all become the one for an empty text."""
    framed = np.concatenate([encoder.prefix_ids, ids, encoder.suffix_ids])[:max_length]
    return (framed if len(framed) else np.array([encoder.empty_id])).astype(np.int64)


# Rows under a template, each distinct one encoded once


class _Rows:
    """Distinct rows of the columns that the template uses, encoded without special tokens.

    `distinct_of` says of every row which distinct one it is; `n_cut` of all rows were cut. `values`
    are what was encoded of the cells: valid Unicode, a beginning where the row was cut. `template`
    has clean words, and counts the `used` columns alone.
    """

    def __init__(
        self,
        columns: list[list[str]],
        template: Template,
        encoder: TextEncoder,
        max_length: int,
        long_text: LongText,
        progress: Progress = no_progress,
    ) -> None:
        self.encoder, self.max_length, self.long_text = encoder, max_length, long_text
        self.room = _room(encoder, max_length)
        self.used = sorted(set(template.fields))
        fields = tuple(self.used.index(field) for field in template.fields)
        self.template = template = Template(tuple(map(clean, template.words)), fields)
        cuts = long_text == "cut"  # or rows that are too long are read in windows
        cuts_in_values = cuts and cuts_values(template, encoder, max_length)

        number: dict[tuple[str, ...], int] = {}
        rows = zip(*(columns[field] for field in self.used), strict=True)
        self.distinct_of = [number.setdefault(row, len(number)) for row in rows]
        self.cells = list(number)
        # Clean words and values one by one, or halves of a character would meet across a seam.
        self.values: list[Sequence[str]] = [tuple(map(clean, row)) for row in number]
        texts = [template.render(row) for row in self.values]
        self.ids = _encode(encoder, texts, progress)
        self.n_cut = sum(len(self.ids[i]) > self.room for i in self.distinct_of) if cuts else 0
        if cuts_in_values:
            _cut_values(self.values, self.ids, template, encoder, self.room, progress)
        if cuts:
            self.ids = [row[: self.room] for row in self.ids]

    def tokens(self) -> Tokens:
        """Put special tokens around each row or its windows; lay all rows end to end."""
        # A row that was cut is one window.
        windows_of = [
            [
                _frame(ids[i : i + self.room], self.encoder, self.max_length)
                for i in window_starts(len(ids), self.room)
            ]
            for ids in self.ids
        ]
        windows = [windows_of[i] for i in self.distinct_of]
        n_windows = None if self.long_text == "cut" else [*map(len, windows)]
        return Tokens.of([window for of_row in windows for window in of_row], n_windows, self.n_cut)

    def spans(self) -> "TokenSpans":
        """Say where each of the tokens lies."""
        encoder = self.encoder
        before, after = [_SPECIAL] * len(encoder.prefix_ids), [_SPECIAL] * len(encoder.suffix_ids)
        found = encoder.spans([self.template.render(values) for values in self.values])
        spans_of = []
        for cells, values, ids, spans in zip(self.cells, self.values, self.ids, found, strict=True):
            # Where in its cell each token lies.
            fields = _fields(values, self.template)
            undo = [_undo_clean(cell) for cell in cells]
            inside = [(*_place(span, fields, undo), k) for k, span in enumerate(spans[: len(ids)])]
            # Special tokens around the row, or around each of its windows.
            framed = []
            for start in window_starts(len(inside), self.room):
                window = [*before, *inside[start : start + self.room], *after][: self.max_length]
                framed += window or [_SPECIAL]  # an empty text is a special token
            spans_of.append(np.array(framed, dtype=np.int64))
        column, start, end, index = np.concatenate([spans_of[i] for i in self.distinct_of]).T
        column = np.where(column < 0, -1, np.array(self.used)[column])
        return TokenSpans(column, start, end, index)


def _encode(encoder: TextEncoder, texts: list[str], progress: Progress = no_progress) -> list[Ids]:
    """Return the ids of each text.

    A store keeps them for this process, because folds, candidates, a refit and predict ask for the
    same texts over and over; those of a prediction alone are not kept.
    """
    if encoder.identity is None:
        return [np.asarray(ids, dtype=np.int32) for ids in encoder.encode(texts, progress)]
    found = _IDS.find_many([(encoder.identity, text) for text in texts])
    missing = list(dict.fromkeys(t for t, ids in zip(texts, found, strict=True) if ids is None))
    encoded = [np.asarray(ids, dtype=np.int32) for ids in encoder.encode(missing, progress)]
    new = dict(zip(missing, encoded, strict=True))
    if keeps_texts():
        kept = {(encoder.identity, text): ids for text, ids in new.items()}
        _IDS.put_many(kept, lambda ids: ids.nbytes)
    return [new[t] if ids is None else ids for t, ids in zip(texts, found, strict=True)]


# Cutting rows that are too long


def cuts_values(template: Template, encoder: TextEncoder, max_length: int) -> bool:
    """Say whether a row that is too long loses the ends of its values, or the end of its text.

    The values, where there are several or words, if these fit; raise if words don't that are more
    than space.
    """
    if template.is_plain:
        return False
    words = "".join(template.words)
    n_words, n_fields = len(encoder.encode([clean(words)])[0]), len(template.fields)
    needed = n_words + n_fields + _n_special(encoder)
    if needed > max_length and words.strip():
        raise InvalidTextError(
            f"`max_length` must leave room for the template. Its own words take {n_words} tokens, "
            f"so with one for each of its {n_fields} field{'s' * (n_fields > 1)} and the special "
            f"tokens it needs at least {needed}. Got max_length={max_length}: raise it, or use a "
            "template of fewer words or fields."
        )
    return needed <= max_length


def _cut_values(
    values: list[Sequence[str]],
    ids: list[Ids],
    template: Template,
    encoder: TextEncoder,
    room: int,
    progress: Progress,
) -> None:
    """Cut the values of each row that is too long until it fits; put both in place of the old."""
    too_long = [i for i, row in enumerate(ids) if len(row) > room]
    if not too_long:
        return
    rows = [values[i] for i in too_long]
    lengths = np.array([len(ids[i]) for i in too_long])
    n_uses = np.bincount(template.fields)
    in_a_row = [value for row in rows for value in row]
    encoded = encoder.encode(in_a_row, progress)
    sizes = np.array([len(ids) for ids in encoded]).reshape(len(rows), -1)
    # The values of a row may take this many tokens; the words and the seams take the rest.
    budgets = np.maximum(n_uses.sum(), room - (lengths - sizes @ n_uses))
    left = np.arange(len(rows))
    while len(left):
        # Cut the values to the budget.
        caps = _caps(sizes[left], n_uses, budgets[left])
        cut = [list(rows[i]) for i in left]
        where = [(int(k), int(v)) for k, v in zip(*np.nonzero(caps < sizes[left]), strict=True)]
        heads = encoder.truncate([cut[k][v] for k, v in where], [int(caps[k, v]) for k, v in where])
        for (k, v), head in zip(where, heads, strict=True):
            cut[k][v] = head
        for spent in np.flatnonzero(budgets[left] == 0):
            # The words alone, which were checked to fit, so the loop ends; a value that is no
            # token by itself may be one between two words.
            cut[spent] = [""] * len(n_uses)
        # Encode the rows again, and lower the budgets of those that are still too long.
        cut_ids = _encode(encoder, [template.render(row) for row in cut], progress)
        for i, row, row_ids in zip(left, cut, cut_ids, strict=True):
            values[too_long[i]], ids[too_long[i]] = row, row_ids
        over = np.array([len(row_ids) - room for row_ids in cut_ids])
        budgets[left] = np.maximum(0, budgets[left] - np.maximum(0, over))
        left = left[over > 0]


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


# Where tokens and words lie in the cells, for explanations


@dataclass(frozen=True)
class TokenSpans:
    """Where each token lies in the cells; the arrays are parallel to the ids the trunk runs over.

    A token is the characters `start` to `end` of its row's cell in `column`; -1 for special tokens
    and the template's own words. `index` numbers the tokens of a text, those in two windows alike
    in both; -1 for special tokens.
    """

    column: NDArray[np.int64]
    start: NDArray[np.int64]
    end: NDArray[np.int64]
    index: NDArray[np.int64]


_NOWHERE = (-1, 0, 0)
_SPECIAL = (*_NOWHERE, -1)


def tokenise_with_spans(
    columns: list[list[str]],
    template: Template,
    encoder: TextEncoder,
    max_length: int,
    long_text: LongText = "cut",
    progress: Progress = no_progress,
) -> tuple[Tokens, TokenSpans]:
    """Tokenise rows as `tokenise_rows` does, and say where each token lies.

    A token that reaches from one cell into another, or into the template's words, belongs to the
    cell that it has most of.
    """
    rows = _Rows(columns, template, encoder, max_length, long_text, progress)
    tokens, spans = rows.tokens(), rows.spans()
    assert len(spans.column) == len(tokens.ids), "tokens and spans of two encodings"
    return tokens, spans


def _fields(values: Sequence[str], template: Template) -> list[tuple[int, int, int]]:
    """Return where in a rendered row each field begins and ends, and its column."""
    at = len(template.words[0])
    fields = []
    for column, word in zip(template.fields, template.words[1:], strict=True):
        fields.append((at, at + len(values[column]), column))
        at += len(values[column]) + len(word)
    return fields


def _place(
    span: Span, fields: list[tuple[int, int, int]], undo: list[list[int] | None]
) -> tuple[int, int, int]:
    """Return the column that a token is of, and where in the cell it begins and ends."""
    start, end = span
    shares = [(min(end, stop) - max(start, at), at, stop, column) for at, stop, column in fields]
    share, at, stop, column = max(shares, key=lambda found: found[0])
    if share <= 0:
        return _NOWHERE
    first, last = max(start, at) - at, min(end, stop) - at
    original = undo[column]
    return (column, first, last) if original is None else (column, original[first], original[last])


def _undo_clean(cell: str) -> list[int] | None:
    """Return where in a cell each character of the cleaned one stood; None where nothing moved.

    Two surrogates in a row are one character of the cleaned text.
    """
    if len(clean(cell)) == len(cell):
        return None
    original, at = [], 0
    for character in clean(cell):
        original.append(at)
        paired = ord(character) > 0xFFFF and 0xD800 <= ord(cell[at]) <= 0xDFFF
        at += 2 if paired else 1
    return [*original, at]


# A word stands between white space; Chinese and Japanese have none, so each of their characters
# is one.
_WIDE = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_WORD = re.compile(rf"[{_WIDE}]|[^\s{_WIDE}]+")


def begins_wide(word: str) -> bool:
    """Say whether a word is of a script that puts no space before it."""
    return re.match(f"[{_WIDE}]", word) is not None


def words_of(text: str) -> list[Span]:
    """Return where the words of a text begin and end; one empty word where there is none."""
    return [found.span() for found in _WORD.finditer(text)] or [(0, 0)]


def word_at(words: list[Span], text: str, start: int, end: int) -> Span:
    """Return the word, of `words_of`, that the token from `start` to `end` belongs to.

    White space alone belongs to the word that follows it, as the tokens of most models begin with
    the space before a word; at the text's end to the last word.
    """
    piece = text[start:end]
    first = start + len(piece) - len(piece.lstrip())
    at = bisect_right([word_end for _, word_end in words], first)
    return words[min(at, len(words) - 1)]
