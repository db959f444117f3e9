"""Processes that search on stand-ins for GPUs, and write down who trains on which of them."""

import json
import os
import time
from itertools import groupby
from pathlib import Path
from typing import Any

from skgpt import GPTTextClassifier
from skgpt import device as device_module
from skgpt.training.callbacks import EpochRecord, TrainingCallback
from skgpt.tuning import gpu_locks
from tests.helpers import make_text_data
from tests.tuning.process import _CONTEXT, stored


class _Noting(TrainingCallback):
    def __init__(self, log: Path) -> None:
        self.log = log

    def on_epoch(self, record: EpochRecord) -> bool:
        time.sleep(0.05)
        with open(self.log, "a", encoding="utf-8") as log:
            log.write(json.dumps([device_module._CUDA_INDEX.get(), os.getpid()]) + "\n")
        return False


def _search(folder: str, root: Path, devices: list[str], options: dict[str, Any]) -> None:
    os.environ["SKGPT_CACHE"] = str(root)
    gpu_locks.cuda_devices = lambda: devices  # type: ignore[attr-defined]
    noting = _Noting(root / "log")
    GPTTextClassifier._monitors = lambda *_: [noting]  # type: ignore[method-assign]
    stored(folder, root / "journal", refit=False, **options).fit(*make_text_data(n_classes=2))


def searching(folder: str, root: Path, devices: list[str], **options: Any) -> Any:
    """Return a process that searches on devices of these names, with its notes in `root`."""
    process = _CONTEXT.Process(target=_search, args=(folder, root, devices, options))
    process.start()
    return process


def epochs_in(root: Path) -> list[tuple[int, int]]:
    """Return the device and the process of every epoch so far, in order of their ends."""
    log = root / "log"
    lines = log.read_text().splitlines() if log.exists() else []
    return [tuple(json.loads(line)) for line in lines]


def holders(epochs: list[tuple[int, int]], device: int) -> list[int]:
    """Return the processes that trained on a device, one after the other."""
    return [pid for pid, _ in groupby(pid for each, pid in epochs if each == device)]
