"""What the three displays share, apart from each of them: axes, colours, texts to draw."""

from typing import Any

from skgpt.exceptions import missing_package

# Okabe and Ito's colours: told apart with any colour vision.
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#6E6E6E"


def axes_or_new(ax: Any, width: float, height: float) -> Any:
    """Return the given axes, or those of a new figure of so many inches."""
    try:
        from matplotlib import pyplot as plt
    except ImportError as error:
        raise missing_package("A display", "matplotlib", error) from error
    if ax is None:
        _, ax = plt.subplots(figsize=(width, height), layout="constrained")
    return ax


def import_pandas() -> Any:
    """Return pandas, or raise a MissingPackageError."""
    try:
        import pandas
    except ImportError as error:
        raise missing_package("A table of errors", "pandas", error) from error
    return pandas


def drawable(text: str) -> str:
    """Replace what can't be drawn: control characters and lone surrogates."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
