"""The rules of docs/architecture.md, read from the source text.

Every rule is a function from a `Module` to sentences, so that it can be tried on a few lines of
source as well as on the package.
"""

import ast
import subprocess
import sys
from collections.abc import Callable, Iterator
from graphlib import CycleError, TopologicalSorter
from importlib import import_module
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
    ("calibration", "label_words"),
    ("fitted_model",),
    ("fit_data",),
    ("lora", "sklearn_callbacks", "saving", "explanations", "cost"),
    ("fitting",),
    ("exchange",),
    ("_base",),
    ("prompted_model",),
    ("classifier", "embedder", "regressor", "zero_shot"),
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
    "onnx": ("skgpt.saving",),
    "onnxruntime": ("skgpt.saving",),
    "onnxscript": ("skgpt.saving",),
    "optuna": ("skgpt.tuning",),
    "optuna_integration": ("skgpt.tuning",),
    "matplotlib": ("skgpt.plots",),
}
PRIVATE_SKLEARN_DOOR = "skgpt._sklearn"

MAX_FUNCTION_LINES = 60  # from def to the end, the docstring not counted
MAX_ANCESTORS = 2


class Module(NamedTuple):
    """One source file: its dotted name and its text."""

    name: str
    source: str

    @property
    def tree(self) -> ast.Module:
        return ast.parse(self.source)


class Import(NamedTuple):
    """One imported name: ``from module import name``, or ``import module`` with name None."""

    module: str
    name: str | None
    line: int

    @property
    def whole(self) -> str:
        return self.module if self.name is None else f"{self.module}.{self.name}"

    @property
    def target(self) -> str:
        """The module that is imported: ``from skgpt.data import inputs`` is skgpt.data.inputs."""
        return self.whole if self.whole in KNOWN else self.module


def read_modules() -> list[Module]:
    paths = sorted((ROOT / "skgpt").rglob("*.py"))
    names = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in paths]
    return [
        Module(name.removesuffix(".__init__"), path.read_text("utf-8"))
        for name, path in zip(names, paths, strict=True)
    ]


MODULES = read_modules()
KNOWN = {module.name for module in MODULES}


