"""GPTTextClassifier: a pretrained GPT, fine-tuned to tell classes of texts apart."""

from collections.abc import Mapping
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.base import ClassifierMixin

from skgpt.estimators.base import BaseGPTText
from skgpt.estimators.params import SHARED_CONSTRAINTS
from skgpt.sklearn_compat import StrOptions, fit_context
from skgpt.text.targets import ClassTarget, encode_classes, row_weights
from skgpt.training.loss import CrossEntropy


class GPTTextClassifier(ClassifierMixin, BaseGPTText):
    """Fine-tune a pretrained GPT to classify texts.

    Parameters
    ----------
    model : str, default="smollm2-135m"
        An alias, a Hugging Face hub id, a local transformers folder or a .gguf file. The alias
        names SmolLM2-135M-Instruct, fetched once from the package index.
    revision : str, default=None
        Hub revision: a branch, tag or commit.
    n_layers : int, default=None
        Keep only the first `n_layers` blocks of the trunk; its final norm stays. None keeps all.
    trainable_layers : int or "all", default="all"
        Which weights learn beside the head: the last n of the kept blocks with the final norm, all
        of them with the embeddings, or none for 0. Layers that don't learn are computed once per
        text and fit, not once per epoch.
    pooling : {"auto", "mean", "last"}, default="auto"
        How a text's hidden states become one vector: their mean, or the last token's. "auto" is
        the mean, which is far better on topics and little worse on sentiment.
    max_length : int, default=256
        Tokens per text; a longer text's end is cut.
    max_epochs : int or "auto", default="auto"
        Passes over the data. "auto" makes more on small data: 60 over the cube root of the number
        of texts, or as many as make 160 optimiser steps if that is more; 3 at least, 12 at most.
    batch_size : int, default=32
        Texts per optimiser step, whatever fits in memory at once.
    learning_rate : float, default=1e-4
        Peak learning rate of the trunk.
    head_learning_rate : float, default=1e-3
        Peak learning rate of the head.
    weight_decay : float, default=0.01
        Decoupled weight decay of the matrices.
    warmup_ratio : float, default=0.1
        Share of the steps, in [0, 1], over which the learning rates rise.
    lr_schedule : {"linear", "cosine", "constant"}, default="linear"
        How the learning rates fall after the warm-up.
    max_grad_norm : float or None, default=1.0
        The norm that the whole gradient is clipped to; None doesn't clip.
    class_weight : dict, "balanced" or None, default=None
        Weights of the classes, multiplied with `sample_weight`. "balanced" is computed on the
        training rows with their sample weights.
    device : str, default="auto"
        "auto" (a CUDA device if there is one, else the CPU), "cpu", "cuda", "cuda:1" or "mps".
    precision : {"auto", "bf16", "fp16", "fp32"}, default="auto"
        Of the trunk's arithmetic. "auto": bf16 where the hardware is fast at it, else fp32. What
        learns is always kept in fp32.
    random_state : int, RandomState instance or None, default=None
        Decides the order of the rows, the only randomness there is. Pass an int for the same
        result each time.
    verbose : int, default=0
        0 is silent, 1 shows a progress bar while it fits, 2 a line per epoch as well.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
        The labels, sorted.
    n_iter_ : int
        Epochs run.
    history_ : list of dict
        One entry per epoch: ``epoch``, ``loss``, ``learning_rate`` (at its first step),
        ``seconds`` and ``tokens_per_second``.
    loss_curve_ : list of float
        The training loss of each epoch.
    pooling_ : {"mean", "last"}
        The pooling that was used.
    model_id_ : str
        The model that was fine-tuned.
    device_ : str
        Where the fitted model is.
    n_features_in_ : int
        Number of columns; only for 2-D X.
    feature_names_in_ : ndarray of shape (n_features_in_,)
        Names of the columns; only for a DataFrame with string column names.

    Notes
    -----
    The trunk's dropout is off, in training too, so that frozen layers can be computed once. A
    fitted estimator pickles to numpy arrays and text; the base model is inside only if it was a
    local folder or file, otherwise by name.

    Examples
    --------
    >>> from skgpt import GPTTextClassifier
    >>> clf = GPTTextClassifier(n_layers=10, trainable_layers=4, random_state=0)
    >>> clf.fit(texts, labels).predict(["oil prices rose sharply"])  # doctest: +SKIP
    array(['crude'], dtype='<U8')
    """

    _parameter_constraints: dict[str, list[Any]] = {
        **SHARED_CONSTRAINTS,
        "class_weight": [dict, StrOptions({"balanced"}), None],
    }

    def __init__(
        self,
        model: str = "smollm2-135m",
        *,
        revision: str | None = None,
        n_layers: int | None = None,
        trainable_layers: int | Literal["all"] = "all",
        pooling: Literal["auto", "mean", "last"] = "auto",
        max_length: int = 256,
        max_epochs: int | Literal["auto"] = "auto",
        batch_size: int = 32,
        learning_rate: float = 1e-4,
        head_learning_rate: float = 1e-3,
        weight_decay: float = 0.01,
        warmup_ratio: float = 0.1,
        lr_schedule: Literal["linear", "cosine", "constant"] = "linear",
        max_grad_norm: float | None = 1.0,
        class_weight: Mapping[Any, float] | Literal["balanced"] | None = None,
        device: str = "auto",
        precision: Literal["auto", "bf16", "fp16", "fp32"] = "auto",
        random_state: int | np.random.RandomState | None = None,
        verbose: int = 0,
    ) -> None:
        self.model = model
        self.revision = revision
        self.n_layers = n_layers
        self.trainable_layers = trainable_layers
        self.pooling = pooling
        self.max_length = max_length
        self.max_epochs = max_epochs
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.head_learning_rate = head_learning_rate
        self.weight_decay = weight_decay
        self.warmup_ratio = warmup_ratio
        self.lr_schedule = lr_schedule
        self.max_grad_norm = max_grad_norm
        self.class_weight = class_weight
        self.device = device
        self.precision = precision
        self.random_state = random_state
        self.verbose = verbose

    @fit_context(prefer_skip_nested_validation=True)
    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Fine-tune the model.

        Parameters
        ----------
        X : array-like of shape (n,) or (n, n_columns)
            Texts: a list, array or Series of str. The columns of 2-D input are joined with a
            blank line, numbers formatted as text.
        y : array-like of shape (n,)
            Labels: str, int, bool or object.
        sample_weight : array-like of shape (n,), default=None
            Weights of the rows in the loss, >= 0. None is one for every row.

        Returns
        -------
        self : GPTTextClassifier
            The fitted estimator.

        Raises
        ------
        ValueError
            If X, y, a weight or a parameter is not as described here; before any training.
        OSError
            If the model can't be found, fetched or read.
        """
        target = self._fit(X, y, sample_weight)
        self.classes_ = target.classes
        return self

    def predict(self, X: Any) -> NDArray[Any]:
        """Predict the class of each text.

        Parameters
        ----------
        X : array-like of shape (n,) or (n, n_columns)
            Texts, as in `fit`.

        Returns
        -------
        labels : ndarray of shape (n,)
            Labels out of ``classes_``.
        """
        scores = self._scores(X)
        labels: NDArray[Any] = self.classes_[scores.argmax(axis=1)]
        return labels

    def predict_proba(self, X: Any) -> NDArray[np.float32]:
        """Predict the probability of each class.

        Parameters
        ----------
        X : array-like of shape (n,) or (n, n_columns)
            Texts, as in `fit`.

        Returns
        -------
        probabilities : ndarray of shape (n, n_classes), float32
            In the order of ``classes_``.
        """
        return self._loss().probabilities(self._scores(X))

    def predict_log_proba(self, X: Any) -> NDArray[np.float32]:
        """Predict the logarithm of the probability of each class.

        Parameters
        ----------
        X : array-like of shape (n,) or (n, n_columns)
            Texts, as in `fit`.

        Returns
        -------
        log_probabilities : ndarray of shape (n, n_classes), float32
            Computed from the raw scores, so finite even where a probability rounds to zero.
        """
        return self._loss().log_probabilities(self._scores(X))

    def decision_function(self, X: Any) -> NDArray[np.float32]:
        """Return the raw scores (logits).

        Parameters
        ----------
        X : array-like of shape (n,) or (n, n_columns)
            Texts, as in `fit`.

        Returns
        -------
        scores : ndarray of shape (n,) or (n, n_classes), float32
            With two classes the second's score less the first's.
        """
        scores = self._scores(X)
        return scores[:, 1] - scores[:, 0] if scores.shape[1] == 2 else scores

    def _encode_target(self, y: Any, n: int) -> ClassTarget:
        return encode_classes(y, n, name=type(self).__name__)

    def _row_weights(self, target: ClassTarget, weight: NDArray[np.float64]) -> NDArray[np.float64]:
        return row_weights(target, weight, self.class_weight)

    def _loss(self) -> CrossEntropy:
        return CrossEntropy()

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        # The checks' tables of numbers, read as text, are no ground to judge a language model on.
        tags.classifier_tags.poor_score = True
        return tags
