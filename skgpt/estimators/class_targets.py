"""What a classifier learns from: its labels, the loss over them, and what each row weighs in it."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from skgpt.calibration import calibrate
from skgpt.data.targets import Target, encode_target
from skgpt.data.weights import loss_weights
from skgpt.estimators.base import BaseGPTText
from skgpt.exceptions import InvalidTextError
from skgpt.fitting import FitData, HeldOut
from skgpt.training.loss import BinaryCrossEntropy, CrossEntropy


class ClassTargets(BaseGPTText):
    """A fine-tuning fit whose targets are classes, or sets of labels."""

    calibrate: bool
    class_weight: Any
    label_smoothing: float

    def _encode_target(self, y: Any, n: int, classes: Any, what: str) -> Target:
        return encode_target(y, n, name=type(self).__name__, classes=classes, what=what)

    def _loss_weights(self, data: FitData) -> NDArray[np.float64]:
        weight = loss_weights(data.target, data.sample_weight, self.class_weight, data.split.train)
        if len(data.split.held_out) and not weight[data.split.held_out].any():
            raise InvalidTextError(
                "The held-out rows must weigh something. class_weight gives all of them zero: name "
                "weights above zero for their classes, or pass other rows as X_val."
            )
        return weight

    def _loss(self, target: Target) -> CrossEntropy | BinaryCrossEntropy:
        kind = BinaryCrossEntropy if target.is_multilabel else CrossEntropy
        return kind(self.label_smoothing)

    def _target_attributes(self, target: Target) -> dict[str, Any]:
        return {"classes_": target.classes}

    @property
    def _holds_out(self) -> bool:
        return self.early_stopping or self.calibrate

    def _from_held_out(self, held_out: HeldOut, data: FitData) -> dict[str, Any]:
        if not self.calibrate:
            return {}
        rows = data.split.held_out
        calibration = calibrate(
            self._scores(held_out.X),
            data.target.truth(rows) > 0,
            data.sample_weight[rows],
            multilabel=data.target.is_multilabel,
        )
        return {"calibration_": dict(calibration)}
