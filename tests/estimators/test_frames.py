"""How deep the code is: frames of ours between a public method and the work that it is about.

It stands alone because it is about the code's shape, not about what it computes.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import skgpt
from tests.helpers import Fitted, TextData, make

OURS = str(Path(skgpt.__file__).parent)


def frames_of_ours() -> list[str]:
    """Return the functions of skgpt's that are being called, the innermost first."""
    frame, found = sys._getframe(1), []
    while frame.f_back is not None:
        frame = frame.f_back
        if frame.f_code.co_filename.startswith(OURS):
            found.append(frame.f_code.co_qualname)
    return found


@pytest.mark.parametrize("trainable", ["all", 1])
@pytest.mark.parametrize("method", ["fit", "partial_fit"])
def test_fit__down_to_the_step_of_adamw__six_frames(
    method: str,
    trainable: Any,
    tiny_llama: str,
    two_class_data: TextData,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[list[str]] = []
    step = torch.optim.AdamW.step

    def noting(self: Any, *args: Any) -> Any:
        seen.append(frames_of_ours())
        return step(self, *args)

    monkeypatch.setattr(torch.optim.AdamW, "step", noting)
    clf = make(tiny_llama, trainable_layers=trainable, max_epochs=1)
    options = {"classes": ["money", "sport"]} if method == "partial_fit" else {}
    getattr(clf, method)(*two_class_data, **options)
    assert seen and max(map(len, seen)) <= 6, seen[0]
    assert seen[0][-1] == f"GPTTextClassifier.{method}"


@pytest.mark.parametrize("kind", ["all layers", "default", "head only"])
def test_predict__to_the_trunk__9_frames(kind: str, fitted_model: Callable[[str], Fitted]) -> None:
    clf, X, _ = fitted_model(kind)
    seen: list[list[str]] = []
    skgpt.clear_cache()  # of states behind frozen layers
    trunk = clf._model.network.trunk
    hook = trunk.register_forward_pre_hook(lambda *_: seen.append(frames_of_ours()))
    try:
        clf.predict([f"{X[0]} once more"])
    finally:
        hook.remove()
    depths = [len(frames) for frames in seen if "_probe_split" not in frames]  # once a process
    assert depths and max(depths) <= 9, seen
