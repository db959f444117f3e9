"""Running a page of the gallery on a tiny model and made-up texts."""

import runpy
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"


def run_example(name: str, patch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Run an example in its small mode; return its names, and its figures as "figures"."""
    patch.setenv("SKGPT_EXAMPLES_SMALL", "1")
    patch.setenv("PIP_NO_INDEX", "1")
    patch.syspath_prepend(EXAMPLES)
    for module in ("_data", "_small"):
        patch.delitem(sys.modules, module, raising=False)
    patch.setattr(plt, "show", lambda: None)
    plt.switch_backend("agg")
    plt.close("all")  # those of other tests
    names = runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="example")
    return {**names, "figures": [plt.figure(number) for number in plt.get_fignums()]}


def page_of(name: str) -> Any:
    """Return a fixture that runs an example once for all tests of a module."""

    @pytest.fixture(scope="module")
    def page() -> Iterator[dict[str, Any]]:
        with pytest.MonkeyPatch.context() as patch:
            yield run_example(name, patch)
            plt.close("all")

    return page
