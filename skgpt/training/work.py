"""What a fit has to do and to hold, counted; with the rates of `rates.py` it becomes seconds."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from skgpt.model.frozen import Kept, unknown_rows
from skgpt.model.network import TextNetwork
from skgpt.text.batches import optimiser_batches
from skgpt.text.windows import run_by_trunk
from skgpt.training.plan import TrainingPlan
from skgpt.training.rates import Rates
from skgpt.training.run_data import TrainingRows


@dataclass(frozen=True)
class Work:
    """What a fit has to do.

    Parameters
    ----------
    new_tokens : int
        That layers which are computed once have to run over: of each distinct text, or window,
        whose states nobody has kept yet.
    distinct_tokens : int
        Of each distinct text, or window.
    n_tokens : int
        Of all texts, in all of their windows.
    epoch_tokens : int
        Of those that are trained on.
    held_out_tokens : int
    steps_per_epoch : int
    n_epochs : int
        In which all learns that is to learn.
    head_first_epochs : int
        In front of these.
    """

    new_tokens: int
    distinct_tokens: int
    n_tokens: int
    epoch_tokens: int
    held_out_tokens: int
    steps_per_epoch: int
    n_epochs: int
    head_first_epochs: int

    def seconds(self, rates: Rates) -> dict[str, float]:
        """Return how long the parts of the fit take."""
        head_first = 0.0
        if self.head_first_epochs:
            step = self.steps_per_epoch * rates.head_update
            each = self.epoch_tokens * rates.head_learning + step
            head_first = self.n_tokens * rates.forward + self.head_first_epochs * each
        epoch = (
            self.epoch_tokens * rates.learning
            + self.steps_per_epoch * rates.update
            + self.held_out_tokens * rates.forward
        )
        return {
            "frozen_layers": self.new_tokens * rates.frozen,
            "head_first": head_first,
            "epochs": self.n_epochs * epoch,
        }

    def scaled(self, factor: float) -> "Work":
        """Return the work on texts that are longer by a factor."""
        names = ("new_tokens", "distinct_tokens", "n_tokens", "epoch_tokens", "held_out_tokens")
        return replace(self, **{name: round(factor * getattr(self, name)) for name in names})


def count_work(
    network: TextNetwork, rows: TrainingRows, kept: Kept | None, plan: TrainingPlan
) -> Work:
    """Count what a fit has to do.

    Parameters
    ----------
    network : TextNetwork
    rows : TrainingRows
    kept : {"hidden", "pooled"} or None
        What the fit keeps of each text, or of each window.
    plan : TrainingPlan
    """
    lengths, split = rows.tokens.lengths, rows.split
    # Rows that weigh nothing are not run.
    weighs = rows.weight.reshape(len(lengths), -1).any(axis=1)
    each = run_by_trunk(rows.tokens)
    first = np.array(list(each.distinct()[1].values()))
    new = unknown_rows(network, each, kept) if kept else first[:0]
    return Work(
        new_tokens=int(each.lengths[new].sum()),
        distinct_tokens=int(each.lengths[first].sum()),
        n_tokens=int(lengths.sum()),
        epoch_tokens=int((lengths * weighs)[split.train].sum()),
        held_out_tokens=int(lengths[split.held_out].sum()),
        steps_per_epoch=plan.steps_per_epoch,
        n_epochs=plan.n_epochs - plan.head_first_epochs,
        head_first_epochs=plan.head_first_epochs,
    )


def count_memory(
    network: TextNetwork,
    rows: TrainingRows,
    kept: Kept | None,
    plan: TrainingPlan,
    rates: Rates,
    *,
    keeps_best: bool,
) -> tuple[dict[str, int], int]:
    """Count the bytes that a fit takes of its device's memory, and of the disk.

    Parameters
    ----------
    network, rows, kept, plan
        As in `count_work`.
    rates : Rates
    keeps_best : bool
        Whether the best epoch's weights are kept.

    Returns
    -------
    memory : dict of str to int
        Of ``weights``, ``learning``, ``states`` and ``activations``.
    disk : int
    """
    on_device = [*network.trunk.parameters(), *network.trunk.buffers(), network.head.weight]
    # What was read and what was made of it stay whole for others, whatever this network keeps.
    source = network.source
    if network.device.type == "cpu":
        on_device += source.trunk.parameters()
    if source.resident and network.spec.quantize_base is None:
        on_device += source.tensors(network.dtype, network.device).values()
    learned = [*network.masters.values(), network.head.weight]
    n_learned = sum(tensor.numel() for tensor in learned)
    # A gradient and two moments in fp32, beside the originals themselves and a copy of the best.
    learning = (12 + 4 * keeps_best) * n_learned
    if network.dtype != torch.float32:
        learning += 4 * n_learned + network.dtype.itemsize * n_learned
    lengths = rows.tokens.lengths
    each = run_by_trunk(rows.tokens)
    first = list(each.distinct()[1].values())
    states = 0
    if kept == "pooled":
        states = 4 * len(first) * network.head.in_features
    elif kept == "hidden":
        states = round(rates.states * int(each.lengths[first].sum()))
    batches = optimiser_batches(plan.n_rows, plan.batch_size, plan.seed, plan.first_epoch)
    largest = max(int(lengths[rows.split.train[batch]].sum()) for batch in batches)
    at_once = max(min(largest, plan.token_budget), int(lengths.max()))
    in_memory = states if kept == "pooled" else min(states, plan.memory_budget)
    memory = {
        "weights": _bytes(on_device),
        "learning": learning,
        "states": in_memory,
        "activations": round(rates.activations * at_once),
    }
    return memory, states - in_memory


def _bytes(tensors: Iterable[Tensor]) -> int:
    """Return what tensors take; those that share memory count once."""
    return sum({t.data_ptr(): t.nbytes for t in tensors}.values())
