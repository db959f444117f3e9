"""The user guide's snippets run, section by section, and give what they say."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
GUIDE = (ROOT / "docs" / "user_guide.md").read_text("utf-8")

_BLOCK = re.compile(r"^```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_CHECKED = re.compile(r"^(?P<code>\S.*?)  # -> (?P<value>.+)$", re.MULTILINE)


def sections() -> dict[str, list[str]]:
    """Return the snippets of each section; those of the introduction stand under ""."""
    parts = re.split(r"^## (.+)$", GUIDE, flags=re.MULTILINE)
    named = dict(zip(["", *parts[1::2]], parts[::2], strict=True))
    return {title: _BLOCK.findall(text) for title, text in named.items()}


def with_checks(snippet: str) -> str:
    """Turn ``expression  # -> value`` into an assertion on what the expression shows."""

    def check(found: re.Match[str]) -> str:
        return f"assert repr({found['code']}) == {found['value']!r}, {found['code']}"

    return _CHECKED.sub(check, snippet)


def run(snippets: list[str], names: dict[str, object]) -> None:
    for snippet in snippets:
        exec(compile(with_checks(snippet), "docs/user_guide.md", "exec"), names)


def test_with_checks__a_value_that_is_not_so__is_found() -> None:
    run(["a = 3\na + 1  # -> 4\n"], {})
    with pytest.raises(AssertionError):
        run(["a = 3\na + 1  # -> 5\n"], {})


@pytest.mark.parametrize("title", [title for title in sections() if title])
def test_user_guide__each_section__runs_as_it_stands(
    title: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found = sections()
    assert found[title], f"the section {title!r} shows nothing that runs"
    run([*found[""], *found[title]], {"__name__": "guide"})


def test_user_guide__every_group_of_the_contract__has_a_section() -> None:
    assert {"Texts", "Labels", "Weights", "Early stopping", "More fitting"} <= set(sections())
    assert {"Metadata routing", "Progress and callbacks"} <= set(sections())


def test_user_guide__its_links__lead_somewhere() -> None:
    for name in ("user_guide.md", "architecture.md", "benchmarks.md"):
        text = (ROOT / "docs" / name).read_text("utf-8")
        for target in re.findall(r"\]\(([^)#:]+)\)", text):
            assert (ROOT / "docs" / target).exists(), f"{name} links to {target}"
