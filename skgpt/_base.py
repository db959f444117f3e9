"""What estimators of skgpt share, so it can't live in the file of one of them.

`BaseTextModel`: the fitted record, copies and pickles. `BaseGPTText`, of those that train:
``lora__...`` parameters, callbacks, `plan`, and Hugging Face's format. The table of parameter
constraints.
"""

import copy
import os
from numbers import Integral, Real
from os import PathLike
from typing import Any, Generic, Self, TypeVar

from sklearn.base import BaseEstimator, clone
from sklearn.metrics import get_scorer_names
from sklearn.utils.validation import check_is_fitted

from skgpt import exchange, fitting
from skgpt._sklearn import DOC_LINK, CallbackSupportMixin, Interval, StrOptions
from skgpt.cost import FitEstimate
from skgpt.data.tokenization import LongText
from skgpt.device import own_settings
from skgpt.exceptions import ModelNotSupportedError, check_names
from skgpt.fitted_model import FittedModel, TextModel
from skgpt.lora import LoRA
from skgpt.network.network import POOLINGS
from skgpt.saving.state import StoreBase, pack, unpack
from skgpt.tensor_files import State, from_bytes, to_bytes
from skgpt.training.callbacks import TrainingCallback, fit_progress

M = TypeVar("M", bound=TextModel)
F = TypeVar("F", bound=FittedModel)

# What scikit-learn's callbacks put on an estimator for the length of a fit.
_DURING_FIT = ("_callback_fit_ctx", "_skl_callbacks_to_teardown", "_parent_callback_ctx")


class _ScorerNames(StrOptions):
    """The names of scikit-learn's scorers, too many for a message."""

    def __str__(self) -> str:
        return "a scorer's name (sklearn.metrics.get_scorer_names() lists them)"


# A new parameter that changes no result also goes into `skgpt.run_key.WITHOUT_EFFECT`.
SHARED_CONSTRAINTS: dict[str, list[Any]] = {
    "model": [str, PathLike],
    "revision": [str, None],
    "n_layers": [Interval(Integral, 1, None, closed="left"), StrOptions({"auto"}), None],
    "trainable_layers": [Interval(Integral, 0, None, closed="left"), StrOptions({"auto", "all"})],
    "lora": [LoRA, None],
    "head_first_epochs": [Interval(Integral, 0, None, closed="left")],
    "pooling": [StrOptions({"auto", *POOLINGS})],
    "attention": [StrOptions({"auto", "causal", "bidirectional"})],
    "template": [str, None],
    "max_length": [Interval(Integral, 2, None, closed="left")],
    "long_text": [StrOptions({"cut", "windows"})],
    "max_epochs": [Interval(Integral, 1, None, closed="left"), StrOptions({"auto"})],
    "max_seconds": [Interval(Real, 0, None, closed="neither"), None],
    "batch_size": [Interval(Integral, 1, None, closed="left")],
    "learning_rate": [Interval(Real, 0, None, closed="neither"), StrOptions({"auto"})],
    "head_learning_rate": [Interval(Real, 0, None, closed="neither")],
    "weight_decay": [Interval(Real, 0, None, closed="left")],
    "warmup_ratio": [Interval(Real, 0, 1, closed="both")],
    "lr_schedule": [StrOptions({"linear", "cosine", "constant"})],
    "max_grad_norm": [Interval(Real, 0, None, closed="neither"), None],
    "early_stopping": ["boolean"],
    "validation_fraction": [Interval(Real, 0, 1, closed="neither")],
    "n_iter_no_change": [Interval(Integral, 1, None, closed="left")],
    "tol": [Interval(Real, 0, None, closed="left")],
    "scoring": [_ScorerNames(set(get_scorer_names())), callable, None],
    "warm_start": ["boolean"],
    "device": [str],
    "precision": [StrOptions({"auto", "bf16", "fp16", "fp32"})],
    "store_base": ["boolean", StrOptions({"auto"})],
    "checkpoint_dir": [str, PathLike, None],
    "random_state": ["random_state"],
    "verbose": [Interval(Integral, 0, None, closed="left"), bool],
}


