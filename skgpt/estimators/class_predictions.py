"""What a classifier says of texts: labels, probabilities and raw scores, from the raw scores.

Each method works on a shallow copy of the estimator: another thread's fit may put other classes in
their place while the texts are run.
"""

import copy
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import ClassifierMixin

from skgpt.training.loss import BinaryCrossEntropy, CrossEntropy


class ClassPredictions(ClassifierMixin):
    """The prediction methods of a classifier that has raw scores and ``classes_``."""

    classes_: NDArray[Any]
    _fitted_with: dict[str, Any]

    if TYPE_CHECKING:  # BaseGPTText has it

        def _scores(self, X: Any) -> NDArray[np.float32]:
            """Return the raw scores of texts, shape (n, n_outputs); check that there is a fit."""

    def predict(self, X: Any) -> NDArray[Any]:
        """Predict the class of each text.

        Parameters
        ----------
        X : array-like of shape (n,) or (n, n_columns)
            Texts, as in `fit`.

        Returns
        -------
        labels : ndarray of shape (n,) or (n, n_labels)
            Labels out of ``classes_``; for multilabel y an indicator matrix of int.
        """
        fitted = copy.copy(self)
        scores = fitted._scores(X)
        if fitted._fitted_with["multilabel"]:
            return (scores > 0).astype(np.int64)
        labels: NDArray[Any] = fitted.classes_[scores.argmax(axis=1)]
        return labels

    def predict_proba(self, X: Any) -> NDArray[np.float64]:
        """Predict the probability of each class.

        Parameters
        ----------
        X : array-like of shape (n,) or (n, n_columns)
            Texts, as in `fit`.

        Returns
        -------
        probabilities : ndarray of shape (n, n_classes), float64
            In the order of ``classes_``. Each row adds up to one; for multilabel y each label
            has a probability of its own, strictly between 0 and 1. With `calibrate`, of the raw
            scores divided by the temperature.
        """
        fitted = copy.copy(self)
        scores = fitted._scores(X)
        return fitted._link().probabilities(fitted._tempered(scores))

    def predict_log_proba(self, X: Any) -> NDArray[np.float64]:
        """Predict the logarithm of the probability of each class.

        Parameters
        ----------
        X : array-like of shape (n,) or (n, n_columns)
            Texts, as in `fit`.

        Returns
        -------
        log_probabilities : ndarray of shape (n, n_classes), float64
            Computed from the raw scores, so finite even where a probability rounds to zero.
        """
        fitted = copy.copy(self)
        scores = fitted._scores(X)
        return fitted._link().log_probabilities(fitted._tempered(scores))

    def decision_function(self, X: Any) -> NDArray[np.float64]:
        """Return the raw scores (logits).

        Parameters
        ----------
        X : array-like of shape (n,) or (n, n_columns)
            Texts, as in `fit`.

        Returns
        -------
        scores : ndarray of shape (n,) or (n, n_classes), float64
            With two classes the second's score less the first's; for multilabel y one score per
            label, above zero where the label is predicted. Never calibrated.
        """
        fitted = copy.copy(self)
        scores = fitted._scores(X).astype(np.float64)  # a calibrator's sums need the digits
        if scores.shape[1] == 2 and not fitted._fitted_with["multilabel"]:
            return scores[:, 1] - scores[:, 0]
        return scores

    def _tempered(self, scores: NDArray[np.float32]) -> NDArray[np.float32]:
        calibration = getattr(self, "calibration_", None)
        return scores if calibration is None else scores / np.float32(calibration["temperature"])

    def _link(self) -> CrossEntropy | BinaryCrossEntropy:
        return BinaryCrossEntropy() if self._fitted_with["multilabel"] else CrossEntropy()

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        # The checks' tables of numbers, read as text, are no ground to judge a language model on.
        tags.classifier_tags.poor_score = True
        tags.classifier_tags.multi_label = True
        return tags
