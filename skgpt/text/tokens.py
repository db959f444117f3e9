"""Texts to ragged token ids: one flat array and the offsets of the texts in it."""

from collections.abc import Collection, Hashable, Iterable, Sequence
from dataclasses import dataclass
from sys import getsizeof
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from skgpt.caches import Store
from skgpt.exceptions import InvalidTextError
from skgpt.text.template import Template

Ids = NDArray[np.int32]

_ENTRY = 400  # bytes of an entry beside its ids and text
_IDS: Store[tuple[Ids, int]] = Store("token ids", 2**27)  # with the bytes of ids and text


class TextEncoder(Protocol):
    """What a tokenizer has to offer; `skgpt.model.tokenizer` makes one of a transformers one."""

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
