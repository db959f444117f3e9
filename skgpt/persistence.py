"""save and load: a fitted estimator as a folder of JSON and safetensors, safe to open.

manifest.json holds the class, the parameters and the versions, model.safetensors the fitted model,
each with a checksum. Nothing is unpickled and nothing says what code to run: only the classes named
here are made, from plain values and tensors. The steps of a Pipeline before ours are written by
skops, beside them: it makes types that it trusts, scikit-learn's among them, and those that the
caller names.
"""

import copy
import hashlib
import json
import os
from collections.abc import Collection, Mapping
from contextlib import nullcontext
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.pipeline import Pipeline
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
from skgpt.embedder import GPTTextEmbedder
from skgpt.exceptions import (
    InvalidArgumentError,
    ModelNotFoundError,
    ModelNotSupportedError,
    StateFormatError,
    import_optional,
)
from skgpt.lora import LoRA
from skgpt.pretrained.default_models import no_downloads
from skgpt.regressor import GPTTextRegressor
from skgpt.zero_shot import GPTZeroShotClassifier

FORMAT = 1
WEIGHTS = "model.safetensors"
STEPS = "steps.skops"  # of a Pipeline, all but the last

# What a folder may hold; a subclass has code of its own and doesn't count.
ESTIMATORS: dict[str, Any] = {
    "GPTTextClassifier": GPTTextClassifier,
    "GPTTextEmbedder": GPTTextEmbedder,
    "GPTTextRegressor": GPTTextRegressor,
    "GPTZeroShotClassifier": GPTZeroShotClassifier,
}
_LORA = "LoRA"  # marks the one parameter that is no plain value

_MAX_MANIFEST = 1 << 24  # bytes; it has about a thousand
# What comes of values that are of the right kind of JSON and make no sense.
_MALFORMED = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
_PACKAGES = ("torch", "transformers", "scikit-learn", "numpy")
# What a user knows attributes of scikit-learn's by.
_SET_BY = {
    "_skl_callbacks": "What set_callbacks has set",
    "_metadata_request": "What set_fit_request or its like has set",
}


def save(estimator: Any, folder: str | os.PathLike[str]) -> None:
    """Write a fitted estimator, or a Pipeline that ends in one, to a folder, whole or not at all.

    The folder holds JSON and safetensors; the steps of a Pipeline before ours are written by skops,
    which must be installed for them.

    Whether the base model is inside is what `store_base` says, as in a pickle.

    Parameters
    ----------
    estimator : an estimator of skgpt's, or a Pipeline that ends in one
        Fitted. Of a search or another library's estimator, see Notes.
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
    A step's own functions and classes are opened only where `load` is told to trust their names.
    ``skops.io.dump`` writes other estimators without a pickle; ``joblib.dump`` writes anything, but
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
    ours = _last_step(estimator)
    if type(ours) not in ESTIMATORS.values():
        raise InvalidArgumentError(
            f"skgpt.save takes a fitted {' or '.join(ESTIMATORS)}, or a Pipeline that ends in one. "
            f"Got {_kind_of(estimator)}: save a search or another estimator with skops.io.dump or "
            "joblib.dump, or only what is skgpt's of it, like search.best_estimator_."
        )
    check_is_fitted(ours)
    steps = None if ours is estimator else _dump_steps(estimator)
    params = ours.__getstate__()
    model = params.pop("_model")
    manifest = {
        "format": FORMAT,
        "class": type(ours).__name__,
        "versions": {"skgpt": __version__, **{package: version(package) for package in _PACKAGES}},
        "params": {key: _to_plain(key, value) for key, value in params.items()},
    }
    weights = model.pop("state")
    manifest |= {name: _to_plain(f"{name}_", value) for name, value in model.items()}
    manifest["weights"] = hashlib.sha256(weights.data).hexdigest()  # so that no two saves mix
    if steps is not None:
        manifest["steps"] = hashlib.sha256(steps).hexdigest()
    with (
        storage_errors("`folder`", root, "name another", weights.nbytes),
        atomic_folder(root, _may_replace) as draft,
    ):
        (draft / MANIFEST).write_bytes(_with_hash(manifest))
        (draft / WEIGHTS).write_bytes(weights.data)
        if steps is not None:
            (draft / STEPS).write_bytes(steps)


def load(
    folder: str | os.PathLike[str],
    allow_download: bool = False,
    *,
    trusted: Collection[str] = (),
) -> Any:
    """Open an estimator that `save` wrote; nothing in the folder is run, whoever wrote it.

    Parameters
    ----------
    folder : str or path
        What `save` wrote.
    allow_download : bool, default=False
        Whether the base model may be fetched if it is neither in the folder nor on this machine.
    trusted : collection of str, default=()
        Types and functions of a Pipeline's earlier steps that may be imported and used, beside
        scikit-learn's and numpy's, such as "my_package.clean". The error names those it takes.

    Returns
    -------
    estimator : an estimator of skgpt's, or a Pipeline that ends in one
        Fitted; it predicts what the saved one did, and can be fitted on.

    Raises
    ------
    OSError
        If there is no such folder, or the base model is not here.
    TypeError
        If `folder` is neither a text nor a path object.
    ImportError
        If a Pipeline was saved and skops is not installed.
    ValueError
        If a step holds a type that is not trusted, or if a file is damaged, or of a format that
        this version doesn't know; the message names it.

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
    kind = ESTIMATORS.get(str(manifest.get("class")))
    if kind is None:
        raise StateFormatError(
            f"{MANIFEST} must name one of {', '.join(ESTIMATORS)}. Got {manifest.get('class')!r}: "
            "open the folder with the version of skgpt that wrote it."
        )
    content = _read_regular(root / WEIGHTS)
    if hashlib.sha256(content).hexdigest() != manifest.get("weights"):
        raise _damaged(root / WEIGHTS)
    # Before the model is read: what isn't trusted is found soon.
    steps = _load_steps(root, manifest["steps"], trusted) if "steps" in manifest else None
    weights = np.frombuffer(content, dtype=np.uint8)
    estimator = kind.__new__(kind)
    with nullcontext() if allow_download else no_downloads():
        try:
            model = {"state": weights}
            if "classes" in manifest:
                model["classes"] = from_plain(manifest["classes"])
            state = {**_params_of(manifest, kind), "_model": model}
            estimator.__setstate__(state)
        except ModelNotSupportedError:  # this machine or what is installed here lacks something
            raise
        except _MALFORMED as error:
            raise StateFormatError(
                f"{MANIFEST} and {WEIGHTS} in {str(root)!r} must hold what skgpt.save wrote. They "
                f"don't: {error!r} Take another copy of the folder."
            ) from error
    return estimator if steps is None else _with_last_step(steps, estimator)


