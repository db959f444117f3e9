"""What the saved base of a model may say: what it is made of, never what code to run.

A configuration can tell transformers to import code from a model's folder, to run attention
kernels from the hub, or to look a class up by name. All of that is left out of what is rebuilt
from a file.
"""

import json
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

from skgpt.exceptions import ModelNotSupportedError, StateFormatError

# Keys that name code or a repository, beside every key with "implementation" in it, by which
# kernels of the hub are asked for.
_NAMES_CODE = frozenset(
    (
        *("_name_or_path", "auto_map", "backbone", "custom_pipelines", "kernel_config"),
        *("name_or_path", "quantization_config", "trust_remote_code", "use_kernels"),
    )
)
_DEPTHS = frozenset({"n_layer", "n_layers", "num_hidden_layers", "num_layers"})
_MAX_DEPTH = 1_000  # blocks: five times the deepest; making a skeleton of 10**9 would not end

# A tokenizer's settings that name files beside its own, and those that drive other programs.
_NAMES_FILES = frozenset(
    (
        *("auto_map", "fast_tokenizer_files", "gguf_file", "init_inputs", "is_local"),
        *("local_files_only", "name_or_path"),
    )
)
_OTHER_PROGRAMS = ("jumanpp_kwargs", "mecab_kwargs", "sudachi_kwargs")
_SETTINGS = "tokenizer_config.json"


def harmless_config(config: Any) -> dict[str, Any]:
    """Return a model's configuration without what names code, in nested configurations too."""
    if not isinstance(config, Mapping) or not isinstance(config.get("model_type"), str):
        raise StateFormatError(
            "The configuration of a saved model must be a dict with a `model_type`. Got "
            f"{type(config).__name__}."
        )
    harmless: dict[str, Any] = _without_code(config)
    return harmless


def _without_code(value: Any) -> Any:
    if isinstance(value, list):
        return [_without_code(item) for item in value]
    if not isinstance(value, Mapping):
        return value
    depths = [value[key] for key in _DEPTHS & set(value) if isinstance(value[key], int)]
    if max(depths, default=0) > _MAX_DEPTH:
        raise StateFormatError(
            f"A saved model must have at most {_MAX_DEPTH} blocks. Got {max(depths)}."
        )
    return {
        key: _without_code(item)
        for key, item in value.items()
        if key not in _NAMES_CODE and "implementation" not in key
    }


def harmless_tokenizer(files: Mapping[str, str]) -> tuple[dict[str, str], str]:
    """Return a tokenizer's files without settings that name code, and the class to read them.

    Files are names, with slashes, and contents, each byte one character. A tokenizer that is all
    in its tokenizer.json takes no class of its own: the general one reads the same from it.
    """
    for name in files:
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or "\\" in name or ":" in name or not name:
            raise ModelNotSupportedError(
                f"A tokenizer file must lie inside its folder. Got {name!r}."
            )
    settings = _settings_of(files)
    if named := [key for key in _OTHER_PROGRAMS if settings.get(key)]:
        raise ModelNotSupportedError(
            f"A tokenizer in a saved model must be all in its files. This one has {named[0]!r}, "
            "which names dictionaries and plug-ins on the disk: save with store_base=False."
        )
    kept = {key: value for key, value in settings.items() if key not in _NAMES_FILES}
    own_class = str(kept.get("tokenizer_class"))
    class_name = "PreTrainedTokenizerFast" if "tokenizer.json" in files else own_class
    # The same text for what was saved and for what was opened: it is part of the model's hash.
    settings_text = json.dumps({**kept, "tokenizer_class": class_name}, sort_keys=True)
    return {**files, _SETTINGS: settings_text}, class_name


def _settings_of(files: Mapping[str, str]) -> dict[str, Any]:
    try:
        settings = json.loads(files.get(_SETTINGS, "{}").encode("latin-1"))
        if isinstance(settings, dict):
            return settings
        error: object = f"it holds a {type(settings).__name__}"
    except (ValueError, RecursionError) as found:
        error = found
    raise StateFormatError(f"A tokenizer's {_SETTINGS} must be a JSON object. It isn't: {error}")


def tokenizer_class(name: str) -> Any:
    """Return transformers' tokenizer class of that name; transformers would take any class."""
    import transformers

    found = getattr(transformers, name, None)
    base = transformers.PreTrainedTokenizerBase
    if not isinstance(found, type) or not issubclass(found, base):
        raise ModelNotSupportedError(
            f"A tokenizer in a saved model must be one of transformers' classes. Got {name!r}: "
            "save with store_base=False, and keep the model's folder."
        )
    return found
