"""LoRA: the parameters of low-rank adapters as an object of its own, and its check."""

from numbers import Integral, Real
from typing import Any, Literal

import numpy as np
from sklearn.base import BaseEstimator

from skgpt._sklearn import DOC_LINK, Interval, Options
from skgpt.exceptions import ModelNotSupportedError, suggests_names
from skgpt.network.lora import AdapterSpec


class LoRA(BaseEstimator):
    """Low-rank adapters: what learns is a small product of two matrices beside each weight.

    Pass it as an estimator's `lora`. It is not fitted itself; ``lora__rank`` and its like reach
    its parameters in a grid.

    Parameters
    ----------
    rank : int, default=8
        Inner size of the product.
    alpha : float, default=16
        What an adapter adds is scaled by ``alpha / rank``.
    dropout : float, default=0.0
        Share, in [0, 1), of an adapter's inputs that is dropped in training, drawn from
        `random_state` and the number of the step.
    target_modules : str or list of str, default="all-linear"
        Which linear layers of the blocks have one: all of them, those whose name ends like one of
        a list (``["q_proj", "v_proj"]``; none may be in vain), or those whose whole name a regular
        expression matches.
    quantize_base : {4, None}, default=None
        4 keeps the weights that adapters are beside in 4 bits (NF4), on CUDA only, with the
        package bitsandbytes.

    References
    ----------
    Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models" (2021). Dettmers et al.,
    "QLoRA: Efficient Finetuning of Quantized LLMs" (2023).

    Examples
    --------
    >>> from skgpt import GPTTextClassifier, LoRA
    >>> clf = GPTTextClassifier(lora=LoRA(rank=4), learning_rate=2e-3)
    >>> clf.set_params(lora__rank=16).lora
    LoRA(rank=16)
    """

    _parameter_constraints: dict[str, list[Any]] = {
        "rank": [Interval(Integral, 1, None, closed="left")],
        "alpha": [Interval(Real, 0, None, closed="neither")],
        "dropout": [Interval(Real, 0, 1, closed="left")],
        "target_modules": [str, list, tuple],
        "quantize_base": [Options(Integral, {4}), None],
    }

    _doc_link_module = "skgpt"
    _doc_link_template = f"{DOC_LINK}skgpt.{{estimator_name}}.html"

    @suggests_names
    def __init__(
        self,
        rank: int = 8,
        alpha: float = 16,
        dropout: float = 0.0,
        target_modules: str | list[str] = "all-linear",
        quantize_base: Literal[4] | None = None,
    ) -> None:
        self.rank = rank
        self.alpha = alpha
        self.dropout = dropout
        self.target_modules = target_modules
        self.quantize_base = quantize_base


def adapter_spec(lora: LoRA | None) -> AdapterSpec | None:
    """Check the parameters of a `LoRA` (a ValueError names a wrong one); return the network's."""
    if lora is None:
        return None
    lora._validate_params()
    wanted: Any = lora.target_modules
    if not isinstance(wanted, str):
        if not wanted or not all(isinstance(name, str) for name in wanted):
            raise ModelNotSupportedError(
                "`lora__target_modules` must be 'all-linear', a regular expression or a list of "
                f"module names. Got {wanted!r}."
            )
        wanted = tuple(str(name) for name in wanted)
    given = {**lora.get_params(), "target_modules": wanted}
    return AdapterSpec(
        **{k: v.item() if isinstance(v, np.generic) else v for k, v in given.items()}
    )


def lora_of(spec: AdapterSpec | None) -> LoRA | None:
    """Return the `LoRA` that a user would write for these adapters."""
    return None if spec is None else LoRA(**vars(spec))
