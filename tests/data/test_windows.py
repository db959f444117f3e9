"""Long texts in windows: every token of a text is in one, short texts are as they were."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skgpt.data.template import parse_template
from skgpt.data.tokenization import (
    Windows,
    tokenise,
    tokenise_columns,
    tokenise_rows,
    tokenise_windows,
)
from tests.data.test_tokenization import Letters

PLAIN = parse_template(None, 1, None)


def windows_of(texts: list[str], encoder: Letters, max_length: int) -> Windows:
    return tokenise_windows([texts], PLAIN, encoder, max_length)


def bare(windows: Windows, text: int, encoder: Letters) -> list[list[int]]:
    """Return the windows of a text, their special tokens checked and taken away."""
    found = []
    for i in range(windows.first[text], windows.first[text + 1]):
        ids = windows.each.row(i).tolist()
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
            assert windows.each.row(int(windows.first[text])).tolist() == [encoder.empty_id]
            continue
        ids, parts = encoder.encode([texts[text]])[0], bare(windows, text, encoder)
        step = max(1, room // 2)
        if len(ids) <= room:
            assert parts == [ids]
            continue
        starts = [step * i for i in range(len(parts) - 1)] + [len(ids) - room]
        assert parts == [ids[start : start + room] for start in starts]
        assert all(0 < b - a <= step for a, b in pairwise(starts))


def test_tokenise_windows__texts_that_fit__are_those_that_are_cut_nowhere() -> None:
    texts, encoder = ["abc", "", "hello world", "abc"], Letters((1,), (2,))
    windows, cut = windows_of(texts, encoder, 13), tokenise(texts, encoder, 13)
    assert np.array_equal(windows.each.ids, cut.ids)
    assert np.array_equal(windows.each.offsets, cut.offsets)
    assert np.array_equal(windows.lengths, cut.lengths)
    assert windows.distinct() == cut.distinct()
    assert windows.n_cut == cut.n_cut == 0


def test_windows__lengths_and_numbers__are_those_of_all_windows_of_a_text() -> None:
    windows = windows_of(["abcdefghij", "k", "abcdefgh"], Letters(), 4)
    assert windows.counts.tolist() == [4, 1, 3]
    assert windows.lengths.tolist() == [16, 1, 12]
    assert windows.of(np.array([2, 0])).tolist() == [5, 6, 7, 0, 1, 2, 3]


def test_windows__distinct__tells_texts_apart_that_begin_alike() -> None:
    # The last would be the first one's windows, were they laid end to end without their lengths.
    texts = ["abcdef", "abcd", "abcdef", "abcdcdef"]
    keys, first = windows_of(texts, Letters(), 4).distinct()
    assert keys[0] == keys[2]
    assert len(first) == len(set(texts))
    assert sorted(first.values()) == [0, 1, 3]


def test_tokenise_windows__the_same_text_twice__is_encoded_once() -> None:
    encoder = Letters()
    windows_of(["a", "b" * 30, "a", "b" * 30], encoder, 10)
    assert encoder.asked == ["a", "b" * 30]


def test_tokenise_windows__columns_under_a_template__are_windows_of_the_rendered_row() -> None:
    template = parse_template("T {1}: {0}.", 2, None)
    columns = [["body " * 9, "b"], ["title", "t"]]
    rendered = [template.render(row) for row in zip(*columns, strict=True)]
    expected = windows_of(rendered, Letters((1,)), 12)
    found = tokenise_windows(columns, template, Letters((1,)), 12)
    assert np.array_equal(found.each.ids, expected.each.ids)
    assert np.array_equal(found.first, expected.first)


def test_tokenise_windows__words_without_room__are_read_and_not_refused() -> None:
    template = parse_template("many words before {text}", 1, None)
    windows = tokenise_windows([["x"]], template, Letters(), 8)
    assert windows.counts.tolist() == [4]  # 19 letters


@pytest.mark.parametrize("max_length", [2, 3])
def test_tokenise_windows__hardly_room_beside_special_tokens__still_reads_every_token(
    max_length: int,
) -> None:
    encoder = Letters((1,), (2,))
    windows = windows_of(["abc"], encoder, max_length)
    assert windows.counts.tolist() == [3]
    assert windows.each.ids.reshape(3, -1)[:, 1].tolist() == encoder.encode(["abc"])[0]


def test_tokenise_rows__long_text__decides() -> None:
    columns, encoder = [["a" * 30, "b"]], Letters()
    cut = tokenise_rows(columns, PLAIN, encoder, 10, "cut")
    assert np.array_equal(cut.ids, tokenise_columns(columns, PLAIN, encoder, 10).ids)
    assert cut.n_cut == 1
    assert isinstance(tokenise_rows(columns, PLAIN, encoder, 10, "windows"), Windows)


def test_tokenise__n_cut__counts_rows_and_not_distinct_texts() -> None:
    texts = ["a" * 11, "b" * 10, "a" * 11]
    assert tokenise(texts, Letters(), 10).n_cut == 2
    template = parse_template("{0}-{1}", 2, None)
    columns = [["a" * 9, "b", "a" * 9], ["x", "y", "x"]]
    assert tokenise_columns(columns, template, Letters(), 10).n_cut == 2
    assert tokenise_columns(columns, template, Letters(), 11).n_cut == 0
