"""Searches on CUDA: `pytest -m gpu`."""

from typing import Any

import pytest
import torch
from filelock import FileLock, Timeout

from skgpt import clear_cache
from skgpt.device import cuda_devices, placed_on
from skgpt.pretrained.default_models import cache_folder
from skgpt.tuning.gpu_locks import gpu_lock
from skgpt.tuning.trial import Room
from tests.helpers import make
from tests.tuning.searching import DATA
from tests.tuning.test_trial import evaluation, never

pytestmark = pytest.mark.gpu


def test_evaluate_on_cuda__a_device_without_room__holds_one_fold_at_a_time(
    tiny_llama: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    clf = make(tiny_llama, device="cuda", max_epochs=3, trainable_layers="all", precision="fp32")
    work = evaluation(clf, DATA)
    peaks, scores = {}, {}
    for is_short in (False, True):
        monkeypatch.setattr(Room, "is_short_for", lambda self, network, short=is_short: short)
        clear_cache()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        scores[is_short] = work.evaluate({}, never).test_scores
        peaks[is_short] = torch.cuda.max_memory_allocated()
    assert peaks[True] < peaks[False]
    assert scores[True] == pytest.approx(scores[False], rel=1e-3)


@pytest.mark.parametrize(("n_others", "is_short"), [(4, False), (1 << 40, True)])
def test_room_on_cuda__no_room__is_short(n_others: int, is_short: bool, tiny_llama: str) -> None:
    clf = make(tiny_llama, device="cuda", max_epochs=1).fit(*DATA)
    assert Room(n_others).is_short_for(clf._model.network) is is_short


def test_gpu_lock__real_devices__are_locked_by_names_of_their_own(
    tiny_llama: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    monkeypatch.setenv("SKGPT_CACHE", str(tmp_path))
    devices = cuda_devices()
    assert len(set(devices)) == len(devices) == torch.cuda.device_count()
    last = len(devices) - 1
    with gpu_lock(frozenset({"cuda"}), last, lambda: False) as has_one:
        assert has_one and placed_on() == last
        lock = FileLock(cache_folder() / "gpu_locks" / f"{devices[last]}.lock")
        with pytest.raises(Timeout):
            lock.acquire(timeout=0)
        clf = make(tiny_llama, device="auto").fit(*DATA)
        assert clf.device_ == f"cuda:{last}" and clf.device == "auto"
        outcome = evaluation(clf, DATA).evaluate({}, never)
        assert outcome.state == "COMPLETE"
