"""Calibration: one temperature for all probabilities, fitted on rows that were not trained on."""

from typing import TypedDict

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar

from skgpt.training.loss import BinaryCrossEntropy, CrossEntropy

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

_N_BINS = 15
_LIMITS = (np.log(0.05), np.log(20.0))  # of the temperature's logarithm


class Calibration(TypedDict):
    """``calibration_``: the temperature, and the errors on the rows that it was fitted on."""

    temperature: float
    n_rows: int
    ece_before: float
    ece_after: float
    brier_before: float
    brier_after: float


def link_for(multilabel: bool) -> CrossEntropy | BinaryCrossEntropy:
    """Return what turns raw scores into probabilities."""
    return BinaryCrossEntropy() if multilabel else CrossEntropy()


def calibrate(
    scores_NK: NDArray[np.float32],
    truth_NK: Bools,
    weight_N: Floats,
    *,
    multilabel: bool,
) -> Calibration:
    """Fit the temperature that raw scores of held-out rows are divided by (Guo et al. 2017).

    As in Platt's method (1999), the truth counts as a little uncertain, the more so the fewer rows
    there are: with a few rows, all predicted right, the best temperature would be zero and every
    probability one. The number of rows is Kish's effective number (1965) of different rows: the
    scale of the weights doesn't change it, and a row of weight two counts as that row twice.

    The expected calibration error has 15 bins of equal width. The Brier score is the mean squared
    error of a probability, in [0, 1]; with three or more classes its sum over them, in [0, 2].
    """
    scores = scores_NK.astype(np.float64)
    link = link_for(multilabel)
    n = weight_N.sum()
    uncertainty = 1 / (_effective_number(scores, truth_NK, weight_N) + 2)
    n_others = 1 if multilabel else scores.shape[1] - 1
    wanted = np.where(truth_NK, 1 - uncertainty, uncertainty / n_others)

    def loss(log_temperature: float) -> float:
        log_p = link.log_probabilities(scores / np.exp(log_temperature))
        each = wanted * log_p
        if multilabel:
            each = each + (1 - wanted) * link.log_probabilities(-scores / np.exp(log_temperature))
        return -float(weight_N @ each.sum(axis=1)) / float(n)

    best = float(minimize_scalar(loss, bounds=_LIMITS, method="bounded").x)
    temperature = float(np.exp(best)) if loss(best) < loss(0.0) else 1.0
    before, after = (link.probabilities(scores / t) for t in (1.0, temperature))
    return Calibration(
        temperature=temperature,
        n_rows=int(np.count_nonzero(weight_N)),
        ece_before=_expected_error(before, truth_NK, weight_N, multilabel),
        ece_after=_expected_error(after, truth_NK, weight_N, multilabel),
        brier_before=_brier(before, truth_NK, weight_N, multilabel),
        brier_after=_brier(after, truth_NK, weight_N, multilabel),
    )


def _effective_number(scores_NK: Floats, truth_NK: Bools, weight_N: Floats) -> float:
    _, which_N = np.unique(np.hstack([scores_NK, truth_NK]), axis=0, return_inverse=True)
    weight = np.bincount(which_N.ravel(), weight_N / weight_N.max())
    return float(weight.sum() ** 2 / (weight**2).sum())


def _expected_error(p_NK: Floats, truth_NK: Bools, weight_N: Floats, multilabel: bool) -> float:
    """Return the mean distance of confidence and accuracy over bins of confidence."""
    if multilabel:  # every label of every text is a decision of its own
        confidence = np.maximum(p_NK, 1 - p_NK).ravel()
        right = ((p_NK > 0.5) == truth_NK).ravel()
        weight = np.repeat(weight_N, p_NK.shape[1])
    else:
        chosen = p_NK.argmax(axis=1)
        rows = np.arange(len(p_NK))
        confidence, right, weight = p_NK[rows, chosen], truth_NK[rows, chosen], weight_N
    bins = np.minimum((confidence * _N_BINS).astype(np.int64), _N_BINS - 1)
    apart = np.bincount(bins, weight * (confidence - right), minlength=_N_BINS)
    return float(np.abs(apart).sum() / weight.sum())


def _brier(p_NK: Floats, truth_NK: Bools, weight_N: Floats, multilabel: bool) -> float:
    squares = (p_NK - truth_NK) ** 2
    each = squares.mean(axis=1) if multilabel or p_NK.shape[1] == 2 else squares.sum(axis=1)
    return float(weight_N @ each / weight_N.sum())
