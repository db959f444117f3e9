"""What a fit will cost, before it starts: measured on a training step, the rest is arithmetic.

Seconds are products of counted tokens and measured seconds per token, so other parameters are
priced from the same measurement. What is measured on is thrown away, and no store keeps what was
computed.
"""

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from html import escape
from statistics import median
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from skgpt.data.batching import Rows, optimiser_batches
from skgpt.data.splits import all_rows
from skgpt.data.tokenization import LongText, lengths_in_windows, tokenise_rows
from skgpt.fit_data import FitData
from skgpt.network.features import CacheLevel, TextFeatures, cache_level, uncached_rows
from skgpt.network.microbatches import MicroBatcher, explain_no_memory, gradient_bytes
from skgpt.network.network import NetworkSpec, TextNetwork, count_weights
from skgpt.training.callbacks import work_bar
from skgpt.training.config import TrainingConfig
from skgpt.training.early_stopping import Validation
from skgpt.training.loop import train_step
from skgpt.training.loss import Loss
from skgpt.training.optimizer import Optimizer, training_bytes
from skgpt.training.run import TrainingRows, TrainingRun
from skgpt.trunk.layers import find_blocks

_QUANTILES = {"min": 0.0, "25 %": 0.25, "50 %": 0.5, "75 %": 0.75, "95 %": 0.95, "max": 1.0}
_PRECISIONS = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}


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
            **asdict(self),
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

    def _remarks(self) -> list[str]:
        if self.classes_assumed is None:
            return list(self.advice)
        return [*self.advice, f"{self.classes_assumed} classes are assumed, as there is no y."]

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


def estimate_fit(
    network: TextNetwork,
    data: FitData,
    *,
    loss: Loss,
    config: TrainingConfig,
    max_length: int,
    long_text: LongText,
    early_stopping: bool,
    classes_assumed: int | None,
    verbose: int = 0,
) -> FitEstimate:
    """Count and measure what a fit on these texts would be; the network is trained a bit by it.

    Raises NoMemoryError if the device can't hold one text at a time, or what learns.
    """
    how: Any = {"max_length": max_length, "long_text": long_text, "verbose": verbose}
    prices, rows = price_fit(network, data, loss=loss, config=config, **how)
    tokens, rates, whole_lengths = rows.tokens, prices.rates, prices.lengths
    memory, disk = count_memory(
        network, rows, prices.level, config, rates, keeps_best=early_stopping
    )
    trainable, frozen = count_weights(network)
    per_token, n_tokens = rates.frozen + rates.forward, int(tokens.lengths.sum())
    return FitEstimate(
        model=network.pretrained.model,
        device=str(network.device),
        precision=_PRECISIONS[network.dtype],
        n_layers=network.spec.n_layers,
        max_length=max_length,
        n_texts=len(tokens),
        n_held_out=len(data.split.held_out),
        n_tokens=n_tokens,
        tokens_per_text={
            name: float(np.quantile(whole_lengths, share)) for name, share in _QUANTILES.items()
        },
        n_cut=tokens.n_cut,
        # Never negative, as windows overlap.
        tokens_cut=int(np.maximum(0, whole_lengths - tokens.lengths).sum()),
        trainable_weights=trainable,
        frozen_weights=frozen,
        n_epochs=config.n_epochs,
        n_steps=config.n_steps,
        early_stopping=early_stopping,
        seconds=prices.work.seconds(rates),
        seconds_per_1000_predictions=1000 * per_token * n_tokens / len(tokens),
        memory=memory,
        disk=disk,
        classes_assumed=classes_assumed,
        long_text=long_text,
        n_windows=len(tokens.run) if long_text == "windows" else None,
        advice=prices.advice(),
    )


