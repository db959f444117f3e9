"""Texts to ragged ids."""

import pytest

from skgpt.text.tokens import clean, tokenise


class Letters:
    """An encoder that counts what it is asked, one id per character."""

    def __init__(self, prefix: tuple[int, ...] = (), suffix: tuple[int, ...] = ()) -> None:
        self.prefix_ids = prefix
        self.suffix_ids = suffix
        self.empty_id = 99
        self.asked: list[str] = []

    def encode(self, texts: list[str]) -> list[list[int]]:
        self.asked += texts
        return [[ord(c) % 50 for c in text] for text in texts]


def rows_of(texts: list[str], encoder: Letters, max_length: int = 100) -> list[list[int]]:
    tokens = tokenise(texts, encoder, max_length)
    return [tokens.row(i).tolist() for i in range(len(tokens))]


def test_tokenise__several_texts__are_what_each_is_alone() -> None:
    texts = ["abc", "", "hello world", "abc"]
    assert rows_of(texts, Letters()) == [rows_of([t], Letters())[0] for t in texts]


def test_tokenise__the_same_text_twice__is_encoded_once() -> None:
    encoder = Letters()
    tokenise(["a", "b", "a", "a"], encoder, 10)
    assert encoder.asked == ["a", "b"]


def test_tokenise__an_empty_text__is_one_token() -> None:
    assert rows_of([""], Letters()) == [[99]]


def test_tokenise__a_long_text__is_cut_between_its_special_tokens() -> None:
    row = rows_of(["a" * 50], Letters((1,), (2,)), max_length=10)[0]
    assert len(row) == 10
    assert (row[0], row[-1]) == (1, 2)


@pytest.mark.parametrize("max_length", [2, 3, 7])
def test_tokenise__max_length__is_never_exceeded(max_length: int) -> None:
    tokens = tokenise(["a" * n for n in range(9)], Letters((1,), (2,)), max_length)
    assert tokens.lengths.max() == max_length


def test_clean__lone_surrogates__become_replacement_characters() -> None:
    assert clean("a\ud800b\udc00") == "a\ufffdb\ufffd"
    assert clean("\ud83d\ude00") == "\U0001f600"  # a pair is the character it stands for
    assert clean("äß\U0001f600\x00") == "äß\U0001f600\x00"