def can_fit_in_parts(estimator: Any) -> bool:
    """Say why an estimator has no `partial_fit`, if it holds rows out."""
    if estimator.early_stopping:
        raise AttributeError(
            "partial_fit makes one pass over all of its rows and can't stop early: set "
            "early_stopping=False."
        )
    if getattr(estimator, "calibrate", False):
        raise AttributeError(
            "partial_fit trains on all of its rows, and calibrating takes rows that were not "
            "trained on: set calibrate=False."
        )
    return True


class BaseTextModel(BaseEstimator, Generic[M]):
    """An estimator that holds a record of `_kind` as `_model`, once it is fitted."""

    _kind: type[M]
    _model: M
    max_length: int
    long_text: LongText
    store_base: StoreBase
    verbose: int

    _doc_link_module = "skgpt"
    _doc_link_template = f"{DOC_LINK}skgpt.{{estimator_name}}.html"

    def set_params(self, **params: Any) -> Self:
        """Set parameters.

        Parameters
        ----------
        **params : dict
            Parameters of this estimator.

        Returns
        -------
        self : estimator instance
            This estimator.

        Raises
        ------
        ValueError
            If there is no such parameter.
        """
        check_names(type(self).__name__, params, self._get_param_names())
        super().set_params(**params)
        return self

    def _fitted(self) -> M:
        """Return the record of the fit, read once: another thread's fit can't mix two models."""
        check_is_fitted(self)
        return self._model

    def _set_fitted(self, model: M) -> None:
        """Become fitted; another thread's predict sees the old fit or the new one."""
        self.__dict__ = {**self._without_fit(), **model.attributes(), "_model": model}

    def _without_fit(self) -> dict[str, Any]:
        """Return the attributes that no fit has set."""
        state = self.__dict__.copy()
        model = state.pop("_model", None)
        fitted = () if model is None else model.attributes()
        return {name: value for name, value in state.items() if name not in fitted}

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "_model")

    def __copy__(self) -> Self:
        # copy.copy would go through __getstate__ and serialise the weights.
        shallow = self.__class__.__new__(self.__class__)
        shallow.__dict__.update(_outside_fit(self.__dict__))
        return shallow

    @own_settings()
    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        # Not by way of a pickle, which may hold the base: a copy shares the one in memory.
        twin = self.__class__.__new__(self.__class__)
        memo[id(self)] = twin
        for name, value in _outside_fit(self._without_fit()).items():
            twin.__dict__[name] = copy.deepcopy(value, memo)
        if hasattr(self, "_model"):
            twin._set_fitted(self._model.copy())
        return twin

    @own_settings()
    def __getstate__(self) -> dict[str, Any]:
        """Return numbers, text and numpy arrays only: no torch object, no module, no device.

        Callbacks go into a pickle, as in scikit-learn's estimators; a fit under way doesn't. A path
        goes in as text, since its class is that of one operating system.
        """
        state = {
            name: os.fspath(value) if isinstance(value, PathLike) else value
            for name, value in _outside_fit(self._without_fit()).items()
        }
        if hasattr(self, "_model"):
            state["_model"] = {**self._model.outside, "state": to_bytes(self._pack())}
        return state

    @own_settings()
    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update({name: v for name, v in state.items() if name != "_model"})
        if "_model" in state:
            outside = dict(state["_model"])
            packed = from_bytes(outside.pop("state"))
            self._set_fitted(self._unpack(packed, outside))

    # A record of its own kind, not a `TextModel`, has its own two.

    def _pack(self) -> State:
        """Return the record, but for what it has outside."""
        return pack(self._model, self.store_base)

    def _unpack(self, state: State, outside: dict[str, Any]) -> M:
        """Make the record again."""
        return unpack(state, self._kind, type(self).__name__, **outside)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        # two_d_array stays true: it is true, and scikit-learn runs hardly a check without it.
        tags.input_tags.string = True
        return tags