# Pipelines: their earlier steps in a file of skops, with nothing in the place of the last.


def _last_step(estimator: Any) -> Any:
    """Return the last step of a Pipeline, of Pipelines in Pipelines too; else what came."""
    while type(estimator) is Pipeline:
        estimator = estimator.steps[-1][1]
    return estimator


def _with_last_step(pipeline: Any, last: Any) -> Any:
    """Return a Pipeline with another last step; the other steps are the same objects."""
    if type(pipeline) is not Pipeline:
        return last
    twin = copy.copy(pipeline)
    name, before = pipeline.steps[-1]
    twin.steps = [*pipeline.steps[:-1], (name, _with_last_step(before, last))]
    return twin


def _dump_steps(pipeline: Pipeline) -> bytes:
    skops = import_optional("skops.io", "To save a Pipeline, skgpt.save")
    try:
        content: bytes = skops.dumps(_with_last_step(pipeline, "passthrough"))
        names = skops.get_untrusted_types(data=content)
    except Exception as error:  # whatever a stranger's step raises
        raise InvalidArgumentError(
            "The steps of a Pipeline before the last must be such that skops can write them. They "
            f"aren't: {error!r} Use another step, or joblib.dump."
        ) from error
    if lost := [name for name in names if name.startswith("__main__.") or "<" in name]:
        raise InvalidArgumentError(
            "The steps of a Pipeline must be made of what another process can import. It can't "
            f"import {lost}: put it into a module, in the place of a lambda or of what a notebook "
            "or script defines itself."
        )
    return content


def _load_steps(root: Path, digest: Any, trusted: Collection[str]) -> Pipeline:
    content = _read_regular(root / STEPS)
    if hashlib.sha256(content).hexdigest() != digest:
        raise _damaged(root / STEPS)
    skops = import_optional("skops.io", "To open a Pipeline, skgpt.load")
    try:
        strange = sorted({*skops.get_untrusted_types(data=content)} - {*trusted})
        if not strange:
            steps = skops.loads(content, trusted=list(trusted))
    except Exception as error:  # a file that somebody made by hand, a function that isn't here
        raise StateFormatError(
            f"{STEPS} in {str(root)!r} must hold steps that can be made here. They can't: "
            f"{error!r} Install what they are of in the version that they were saved with."
        ) from error
    if strange:
        raise StateFormatError(
            f"The steps of the Pipeline in {str(root)!r} must be made of types that are trusted. "
            f"{strange} are not: if you know them, and where the folder is from, pass "
            f"skgpt.load(..., trusted={strange})."
        )
    if type(steps) is not Pipeline or _last_step(steps) != "passthrough":
        raise _damaged(root / STEPS)
    return steps


