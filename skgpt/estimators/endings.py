"""How a fit can end otherwise than well, and what its user is told."""

import warnings
from typing import NoReturn

from skgpt.exceptions import InterruptedFitWarning, SkippedStepsWarning
from skgpt.training.loop import FitResult


def warn_and_raise(result: FitResult) -> NoReturn:
    """Let what ended a fit early go on up; the estimator has been given its attributes.

    Parameters
    ----------
    result : FitResult
        Of a fit with an `interrupt`.
    """
    assert result.interrupt is not None
    try:
        if isinstance(result.interrupt, KeyboardInterrupt):  # another says it itself
            warnings.warn(
                f"This fit was interrupted after {len(result.history)} epochs. The estimator is "
                "fitted, as the last optimiser step left it.",
                InterruptedFitWarning,
                stacklevel=7,  # at the call of fit
            )
    finally:  # also where warnings are errors
        raise result.interrupt


def warn_of_skipped_steps(result: FitResult) -> None:
    """Say how many steps were skipped, if any were; the fit has ended well otherwise.

    Parameters
    ----------
    result : FitResult
    """
    if result.n_skipped:
        warnings.warn(
            f"{result.n_skipped} optimiser steps were skipped, as their loss or gradient was not "
            "finite: the model learned nothing from their texts. `history_` says in which epochs. "
            "Lower `learning_rate`, set `max_grad_norm=1.0`, or use precision='fp32'.",
            SkippedStepsWarning,
            stacklevel=6,  # at the call of fit
        )
