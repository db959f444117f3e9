"""What an optimiser remembers between steps, kept from one call of partial_fit to the next.

Steps whose loss or gradient is not finite: who finds out when, and how many are too many.

AdamW over fp32 originals while the trunk computes in another precision.

Micro-batches add their gradients up in fp32; a step clips, updates the originals and refreshes
the working copies. AdamW: Loshchilov and Hutter, "Decoupled Weight Decay Regularization" (2019),
as torch implements it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from skgpt.exceptions import DivergedError
from skgpt.network.network import TextNetwork
from skgpt.tensor_files import check_checksum, from_bytes, to_bytes, with_checksum
from skgpt.training.checkpoint import State
from skgpt.training.config import TrainingPlan
from skgpt.training.signals import uninterrupted

HEAD = "head.weight"


@dataclass(frozen=True)
class Moments:
    """AdamW's running means of the gradients and of their squares.

    Parameters
    ----------
    step : int
        Updates so far.
    scale : float
        fp16's loss scale; 1 in other precisions.
    means, squares : dict of str to Tensor
        fp32, by the name of the parameter: those of the trunk, and ``head.weight``.
    """

    step: int
    scale: float
    means: dict[str, Tensor]
    squares: dict[str, Tensor]

    def grown(self, rows: NDArray[np.int64], n_rows: int) -> "Moments":
        """Return the moments of a head with more rows: the old ones move, new ones start at zero.

        Parameters
        ----------
        rows : ndarray of int64
            Where each old row of the head goes.
        n_rows : int
            Rows of the new head.
        """
        return Moments(
            self.step,
            self.scale,
            {**self.means, HEAD: _spread(self.means[HEAD], rows, n_rows)},
            {**self.squares, HEAD: _spread(self.squares[HEAD], rows, n_rows)},
        )

    def pack(self) -> dict[str, Any]:
        """Return them as numbers, one uint8 array and a hash of it all."""
        tensors = {f"means.{name}": t for name, t in self.means.items()}
        tensors |= {f"squares.{name}": t for name, t in self.squares.items()}
        return with_checksum({"step": self.step, "scale": self.scale, "tensors": to_bytes(tensors)})

    @classmethod
    def unpack(cls, state: dict[str, Any], device: torch.device) -> "Moments":
        """Make them again from what `pack` returned."""
        check_checksum(state, "The optimiser's moments in a saved model")
        tensors = {name: t.to(device) for name, t in from_bytes(state["tensors"]).items()}
        halves = [
            {k.removeprefix(half): t for k, t in tensors.items() if k.startswith(half)}
            for half in ("means.", "squares.")
        ]
        return cls(state["step"], state["scale"], *halves)


def _spread(tensor: Tensor, rows: NDArray[np.int64], n_rows: int) -> Tensor:
    spread = tensor.new_zeros(n_rows, tensor.shape[1])
    spread[torch.from_numpy(rows).to(tensor.device)] = tensor
    return spread


# One bad batch, or a passing spike, is got over; weights that make five of them don't come back.
_MOST_IN_A_ROW = 5
_STEPS_UNREAD = 64
_NUMBERS_UNREAD = 512


@dataclass(frozen=True)
class Looking:
    """When the host looks at what a step has come to.

    Where a look means to wait for the device, the device itself skips the step, and the host reads
    of many steps at a time.

    Parameters
    ----------
    at_once : bool
        After each step.
    """

    at_once: bool

    @classmethod
    def at(cls, device: torch.device) -> "Looking":
        """Return how to look on a device: later only on CUDA, whose AdamW can skip by itself."""
        return cls(at_once=device.type != "cuda")

    def is_due(self, n_steps: int, n_numbers: int) -> bool:
        """Say whether to read, with as many steps and numbers not read yet."""
        return self.at_once or n_steps >= _STEPS_UNREAD or n_numbers >= _NUMBERS_UNREAD


class Skips:
    """Counts skipped steps over a whole run.

    Attributes
    ----------
    n_steps : int
        Those that were noted, skipped or not.
    total : int
        Skipped ones.
    in_a_row : int
        Up to the last step that was noted, or that made them too many.
    """

    def __init__(self) -> None:
        self.n_steps = 0
        self.total = 0
        self.in_a_row = 0

    def note(self, skipped: bool) -> None:
        """Count a step; they come in order."""
        self.n_steps += 1
        self.total += skipped
        if not self.too_many:  # which a later step that was good would hide
            self.in_a_row = self.in_a_row + 1 if skipped else 0

    def state(self) -> State:
        """Return what to go on from."""
        return State(values=dict(vars(self)))

    def go_on_from(self, state: State) -> None:
        """Take over what `state` returned."""
        vars(self).update(state.values)

    @property
    def too_many(self) -> bool:
        """Whether there ever were so many in a row that the run is lost."""
        return self.in_a_row >= _MOST_IN_A_ROW


def not_finite(numbers: Sequence[Tensor]) -> Tensor:
    """Return 1.0 if one of some scalars is not finite, else 0.0: a scalar of their device."""
    return (~torch.isfinite(torch.stack(list(numbers))).all()).float()


class RunningLoss:
    """The mean of the loss over an epoch so far, without the steps that were skipped.

    To read it after each step, the host would wait for the device instead of preparing the next.

    Parameters
    ----------
    skips : Skips
        Told of every step, when it is read.
    looking : Looking
    """

    def __init__(self, skips: Skips, looking: Looking) -> None:
        self.skips = skips
        self.looking = looking
        self.n_skipped = 0
        self._total = 0.0
        self._weight = 0.0
        self._waiting: list[tuple[list[Tensor], float]] = []
        self._n_numbers = 0

    def add(self, shares: Sequence[Tensor], weight: float, skipped: Tensor) -> None:
        """Add a step.

        Parameters
        ----------
        shares : sequence of Tensor
            Of its mean loss, scalars.
        weight : float
            Of its rows.
        skipped : Tensor
            Scalar; 1.0 if it was skipped, else 0.0.
        """
        self._waiting.append(([skipped, *shares], weight))
        self._n_numbers += 1 + len(shares)
        if self.looking.is_due(len(self._waiting), self._n_numbers):
            self.read()

    def read(self) -> None:
        """Read what came of the steps since the last time."""
        if not self._waiting:
            return
        values = torch.stack([t for tensors, _ in self._waiting for t in tensors]).tolist()
        waiting, self._waiting, self._n_numbers = self._waiting, [], 0
        place = 0
        for tensors, weight in waiting:
            skipped, *shares = values[place : place + len(tensors)]
            place += len(tensors)
            self.skips.note(bool(skipped))
            self.n_skipped += bool(skipped)
            if not skipped:
                self._total += sum(shares) * weight
                self._weight += weight

    def mean(self) -> float:
        """Return the weighted mean over all rows so far.

        It is 0 where they weigh nothing, and NaN where every step was skipped.
        """
        self.read()
        if self._weight:
            return self._total / self._weight
        return float("nan") if self.n_skipped else 0.0

    def state(self) -> State:
        """Return what to go on from."""
        self.read()
        values = {"n_skipped": self.n_skipped, "total": self._total, "weight": self._weight}
        return State(values=values)

    def go_on_from(self, state: State) -> None:
        """Take over what `state` returned."""
        values = state.values
        self.n_skipped, self._total = values["n_skipped"], values["total"]
        self._weight = values["weight"]


_FIRST_SCALE = 2.0**14
_LAST_SCALE = 2.0**-10
_GROW_AFTER = 1000


class Optimiser:
    """Owns the optimiser state of one run.

    Parameters
    ----------
    network : TextNetwork
    plan : TrainingPlan
    moments : Moments, default=None
        Of an earlier run over the same parameters, to go on from.
    looking : Looking, default=None
        None is what suits the device.
    """

    def __init__(
        self,
        network: TextNetwork,
        plan: TrainingPlan,
        moments: Moments | None = None,
        looking: Looking | None = None,
    ) -> None:
        self.network = network
        self.plan = plan
        # fp16's loss scale has to be looked at in each step anyhow.
        looking = looking or Looking.at(network.device)
        self._looks_at_once = looking.at_once or network.dtype == torch.float16
        self._n_made = 0
        self._n_in_vain = torch.zeros((), device=network.device)  # of these, skipped by the device
        self._step = 0
        self._names = list(network.learnable)
        self._masters = list(network.learnable.values())
        self._working = [network.trunk.get_parameter(name) for name in self._names]
        self._separate = network.dtype != torch.float32
        self._sums: dict[str, Tensor] = {}
        self._rows: dict[str, list[Tensor]] = {}  # of embeddings, not zero in the sums
        self._embeddings = self._find_embeddings()
        for embedding in self._embeddings:
            embedding.sparse = True
        self._head = network.head.weight
        self._head.requires_grad_(True)
        # fp16 gradients underflow without a scale; bf16 and fp32 have the range.
        self._scale = _FIRST_SCALE if network.dtype == torch.float16 else 1.0
        self._good_steps = 0
        groups = [
            _group([m for m in self._masters if m.ndim > 1], plan.learning_rate, plan.weight_decay),
            _group([m for m in self._masters if m.ndim <= 1], plan.learning_rate, 0.0),
            _group([self._head], plan.head_learning_rate, plan.weight_decay),
        ]
        self._adam = torch.optim.AdamW([g for g in groups if g["params"]], fused=True)
        self._peaks = [group["lr"] for group in self._adam.param_groups]
        if moments is not None:
            self._take_over(moments)

    def _find_embeddings(self) -> list[nn.Embedding]:
        """Return the embeddings whose gradients had better be rows of the batch's tokens alone.

        With a row for each of 50,000 tokens it takes 100 ms of a step just to clear and copy one.
        On a GPU that is nothing, and rows that occur twice would be added up in any order there.
        """
        if not self._separate or self.network.device.type != "cpu":
            return []
        learning = {id(parameter) for parameter in self._working}
        modules = self.network.trunk.modules()
        return [m for m in modules if isinstance(m, nn.Embedding) and id(m.weight) in learning]

    def _named(self) -> dict[str, Tensor]:
        return {**dict(zip(self._names, self._masters, strict=True)), HEAD: self._head}

    def _take_over(self, moments: Moments) -> None:
        self._scale = moments.scale
        for name, parameter in self._named().items():
            if name not in moments.means:  # it acts on nothing, as an encoder's own pooler
                continue
            self._adam.state[parameter] = {
                "step": torch.tensor(float(moments.step), device=parameter.device),
                "exp_avg": moments.means[name].to(parameter.device, copy=True),
                "exp_avg_sq": moments.squares[name].to(parameter.device, copy=True),
            }

    def moments(self) -> Moments | None:
        """Return what AdamW remembers; None before the first update."""
        state = {name: self._adam.state.get(p) for name, p in self._named().items()}
        known = {name: kept for name, kept in state.items() if kept}
        if not known:
            return None
        return Moments(
            int(known[HEAD]["step"]),
            self._scale,
            {name: kept["exp_avg"] for name, kept in known.items()},
            {name: kept["exp_avg_sq"] for name, kept in known.items()},
        )

    def state(self) -> State:
        """Return what to go on from, what was learned included."""
        named = self._named()
        kept = {name: self._adam.state[p] for name, p in named.items() if p in self._adam.state}
        tensors = {f"learned.{name}": p for name, p in named.items()}
        tensors |= {f"means.{name}": state["exp_avg"] for name, state in kept.items()}
        tensors |= {f"squares.{name}": state["exp_avg_sq"] for name, state in kept.items()}
        values = {
            "updates": {name: float(state["step"]) for name, state in kept.items()},
            "n_updates": self.n_updates,
            "step": self._step,
            "scale": self._scale,
            "good_steps": self._good_steps,
        }
        return State(tensors, values)

    @torch.no_grad()
    def go_on_from(self, state: State) -> None:
        """Take over what `state` returned."""
        values, tensors = state.values, state.tensors
        for name, parameter in self._named().items():
            parameter.copy_(tensors[f"learned.{name}"])
            if name in values["updates"]:
                self._adam.state[parameter] = {
                    "step": torch.tensor(
                        values["updates"][name], dtype=torch.float32, device=parameter.device
                    ),
                    "exp_avg": torch.empty_like(parameter).copy_(tensors[f"means.{name}"]),
                    "exp_avg_sq": torch.empty_like(parameter).copy_(tensors[f"squares.{name}"]),
                }
        self.network.refresh()
        self._n_made, self._step = values["n_updates"], values["step"]
        self._scale, self._good_steps = values["scale"], values["good_steps"]

    @property
    def lr_factor(self) -> float:
        """What the peak learning rates are multiplied with at the step to come."""
        return self.plan.lr_factor(self._step)

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of one micro-batch's share of the loss."""
        (loss * self._scale).backward()
        if self._separate:
            self._collect()

    @torch.no_grad()
    def _collect(self) -> None:
        """Add the working copies' gradients to those of the originals, in fp32."""
        to_copy: list[tuple[Tensor, Tensor]] = []
        to_add: list[tuple[Tensor, Tensor]] = []
        for name, master, working in zip(self._names, self._masters, self._working, strict=True):
            if working.grad is None:
                continue
            if working.grad.is_sparse:
                self._collect_rows(name, master, working.grad)
                continue
            if master.grad is not None:
                to_add.append((master.grad, working.grad))
                continue
            # Kept from step to step: new memory in each would have to be cleared by the system.
            if name not in self._sums:
                self._sums[name] = torch.empty_like(master)
            master.grad = self._sums[name]
            to_copy.append((master.grad, working.grad))
        for pairs, do in ((to_copy, torch._foreach_copy_), (to_add, torch._foreach_add_)):
            if pairs:
                do([mine for mine, _ in pairs], [grad for _, grad in pairs])
        for working in self._working:
            working.grad = None

    def _collect_rows(self, name: str, master: Tensor, grad: Tensor) -> None:
        """Add a gradient that has the rows of some tokens alone; the others stay zero."""
        if master.grad is None:
            if name not in self._rows:
                self._sums[name] = torch.zeros_like(master)
            for rows in self._rows.pop(name, []):
                self._sums[name].index_fill_(0, rows, 0.0)
            master.grad = self._sums[name]
        rows, values = grad._indices()[0], grad._values()
        master.grad.index_add_(0, rows, values.float())
        self._rows.setdefault(name, []).append(rows)

    @property
    def n_updates(self) -> int:
        """Steps of this run that changed something, all of them whole; asking waits for them."""
        return self._n_made - int(self._n_in_vain)

    def step(self, shares: Sequence[Tensor] = ()) -> Tensor:
        """Clip, update, refresh the working copies and forget the gradients.

        A step whose loss or whole gradient is not finite changes nothing.

        Parameters
        ----------
        shares : sequence of Tensor
            The loss that the gradients are those of, in parts; scalars.

        Returns
        -------
        skipped : Tensor
            Scalar; 1.0 if the step was skipped for that, else 0.0. fp16's loss scale may void a
            step as well, which is not counted: it is lowered until it fits.
        """
        skipped = self._try(shares)
        self.skip()
        return skipped

    def _try(self, shares: Sequence[Tensor]) -> Tensor:
        learned = [*self._masters, self._head]
        grads = [p.grad for p in learned if p.grad is not None]
        if self.network.dtype == torch.float16:
            bad = not_finite(shares) if shares else torch.zeros((), device=self.network.device)
            # No scale cures a loss that is not finite; one that is has scaled gradients at worst.
            if bad or not self._unscale(grads):
                return bad
        norm = torch.nn.utils.get_total_norm(grads)
        bad = not_finite([*shares, norm])
        if self._looks_at_once and bad:
            return bad
        if self.plan.max_grad_norm is not None:
            self._clip(learned, self.plan.max_grad_norm, norm)
        for group, peak in zip(self._adam.param_groups, self._peaks, strict=True):
            group["lr"] = peak * self.lr_factor
        with uninterrupted():
            self._update(bad)
        return bad

    def _update(self, bad: Tensor) -> None:
        """Update what learns; where nobody has looked yet, the device lets a bad step be."""
        if self._looks_at_once:
            self._adam.step()
        else:
            # AdamW's fused kernel asks for what a GradScaler would have set.
            self._adam.found_inf = bad  # type: ignore[attr-defined]
            try:
                self._adam.step()
            finally:
                del self._adam.found_inf  # type: ignore[attr-defined]
            self._n_in_vain += bad
        self.network.refresh()
        self._n_made += 1

    def _clip(self, learned: list[Tensor], max_norm: float, norm: Tensor) -> None:
        # On a CPU the norm can be looked at for nothing, and most steps need no second pass over
        # all gradients; on a GPU to look means to wait, and a product with one is quick.
        if norm.device.type == "cpu" and norm <= max_norm:
            return
        # In a step that is to be skipped, what is finite stays so: memory of sums is used again.
        norm = torch.where(torch.isfinite(norm), norm, 0.0)
        torch.nn.utils.clip_grads_with_norm_(learned, max_norm, norm)

    def skip(self) -> None:
        """Count a step that changes nothing, as one whose rows all weigh nothing."""
        self._step += 1
        self.forget()

    def forget(self) -> None:
        """Forget the gradients so far, those of a backward pass that broke off among them."""
        for parameter in [*self._working, *self._masters, self._head]:
            parameter.grad = None

    def _unscale(self, grads: list[Tensor]) -> bool:
        """Take the loss scale out of the gradients; an overflow halves it and voids the step."""
        torch._foreach_div_(grads, self._scale)
        finite = bool(torch.isfinite(torch.stack([g.sum() for g in grads])).all())
        self._good_steps = self._good_steps + 1 if finite else 0
        if not finite:
            self._scale /= 2
            if self._scale < _LAST_SCALE:
                raise DivergedError(
                    "The gradients must be finite in fp16. They overflow at any loss scale: lower "
                    "`learning_rate`, or use precision='bf16' or 'fp32'."
                )
        elif self._good_steps % _GROW_AFTER == 0:
            self._scale *= 2
        return finite

    def is_finite(self) -> bool:
        """Say whether everything that was learned is a number."""
        learned = [*self._masters, self._head]
        return all(bool(torch.isfinite(tensor).all()) for tensor in learned)

    def release(self) -> None:
        """Forget gradients for good and freeze what was learned: the run is over."""
        self.forget()
        self._sums.clear()
        self._rows.clear()
        for embedding in self._embeddings:
            embedding.sparse = False
        for parameter in [*self._working, *self._masters, self._head]:
            parameter.requires_grad_(False)


def training_bytes(network: TextNetwork, *, keeps_best: bool) -> int:
    """Return the bytes of what learns: fp32 weights, gradients, moments, working copies."""
    n_learned = sum(t.numel() for t in [*network.learnable.values(), network.head.weight])
    n_copies = sum(master.numel() for master in network.learnable.values())
    copies = 0 if network.dtype == torch.float32 else n_copies * network.dtype.itemsize
    return 4 * (4 + keeps_best) * n_learned + copies


def _group(params: list[Tensor], lr: float, weight_decay: float) -> dict[str, object]:
    return {"params": params, "lr": lr, "weight_decay": weight_decay}
