"""What a fit will cost, as numbers and as something to read."""

from dataclasses import dataclass
from html import escape
from typing import Any

from skgpt.text.windows import LongText


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
