"""A run's own tensors off the device, while it waits for others that train on the same one."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from skgpt.model.device import free_memory, total_memory

_HOST = torch.device("cpu")


class Parking:
    """Moves what a run alone has into the host's memory, and back, bit for bit.

    Each tensor gets other memory and stays the object that it is, so whoever holds it (modules,
    AdamW, its own parameters among them) need not know. What the allocator gets back it keeps for
    the run whose turn it is.

    Parameters
    ----------
    device : torch.device
        Of the run.
    own : callable
        Returns the run's own tensors as they are now, some of them perhaps twice.
    let_go : callable
        Gives up memory that the run can take anew.
    n_bytes : int
        What they come to at most, gradients included.
    """

    def __init__(
        self,
        device: torch.device,
        own: Callable[[], Iterable[Tensor]],
        let_go: Callable[[], None],
        n_bytes: int,
    ) -> None:
        self.device = device
        self.n_bytes = n_bytes
        self._own = own
        self._let_go = let_go

    def pays(self, n_others: int) -> bool:
        """Say whether the device is too small for as many other runs like this one beside it.

        To move everything twice an epoch may take as long as a short epoch itself, so it is done
        only where it has to be. Half of the device is left out of account: a quarter each is
        planned for micro-batches and for the states behind frozen layers. And the host must have
        room: there, a system that has none left ends the process.

        Parameters
        ----------
        n_others : int
            Runs that have not taken their memory yet.
        """
        if self.device.type != "cuda":  # the others compute in the host's memory
            return False
        needed = n_others * self.n_bytes
        spare = free_memory(self.device) - total_memory(self.device) // 2
        return spare < needed and needed + self.n_bytes <= free_memory(_HOST) // 2

    def park(self) -> None:
        """Move everything into the host's memory; the run must not go on before `unpark`."""
        self._let_go()
        self._move(_HOST)

    def unpark(self) -> None:
        """Move everything back."""
        self._move(self.device)

    @torch.no_grad()
    def _move(self, device: torch.device) -> None:
        for tensor in {id(tensor): tensor for tensor in self._own()}.values():
            # Ordinary memory, not pinned: that is the whole machine's, and would be short of it.
            tensor.data = tensor.data.to(device, copy=True)


@dataclass
class Room:
    """Whether a device has room for several runs at once; the first one finds out for all.

    Parameters
    ----------
    n_others : int
        Runs that will be there beside the first.
    """

    n_others: int
    _is_short: bool | None = None

    def is_short_for(self, parking: Parking) -> bool:
        """Say whether a run that waits had better be off the device."""
        if self._is_short is None:
            self._is_short = self.n_others > 0 and parking.pays(self.n_others)
        return self._is_short