def _to_plain(name: str, value: Any) -> Any:
    try:
        if type(value) is LoRA:
            return {"!": _LORA, "params": to_plain(value.get_params(deep=False))}
        return to_plain(value)
    except TypeError as error:
        raise InvalidArgumentError(
            "What is saved in a folder must be made of numbers and text. "
            f"{_SET_BY.get(name, f'`{name}`')} is not ({error}): set another value, or use "
            "skops.io.dump or joblib.dump."
        ) from error


def _params_of(manifest: Mapping[str, Any], estimator_class: type) -> dict[str, Any]:
    params: dict[str, Any] = {}
    for name, plain in manifest["params"].items():
        # A value in a method's place, or in that of what links are made of.
        if hasattr(estimator_class, name):
            raise StateFormatError(f"No parameter has the name of a method. Got {name!r}.")
        is_lora = isinstance(plain, dict) and plain.get("!") == _LORA
        params[name] = LoRA(**from_plain(plain["params"])) if is_lora else from_plain(plain)
    return params


def _kind_of(value: Any) -> str:
    if isinstance(value, type):
        return f"the class {value.__module__}.{value.__qualname__} itself"
    what = "an estimator" if isinstance(value, BaseEstimator) else "an object"
    return f"{what} of {type(value).__module__}.{type(value).__qualname__}"


def _with_hash(manifest: dict[str, Any]) -> bytes:
    """Return the manifest's file, with a hash of the rest of it."""
    text = json.dumps(manifest, indent=1)
    digest = hashlib.sha256(text.encode()).hexdigest()
    return json.dumps({**manifest, "sha256": digest}, indent=1).encode() + b"\n"


def _read_manifest(root: Path) -> dict[str, Any]:
    if not (root / MANIFEST).exists():
        raise ModelNotFoundError(
            f"`folder` must be one that skgpt.save wrote. Got {str(root)!r}: {_what_else(root)}."
        )
    content = _read_regular(root / MANIFEST, _MAX_MANIFEST)
    try:
        manifest = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise _damaged(root / MANIFEST) from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        found = manifest.get("format") if isinstance(manifest, dict) else manifest
        raise StateFormatError(
            f"A saved folder must be of format {FORMAT}. {MANIFEST} in {str(root)!r} says "
            f"{found!r}: open it with the version of skgpt that wrote it."
        )
    # To the byte, so that no damage is too small to be seen.
    manifest.pop("sha256", None)
    if content != _with_hash(manifest):
        raise _damaged(root / MANIFEST)
    return manifest


def _what_else(root: Path) -> str:
    """Return what a path is that isn't a folder of `save`'s, with what opens it."""
    if (root / "config.json").exists():
        return (
            "it is a transformers folder. from_pretrained opens one with a head: that of "
            "GPTTextClassifier or of GPTTextRegressor; one without is a `model` to fit"
        )
    if root.is_dir():
        return f"it has no {MANIFEST}"
    if root.exists():
        return "it is a file. Open a dump of joblib or skops with joblib.load or skops.io.load"
    return "there is no such folder"


def _read_regular(path: Path, at_most: int | None = None) -> bytes:
    """Read a file that is a file: no link to elsewhere, no pipe, none of absurd size."""
    if path.is_symlink() or (path.exists() and not path.is_file()):
        raise StateFormatError(f"{path.name} in {str(path.parent)!r} must be a file, and no link.")
    if not path.exists() or (at_most is not None and path.stat().st_size > at_most):
        raise _damaged(path)
    return path.read_bytes()


def _damaged(path: Path) -> StateFormatError:
    return StateFormatError(
        f"{path.name} in {str(path.parent)!r} must be what skgpt.save wrote. It is missing, "
        "damaged or cut short: take another copy of the folder."
    )


def _may_replace(root: Path) -> bool:
    """Say whether a folder holds what an earlier `save` wrote, and nothing of anybody else's."""
    try:
        _read_manifest(root)
    except (ModelNotFoundError, StateFormatError):
        return False
    check_nothing_else(root, (MANIFEST, WEIGHTS, STEPS))
    return True