def imports(module: Module) -> Iterator[Import]:
    """Yield every import, at whatever depth: in functions, under TYPE_CHECKING, by name."""
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            yield from (Import(alias.name, None, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{module.name}:{node.lineno} imports by a relative name"
            yield from (Import(str(node.module), alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.Call) and node.args:
            function = ast.unparse(node.func).rpartition(".")[2]
            named = node.args[0]
            by_name = function in ("import_module", "import_optional", "__import__")
            if by_name and isinstance(named, ast.Constant):
                yield Import(str(named.value), None, node.lineno)


def is_under(name: str, parent: str) -> bool:
    return name == parent or name.startswith(parent + ".")


def unit_of(name: str) -> str:
    """Return the folder or top-level module that a module of ours belongs to."""
    return name.split(".")[1] if "." in name else ""


def layer_violations(module: Module) -> list[str]:
    """Rule 6: only from the own folder or a lower floor."""
    unit = unit_of(module.name)
    if unit == "":  # skgpt/__init__.py hands out the public names of every layer
        return []
    if unit not in LAYERS:
        return [f"{module.name} has no layer: give {unit!r} a place in FLOORS"]
    found_wrong = []
    for found in imports(module):
        if not is_under(found.target, "skgpt") or found.whole == "skgpt.__version__":
            continue
        other = unit_of(found.target)
        same_folder = other == unit or (other in BASE and unit in BASE)
        lower = LAYERS.get(other, 99) < LAYERS[unit]
        if unit in ONLY_FROM_BASE:
            lower = other in BASE
        if not (same_folder or lower):
            found_wrong.append(f"{module.name}:{found.line} imports {found.target}")
    return found_wrong


def import_cycles(modules: list[Module]) -> list[str]:
    """Rule 6: no module leads back to itself, imports in functions included."""
    graph = {
        module.name: {found.target for found in imports(module)} & KNOWN - {module.name}
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
    return [
        f"{module.name}:{found.line} imports {dependency}"
        for found in imports(module)
        for dependency, doors in DOORS.items()
        if is_under(found.whole, dependency) and not any(is_under(module.name, d) for d in doors)
    ]


def private_sklearn_violations(module: Module) -> list[str]:
    """Rule 6: scikit-learn's private names are used in one module only."""
    if module.name == PRIVATE_SKLEARN_DOOR:
        return []
    used = [(found.whole, found.line) for found in imports(module)]
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
    found_wrong = []
    for node in ast.walk(module.tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name != "__init__":
            docstring = ast.get_docstring(node, clean=False)
            n_lines = (node.end_lineno or 0) - node.lineno + 1
            n_lines -= len(docstring.splitlines()) if docstring else 0
            if n_lines > MAX_FUNCTION_LINES:
                found_wrong.append(f"{module.name}:{node.lineno} {node.name} has {n_lines} lines")
    return found_wrong


RULES = (layer_violations, door_violations, private_sklearn_violations, size_violations)


@pytest.mark.parametrize("rule", RULES)
def test_package__each_rule__kept_by_every_module(rule: Callable[[Module], list[str]]) -> None:
    assert [sentence for module in MODULES for sentence in rule(module)] == []


def test_package__all_modules_together__no_cycle() -> None:
    assert import_cycles(MODULES) == []


def test_package__each_class__stands_on_at_most_two_of_ours() -> None:
    """Rule 2; of exceptions no one reads the code."""
    for module in KNOWN - {"skgpt.exceptions"}:
        classes = [v for v in vars(import_module(module)).values() if isinstance(v, type)]
        for value in [value for value in classes if value.__module__ == module]:
            ours = [base for base in value.__mro__[1:] if is_under(base.__module__, "skgpt")]
            assert len(ours) <= MAX_ANCESTORS, value


def test_import__light_modules__load_neither_torch_nor_transformers() -> None:
    light = sorted(name for name in KNOWN if unit_of(name) in LIGHT and "._" not in name)
    code = """
import sys
for name in sys.argv[1:]:
    __import__(name)
    assert not {"torch", "transformers"} & set(sys.modules), name
"""
    command = [sys.executable, "-c", code, "skgpt", "skgpt.testing", *light]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")


FUNCTION = "def {}():\n    '''Two\n    lines.'''\n" + "    pass\n" * (MAX_FUNCTION_LINES - 1)
PLANTED = {
    layer_violations: [
        ("data.inputs", "import skgpt.network.network", 1),
        ("data.inputs", "def f():\n    from skgpt.network import network", 1),
        ("caching", "from skgpt.data.inputs import find_columns", 1),
        ("caching", "from skgpt.exceptions import CacheError", 0),
        ("network.network", "import importlib\nimportlib.import_module('skgpt.tuning')", 1),
        ("training.loop", "if TYPE_CHECKING:\n    from skgpt.classifier import Base", 1),
        ("persistence", "from skgpt.tuning import search", 1),
        ("testing.tiny", "from skgpt.data.inputs import find_columns", 1),
        ("helpers", "import numpy", 1),
    ],
    door_violations: [
        ("data.inputs", "import torch.nn as nn", 1),
        ("classifier", "def f():\n    from torch import nn", 1),
        ("classifier", "__import__('optuna')", 1),
        ("persistence", "from safetensors import torch", 1),
        ("network.network", "import transformers, torch, peft", 1),
        ("tuning.search", "import optuna\nimport matplotlib.pyplot", 1),
    ],
    private_sklearn_violations: [
        ("data.inputs", "from sklearn.utils._param_validation import Interval", 1),
        ("data.inputs", "from sklearn.utils.validation import _num_samples", 1),
        ("data.inputs", "import sklearn\nsklearn.utils._tags.get_tags", 2),
        ("_sklearn", "from sklearn.base import _fit_context", 0),
    ],
    size_violations: [
        ("data.inputs", FUNCTION.format("f"), 0),
        ("data.inputs", FUNCTION.format("f") + "    pass", 1),
        ("data.inputs", FUNCTION.format("__init__") + "    pass", 0),
    ],
}


@pytest.mark.parametrize("rule", RULES)
def test_each_rule__planted_lines__are_counted(rule: Callable[[Module], list[str]]) -> None:
    for name, source, n_wrong in PLANTED[rule]:
        assert len(rule(Module(f"skgpt.{name}", source))) == n_wrong, source


def test_import_cycles__import_in_a_function__found() -> None:
    first = Module("skgpt.data.inputs", "from skgpt.data import tokenization")
    second = Module("skgpt.data.tokenization", "def f():\n    import skgpt.data.inputs")
    (cycle,) = import_cycles([first, second])
    assert "skgpt.data.inputs -> skgpt.data.tokenization" in cycle
    assert import_cycles([first, Module("skgpt.data.tokenization", "")]) == []
