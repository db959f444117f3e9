"""No text of the project tells anybody to install "skgpt", a stranger's on the package index.

The import name is skgpt, the distribution's is skgpt-text.
"""

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
NAME = "skgpt-text"

FOLDERS = (".ci", ".github", "docs", "examples", "skgpt", "tests")
GENERATED = {"__pycache__", "_build", "auto_examples", "generated"}
TEXT = {"", ".md", ".py", ".rst", ".toml", ".txt", ".yml"}

# What would fetch a stranger's package: `pip install skgpt`, or an extra of it, `skgpt[serve]`.
STRANGER = re.compile(
    r"(?<![\w.-])(?:skgpt|scikit-gpt)\s*\[\s*[a-z]+[a-z,\s]*\]"
    r"|(?:pip3?|uv) (?:install|add|download)[^\n`]*?[\s\"'](?:skgpt|scikit-gpt)(?![\w./-])",
    re.IGNORECASE,
)


def text_files() -> Iterator[Path]:
    yield from (path for path in ROOT.iterdir() if path.is_file() and path.suffix in TEXT)
    for folder in FOLDERS:
        for path in (ROOT / folder).rglob("*"):
            if path.is_file() and path.suffix in TEXT and not GENERATED & set(path.parts):
                yield path


def test_text_files__none__tells_to_install_a_strangers_package() -> None:
    found = [
        f"{path.relative_to(ROOT)}: {match.group()}"
        for path in text_files()
        if path != Path(__file__)
        for match in STRANGER.finditer(path.read_text("utf-8"))
    ]
    assert not found


def test_stranger__old_forms_and_other_texts__are_told_apart() -> None:
    assert STRANGER.search('pip install "skgpt[serve]"')
    assert STRANGER.search("pip install -U 'skgpt>=0.1'")
    assert STRANGER.search("uv pip install scikit-gpt")
    assert not STRANGER.search('pip install "skgpt-text[serve]"')
    assert not STRANGER.search("pip install --no-deps skgpt-fake-weights==1.2.3")
    assert not STRANGER.search('versions["skgpt"]')
    assert not STRANGER.search("import skgpt")


def test_project__name__is_also_what_its_extras_call_it() -> None:
    assert PROJECT["name"] == NAME
    required = [each for extra in PROJECT["optional-dependencies"].values() for each in extra]
    ours = [each for each in required if re.match(r"skgpt|scikit", each)]
    assert ours and all(each.startswith(f"{NAME}[") for each in ours)
