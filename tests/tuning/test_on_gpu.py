"""Searches on CUDA: `pytest -m gpu`."""

from typing import Any

import pytest
import torch
from filelock import FileLock, Timeout

from skgpt import LoRA, clear_cache
from skgpt.device import cuda_devices
from skgpt.pretrained.default_models import cache_folder
from skgpt.training.callbacks import Parking
from skgpt.tuning.gpu_locks import held_lease, leased
from skgpt.tuning.trial import evaluate
from tests.estimators.test_classifier import make
from tests.helpers import TextData
from tests.training.test_parking import Parks, monitors
from tests.tuning.test_trial import evaluation, never

__all__ = ["monitors"]  # a fixture

pytestmark = pytest.mark.gpu

OPTIONS: list[dict[str, Any]] = [
    {"trainable_layers": "all", "precision": "bf16", "early_stopping": True},
    {"trainable_layers": "all", "precision": "fp16"},
    {"trainable_layers": 0, "precision": "fp32"},
    {"lora": LoRA(rank=4), "precision": "bf16"},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_fit_on_cuda__parked__leaves_the_device_and_comes_back_bit_for_bit(
    options: dict[str, Any], tiny_llama: str, two_class_data: TextData, monitors: list[Any]
) -> None:
    parked: list[int] = []

    class Comparing(Parks):
        def epoch(self, record: Any) -> bool:
            assert self.parking is not None
            self.parking._let_go()
            before = [tensor.detach().cpu().clone() for tensor in self.parking._own()]
            self.held = torch.cuda.memory_allocated()
            super().epoch(record)
            after = [tensor.detach() for tensor in self.parking._own()]
            assert all(tensor.is_cuda for tensor in after)
            assert all(torch.equal(a, b.cpu()) for a, b in zip(before, after, strict=True))
            return False

    def look(parking: Parking) -> None:
        own = {id(tensor): tensor for tensor in parking._own()}.values()
        assert not any(tensor.is_cuda for tensor in own)
        assert torch.cuda.memory_allocated() <= comparing.held - sum(t.nbytes for t in own)
        parked.append(1)

    comparing = Comparing(look)
    monitors.append(comparing)
    clf = make(tiny_llama, device="cuda", max_epochs=3, **options).fit(*two_class_data)
    assert len(parked) == clf.n_iter_ > 1


def test_evaluate_on_cuda__folds_that_wait__take_nothing_of_the_device(
    tiny_llama: str, two_class_data: TextData, monkeypatch: pytest.MonkeyPatch
) -> None:
    clf = make(tiny_llama, device="cuda", max_epochs=3, trainable_layers="all", precision="fp32")
    work = evaluation(clf, two_class_data)
    held: dict[bool, list[int]] = {}
    scores = {}
    for parks in (False, True):
        monkeypatch.setattr(Parking, "pays", lambda self, n_others, parks=parks: parks)
        clear_cache()
        torch.cuda.empty_cache()
        seen = held.setdefault(parks, [])

        def report(epoch: int, score: float, seen: list[int] = seen) -> bool:
            seen.append(torch.cuda.memory_allocated())
            return False

        scores[parks] = evaluate(work, {}, report).test_scores
    assert all(away < there for away, there in zip(held[True], held[False], strict=True))
    assert scores[True] == pytest.approx(scores[False], rel=1e-3)


def test_parking_on_cuda__room_on_the_device__does_not_pay() -> None:
    device = torch.device("cuda", 0)
    total = torch.cuda.get_device_properties(device).total_memory
    assert not Parking(device, list, lambda: None, 1).pays(4) or torch.cuda.mem_get_info()[0] < (
        total // 2
    )
    assert not Parking(device, list, lambda: None, 1 << 60).pays(4)  # which no host has room for


def test_leased__real_devices__are_locked_by_names_of_their_own(
    tiny_llama: str, two_class_data: TextData, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    monkeypatch.setenv("SKGPT_CACHE", str(tmp_path))
    devices = cuda_devices()
    assert len(set(devices)) == len(devices) == torch.cuda.device_count()
    last = len(devices) - 1
    with leased(frozenset({"cuda"}), last, lambda: False) as has_one:
        assert has_one and held_lease() == last
        lock = FileLock(cache_folder() / "leases" / f"{devices[last]}.lock")
        with pytest.raises(Timeout):
            lock.acquire(timeout=0)
        clf = make(tiny_llama, device="auto").fit(*two_class_data)
        assert clf.device_ == f"cuda:{last}" and clf.device == "auto"
        outcome = evaluate(evaluation(clf, two_class_data), {}, never)
        assert outcome.state == "COMPLETE"
