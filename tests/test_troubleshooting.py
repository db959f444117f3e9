"""The page of messages names every class of ours, and only messages that there are."""

import ast
import re
from pathlib import Path
from typing import Any

import pytest

import skgpt.exceptions

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "troubleshooting.md").read_text("utf-8")
GAP = "…"  # what differs from case to case


def sections(page: str) -> dict[str, list[str]]:
    """Return the messages of each class: the first column of its table."""
    parts = re.split(r"^### (\w+)$", page, flags=re.MULTILINE)
    return {
        name: re.findall(r"^\| (?!The message has)([^|]+?) \|", text, flags=re.MULTILINE)
        for name, text in zip(parts[1::2], parts[2::2], strict=True)
    }


def templates(source: str) -> list[str]:
    """Return the texts of a module, with a gap for each value that is put in."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.JoinedStr):
            parts = [part.value if isinstance(part, ast.Constant) else GAP for part in node.values]
            found.append("".join(map(str, parts)))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.append(node.value)
    return found


def is_said(message: str, texts: list[str]) -> bool:
    """Say whether the parts of a message stand in one text, in this order."""
    pattern = re.compile(".*?".join(map(re.escape, message.split(GAP))), re.DOTALL)
    return any(pattern.search(text) for text in texts)


TEXTS = [
    text
    for path in sorted((ROOT / "skgpt").rglob("*.py"))
    for text in templates(path.read_text("utf-8"))
]


def test_troubleshooting__every_class_of_ours__has_a_section_with_messages() -> None:
    ours = {
        name
        for name, value in vars(skgpt.exceptions).items()
        if isinstance(value, type)
        and (value.__module__, value.__name__) == ("skgpt.exceptions", name)
    }
    found = sections(PAGE)
    assert set(found) == ours - {"SkgptError"}
    assert all(found.values())


@pytest.mark.parametrize("name", sections(PAGE))
def test_troubleshooting__the_messages_of_each_class__are_those_of_the_source(name: str) -> None:
    assert [message for message in sections(PAGE)[name] if not is_said(message, TEXTS)] == []


@pytest.mark.parametrize("name", sections(PAGE))
def test_troubleshooting__the_builtin_of_each_class__is_named(name: str) -> None:
    kind = getattr(skgpt.exceptions, name)
    ours = (skgpt.exceptions.SkgptError, UserWarning)
    builtins = {parent.__name__ for parent in kind.__bases__ if not issubclass(parent, ours)}
    (text,) = re.findall(rf"^### {name}\n\n(.*)$", PAGE, flags=re.MULTILINE)
    assert builtins == set(re.findall(r"`(\w+Error)`", text))


def test_aliases__of_error_classes__are_public_names_of_a_class_with_the_same_builtin() -> None:
    for name, builtin in {
        "SearchSpaceError": ValueError,
        "SearchFailedError": ValueError,
        "SearchStorageError": OSError,
        "CacheError": OSError,
        "CheckpointError": OSError,
        "SaveError": OSError,
        "DownloadError": OSError,
        "NotSavableError": TypeError,
        "FolderNameError": (TypeError, ValueError),
    }.items():
        kind = getattr(skgpt.exceptions, name)
        assert issubclass(kind, builtin) and kind.__name__ in sections(PAGE)


def test_warn_user__called_through_other_packages__points_at_the_users_line() -> None:
    theirs: dict[str, Any] = {"__name__": "sklearn.pipeline"}
    exec("def fit(step, *args): step(*args)", theirs)
    with pytest.warns(UserWarning, match="slow") as caught:
        theirs["fit"](theirs["fit"], skgpt.exceptions.warn_user, "slow", UserWarning)
    assert [warning.filename for warning in caught] == [__file__]


def test_is_said__parts_in_another_order_or_of_two_texts__is_not() -> None:
    texts = templates("a = f'Lower {x} from {y}: ' 'or else.'\nb = 'Wait for it.'")
    assert is_said("Lower … from …: or else.", texts)
    assert is_said("Wait for", texts)
    assert not is_said("or else … Lower", texts)
    assert not is_said("or else … Wait", texts)
