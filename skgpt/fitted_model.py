"""Everything that a fit produced, as one frozen record that predictions read once.

`FittedClassifier` and `FittedRegressor` are a `FittedModel`, `FittedEmbedder` isn't, as nothing is
trained for it; all are a `TextModel`, and so is the record of a zero-shot classifier.
"""

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cached_property, partial
from typing import Any, NamedTuple, Self, TypedDict

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator
from sklearn.utils.validation import validate_data

from skgpt.caching import predicting
from skgpt.calibration import Calibration, link_for
from skgpt.data.batching import Progress, no_progress
from skgpt.data.inputs import TextColumns, find_columns
from skgpt.data.targets import Classes, side_by_side
from skgpt.data.template import Template
from skgpt.data.tokenization import LongText, Tokens, tokenise_rows
from skgpt.data.values import AnyTarget, Units
from skgpt.device import check_not_forked, prefix_budget
from skgpt.exceptions import ContinuationError, InvalidTextError
from skgpt.network.features import TextFeatures
from skgpt.network.microbatches import explain_no_memory, token_budget
from skgpt.network.network import TextNetwork
from skgpt.training.callbacks import EpochRecord, work_bar
from skgpt.training.loop import raw_scores
from skgpt.training.optimizer import Moments

COLUMN_ATTRIBUTES = ("n_features_in_", "feature_names_in_")


class TrainedOn(TypedDict):
    """How many rows were trained on, in all and of each label, whose name is its text."""

    rows: int
    labels: dict[str, int]


@dataclass(frozen=True, eq=False, kw_only=True)
class TextModel:
    """What takes any fitted estimator from texts to its network.

    `device` and `precision` are as the user asked for them; the network says what they came to.
    `columns` holds `COLUMN_ATTRIBUTES`, as far as the fitted X has them.
    """

    network: TextNetwork
    template: Template
    max_length: int
    long_text: LongText
    device: str
    precision: str
    fitted_by: str  # the estimator's class, for messages
    columns: Mapping[str, Any] = field(default_factory=dict)

    @property
    def outside(self) -> dict[str, Any]:
        """What goes into a pickle as it is, as it need not be plain values."""
        return {}

    def attributes(self) -> dict[str, Any]:
        """Return the public attributes of a fitted estimator."""
        return {
            **self.columns,
            "model_id_": self.network.pretrained.model,
            "device_": str(self.network.device),
        }

    def read_texts(self, X: Any) -> tuple[TextColumns, list[list[str]]]:
        """Return the columns of an X for predictions, and the texts of those of the fit."""
        texts = find_columns(X, estimator=self.fitted_by)
        return texts, texts.read(
            match_columns(self.columns, self.template, texts, name=self.fitted_by)
        )

    def tokenise(self, cells: list[list[str]], progress: Progress = no_progress) -> Tokens:
        """Turn columns of texts into token ids as the fit did."""
        encoder = self.network.tokenizer
        how = self.template, encoder, self.max_length, self.long_text
        return tokenise_rows(cells, *how, progress)

    def copy(self) -> Self:
        """Return a copy that shares the pretrained weights and owns what was learned."""
        network = self.network
        twin = TextNetwork(network.pretrained, network.spec, network.dtype, network.device)
        twin.take_over(network)
        shared = ("network", "known_scores")
        own = [each.name for each in fields(self) if each.name not in shared]
        return replace(
            self, network=twin, **{name: copy.deepcopy(getattr(self, name)) for name in own}
        )


