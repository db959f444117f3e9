"""The model to beat: TF-IDF of words and pairs of words under a linear classifier."""

from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.special import log_expit
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.utils.validation import check_is_fitted

from skgpt.calibration import link_for
from skgpt.data.inputs import check_texts, check_weight
from skgpt.data.targets import encode_target
from skgpt.data.template import parse_template
from skgpt.data.weights import ClassWeight, loss_weights

# Signs are words of their own: an emoji or an exclamation mark says much of a short text.
_WORD = r"\w+|[^\w\s]"
_SURE = 10.0  # the logit of what holds for every row that was seen


class LinearTextClassifier(ClassifierMixin, BaseEstimator):
    """Logistic regression on TF-IDF, one label against the others.

    It reads the texts that `GPTTextClassifier` reads, with the same template, and its rows and
    classes weigh what they weigh there.

    Parameters
    ----------
    template : str or None, default=None
        How the columns of a row become one text.
    class_weight : dict, list of dict, "balanced" or None, default=None
        Weights of the classes.
    C : float, default=300.0
        Inverse strength of the regularisation. The rows of TF-IDF have norm one, so scikit-learn's
        default of 1 is far too strong: on R8 and 20 Newsgroups it costs six to fourteen points,
        while 300 is level with a linear SVM.
    """

    classes_: NDArray[Any]

    def __init__(
        self, template: str | None = None, class_weight: ClassWeight = None, C: float = 300.0
    ) -> None:
        self.template = template
        self.class_weight = class_weight
        self.C = C

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Fit the vectoriser and a logistic regression for each class or label.

        Parameters
        ----------
        X : array-like of shape (n,) or (n, n_columns)
            Texts, as for `GPTTextClassifier`.
        y : array-like of shape (n,), or of shape (n, n_labels)
            Labels, or an indicator.
        sample_weight : array-like of shape (n,), default=None
            Weights of the rows.

        Returns
        -------
        self : LinearTextClassifier
        """
        texts = self._texts(X)
        n = len(texts)
        target = encode_target(y, n, name=type(self).__name__)
        weight = loss_weights(
            target, check_weight(sample_weight, n), self.class_weight, np.arange(n)
        )
        if target.is_multilabel:
            present = target.codes == 1
        else:
            # Two classes are told apart by one regression.
            told = np.arange(1 if target.width == 2 else 0, target.width)
            present = target.codes[:, np.newaxis] == told
            weight = np.broadcast_to(weight[:, np.newaxis], present.shape)
        self.vectoriser_ = TfidfVectorizer(
            ngram_range=(1, 2), sublinear_tf=True, token_pattern=_WORD
        )
        features = self.vectoriser_.fit_transform(texts)
        self.models_ = [
            _fit_one(features, *column, self.C) for column in zip(present.T, weight.T, strict=True)
        ]
        self.classes_ = target.classes
        self.multilabel_ = target.is_multilabel
        return self

    def _texts(self, X: Any) -> list[str]:
        texts = check_texts(X, estimator=self)
        template = parse_template(self.template, len(texts.cells), texts.names)
        return [template.render(row) for row in zip(*texts.cells, strict=True)]

    def _scores(self, X: Any) -> NDArray[np.float32]:
        """Return raw scores, shape (n, n_outputs)."""
        check_is_fitted(self)
        features = self.vectoriser_.transform(self._texts(X))
        logits = np.stack([model.decision_function(features) for model in self.models_], axis=1)
        if self.multilabel_:
            return logits.astype(np.float32)
        if logits.shape[1] == 1:
            return np.hstack([np.zeros_like(logits), logits]).astype(np.float32)
        # The softmax of these is each class's own probability over the sum of them.
        return np.asarray(log_expit(logits), dtype=np.float32)

    def predict(self, X: Any) -> NDArray[Any]:
        """Return the label of each text; for multilabel y an indicator."""
        scores = self._scores(X)
        if self.multilabel_:
            return (scores > 0).astype(np.int64)
        return np.asarray(self.classes_[scores.argmax(axis=1)])

    def predict_proba(self, X: Any) -> NDArray[np.float64]:
        """Return the probability of each class or label."""
        scores = self._scores(X)
        return link_for(self.multilabel_).probabilities(scores)

    def predict_log_proba(self, X: Any) -> NDArray[np.float64]:
        """Return the logarithms of the probabilities."""
        scores = self._scores(X)
        return link_for(self.multilabel_).log_probabilities(scores)

    def decision_function(self, X: Any) -> NDArray[np.float64]:
        """Return raw scores; of two classes the difference."""
        scores = self._scores(X).astype(np.float64)
        if scores.shape[1] == 2 and not self.multilabel_:
            return np.asarray(scores[:, 1] - scores[:, 0])
        return scores

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.string = True
        tags.classifier_tags.multi_label = True
        return tags


class _Constant:
    """Says the same of every text: what is left to say of a label that all rows have, or none."""

    def __init__(self, logit: float) -> None:
        self.logit = logit

    def decision_function(self, features: Any) -> NDArray[np.float64]:
        return np.full(features.shape[0], self.logit)


def _fit_one(
    features: sparse.csr_array,
    present: NDArray[np.bool_],
    weight: NDArray[np.float64],
    C: float,
) -> LogisticRegression | _Constant:
    seen = present[weight > 0]
    if seen.all() or not seen.any():  # in a fold; of a class, or one whose rows weigh nothing
        return _Constant(_SURE if seen.any() and seen.all() else -_SURE)
    # A mean of one, so that only ratios of weights count, as they do for the network.
    model = LogisticRegression(solver="liblinear", C=C)
    return model.fit(features, present, sample_weight=weight / weight.mean())