def price_fit(
    network: TextNetwork,
    data: FitData,
    *,
    loss: Loss,
    config: TrainingConfig,
    max_length: int,
    long_text: LongText,
    verbose: int = 0,
) -> "tuple[Prices, TrainingRows]":
    """Count and measure a fit; return its prices and its rows. The network is trained a bit."""
    of_text = (data.cells, data.template, network.tokenizer)
    with work_bar(verbose) as bar:
        progress = partial(bar.move, "tokenise", unit=" texts")
        tokens = tokenise_rows(*of_text, max_length, long_text, progress)
        lengths = tokenise_rows(*of_text, sys.maxsize, progress=progress).lengths
    rows = TrainingRows(tokens, data.target.codes, data.loss_weight, data.split)
    level = cache_level(network, tokens.run, config.memory_budget, config.disk_budget)
    work = count_work(network, rows, level, config)
    rates = measure(network, rows, level, loss=loss, config=config)
    return Prices(network, work, rates, config, level, lengths, max_length, long_text), rows


# What there is to do, counted.


def count_products(
    network: TextNetwork,
    data: FitData,
    config: TrainingConfig,
    max_length: int,
    long_text: LongText,
) -> float:
    """Guess how many products of a weight and a value a fit makes, without tokenising its texts."""
    lengths = sum(np.array([len(cell) for cell in column]) for column in data.cells)
    tokens = lengths / _CHARACTERS_PER_TOKEN
    if long_text == "cut":
        tokens = np.minimum(tokens, max_length)
    spec = network.spec
    block = find_blocks(network.pretrained.trunk)[0]
    n_weights = sum(parameter.numel() for parameter in block.parameters())
    # Each layer that learns runs forwards, and backwards for its input and for its weights.
    passes = spec.n_frozen + 3 * config.n_epochs * (spec.n_layers - spec.n_frozen)
    return float(np.sum(tokens)) * n_weights * passes


_CHARACTERS_PER_TOKEN = 3  # of plain English there are four and more


@dataclass(frozen=True)
class Work:
    """What a fit has to do, in tokens and steps; a text's tokens are those of all its windows."""

    new_tokens: int  # for the layers that run once: of distinct texts whose states nobody has kept
    distinct_tokens: int
    n_tokens: int
    epoch_tokens: int  # trained on
    held_out_tokens: int
    steps_per_epoch: int
    n_epochs: int  # in which all learns that is to learn
    head_first_epochs: int  # in front of these

    def seconds(self, rates: "Rates") -> dict[str, float]:
        """Return how long the parts of the fit take."""
        head_first = 0.0
        if self.head_first_epochs:
            each = self.epoch_tokens * rates.head_learning
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
    network: TextNetwork, rows: TrainingRows, level: CacheLevel, config: TrainingConfig
) -> Work:
    """Count what a fit has to do that caches states at this level."""
    lengths, split = rows.tokens.lengths, rows.split
    # Rows that weigh nothing are not run.
    weighs = rows.weight.reshape(len(lengths), -1).any(axis=1)
    texts = rows.tokens.run
    first = np.array(list(texts.distinct()[1].values()))
    new = first[:0] if level is CacheLevel.TOKENS else uncached_rows(network, texts, level)
    return Work(
        new_tokens=int(texts.lengths[new].sum()),
        distinct_tokens=int(texts.lengths[first].sum()),
        n_tokens=int(lengths.sum()),
        epoch_tokens=int((lengths * weighs)[split.train].sum()),
        held_out_tokens=int(lengths[split.held_out].sum()),
        steps_per_epoch=config.steps_per_epoch,
        n_epochs=config.n_epochs - config.head_first_epochs,
        head_first_epochs=config.head_first_epochs,
    )


