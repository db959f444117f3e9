"""Texts and columns of texts to ragged ids: whole, cut, or in windows."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skgpt.caching import cache_info, clear_cache
from skgpt.data.batching import Progress, no_progress
from skgpt.data.template import Template, parse_template
from skgpt.data.tokenization import TextEncoder, Tokens, clean, ranges, tokenise, tokenise_rows
from skgpt.exceptions import InvalidTextError
from skgpt.pretrained.loading import load_pretrained


class Letters:
    """An encoder that counts what it is asked, one id per character."""

    def __init__(self, prefix: tuple[int, ...] = (), suffix: tuple[int, ...] = ()) -> None:
        self.prefix_ids = prefix
        self.suffix_ids = suffix
        self.empty_id = 99
        self.identity: object | None = None
        self.asked: list[str] = []

    def encode(self, texts: list[str], progress: Progress = no_progress) -> list[list[int]]:
        self.asked += texts
        return [[ord(c) % 50 for c in text] for text in texts]

    def truncate(self, texts: list[str], n_tokens: list[int]) -> list[str]:
        return [text[:n] for text, n in zip(texts, n_tokens, strict=True)]


class Pairs(Letters):
    """Two characters are a token, counted from the text's beginning: seams are everywhere."""

    def encode(self, texts: list[str], progress: Progress = no_progress) -> list[list[int]]:
        return [
            [
                sum(ord(c) << 21 * k for k, c in enumerate(text[i : i + 2]))
                for i in range(0, len(text), 2)
            ]
            for text in texts
        ]

    def truncate(self, texts: list[str], n_tokens: list[int]) -> list[str]:
        return [text[: 2 * n] for text, n in zip(texts, n_tokens, strict=True)]

    def decode(self, ids: list[int]) -> str:
        return "".join(chr(i % 2**21) + (chr(i >> 21) if i >> 21 else "") for i in ids)


class CostlySpaces(Letters):
    """A space before a letter is five tokens, one at the end is none."""

    def encode(self, texts: list[str], progress: Progress = no_progress) -> list[list[int]]:
        return [[ord(c) for c in text.rstrip().replace(" ", "_____")] for text in texts]

    def truncate(self, texts: list[str], n_tokens: list[int]) -> list[str]:
        return [
            text if not text.strip() else text[:n] for text, n in zip(texts, n_tokens, strict=True)
        ]


def rows_of(tokens: Tokens) -> list[list[int]]:
    return [tokens.row(i).tolist() for i in range(len(tokens))]


def texts_of(tokens: Tokens) -> list[str]:
    """Return the texts that byte tokens stand for, special tokens left out."""
    rows = [tokens.row(i) for i in range(len(tokens))]
    return [bytes(row[row < 256].tolist()).decode() for row in rows]


PLAIN = parse_template(None, 1, None)


def test_tokenise__long_texts__are_cut_between_their_special_tokens() -> None:
    texts, encoder, max_length = ["a" * n for n in range(9)], Letters((1,), (2,)), 5
    rows = rows_of(tokenise(texts, encoder, max_length))
    assert tokenise(texts, encoder, 2).lengths.max() == 2
    assert [len(row) for row in rows] == [min(n + 2, max_length) for n in range(9)]
    assert {(row[0], row[-1]) for row in rows} == {(1, 2)}


def test_clean__lone_surrogates__become_replacement_characters() -> None:
    assert clean("a\ud800b\udc00") == "a\ufffdb\ufffd"
    assert clean("\ud83d\ude00") == "\U0001f600"  # a pair is the character it stands for
    assert clean("äß\U0001f600\x00") == "äß\U0001f600\x00"


@pytest.fixture(scope="module")
def byte_encoder(tiny_llama: str) -> TextEncoder:
    """Return an encoder with a token per byte of UTF-8, whose id is the byte."""
    return load_pretrained(tiny_llama, None).tokenizer


