"""`scoring` on the held-out rows, from raw scores that the network has computed anyway."""

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import check_scoring

from skgpt.estimators.data import HeldOut
from skgpt.training.stopping import Judge


def make_judge(
    scoring: Any, held_out: HeldOut, shape: tuple[int, int], fitted: Callable[[], Any]
) -> Judge | None:
    """Turn the `scoring` parameter into a function of the held-out rows' raw scores.

    Parameters
    ----------
    scoring : str, callable or None
        As for scikit-learn's `check_scoring`; None watches the loss instead.
    held_out : HeldOut
    shape : tuple of int
        Held-out rows, and raw scores per row.
    fitted : callable
        Makes a copy of the estimator that is fitted with the network in training.

    Returns
    -------
    judge : callable or None

    Raises
    ------
    Exception
        Whatever the scorer raises on raw scores of zero: now, before anything is trained.
    """
    if scoring is None:
        return None

    weight = held_out.sample_weight
    options = {} if weight is None else {"sample_weight": weight}

    def judge(logits_NK: NDArray[np.float32]) -> float:
        # The network has run over these rows already: predictions follow from its raw scores.
        view = fitted()
        run = view._scores
        view._scores = lambda X: logits_NK if X is held_out.X else run(X)
        return float(check_scoring(view, scoring)(view, held_out.X, held_out.y, **options))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # metrics of a model that knows nothing are ill-defined
        judge(np.zeros(shape, dtype=np.float32))
    return judge
