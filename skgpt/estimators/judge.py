"""`scoring` on the held-out rows, from raw scores that the network has computed anyway."""

from collections.abc import Callable
from inspect import signature
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import check_scoring

from skgpt.estimators.data import HeldOut
from skgpt.exceptions import InvalidTextError
from skgpt.training.early_stopping import Judge


def make_judge(
    scoring: Any, held_out: HeldOut, truth_NK: NDArray[np.float32], fitted: Callable[[], Any]
) -> Judge | None:
    """Turn the `scoring` parameter into a function of the held-out rows' raw scores.

    Parameters
    ----------
    scoring : str, callable or None
        As for scikit-learn's `check_scoring`; None watches the loss instead. A scorer that takes
        no `sample_weight` isn't given any.
    held_out : HeldOut
    truth_NK : ndarray of shape (n_held_out, n_outputs)
        Raw scores that say what is true of the held-out rows.
    fitted : callable
        Makes a copy of the estimator that is fitted with the network in training.

    Returns
    -------
    judge : callable or None

    Raises
    ------
    InvalidTextError
        If the scorer fails, or gives no number, even where everything is predicted right: now,
        before anything is trained.
    """
    if scoring is None:
        return None

    def judge(logits_NK: NDArray[np.float32]) -> float:
        # The network has run over these rows already: predictions follow from its raw scores.
        view = fitted()
        run = view._scores
        view._scores = lambda X: logits_NK if X is held_out.X else run(X)
        try:
            scorer = check_scoring(view, scoring)
            options = {}
            if held_out.sample_weight is not None and _takes_weights(scorer):
                options = {"sample_weight": held_out.sample_weight}
            return float(scorer(view, held_out.X, held_out.y, **options))
        finally:
            del view._scores  # else it would refer to itself, and keep the network alive

    try:  # with right predictions, since metrics of a model that knows nothing are ill-defined
        best = judge(truth_NK)
    except (TypeError, ValueError) as error:
        raise InvalidTextError(
            f"`scoring` must be able to score the held-out rows. {scoring!r} can't: {error}"
        ) from error
    if np.isnan(best):
        raise InvalidTextError(
            f"`scoring` must give a number on the held-out rows. It gives {best} even where all of "
            "them are predicted right: a metric that needs every class finds too few rows there; "
            "raise `validation_fraction`, pass X_val and y_val, or choose another `scoring`."
        )
    return judge


def _takes_weights(scorer: Any) -> bool:
    # scikit-learn's scorers take weights for any metric and fail with one that doesn't.
    return "sample_weight" in signature(getattr(scorer, "_score_func", scorer)).parameters
