"""What a fit will cost, as numbers and as something to read.

What training takes here and now: a step and a pass of the frozen layers, measured once.

Everything is counted per token of a micro-batch as the fit will have them, so that a fit's time is
a sum of products. What is measured on is thrown away, and no store keeps what was computed.

What a fit has to do and to hold, counted; with the rates of `rates.py` it becomes seconds.
"""

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from html import escape
from statistics import median
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from skgpt.data.batching import Rows, optimiser_batches
from skgpt.data.splits import Split
from skgpt.data.template import Template
from skgpt.data.tokenization import (
    LongText,
    Windows,
    lengths_in_windows,
    run_by_trunk,
    tokenise_columns,
    tokenise_rows,
)
from skgpt.device import to_device
from skgpt.network.features import Averaged, Forward, Kept, OnTrial, unknown_rows, what_is_kept
from skgpt.network.microbatches import Budget, needs_memory
from skgpt.network.network import NetworkSpec, TextNetwork, count_weights
from skgpt.training.config import TrainingPlan
from skgpt.training.loop import TrainingRows
from skgpt.training.loss import Loss
from skgpt.training.optimizer import Optimiser
from skgpt.trunk.layers import find_blocks


@dataclass(frozen=True, repr=False)
class FitEstimate:
    """What a fit will cost.

    ``print`` shows it, a notebook too; `to_dict` gives it as plain values.

    Parameters
    ----------
    model : str
    device : str
    precision : {"fp32", "bf16", "fp16"}
    n_layers : int
        Kept of the model.
    max_length : int
    n_texts : int
    n_held_out : int
        Of them, not trained on.
    n_tokens : int
        Of all texts, after the cut at `max_length`, or in all of their windows.
    tokens_per_text : dict of str to float
        Quantiles of the whole texts' tokens, before any cut: ``min``, ``25 %``, ``50 %``,
        ``75 %``, ``95 %`` and ``max``.
    n_cut : int
        Texts that are longer than `max_length`; none where they are read in windows.
    tokens_cut : int
        What they lose, in all.
    trainable_weights, frozen_weights : int
    n_epochs : int
        Those of the head alone included; with early stopping the most there can be.
    n_steps : int
        Optimiser steps in all of them.
    early_stopping : bool
    seconds : dict of str to float
        ``frozen_layers``, which run once over each distinct text that the process hasn't seen;
        ``head_first``; ``epochs``, all of them.
    seconds_per_1000_predictions : float
        Of other texts of like lengths.
    memory : dict of str to int
        Bytes of ``weights``, ``learning`` (gradients, moments and originals of what learns),
        ``states`` (kept behind frozen layers) and ``activations``.
    disk : int
        Bytes of states that memory has no room for.
    classes_assumed : int or None
        None if y was there to count them.
    long_text : {"cut", "windows"}, default="cut"
    n_windows : int or None, default=None
        What all texts together are read in, a text that fits counting as one; None where long ones
        are cut.
    advice : tuple of str, default=()
        What would change the most, with its price.
    """

    model: str
    device: str
    precision: str
    n_layers: int
    max_length: int
    n_texts: int
    n_held_out: int
    n_tokens: int
    tokens_per_text: dict[str, float]
    n_cut: int
    tokens_cut: int
    trainable_weights: int
    frozen_weights: int
    n_epochs: int
    n_steps: int
    early_stopping: bool
    seconds: dict[str, float]
    seconds_per_1000_predictions: float
    memory: dict[str, int]
    disk: int
    classes_assumed: int | None
    long_text: LongText = "cut"
    n_windows: int | None = None
    advice: tuple[str, ...] = ()

    @property
    def fit_seconds(self) -> float:
        """Seconds of the whole fit, once the model is read."""
        return sum(self.seconds.values())

    @property
    def memory_bytes(self) -> int:
        """Bytes of the device's memory that the fit takes, beside Python and its libraries."""
        return sum(self.memory.values())

    @property
    def share_cut(self) -> float:
        """Share of the texts that are cut, in [0, 1]."""
        return self.n_cut / self.n_texts

    @property
    def share_of_tokens_cut(self) -> float:
        """Share of all tokens that is lost to the cut, in [0, 1)."""
        return self.tokens_cut / (self.n_tokens + self.tokens_cut)

    def to_dict(self) -> dict[str, Any]:
        """Return everything as numbers, texts, lists and dicts, as JSON has them."""
        return {
            **{name: value for name, value in vars(self).items() if name != "advice"},
            "tokens_per_text": dict(self.tokens_per_text),
            "seconds": dict(self.seconds),
            "memory": dict(self.memory),
            "share_cut": self.share_cut,
            "share_of_tokens_cut": self.share_of_tokens_cut,
            "fit_seconds": self.fit_seconds,
            "memory_bytes": self.memory_bytes,
            "advice": list(self.advice),
        }

    def __repr__(self) -> str:
        lines = self._lines()
        width = max(map(len, lines))
        text = [self._title(), *(f"  {name:<{width}}  {said}" for name, said in lines.items())]
        return "\n".join([*text, *(f"  - {line}" for line in self._remarks())])

    def _repr_html_(self) -> str:
        cell = '<td style="text-align: left">'
        rows = "".join(
            f'<tr><th style="text-align: left">{escape(name)}</th>{cell}{escape(said)}</td></tr>'
            for name, said in self._lines().items()
        )
        remarks = "".join(f"<li>{escape(line)}</li>" for line in self._remarks())
        return (
            f"<div><strong>{escape(self._title())}</strong><table><tbody>{rows}</tbody></table>"
            + (f"<ul>{remarks}</ul>" if remarks else "")
            + "</div>"
        )

    def _title(self) -> str:
        layers = f"{self.n_layers} layer{'s' * (self.n_layers > 1)}"
        return f"A fit of {self.model}, {layers}, on {self.device} in {self.precision}"

    def _lines(self) -> dict[str, str]:
        """Return what there is to say, line by line."""
        quantiles = ", ".join(f"{name}: {n:,.0f}" for name, n in self.tokens_per_text.items())
        cut = f"none at max_length={self.max_length}"
        if self.n_windows is not None:
            cut = (
                f"none, long ones are read in windows of max_length={self.max_length}; "
                f"{self.n_windows:,} of all texts"
            )
        if self.n_cut:
            cut = (
                f"{percent(self.share_cut)} at max_length={self.max_length}, which loses "
                f"{percent(self.share_of_tokens_cut)} of all tokens"
            )
        held_out = f", {self.n_held_out:,} of them held out" if self.n_held_out else ""
        at_most = "at most " if self.early_stopping else ""
        of_these = [
            f"{name.replace('_', ' ')} {duration(seconds)}"
            for name, seconds in self.seconds.items()
            if seconds
        ]
        shares = ", ".join(f"{name} {_size(n)}" for name, n in self.memory.items() if n)
        disk = f", and {_size(self.disk)} on disk" if self.disk else ""
        return {
            "texts": f"{self.n_texts:,}{held_out}",
            "tokens": f"{self.n_tokens:,}",
            "per text": quantiles,
            "texts cut": cut,
            "weights": f"{self.trainable_weights:,} learn, {self.frozen_weights:,} frozen",
            "steps": f"{at_most}{self.n_steps:,} in {self.n_epochs} epochs",
            "time": f"{at_most or 'about '}{duration(self.fit_seconds)} ({', '.join(of_these)})",
            "memory": f"about {_size(self.memory_bytes)} ({shares}){disk}",
            "predictions": f"about {duration(self.seconds_per_1000_predictions)} for 1,000 texts",
        }

    def _remarks(self) -> list[str]:
        remarks = list(self.advice)
        if self.classes_assumed is not None:
            remarks.append(f"{self.classes_assumed} classes are assumed, as there is no y.")
        return remarks


