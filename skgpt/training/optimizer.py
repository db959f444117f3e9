"""AdamW over fp32 weights while the trunk computes in another precision.

Micro-batches add their gradients up in fp32; a step clips, updates the fp32 weights and refreshes
the trunk's copies of them. A step whose loss or gradient is not finite changes nothing and is
counted. AdamW: Loshchilov and Hutter, "Decoupled Weight Decay Regularization" (2019), as torch
implements it.
"""

import signal
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from skgpt.exceptions import DivergedError
from skgpt.network.network import HEAD, TextNetwork
from skgpt.tensor_files import State
from skgpt.training.config import TrainingConfig
from skgpt.training.signals import deferred

_FIRST_SCALE = 2.0**14
_LAST_SCALE = 2.0**-10
_GROW_AFTER = 1000


@dataclass(frozen=True)
class Moments:
    """AdamW's running means of the gradients and of their squares, for another run to go on with.

    `steps` counts the updates so far; `scale` is fp16's loss scale, 1 in other precisions. The
    tensors are fp32. All are by the name of the parameter: those of the trunk, ``head.weight``.
    """

    steps: dict[str, float]
    scale: float
    means: dict[str, Tensor]
    squares: dict[str, Tensor]

    def grown(self, rows: NDArray[np.int64], n_rows: int) -> "Moments":
        """Return the moments of a head of `n_rows` rows; `rows` says where the old ones go."""
        return Moments(
            self.steps,
            self.scale,
            {**self.means, HEAD: _spread(self.means[HEAD], rows, n_rows)},
            {**self.squares, HEAD: _spread(self.squares[HEAD], rows, n_rows)},
        )

    def state(self) -> State:
        """Return them as tensors and numbers, to be saved."""
        return State.of(
            means=State(self.means, {"steps": self.steps, "scale": self.scale}),
            squares=State(self.squares),
        )

    @classmethod
    def of_state(cls, state: State) -> "Moments":
        """Make them again from what `state` returned."""
        means, squares = state.part("means"), state.part("squares")
        values = means.values
        return cls(values["steps"], values["scale"], dict(means.tensors), dict(squares.tensors))


def _spread(tensor: Tensor, rows: NDArray[np.int64], n_rows: int) -> Tensor:
    spread = tensor.new_zeros(n_rows, tensor.shape[1])
    spread[torch.from_numpy(rows).to(tensor.device)] = tensor
    return spread


def host_looks(device: torch.device) -> bool:
    """Say whether the host looks at each step: on CUDA it would wait for the device."""
    return device.type != "cuda"


