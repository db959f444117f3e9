"""Every page can be found, every public name is in the reference, and links lead somewhere."""

import inspect
import re
import tomllib
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from numpydoc.validate import validate

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = {
    path.relative_to(DOCS).with_suffix("").as_posix(): path.read_text("utf-8")
    for path in sorted(
        [*DOCS.glob("*.md"), *DOCS.glob("decisions/*.md"), *DOCS.glob("recipes/*.md")]
    )
}
HOST_PAGES = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "examples/serve/README.md")
PACKAGES = ("skgpt", "skgpt.exceptions", "skgpt.plots", "skgpt.testing", "skgpt.tuning")

_TOCTREE = re.compile(r"^```\{toctree\}\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_FENCED = re.compile(r"^```.*?^```$", re.DOTALL | re.MULTILINE)
_LINK = re.compile(r"\]\((?!https?:|mailto:)([^)#\s]*)(?:#([^)\s]+))?\)")


def entries(page: str) -> list[str]:
    """Return what the toctrees of a page name."""
    lines = [line for tree in _TOCTREE.findall(page) for line in tree.splitlines()]
    return [line.strip() for line in lines if line.strip() and not line.startswith(":")]


def reachable(pages: dict[str, str]) -> set[str]:
    """Return what the toctrees lead to from the front page."""
    found, waiting = set(), ["index"]
    while waiting:
        page = waiting.pop()
        if page not in found:
            found.add(page)
            waiting += entries(pages.get(page, ""))
    return found


def anchors(page: str) -> set[str]:
    """Return the anchors of the headings of a Markdown text."""
    titles = re.findall(r"^#+ (.+)$", _FENCED.sub("", page), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def dead_links(path: Path) -> list[str]:
    """Return the relative links of a Markdown file that lead nowhere."""
    dead = []
    for target, anchor in _LINK.findall(_FENCED.sub("", path.read_text("utf-8"))):
        there = path.parent / target if target else path
        # The gallery's pages are made by the build, each from a file of examples/.
        if there.parent.name == "auto_examples":
            source = "GALLERY_HEADER.rst" if there.stem == "index" else f"{there.stem}.py"
            there = ROOT / "examples" / source
        lost = anchor and there.is_file() and anchor not in anchors(there.read_text("utf-8"))
        if lost or not there.exists():
            dead.append(f"{target}#{anchor}" if anchor else target)
    return dead


def public_names(module: ModuleType) -> list[str]:
    names = getattr(module, "__all__", None) or [
        name
        for name, value in vars(module).items()
        if inspect.isclass(value) and (value.__module__, value.__name__) == (module.__name__, name)
    ]
    return [f"{module.__name__}.{name}" for name in names if not name.startswith("__")]


PUBLIC = [name for package in PACKAGES for name in public_names(import_module(package))]


def in_reference(page: str) -> list[str]:
    """Return what the reference's autosummary directives name, in full."""
    found = []
    for block in re.findall(r"^```\{eval-rst\}\n(.*?)^```$", page, flags=re.DOTALL | re.MULTILINE):
        (module,) = re.findall(r"^\.\. currentmodule:: (\S+)$", block, flags=re.MULTILINE)
        found += [f"{module}.{name}" for name in re.findall(r"^   (\w+)$", block, re.MULTILINE)]
    return found


def described(name: str) -> list[str]:
    """Return a public name, and the methods and properties of ours if it is a class."""
    module, _, attribute = name.rpartition(".")
    value: Any = getattr(import_module(module), attribute)
    if not inspect.isclass(value):
        return [name]
    members = {
        member: kind
        for parent in reversed(value.__mro__)
        if parent.__module__.startswith("skgpt.")
        for member, kind in vars(parent).items()
        if not member.startswith("_") and member not in getattr(parent, "_fields", ())
    }
    shown = (property, classmethod, staticmethod)
    return [
        name,
        *(
            f"{name}.{member}"
            for member, kind in members.items()
            if isinstance(kind, shown) or inspect.isroutine(getattr(value, member))
        ),
    ]


def test_toctrees__all_pages_and_no_others__are_in_one() -> None:
    assert reachable(PAGES) ^ set(PAGES) == {"auto_examples/index"}  # which the build makes


def test_reference__every_public_name__is_there_once() -> None:
    assert sorted(in_reference(PAGES["api"])) == sorted(PUBLIC)


def test_representation__links__are_where_the_reference_lies() -> None:
    for name in in_reference(PAGES["api"]):
        module, _, attribute = name.rpartition(".")
        value = getattr(import_module(module), attribute)
        if hasattr(value, "_doc_link_template"):
            page = value._doc_link_template.format(estimator_name=attribute)
            assert page.endswith(f"/generated/{name}.html")
    assert ":toctree: generated/" in PAGES["api"]


@pytest.mark.parametrize("page", [*(f"docs/{name}.md" for name in PAGES), *HOST_PAGES])
def test_links__of_each_page__lead_somewhere(page: str) -> None:
    assert dead_links(ROOT / page) == []


def test_dead_links__file_or_heading_that_is_not_there__is_named(tmp_path: Path) -> None:
    (tmp_path / "b.md").write_text("# Some `Title`, so\n")
    (tmp_path / "a.md").write_text(
        "## Here\n[1](b.md) [2](b.md#some-title-so) [3](#here) [4](https://x.org/y.md)\n"
        "[5](c.md) [6](b.md#else) [7](#there)\n"
    )
    assert dead_links(tmp_path / "a.md") == ["c.md", "b.md#else", "#there"]


@pytest.mark.parametrize("name", PUBLIC)
def test_docstring__of_each_public_name__passes_numpydocs_checks(name: str) -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]
    checks = set(settings["numpydoc_validation"]["checks"])
    found = {
        part: [f"{code}: {what}" for code, what in validate(part)["errors"] if code in checks]
        for part in described(name)
    }
    assert {part: errors for part, errors in found.items() if errors} == {}
