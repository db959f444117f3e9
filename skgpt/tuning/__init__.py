"""Searches over the parameters of text estimators, as Optuna studies.

Needs the package optuna: ``pip install "skgpt[optuna]"``. The names are imported when they are
first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from skgpt.exceptions import MissingPackageError

if TYPE_CHECKING:
    from skgpt.tuning.search import GPTSearchCV
    from skgpt.tuning.space import default_space, suggest

_HOMES = {
    "GPTSearchCV": "skgpt.tuning.search",
    "default_space": "skgpt.tuning.space",
    "suggest": "skgpt.tuning.space",
}

__all__ = ["GPTSearchCV", "default_space", "suggest"]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        try:
            return getattr(import_module(_HOMES[name]), name)
        except ModuleNotFoundError as error:
            if (error.name or "").partition(".")[0] != "optuna":
                raise
            raise MissingPackageError(
                f"`{name}` needs the package optuna, which can't be imported: run "
                f'`pip install "skgpt[optuna]"`. ({error})'
            ) from error
    raise AttributeError(f"module 'skgpt.tuning' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
