"""The rules of docs/architecture.md, read from the source text.

Every checker takes a `Module` and returns sentences, so that it can be tried on a few lines of
source as well as on the package.
"""

import ast
import subprocess
import sys
from collections.abc import Callable, Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parent.parent

# The floors, from the bottom up: a module imports from its own package or from a lower floor.
# Modules of one floor that lie directly in skgpt/ may import each other, without cycles.
FLOORS = (
    ("exceptions", "_sklearn", "caching", "_files", "run_key"),
    ("device", "tensor_files"),
    ("data",),
    ("trunk",),
    ("pretrained",),
    ("network",),
    ("training",),
    ("calibration",),
    ("fitted_model",),
    ("lora", "sklearn_callbacks", "saving", "explanations", "cost"),
    ("_base", "fit_data"),
    ("fitting",),
    ("classifier",),
    ("persistence", "tuning", "plots"),
    ("testing", "__main__"),
)
LAYERS = {name: number for number, names in enumerate(FLOORS) for name in names}
BASE = FLOORS[0]
LIGHT = (*BASE, "data", "testing")  # imported without torch
# Must work on anybody's estimator, so it may not know ours.
ONLY_FROM_BASE = ("testing",)

# Who may import what; a name covers what lies under it.
TORCH = tuple(
    f"skgpt.{name}"
    for name in (
        *("tensor_files", "device", "trunk", "pretrained", "network", "training", "saving", "cost"),
        *("fitted_model", "explanations", "testing"),
    )
)
DOORS = {
    "torch": TORCH,
    "safetensors.torch": TORCH,  # it imports torch
    "transformers": (
        *("skgpt.trunk", "skgpt.pretrained", "skgpt.network", "skgpt.saving"),
        "skgpt.testing",
    ),
    "peft": ("skgpt.network.lora",),
    "bitsandbytes": ("skgpt.network.lora",),
    "optuna": ("skgpt.tuning",),
    "optuna_integration": ("skgpt.tuning",),
    "matplotlib": ("skgpt.plots",),
}
PRIVATE_SKLEARN_DOOR = "skgpt._sklearn"

MAX_FUNCTION_LINES = 60  # from def to the end, the docstring not counted
MAX_ANCESTORS = 2


class Module(NamedTuple):
    """One source file: its dotted name, whether it is an ``__init__`` and its text."""

    name: str
    source: str
    is_package: bool = False

    @property
    def tree(self) -> ast.Module:
        return ast.parse(self.source)


class Import(NamedTuple):
    """One imported name: ``from module import name``, or ``import module`` with name None."""

    module: str
    name: str | None
    line: int