class Optimizer:
    """AdamW over what a network learns, for one run; a context manager that ends it.

    On CUDA the host never waits for a step: a GradScaler has the device itself skip one whose loss
    or gradient is not finite. In fp16 it scales the loss as well, since gradients would underflow.
    Elsewhere the host looks at each step.
    """

    def __init__(
        self, network: TextNetwork, config: TrainingConfig, moments: Moments | None = None
    ) -> None:
        self.network = network
        self.config = config
        self._is_fp16 = network.dtype == torch.float16
        self.looks_at_once = host_looks(network.device) and not self._is_fp16
        self._n_made = 0
        self._n_void = torch.zeros((), device=network.device)  # of these, skipped by the device
        self._step = 0
        self._copies = {name: network.trunk.get_parameter(name) for name in network.learnable}
        self._separate = network.dtype != torch.float32
        self._memory: dict[str, Tensor] = {}  # of gradients
        self._embeddings = self._sparse_embeddings()
        for embedding in self._embeddings:
            embedding.sparse = True
        self._head = network.head.weight
        self._head.requires_grad_(True)
        self._learned = network.learned
        first_scale = _FIRST_SCALE if self._is_fp16 else 1.0
        self._scaler = torch.amp.GradScaler(
            network.device.type,
            init_scale=first_scale if moments is None else moments.scale,
            growth_interval=_GROW_AFTER,
            enabled=not self.looks_at_once,
        )
        decay, rate = config.weight_decay, config.learning_rate
        groups = [
            ([w for w in network.learnable.values() if w.ndim > 1], rate, decay),
            ([w for w in network.learnable.values() if w.ndim <= 1], rate, 0.0),
            ([self._head], config.head_learning_rate, decay),
        ]
        self._adam = torch.optim.AdamW(
            [{"params": ws, "lr": lr, "weight_decay": wd} for ws, lr, wd in groups if ws],
            fused=True,
        )
        self._peaks = [group["lr"] for group in self._adam.param_groups]
        if moments is not None:
            self._load_moments(moments)

    def __enter__(self) -> "Optimizer":
        return self

    def __exit__(self, *raised: object) -> None:
        """Free the gradients and freeze what was learned: the run is over."""
        self.zero_grad()
        self._memory.clear()
        for embedding in self._embeddings:
            embedding.sparse = False
        for parameter in [*self._copies.values(), *self._learned.values()]:
            parameter.requires_grad_(False)

    def _sparse_embeddings(self) -> list[nn.Embedding]:
        """Return the embeddings whose gradients had better be rows of the batch's tokens alone.

        With a row for each of 50,000 tokens it takes 100 ms of a step just to clear and copy one.
        On a GPU that is nothing, and rows that occur twice would be added up in any order there.
        """
        if not self._separate or self.network.device.type != "cpu":
            return []
        learning = {id(parameter) for parameter in self._copies.values()}
        modules = self.network.trunk.modules()
        return [m for m in modules if isinstance(m, nn.Embedding) and id(m.weight) in learning]

    @property
    def lr_factor(self) -> float:
        """What the peak learning rates are multiplied with at the step to come."""
        return self.config.lr_factor(self._step)

    @property
    def n_updates(self) -> int:
        """Steps of this run that changed something, all of them whole; asking waits for them."""
        return self._n_made - int(self._n_void)

    def gradients(self, loss: Tensor) -> list[Tensor | None]:
        """Return the gradients of one micro-batch's share of the loss; threads may ask at once."""
        of = [*self._copies.values(), self._head]
        return list(torch.autograd.grad(self._scaler.scale(loss), of, allow_unused=True))

    @torch.no_grad()
    def add(self, gradients: Sequence[Tensor | None]) -> None:
        """Add what `gradients` returned to the gradients of the fp32 weights."""
        to_copy: list[tuple[Tensor, Tensor]] = []
        to_add: list[tuple[Tensor, Tensor]] = []
        for (name, weight), grad in zip(self._learned.items(), gradients, strict=True):
            if grad is None:
                continue
            mine, is_first = weight.grad, weight.grad is None
            if mine is None:
                # Kept from step to step: new memory in each would have to be cleared by the system.
                if name not in self._memory:
                    self._memory[name] = torch.empty_like(weight)
                mine = weight.grad = self._memory[name]
            if grad.is_sparse:  # rows of some tokens
                if is_first:
                    mine.zero_()
                mine.index_add_(0, grad._indices()[0], grad._values().float())
            else:
                (to_copy if is_first else to_add).append((mine, grad))
        for pairs, operation in ((to_copy, torch._foreach_copy_), (to_add, torch._foreach_add_)):
            if pairs:
                operation([mine for mine, _ in pairs], [grad for _, grad in pairs])

    def step(self, losses: Sequence[Tensor] = ()) -> Tensor:
        """Clip, update, refresh the trunk's copies and free the gradients.

        `losses` are the micro-batches' shares that the gradients are those of. Returns a scalar on
        the device: 1.0 if the step was skipped since its loss or gradient is not finite, else 0.0.
        An overflow in fp16 voids the step as well, but isn't counted: the scale is lowered until
        it fits.
        """
        learned = list(self._learned.values())
        if self._scaler.is_enabled():
            if losses and self._head.grad is not None:
                # A loss that is not finite voids the step even where its gradient is.
                self._head.grad.add_(torch.stack(list(losses)).sum() * 0)
            self._scaler.unscale_(self._adam)
        norm = nn.utils.get_total_norm([p.grad for p in learned if p.grad is not None])
        void = not_finite([*losses, norm])
        if not (self.looks_at_once and void):
            # On a CPU the norm can be looked at for nothing, and most steps need no second pass
            # over all gradients; on a GPU to look means to wait, and a product with one is quick.
            max_norm = self.config.max_grad_norm
            if max_norm is not None and not (norm.device.type == "cpu" and norm <= max_norm):
                nn.utils.clip_grads_with_norm_(learned, max_norm, norm)
            for group, peak in zip(self._adam.param_groups, self._peaks, strict=True):
                group["lr"] = peak * self.lr_factor
            with deferred(signal.SIGINT):
                self._scaler.step(self._adam)
                self.network.refresh()
                self._n_made += 1
                self._n_void += void
            self._scaler.update(None if self._is_fp16 else 1.0)
        self.skip_step()
        return not_finite(losses) if self._is_fp16 and losses else void

    @torch.no_grad()
    def put_head(self, weight: NDArray[np.float64], loss: Tensor) -> Tensor:
        """Make a step to this head; returns what `step` does."""
        void = not_finite([loss])
        if not void:
            with deferred(signal.SIGINT):
                self._head.copy_(torch.from_numpy(weight).float())  # MPS has no fp64
                self._n_made += 1
        self.skip_step()
        return void

    def skip_step(self) -> None:
        """Count a step that changes nothing, as one whose rows all weigh nothing."""
        self._step += 1
        self.zero_grad()

    def zero_grad(self) -> None:
        """Forget the gradients so far."""
        for parameter in self._learned.values():
            parameter.grad = None

    def check_scale(self) -> None:
        """Raise if fp16 gradients overflow at any loss scale; asking waits for the device."""
        if self._is_fp16 and self._scaler.get_scale() < _LAST_SCALE:
            raise DivergedError(
                "The gradients must be finite in fp16. They overflow at any loss scale: lower "
                "`learning_rate`, or use precision='bf16' or 'fp32'."
            )

    def is_finite(self) -> bool:
        """Say whether everything that was learned is a number."""
        return all(bool(torch.isfinite(tensor).all()) for tensor in self._learned.values())

    def _load_moments(self, moments: Moments) -> None:
        for name, parameter in self._learned.items():
            if name not in moments.means:  # it acts on nothing, as an encoder's own pooler
                continue
            self._adam.state[parameter] = {
                "step": torch.tensor(
                    moments.steps[name], dtype=torch.float32, device=parameter.device
                ),
                "exp_avg": torch.empty_like(parameter).copy_(moments.means[name]),
                "exp_avg_sq": torch.empty_like(parameter).copy_(moments.squares[name]),
            }

    def moments(self) -> Moments | None:
        """Return what AdamW remembers; None before the first update."""
        state = {name: self._adam.state.get(p) for name, p in self._learned.items()}
        known = {name: kept for name, kept in state.items() if kept}
        if not known:
            return None
        return Moments(
            {name: float(kept["step"]) for name, kept in known.items()},
            float(self._scaler.get_scale()) if self._is_fp16 else 1.0,
            {name: kept["exp_avg"] for name, kept in known.items()},
            {name: kept["exp_avg_sq"] for name, kept in known.items()},
        )

    def state(self) -> State:
        """Return what to go on from, what was learned included."""
        values = {
            "n_updates": self.n_updates,
            "step": self._step,
            "scaler": self._scaler.state_dict(),
        }
        parts = {"learned": State(self._learned, values)}
        if (moments := self.moments()) is not None:
            parts["moments"] = moments.state()
        return State.of(**parts)

    @torch.no_grad()
    def load_state(self, state: State) -> None:
        """Go on from what `state` returned."""
        learned = state.part("learned")
        for name, parameter in self._learned.items():
            parameter.copy_(learned.tensors[name])
        if "moments" in state.values:
            self._load_moments(Moments.of_state(state.part("moments")))
        self.network.refresh()
        self._n_made, self._step = learned.values["n_updates"], learned.values["step"]
        if learned.values["scaler"]:
            self._scaler.load_state_dict(learned.values["scaler"])


