"""save and load: a fitted estimator as a folder of JSON and safetensors, safe to open.

Nothing in it is unpickled and nothing in it says what code to run: only the classes named here
are made, from plain values and tensors. Checksums tell damage.
"""

import hashlib
import json
import os
import re
import stat
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted

from skgpt import __version__
from skgpt._files import (
    MANIFEST,
    as_folder,
    atomic_folder,
    check_nothing_else,
    from_plain,
    storage_errors,
    to_plain,
)
from skgpt.classifier import GPTTextClassifier
from skgpt.exceptions import InvalidArgumentError, ModelNotFoundError, SkgptError, StateFormatError
from skgpt.lora import LoRA
from skgpt.pretrained.default_models import no_downloads

FORMAT = 1
STATE = "state.json"

# What a folder may hold: an estimator of one of these classes ...
ESTIMATORS: dict[str, Any] = {"GPTTextClassifier": GPTTextClassifier}
# ... with parameters that may be of one of these, which have parameters but no fit.
PARAMETER_OBJECTS: dict[str, Any] = {"LoRA": LoRA}

_FILE_NAME = re.compile(r"[a-z][a-z0-9_]*(\.[a-z0-9_]+)*\.(json|safetensors)")
_MAX_MANIFEST = 1 << 20  # bytes; it has a few hundred
# What comes of values that are of the right kind of JSON and make no sense.
_MALFORMED = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
_PACKAGES = ("torch", "transformers", "scikit-learn", "numpy")


