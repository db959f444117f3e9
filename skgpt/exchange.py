"""Estimators to and from other formats; alone, as all that train do it alike."""

import os
from dataclasses import replace
from inspect import signature
from typing import Any

import numpy as np

from skgpt import fitting
from skgpt._files import as_folder
from skgpt.data.splits import all_rows
from skgpt.data.template import parse_template
from skgpt.exceptions import InvalidArgumentError
from skgpt.fit_data import FitData
from skgpt.fitted_model import FittedModel, FittedRegressor
from skgpt.pretrained.loading import load_pretrained
from skgpt.saving.huggingface import (
    SavedHead,
    check_params_fit_format,
    check_pooling,
    export,
    put_head,
    read_head,
)
from skgpt.saving.onnx import export_onnx


def save_pretrained(estimator: Any, model: FittedModel, folder: Any) -> None:
    """Write a checkpoint of a fitted estimator's model."""
    root = as_folder(folder, "folder")
    defaults = {name: p.default for name, p in signature(type(estimator)).parameters.items()}
    export(model, root, estimator.get_params(deep=False), defaults)


def save_onnx(model: FittedModel, folder: Any, int8: bool) -> None:
    """Write a graph of a fitted estimator's model, with what a server needs."""
    if not isinstance(int8, bool | np.bool_):
        raise InvalidArgumentError(f"`int8` must be True or False. Got {int8!r}.")
    export_onnx(model, as_folder(folder, "folder"), int8=bool(int8))


def from_pretrained(
    cls: type[Any],
    folder_or_id: str | os.PathLike[str],
    revision: str | None,
    params: dict[str, Any],
) -> Any:
    """Open a checkpoint as a fitted estimator of a class."""
    as_folder(folder_or_id, "folder_or_id")
    model = os.fspath(folder_or_id)
    check_params_fit_format(params)
    saved = read_head(model, revision, numbers=issubclass(cls._kind, FittedRegressor))
    pretrained = load_pretrained(model, revision)
    check_pooling(pretrained)
    noted = saved.params(pretrained, known=set(cls().get_params(deep=False)))
    fixed = {"pooling": "last", "n_layers": None}
    estimator = cls(**{**noted, **params, **fixed, "model": model, "revision": revision})
    estimator._validate_params()
    estimator._set_fitted(_model_from_head(estimator, saved))
    return estimator


def _model_from_head(estimator: Any, saved: SavedHead) -> FittedModel:
    """Return the model of a checkpoint's head on the estimator's trunk: a fit of no rows."""
    target, order = saved.target()
    seed = fitting.draw_seed(estimator.random_state)
    network = fitting.make_network(estimator, target, seed, None, starts=False)
    put_head(network, saved.weight[order])
    split_seed = saved.notes.get("split_seed")
    data = FitData(
        cells=[[]],
        template=parse_template(None, 1, None),
        target=target,
        sample_weight=np.zeros(0),
        loss_weight=np.zeros(0),
        split=all_rows(0),
        held_out=None,
        columns={},
        split_seed=seed if split_seed is None else split_seed,
    )
    model = fitting.model_of_run(estimator, data, network)
    return replace(model, trained_on=saved.notes.get("trained_on"))
