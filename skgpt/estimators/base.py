"""The template of a fine-tuning fit, and what a fitted estimator is as a pickle."""

import copy
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted, validate_data

from skgpt.estimators.params import SHARED_CONSTRAINTS, draw_seed
from skgpt.exceptions import InvalidTextError, ModelNotSupportedError
from skgpt.model.device import prefix_budget, resolve_device, resolve_precision, token_budget
from skgpt.model.network import TextNetwork, build_network
from skgpt.model.sources import Source, load_source
from skgpt.model.state import pack, unpack
from skgpt.text.check import check_texts, check_weight, n_columns
from skgpt.text.targets import ClassTarget
from skgpt.text.tokens import tokenise
from skgpt.training.infer import raw_scores
from skgpt.training.loop import fit_network
from skgpt.training.loss import Loss
from skgpt.training.plan import TrainingPlan, resolve_epochs
from skgpt.training.watch import Monitor, ProgressBar, SlowFitNotice

_COLUMN_ATTRIBUTES = ("n_features_in_", "feature_names_in_")


class BaseGPTText(BaseEstimator, ABC):
    """What the estimators share: everything but the target, the loss and its inverse link.

    A subclass has the constructor and says what its targets are.
    """

    if TYPE_CHECKING:  # the subclasses' constructor parameters, for the type checker
        model: str
        revision: str | None
        n_layers: int | None
        trainable_layers: Any
        pooling: str
        max_length: int
        max_epochs: Any
        batch_size: int
        learning_rate: float
        head_learning_rate: float
        weight_decay: float
        warmup_ratio: float
        lr_schedule: Any
        max_grad_norm: float | None
        device: str
        precision: Any
        random_state: Any
        verbose: int

    _parameter_constraints: dict[str, list[Any]] = SHARED_CONSTRAINTS
    _network: TextNetwork

    @abstractmethod
    def _encode_target(self, y: Any, n: int) -> ClassTarget:
        """Check y; return it as the loss wants it. Nothing is set on the estimator yet."""

    @abstractmethod
    def _row_weights(self, target: ClassTarget, weight: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return what each row weighs in the loss."""

    @abstractmethod
    def _loss(self) -> Loss:
        """Return the loss."""

    def _fit(self, X: Any, y: Any, sample_weight: Any) -> ClassTarget:
        """Fit; every attribute is set at the end, so a fit that fails leaves all as it was."""
        texts = check_texts(X, estimator=self)
        columns = self._columns_of(X)
        target = self._encode_target(y, len(texts))
        weight = self._row_weights(target, check_weight(sample_weight, len(texts)))
        device = resolve_device(self.device)
        dtype = resolve_precision(self.precision, device)
        source = load_source(self.model, self.revision)
        self._check_length(source)
        seed = draw_seed(self.random_state)
        network = build_network(
            source,
            n_layers=self.n_layers,
            trainable_layers=self.trainable_layers,
            pooling=self.pooling,
            n_outputs=target.width,
            dtype=dtype,
            device=device,
        )
        plan = self._plan(network, len(texts), seed)
        history = fit_network(
            network,
            tokenise(texts, source.tokenizer, self.max_length),
            target.codes,
            weight,
            loss=self._loss(),
            plan=plan,
            monitors=self._monitors(network),
        )
        for name in _COLUMN_ATTRIBUTES:  # of an earlier fit, on other input
            self.__dict__.pop(name, None)
        self.__dict__.update(columns)
        self._network = network
        self._fitted_with = {
            "max_length": self.max_length,
            "device": self.device,
            "precision": self.precision,
        }
        self.history_ = history
        self.loss_curve_ = [record["loss"] for record in history]
        self.n_iter_ = len(history)
        self.pooling_ = network.spec.pooling
        self.model_id_ = source.model
        self.device_ = str(network.device)
        return target

    def _columns_of(self, X: Any) -> dict[str, Any]:
        """Return what scikit-learn would set for these columns, on a copy that is thrown away."""
        probe = copy.copy(self)
        for name in _COLUMN_ATTRIBUTES:
            probe.__dict__.pop(name, None)
        validate_data(probe, X, skip_check_array=True)
        return {name: probe.__dict__[name] for name in _COLUMN_ATTRIBUTES if name in probe.__dict__}

    def _check_length(self, source: Source) -> None:
        limit = source.max_positions
        if limit is not None and self.max_length > limit:
            raise ModelNotSupportedError(
                f"`max_length` must be at most {limit}, the positions that {source.model!r} has. "
                f"Got {self.max_length}."
            )

    def _plan(self, network: TextNetwork, n_rows: int, seed: int) -> TrainingPlan:
        return TrainingPlan(
            n_rows=n_rows,
            n_epochs=resolve_epochs(self.max_epochs, n_rows, self.batch_size),
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
            head_learning_rate=self.head_learning_rate,
            weight_decay=self.weight_decay,
            warmup_ratio=self.warmup_ratio,
            schedule=self.lr_schedule,
            max_grad_norm=self.max_grad_norm,
            token_budget=token_budget(network.device),
            memory_budget=prefix_budget(network.device),
            seed=seed,
        )

    def _monitors(self, network: TextNetwork) -> list[Monitor]:
        monitors: list[Monitor] = [SlowFitNotice(self._advice(network))]
        if self.verbose:
            monitors.append(ProgressBar(int(self.verbose)))
        return monitors

    def _advice(self, network: TextNetwork) -> str:
        """Say what would make this fit shorter, the most effective first."""
        spec = network.spec
        learning = spec.n_layers - spec.n_frozen
        advice = []
        if spec.n_frozen == 0 and spec.n_layers > 1:
            n = max(1, spec.n_layers // 4)
            advice.append(
                f"train only the last layers (trainable_layers={n}), the others are then computed "
                "once, not once per epoch"
            )
        elif learning > 1:
            advice.append(f"train fewer layers (trainable_layers={learning // 2})")
        if spec.n_layers > 12 and (spec.n_frozen == 0 or learning <= spec.n_layers // 2):
            advice.append(f"keep fewer layers (n_layers={spec.n_layers // 2})")
        if self.max_length > 64:
            advice.append(f"cut texts shorter (max_length={self.max_length // 2})")
        advice.append("make fewer passes (max_epochs)")
        if network.device.type == "cpu":
            advice.append("use a GPU")
        return "; ".join(advice)

    def _scores(self, X: Any) -> NDArray[np.float32]:
        """Return the raw scores of texts, shape (n, n_outputs)."""
        check_is_fitted(self)
        texts = check_texts(X, estimator=self)
        self._check_columns(X)
        network = self._network
        tokens = tokenise(texts, network.source.tokenizer, self._fitted_with["max_length"])
        return raw_scores(network, tokens, token_budget(network.device))

    def _check_columns(self, X: Any) -> None:
        """Check that X has the columns of the fit; one column and a plain list are the same."""
        fitted, found = getattr(self, "n_features_in_", None), n_columns(X)
        if found is not None and fitted is not None:
            validate_data(self, X, reset=False, skip_check_array=True)
        elif (found or 1) != (fitted or 1):
            raise InvalidTextError(
                f"X must have as many columns as at fit: {fitted or 'one text per row'}. Got "
                f"{found or 'one text per row'}."
            )

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "_network")

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        # two_d_array stays true: it is true, and scikit-learn runs hardly a check without it.
        tags.input_tags.string = True
        return tags

    def __copy__(self) -> Self:
        # copy.copy would go through __getstate__ and serialise the weights.
        shallow = self.__class__.__new__(self.__class__)
        shallow.__dict__.update(self.__dict__)
        return shallow

    def __getstate__(self) -> dict[str, Any]:
        """Return numbers, text and numpy arrays only: no torch object, no module, no device."""
        state = self.__dict__.copy()
        if "_network" in state:
            state["_network"] = pack(state["_network"])
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if "_network" in state:
            device, dtype = self._where_to_open()
            self._network = unpack(state["_network"], dtype=dtype, device=device)
            self.device_ = str(device)

    def _where_to_open(self) -> tuple[Any, Any]:
        """Return device and dtype as asked for at fit, or what this machine has instead."""
        try:
            device = resolve_device(self._fitted_with["device"])
            return device, resolve_precision(self._fitted_with["precision"], device)
        except ModelNotSupportedError:
            device = resolve_device("auto")
            return device, resolve_precision("auto", device)
