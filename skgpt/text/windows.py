"""Long texts as overlapping windows: nothing is cut, and each window is a text to the trunk."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from skgpt.text.template import Template
from skgpt.text.tokens import (
    TextEncoder,
    Tokens,
    encode_whole,
    end_to_end,
    framed,
    room_for,
    tokenise_columns,
)

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
