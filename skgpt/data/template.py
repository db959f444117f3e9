"""Join the columns of a row to one text by the user's template, parsed once."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from skgpt.exceptions import InvalidTextError

# In this order: a doubled brace is a literal one, and a brace that closes nothing stands alone.
_PIECES = re.compile(r"(?P<literal>\{\{|\}\})|\{(?P<field>[^{}]*)\}|(?P<lone>[{}])")

_JOINT = "\n\n"  # between columns that are joined


@dataclass(frozen=True)
class Template:
    """Words and fields by turns: a word, a field, a word, ..., a field, a word.

    `fields` are positions of columns. There is a word more than fields; any may be empty.
    `joins_all` where all columns are joined: then each is read, whatever its name.
    """

    words: tuple[str, ...]
    fields: tuple[int, ...]
    joins_all: bool = field(default=False, compare=False)

    @property
    def is_plain(self) -> bool:
        """Whether the text is one column as it is."""
        return len(self.fields) == 1 and self.words == ("", "")

    def places(self, n_columns: int) -> list[int | None]:
        """Return the position of each of so many columns; None for one that isn't read."""
        return [i if i in self.fields else None for i in range(n_columns)]

    def render(self, row: Sequence[str]) -> str:
        """Return the text of a row, its values put in as they are, braces and all."""
        if self.is_plain:  # no copy of a text that may be long
            return row[self.fields[0]]
        pieces = [self.words[0]]
        for column, word in zip(self.fields, self.words[1:], strict=True):
            pieces += (row[column], word)
        return "".join(pieces)


def parse_template(
    template: str | None, n_columns: int, names: Sequence[str] | None, *, joins: bool = False
) -> Template:
    """Parse a template for rows of so many columns; `names` are the columns' if they have any.

    A field is a column's name or position in braces, or ``{text}`` where there is one column only;
    a name goes before a position. ``{{`` and ``}}`` are literal braces. None joins all columns with
    a blank line; with `joins`, so does ``{text}`` where no column has that name. An
    InvalidTextError says what is wrong and which fields there are.
    """
    joints = (_JOINT,) * (n_columns - 1)
    if template is None:
        return Template(("", *joints, ""), tuple(range(n_columns)), joins_all=True)
    joins = joins and "text" not in (names or ())
    available = _available(n_columns, names)
    if not isinstance(template, str):
        raise InvalidTextError(
            f"`template` must be a str or None. Got {template!r} ({type(template).__name__}): "
            f"write text with fields in braces; {available}."
        )
    words, fields = [""], list[int]()
    end = 0
    for piece in _PIECES.finditer(template):
        words[-1] += template[end : piece.start()]
        end = piece.end()
        if piece["lone"]:
            raise InvalidTextError(
                f"Every brace of `template` must have its other half. Got a single "
                f"{piece['lone']!r} at position {piece.start()} of {template!r}: write "
                f"{piece['lone'] * 2!r} for a literal brace; {available}."
            )
        if piece["literal"]:
            words[-1] += piece["literal"][0]
        elif joins and piece["field"] == "text":
            fields += range(n_columns)
            words += [*joints, ""]
        else:
            fields.append(_position(piece["field"], template, n_columns, names))
            words.append("")
    words[-1] += template[end:]
    if not fields:
        raise InvalidTextError(
            f"`template` must hold at least one field. Got {template!r}: put a field where the "
            f"text belongs; {available}."
        )
    joins_all = joins and "text" in fields_of(template)
    return Template(tuple(words), tuple(fields), joins_all)


def fields_of(template: str) -> list[str]:
    """Return the different fields that a template names, whatever columns there are."""
    found = [piece["field"] for piece in _PIECES.finditer(template)]
    return list(dict.fromkeys(field for field in found if field))


def before_field(template: str, field: str) -> str:
    """Return what stands before a field of a template, as it is written."""
    pieces = _PIECES.finditer(template)
    return template[: next(piece.start() for piece in pieces if piece["field"] == field)]


def _position(field: str, template: str, n_columns: int, names: Sequence[str] | None) -> int:
    """Return the position of the column that a field names."""
    known = [] if names is None else list(names)
    if known.count(field) == 1:
        return known.index(field)
    if field not in known and field in map(str, range(n_columns)):
        return int(field)
    if field == "text" and n_columns == 1:
        return 0
    if field in known:
        wrong = f"{known.count(field)} columns have that name: use a position"
    elif not field:
        wrong = "it is empty"
    elif re.search(r"[!:]", field):
        wrong = "conversions and format specifications are not supported"
    elif re.search(r"[.\[]", field):
        wrong = "attributes and indices are not supported"
    else:
        wrong = f"X has {n_columns} column{'s' * (n_columns > 1)} and none of that name or position"
    raise InvalidTextError(
        f"Every field of `template` must be the bare name or position of a column. Got "
        f"{'{' + field + '}'!r} in {template!r}: {wrong}; {_available(n_columns, names)}. Write "
        "'{{' and '}}' for literal braces."
    )


def _available(n_columns: int, names: Sequence[str] | None) -> str:
    """Name the fields that there are, or the first of them."""
    fields = [str(i) for i in range(n_columns)] if names is None else list(names)
    if n_columns == 1:
        fields = list(dict.fromkeys(["text", *fields]))
    shown = ", ".join("{" + field + "}" for field in fields[:20])
    return f"available are {shown}{', ...' if len(fields) > 20 else ''}"
