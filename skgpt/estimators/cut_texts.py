"""Words about `max_length`: one larger than the model's, and texts that are longer."""

import threading
import warnings
from typing import Any

from skgpt.data.tokenization import TextIds
from skgpt.exceptions import CutTextsWarning, ModelNotSupportedError
from skgpt.pretrained.loading import Source

# What was said in this process already: each fold and candidate would say it again.
_SAID: set[tuple[str, int]] = set()
_SAYING = threading.Lock()


def check_length(max_length: int, source: Source) -> None:
    """Raise ModelNotSupportedError if a model has not so many positions."""
    limit = source.max_positions
    if limit is not None and max_length > limit:
        raise ModelNotSupportedError(
            f"`max_length` must be at most {limit}, the positions that {source.model!r} has. "
            f"Got {max_length}."
        )


def warn_of_cut_texts(estimator: Any, tokens: TextIds) -> None:
    """Say how many of a fit's texts were cut, once in a process: nobody learns from how they end.

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