class BaseGPTText(CallbackSupportMixin, BaseTextModel[F]):
    """An estimator that trains.

    A subclass has the constructor, and the methods that say what it learns and predicts;
    `skgpt.fitting` asks it for `_encode_target`, `_loss_weights` and `_loss`.
    """

    _parameter_constraints: dict[str, list[Any]] = SHARED_CONSTRAINTS
    lora: LoRA | None

    # GroupKFold and the like pass groups to estimators that request them; by default none do.
    __metadata_request__fit = {"groups": False}

    def set_params(self, **params: Any) -> Self:
        """Set parameters, those of `lora` as ``lora__<name>``.

        Parameters
        ----------
        **params : dict
            Parameters of this estimator, or of its `lora`.

        Returns
        -------
        self : estimator instance
            This estimator.

        Raises
        ------
        ValueError
            If there is no such parameter, or one of `lora` is set while `lora` is None.
        """
        nested = [name for name in params if name.startswith("lora__")]
        if nested:
            lora = params.get("lora", self.lora)
            if not isinstance(lora, LoRA):
                raise ModelNotSupportedError(
                    f"`{nested[0]}` sets a parameter of `lora`, which must be a LoRA(). Got "
                    f"{lora!r}: pass lora=LoRA() first, or along with it."
                )
            own = [name.removeprefix("lora__") for name in nested]
            check_names("LoRA", own, lora._get_param_names())
            # scikit-learn would write into the very object that the caller passed.
            params["lora"] = clone(lora)
        super().set_params(**params)
        return self

    @own_settings()
    def plan(self, X: Any, y: Any = None) -> FitEstimate:
        """Say what a fit on these texts would cost, before it starts.

        The texts are tokenised and counted. One optimiser step and one pass of the frozen layers
        are measured on a few of them, so the times hold for this machine as busy as it is now; the
        rest is arithmetic. Nothing is fitted: the estimator, fitted or not, stays as it is, and so
        does `random_state`.

        Parameters
        ----------
        X : array-like of shape (n,) or (n, n_columns)
            Texts, as in `fit`.
        y : array-like, default=None
            Labels or numbers, as in `fit`. Without them, a classifier assumes two classes, a
            regressor one number per text.

        Returns
        -------
        estimate : FitEstimate
            Shows itself as text and, in a notebook, as a table; ``estimate.to_dict()`` has the
            numbers: tokens, how many texts are cut, weights, steps, seconds and bytes, those of
            1,000 predictions too, and advice. The seconds don't count reading the model, nor what
            a scorer or callbacks take; with `early_stopping` they are those of all epochs.

        Raises
        ------
        ValueError
            If X, y or a parameter is not as `fit` wants it.
        OSError
            If the model can't be found, fetched or read.
        MemoryError
            If the device can't hold one text at a time, or what learns.
        """
        self._validate_params()
        return fitting.plan(self, X, y)

    @own_settings()
    def save_pretrained(self, folder: str | PathLike[str]) -> None:
        """Write a Hugging Face sequence-classification checkpoint, with a model card.

        ``transformers.pipeline("text-classification", folder)`` then gives a classifier's labels
        and probabilities, and a regressor's numbers as scores (its ``problem_type`` is
        "regression"); ``truncation=True`` has it cut long texts as this estimator does. What is
        written was read back and compared, and it appears whole or not at all.

        Of a calibrated classifier, the head is divided by the temperature: what it gives are
        calibrated probabilities, and what `from_pretrained` opens has them as its own, without
        ``calibration_``. The format's head has no bias, so the mean of a regressor's y goes into
        that of the model's final norm.

        Parameters
        ----------
        folder : str or path-like
            A new or empty folder, or one that this method wrote, which is replaced if nothing
            else is in it.

        Raises
        ------
        ValueError
            If that format can't say what this estimator does: pooling other than the last
            token's, attention both ways, label words, a template or several columns, texts in
            windows, several columns of classes, an encoder or another architecture without a class
            for it, or a mean of y other than zero where the final norm has no bias, as in the
            Llama family. The message names what it is.
        OSError
            If the folder holds something else, or can't be written. It is as it was.
        TypeError
            If `folder` is neither a text nor a path object.
        """
        exchange.save_pretrained(self, self._fitted(), folder)

    @own_settings()
    def save_onnx(self, folder: str | PathLike[str], *, int8: bool = False) -> None:
        """Write a graph for ONNX Runtime, for servers that have neither torch nor skgpt.

        The graph, ``model.onnx``, takes ``input_ids`` and ``attention_mask``, int64 of shape
        (n, tokens), padded on the right. In fp32, it gives what a classifier's `predict_proba`
        gives, as ``probabilities``, or ``probabilities_0`` and so on of several outputs; or what a
        regressor's `predict` gives, as ``values``. Beside it are ``tokenizer.json``, for the
        package tokenizers, and ``server.json``: the classes, the template, `max_length` and
        whatever else it takes to turn texts into the inputs. Before the folder takes its name, the
        graph is run on two texts and compared. The page on ONNX Runtime in the guides has a server.

        It needs the packages onnx, onnxscript and onnxruntime: ``pip install "skgpt-text[onnx]"``.

        Parameters
        ----------
        folder : str or path-like
            A new or empty folder, or one that this method wrote, which is replaced if nothing
            else is in it.
        int8 : bool, default=False
            Have ``onnxruntime.quantization.quantize_dynamic`` turn the matrices of the layers into
            int8, but for those that narrow. Files are smaller and predictions faster, but
            these move: compare on texts of yours.

        Raises
        ------
        ImportError
            If one of the packages is not installed.
        ValueError
            If texts are read in windows, if torch can't write the model as a graph that gives the
            same, if its tokenizer has no ``tokenizer.json``, or if `int8` is not a bool.
        OSError
            If the folder holds something else, or can't be written. It is as it was.
        TypeError
            If `folder` is neither a text nor a path object.
        """
        exchange.save_onnx(self._fitted(), folder, int8)

    @classmethod
    @own_settings()
    def from_pretrained(
        cls, folder_or_id: str | PathLike[str], *, revision: str | None = None, **params: Any
    ) -> Self:
        """Open a decoder's sequence-classification checkpoint as a fitted estimator.

        It predicts, pickles, and goes on learning with ``warm_start=True`` or `partial_fit`.
        Nothing is unpickled and no code of the checkpoint is run; the hub is asked only for what
        is not on disk.

        Parameters
        ----------
        folder_or_id : str or path-like
            A folder, from `save_pretrained` or from transformers itself, or a hub id. A regressor
            opens a model with ``problem_type="regression"`` or a single score, a classifier any
            other. It becomes `model`.
        revision : str or None, default=None
            Hub revision: a branch, tag or commit.
        **params
            Other constructor parameters. By default those that `save_pretrained` noted, and for
            other checkpoints as many tokens per text as their tokenizer names.

        Returns
        -------
        estimator : estimator instance
            Fitted. A classifier's ``classes_`` are the texts of ``id2label``, sorted, or the labels
            that `save_pretrained` noted; for several labels per text the numbers of ``id2label``.

        Raises
        ------
        ValueError
            If it is no such checkpoint (of the other kind, a head with a bias or of several layers
            or none, an encoder, labels that don't match), or if a parameter doesn't fit it.
        OSError
            If there is nothing of that name, or it can't be read.
        TypeError
            If `folder_or_id` is neither a text nor a path object, or there is no such parameter.
        """
        return exchange.from_pretrained(cls, folder_or_id, revision, params)

    def _training_callbacks(self) -> list[TrainingCallback]:
        """Return what shows a fit: a bar or lines."""
        return fit_progress(self.verbose)


def _outside_fit(state: dict[str, Any]) -> dict[str, Any]:
    """Drop what scikit-learn puts on an estimator in a fit: a copy made then is in no fit."""
    return {name: value for name, value in state.items() if name not in _DURING_FIT}
