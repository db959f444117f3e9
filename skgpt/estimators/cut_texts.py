"""The word about texts that are longer than `max_length`: nobody learns from how they end."""

import threading
import warnings
from typing import Any

from skgpt.exceptions import CutTextsWarning
from skgpt.text.windows import TextIds

# What was said in this process already: each fold and candidate would say it again.
_SAID: set[tuple[str, int]] = set()
_SAYING = threading.Lock()


def warn_of_cut_texts(estimator: Any, tokens: TextIds) -> None:
    """Say how many of a fit's texts were cut, once in a process.

    Once for each kind of estimator and each `max_length`, that is: who raises it and hears nothing
    would take it for enough.

    Parameters
    ----------
    estimator : BaseGPTText
    tokens : Tokens or Windows
        Of all texts that the fit was given.
    """
    if not tokens.n_cut:
        return
    kind = (type(estimator).__name__, int(estimator.max_length))
    with _SAYING:
        if kind in _SAID:
            return
        warnings.warn(
            f"{tokens.n_cut} of {len(tokens)} texts are longer than "
            f"max_length={estimator.max_length} tokens and were cut at the end: raise max_length, "
            "or set long_text='windows' to have them read whole. This is said once.",
            CutTextsWarning,
            stacklevel=7,  # at the call of fit
        )
        _SAID.add(kind)  # only now: where warnings are errors, the next fit is to fail as well