@dataclass(frozen=True, eq=False, kw_only=True)
class FittedModel(TextModel):
    """What training produced.

    `moments` are those of `partial_fit`, which goes on with them. `trained_on` is None if nobody
    counted.
    """

    split_seed: int
    trained_on: TrainedOn | None = None
    history: list[EpochRecord] = field(default_factory=list)
    validation_scores: list[float] = field(default_factory=list)
    best_iteration: int = 0
    moments: Moments | None = None
    # Raw scores that are there already, and the X that they belong to: for scorers in a fit.
    known_scores: tuple[Any, NDArray[np.float32]] | None = None

    def attributes(self) -> dict[str, Any]:
        """Return the public attributes of an estimator that was trained."""
        held_out = {"validation_scores_": self.validation_scores, "best_iter_": self.best_iteration}
        return {
            **super().attributes(),
            "history_": self.history,
            "loss_curve_": [record["loss"] for record in self.history],
            "n_iter_": len(self.history),
            "pooling_": self.network.spec.pooling,
            "n_layers_": self.network.spec.n_layers,
            "trainable_layers_": self.network.spec.trainable_layers,
            "attention_": self.network.attention,
            **(held_out if self.validation_scores else {}),
        }

    @property
    def known(self) -> Any:
        """What the target of a fit that goes on has to go by."""
        raise NotImplementedError

    @property
    def multioutput(self) -> bool:
        """Whether a text has a class in each of several columns."""
        return False

    def example_target(self, n: int) -> NDArray[Any]:
        """Return a y of n rows of the kind that was fitted."""
        raise NotImplementedError

    def check_goes_on(self, target: AnyTarget) -> None:
        """Check that a fit on this target, which fits what is `known`, can go on from here."""

    @predicting()
    def raw_scores(self, X: Any, verbose: int = 0) -> NDArray[np.float32]:
        """Return the raw scores of texts, shape (n, n_outputs)."""
        if self.known_scores is not None and X is self.known_scores[0]:
            return self.known_scores[1]
        network = self.network
        check_not_forked(network.device.type)
        _, cells = self.read_texts(X)
        with work_bar(verbose) as bar:
            return raw_scores(
                network,
                self.tokenise(cells, partial(bar.move, "predict, tokenise", unit=" texts")),
                token_budget(network, learning=False),
                prefix_budget(network.device) // 4,  # a part: it may never be asked for again
                bar.move,
            )


@dataclass(frozen=True, eq=False, kw_only=True)
class FittedClassifier(FittedModel):
    """What the fit of a classifier produced, and all that its predictions need.

    Of several outputs `classes` and `calibration` are lists; what is an array for one output is a
    list for them, labels excepted.
    """

    classes: Classes
    multilabel: bool
    calibration: Calibration | list[Calibration] | None = None

    @property
    def outside(self) -> dict[str, Any]:
        """The classes: they may be dates, say."""
        return {"classes": self.classes}

    @property
    def known(self) -> Classes:
        """The classes."""
        return self.classes

    def attributes(self) -> dict[str, Any]:
        """Return the public attributes of a fitted classifier."""
        found = {**super().attributes(), "classes_": self.classes}
        if self.calibration is None:
            return found
        return {**found, "calibration_": copy.deepcopy(self.calibration)}

    def check_goes_on(self, target: AnyTarget) -> None:
        """Check that a fit on this target can go on from here: labels of the same kind."""
        if target.meaning["multilabel"] != self.multilabel:
            raise ContinuationError(
                "To go on from a fitted model, y must be of the same kind: one label per text "
                "or an indicator of several. Set warm_start=False to start anew."
            )

    def example_target(self, n: int) -> NDArray[Any]:
        """Return a y of n rows whose labels come by turns."""
        if self.multilabel:
            return np.zeros((n, len(self.classes)), dtype=np.int64)
        if isinstance(self.classes, list):
            return side_by_side([each[np.arange(n) % len(each)] for each in self.classes])
        return np.asarray(self.classes[np.arange(n) % len(self.classes)])

    @property
    def multioutput(self) -> bool:
        """Whether a text has a class in each of several columns."""
        return isinstance(self.classes, list)

    @cached_property
    def temperature(self) -> float:
        """What raw scores are divided by."""
        return self.calibration["temperature"] if isinstance(self.calibration, dict) else 1.0

    def of_outputs(self, scores_NK: NDArray[np.float32]) -> list[tuple["FittedClassifier", Any]]:
        """Return a view of the model for each output, and its part of raw scores."""
        if not self.multioutput:
            return [(self, scores_NK)]
        each = (
            self.calibration if isinstance(self.calibration, list) else [None] * len(self.classes)
        )
        views = [
            replace(self, classes=classes, calibration=calibration)
            for classes, calibration in zip(self.classes, each, strict=True)
        ]
        ends = np.cumsum([len(classes) for classes in self.classes])
        return list(zip(views, np.split(scores_NK, ends[:-1], axis=1), strict=True))

    def labels(self, scores_NK: NDArray[np.float32]) -> NDArray[Any]:
        """Return the label of each row of raw scores; for multilabel an indicator."""
        if self.multioutput:
            return side_by_side([view.labels(part) for view, part in self.of_outputs(scores_NK)])
        if self.multilabel:
            return (scores_NK > 0).astype(np.int64)
        return np.asarray(self.classes[scores_NK.argmax(axis=1)])

    def probabilities(self, scores_NK: NDArray[np.float32]) -> Any:
        """Return probabilities of raw scores, calibrated if the model is."""
        if self.multioutput:
            return [view.probabilities(part) for view, part in self.of_outputs(scores_NK)]
        return link_for(self.multilabel).probabilities(self._calibrated(scores_NK))

    def log_probabilities(self, scores_NK: NDArray[np.float32]) -> Any:
        """Return the logarithms of the probabilities, finite where those round to zero."""
        if self.multioutput:
            return [view.log_probabilities(part) for view, part in self.of_outputs(scores_NK)]
        return link_for(self.multilabel).log_probabilities(self._calibrated(scores_NK))

    def decision(self, scores_NK: NDArray[np.float32]) -> Any:
        """Return raw scores as scikit-learn's decision functions do: one column for two classes."""
        if self.multioutput:
            return [view.decision(part) for view, part in self.of_outputs(scores_NK)]
        scores = scores_NK.astype(np.float64)  # a calibrator's sums need the digits
        if scores.shape[1] == 2 and not self.multilabel:
            return np.asarray(scores[:, 1] - scores[:, 0])
        return scores

    def _calibrated(self, scores_NK: NDArray[np.float32]) -> NDArray[np.float32]:
        return scores_NK if self.calibration is None else scores_NK / np.float32(self.temperature)