def duration(seconds: float) -> str:
    """Return a time as people say it, in one or two units."""
    if seconds < 9.95:
        return f"{max(0.1, seconds):.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60} min"


def percent(share: float) -> str:
    """Return a share in percent; one that is small is not nothing, nor is a large one all."""
    if 0.99 < share < 1:
        return "over 99 %"
    return "under 1 %" if 0 < share < 0.01 else f"{100 * share:.0f} %"


def _size(n_bytes: int) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6)):
        if n_bytes >= size:
            return f"{n_bytes / size:.1f} {unit}"
    return f"{n_bytes / 1e3:.1f} kB"


# What is over sooner is measured several times: a clock and a scheduler tell little of 1 ms.
_LEAST_SECONDS = 0.1


@dataclass(frozen=True)
class Rates:
    """What was measured.

    Parameters
    ----------
    frozen : float
        Seconds per token through the layers that are computed once; 0.0 where none are.
    forward : float
        Seconds per token through all other layers, without a gradient.
    learning : float
        Seconds per token through them and back.
    update : float
        Seconds of an optimiser's update.
    head_learning, head_update : float, default=0.0
        The same where the head learns alone in front of the others.
    states : float, default=0.0
        Bytes that are kept of each token.
    activations : float, default=0.0
        Bytes per token that are held for the way back.
    """

    frozen: float
    forward: float
    learning: float
    update: float
    head_learning: float = 0.0
    head_update: float = 0.0
    states: float = 0.0
    activations: float = 0.0


