"""Fitted classifiers out of and into Hugging Face's sequence-classification format."""

import copy
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.utils.validation import check_is_fitted

from skgpt import __version__
from skgpt._files import (
    as_folder,
    atomic_folder,
    check_nothing_else,
    from_plain,
    save_errors,
    to_plain,
)
from skgpt.data.splits import all_rows
from skgpt.data.targets import ClassTarget, LabelSets, Target
from skgpt.data.template import parse_template
from skgpt.device import no_more_threads_than_cores
from skgpt.exceptions import ModelNotSupportedError, StateFormatError
from skgpt.fitting import FitData, draw_seed
from skgpt.network.network import TextNetwork
from skgpt.pretrained.loading import load_pretrained
from skgpt.saving.huggingface import (
    NOTES,
    SavedHead,
    check_pooling,
    put_head,
    read_head,
    write_checkpoint,
)
from skgpt.saving.model_card import model_card
from skgpt.training.loop import FitResult

_WRITTEN_BY = "skgpt save_pretrained"
_FORMAT = 1
# What a checkpoint says itself, or what is of a machine and not of a model.
_NOT_NOTED = frozenset(
    {"model", "revision", "n_layers", "lora", "pooling", "template", "long_text"}
    | {"device", "precision", "store_base", "checkpoint_dir"}
)
_UNKNOWN_LENGTH = 10**9  # transformers notes a number beyond it where it knows none