@dataclass(frozen=True, eq=False, kw_only=True)
class FittedRegressor(FittedModel):
    """What the fit of a regressor produced, and all that its predictions need."""

    units: Units

    @property
    def known(self) -> Units:
        """The units: numbers go on meaning what they did."""
        return self.units

    def example_target(self, n: int) -> NDArray[np.float64]:
        """Return a y of n rows with as many columns."""
        return self.units.values_of(np.zeros((n, len(self.units.mean))))


# What an embedder holds tokens and states of at a time, however many and long the texts are.
_ROWS_AT_ONCE = 4096
_CHARACTERS_AT_ONCE = 2**24


@dataclass(frozen=True, eq=False, kw_only=True)
class FittedEmbedder(TextModel):
    """What the fit of an embedder produced: the `layers` whose states it gives, counted from 1.

    `network` is as deep as the deepest of them. `mean` and `scale` of each feature are None where
    states are given as they are.
    """

    layers: list[int]
    mean: NDArray[np.float64] | None = None
    scale: NDArray[np.float64] | None = None

    @property
    def n_features(self) -> int:
        """How many numbers a text becomes: those of all layers, side by side."""
        return len(self.layers) * self.network.head.in_features

    def attributes(self) -> dict[str, Any]:
        """Return the public attributes of a fitted embedder."""
        statistics = {} if self.mean is None else {"mean_": self.mean, "scale_": self.scale}
        layer = self.layers[0] if len(self.layers) == 1 else self.layers
        pooling = self.network.spec.pooling
        return {**super().attributes(), "pooling_": pooling, "layer_": layer, **statistics}

    @cached_property
    def _networks(self) -> list[TextNetwork]:
        """One for each of the layers, all on the same pretrained weights."""
        deepest = self.network
        where = deepest.dtype, deepest.device
        return [
            deepest
            if depth == deepest.spec.n_layers
            else TextNetwork(deepest.pretrained, replace(deepest.spec, n_layers=depth), *where)
            for depth in self.layers
        ]

    def pooled(self, cells: list[list[str]], verbose: int = 0) -> Iterator["PooledBatch"]:
        """Yield the pooled states of texts, a part of the rows at a time."""
        check_not_forked(self.network.device.type)
        n_rows, networks = len(cells[0]), self._networks
        with work_bar(verbose) as bar:

            def show(start: int, n: int, n_before: int, done: int, total: int) -> None:
                done_texts = start + int(n * (n_before + done / total) / len(networks))
                bar.move("embed", done_texts, n_rows, unit=" texts")

            for rows in _parts(cells):
                tokens = self.tokenise([column[rows] for column in cells])
                with explain_no_memory():
                    parts = [
                        _pool(network, tokens, partial(show, rows.start, len(tokens), n_before))
                        for n_before, network in enumerate(networks)
                    ]
                yield PooledBatch(rows, np.hstack(parts), tokens.n_cut)

    def standardise(self, states_NF: NDArray[np.float32]) -> None:
        """Subtract the means and divide by the deviations, in place, if the fit has them."""
        if self.mean is not None and self.scale is not None:
            states_NF -= self.mean
            states_NF /= self.scale


