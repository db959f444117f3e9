"""The template of a fine-tuning fit, and what a fitted estimator is as a pickle."""

import copy
from abc import ABC, abstractmethod
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.utils.validation import check_is_fitted

from skgpt.cost import how_to_shorten
from skgpt.data.inputs import TextColumns, check_texts
from skgpt.data.targets import Target
from skgpt.data.template import Template
from skgpt.data.tokenization import LongText, tokenise_rows
from skgpt.device import (
    no_more_threads_than_cores,
    prefix_budget,
    resolve_device,
    resolve_precision,
)
from skgpt.estimators.estimating import EstimatesFits
from skgpt.exceptions import ContinuationError
from skgpt.fitting import (
    COLUMN_ATTRIBUTES,
    SHARED_CONSTRAINTS,
    FitData,
    Given,
    HeldOut,
    check_columns_match,
    check_fit_data,
    check_length,
    check_same_model,
    check_same_shape,
    checkpoint_of,
    columns_of_fit,
    draw_seed,
    make_judge,
    monitors_from_outside,
    plan_of_fit,
    plan_of_part,
    trained_on,
    warn_and_raise,
    warn_of_cut_texts,
    warn_of_skipped_steps,
)
from skgpt.lora import LoRA, TakesLoRA, adapter_spec
from skgpt.network.microbatches import explain_no_memory, token_budget
from skgpt.network.network import TextNetwork, build_network
from skgpt.pretrained.loading import PretrainedModel, load_pretrained
from skgpt.sklearn_callbacks import CallbackEstimator, SklearnCallbacks
from skgpt.training.callbacks import (
    EpochRecord,
    PredictBar,
    SlowFitNotice,
    TrainingCallback,
    fit_progress,
)
from skgpt.training.checkpoint import Checkpoint
from skgpt.training.config import TrainingConfig
from skgpt.training.early_stopping import StoppingRule, Validation
from skgpt.training.loop import FitResult, TrainingRows, raw_scores, train
from skgpt.training.loss import Loss
from skgpt.training.optimizer import Moments

# What a fit may or may not set: an earlier fit's must not stay behind.
_OPTIONAL_ATTRIBUTES = (
    *COLUMN_ATTRIBUTES,
    *("validation_scores_", "best_iter_", "calibration_", "_moments"),
)


