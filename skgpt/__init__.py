"""skgpt: fine-tune a pretrained GPT as you would fit any other scikit-learn estimator.

The public names are imported when they are first used, so that ``import skgpt`` loads neither
torch nor transformers.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from skgpt.caching import cache_info, clear_cache, set_cache_memory
    from skgpt.classifier import GPTTextClassifier
    from skgpt.embedder import GPTTextEmbedder
    from skgpt.lora import LoRA
    from skgpt.persistence import load, save
    from skgpt.regressor import GPTTextRegressor
    from skgpt.zero_shot import GPTZeroShotClassifier

__version__ = "0.1.0"

__all__ = [
    "GPTTextClassifier",
    "GPTTextEmbedder",
    "GPTTextRegressor",
    "GPTZeroShotClassifier",
    "LoRA",
    "__version__",
    "cache_info",
    "clear_cache",
    "load",
    "save",
    "set_cache_memory",
]

_HOMES = {
    "GPTTextClassifier": "skgpt.classifier",
    "GPTTextEmbedder": "skgpt.embedder",
    "GPTTextRegressor": "skgpt.regressor",
    "GPTZeroShotClassifier": "skgpt.zero_shot",
    "LoRA": "skgpt.lora",
    "cache_info": "skgpt.caching",
    "clear_cache": "skgpt.caching",
    "load": "skgpt.persistence",
    "save": "skgpt.persistence",
    "set_cache_memory": "skgpt.caching",
}

_PACKAGES = ("plots", "testing", "tuning")


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    if name in _PACKAGES:
        return import_module(f"skgpt.{name}")
    raise AttributeError(f"module 'skgpt' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, *_PACKAGES])