def count_memory(
    network: TextNetwork,
    rows: TrainingRows,
    level: CacheLevel,
    config: TrainingConfig,
    rates: "Rates",
    *,
    keeps_best: bool,
) -> tuple[dict[str, int], int]:
    """Count the bytes that a fit takes of its device's memory, by use, and of the disk."""
    # What was read and what was made of it stay whole for others, whatever this network keeps.
    on_device = [*network.trunk.parameters(), *network.trunk.buffers(), network.head.weight]
    pretrained = network.pretrained
    if network.device.type == "cpu":
        on_device += pretrained.trunk.parameters()
    if pretrained.shared and network.spec.quantize_base is None:
        on_device += pretrained.tensors(network.dtype, network.device).values()
    # What learns, beside the weights of the trunk and the head themselves.
    learning = training_bytes(network, keeps_best=keeps_best)
    if network.dtype == torch.float32:
        learning -= 4 * count_weights(network)[0]
    n_workers = MicroBatcher(network, config.token_budget, learning=True).n_workers
    learning += n_workers * gradient_bytes(network)
    # States, each distinct text's once, and what the micro-batches hold that run at once.
    lengths = rows.tokens.lengths
    texts = rows.tokens.run
    first = list(texts.distinct()[1].values())
    states = 0
    if level is CacheLevel.POOLED:
        states = 4 * len(first) * network.head.in_features
    elif level is CacheLevel.HIDDEN:
        n_values = network.head.in_features * int(texts.lengths[first].sum())
        states = network.dtype.itemsize * n_values
    in_memory = states if level is CacheLevel.POOLED else min(states, config.memory_budget)
    batches = optimiser_batches(config.n_rows, config.batch_size, config.seed, config.first_epoch)
    largest = max(int(lengths[rows.split.train[batch]].sum()) for batch in batches)
    at_once = max(min(largest, config.token_budget), int(lengths.max()))
    memory = {
        "weights": sum({t.data_ptr(): t.nbytes for t in on_device}.values()),  # shared ones once
        "learning": learning,
        "states": in_memory,
        "activations": round(rates.activations * at_once),
    }
    return memory, states - in_memory


# How long it takes, measured.

# What is over sooner is measured several times: a clock and a scheduler tell little of 1 ms.
_LEAST_SECONDS = 0.1


@dataclass(frozen=True)
class Rates:
    """Seconds and bytes per token of a micro-batch as the fit has them; updates are per step."""

    frozen: float  # through the layers that run once; 0.0 where none do
    forward: float  # through all other layers, without a gradient
    learning: float  # through them and back
    update: float
    head_learning: float = 0.0  # a step in which the head learns alone
    activations: float = 0.0  # bytes held for the way back


