"""Which checkpoint is a fit's own: all that its result depends on, by names that a user knows."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from skgpt._files import as_folder
from skgpt.data.splits import group_codes
from skgpt.estimators.data import FitData, Given
from skgpt.network.network import TextNetwork
from skgpt.run_key import described, digest, encoded
from skgpt.training.checkpoint import Checkpoint, claimed_checkpoint

# Those that change nothing, and those of which what they come to is asked for instead.
_NOT_ASKED = frozenset(
    {"verbose", "checkpoint_dir", "store_base", "warm_start", "random_state"}
    | {"device", "precision", "template"}
)


@contextmanager
def checkpoint_of(
    estimator: Any, given: Given, data: FitData, network: TextNetwork, seed: int, *, goes_on: bool
) -> Iterator[Checkpoint | None]:
    """Have the checkpoint of a fit for its length; None where `checkpoint_dir` is.

    Parameters
    ----------
    estimator : BaseGPTText
        Nothing is set on it.
    given : Given
    data : FitData
        Checked. Which of its rows are held out is looked at only where a fit goes on: otherwise
        that follows from the rest.
    network : TextNetwork
        About to be trained.
    seed : int
        Of this call; where `random_state` is None, a checkpoint that is there has its own.
    goes_on : bool
        Whether the network has learned something already.

    Yields
    ------
    checkpoint : Checkpoint or None

    Raises
    ------
    FolderNameError
        If `checkpoint_dir` names nothing.
    CheckpointError
        If the folder can't be written to, or what is there is damaged.
    ContinuationError
        If what is there belongs to another fit; the message names what differs.
    """
    if estimator.checkpoint_dir is None:
        yield None
        return
    root = as_folder(estimator.checkpoint_dir, "checkpoint_dir").absolute()
    belongs_to = {
        **_of_parameters(estimator),
        **_of_data(estimator, given, data),
        **_of_network(network),
        **(_of_fitted(estimator._network, data) if goes_on else {}),
        "`random_state`": None if estimator.random_state is None else seed,
    }
    with claimed_checkpoint(root, belongs_to, seed) as checkpoint:
        yield checkpoint


def _of_parameters(estimator: Any) -> dict[str, Any]:
    parameters = estimator.get_params(deep=False)
    return {f"`{k}`": described(v) for k, v in parameters.items() if k not in _NOT_ASKED}


def _of_data(estimator: Any, given: Given, data: FitData) -> dict[str, Any]:
    groups = None
    if given.groups is not None and given.X_val is None and estimator._holds_out:
        groups = digest([group_codes(given.groups, len(data.target)).tobytes()])
    codes = data.target.codes
    return {
        "the texts": digest(encoded(data.columns)),
        "`template`": [list(data.template.words), list(data.template.fields)],
        "the labels": [str(codes.dtype), list(codes.shape), digest([codes.tobytes()])],
        "the classes": described(data.target.classes.tolist()),
        "the sample weights": digest([data.sample_weight.tobytes()]),
        "the rows of `X_val`": 0 if given.X_val is None else len(data.split.held_out),
        "the groups": groups,
    }


def _of_network(network: TextNetwork) -> dict[str, Any]:
    return {
        "the model's weights": network.source.fingerprint,
        "the model's tokenizer": digest([repr(network.source.tokenizer.files()).encode()]),
        "`device`": network.device.type,
        "`precision`": str(network.dtype),
    }


def _of_fitted(network: TextNetwork, data: FitData) -> dict[str, Any]:
    """Describe what is gone on from: the fitted network, and the held-out rows as it had them.

    It is not the new network that is asked, whose adapters may have been drawn in this call.
    """
    return {
        "the fitted weights that it starts from": _learned(network),
        "the held-out rows": digest([data.split.held_out.tobytes()]),
    }


def _learned(network: TextNetwork) -> str:
    tensors = {**network.learnable, "head": network.head.weight}
    return digest(
        piece
        for name, tensor in sorted(tensors.items())
        for piece in (name.encode(), tensor.detach().cpu().contiguous().numpy().data)
    )
