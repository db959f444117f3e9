"""Going on from a fitted network: what must be as it was, and where old classes go."""

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skgpt.estimators.lora import LoRA
from skgpt.exceptions import ContinuationError
from skgpt.network.lora import AdapterSpec
from skgpt.network.network import NetworkSpec, TextNetwork


def check_same_model(estimator: Any, network: TextNetwork) -> None:
    """Check that the parameters still name the model that was fitted.

    Raises
    ------
    ContinuationError
        If `model` or `revision` has another value.
    """
    source = network.source
    for name, then in {"model": source.model, "revision": source.revision}.items():
        now = getattr(estimator, name)
        if now != then:
            raise _other(name, then, now)


def check_same_shape(
    now: NetworkSpec, then: NetworkSpec, *, may_learn_more: bool, may_have_more: bool
) -> None:
    """Check that a network of one spec can take over what one of another has learned.

    Parameters
    ----------
    now, then : NetworkSpec
    may_learn_more : bool
        Whether layers that were frozen may learn now (their optimiser has no moments).
    may_have_more : bool
        Whether there may be more outputs.

    Raises
    ------
    ContinuationError
        If they differ otherwise; the message names the parameter.
    """
    for name in ("n_layers", "pooling"):
        if getattr(now, name) != getattr(then, name):
            raise _other(name, getattr(then, name), getattr(now, name))
    if _form(now) != _form(then):
        raise _other("lora", _said(then.lora), _said(now.lora))
    if now.trainable_layers != then.trainable_layers and not (
        may_learn_more and _learns(now) > _learns(then)
    ):
        more = (
            "More layers may learn than before, not fewer."
            if may_learn_more
            else "With warm_start=True, fit may go on with more layers than before."
        )
        raise _other("trainable_layers", then.trainable_layers, now.trainable_layers, more)
    if now.n_outputs != then.n_outputs and not may_have_more:
        raise ContinuationError(
            f"The fitted model tells {then.n_outputs} labels apart. Got {now.n_outputs}: set "
            "warm_start=False to start anew."
        )


def _form(spec: NetworkSpec) -> AdapterSpec | None:
    """Return what adapters are but for their dropout, which leaves nothing behind."""
    return None if spec.lora is None else replace(spec.lora, dropout=0.0)


def _said(spec: AdapterSpec | None) -> LoRA | None:
    """Return adapters as the user says them."""
    if spec is None:
        return None
    whole = float(spec.alpha).is_integer()  # as it is usually written
    return LoRA(**{**vars(spec), "alpha": int(spec.alpha) if whole else spec.alpha})


def _learns(spec: NetworkSpec) -> float:
    return np.inf if spec.trainable_layers == "all" else spec.trainable_layers


def _other(name: str, then: Any, now: Any, more: str = "") -> ContinuationError:
    return ContinuationError(
        f"To go on from a fitted model, `{name}` must be as it was, {then!r}. Got {now!r}: set it "
        f"back, or call fit with warm_start=False to start anew. {more}".rstrip()
    )


def places_of(old: NDArray[Any], new: NDArray[Any]) -> NDArray[np.int64]:
    """Return where each old class stands among the new ones.

    Raises
    ------
    ContinuationError
        If one is missing.
    """
    place = {label: i for i, label in enumerate(new.tolist())}
    missing = [label for label in old.tolist() if label not in place]
    if missing:
        raise ContinuationError(
            f"`classes` must hold every class that was fitted: {old.tolist()}. {missing} are "
            f"missing from {new.tolist()}."
        )
    return np.array([place[label] for label in old.tolist()], dtype=np.int64)
