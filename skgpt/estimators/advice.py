"""What would make a slow fit shorter."""

from skgpt.model.network import TextNetwork
from skgpt.text.windows import LongText


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
    spec = network.spec
    learning = spec.n_layers - spec.n_frozen
    steps = []
    if spec.n_frozen == 0 and spec.n_layers > 1:
        n = max(1, spec.n_layers // 4)
        steps.append(
            f"train only the last layers (trainable_layers={n}), the others are then computed "
            "once, not once per epoch"
        )
    elif learning > 1:
        steps.append(f"train fewer layers (trainable_layers={learning // 2})")
    if spec.n_layers > 12 and (spec.n_frozen == 0 or learning <= spec.n_layers // 2):
        steps.append(f"keep fewer layers (n_layers={spec.n_layers // 2})")
    if long_text == "windows":
        steps.append(f"cut long texts at {max_length} tokens (long_text='cut')")
    elif max_length > 64:
        steps.append(f"cut texts shorter (max_length={max_length // 2})")
    steps.append("make fewer passes (max_epochs)")
    if network.device.type == "cpu":
        steps.append("use a GPU")
    return "; ".join(steps)
