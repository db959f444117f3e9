"""What every estimator's parameters may be: one table for the check, the message and the tests."""

import copy
from numbers import Integral, Real
from os import PathLike
from typing import Any

import numpy as np
from sklearn.metrics import get_scorer_names

from skgpt._sklearn import Interval, StrOptions
from skgpt.estimators.lora import LoRA

SHARED_CONSTRAINTS: dict[str, list[Any]] = {
    "model": [str],
    "revision": [str, None],
    "n_layers": [Interval(Integral, 1, None, closed="left"), None],
    "trainable_layers": [Interval(Integral, 0, None, closed="left"), StrOptions({"all"})],
    "lora": [LoRA, None],
    "head_first_epochs": [Interval(Integral, 0, None, closed="left")],
    "pooling": [StrOptions({"last", "mean", "auto"})],
    "template": [str, None],
    "max_length": [Interval(Integral, 2, None, closed="left")],
    "long_text": [StrOptions({"cut", "windows"})],
    "max_epochs": [Interval(Integral, 1, None, closed="left"), StrOptions({"auto"})],
    "batch_size": [Interval(Integral, 1, None, closed="left")],
    "learning_rate": [Interval(Real, 0, None, closed="neither")],
    "head_learning_rate": [Interval(Real, 0, None, closed="neither")],
    "weight_decay": [Interval(Real, 0, None, closed="left")],
    "warmup_ratio": [Interval(Real, 0, 1, closed="both")],
    "lr_schedule": [StrOptions({"linear", "cosine", "constant"})],
    "max_grad_norm": [Interval(Real, 0, None, closed="neither"), None],
    "early_stopping": ["boolean"],
    "validation_fraction": [Interval(Real, 0, 1, closed="neither")],
    "n_iter_no_change": [Interval(Integral, 1, None, closed="left")],
    "tol": [Interval(Real, 0, None, closed="left")],
    "scoring": [StrOptions(set(get_scorer_names())), callable, None],
    "warm_start": ["boolean"],
    "device": [str],
    "precision": [StrOptions({"auto", "bf16", "fp16", "fp32"})],
    "store_base": ["boolean", StrOptions({"auto"})],
    "checkpoint_dir": [str, PathLike, None],
    "random_state": ["random_state"],
    "verbose": [Interval(Integral, 0, None, closed="left"), bool],
}


def draw_seed(random_state: Any) -> int:
    """Draw the one integer that all randomness of a fit follows from.

    Parameters
    ----------
    random_state : int, RandomState instance or None
        An int is used as it is given, so nothing global is touched. None draws from numpy's global
        generator, as everywhere in scikit-learn.

    Returns
    -------
    seed : int
    """
    if isinstance(random_state, Integral):
        return int(random_state)
    generator = np.random.mtrand._rand if random_state is None else random_state
    return int(generator.randint(np.iinfo(np.int32).max))


def seed_to_come(random_state: Any) -> int:
    """Return the integer that `draw_seed` would draw next, and leave the generator as it is.

    Parameters
    ----------
    random_state : int, RandomState instance or None
        None stands for a generator that others draw from as well: any integer will do, 0.

    Returns
    -------
    seed : int
    """
    return 0 if random_state is None else draw_seed(copy.deepcopy(random_state))