class BaseGPTText(EstimatesFits, TakesLoRA, CallbackEstimator, ABC):
    """What the estimators share: everything but the target, the loss and its inverse link.

    A subclass has the constructor and says what its targets are.
    """

    if TYPE_CHECKING:  # the subclasses' constructor parameters, for the type checker
        model: str
        revision: str | None
        n_layers: int | None
        trainable_layers: Any
        lora: LoRA | None
        head_first_epochs: int
        pooling: str
        template: str | None
        max_length: int
        long_text: LongText
        max_epochs: Any
        batch_size: int
        learning_rate: float
        head_learning_rate: float
        weight_decay: float
        warmup_ratio: float
        lr_schedule: Any
        max_grad_norm: float | None
        early_stopping: bool
        validation_fraction: float
        n_iter_no_change: int
        tol: float
        scoring: Any
        warm_start: bool
        device: str
        precision: Any
        store_base: Any
        checkpoint_dir: Any
        random_state: Any
        verbose: int

    _parameter_constraints: dict[str, list[Any]] = SHARED_CONSTRAINTS

    # Where scikit-learn's HTML representation links to.
    _doc_link_module = "skgpt"
    _doc_link_template = (
        "https://skgpt.readthedocs.io/en/stable/generated/skgpt.{estimator_name}.html"
    )

    @abstractmethod
    def _encode_target(self, y: Any, n: int, classes: Any, what: str) -> Target:
        """Check y; return it as the loss wants it. Nothing is set on the estimator yet."""

    @abstractmethod
    def _loss_weights(self, data: FitData) -> NDArray[np.float64]:
        """Return what each row, or each output of each row, weighs in the loss."""

    @abstractmethod
    def _loss(self, target: Target) -> Loss:
        """Return the loss."""

    def _from_held_out(self, held_out: HeldOut, data: FitData) -> dict[str, Any]:
        """Return what else a fitted estimator learns from the held-out rows; by default nothing."""
        return {}

    @property
    def _holds_out(self) -> bool:
        """Whether a fit that is given no `X_val` holds rows out."""
        return self.early_stopping

    @abstractmethod
    def _target_attributes(self, target: Target) -> dict[str, Any]:
        """Return the fitted attributes that follow from the target."""

    @no_more_threads_than_cores()
    def _fit(self, given: Given) -> None:
        """Fit; every attribute is set at the end, so a fit that fails leaves all as it was."""
        goes_on = self.warm_start and hasattr(self, "_network")
        seed = draw_seed(self.random_state)
        data, weight = self._checked(given, seed, goes_on)
        network = self._network_to_fit(data.target, seed, goes_on)
        with checkpoint_of(self, given, data, network, seed, goes_on=goes_on) as checkpoint:
            if checkpoint is not None and checkpoint.seed != seed:  # with random_state=None
                seed = checkpoint.seed
                data, weight = self._checked(given, seed, goes_on)
            plan = plan_of_fit(self, network, len(data.split.train), seed)
            callbacks = SklearnCallbacks(self, network, given, data, plan.n_epochs)
            result = self._train(network, data, weight, plan, callbacks, checkpoint=checkpoint)
            attributes = self._attributes(network, data, result)
            if data.held_out is not None:
                fitted = self._as_fitted(network, data, result)
                try:
                    attributes |= fitted._from_held_out(data.held_out, data)
                except KeyboardInterrupt as error:  # what was trained is not lost by it
                    result = replace(result, interrupt=result.interrupt or error)
            self._keep(attributes, result)
        callbacks.fitted()
        warn_of_skipped_steps(result)

    def _checked(
        self, given: Given, seed: int, goes_on: bool
    ) -> tuple[FitData, NDArray[np.float64]]:
        """Return what `fit` was given, checked, and what the rows weigh in the loss."""
        data = self._checked_data(given, seed, goes_on)
        return data, self._loss_weights(data)

    def _checked_data(self, given: Given, seed: int, goes_on: bool) -> FitData:
        # The same rows held out as before: others of them would have been trained on already.
        split_seed = self._fitted_with["split_seed"] if goes_on else seed
        classes = getattr(self, "classes_", None) if goes_on else None
        return check_fit_data(self, given, self._encode_target, classes=classes, seed=split_seed)

    def _network_to_fit(self, target: Target, seed: int, goes_on: bool) -> TextNetwork:
        """Return the network that `fit` trains."""
        network = self._build(target, seed, self._network.pretrained if goes_on else None)
        if goes_on:
            check_same_shape(
                network.spec, self._network.spec, may_learn_more=True, may_have_more=False
            )
            network.take_over(self._network)
        return network

    @no_more_threads_than_cores()
    def _partial_fit(self, given: Given, classes: Any, places: NDArray[np.int64] | None) -> None:
        """Make one pass from where the last call stopped; `places` says where old outputs go."""
        goes_on = hasattr(self, "_network")
        seed = draw_seed(self.random_state)
        data = check_fit_data(
            self,
            given,
            self._encode_target,
            classes=classes,
            columns=columns_of_fit(self) if goes_on else None,
            seed=seed,
        )
        weight = self._loss_weights(data)
        network = self._build(data.target, seed, self._network.pretrained if goes_on else None)
        history: list[EpochRecord] = []
        moments = getattr(self, "_moments", None)
        if goes_on:
            history = self.history_
            self._check_goes_on(network, data, more_classes=places is not None)
            network.take_over(self._network, places)
            if moments is not None and places is not None:
                moments = moments.grown(places, network.spec.n_outputs)
        plan = plan_of_part(self, network, len(data.split.train), seed, len(history))
        callbacks = SklearnCallbacks(self, network, given, data, plan.n_epochs, history)
        result = self._train(network, data, weight, plan, callbacks, moments)
        attributes = self._attributes(network, data, result, history)
        self._keep({**attributes, "_moments": result.moments}, result)
        callbacks.fitted()
        warn_of_skipped_steps(result)

    def _check_goes_on(self, network: TextNetwork, data: FitData, *, more_classes: bool) -> None:
        check_same_shape(
            network.spec, self._network.spec, may_learn_more=False, may_have_more=more_classes
        )
        if _layout(data.template) != self._fitted_with["template"]:
            raise ContinuationError(
                "To go on from a fitted model, `template` must lay texts out as it did. Got "
                f"{self.template!r}: set it back, or call fit to start anew."
            )

    @explain_no_memory()
    def _build(self, target: Target, seed: int, pretrained: PretrainedModel | None) -> TextNetwork:
        """Build a network, on the trunk of the fitted one where a fit goes on from it."""
        device = resolve_device(self.device)
        dtype = resolve_precision(self.precision, device)
        if pretrained is None:
            pretrained = load_pretrained(self.model, self.revision)
        else:
            check_same_model(self, self._network)
            if target.is_multilabel != self._fitted_with["multilabel"]:
                raise ContinuationError(
                    "To go on from a fitted model, y must be of the same kind: one label per text "
                    "or an indicator of several. Set warm_start=False to start anew."
                )
        check_length(self.max_length, pretrained)
        return build_network(
            pretrained,
            n_layers=self.n_layers,
            trainable_layers=self.trainable_layers,
            pooling=self.pooling,
            n_outputs=target.width,
            dtype=dtype,
            device=device,
            lora=adapter_spec(self.lora),
            seed=seed,
        )

    def _train(
        self,
        network: TextNetwork,
        data: FitData,
        weight: NDArray[np.float64],
        plan: TrainingConfig,
        callbacks: SklearnCallbacks,
        moments: Moments | None = None,
        checkpoint: Checkpoint | None = None,
    ) -> FitResult:
        encoder = network.pretrained.tokenizer
        tokens = tokenise_rows(
            data.columns, data.template, encoder, self.max_length, self.long_text
        )
        warn_of_cut_texts(self, tokens)
        rows = TrainingRows(tokens, data.target.codes, weight, data.split)
        return train(
            network,
            rows,
            loss=self._loss(data.target),
            config=plan,
            validation=self._watched(network, data),
            moments=moments,
            callbacks=[*self._all_monitors(network, data), callbacks],
            checkpoint=checkpoint,
        )

    def _watched(self, network: TextNetwork, data: FitData) -> Validation:
        if data.held_out is None:
            return Validation()
        judge = make_judge(
            self.scoring,
            data.held_out,
            data.target.truth(data.split.held_out),
            lambda: self._as_fitted(network, data),
        )
        rule = StoppingRule(self.n_iter_no_change, self.tol) if self.early_stopping else None
        return Validation(judge, rule)

    def _as_fitted(
        self,
        network: TextNetwork,
        data: FitData,
        result: FitResult | None = None,
        earlier: list[EpochRecord] | None = None,
    ) -> Self:
        """Return a copy of the estimator, fitted with a network that may still be in training."""
        view = copy.copy(self)
        view._set(self._attributes(network, data, result or FitResult([], [], 0, None), earlier))
        return view

    def _attributes(
        self,
        network: TextNetwork,
        data: FitData,
        result: FitResult,
        earlier: list[EpochRecord] | None = None,
    ) -> dict[str, Any]:
        """Return everything that a fit sets."""
        first = len(earlier or [])
        history: list[Any] = [
            *(earlier or []),
            *({**record, "epoch": first + record["epoch"]} for record in result.history),
        ]
        watched: dict[str, Any] = {}
        if result.validation_scores:
            watched = {
                "validation_scores_": result.validation_scores,
                "best_iter_": result.best_iteration,
            }
        return {
            **data.attributes,
            **self._target_attributes(data.target),
            **watched,
            "_network": network,
            "_fitted_with": {
                "max_length": self.max_length,
                "long_text": self.long_text,
                "device": self.device,
                "precision": self.precision,
                "template": _layout(data.template),
                "multilabel": data.target.is_multilabel,
                "split_seed": data.split_seed,
                "trained_on": trained_on(data, None if earlier is None else vars(self)),
            },
            "history_": history,
            "loss_curve_": [record["loss"] for record in history],
            "n_iter_": len(history),
            "pooling_": network.spec.pooling,
            "model_id_": network.pretrained.model,
            "device_": str(network.device),
        }

    def _set(self, attributes: dict[str, Any]) -> None:
        kept = {k: v for k, v in self.__dict__.items() if k not in _OPTIONAL_ATTRIBUTES}
        # All at once: another thread's predict sees the old fit or the new one.
        self.__dict__ = {**kept, **attributes}

    def _keep(self, attributes: dict[str, Any], result: FitResult) -> None:
        """Become fitted; where something ended the fit early, let it go on up."""
        self._set(attributes)
        if result.interrupt is not None:
            warn_and_raise(result)

    def _all_monitors(self, network: TextNetwork, data: FitData) -> list[TrainingCallback]:
        monitors = self._monitors(network)
        outside = monitors_from_outside(self, lambda: self._as_fitted(network, data))
        if outside:  # may have the fit wait for others, which is not time that it takes
            monitors = [m for m in monitors if not isinstance(m, SlowFitNotice)]
        return [*monitors, *outside]

    def _monitors(self, network: TextNetwork) -> list[TrainingCallback]:
        notice = SlowFitNotice(how_to_shorten(network, self.max_length, self.long_text))
        return [notice, *fit_progress(self.verbose)]

    def _checked_texts(self, X: Any) -> TextColumns:
        """Return the texts of an X that is of the fit's kind; check that there was a fit."""
        check_is_fitted(self)
        texts = check_texts(X, estimator=self)
        check_columns_match(columns_of_fit(self), texts, estimator=self)
        return texts

    @no_more_threads_than_cores()
    def _scores(self, X: Any) -> NDArray[np.float32]:
        """Return the raw scores of texts, shape (n, n_outputs)."""
        texts = self._checked_texts(X)
        network = self._network
        tokens = tokenise_rows(
            texts.cells,
            Template(*self._fitted_with["template"]),
            network.pretrained.tokenizer,
            self._fitted_with["max_length"],
            self._fitted_with.get("long_text", "cut"),  # older pickles know no other way
        )
        memory = prefix_budget(network.device) // 4  # a part: it may never be asked for again
        budget = token_budget(network, learning=False)
        return raw_scores(network, tokens, budget, memory, PredictBar(self.verbose))

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "_network")

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        # two_d_array stays true: it is true, and scikit-learn runs hardly a check without it.
        tags.input_tags.string = True
        return tags


def _layout(template: Template) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Return a template as plain values, for a pickle."""
    return template.words, template.fields
