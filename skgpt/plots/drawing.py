"""What the displays share: matplotlib, the colours, texts as they can be drawn."""

from typing import Any

from skgpt.exceptions import missing_package

# Okabe and Ito's colours: told apart with any colour vision.
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#6E6E6E"


def matplotlib() -> tuple[Any, Any]:
    """Return the modules matplotlib.colors and matplotlib.pyplot.

    Raises
    ------
    MissingPackageError
        If matplotlib is not installed.
    """
    try:
        from matplotlib import colors
        from matplotlib import pyplot as plt
    except ImportError as error:
        raise missing_package("A display", "matplotlib", error) from error
    return colors, plt


def shown(text: str) -> str:
    """Return a text as it can be drawn: no control characters, no lone surrogates."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
