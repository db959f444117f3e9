"""What a training run is at a step: tensors and plain values, those of its parts together."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

_OF = "/"


@dataclass(frozen=True)
class State:
    """Tensors and plain values, by name.

    Parameters
    ----------
    tensors : dict of str to Tensor
        Those in use, not copies: write them before the next step.
    values : dict of str to object
        What `skgpt.plain.to_plain` takes.
    """

    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    values: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, **parts: "State") -> "State":
        """Return the states of several parts as one."""
        return cls(
            {f"{p}{_OF}{k}": t for p, state in parts.items() for k, t in state.tensors.items()},
            {p: state.values for p, state in parts.items()},
        )

    def part(self, name: str) -> "State":
        """Return one of the states that `of` was given."""
        own = f"{name}{_OF}"
        tensors = {k.removeprefix(own): t for k, t in self.tensors.items() if k.startswith(own)}
        return State(tensors, self.values[name])
