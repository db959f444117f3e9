"""Fits that die in the middle, in the test's own process."""

from pathlib import Path
from typing import Any

import pytest

from skgpt.training.callbacks import StepDone, TrainingCallback


class Dies(TrainingCallback):
    """Ends a fit in the middle of it, as a fault of something else would."""

    def __init__(self, at: int) -> None:
        self.at = at

    def on_step(self, event: StepDone) -> None:
        if event.step == self.at:
            raise MemoryError("of somebody else")


def broken_off(clf: Any, X: Any, y: Any, **options: Any) -> None:
    with pytest.raises(MemoryError, match="somebody else"):
        clf.fit(X, y, **options)


def checkpoints_in(root: Path) -> list[Path]:
    return sorted(root.rglob("*.safetensors"))


def folders_in(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir() if path.is_dir())