@given(
    sizes=st.lists(st.lists(st.integers(0, 30), min_size=3, max_size=3), min_size=1, max_size=5),
    max_length=st.integers(8, 60),
)
@settings(max_examples=60, deadline=None)
def test_tokenise_rows__rows_too_long__lose_tokens_of_the_longest_one_by_one(
    sizes: list[list[int]], max_length: int
) -> None:
    encoder = Letters((1,), (2,))
    template = parse_template("-{0}+{1}+{2}", 3, None)
    columns = [[letter * size[k] for size in sizes] for k, letter in enumerate("abc")]
    tokens = tokenise_rows(columns, template, encoder, max_length)
    for i, kept in enumerate(sizes):
        kept = list(kept)
        while sum(kept) + 3 + 2 > max_length:
            last_of_longest = max(range(3), key=lambda k: (kept[k], k))
            kept[last_of_longest] -= 1
        row = template.render([letter * n for letter, n in zip("abc", kept, strict=True)])
        assert tokens.row(i).tolist() == [1, *encoder.encode([row])[0], 2]


def test_tokenise_rows__a_field_used_twice__is_cut_in_both_places() -> None:
    tokens = tokenise_rows(
        [["abcdefgh"], ["xy"]], parse_template("{0}.{1}.{0}", 2, None), Letters(), 12
    )
    assert tokens.ids.tolist() == Letters().encode(["abcd.xy.abcd"])[0]


def test_tokenise_rows__a_column_left_out__has_no_part_in_it() -> None:
    encoder = Letters()
    columns = [["same", "same"], ["x" * 99, "y" * 99], ["abc" * 9, "abc" * 9]]
    tokens = tokenise_rows(columns, parse_template("{2}:{0}", 3, None), encoder, 12)
    assert tokens.row(0).tolist() == tokens.row(1).tolist() == encoder.encode(["abcabca:same"])[0]
    assert not any("x" in text or "y" in text for text in encoder.asked)


@pytest.mark.parametrize("long_text", ["cut", "windows"])
def test_tokenise_rows__the_same_row_twice__is_encoded_once(long_text: str) -> None:
    once, twice = Letters(), Letters()
    template = parse_template("{0}: {1}", 2, None)
    columns = [["a", "title", "a"], ["b" * 30, "text", "b" * 30]]
    first = tokenise_rows([c[:2] for c in columns], template, once, 20, long_text)
    tokens = tokenise_rows([c * 2 for c in columns], template, twice, 20, long_text)
    assert once.asked == twice.asked
    keys, first_of = tokens.distinct()
    assert keys == [first.distinct()[0][i] for i in (0, 1, 0, 0, 1, 0)]
    assert sorted(first_of.values()) == [0, 1]


def test_tokenise_rows__rows_that_fit__are_encoded_once_beside_one_that_does_not() -> None:
    encoder = Letters()
    columns = [["short", "l" * 30], ["also", "s"]]
    tokenise_rows(columns, parse_template("{0}|{1}", 2, None), encoder, len("short|also"))
    assert sum("short" in text or "also" in text for text in encoder.asked) == 1


def test_tokenise_rows__halves_of_a_character__do_not_meet(byte_encoder: TextEncoder) -> None:
    columns = [["a\ud83d", "a\ud83d" * 20], ["\ude00b", "\ude00b" * 20]]
    tokens = tokenise_rows(columns, parse_template("{0}{1}", 2, None), byte_encoder, 30)
    whole, cut = texts_of(tokens)
    assert whole == "a\ufffd\ufffdb"
    assert set(cut) == {"a", "\ufffd", "b"}
    # Nor does half a character among the template's words.
    template = Template(("\ud83d", "."), (0,))
    tokens = tokenise_rows([["\ude00", "x" * 40]], template, byte_encoder, 20)
    assert texts_of(tokens)[0] == "\ufffd\ufffd."
    assert texts_of(tokens)[1].startswith("\ufffdxxx")
    assert texts_of(tokens)[1].endswith("x.")


@given(
    sizes=st.lists(st.tuples(st.integers(0, 20), st.integers(0, 20)), min_size=1, max_size=5),
    words=st.tuples(*[st.text("<>", max_size=3)] * 3),
    room=st.integers(7, 14),
)
@settings(max_examples=60, deadline=None)
def test_tokenise_rows__seams_that_cost_tokens__are_made_room_for(
    sizes: list[tuple[int, int]], words: tuple[str, str, str], room: int
) -> None:
    encoder = Pairs((1,), (2,))
    columns = [["a" * n for n, _ in sizes], ["b" * n for _, n in sizes]]
    tokens = tokenise_rows(
        columns, Template((*words[:2], words[2] + "."), (0, 1)), encoder, room + 2
    )
    for i, (n, m) in enumerate(sizes):
        row = tokens.row(i).tolist()
        text = encoder.decode(row[1:-1])
        kept = text.count("a"), text.count("b")
        assert text == words[0] + "a" * kept[0] + words[1] + "b" * kept[1] + words[2] + "."
        whole = len(encoder.encode(["".join(words) + "." + "a" * n + "b" * m])[0])
        if whole <= room:
            assert kept == (n, m)
        else:
            assert room - 2 <= len(row) - 2 <= room
            assert abs(kept[0] - kept[1]) <= 2 or min((n, m)) == min(kept)


