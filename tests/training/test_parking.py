"""Runs whose own tensors are moved away between two epochs: nothing comes of it but room."""

import gc
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from skgpt import GPTTextClassifier, LoRA, clear_cache
from skgpt.training import callbacks as parking_module
from skgpt.training.callbacks import EpochRecord, Monitor, Parking, Room
from tests.estimators.dying import Dies, broken_off
from tests.estimators.killed import assert_same, learned
from tests.estimators.test_classifier import make
from tests.helpers import TextData

_GB = 1 << 30
_CUDA = torch.device("cuda", 0)


class Parks(Monitor):
    """Has the run move its tensors into other memory, and back, after every epoch."""

    def __init__(self, look: Callable[[Parking], None] = lambda parking: None) -> None:
        self.look = look
        self.n_parked = 0
        self.parking: Parking | None = None

    def may_park(self, parking: Parking) -> None:
        self.parking = parking

    def epoch(self, record: EpochRecord) -> bool:
        assert self.parking is not None
        self.parking.park()
        self.n_parked += 1
        self.look(self.parking)
        self.parking.unpark()
        return False


OPTIONS: list[dict[str, Any]] = [
    {},
    {"trainable_layers": 0},
    {"trainable_layers": "all", "precision": "bf16"},  # embeddings' gradients have rows there
    {"early_stopping": True, "n_iter_no_change": 1, "precision": "bf16"},
    {"head_first_epochs": 2},
    {"lora": LoRA(rank=2, dropout=0.3), "learning_rate": 1e-2},
    {"lora": LoRA(rank=2), "precision": "bf16", "early_stopping": True},
]


@pytest.fixture
def monitors(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Monitor]]:
    """Return a list of what watches the fits to come."""
    watching: list[Monitor] = []
    monkeypatch.setattr(GPTTextClassifier, "_monitors", lambda *_: watching)
    clear_cache()
    yield watching
    clear_cache()


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_fit__parked_after_every_epoch__is_the_same_bit_for_bit(
    options: dict[str, Any],
    architecture: str,
    tiny_model: Callable[[str], str],
    two_class_data: TextData,
    monitors: list[Monitor],
) -> None:
    clf = make(tiny_model(architecture), **options)
    expected = learned(clf.fit(*two_class_data))
    parks = Parks()
    monitors.append(parks)
    assert_same([learned(clf.fit(*two_class_data))], [expected])
    assert parks.n_parked == len(expected["history"]) > 1


def test_fit__parked_and_gone_on_with__is_the_same_bit_for_bit(
    tiny_llama: str, two_class_data: TextData, monitors: list[Monitor], tmp_path: Path
) -> None:
    X, y = two_class_data
    clf = make(tiny_llama, warm_start=True, precision="bf16")
    expected = [learned(clf.fit(X, y)) for _ in range(2)]
    parted = make(tiny_llama).partial_fit(X, y, classes=sorted(set(y)))
    expected.append(learned(parted.partial_fit(X, y)))
    monitors[:] = [Parks(), Dies(12)]
    clf = make(tiny_llama, warm_start=True, precision="bf16", checkpoint_dir=tmp_path)
    broken_off(clf, X, y)  # in its third epoch
    monitors[:] = [Parks()]
    found = [learned(clf.fit(X, y)) for _ in range(2)]
    parted = make(tiny_llama).partial_fit(X, y, classes=sorted(set(y)))
    found.append(learned(parted.partial_fit(X, y)))
    assert_same(found, expected)


def _memory(tensors: Iterable[Tensor]) -> dict[int, int]:
    """Return the bytes of each piece of memory that tensors lie in, by its address."""
    pieces = (tensor.untyped_storage() for tensor in tensors)
    return {piece.data_ptr(): piece.nbytes() for piece in pieces if piece.nbytes()}


def _everywhere() -> list[Tensor]:
    found = [thing for thing in gc.get_objects() if issubclass(type(thing), Tensor)]
    return found + [tensor.grad for tensor in found if tensor.is_leaf and tensor.grad is not None]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_fit__while_parked__has_nothing_of_its_own_where_it_was(
    options: dict[str, Any], tiny_llama: str, two_class_data: TextData, monitors: list[Monitor]
) -> None:
    # What is shared, that is the base and the states behind frozen layers, is there before.
    clf = make(tiny_llama, **options)
    clf.fit(*two_class_data)
    del clf._model.network
    gc.collect()
    shared = _memory(_everywhere())
    left: list[int] = []
    moved: list[int] = []

    def look(parking: Parking) -> None:
        if moved:  # once is enough: to look everywhere takes a second
            return
        away = _memory(parking._own())
        moved.append(sum(away.values()))
        assert 0 < moved[0] <= parking.n_bytes
        gc.collect()
        here = _memory(_everywhere()).items()
        left.append(sum(n for piece, n in here if piece not in away and piece not in shared))

    monitors.append(Parks(look))
    clf.fit(*two_class_data)
    assert left == [0]


@pytest.mark.parametrize(
    ("free", "host", "pays"),
    [
        (80, 400, False),  # 4 x 8 GB, beside the half that is left out of account
        (60, 400, True),
        (60, 70, False),  # the host has no room
        (20, 400, True),
    ],
)
def test_parking__memory_of_device_and_host__says_whether_it_pays(
    free: int, host: int, pays: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def free_memory(device: torch.device) -> int:
        return (free if device.type == "cuda" else host) * _GB

    monkeypatch.setattr(parking_module, "free_memory", free_memory)
    monkeypatch.setattr(parking_module, "total_memory", lambda device: 80 * _GB)
    parking = Parking(_CUDA, list, lambda: None, 8 * _GB)
    assert parking.pays(4) is pays
    room = Room(4)
    assert room.is_short_for(parking) is pays
    free = 80 if pays else 0  # whatever comes to be free later, all do as the first one did
    assert room.is_short_for(parking) is pays
    assert not Room(0).is_short_for(parking)


def test_parking__on_a_cpu__never_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parking_module, "total_memory", lambda device: 0)
    assert not Parking(torch.device("cpu"), list, lambda: None, _GB).pays(4)