@explain_no_memory()
def measure(
    network: TextNetwork,
    rows: TrainingRows,
    level: CacheLevel,
    *,
    loss: Loss,
    config: TrainingConfig,
) -> Rates:
    """Measure what a training run is made of, on a few of its rows; the network is trained a bit.

    Each part is measured after something smaller of its kind that warms it up.
    """
    lengths = rows.tokens.lengths
    passing = MicroBatcher(network, config.token_budget)
    batches = optimiser_batches(config.n_rows, config.batch_size, config.seed, config.first_epoch)
    batch = rows.split.train[next(batches)]
    stepping = MicroBatcher(network, config.token_budget, learning=True)
    # Parts are sorted by length and have as many tokens each, so one half of all tokens is in
    # texts longer than those of the middle part.
    of_pass = _middle(passing, np.arange(len(lengths)), lengths)
    of_step = _middle(stepping, batch, lengths)
    pass_tokens, step_tokens = rows.tokens.take(of_pass), rows.tokens.take(of_step)
    features_of = partial(
        TextFeatures,
        network,
        token_budget=config.token_budget,
        memory_budget=config.memory_budget,
        level=level,
        shared=False,
    )
    # The layers that run once, then a pass of the others without a gradient.
    step_features = features_of(step_tokens)
    frozen, features = _timed(network, lambda: features_of(pass_tokens))
    everything = np.arange(len(of_pass))
    _forward(features, passing, everything[-max(1, len(of_pass) // 8) :])  # the shortest
    forward, _ = _timed(network, lambda: _forward(features, passing, everything), passing)
    per_pass = int(lengths[of_pass].sum())
    # Training steps, of all that learns and of the head alone.
    sample = TrainingRows(
        step_tokens,
        rows.target[of_step],
        np.ones((len(of_step), *rows.weight.shape[1:])),
        all_rows(len(of_step)),
    )
    run = TrainingRun(step_features, sample, loss, config, Validation())
    head_learning = 0.0
    with _TimedOptimizer(network, config) as run.optimizer:
        learning, update, activations = _measure_step(run)
        if config.head_first_epochs:
            step_features.freeze_trunk()
            gradient, head_update, _ = _measure_step(run)
            head_learning = gradient + head_update / int(run.lengths.sum())
    return Rates(
        frozen=0.0 if level is CacheLevel.TOKENS else frozen / per_pass,
        forward=forward / per_pass,
        learning=learning,
        update=update,
        head_learning=head_learning,
        activations=activations,
    )


def _middle(batcher: MicroBatcher, rows: Rows, lengths: NDArray[np.int64]) -> Rows:
    """Return the rows of the middle micro-batch, or of as many as run at once."""
    parts = batcher.split(rows, lengths)
    first = max(0, min(len(parts) // 2, len(parts) - batcher.n_workers))
    return np.concatenate(parts[first : first + batcher.n_workers])


@torch.no_grad()
def _forward(features: TextFeatures, batcher: MicroBatcher, rows: Rows) -> None:
    network = features.network
    for _ in batcher.map(
        lambda part: network.score(features.pooled(part)).cpu(), rows, features.lengths
    ):
        pass


class _TimedOptimizer(Optimizer):
    """Notes the seconds of its last step."""

    seconds = 0.0

    def step(self, losses: Sequence[Tensor] = ()) -> Tensor:
        began = _now(self.network.device)
        skipped = super().step(losses)
        self.seconds = _now(self.network.device) - began
        return skipped


def _measure_step(run: TrainingRun) -> tuple[float, float, float]:
    """Measure `train_step` on all rows of a run, after one that counts what is held.

    Returns seconds of the gradient per token, seconds of the update, and bytes held per token.
    """
    network, optimizer = run.network, run.optimizer
    assert isinstance(optimizer, _TimedOptimizer)
    rows = run.rows.split.train
    n_tokens = int(run.lengths.sum())
    own = {_address(t) for t in [*network.parameters(), *network.buffers()]}
    several, n_at_once = run.batcher, run.config.token_budget
    # Only this thread notes what it saves.
    run.batcher = MicroBatcher(network, n_at_once, learning=True, n_workers=1)
    held = _HeldTensors(own)
    with held:
        train_step(run, rows)
    run.batcher = several
    updates: list[float] = []

    def step() -> None:
        train_step(run, rows)
        updates.append(optimizer.seconds)

    seconds, _ = _timed(network, step, run.batcher)
    update = median(updates)
    return max(0.0, seconds - update) / n_tokens, update, held.n_bytes / n_tokens


def _timed(
    network: TextNetwork, work: Callable[[], Any], batcher: MicroBatcher | None = None
) -> tuple[float, Any]:
    """Return how long work takes, without what ran out of memory and was done again; its result."""
    taken: list[float] = []
    # It ends: what runs out of memory halves the batcher's tokens, until NoMemoryError.
    while sum(taken) < _LEAST_SECONDS:
        n_tokens = None if batcher is None else batcher.n_tokens
        began = _now(network.device)
        result = work()
        if batcher is None or batcher.n_tokens == n_tokens:
            taken.append(_now(network.device) - began)
    return median(taken), result


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
    return time.perf_counter()


class _HeldTensors(torch.autograd.graph.saved_tensors_hooks):
    """Counts the bytes that a graph holds for the way back, but for memory at `own` addresses."""

    def __init__(self, own: set[int]) -> None:
        super().__init__(self._note, lambda tensor: tensor)
        self.n_bytes = 0
        self._seen = set(own)

    def _note(self, tensor: Tensor) -> Tensor:
        if (address := _address(tensor)) not in self._seen:
            self._seen.add(address)
            self.n_bytes += tensor.untyped_storage().nbytes()
        return tensor


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


# What other parameters would cost.

_FEW_CUT = 0.1  # of the texts
_LONG_SECONDS = 60.0  # a fit that is worth shortening
_WORTH_IT = 1.2  # times
_SHORT = 64  # tokens that a text should have room for


@dataclass(frozen=True)
class Prices:
    """A measured fit, and what others would cost beside it."""

    network: TextNetwork
    work: Work
    rates: Rates
    config: TrainingConfig
    level: CacheLevel
    lengths: NDArray[np.int64]  # tokens of the whole texts, before any cut
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

    def within(self, seconds: float, *, shallower: bool) -> tuple[int, int]:
        """Return epochs and layers of a fit that takes no longer: fewer epochs, then fewer layers.

        Where nothing is short enough it is one epoch and, if the fit may be shallower, no layer
        but those that learn.
        """
        spec = self.network.spec
        for n_epochs in range(self.work.n_epochs, 0, -1):
            if _total(replace(self.work, n_epochs=n_epochs), self.rates) <= seconds:
                return n_epochs, spec.n_layers
        one = replace(self, work=replace(self.work, n_epochs=1))
        n_learning = spec.n_layers - spec.n_frozen
        n_layers = spec.n_layers
        least = max(1, n_learning) if shallower else n_layers
        while n_layers > least and one.seconds_at_depth(n_layers, n_learning) > seconds:
            n_layers -= 1
        return 1, n_layers

    def seconds_at_length(self, max_length: int, long_text: LongText = "cut") -> float:
        """Return how long it would take with long texts cut or read in other windows."""
        now = self._n_tokens(self.max_length, self.long_text)
        factor = self._n_tokens(max_length, long_text) / now  # longer texts are a bit dearer
        return _total(self.work.scaled(factor), self.rates)

    def _n_tokens(self, max_length: int, long_text: LongText) -> int:
        """Return how many tokens the texts are to the trunk."""
        if long_text == "cut":
            return int(np.minimum(self.lengths, max_length).sum())
        encoder = self.network.tokenizer
        return int(lengths_in_windows(self.lengths, encoder, max_length).sum())

    def seconds_at_depth(self, n_layers: int, n_learning: int) -> float:
        """Return how long it would take with so many layers, of which the last learn.

        They are no more than there are. What was measured of several layers together is taken to
        be the same for each of them.
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
            update=rates.update * n_learning / max(1, learning_now),
        )
        new = self.work.new_tokens if spec.n_frozen else self.work.distinct_tokens
        return _total(replace(self.work, new_tokens=new if once else 0), then)

    def _about_the_cut(self) -> Iterator[str]:
        """Say what it would cost to cut fewer texts, or none."""
        share = self.share_cut(self.max_length)
        if share == 0:
            return
        yield self._about_a_longer_cut(share)
        if share > _FEW_CUT:
            times = self.seconds_at_length(self.max_length, "windows") / self.seconds()
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
        values = smaller_values(spec, self.max_length, self.long_text)
        fewer = values if self._pays_to_freeze() else {}
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
        if "long_text" in values:
            yield self._cheaper_cut("long_text='cut'", self.max_length)
        elif n := values.get("max_length"):
            yield self._cheaper_cut(f"max_length={n}", n)

    def _cheaper_cut(self, change: str, max_length: int) -> tuple[str, float]:
        share = percent(self.share_cut(max_length))
        return f"{change} cuts {share} of the texts", self.seconds_at_length(max_length)

    def _pays_to_freeze(self) -> bool:
        """Say whether what frozen layers return is, or would be, kept."""
        if self.network.spec.n_frozen:
            return self.level is not CacheLevel.TOKENS
        states = 4 * self.work.n_tokens * int(self.network.trunk.config.hidden_size)
        return states <= self.config.memory_budget + self.config.disk_budget


def _total(work: Work, rates: Rates) -> float:
    return sum(work.seconds(rates).values())


def smaller_values(spec: NetworkSpec, max_length: int, long_text: LongText) -> dict[str, Any]:
    """Return legal values of parameters that make a fit shorter, to be tried one by one."""
    learning = spec.n_layers - spec.n_frozen
    values: dict[str, Any] = {}
    if spec.n_frozen == 0 and spec.n_layers > 1:
        values["trainable_layers"] = max(1, spec.n_layers // 4)
    elif learning > 1:
        values["trainable_layers"] = learning // 2
    may_drop = spec.n_frozen == 0 or learning <= spec.n_layers // 2
    if spec.n_layers > 12 and may_drop and not spec.prompted:
        values["n_layers"] = spec.n_layers // 2
    if long_text == "windows":
        values["long_text"] = "cut"
    elif max_length > _SHORT:
        values["max_length"] = max_length // 2
    return values
