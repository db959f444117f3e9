"""What a classifier says of texts: labels, probabilities and raw scores, from the raw scores.

Each method works on a shallow copy of the estimator: another thread's fit may put other classes in
their place while the texts are run.
"""

import copy
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import ClassifierMixin

from skgpt.device import no_more_threads_than_cores
from skgpt.explanations import explanations
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

    @no_more_threads_than_cores()
    def explain(self, X: Any) -> Any:
        """Say what each token of each text adds to the score of the predicted class.

        Integrated gradients [1]_ from a baseline in which the tokens of the text are punctuation in
        turn (line break, full stop, comma); special tokens and the template's own words stay.
        The values of a text add up to the change of its score from the baseline, whatever the
        precision: a rest that the gradients of a step leave is shared out among its tokens. In a
        text of several windows, a token has the mean of what it adds to each.

        Parameters
        ----------
        X : array-like of shape (n,) or (n, n_columns)
            Texts, as in `fit`.

        Returns
        -------
        table : pandas.DataFrame
            A row for each token that is kept of each text, in the order of the texts; for
            multilabel y, for each token and label. An empty text has none. Its columns:

            - ``text``: the row of X, from 0.
            - ``class``: the predicted class, or the label.
            - ``column``: the column of X that the token lies in: its name, else its position.
            - ``start``, ``end``: where in that cell, in characters.
            - ``token``: what stands there. Tokens that are bytes of one character all show it.
            - ``word_start``, ``word``: the word that the token is of, and where it begins.
              Words stand between white space; in Chinese and Japanese each character is one.
            - ``value``: what the token adds to the score that `decision_function` gives for the
              class; with two classes, that is how far it is above the other's.
            - ``baseline``: the score of the baseline.

        Raises
        ------
        ImportError
            If pandas is not installed.
        ValueError
            If X is not as described, or if the model's tokenizer doesn't say where tokens lie or
            its trunk takes no embeddings.

        References
        ----------
        .. [1] M. Sundararajan, A. Taly and Q. Yan, "Axiomatic Attribution for Deep Networks",
           ICML 2017.

        Examples
        --------
        >>> table = classifier.explain(texts)  # doctest: +SKIP
        >>> words = table.groupby(["text", "column", "word_start", "word"])  # doctest: +SKIP
        >>> words["value"].sum()  # doctest: +SKIP
        """
        return explanations(copy.copy(self), X)

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
