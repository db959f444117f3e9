"""What a fit would cost with other parameters, worked out from what was measured with these."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from skgpt.cost import Rates, Work, percent
from skgpt.data.tokenization import LongText, lengths_in_windows
from skgpt.estimators.advice import fewer_layers, shorter_texts
from skgpt.network.features import Kept
from skgpt.network.network import TextNetwork, count_weights
from skgpt.training.config import TrainingPlan
from skgpt.trunk.layers import find_blocks

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