def read_modules() -> list[Module]:
    modules = []
    for path in sorted((ROOT / "skgpt").rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        is_package = parts[-1] == "__init__"
        name = ".".join(parts[:-1] if is_package else parts)
        modules.append(Module(name, path.read_text("utf-8"), is_package))
    return modules


def imports(module: Module) -> Iterator[Import]:
    """Yield every import, at whatever depth: in functions, under TYPE_CHECKING, by name."""
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            yield from (Import(alias.name, None, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            source = _absolute(module, node)
            yield from (Import(source, alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.Call) and node.args:
            function = ast.unparse(node.func).rpartition(".")[2]
            named = node.args[0]
            by_name = function in ("import_module", "import_optional", "__import__")
            if by_name and isinstance(named, ast.Constant):
                yield Import(str(named.value), None, node.lineno)


def _absolute(module: Module, node: ast.ImportFrom) -> str:
    if node.level == 0:
        return node.module or ""
    parts = module.name.split(".")
    base = parts[: len(parts) - node.level + module.is_package]
    return ".".join([*base, *([node.module] if node.module else [])])


def is_under(name: str, parent: str) -> bool:
    return name == parent or name.startswith(parent + ".")


def _target(found: Import, known: set[str]) -> str:
    """Return the module that is imported: ``from skgpt.data import check`` is skgpt.data.inputs."""
    whole = f"{found.module}.{found.name}"
    return whole if whole in known else found.module


def _unit(name: str) -> str:
    """Return the folder or top-level module that a module of ours belongs to."""
    return name.split(".")[1] if "." in name else ""


def layer_violations(module: Module, known: set[str]) -> list[str]:
    """Rule 6: only from the own folder or a lower floor."""
    unit = _unit(module.name)
    if unit == "":  # skgpt/__init__.py hands out the public names of every layer
        return []
    if unit not in LAYERS:
        return [f"{module.name} has no layer: give {unit!r} a place in FLOORS"]
    found_wrong = []
    for found in imports(module):
        target = _target(found, known)
        if not is_under(target, "skgpt") or (target, found.name) == ("skgpt", "__version__"):
            continue
        other = _unit(target)
        same_folder = other == unit or (other in BASE and unit in BASE)
        lower = LAYERS.get(other, 99) < LAYERS[unit]
        if unit in ONLY_FROM_BASE:
            lower = other in BASE
        if not (same_folder or lower):
            found_wrong.append(f"{module.name}:{found.line} imports {target}")
    return found_wrong


def import_cycles(modules: list[Module]) -> list[str]:
    """Rule 6: no module leads back to itself, imports in functions included."""
    known = {module.name for module in modules}
    graph = {
        module.name: {_target(found, known) for found in imports(module)} & known - {module.name}
        for module in modules
        if module.name != "skgpt"
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return [" -> ".join(error.args[1])]
    return []


def door_violations(module: Module) -> list[str]:
    """Rule 6: each heavy dependency comes in through its own door."""
    found_wrong = []
    for found in imports(module):
        whole = found.module if found.name is None else f"{found.module}.{found.name}"
        for dependency, doors in DOORS.items():
            if is_under(whole, dependency) and not any(is_under(module.name, d) for d in doors):
                found_wrong.append(f"{module.name}:{found.line} imports {dependency}")
    return found_wrong


def private_sklearn_violations(module: Module) -> list[str]:
    """Rule 6: scikit-learn's private names are used in one module only."""
    if module.name == PRIVATE_SKLEARN_DOOR:
        return []
    used = [(f"{found.module}.{found.name or ''}", found.line) for found in imports(module)]
    used += [
        (ast.unparse(node), node.lineno)
        for node in ast.walk(module.tree)
        if isinstance(node, ast.Attribute)
    ]
    return [
        f"{module.name}:{line} uses {name}"
        for name, line in used
        if name.startswith("sklearn.")
        and any(part.startswith("_") and not part.startswith("__") for part in name.split("."))
    ]


def size_violations(module: Module) -> list[str]:
    """Rule 1: a function fits a screen; an ``__init__`` may list its parameters."""
    return [
        f"{module.name}:{node.lineno} {node.name} has {length} lines"
        for node in ast.walk(module.tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name != "__init__"
        if (length := _length_without_docstring(node)) > MAX_FUNCTION_LINES
    ]


def _length_without_docstring(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    length = (function.end_lineno or 0) - function.lineno + 1
    if ast.get_docstring(function) is not None:
        docstring = function.body[0]
        length -= (docstring.end_lineno or 0) - docstring.lineno + 1
    return length


def ancestor_violations(modules: list[Module]) -> list[str]:
    """Rule 2: a class stands on at most two others of ours; of exceptions no one reads the code."""
    bases = {}
    for module in modules:
        imported = {i.name: f"{i.module}.{i.name}" for i in imports(module) if i.name}
        classes = [node for node in ast.walk(module.tree) if isinstance(node, ast.ClassDef)]
        own = {node.name: f"{module.name}.{node.name}" for node in classes}
        for node in classes:
            names = [ast.unparse(base).partition("[")[0] for base in node.bases]
            bases[own[node.name]] = [{**imported, **own}.get(name, name) for name in names]

    def ancestors(name: str) -> set[str]:
        known = [base for base in bases.get(name, ()) if base in bases]
        return set(known).union(*map(ancestors, known))

    return [
        f"{name} stands on {sorted(found)}"
        for name in bases
        if not is_under(name, "skgpt.exceptions") and len(found := ancestors(name)) > MAX_ANCESTORS
    ]


MODULES = read_modules()
KNOWN = {module.name for module in MODULES}


@pytest.mark.parametrize(
    "rule",
    [
        lambda module: layer_violations(module, KNOWN),
        door_violations,
        private_sklearn_violations,
        size_violations,
    ],
    ids=["layers", "doors", "private_sklearn", "sizes"],
)
def test_package__each_rule__kept_by_every_module(rule: Callable[[Module], list[str]]) -> None:
    assert [sentence for module in MODULES for sentence in rule(module)] == []


def test_package__all_modules_together__no_cycle_and_no_tall_class() -> None:
    assert import_cycles(MODULES) == []
    assert ancestor_violations(MODULES) == []


def test_import__light_modules__load_neither_torch_nor_transformers() -> None:
    light = sorted(name for name in KNOWN if _unit(name) in LIGHT and "._" not in name)
    code = """
import sys
for name in sys.argv[1:]:
    __import__(name)
    assert not {"torch", "transformers"} & set(sys.modules), name
"""
    command = [sys.executable, "-c", code, "skgpt", "skgpt.testing", *light]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")


KNOWN_IN_EXAMPLES = {
    "skgpt",
    "skgpt.caching",
    "skgpt.exceptions",
    "skgpt.data",
    "skgpt.data.inputs",
    "skgpt.data.tokenization",
    "skgpt.network.network",
    "skgpt.training.loop",
    "skgpt.classifier",
    "skgpt.tuning.search",
    "skgpt.plots.curve",
    "skgpt.persistence",
    "skgpt.testing.tiny",
}


@pytest.mark.parametrize(
    ("name", "source", "imported"),
    [
        ("data.inputs", "import skgpt.network.network", "skgpt.network.network"),
        ("data.inputs", "def f():\n    from skgpt.network import network", "skgpt.network.network"),
        ("data.inputs", "from ..network.network import Network", "skgpt.network.network"),
        ("data.inputs", "from .. import training", "skgpt"),
        ("caching", "from skgpt.data.inputs import check_texts", "skgpt.data.inputs"),
        ("network.network", "import importlib\nimportlib.import_module('skgpt.tuning')", "skgpt"),
        ("network.network", "from skgpt import GPTTextClassifier", "skgpt"),
        ("tuning.search", "from skgpt.plots.curve import Curve", "skgpt.plots.curve"),
        ("persistence", "from skgpt.tuning import search", "skgpt.tuning.search"),
        ("testing.tiny", "from skgpt.data.inputs import check_texts", "skgpt.data.inputs"),
        ("helpers", "import numpy", "has no layer"),
        (
            "training.loop",
            "if TYPE_CHECKING:\n    from skgpt.classifier import Base",
            "skgpt.classifier",
        ),
    ],
)
def test_layer_violations__planted__found(name: str, source: str, imported: str) -> None:
    (sentence,) = layer_violations(Module(f"skgpt.{name}", source), KNOWN_IN_EXAMPLES)
    assert sentence.startswith(f"skgpt.{name}")
    assert imported in sentence


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("data.inputs", "from skgpt.exceptions import InvalidTextError"),
        ("data.inputs", "from .tokenization import tokenise\nfrom . import tokenization"),
        ("caching", "from skgpt.exceptions import CacheError"),
        ("tuning.search", "from skgpt.classifier import Base\nfrom skgpt.data import check"),
        ("testing.tiny", "from skgpt.exceptions import SkgptError"),
        ("persistence", "from skgpt import __version__"),
        ("network.network", "import torch\nimport skgptx"),
    ],
)
def test_layer_violations__allowed__none(name: str, source: str) -> None:
    assert layer_violations(Module(f"skgpt.{name}", source), KNOWN_IN_EXAMPLES) == []


def test_import_cycles__import_in_a_function__found() -> None:
    first = Module("skgpt.data.inputs", "from skgpt.data import tokenization")
    second = Module("skgpt.data.tokenization", "def f():\n    import skgpt.data.inputs")
    (cycle,) = import_cycles([first, second])
    assert "skgpt.data.inputs -> skgpt.data.tokenization" in cycle
    assert import_cycles([first, Module("skgpt.data.tokenization", "")]) == []


@pytest.mark.parametrize(
    ("name", "source", "n_wrong"),
    [
        ("skgpt.data.inputs", "import torch.nn as nn", 1),
        ("skgpt.classifier", "def f():\n    from torch import nn", 1),
        ("skgpt.persistence", "from safetensors import torch", 1),
        ("skgpt.persistence", "from safetensors.numpy import save", 0),
        ("skgpt.training.loop", "from transformers import get_scheduler\nimport torch", 1),
        ("skgpt.network.network", "import transformers, torch", 0),
        ("skgpt.network.network", "import peft", 1),
        ("skgpt.network.lora", "import peft", 0),
        ("skgpt.trunkling", "import torch", 1),
        ("skgpt.data.inputs", "import torchless", 0),
        ("skgpt.classifier", "__import__('optuna')", 1),
        ("skgpt.tuning.search", "import optuna\nimport matplotlib.pyplot", 1),
    ],
)
def test_door_violations__planted__counted(name: str, source: str, n_wrong: int) -> None:
    assert len(door_violations(Module(name, source))) == n_wrong


@pytest.mark.parametrize(
    ("name", "source", "n_wrong"),
    [
        ("skgpt.data.inputs", "from sklearn.utils._param_validation import Interval", 1),
        ("skgpt.data.inputs", "from sklearn.utils.validation import _num_samples", 1),
        ("skgpt.data.inputs", "import sklearn\nsklearn.utils._tags.get_tags", 2),
        ("skgpt.data.inputs", "from sklearn import __version__", 0),
        ("skgpt._sklearn", "from sklearn.base import _fit_context", 0),
    ],
)
def test_private_sklearn_violations__planted__counted(name: str, source: str, n_wrong: int) -> None:
    assert len(private_sklearn_violations(Module(name, source))) == n_wrong


def test_size_violations__at_and_over_each_limit__found() -> None:
    def function(n_lines: int, name: str = "f") -> str:
        return f"def {name}():\n    '''Two\n    lines.'''\n" + "    pass\n" * (n_lines - 1)

    def violations(source: str) -> list[str]:
        return size_violations(Module("m", source))

    assert violations(function(MAX_FUNCTION_LINES)) == []
    assert violations(function(MAX_FUNCTION_LINES + 1)) == ["m:1 f has 61 lines"]
    assert violations(function(MAX_FUNCTION_LINES + 1, "__init__")) == []


def test_ancestor_violations__a_class_on_three_of_ours__found() -> None:
    one = Module("skgpt.one", "class A: ...\nclass B(A, dict): ...\nclass C(B[int]): ...")
    two = Module("skgpt.two", "from skgpt.one import C\nclass D(C): ...\nclass E(dict): ...")
    assert ancestor_violations([one]) == []
    assert ancestor_violations([one, two]) == [
        "skgpt.two.D stands on ['skgpt.one.A', 'skgpt.one.B', 'skgpt.one.C']"
    ]