def save(estimator: Any, folder: str | os.PathLike[str]) -> None:
    """Write a fitted estimator to a folder of JSON and safetensors, whole or not at all.

    Whether the base model is inside is what `store_base` says, as in a pickle.

    Parameters
    ----------
    estimator : GPTTextClassifier
        Fitted. Of a Pipeline, a search or another library's estimator, see Notes.
    folder : str or path
        Made, with the folders above it. What an earlier `save` left there is replaced; any other
        folder that is not empty is refused.

    Raises
    ------
    TypeError
        If it is no estimator of skgpt's, or holds something that is neither numbers nor text,
        like a callable as `scoring`; the message names it. Or if `folder` is no path.
    sklearn.exceptions.NotFittedError
        If it is not fitted.
    OSError
        If the folder can't be written: another one is there, the disk is full. What was there
        before is as it was.

    See Also
    --------
    load : Opens it.

    Notes
    -----
    ``skops.io.dump`` writes a whole Pipeline without a pickle; ``joblib.dump`` writes anything, but
    may be opened only by who trusts its writer.

    Examples
    --------
    >>> import skgpt
    >>> skgpt.save(clf, "news")  # doctest: +SKIP
    >>> skgpt.load("news").predict(["oil prices rose sharply"])  # doctest: +SKIP
    array(['crude'], dtype='<U8')
    """
    if isinstance(estimator, str | os.PathLike):
        raise InvalidArgumentError(
            f"skgpt.save takes a fitted estimator first and a folder second. Got {estimator!r} "
            "first: swap them."
        )
    root = as_folder(folder, "folder")
    name = _name_in(ESTIMATORS, estimator)
    if name is None:
        raise InvalidArgumentError(
            f"skgpt.save takes a fitted {' or '.join(ESTIMATORS)}. Got {_kind_of(estimator)}: save "
            "a Pipeline, a search or another estimator with skops.io.dump or joblib.dump, or only "
            "the step that is skgpt's, like pipeline[-1]."
        )
    check_is_fitted(estimator)
    files = _files_of(estimator)
    manifest = {
        "format": FORMAT,
        "class": name,
        "versions": {"skgpt": __version__, **{package: version(package) for package in _PACKAGES}},
        "files": {
            file: {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
            for file, content in files.items()
        },
    }
    files[MANIFEST] = _with_hash(manifest)
    _write(root, files)


def load(folder: str | os.PathLike[str], allow_download: bool = False) -> Any:
    """Open an estimator that `save` wrote; nothing in the folder is run, whoever wrote it.

    Parameters
    ----------
    folder : str or path
        What `save` wrote.
    allow_download : bool, default=False
        Whether the base model may be fetched if it is neither in the folder nor on this machine.

    Returns
    -------
    estimator : GPTTextClassifier
        Fitted; it predicts what the saved one did, and can be fitted on.

    Raises
    ------
    OSError
        If there is no such folder, or the base model is not here.
    TypeError
        If `folder` is neither a text nor a path object.
    ValueError
        If a file is damaged, or of a format that this version doesn't know; the message names it.

    See Also
    --------
    save : Writes it.

    Examples
    --------
    >>> import skgpt
    >>> clf = skgpt.load("news")  # doctest: +SKIP
    """
    root = as_folder(folder, "folder")
    manifest = _read_manifest(root)
    kind = ESTIMATORS.get(manifest["class"])
    if kind is None:
        raise StateFormatError(
            f"{MANIFEST} must name one of {', '.join(ESTIMATORS)}. Got {manifest['class']!r}: open "
            "the folder with the version of skgpt that wrote it."
        )
    files = {name: _read_file(root, name, entry) for name, entry in manifest["files"].items()}
    estimator = kind.__new__(kind)
    with nullcontext() if allow_download else no_downloads():
        try:
            estimator.__setstate__(_state_of(files, kind))
        except SkgptError:
            raise
        except _MALFORMED as error:
            raise StateFormatError(
                f"{STATE} in {str(root)!r} must describe a fitted {manifest['class']}. It doesn't: "
                f"{error!r}. Open it with the version of skgpt that wrote it "
                f"({manifest['versions'].get('skgpt')})."
            ) from error
    return estimator


def _files_of(estimator: Any) -> dict[str, bytes]:
    """Return the estimator's state as files: JSON, and one file for each array of weights."""
    files: dict[str, bytes] = {}
    plain: dict[str, Any] = {}
    for name, value in estimator.__getstate__().items():
        if name == "_model":
            value = _without_weights(value, "", files)
        try:
            plain[name] = to_plain(value, _own_to_plain)
        except TypeError as error:
            raise InvalidArgumentError(
                f"What is saved in a folder must be made of numbers and text. {_named(name)} is "
                f"not ({error}): set another value, or use skops.io.dump or joblib.dump."
            ) from error
    files[STATE] = _dumps(plain)
    return files


def _named(attribute: str) -> str:
    """Return what a user calls an attribute."""
    by_scikit_learn = {
        "_skl_callbacks": "What set_callbacks has set",
        "_metadata_request": "What set_fit_request or its like has set",
    }
    return by_scikit_learn.get(attribute, f"`{attribute}`")


class _InFile(str):
    """The name of a file that holds an array's bytes, where the array was."""


def _without_weights(value: Any, name: str, files: dict[str, bytes]) -> Any:
    """Put arrays of bytes, which hold weights, into files; leave their names in their places."""
    if isinstance(value, np.ndarray) and value.dtype == np.uint8:
        files[f"{name}.safetensors"] = value.tobytes()
        return _InFile(f"{name}.safetensors")
    if isinstance(value, dict) and all(re.fullmatch("[a-z0-9_]+", str(key)) for key in value):
        return {
            key: _without_weights(item, f"{name}.{key}".lstrip("."), files)
            for key, item in value.items()
        }
    return value


def _own_to_plain(value: Any) -> Any:
    if isinstance(value, _InFile):
        return {"!": "file", "name": str(value)}
    if isinstance(value, os.PathLike):
        return os.fspath(value)  # what a path does as a parameter, its text does too
    if (name := _name_in(PARAMETER_OBJECTS, value)) is not None:
        parameters = value.get_params(deep=False)
        return {"!": "object", "class": name, "params": to_plain(parameters, _own_to_plain)}
    return None


def _state_of(files: Mapping[str, bytes], estimator_class: type) -> dict[str, Any]:
    def array(tagged: Mapping[str, Any]) -> Any:
        if tagged["name"] not in files:
            raise StateFormatError(f"{STATE} names a file that is not saved: {tagged['name']!r}.")
        return np.frombuffer(files[tagged["name"]], dtype=np.uint8)

    def parameter_object(tagged: Mapping[str, Any]) -> Any:
        kind = PARAMETER_OBJECTS.get(tagged["class"])
        if kind is None:
            raise StateFormatError(f"{STATE} names a class that is not known: {tagged['class']!r}.")
        return kind(**from_plain(tagged["params"], own))

    own: dict[str, Callable[[Mapping[str, Any]], Any]] = {
        "file": array,
        "object": parameter_object,
    }
    state = from_plain(_loads(files.get(STATE, b""), STATE), own)
    if not isinstance(state, dict) or not isinstance(state.get("_model"), dict):
        raise StateFormatError(f"{STATE} must hold the state of a fitted estimator. It doesn't.")
    for name in state:  # a value in a method's place, or in that of what links are made of
        if hasattr(estimator_class, str(name)):
            raise StateFormatError(
                f"{STATE} must hold parameters and what was fitted. {name!r} is neither."
            )
    return state


def _name_in(registry: Mapping[str, Any], value: Any) -> str | None:
    """Return the name of the value's class; a subclass has code of its own and doesn't count."""
    return next((name for name, kind in registry.items() if type(value) is kind), None)


def _kind_of(value: Any) -> str:
    if isinstance(value, type):
        return f"the class {value.__module__}.{value.__qualname__} itself"
    what = "an estimator" if isinstance(value, BaseEstimator) else "an object"
    return f"{what} of {type(value).__module__}.{type(value).__qualname__}"


def _dumps(value: Any) -> bytes:
    return json.dumps(value, allow_nan=False, indent=1).encode() + b"\n"


def _loads(content: bytes, name: str) -> Any:
    try:
        return json.loads(content, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise StateFormatError(f"{name} must be JSON. It isn't: {error}") from error


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def _with_hash(manifest: dict[str, Any]) -> bytes:
    """Return the manifest's file, with a hash of the rest of it."""
    digest = hashlib.sha256(_dumps(manifest)).hexdigest()
    return _dumps({**manifest, "sha256": digest})


def _read_manifest(root: Path) -> dict[str, Any]:
    if not root.is_dir() or not (root / MANIFEST).exists():
        raise ModelNotFoundError(
            f"`folder` must be one that skgpt.save wrote. Got {str(root)!r}: {_what_else(root)}."
        )
    content = _read_regular(root / MANIFEST, _MAX_MANIFEST)
    manifest = _loads(content, f"{MANIFEST} in {str(root)!r}")
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        found = manifest.get("format") if isinstance(manifest, dict) else manifest
        raise StateFormatError(
            f"A saved folder must be of format {FORMAT}. {MANIFEST} in {str(root)!r} says "
            f"{found!r}: open it with the version of skgpt that wrote it."
        )
    # To the byte, so that no damage is too small to be seen.
    manifest.pop("sha256", None)
    if content != _with_hash(manifest) or not _is_manifest(manifest):
        raise _damaged(root, MANIFEST)
    return manifest


def _what_else(root: Path) -> str:
    """Return what a path is that isn't a folder of `save`'s, with what opens it."""
    if (root / "config.json").exists():
        return (
            "it is a transformers folder. GPTTextClassifier.from_pretrained opens one with a head; "
            "one without is a `model` to fit"
        )
    if root.is_dir():
        return f"it has no {MANIFEST}"
    if root.exists():
        return "it is a file. Name the folder, or open what joblib or skops dumped with that"
    return "there is no such folder"


def _is_manifest(manifest: Mapping[str, Any]) -> bool:
    """Say whether everything is there and of the right kind; the hash is anybody's to make."""
    files = manifest.get("files")
    return (
        isinstance(manifest.get("class"), str)
        and isinstance(manifest.get("versions"), dict)
        and isinstance(files, dict)
        and all(_FILE_NAME.fullmatch(name) and name != MANIFEST for name in files)
        and all(
            isinstance(entry, dict) and set(entry) == {"bytes", "sha256"}
            for entry in files.values()
        )
    )


def _read_file(root: Path, name: str, entry: Mapping[str, Any]) -> bytes:
    """Read a file that the manifest names: what is hashed is what is used."""
    size = entry["bytes"]
    if not isinstance(size, int) or not (root / name).exists():
        raise _damaged(root, name)
    content = _read_regular(root / name, size)
    if len(content) != size or hashlib.sha256(content).hexdigest() != entry["sha256"]:
        raise _damaged(root, name)
    return content


def _read_regular(path: Path, at_most: int) -> bytes:
    """Read a file that is a file: no link to elsewhere, no pipe, no larger than is said."""
    found = path.lstat()
    if not stat.S_ISREG(found.st_mode):
        raise StateFormatError(f"{path.name} in {str(path.parent)!r} must be a file, and no link.")
    if found.st_size > at_most:
        raise _damaged(path.parent, path.name)
    return path.read_bytes()


def _damaged(root: Path, name: str) -> StateFormatError:
    return StateFormatError(
        f"{name} in {str(root)!r} must be what skgpt.save wrote. It is missing, damaged or cut "
        "short: take another copy of the folder."
    )


def _write(folder: Path, files: Mapping[str, bytes]) -> None:
    with (
        storage_errors("`folder`", folder, "name another", sum(map(len, files.values()))),
        atomic_folder(folder, _may_replace) as draft,
    ):
        for name, content in files.items():
            (draft / name).write_bytes(content)


def _may_replace(root: Path) -> bool:
    """Say whether a folder holds what an earlier `save` wrote, and nothing of anybody else's."""
    try:
        ours = {MANIFEST, *_read_manifest(root)["files"]}
    except (ModelNotFoundError, StateFormatError):
        return False
    check_nothing_else(root, ours)
    return True