class HuggingFaceExchange:
    """`save_pretrained` and `from_pretrained` of a classifier."""

    classes_: NDArray[Any]
    history_: list[Any]
    _network: TextNetwork
    _fitted_with: dict[str, Any]

    if TYPE_CHECKING:  # BaseGPTText and scikit-learn have them
        max_length: int
        random_state: Any

        def get_params(self, deep: bool = True) -> dict[str, Any]:
            """Return the constructor parameters."""

        def _validate_params(self) -> None: ...
        def _build(self, target: Target, seed: int, pretrained: Any) -> TextNetwork: ...
        def _attributes(
            self, network: TextNetwork, data: FitData, result: FitResult, earlier: Any = None
        ) -> dict[str, Any]: ...
        def _set(self, attributes: dict[str, Any]) -> None: ...

    @no_more_threads_than_cores()
    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write a Hugging Face sequence-classification checkpoint, with a model card.

        ``transformers.pipeline("text-classification", folder)`` then gives the same labels and
        probabilities; ``truncation=True`` has it cut long texts as this estimator does. What is
        written was read back and compared, and it appears whole or not at all. Of a calibrated
        classifier, the head is divided by the temperature: what it gives are calibrated
        probabilities, and what `from_pretrained` opens has them as its own, without
        ``calibration_``.

        Parameters
        ----------
        folder : str or path-like
            A new or empty folder, or one that this method wrote, which is replaced if nothing
            else is in it.

        Raises
        ------
        ValueError
            If that format can't say what this estimator does: pooling other than the last
            token's, a template or several columns, texts in windows, an encoder or another
            architecture without a class for it. The message names the parameter.
        OSError
            If the folder holds something else, or can't be written. It is as it was.
        TypeError
            If `folder` is neither a text nor a path object.
        """
        check_is_fitted(self)
        root = as_folder(folder, "folder")
        fitted = copy.copy(self)  # another thread's fit may put another network in its place
        fitted._check_can_be_said()
        names = [str(label) for label in fitted.classes_.tolist()]
        with save_errors(root), atomic_folder(root, _is_ours) as draft:
            write_checkpoint(
                fitted._network,
                draft,
                labels=names,
                multilabel=fitted._fitted_with["multilabel"],
                max_length=fitted._fitted_with["max_length"],
                temperature=getattr(fitted, "calibration_", {}).get("temperature", 1.0),
            )
            (draft / "README.md").write_text(model_card(fitted), encoding="utf-8")
            files = sorted([NOTES, *(path.name for path in draft.iterdir())])
            notes = json.dumps(to_plain({**fitted._notes(), "files": files}), indent=2)
            (draft / NOTES).write_text(notes + "\n", encoding="utf-8")

    @classmethod
    @no_more_threads_than_cores()
    def from_pretrained(
        cls, folder_or_id: str | os.PathLike[str], *, revision: str | None = None, **params: Any
    ) -> Self:
        """Open a decoder's sequence-classification checkpoint as a fitted classifier.

        It predicts, pickles, and goes on learning with ``warm_start=True`` or `partial_fit`.
        Nothing is unpickled and no code of the checkpoint is run; the hub is asked only for what
        is not on disk.

        Parameters
        ----------
        folder_or_id : str or path-like
            A folder, from `save_pretrained` or from transformers itself, or a hub id. It becomes
            `model`.
        revision : str or None, default=None
            Hub revision: a branch, tag or commit.
        **params
            Other constructor parameters. By default those that `save_pretrained` noted, and for
            other checkpoints as many tokens per text as their tokenizer names.

        Returns
        -------
        clf : GPTTextClassifier
            Fitted. ``classes_`` are the texts of ``id2label``, sorted, or the labels that
            `save_pretrained` noted; for several labels per text the numbers of ``id2label``.

        Raises
        ------
        ValueError
            If it is no such checkpoint (a regression or single score, a head with a bias or of
            several layers or none, an encoder, labels that don't match), or if a parameter doesn't
            fit it.
        OSError
            If there is nothing of that name, or it can't be read.
        TypeError
            If `folder_or_id` is neither a text nor a path object, or there is no such parameter.
        """
        as_folder(folder_or_id, "folder_or_id")
        model = os.fspath(folder_or_id)
        _check_fit_the_format(params)
        saved = read_head(model, revision)
        notes = _read_notes(saved, model)
        known = set(cls().get_params(deep=False))
        noted = {k: v for k, v in notes.get("params", {}).items() if k in known - _NOT_NOTED}
        pretrained = load_pretrained(model, revision)
        check_pooling(pretrained)
        limits = (pretrained.tokenizer.hf.model_max_length, pretrained.max_positions)
        if lengths := [int(n) for n in limits if n is not None and n < _UNKNOWN_LENGTH]:
            noted.setdefault("max_length", min(lengths))
        chosen = {**noted, **params, "pooling": "last"}
        clf = cls(model=model, revision=revision, **chosen)  # type: ignore[call-arg]
        clf._validate_params()
        clf._become(saved, notes)
        return clf

    def _become(self, saved: SavedHead, notes: Mapping[str, Any]) -> None:
        """Be fitted, as by a fit of no rows."""
        order = np.arange(len(saved.labels))
        target: Target
        if saved.multilabel:
            target = LabelSets(order, np.zeros((0, len(order)), dtype=np.float32))
        else:
            classes = notes.get("classes")
            if classes is None:
                classes = np.array(saved.labels)
                order = np.argsort(classes)
                classes = classes[order]
            target = ClassTarget(classes, np.zeros(0, dtype=np.int64))
        seed = draw_seed(self.random_state)
        network = self._build(target, seed, None)
        put_head(network, saved.weight[order])
        split_seed = notes.get("split_seed")
        data = FitData(
            columns=[[]],
            template=parse_template(None, 1, None),
            target=target,
            sample_weight=np.zeros(0),
            split=all_rows(0),
            held_out=None,
            attributes={},
            split_seed=seed if split_seed is None else split_seed,
        )
        self._set(self._attributes(network, data, FitResult([], [], 0, None)))
        self._fitted_with["trained_on"] = notes.get("trained_on")

    def _check_can_be_said(self) -> None:
        pretrained = self._network.pretrained
        if not pretrained.capabilities.causal:
            raise ModelNotSupportedError(
                f"`model` must be a decoder: that is what the format pools at the last token of. "
                f"{pretrained.model!r} is an encoder: use skgpt.save."
            )
        if self._network.spec.pooling != "last":
            raise ModelNotSupportedError(
                "`pooling` must be 'last': transformers' sequence classifiers pool no other way. "
                f"This model was fitted with {self._network.spec.pooling!r}: fit with "
                "pooling='last', or use skgpt.save."
            )
        if self._fitted_with.get("long_text", "cut") != "cut":
            raise ModelNotSupportedError(
                "`long_text` must be 'cut': the format has no word for texts in windows. This "
                f"model was fitted with {self._fitted_with['long_text']!r}: fit with "
                "long_text='cut', or use skgpt.save."
            )
        words, fields = self._fitted_with["template"]
        if len(fields) != 1 or any(words) or getattr(self, "n_features_in_", 1) > 1:
            raise ModelNotSupportedError(
                "`template` must be None, and X a single column: the format has no word for how "
                "texts are put together. Put them together before fit, or use skgpt.save."
            )

    def _notes(self) -> dict[str, Any]:
        """Return what comes back from the folder beside the network."""
        params = {**self.get_params(deep=False), "max_length": self._fitted_with["max_length"]}
        return {
            "written_by": _WRITTEN_BY,
            "format": _FORMAT,
            "skgpt": __version__,
            "classes": self.classes_,
            "params": {
                name: value
                for name, value in params.items()
                if name not in _NOT_NOTED and _can_be_noted(value)
            },
            "split_seed": self._fitted_with["split_seed"],
            "trained_on": self._fitted_with.get("trained_on"),
        }


def _can_be_noted(value: Any) -> bool:
    """Say whether a parameter is plain data; callables and generators are not."""
    try:
        to_plain(value)
    except TypeError:
        return False
    return True


def _check_fit_the_format(params: Mapping[str, Any]) -> None:
    only = {
        "pooling": ("last", "auto"),
        "template": (None,),
        "n_layers": (None,),
        "long_text": ("cut",),
    }
    for name, allowed in only.items():
        if name in params and params[name] not in allowed:
            raise ModelNotSupportedError(
                f"`{name}` must be {allowed[0]!r} with from_pretrained: the checkpoint's head was "
                f"trained that way. Got {params[name]!r}: leave it out."
            )
    if "model" in params:
        raise ModelNotSupportedError(
            "`model` must be left out with from_pretrained: it is `folder_or_id`."
        )


def _is_ours(folder: Path) -> bool:
    """Say whether `save_pretrained` wrote a folder, and all that is in it."""
    try:
        noted = json.loads((folder / NOTES).read_text("utf-8"))
    except (OSError, ValueError, RecursionError):  # no such file, or somebody else's
        return False
    if not isinstance(noted, dict) or noted.get("written_by") != _WRITTEN_BY:
        return False
    names = noted.get("files")
    check_nothing_else(folder, map(str, names) if isinstance(names, list) else ())
    return True


def _read_notes(saved: SavedHead, model: str) -> dict[str, Any]:
    """Return what `save_pretrained` noted; nothing for a checkpoint of somebody else's."""
    if saved.notes is None:
        return {}
    try:
        notes = from_plain(json.loads(saved.notes))
    except (ValueError, RecursionError) as error:
        raise StateFormatError(f"{NOTES} of {model!r} can't be read: {error}") from error
    if not isinstance(notes, dict) or notes.get("written_by") != _WRITTEN_BY:
        raise StateFormatError(
            f"{NOTES} of {model!r} must be one that save_pretrained wrote: delete it to have the "
            "checkpoint opened as transformers' own."
        )
    if notes.get("format") != _FORMAT:
        raise StateFormatError(
            f"{NOTES} of {model!r} must be of format {_FORMAT}. Got {notes.get('format')!r}: open "
            "it with the version of skgpt that wrote it."
        )
    classes = notes.get("classes")
    labels = classes.tolist() if isinstance(classes, np.ndarray) else []
    texts = [str(label) for label in labels]
    if texts != list(saved.labels) or labels != sorted(labels):
        raise StateFormatError(
            f"{NOTES} and `id2label` of {model!r} must name the same labels, sorted. Got {texts} "
            f"and {list(saved.labels)}: delete {NOTES} if id2label is right."
        )
    return notes
