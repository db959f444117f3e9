"""Texts to ragged token ids: one flat array and the offsets of the texts in it."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


class TextEncoder(Protocol):
    """What a tokenizer has to offer; `skgpt.model.tokenizer` makes one of a transformers one."""

    prefix_ids: tuple[int, ...]
    suffix_ids: tuple[int, ...]
    empty_id: int

    def encode(self, texts: list[str]) -> list[list[int]]:
        """Return the ids of each text, special tokens neither added nor recognised."""
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
    """

    ids: NDArray[np.int64]
    offsets: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Number of tokens of every text, shape (N,)."""
        return np.diff(self.offsets)

    def row(self, i: int) -> NDArray[np.int64]:
        """Return the ids of text i."""
        return self.ids[self.offsets[i] : self.offsets[i + 1]]


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
    room = max(1, max_length - len(encoder.prefix_ids) - len(encoder.suffix_ids))
    rows: dict[str, NDArray[np.int64]] = {}
    for text, ids in zip(distinct, encoder.encode([clean(t) for t in distinct]), strict=True):
        framed = [*encoder.prefix_ids, *ids[:room], *encoder.suffix_ids]
        rows[text] = np.asarray(framed[:max_length] or [encoder.empty_id], dtype=np.int64)
    lengths = [len(rows[text]) for text in texts]
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return Tokens(np.concatenate([rows[text] for text in texts]), offsets)