class PooledBatch(NamedTuple):
    """The states of some of the rows of an X, shape (n, n_features); `n_cut` texts were cut."""

    rows: slice
    states: NDArray[np.float32]
    n_cut: int


def _parts(cells: list[list[str]]) -> Iterator[slice]:
    """Yield the rows to run at a time: so many, of so many characters, one at least."""
    start = size = 0
    for end, row in enumerate(zip(*cells, strict=True), 1):
        size += sum(map(len, row))
        if size >= _CHARACTERS_AT_ONCE or end - start == _ROWS_AT_ONCE or end == len(cells[0]):
            yield slice(start, end)
            start, size = end, 0


def _pool(network: TextNetwork, tokens: Tokens, progress: Progress) -> NDArray[np.float32]:
    features = TextFeatures(
        network,
        tokens,
        token_budget=token_budget(network, learning=False),
        memory_budget=prefix_budget(network.device) // 4,
        progress=progress,
    )
    return features.pooled_array(np.arange(len(tokens)))


def column_attributes(texts: TextColumns, name: str) -> dict[str, Any]:
    """Return what scikit-learn sets for the columns of X: `COLUMN_ATTRIBUTES`, if X has them."""
    names = texts.names or []
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise InvalidTextError(
            f"The columns of X must have different names. Several are called {twice[0]!r}: rename "
            "them, or pass X.to_numpy()."
        )
    probe = _probe(name)
    validate_data(probe, texts.X, skip_check_array=True)
    return {name: value for name, value in vars(probe).items() if name in COLUMN_ATTRIBUTES}


def match_columns(
    columns: Mapping[str, Any],
    template: Template,
    texts: TextColumns,
    *,
    of: str = "X",
    name: str,
) -> list[int | None]:
    """Return where in X each column of the fit is; None for one that the template doesn't read.

    By name, where both have names and a template says which are read: there may be others, in any
    order. One column and a plain list are the same.
    """
    expected, found = columns.get("n_features_in_"), texts.n_features
    places = template.places(expected or 1)
    read = [place for place in places if place is not None]
    if found is None and len(read) == 1:
        return [None if place is None else 0 for place in places]
    if (found is None or expected is None) and (found or 1) != (expected or 1):
        raise InvalidTextError(
            f"{of} must have as many columns as at fit: {expected or 'one text per row'}. Got "
            f"{found or 'one text per row'}."
        )
    if "feature_names_in_" in columns and texts.names is not None and not template.joins_all:
        names = columns["feature_names_in_"]
        for wanted in names[read]:
            if texts.names.count(wanted) != 1:
                raise InvalidTextError(
                    f"{of} must have one column {wanted!r}, which the template reads. Got the "
                    f"columns {texts.names[:20]}."
                )
        return [None if i is None else texts.names.index(names[i]) for i in places]
    if found is not None and expected is not None:
        probe = _probe(name)
        vars(probe).update(columns)
        validate_data(probe, texts.X, reset=False, skip_check_array=True)
    return places


def _probe(name: str) -> BaseEstimator:
    """Return an estimator that scikit-learn may set attributes on; its messages name the class."""
    return type(name, (BaseEstimator,), {})()