def test_tokenise_rows__a_value_that_is_a_token_among_words_only__is_given_up() -> None:
    template = parse_template("x{0}y{1}", 2, None)
    tokens = tokenise_rows([[" "], ["abc"]], template, CostlySpaces(), 4)
    assert tokens.ids.tolist() == [ord("x"), ord("y")]


def test_tokenise_rows__what_costs_most_is_cut_off__leaves_a_token_of_each_value() -> None:
    template = parse_template("x{0}y", 1, None)
    tokens = tokenise_rows([["ab   "]], template, CostlySpaces(), 6)
    assert tokens.ids.tolist() == [ord("x"), ord("a"), ord("y")]


@pytest.mark.parametrize("template", ["0123456789{0}", "01234{0}56789", "0123{1}45678{1}"])
def test_tokenise_rows__no_room_beside_the_words__says_how_much_they_take(template: str) -> None:
    parsed = parse_template(template, 2, None)
    encoder = Letters((1,), (2,))
    needed = sum(map(len, parsed.words)) + len(parsed.fields) + 2
    assert tokenise_rows([["a"], ["b"]], parsed, encoder, needed).lengths.tolist() == [needed]
    encoder.asked.clear()
    with pytest.raises(
        InvalidTextError,
        match=rf"words take {needed - 2 - len(parsed.fields)} tokens.*at least {needed}\. "
        rf"Got max_length={needed - 1}:",
    ):
        tokenise_rows([["a"], ["b"]], parsed, encoder, needed - 1)
    assert encoder.asked == ["".join(parsed.words)]  # before anything else


def test_tokenise_rows__blank_lines_leave_no_room__the_text_is_cut_at_its_end() -> None:
    columns = [[f"{i}a"] for i in range(20)]
    joined = "\n\n".join(column[0] for column in columns)
    tokens = tokenise_rows(columns, parse_template(None, 20, None), Letters((1,), (2,)), 12)
    assert tokens.row(0).tolist() == [1, *(ord(c) % 50 for c in joined[:10]), 2]


def test_tokenise__texts_seen_before__are_not_encoded_again() -> None:
    clear_cache()
    encoder = Letters((1,))
    plain = tokenise(["abc", "de", "abc", ""], encoder, 3)
    encoder.identity = object()
    for texts in (["abc", "de"], ["abc", "de", "abc", ""]):
        encoder.asked.clear()
        kept = tokenise(texts, encoder, 3)
    assert encoder.asked == [""]
    assert np.array_equal(kept.ids, plain.ids) and np.array_equal(kept.offsets, plain.offsets)
    # What was cut is kept whole, and a template's rows are kept as they are rendered.
    assert tokenise(["abc"], encoder, 9).ids.tolist() == [1, *Letters().encode(["abc"])[0]]
    encoder.asked.clear()
    template = parse_template("<{0}>", 1, None)
    for _ in range(2):
        tokenise_rows([["abc"]], template, encoder, 9)
    assert encoder.asked.count("<abc>") == 1
    other = Letters()
    other.identity = object()
    tokenise(["abc"], other, 9)
    assert other.asked == ["abc"]
    assert cache_info()["token ids"]["entries"] == 5
    clear_cache()
    tokenise(["abc"], other, 9)
    assert other.asked == ["abc"] * 2


# Windows


def windows_of(texts: list[str], encoder: Letters, max_length: int) -> Tokens:
    return tokenise_rows([texts], PLAIN, encoder, max_length, "windows")


def bare(windows: Tokens, text: int, encoder: Letters) -> list[list[int]]:
    """Return the windows of a text, their special tokens checked and taken away."""
    found = []
    for i in range(windows.first[text], windows.first[text + 1]):
        ids = windows.run.row(i).tolist()
        assert ids[: len(encoder.prefix_ids)] == [*encoder.prefix_ids]
        assert ids[len(ids) - len(encoder.suffix_ids) :] == [*encoder.suffix_ids]
        found.append(ids[len(encoder.prefix_ids) : len(ids) - len(encoder.suffix_ids)])
    return found


