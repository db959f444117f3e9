"""What a training run is given, and what comes of it."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from skgpt.exceptions import DivergedError
from skgpt.text.split import Split
from skgpt.text.windows import TextIds
from skgpt.training.moments import Moments
from skgpt.training.watch import EpochRecord


@dataclass(frozen=True)
class FitResult:
    """What came of a training run, beside the network.

    Parameters
    ----------
    history : list of EpochRecord
        One entry per finished epoch.
    validation_scores : list of float
        Of each finished epoch; empty where nothing is held out.
    best_iteration : int
        The epoch of the highest of them, from 1; 0 where there is none.
    moments : Moments or None
        The optimiser's memory, to go on from; None before the first update.
    interrupt : KeyboardInterrupt, DivergedError or None
        What ended the run early, to be raised once the estimator is fitted. After Ctrl-C the
        network is as the last optimiser step left it; where training diverged, as the best epoch.
    n_skipped : int
        Steps that changed nothing, since their loss or gradient was not finite.
    """

    history: list[EpochRecord]
    validation_scores: list[float]
    best_iteration: int
    moments: Moments | None
    interrupt: KeyboardInterrupt | DivergedError | None = None
    n_skipped: int = 0


@dataclass(frozen=True)
class TrainingRows:
    """Rows ready to train on: token ids, targets, weights, and which of them are held out.

    Parameters
    ----------
    tokens : Tokens or Windows
        Of all rows, held-out ones included, so that frozen layers run over all of them once.
    target : ndarray of shape (N,) or (N, K)
    weight : ndarray of shape (N,) or (N, K)
        Of the rows, or of their single outputs, in the loss.
    split : Split
    """

    tokens: TextIds
    target: NDArray[np.int64] | NDArray[np.float32]
    weight: NDArray[np.float64]
    split: Split