def training_bytes(network: TextNetwork, *, keeps_best: bool) -> int:
    """Return the bytes of what learns: fp32 weights, gradients, moments, the trunk's copies."""
    n_learned = sum(tensor.numel() for tensor in network.learned.values())
    copies = 0 if network.dtype == torch.float32 else n_learned * network.dtype.itemsize
    return 4 * (4 + keeps_best) * n_learned + copies


# Steps that are not finite.

# One bad batch, or a passing spike, is got over; weights that make five of them don't come back.
_MOST_IN_A_ROW = 5
_STEPS_UNREAD = 64


def not_finite(numbers: Sequence[Tensor]) -> Tensor:
    """Return 1.0 if one of some scalars is not finite, else 0.0: a scalar of their device."""
    return (~torch.isfinite(torch.stack(list(numbers))).all()).float()


@dataclass
class RunningLoss:
    """The weighted mean of an epoch's loss so far, without skipped steps, which it counts.

    Unless it looks `at_once`, it reads many steps at a time: to read each, the host would wait for
    the device instead of preparing the next.
    """

    at_once: bool
    n_steps: int = 0  # of the whole run, as the next two
    n_skipped_in_all: int = 0
    in_a_row: int = 0  # skipped, up to the last step
    n_skipped: int = 0  # of the epoch, as the next two
    total: float = 0.0
    weight: float = 0.0
    _waiting: list[tuple[list[Tensor], float]] = field(default_factory=list)

    def begin_epoch(self) -> None:
        """Begin a new mean."""
        self.n_skipped, self.total, self.weight = 0, 0.0, 0.0

    def add(self, losses: Sequence[Tensor], weight: float, skipped: Tensor) -> None:
        """Add a step: shares of its mean loss, the weight of its rows, 1.0 if it was skipped."""
        self._waiting.append(([skipped, *losses], weight))
        if self.at_once or len(self._waiting) >= _STEPS_UNREAD:
            self.read()

    def read(self) -> None:
        """Read the steps since the last time, in order."""
        if not self._waiting:
            return
        waiting, self._waiting = self._waiting, []
        numbers = iter(torch.stack([t for tensors, _ in waiting for t in tensors]).tolist())
        for tensors, weight in waiting:
            skipped, *losses = islice(numbers, len(tensors))
            self.n_steps += 1
            self.n_skipped += bool(skipped)
            self.n_skipped_in_all += bool(skipped)
            if not self.too_many:  # which a later step that was good would hide
                self.in_a_row = self.in_a_row + 1 if skipped else 0
            if not skipped:
                self.total += sum(losses) * weight
                self.weight += weight

    @property
    def too_many(self) -> bool:
        """Whether there ever were so many skipped steps in a row that the run is lost."""
        return self.in_a_row >= _MOST_IN_A_ROW

    def mean(self) -> float:
        """Return the mean; 0 where the rows weigh nothing, NaN where every step was skipped."""
        self.read()
        if self.weight:
            return self.total / self.weight
        return float("nan") if self.n_skipped else 0.0

    def state(self) -> State:
        """Return what to go on from."""
        self.read()
        counts = {k: v for k, v in vars(self).items() if k not in ("at_once", "_waiting")}
        return State(values=counts)

    def load_state(self, state: State) -> None:
        """Go on from what `state` returned."""
        vars(self).update(state.values)
