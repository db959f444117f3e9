"""Searches for parameters, and whether what they find is worth it.

What needs Optuna (the extra ``optuna``) is imported when it is first used; `compare_with_baseline`
doesn't.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from skgpt.tuning.baseline import BaselineReport, compare_with_baseline
    from skgpt.tuning.own_study import PruningCallback, objective

__all__ = ["BaselineReport", "PruningCallback", "compare_with_baseline", "objective"]

_HOMES = {
    "BaselineReport": "skgpt.tuning.baseline",
    "PruningCallback": "skgpt.tuning.own_study",
    "compare_with_baseline": "skgpt.tuning.baseline",
    "objective": "skgpt.tuning.own_study",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'skgpt.tuning' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
