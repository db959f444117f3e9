"""What a fit is going to cost, said before it starts."""

import sys
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from skgpt.cost import FitEstimate, estimate_fit
from skgpt.data.inputs import check_texts
from skgpt.data.targets import Target
from skgpt.data.tokenization import LongText, tokenise_columns, tokenise_rows
from skgpt.device import no_more_threads_than_cores
from skgpt.fitting import FitData, Given, plan_of_fit, seed_to_come
from skgpt.network.network import TextNetwork
from skgpt.training.early_stopping import Validation
from skgpt.training.loop import TrainingRows
from skgpt.training.loss import Loss

_ASSUMED = 2  # classes


class EstimatesFits:
    """`plan` of an estimator."""

    _network: TextNetwork
    _fitted_with: dict[str, Any]

    if TYPE_CHECKING:  # BaseGPTText and scikit-learn have them
        warm_start: bool
        early_stopping: bool
        max_length: int
        long_text: LongText
        random_state: Any
        classes_: NDArray[Any]

        def _loss(self, target: Target) -> Loss: ...
        def _validate_params(self) -> None: ...
        def _checked_data(self, given: Given, seed: int, goes_on: bool) -> FitData: ...
        def _loss_weights(self, data: FitData) -> NDArray[np.float64]: ...
        def _network_to_fit(self, target: Target, seed: int, goes_on: bool) -> TextNetwork: ...
        def _watched(self, network: TextNetwork, data: FitData) -> Validation: ...

    @no_more_threads_than_cores()
    def plan(self, X: Any, y: Any = None) -> FitEstimate:
        """Say what a fit on these texts would cost, before it starts.

        The texts are tokenised and counted. One optimiser step and one pass of the frozen layers
        are measured on a few of them, so the times hold for this machine as busy as it is now; the
        rest is arithmetic. Nothing is fitted: the estimator, fitted or not, stays as it is, and so
        does `random_state`.

        Parameters
        ----------
        X : array-like of shape (n,) or (n, n_columns)
            Texts, as in `fit`.
        y : array-like, default=None
            Labels, as in `fit`. Without them, two classes are assumed.

        Returns
        -------
        estimate : FitEstimate
            Shows itself as text and, in a notebook, as a table; ``estimate.to_dict()`` has the
            numbers: tokens, how many texts are cut, weights, steps, seconds and bytes, those of
            1,000 predictions too, and advice. The seconds don't count reading the model, nor what
            a scorer or callbacks take; with `early_stopping` they are those of all epochs.

        Raises
        ------
        ValueError
            If X, y or a parameter is not as `fit` wants it.
        OSError
            If the model can't be found, fetched or read.
        MemoryError
            If the device can't hold one text at a time, or what learns.
        """
        self._validate_params()
        goes_on = self.warm_start and hasattr(self, "_network")
        seed = seed_to_come(self.random_state)
        labels = self._assumed_labels(X, goes_on) if y is None else y
        data = self._checked_data(Given(X, labels), seed, goes_on)
        if y is None:  # class weights are for labels that nobody knows yet
            weight = np.ones_like(data.target.codes, dtype=np.float64)
        else:
            weight = self._loss_weights(data)
        network = self._network_to_fit(data.target, seed, goes_on)
        if y is not None:
            self._watched(network, data)  # tries the scorer
        config = plan_of_fit(self, network, len(data.split.train), seed)
        of_text = (data.columns, data.template, network.pretrained.tokenizer)
        tokens = tokenise_rows(*of_text, self.max_length, self.long_text)
        return estimate_fit(
            network,
            TrainingRows(tokens, data.target.codes, weight, data.split),
            tokenise_columns(*of_text, sys.maxsize).lengths,
            loss=self._loss(data.target),
            config=config,
            max_length=self.max_length,
            long_text=self.long_text,
            early_stopping=self.early_stopping,
            classes_assumed=_ASSUMED if y is None and not goes_on else None,
        )

    def _assumed_labels(self, X: Any, goes_on: bool) -> NDArray[Any]:
        """Return labels by turns: two, or those that the fit would go on with."""
        n = len(check_texts(X, estimator=self))
        if not goes_on:
            return np.arange(n) % _ASSUMED
        if self._fitted_with["multilabel"]:
            return np.zeros((n, len(self.classes_)), dtype=np.int64)
        labels: NDArray[Any] = self.classes_[np.arange(n) % len(self.classes_)]
        return labels
