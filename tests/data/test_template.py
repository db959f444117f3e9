"""Templates: what is put where, and what is refused before any text is seen."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skgpt.data.template import parse_template
from skgpt.exceptions import InvalidTextError

NAMES = ["title", "body text", "n"]
ROW = ["A", "B", "C"]


def rendered(template: str | None, row: list[str], names: list[str] | None = None) -> str:
    return parse_template(template, len(row), names).render(row)


@given(
    pieces=st.lists(st.one_of(st.text(), st.integers(0, 2)), max_size=8),
    last=st.integers(0, 2),
    row=st.lists(st.text(alphabet="a{}0 \n", max_size=6), min_size=3, max_size=3),
)
@settings(max_examples=60, deadline=None)
def test_render__any_positions_and_braces__is_what_str_format_gives(
    pieces: list[str | int], last: int, row: list[str]
) -> None:
    written = [
        "{" + str(piece) + "}"
        if isinstance(piece, int)
        else piece.replace("{", "{{").replace("}", "}}")
        for piece in [*pieces, last]
    ]
    template = "".join(written)
    assert rendered(template, row) == template.format(*row)


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{title}: {body text}", "A: B"),
        ("{2}{0}", "CA"),
        ("{n} {n} {title}\n", "C C A\n"),
        ("{{title}} {title}", "{title} A"),
        ("{{{title}}}", "{A}"),
        ("100% {0} \\n", "100% A \\n"),
        (None, "A\n\nB\n\nC"),
    ],
)
def test_render__names_and_positions__are_columns(template: str | None, expected: str) -> None:
    assert rendered(template, ROW, NAMES) == expected


def test_render__names_that_look_like_something_else__are_names() -> None:
    row = ["A", "B", "C", "D"]
    names = ["1", "0", "a.b[0]", "x:y!r"]
    assert rendered("{1}{0}{2}{a.b[0]}{x:y!r}", row, names) == "ABCCD"


@pytest.mark.parametrize("names", [None, ["review"], ["text"]])
def test_render__text__is_the_single_column_whatever_its_name(names: list[str] | None) -> None:
    assert rendered("Review: {text}", ["A"], names) == "Review: A"


def test_is_plain__one_field_and_no_words__only() -> None:
    for template, n_columns in [(None, 1), ("{text}", 1), ("{0}", 1), ("{1}", 2)]:
        assert parse_template(template, n_columns, None).is_plain
    for template, n_columns in [(None, 2), ("{text} ", 1), (" {text}", 1), ("{text}{text}", 1)]:
        assert not parse_template(template, n_columns, None).is_plain


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{titel}", r"'\{titel\}'.*X has 3 columns and none of that name or position"),
        ("{" + "9" * 5000 + "}", "none of that name or position"),
        ("{ title }", "none of that name or position"),
        ("{}", "it is empty"),
        ("{title.upper}", "attributes and indices are not supported"),
        ("{title[0]}", "attributes and indices are not supported"),
        ("{title!r}", "conversions and format specifications are not supported"),
        ("{0:.2f}", "conversions and format specifications are not supported"),
        ("{title", r"single '\{' at position 0"),
        ("{title}}", r"single '\}' at position 7"),
        ("{title:{n}}", r"single '\{' at position 0"),
        ("{{title}}", "at least one field"),
        ("", "at least one field. Got ''"),
        (b"{title}", r"must be a str or None. Got b'\{title\}' \(bytes\)"),
    ],
)
def test_parse_template__unusable__says_what_is_available(template: str, message: str) -> None:
    with pytest.raises(InvalidTextError, match=message) as caught:
        parse_template(template, 3, NAMES)
    assert "available are {title}, {body text}, {n}" in str(caught.value)
    assert isinstance(caught.value, ValueError)


def test_parse_template__unnamed_columns__are_available_by_position() -> None:
    with pytest.raises(InvalidTextError, match=r"available are \{0\}, \{1\}\."):
        parse_template("{title}", 2, None)
    with pytest.raises(InvalidTextError, match=r"available are \{text\}, \{0\}\."):
        parse_template("{title}", 1, None)


def test_parse_template__a_name_of_two_columns__asks_for_a_position() -> None:
    with pytest.raises(InvalidTextError, match="2 columns have that name: use a position"):
        parse_template("{a}", 3, ["a", "b", "a"])
    with pytest.raises(InvalidTextError, match="2 columns have that name"):
        parse_template("{1}", 3, ["1", "b", "1"])
    assert rendered("{2}", ROW, ["a", "b", "a"]) == "C"
