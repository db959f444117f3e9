"""What would make a slow fit shorter."""

from skgpt.data.tokenization import LongText
from skgpt.network.network import NetworkSpec, TextNetwork

_SHORT = 64  # tokens that a text should have room for


def fewer_layers(spec: NetworkSpec) -> dict[str, int]:
    """Return which fewer layers to try: `trainable_layers` and `n_layers`, where there are any.

    Parameters
    ----------
    spec : NetworkSpec

    Returns
    -------
    values : dict of str to int
        Legal one by one, and smaller than the present ones.
    """
    learning = spec.n_layers - spec.n_frozen
    values = {}
    if spec.n_frozen == 0 and spec.n_layers > 1:
        values["trainable_layers"] = max(1, spec.n_layers // 4)
    elif learning > 1:
        values["trainable_layers"] = learning // 2
    if spec.n_layers > 12 and (spec.n_frozen == 0 or learning <= spec.n_layers // 2):
        values["n_layers"] = spec.n_layers // 2
    return values


def shorter_texts(max_length: int) -> int | None:
    """Return a smaller `max_length` to try; None if texts are cut short enough already."""
    return max_length // 2 if max_length > _SHORT else None


def advice(network: TextNetwork, max_length: int, long_text: LongText = "cut") -> str:
    """Say what would make a fit of this network shorter, the most effective first.

    Parameters
    ----------
    network : TextNetwork
    max_length : int
        Tokens per text, or per window of one.
    long_text : {"cut", "windows"}, default="cut"

    Returns
    -------
    advice : str
        Parameters with values that are legal and smaller than the present ones.
    """
    fewer, steps = fewer_layers(network.spec), []
    if n := fewer.get("trainable_layers"):
        steps.append(
            f"train only the last layers (trainable_layers={n}), the others are then computed "
            "once, not once per epoch"
            if network.spec.n_frozen == 0
            else f"train fewer layers (trainable_layers={n})"
        )
    if n := fewer.get("n_layers"):
        steps.append(f"keep fewer layers (n_layers={n})")
    if long_text == "windows":
        steps.append(f"cut long texts at {max_length} tokens (long_text='cut')")
    elif n := shorter_texts(max_length):
        steps.append(f"cut texts shorter (max_length={n})")
    steps.append("make fewer passes (max_epochs)")
    if network.device.type == "cpu":
        steps.append("use a GPU")
    return "; ".join(steps)