@settings(derandomize=True, deadline=None, database=None)
@given(
    n=st.lists(st.integers(0, 70), min_size=1, max_size=5),
    room=st.integers(1, 20),
    special=st.sampled_from([((), ()), ((1,), ()), ((1,), (2,)), ((), (2, 3))]),
)
def test_tokenise_windows__any_text__is_covered_by_full_windows_that_overlap_by_half(
    n: list[int], room: int, special: tuple[tuple[int, ...], tuple[int, ...]]
) -> None:
    encoder = Letters(*special)
    texts = ["".join(chr(97 + (i * i + k) % 26) for i in range(size)) for k, size in enumerate(n)]
    max_length = room + len(special[0]) + len(special[1])
    windows = windows_of(texts, encoder, max_length)
    assert len(windows) == len(texts)
    for text in range(len(texts)):
        if not texts[text] and special == ((), ()):
            assert windows.run.row(int(windows.first[text])).tolist() == [encoder.empty_id]
            continue
        ids, parts = encoder.encode([texts[text]])[0], bare(windows, text, encoder)
        step = max(1, room // 2)
        if len(ids) <= room:
            assert parts == [ids]
            continue
        starts = [step * i for i in range(len(parts) - 1)] + [len(ids) - room]
        assert parts == [ids[start : start + room] for start in starts]
        assert all(0 < b - a <= step for a, b in pairwise(starts))


def test_windows__lengths_and_numbers__are_those_of_all_windows_of_a_text() -> None:
    windows = windows_of(["abcdefghij", "k", "abcdefgh"], Letters(), 4)
    assert np.diff(windows.first).tolist() == [4, 1, 3]
    assert windows.lengths.tolist() == [16, 1, 12]
    assert ranges(windows.first, np.array([2, 0])).tolist() == [5, 6, 7, 0, 1, 2, 3]


def test_windows__distinct__tells_texts_apart_that_begin_alike() -> None:
    # The last would be the first one's windows, were they laid end to end without their lengths.
    texts = ["abcdef", "abcd", "abcdef", "abcdcdef"]
    keys, first = windows_of(texts, Letters(), 4).distinct()
    assert keys[0] == keys[2]
    assert len(first) == len(set(texts))
    assert sorted(first.values()) == [0, 1, 3]


def test_tokenise_windows__columns_under_a_template__are_windows_of_the_rendered_row() -> None:
    template = parse_template("T {1}: {0}.", 2, None)
    columns = [["body " * 9, "b"], ["title", "t"]]
    rendered = [template.render(row) for row in zip(*columns, strict=True)]
    expected = windows_of(rendered, Letters((1,)), 12)
    found = tokenise_rows(columns, template, Letters((1,)), 12, "windows")
    assert np.array_equal(found.run.ids, expected.run.ids)
    assert np.array_equal(found.first, expected.first)


def test_tokenise_windows__words_without_room__are_read_and_not_refused() -> None:
    template = parse_template("many words before {text}", 1, None)
    windows = tokenise_rows([["x"]], template, Letters(), 8, "windows")
    assert np.diff(windows.first).tolist() == [4]  # 19 letters


def test_tokenise_windows__no_room_beside_special_tokens__still_reads_every_token() -> None:
    encoder = Letters((1,), (2,))
    windows = windows_of(["abc"], encoder, 2)
    assert np.diff(windows.first).tolist() == [3]
    assert windows.run.ids.reshape(3, -1)[:, 1].tolist() == encoder.encode(["abc"])[0]


def test_tokenise__n_cut__counts_rows_and_not_distinct_texts() -> None:
    texts = ["a" * 11, "b" * 10, "a" * 11]
    assert tokenise(texts, Letters(), 10).n_cut == 2
    template = parse_template("{0}-{1}", 2, None)
    columns = [["a" * 9, "b", "a" * 9], ["x", "y", "x"]]
    assert tokenise_rows(columns, template, Letters(), 10).n_cut == 2
    assert tokenise_rows(columns, template, Letters(), 11).n_cut == 0
    assert tokenise_rows(columns, template, Letters(), 10, "windows").n_cut == 0
