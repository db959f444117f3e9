"""The snippets of the guides run, section by section, and give what they say."""

import ast
import inspect
import re
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from huggingface_hub import HfApi

from skgpt import GPTTextClassifier
from skgpt._sklearn import HAS_CALLBACKS
from tests import stand_ins

ROOT = Path(__file__).parent.parent
GUIDES = (
    *("user_guide.md", "persistence.md", "checkpoints.md", "huggingface.md"),
    *("tuning.md", "gpu.md", "embedder.md", "regression.md"),
)
SHORT_GUIDES = (
    "getting_started.md",
    "coming_from.md",
    "zero_shot.md",
    "onnx.md",
)  # each is one story
RECIPES = sorted(path.stem for path in (ROOT / "docs" / "recipes").glob("*.md"))

_OTHERS = re.compile(r"^```py\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_BLOCK = re.compile(r"^```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_EXPECTED = re.compile(r"  # -> (?P<value>.+)$", re.MULTILINE)


def read(guide: str) -> str:
    return (ROOT / "docs" / guide).read_text("utf-8")


def sections(guide: str) -> dict[str, list[str]]:
    """Return the snippets of each section; those of the introduction stand under ""."""
    text = read(guide)
    parts = re.split(r"^## (.+)$", text, flags=re.MULTILINE)
    named = dict(zip(["", *parts[1::2]], parts[::2], strict=True))
    return {title: _BLOCK.findall(text) for title, text in named.items()}


def with_checks(snippet: str) -> str:
    """Turn ``expression  # -> value`` into an assertion on what the expression shows.

    The expression may go over several lines; the comment stands behind its last.
    """
    expected = {
        snippet.count("\n", 0, found.start()) + 1: found["value"]
        for found in _EXPECTED.finditer(snippet)
    }
    lines = []
    for statement in ast.parse(snippet).body:
        code = ast.unparse(statement)
        if isinstance(statement, ast.Expr) and statement.end_lineno in expected:
            value = expected.pop(statement.end_lineno)
            code = f"shown = repr({code})\nassert shown == {value!r}, shown"
        lines.append(code)
    assert not expected, f"no expression ends where {expected} are expected"
    return "\n".join(lines)


def run(snippets: list[str], names: dict[str, object]) -> None:
    for snippet in snippets:
        exec(compile(with_checks(snippet), "a snippet of docs", "exec"), names)


def test_with_checks__a_value_that_is_not_so__is_found() -> None:
    run(["a = 3\na + 1  # -> 4\n"], {})
    run(["a = [\n    3,\n]\nsum(\n    a\n)  # -> 3\n"], {})
    with pytest.raises(AssertionError, match="4"):
        run(["a = 3\na + 1  # -> 5\n"], {})
    with pytest.raises(AssertionError, match="6"):
        run(["a = 3\nsum(\n    [a, a]\n)  # -> 5\n"], {})
    with pytest.raises(AssertionError, match="no expression ends"):
        run(["a = 3  # -> 3\n"], {})


@pytest.mark.parametrize(
    ("guide", "title"), [(guide, title) for guide in GUIDES for title in sections(guide) if title]
)
def test_guides__each_section__runs_as_it_stands(
    guide: str, title: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found = sections(guide)
    assert found[title], f"the section {title!r} shows nothing that runs"
    if not HAS_CALLBACKS and any("PruningCallback(" in snippet for snippet in found[title]):
        pytest.skip("callbacks are of scikit-learn 1.9")
    run([*found[""], *found[title]], {"__name__": "guide"})


@pytest.mark.parametrize("guide", SHORT_GUIDES)
def test_short_guides__from_beginning_to_end__run_on_whatever_model_is_the_default(
    guide: str, tiny_llama: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    init = inspect.unwrap(GPTTextClassifier.__init__)
    assert init.__defaults__ == ("smollm2-135m",)
    monkeypatch.setattr(init, "__defaults__", (tiny_llama,))
    monkeypatch.chdir(tmp_path)
    run(_BLOCK.findall(read(guide)), {"__name__": "guide"})


@pytest.mark.parametrize("snippet", _OTHERS.findall(read("coming_from.md")))
def test_coming_from__what_takes_other_packages__is_python(snippet: str) -> None:
    ast.parse(snippet)


@pytest.mark.filterwarnings("ignore:'pin_memory' argument:UserWarning")  # where there is no GPU
def test_coming_from__trainers_snippet_and_ours__run(
    tiny_llama: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    page = read("coming_from.md").replace("HuggingFaceTB/SmolLM2-135M", tiny_llama)
    (section,) = re.findall(r"^## Trainer\n(.*?)^## ", page, re.DOTALL | re.MULTILINE)
    names: dict[str, object] = {"__name__": "guide"}
    run([*sections("coming_from.md")[""], *_OTHERS.findall(section)], names)
    assert names["trainer"].state.global_step == 3
    assert names["clf"].n_iter_ == 3


def packages(snippets: list[str]) -> set[str]:
    """Return the packages that snippets import."""
    nodes = [node for snippet in snippets for node in ast.walk(ast.parse(snippet))]
    names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    names += [str(node.module) for node in nodes if isinstance(node, ast.ImportFrom)]
    return {name.partition(".")[0] for name in names}


# What other packages call is theirs to mend.
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::PendingDeprecationWarning")
@pytest.mark.parametrize("recipe", RECIPES)
def test_recipes__each_page__runs_from_beginning_to_end(
    recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    page = read(f"recipes/{recipe}.md")
    snippets = _BLOCK.findall(page)
    if not HAS_CALLBACKS and "set_callbacks(" in page:
        pytest.skip("callbacks are of scikit-learn 1.9")

    # Whatever is not installed: a stand-in, if there is one, and the page says so.
    modules, needed = stand_ins.modules(), packages(snippets)
    assert ("stand-in" in page) == bool(needed & modules.keys())
    absent = {name for name in needed if find_spec(name) is None}
    for name in absent - modules.keys():
        pytest.skip(f"needs {name}")
    for name, module in modules.items():
        if name.partition(".")[0] in absent:
            monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(HfApi, "create_repo", stand_ins.create_repo)
    monkeypatch.setattr(HfApi, "upload_folder", stand_ins.upload_folder)

    run(snippets, {"__name__": "guide"})
    for snippet in _OTHERS.findall(page):
        ast.parse(snippet)
