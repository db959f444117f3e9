"""Searches over the parameters of text estimators, and whether what they find is worth it.

All but `compare_with_baseline` need the package optuna, and say so where it is missing: they are
imported when they are first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from skgpt.exceptions import import_optional
from skgpt.tuning.baseline import BaselineReport, compare_with_baseline

if TYPE_CHECKING:
    from skgpt.tuning.optuna_study import PruningCallback, objective
    from skgpt.tuning.search import GPTSearchCV
    from skgpt.tuning.space import default_space, suggest

_HOMES = {
    "GPTSearchCV": "skgpt.tuning.search",
    "PruningCallback": "skgpt.tuning.optuna_study",
    "default_space": "skgpt.tuning.space",
    "objective": "skgpt.tuning.optuna_study",
    "suggest": "skgpt.tuning.space",
}

__all__ = [
    "BaselineReport",
    "GPTSearchCV",
    "PruningCallback",
    "compare_with_baseline",
    "default_space",
    "objective",
    "suggest",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        import_optional("optuna", f"`{name}`")
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'skgpt.tuning' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
