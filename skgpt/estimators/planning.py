"""From an estimator's parameters to the plan of a training run."""

from dataclasses import replace
from typing import Any

from skgpt.device import prefix_budget
from skgpt.network.features import disk_room
from skgpt.network.microbatches import token_budget
from skgpt.network.network import TextNetwork
from skgpt.training.config import TrainingPlan, resolve_epochs


def plan_of_fit(estimator: Any, network: TextNetwork, n_rows: int, seed: int) -> TrainingPlan:
    """Return the plan of a whole fit.

    Parameters
    ----------
    estimator : BaseGPTText
        For its parameters.
    network : TextNetwork
        About to be trained.
    n_rows : int
        To train on.
    seed : int
    """
    head_first = int(estimator.head_first_epochs)
    n_epochs = resolve_epochs(estimator.max_epochs, n_rows, estimator.batch_size)
    return TrainingPlan(
        n_rows=n_rows,
        n_epochs=head_first + n_epochs,
        batch_size=estimator.batch_size,
        learning_rate=estimator.learning_rate,
        head_learning_rate=estimator.head_learning_rate,
        weight_decay=estimator.weight_decay,
        warmup_ratio=estimator.warmup_ratio,
        schedule=estimator.lr_schedule,
        max_grad_norm=estimator.max_grad_norm,
        token_budget=token_budget(network, learning=True),
        memory_budget=prefix_budget(network.device),
        disk_budget=disk_room(),
        seed=seed,
        head_first_epochs=head_first,
    )


def plan_of_part(
    estimator: Any, network: TextNetwork, n_rows: int, seed: int, first_epoch: int
) -> TrainingPlan:
    """Return the plan of one call of `partial_fit`: a pass at a constant rate.

    Parameters
    ----------
    estimator, network, n_rows, seed
        As in `plan_of_fit`.
    first_epoch : int
        Passes that earlier calls have made.
    """
    return replace(
        plan_of_fit(estimator, network, n_rows, seed),
        n_epochs=1,
        warmup_ratio=0.0,
        schedule="constant",
        first_epoch=first_epoch,
        head_first_epochs=0,
    )
