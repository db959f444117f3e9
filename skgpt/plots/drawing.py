"""Axes, colours and drawable texts; it stands alone as all three displays share it."""

from typing import Any

from skgpt.exceptions import import_optional

# Okabe and Ito's colours: told apart with any colour vision.
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#6E6E6E"


def axes_or_new(ax: Any, width: float, height: float) -> Any:
    """Return the given axes, or those of a new figure of so many inches."""
    plt = import_optional("matplotlib.pyplot", "A display")
    if ax is None:
        _, ax = plt.subplots(figsize=(width, height), layout="constrained")
    return ax


def drawable(text: str) -> str:
    """Replace what can't be drawn: control characters and lone surrogates."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