@torch.inference_mode(False)  # whatever the caller is in
@torch.enable_grad()
@needs_memory
def measure(
    network: TextNetwork, rows: TrainingRows, kept: Kept | None, *, loss: Loss, plan: TrainingPlan
) -> Rates:
    """Measure what a training run is made of.

    Parameters
    ----------
    network : TextNetwork
        Of nobody's: it is trained by a few steps.
    rows : TrainingRows
    kept : {"hidden", "pooled"} or None
        What the run keeps of each text.
    loss : Loss
    plan : TrainingPlan

    Returns
    -------
    rates : Rates

    Raises
    ------
    NoMemoryError
        If the device can't hold one text at a time, or what learns.
    """
    trial = _Trial(network, rows, kept, loss, plan)
    try:
        return trial.rates()
    finally:
        trial.optimiser.release()


class _Trial:
    """Rows that stand for all, and what they are run through."""

    def __init__(
        self,
        network: TextNetwork,
        rows: TrainingRows,
        kept: Kept | None,
        loss: Loss,
        plan: TrainingPlan,
    ) -> None:
        self.network = network
        self.loss = loss
        self.plan = plan
        self.tokens = rows.tokens
        self.lengths = rows.tokens.lengths
        self.weight = rows.weight
        self.target_N = torch.from_numpy(np.ascontiguousarray(rows.target)).to(network.device)
        self.each = run_by_trunk(rows.tokens)
        self.on_trial = OnTrial(network, self.each, kept)
        self.forward = self._of_texts(self.on_trial)
        self.passing = Budget(network, plan.token_budget)
        self.stepping = Budget(network, plan.token_budget, learning=True)
        self.optimiser = Optimiser(network, plan)
        self._own = {_place(t) for t in [*network.parameters(), *network.buffers()]}
        self._held = 0.0
        batch = next(optimiser_batches(plan.n_rows, plan.batch_size, plan.seed, plan.first_epoch))
        # Parts are sorted by length and have as many tokens each, so one half of all tokens is in
        # texts longer than those of the middle part.
        self.of_pass = _middle(self.passing.parts(np.arange(len(self.lengths)), self.lengths))
        self.of_step = _middle(self.stepping.parts(rows.split.train[batch], self.lengths))

    def rates(self) -> Rates:
        """Measure everything, each after something smaller of the kind that warms it up."""
        self._run_frozen(self.on_trial, self.of_step)
        sizes: list[int] = []
        frozen = self._seconds(
            lambda: sizes.append(self._run_frozen(self.on_trial, self.of_pass)), self.passing
        )
        few = self.of_step[-max(1, len(self.of_step) // 8) :]  # the shortest
        self._score(few)
        forward = self._seconds(lambda: self._score(self.of_pass), self.passing)
        self._step(self.forward, few)
        self._held = 0.0  # few texts have more filler
        learning, update = self._measured_step(self.forward)
        held = self._held
        head_learning = head_update = 0.0
        if self.plan.head_first_epochs:
            pooled = OnTrial(self.network, self.each, "pooled")
            self._run_frozen(pooled, self.of_step)
            alone = self._of_texts(pooled)
            self._step(alone, few)
            head_learning, head_update = self._measured_step(alone)
        per_pass, per_step = self._n_tokens(self.of_pass), self._n_tokens(self.of_step)
        return Rates(
            frozen=frozen / per_pass if sizes[-1] else 0.0,
            forward=forward / per_pass,
            learning=learning / per_step,
            update=update,
            head_learning=head_learning / per_step,
            head_update=head_update,
            states=sizes[-1] / per_pass,
            activations=held,
        )

    def _of_texts(self, forward: OnTrial) -> Forward:
        """Return what runs texts by running their windows, where they are in windows."""
        if isinstance(self.tokens, Windows):
            return Averaged(forward, self.tokens, self.plan.token_budget)
        return forward

    def _n_tokens(self, rows: Rows) -> int:
        return int(self.lengths[rows].sum())

    def _run_frozen(self, forward: OnTrial, rows: Rows) -> int:
        """Run the frozen layers; return the bytes of what would be kept."""
        windows = self.tokens.of(rows) if isinstance(self.tokens, Windows) else rows
        parts = self.passing.each(windows, self.each.lengths, forward.run_frozen)
        return sum(size for _, size in parts)

    @torch.no_grad()
    def _score(self, rows: Rows) -> None:
        for _ in self.passing.each(rows, self.lengths, lambda part: self.forward(part).cpu()):
            pass

    def _step(self, forward: Forward, rows: Rows) -> tuple[float, float]:
        """Make an optimiser step; return the seconds of its gradient and of its update."""
        weight = max(float(self.weight[rows].sum()), np.finfo(np.float64).tiny)

        def learn_from(part: Rows) -> Tensor:
            held = _Held(self._own)
            with held:
                logits_BK = forward(part)
            self._held = max(self._held, held.n_bytes / self._n_tokens(part))
            share = to_device((self.weight[part] / weight).astype(np.float32), self.network.device)
            target = self.target_N[to_device(part, self.network.device)]
            loss = self.loss.total(logits_BK, target, share)
            self.optimiser.backward(loss)
            return loss.detach()

        began = self._now()
        with self.network.dropout.seeded(self.plan.seed, 0):
            shares = self.stepping.all_or_again(
                rows, self.lengths, learn_from, self.optimiser.forget
            )
        learned = self._now()
        self.optimiser.step(shares)
        return learned - began, self._now() - learned

    def _measured_step(self, forward: Forward) -> tuple[float, float]:
        """Return the seconds of a step's gradient and of its update."""
        done: list[tuple[float, float]] = []
        self._seconds(lambda: done.append(self._step(forward, self.of_step)), self.stepping)
        learning, update = zip(*done, strict=True)
        return median(learning), median(update)

    def _seconds(self, work: Callable[[], object], budget: Budget) -> float:
        """Return how long work takes, without what ran out of memory and was done again."""
        taken: list[float] = []
        while sum(taken) < _LEAST_SECONDS:
            n_tokens, began = budget.n_tokens, self._now()
            work()
            if budget.n_tokens == n_tokens:
                taken.append(self._now() - began)
        return median(taken)

    def _now(self) -> float:
        if self.network.device.type == "cuda":
            torch.cuda.synchronize(self.network.device)
        elif self.network.device.type == "mps":
            torch.mps.synchronize()
        return time.perf_counter()


class _Held(torch.autograd.graph.saved_tensors_hooks):
    """Counts the bytes that a graph built inside holds for the way back.

    Parameters
    ----------
    own : set of int
        Where memory begins that is there anyway, as that of weights.
    """

    def __init__(self, own: set[int]) -> None:
        super().__init__(self._note, lambda tensor: tensor)
        self.n_bytes = 0
        self._seen = set(own)

    def _note(self, tensor: Tensor) -> Tensor:
        if (at := _place(tensor)) not in self._seen:
            self._seen.add(at)
            self.n_bytes += tensor.untyped_storage().nbytes()
        return tensor


def _place(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _middle(parts: list[Rows]) -> Rows:
    return parts[len(parts) // 2]


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
    pretrained = network.pretrained
    if network.device.type == "cpu":
        on_device += pretrained.trunk.parameters()
    if pretrained.shared and network.spec.quantize_base is None:
        on_device += pretrained.tensors(network.dtype, network.device).values()
    learned = [*network.learnable.values(), network.head.weight]
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


_FEW_CUT = 0.1  # of the texts
_LONG_SECONDS = 60.0  # a fit that is worth shortening
_WORTH_IT = 1.2  # times


@dataclass(frozen=True)
class Prices:
    """A measured fit, and what others would cost beside it.

    Parameters
    ----------
    network : TextNetwork
    work : Work
    rates : Rates
    plan : TrainingPlan
    kept : {"hidden", "pooled"} or None
        What the fit keeps of each text.
    lengths : ndarray of shape (n,)
        Tokens of the whole texts, before any cut.
    max_length : int
    long_text : {"cut", "windows"}, default="cut"
    """

    network: TextNetwork
    work: Work
    rates: Rates
    plan: TrainingPlan
    kept: Kept | None
    lengths: NDArray[np.int64]
    max_length: int
    long_text: LongText = "cut"

    def advice(self) -> tuple[str, ...]:
        """Say what would change the most, and its price."""
        faster = self._faster() if self.seconds() > _LONG_SECONDS else ()
        cut = self._about_the_cut() if self.long_text == "cut" else ()
        return (*cut, *faster)

    def seconds(self) -> float:
        """Return how long the fit takes."""
        return _total(self.work, self.rates)

    def seconds_at_length(self, max_length: int) -> float:
        """Return how long it would take with texts cut elsewhere; longer ones are a bit dearer."""
        return self._seconds_of(self._n_tokens("cut", max_length))

    def seconds_in_windows(self) -> float:
        """Return how long it would take with long texts in windows of `max_length`."""
        return self._seconds_of(self._n_tokens("windows", self.max_length))

    def _seconds_of(self, n_tokens: int) -> float:
        now = self._n_tokens(self.long_text, self.max_length)
        return _total(self.work.scaled(n_tokens / now), self.rates)

    def _n_tokens(self, long_text: LongText, max_length: int) -> int:
        """Return how many tokens the texts are to the trunk."""
        if long_text == "cut":
            return int(np.minimum(self.lengths, max_length).sum())
        encoder = self.network.pretrained.tokenizer
        return int(lengths_in_windows(self.lengths, encoder, max_length).sum())

    def seconds_at_depth(self, n_layers: int, n_learning: int) -> float:
        """Return how long it would take with so many layers, of which the last learn.

        What was measured of several layers together is taken to be the same for each of them.

        Parameters
        ----------
        n_layers, n_learning : int
            No more than they are.
        """
        spec, rates = self.network.spec, self.rates
        learning_now = spec.n_layers - spec.n_frozen
        forwards = (rates.frozen + rates.forward) / spec.n_layers
        backwards = max(0.0, rates.learning - rates.forward) / max(1, learning_now)
        once = n_layers - n_learning
        then = replace(
            rates,
            frozen=forwards * once,
            forward=forwards * n_learning,
            learning=(forwards + backwards) * n_learning,
            update=rates.update * self._share_of_weights(n_learning),
        )
        new = self.work.new_tokens if spec.n_frozen else self.work.distinct_tokens
        return _total(replace(self.work, new_tokens=new if once else 0), then)

    def _share_of_weights(self, n_learning: int) -> float:
        """Return which share of the weights that learn now would still do so."""
        spec = self.network.spec
        if spec.lora is not None or not self.network.learnable:
            return n_learning / max(1, spec.n_layers - spec.n_frozen)
        block = find_blocks(self.network.pretrained.trunk)[0]
        weights = n_learning * sum(parameter.numel() for parameter in block.parameters())
        return min(1.0, weights / count_weights(self.network)[0])

    def _about_the_cut(self) -> Iterator[str]:
        """Say what it would cost to cut fewer texts, or none."""
        share = self.share_cut(self.max_length)
        if share == 0:
            return
        yield self._about_a_longer_cut(share)
        if share > _FEW_CUT:
            times = self.seconds_in_windows() / self.seconds()
            yield f"long_text='windows' reads all of every text and costs {times:.1f}x."

    def _about_a_longer_cut(self, share: float) -> str:
        longer = self.max_length
        while self.share_cut(longer) > min(_FEW_CUT, share / 2):
            longer *= 2
        limit = self.network.pretrained.max_positions
        longer = longer if limit is None else min(longer, limit)
        said = f"{percent(share)} of the texts are cut"
        if longer == self.max_length:
            return f"{said}: the model has no more than {limit} positions."
        left = self.share_cut(longer)
        times = self.seconds_at_length(longer) / self.seconds()
        return (
            f"{said}: max_length={longer} cuts {percent(left) if left else 'none'} and costs "
            f"{times:.1f}x."
        )

    def share_cut(self, max_length: int) -> float:
        """Return the share of the texts, in [0, 1], that are longer."""
        return float(np.mean(self.lengths > max_length))

    def _faster(self) -> Iterator[str]:
        """Say what would make the fit faster, the greatest gain first."""
        gains = [(self.seconds() / seconds, said) for said, seconds in self._cheaper()]
        for times, said in sorted(gains, reverse=True):
            if times >= _WORTH_IT:
                yield f"{said}: {times:.1f}x as fast."

    def _cheaper(self) -> Iterator[tuple[str, float]]:
        """Yield what could be done, in words, and how long the fit would then take."""
        device, spec = self.network.device, self.network.spec
        here = "on this CPU" if device.type == "cpu" else f"on {device}"
        learning = spec.n_layers - spec.n_frozen
        fewer = fewer_layers(spec) if self._pays_to_freeze() else {}
        if n := fewer.get("trainable_layers"):
            frozen = spec.n_layers - n
            yield (
                f"trainable_layers={n} freezes the first {frozen} layers, {here}",
                self.seconds_at_depth(spec.n_layers, n),
            )
        if n := fewer.get("n_layers"):
            yield (
                f"n_layers={n} drops the last {spec.n_layers - n} layers",
                self.seconds_at_depth(n, min(n, learning)),
            )
        if self.long_text == "windows":
            share = self.share_cut(self.max_length)
            said = f"long_text='cut' cuts {percent(share)} of the texts"
            yield said, self.seconds_at_length(self.max_length)
        elif n := shorter_texts(self.max_length):
            share = self.share_cut(n)
            yield f"max_length={n} cuts {percent(share)} of the texts", self.seconds_at_length(n)

    def _pays_to_freeze(self) -> bool:
        """Say whether what frozen layers return is, or would be, kept."""
        if self.network.spec.n_frozen:
            return self.kept is not None
        states = 4 * self.work.n_tokens * int(self.network.trunk.config.hidden_size)
        return states <= self.plan.memory_budget + self.plan.disk_budget


def _total(work: Work, rates: Rates) -> float:
    return sum(work.seconds(rates).values())


_QUANTILES = {"min": 0.0, "25 %": 0.25, "50 %": 0.5, "75 %": 0.75, "95 %": 0.95, "max": 1.0}

_PRECISIONS = {"torch.float32": "fp32", "torch.bfloat16": "bf16", "torch.float16": "fp16"}


def estimate_fit(
    network: TextNetwork,
    cells: list[list[str]],
    template: Template,
    target: NDArray[np.int64] | NDArray[np.float32],
    weight: NDArray[np.float64],
    split: Split,
    *,
    plan: TrainingPlan,
    loss: Loss,
    max_length: int,
    long_text: LongText,
    early_stopping: bool,
    classes_assumed: int | None,
) -> FitEstimate:
    """Count and measure what a fit of this network on these texts would be."""
    of_text = (cells, template, network.pretrained.tokenizer)
    tokens = tokenise_rows(*of_text, max_length, long_text)
    whole = tokenise_columns(*of_text, sys.maxsize).lengths
    rows = TrainingRows(tokens, target, weight, split)
    kept = what_is_kept(network, run_by_trunk(tokens), plan.memory_budget, plan.disk_budget)
    work = count_work(network, rows, kept, plan)
    rates = measure(network, rows, kept, loss=loss, plan=plan)
    memory, disk = count_memory(network, rows, kept, plan, rates, keeps_best=early_stopping)
    trainable, frozen = count_weights(network)
    per_token, n_tokens = rates.frozen + rates.forward, int(tokens.lengths.sum())
    return FitEstimate(
        model=network.pretrained.model,
        device=str(network.device),
        precision=_PRECISIONS[str(network.dtype)],
        n_layers=network.spec.n_layers,
        max_length=max_length,
        n_texts=len(tokens),
        n_held_out=len(split.held_out),
        n_tokens=n_tokens,
        tokens_per_text={
            name: float(np.quantile(whole, share)) for name, share in _QUANTILES.items()
        },
        n_cut=tokens.n_cut,
        tokens_cut=int(np.maximum(0, whole - tokens.lengths).sum()),  # windows overlap
        trainable_weights=trainable,
        frozen_weights=frozen,
        n_epochs=plan.n_epochs,
        n_steps=plan.n_steps,
        early_stopping=early_stopping,
        seconds=work.seconds(rates),
        seconds_per_1000_predictions=1000 * per_token * n_tokens / len(tokens),
        memory=memory,
        disk=disk,
        classes_assumed=classes_assumed,
        long_text=long_text,
        n_windows=len(run_by_trunk(tokens)) if long_text == "windows" else None,
        advice=Prices(network, work, rates, plan, kept, whole, max_length, long_text).advice(),
    )
