"""How an estimator is fitted: check the inputs, build the network, train it, record the result.

`fit`, `partial_fit` and `plan` read the estimator's parameters and call four of its methods:
`_encode_target` checks y, `_loss_weights` weighs the rows, `_loss` is what is minimised, and
`_training_callbacks` show the fit.
"""

import copy
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, replace
from functools import partial
from inspect import signature
from numbers import Integral
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import is_classifier
from sklearn.metrics import check_scoring
from sklearn.utils import check_random_state

from skgpt._files import as_folder
from skgpt.calibration import calibrate
from skgpt.cost import FitEstimate, Prices, count_products, estimate_fit, price_fit
from skgpt.data.inputs import find_columns, rows_of
from skgpt.data.splits import group_codes
from skgpt.data.targets import Classes, Target
from skgpt.data.tokenization import tokenise_rows
from skgpt.data.values import AnyTarget
from skgpt.device import prefix_budget, resolve_device, resolve_precision
from skgpt.exceptions import (
    ContinuationError,
    CutTextsWarning,
    InterruptedFitWarning,
    InvalidTextError,
    MissingScoreWarning,
    ModelNotSupportedError,
    ShortFitWarning,
    SkippedStepsWarning,
    SlowFitWarning,
    TimeLimitWarning,
    warn_user,
)
from skgpt.fit_data import FitData, FitInputs, HeldOut, check_inputs, holds_out
from skgpt.fitted_model import FittedClassifier, FittedModel, TrainedOn
from skgpt.label_words import check_prompt, start_from_words
from skgpt.lora import adapter_spec, lora_of
from skgpt.network.features import disk_room
from skgpt.network.microbatches import explain_no_memory, token_budget
from skgpt.network.network import NetworkSpec, TextNetwork, build_network
from skgpt.pretrained.language_head import language_head
from skgpt.pretrained.loading import PretrainedModel, load_pretrained
from skgpt.run_key import WITHOUT_EFFECT, described, digest
from skgpt.sklearn_callbacks import SklearnCallbacks
from skgpt.training.callbacks import EpochRecord, TrainingCallback, work_bar
from skgpt.training.checkpoint import Checkpoint, claimed_checkpoint
from skgpt.training.config import (
    TrainingConfig,
    resolve_epochs,
    resolve_head_rate,
    resolve_rate,
)
from skgpt.training.early_stopping import StoppingRule, Validation, ValidationScorer
from skgpt.training.loop import train
from skgpt.training.optimizer import Moments
from skgpt.training.run import FitResult, TrainingRows

_ASSUMED_CLASSES = 2  # of a plan without labels


def fit(estimator: Any, inputs: FitInputs) -> None:
    """Fine-tune. Attributes are set once, at the end: a fit that fails leaves all as it was."""
    began = time.monotonic()
    previous = _model_of(estimator) if estimator.warm_start else None
    seed = draw_seed(estimator.random_state)
    data = check_inputs(estimator, inputs, **_as_before(previous, seed))
    network, limit = make_network(estimator, data.target, seed, previous), None
    if estimator.max_seconds is not None:
        network, limit = fit_in_time(estimator, data, network, seed, previous, began)

    with open_checkpoint(estimator, inputs, data, network, seed, previous, limit) as checkpoint:
        if checkpoint is not None and checkpoint.seed != seed:  # with random_state=None
            seed = checkpoint.seed
            data = check_inputs(estimator, inputs, **_as_before(previous, seed))
        config = make_config(estimator, network, len(data.split.train), seed, limit)
        if limit is None and (checkpoint is None or checkpoint.found is None):
            warn_if_slow(estimator, data, network, config, previous)
        sklearn_callbacks = begin_callbacks(estimator, inputs, data, network, config.n_epochs)
        run = _train(estimator, data, network, config, sklearn_callbacks, checkpoint=checkpoint)
        note_time_limit(run, limit, network, config)
        model = model_of_run(estimator, data, network, run)
        if isinstance(model, FittedClassifier) and data.held_out and estimator.calibrate:
            model, run = calibrated(model, run, data, estimator.verbose)
        estimator._set_fitted(model)
        raise_if_interrupted(run)
    sklearn_callbacks.fitted()
    warn_of_skipped_steps(run)
    warn_of_missing_scores(run)
    warn_of_time_limit(estimator, run)
    warn_if_still_falling(run, config)


def partial_fit(
    estimator: Any, inputs: FitInputs, known: Any, places: NDArray[np.int64] | None = None
) -> None:
    """Make one pass from where the last call stopped.

    `known` is what the target goes by: all the classes, say, as far as they are known. `places`
    says where old outputs go among new ones.
    """
    previous = _model_of(estimator)
    seed = draw_seed(estimator.random_state)
    columns = None if previous is None else previous.columns
    data = check_inputs(estimator, inputs, seed, known=known, columns=columns)
    network = _build(estimator, data.target, seed, previous)
    moments = None
    if previous is None or places is not None:
        start_head(estimator, data.target, network)
    if previous is not None:
        now, then = network.spec, previous.network.spec
        check_same_shape(now, then, may_learn_more=False, may_have_more=places is not None)
        if data.template != previous.template:
            raise ContinuationError(
                "To go on from a fitted model, `template` must lay texts out as it did. Got "
                f"{estimator.template!r}: set it back, or call fit to start anew."
            )
        network.take_over(previous.network, places)
        moments = previous.moments
        if moments is not None and places is not None:
            moments = moments.grown(places, network.spec.n_outputs)

    config = replace(  # one pass at a constant rate
        make_config(estimator, network, len(data.split.train), seed),
        n_epochs=1,
        warmup_ratio=0.0,
        schedule="constant",
        first_epoch=0 if previous is None else len(previous.history),
        head_first_epochs=0,
        batch_size=estimator.batch_size,
        solves_head=False,
    )
    sklearn_callbacks = begin_callbacks(estimator, inputs, data, network, config.n_epochs, previous)
    run = _train(estimator, data, network, config, sklearn_callbacks, moments=moments)
    model = model_of_run(estimator, data, network, run, previous)
    estimator._set_fitted(replace(model, moments=run.moments))
    raise_if_interrupted(run)
    sklearn_callbacks.fitted()
    warn_of_skipped_steps(run)


def plan(estimator: Any, X: Any, y: Any) -> FitEstimate:
    """Measure what a fit would cost; nothing is fitted and nothing drawn from `random_state`."""
    previous = _model_of(estimator) if estimator.warm_start else None
    # What `fit` would draw next; 0 for None, as others draw there too.
    state = estimator.random_state
    seed = 0 if state is None else draw_seed(copy.deepcopy(state))
    if y is None:
        n = len(find_columns(X, estimator=type(estimator).__name__))
        inputs = FitInputs(X, previous.example_target(n) if previous else _by_turns(n))
    else:
        inputs = FitInputs(X, y)
    data = check_inputs(estimator, inputs, **_as_before(previous, seed), weigh=y is not None)
    network = make_network(estimator, data.target, seed, previous, starts=y is not None)
    if y is not None:
        make_validation(estimator, data, network)  # tries the scorer
    return estimate_fit(
        network,
        data,
        config=make_config(estimator, network, len(data.split.train), seed),
        loss=estimator._loss(data.target),
        max_length=int(estimator.max_length),
        long_text=estimator.long_text,
        early_stopping=bool(estimator.early_stopping),
        classes_assumed=_ASSUMED_CLASSES
        if y is None and previous is None and is_classifier(estimator)
        else None,
        verbose=estimator.verbose,
    )


def _by_turns(n: int) -> NDArray[np.int64]:
    """Return a y of two classes, or numbers, by turns."""
    return np.arange(n) % _ASSUMED_CLASSES


def _as_before(previous: FittedModel | None, seed: int) -> dict[str, Any]:
    """Return how the inputs of a fit that may go on are checked: the same rows are held out."""
    if previous is None:
        return {"split_seed": seed}
    return {"split_seed": previous.split_seed, "known": previous.known}


def _model_of(estimator: Any) -> FittedModel | None:
    return getattr(estimator, "_model", None)


# The network.


def make_network(
    estimator: Any,
    target: AnyTarget,
    seed: int,
    previous: FittedModel | None,
    *,
    starts: bool = True,
) -> TextNetwork:
    """Return the network that `fit` trains, with what a previous fit has learned.

    Where nobody knows the labels, it `starts` from none of their words. A head alone that is pulled
    towards words starts from them again: it is solved for, and a start elsewhere would be another
    problem.
    """
    network = _build(estimator, target, seed, previous)
    now = network.spec
    if previous is not None:
        check_same_shape(now, previous.network.spec, may_learn_more=True, may_have_more=False)
    if previous is not None and not (now.prompted and now.trainable_layers == 0):
        network.take_over(previous.network)
    elif starts:
        start_head(estimator, target, network)
    return network


@explain_no_memory()
def _build(
    estimator: Any, target: AnyTarget, seed: int, previous: FittedModel | None
) -> TextNetwork:
    device = resolve_device(estimator.device)
    dtype = resolve_precision(estimator.precision, device)
    n_layers, trainable_layers = estimator.n_layers, estimator.trainable_layers
    n_bidirectional = None
    if previous is None:
        pretrained = load_pretrained(estimator.model, estimator.revision)
    else:
        # "auto" is what it was, also if more layers learn now.
        then = previous.network.spec
        n_layers = then.n_layers if n_layers == "auto" else n_layers
        trainable_layers = then.trainable_layers if trainable_layers == "auto" else trainable_layers
        n_bidirectional = then.n_bidirectional if estimator.attention == "auto" else None
        pretrained = previous.network.pretrained
        for name, was in (("model", pretrained.model), ("revision", pretrained.revision)):
            now = getattr(estimator, name)
            if (os.fspath(now) if isinstance(now, os.PathLike) else now) != was:
                raise _changed(name, was, now)
        previous.check_goes_on(target)
    check_max_length(estimator.max_length, pretrained)
    prompted = getattr(estimator, "label_words", None) is not None
    if prompted:
        assert isinstance(target, Target)
        check_prompted(estimator, target)
        if previous is None:
            language_head(pretrained)  # or an error that says why there is none
    return build_network(
        pretrained,
        n_layers=n_layers,
        trainable_layers=trainable_layers,
        n_bidirectional=n_bidirectional,
        pooling=estimator.pooling,
        attention=estimator.attention,
        n_outputs=target.width,
        dtype=dtype,
        device=device,
        lora=adapter_spec(estimator.lora),
        prompted=prompted,
        seed=seed,
    )


def check_prompted(estimator: Any, target: Target) -> None:
    """Check what a head that starts as label words' asks of an estimator's other parameters."""
    if target.codes.ndim == 2:
        what = "several columns of labels" if target.is_multioutput else "an indicator of several"
        raise InvalidTextError(
            "With `label_words`, y must hold one label per text, as the words are alternatives. "
            f"Got {what}: set label_words=None."
        )
    if estimator.long_text != "cut":
        raise InvalidTextError(
            "With `label_words`, `long_text` must be 'cut': only the last of a text's windows "
            f"would end in the prompt. Got {estimator.long_text!r}."
        )
    check_prompt(estimator.template)


def start_head(estimator: Any, target: AnyTarget, network: TextNetwork) -> None:
    """Start the head of a prompted network from the words of the labels."""
    if network.spec.prompted:
        assert isinstance(target, Target)
        words, classes = estimator.label_words, target.classes.tolist()
        start_from_words(network, words, estimator.template, classes, int(estimator.max_length))


def check_max_length(max_length: int, pretrained: PretrainedModel) -> None:
    """Check that the model has as many positions."""
    limit = pretrained.max_positions
    if limit is not None and max_length > limit:
        raise ModelNotSupportedError(
            f"`max_length` must be at most {limit}, the positions that {pretrained.model!r} has. "
            f"Got {max_length}."
        )


# Going on from a fitted model: what must be as it was.


def check_same_shape(
    now: NetworkSpec, then: NetworkSpec, *, may_learn_more: bool, may_have_more: bool
) -> None:
    """Check that a network can take over what another has learned; errors name the parameter.

    `may_learn_more` allows layers to learn that were frozen (their optimiser has no moments),
    `may_have_more` allows more outputs.
    """
    if now.prompted != then.prompted:
        said = {True: "given", False: None}
        raise _changed("label_words", said[then.prompted], said[now.prompted])
    for name in ("n_layers", "pooling"):
        if getattr(now, name) != getattr(then, name):
            raise _changed(name, getattr(then, name), getattr(now, name))
    if bool(now.n_bidirectional) != bool(then.n_bidirectional):
        kinds = ["bidirectional" if spec.n_bidirectional else "causal" for spec in (then, now)]
        raise _changed("attention", *kinds)
    # Dropout leaves nothing in the weights.
    adapters = [spec.lora and replace(spec.lora, dropout=0.0) for spec in (now, then)]
    if adapters[0] != adapters[1]:
        raise _changed("lora", lora_of(then.lora), lora_of(now.lora))
    n_now, n_then = (
        np.inf if spec.trainable_layers == "all" else spec.trainable_layers for spec in (now, then)
    )
    if n_now != n_then and not (may_learn_more and n_now > n_then):
        more = (
            "More layers may learn than before, not fewer."
            if may_learn_more
            else "With warm_start=True, fit may go on with more layers than before."
        )
        raise _changed("trainable_layers", then.trainable_layers, now.trainable_layers, more)
    if now.n_outputs != then.n_outputs and not may_have_more:
        raise ContinuationError(
            f"The fitted model tells {then.n_outputs} labels apart. Got {now.n_outputs}: set "
            "warm_start=False to start anew."
        )


def _changed(name: str, then: Any, now: Any, more: str = "") -> ContinuationError:
    return ContinuationError(
        f"To go on from a fitted model, `{name}` must be as it was, {then!r}. Got {now!r}: set it "
        f"back, or call fit with warm_start=False to start anew. {more}".rstrip()
    )


def places_of(old: Classes, new: Classes) -> NDArray[np.int64]:
    """Return where the output of each old class stands among those of the new ones."""
    if isinstance(old, list) or isinstance(new, list):
        if not (isinstance(old, list) and isinstance(new, list) and len(old) == len(new)):
            raise ContinuationError(
                "`classes` must be of the kind that was fitted: an array, or a list of an array "
                f"for each column of y. Got {new} for {old}."
            )
        starts = np.cumsum([0, *map(len, new)])[:-1]
        outputs = zip(old, new, starts, strict=True)
        return np.concatenate([start + places_of(*classes) for *classes, start in outputs])
    place = {label: i for i, label in enumerate(new.tolist())}
    missing = [label for label in old.tolist() if label not in place]
    if missing:
        raise ContinuationError(
            f"`classes` must hold every class that was fitted: {old.tolist()}. {missing} are "
            f"missing from {new.tolist()}."
        )
    return np.array([place[label] for label in old.tolist()], dtype=np.int64)


# The training run.


def draw_seed(random_state: Any) -> int:
    """Draw the one integer that all randomness of a fit follows from.

    An int is used as it is, so nothing global is touched. None draws from numpy's global
    generator, as everywhere in scikit-learn.
    """
    if isinstance(random_state, Integral):
        return int(random_state)
    return int(check_random_state(random_state).randint(np.iinfo(np.int32).max))


def make_config(
    estimator: Any,
    network: TextNetwork,
    n_rows: int,
    seed: int,
    limit: "TimeLimit | None" = None,
) -> TrainingConfig:
    """Return the configuration of a whole fit."""
    head_first = int(estimator.head_first_epochs)
    n_epochs = resolve_epochs(estimator.max_epochs, n_rows, estimator.batch_size)
    config = TrainingConfig(
        n_rows=n_rows,
        n_epochs=head_first + n_epochs,
        batch_size=estimator.batch_size,
        learning_rate=resolve_rate(
            estimator.learning_rate, network.spec, causal=network.pretrained.capabilities.causal
        ),
        head_learning_rate=resolve_head_rate(estimator.head_learning_rate, network.spec),
        weight_decay=estimator.weight_decay,
        warmup_ratio=estimator.warmup_ratio,
        schedule=estimator.lr_schedule,
        max_grad_norm=estimator.max_grad_norm,
        token_budget=token_budget(network, learning=True),
        memory_budget=prefix_budget(network.device),
        disk_budget=disk_room(),
        seed=seed,
        head_first_epochs=head_first,
    )
    if limit is not None:
        config = replace(config, n_epochs=head_first + limit.n_epochs, deadline=limit.deadline)
    if network.spec.trainable_layers == 0:
        return replace(config, n_epochs=1, head_first_epochs=0, batch_size=n_rows, solves_head=True)
    return config


@dataclass(frozen=True)
class TimeLimit:
    """What `max_seconds` left of a fit, beside what it would have been."""

    n_epochs: int  # in which all learns that is to learn
    deadline: float  # in seconds of `time.monotonic`
    n_epochs_before: int
    n_layers_before: int


_KEPT_BACK = 0.1  # of the time that is left, for what no measurement foresees
_SLOW_SECONDS = 600.0
# Products of weights and values, on an accelerator and on a CPU: with fewer a fit takes no ten
# minutes, and isn't measured.
_WORTH_MEASURING = (3e15, 3e13)


def fit_in_time(
    estimator: Any,
    data: FitData,
    network: TextNetwork,
    seed: int,
    previous: FittedModel | None,
    began: float,
) -> tuple[TextNetwork, TimeLimit]:
    """Shorten a fit before it starts, by a measurement: fewer epochs, and then fewer layers.

    Layers are dropped only where nobody named their number.
    """
    prices = _price(estimator, data, seed, previous)
    deadline = began + estimator.max_seconds
    n_epochs, n_layers = prices.within(
        (1 - _KEPT_BACK) * (deadline - time.monotonic()),
        shallower=_may_be_shallower(estimator, network, previous),
    )
    before = network.spec.n_layers
    if n_layers < before:
        view = copy.copy(estimator)
        view.n_layers = n_layers
        network = make_network(view, data.target, seed, previous)
    return network, TimeLimit(n_epochs, deadline, prices.work.n_epochs, before)


def _may_be_shallower(estimator: Any, network: TextNetwork, previous: FittedModel | None) -> bool:
    """Say whether layers may be dropped of a fit: nobody named, or needs, as many."""
    return estimator.n_layers == "auto" and previous is None and not network.spec.prompted


def warn_if_slow(
    estimator: Any,
    data: FitData,
    network: TextNetwork,
    config: TrainingConfig,
    previous: FittedModel | None,
) -> None:
    """Warn before the first step of a fit of more than ten minutes; say what ends within them."""
    if _OBSERVER.get() is not None:  # which may have it wait for others, or end it
        return
    work = count_products(network, data, config, estimator.max_length, estimator.long_text)
    if work < _WORTH_MEASURING[network.device.type == "cpu"]:
        return
    prices = _price(estimator, data, config.seed, previous)
    if prices.seconds() <= _SLOW_SECONDS:
        return
    n_epochs, n_layers = prices.within(
        (1 - _KEPT_BACK) * _SLOW_SECONDS,
        shallower=_may_be_shallower(estimator, network, previous),
    )
    shorter = _what_was_cut(n_epochs, prices.work.n_epochs, n_layers, network.spec.n_layers)
    how = "up to" if estimator.early_stopping else "about"
    warn_user(
        f"This fit will take {how} {prices.seconds() / 60:.0f} minutes. max_seconds="
        f"{_SLOW_SECONDS:.0f} ends it within ten, with {' and '.join(shorter) or 'fewer steps'}. "
        "`plan` says what other parameters would cost.",
        SlowFitWarning,
    )


def _price(estimator: Any, data: FitData, seed: int, previous: FittedModel | None) -> Prices:
    """Measure a fit, on a network of its own: measuring trains it a bit."""
    network = make_network(estimator, data.target, seed, previous)
    prices, _ = price_fit(
        network,
        data,
        loss=estimator._loss(data.target),
        config=make_config(estimator, network, len(data.split.train), seed),
        max_length=int(estimator.max_length),
        long_text=estimator.long_text,
        verbose=estimator.verbose,
    )
    return prices


def _train(
    estimator: Any,
    data: FitData,
    network: TextNetwork,
    config: TrainingConfig,
    sklearn_callbacks: SklearnCallbacks,
    *,
    moments: Moments | None = None,
    checkpoint: Checkpoint | None = None,
) -> FitResult:
    max_length, long_text = estimator.max_length, estimator.long_text
    with work_bar(estimator.verbose) as bar:
        progress = partial(bar.move, "tokenise", unit=" texts")
        tokens = tokenise_rows(
            data.cells, data.template, network.tokenizer, max_length, long_text, progress
        )
    name, hint = type(estimator).__name__, "; plan(X) counts all"
    warn_of_cut_texts(name, max_length, tokens.n_cut, len(tokens), hint)
    return train(
        network,
        TrainingRows(tokens, data.target.codes, data.loss_weight, data.split),
        loss=estimator._loss(data.target),
        config=config,
        validation=make_validation(estimator, data, network),
        moments=moments,
        callbacks=[*make_callbacks(estimator, data, network), sklearn_callbacks],
        checkpoint=checkpoint,
    )


def make_validation(estimator: Any, data: FitData, network: TextNetwork) -> Validation:
    """Return how the held-out rows are scored, and when that ends the fit."""
    if data.held_out is None:
        return Validation()
    score = make_scorer(
        estimator.scoring,
        data.held_out,
        data.target.truth(data.split.held_out),
        lambda scores: fitted_view(estimator, data, network, scores),
    )
    rule = None
    if estimator.early_stopping:
        rule = StoppingRule(estimator.n_iter_no_change, estimator.tol)
    return Validation(score, rule)


def make_scorer(
    scoring: Any,
    held_out: HeldOut,
    truth_NK: NDArray[np.float32],
    view_of: Callable[[NDArray[np.float32]], Any],
) -> ValidationScorer | None:
    """Return `scoring` as a function of the held-out rows' raw scores; None for their loss.

    `truth_NK` are raw scores that are right about all rows: with them the scorer is tried before
    anything is trained. `view_of` makes an estimator that predicts from raw scores.
    """
    if scoring is None:
        return None

    def score(logits_NK: NDArray[np.float32]) -> float:
        view = view_of(logits_NK)
        scorer = check_scoring(view, scoring)
        options = {}
        # scikit-learn's scorers take weights for any metric and fail with one that doesn't.
        metric = getattr(scorer, "_score_func", scorer)
        if held_out.sample_weight is not None and "sample_weight" in signature(metric).parameters:
            options = {"sample_weight": held_out.sample_weight}
        return float(scorer(view, held_out.X, held_out.y, **options))

    # What scikit-learn advises, to pass `labels` or the like to a metric, can't be done here.
    cure = "Choose another `scoring`."
    classes = getattr(view_of(truth_NK), "classes_", None)
    if isinstance(classes, list):
        cure = (
            "scikit-learn's metrics score one column: of several, pass a callable(estimator, X, y) "
            "that scores the columns of its predictions, or scoring=None, the loss."
        )
    elif held_out.y.ndim == 1 and classes is not None:
        missing = np.setdiff1d(classes, held_out.y).tolist()
        if missing:
            cure = (
                f"They have none of the classes {missing[:10]}: raise `validation_fraction` (a "
                "class of one row is never held out), pass X_val and y_val with rows of every "
                "class, or choose another `scoring`."
            )
    try:  # metrics of a model that knows nothing yet are ill-defined
        best = score(truth_NK)
    except (TypeError, ValueError) as error:
        raise InvalidTextError(
            f"`scoring` must be able to score the held-out rows. {scoring!r} can't: "
            f"{str(error).rstrip('.')}. {cure}"
        ) from error
    if np.isnan(best):
        raise InvalidTextError(
            f"`scoring` must give a number on the held-out rows. It gives {best} even where all of "
            f"them are predicted right. {cure}"
        )
    return score


def make_callbacks(estimator: Any, data: FitData, network: TextNetwork) -> list[TrainingCallback]:
    """Return what shows a fit and, if somebody observes it, what they return for it."""
    callbacks: list[TrainingCallback] = estimator._training_callbacks()
    observer = _OBSERVER.get()
    observing = observer and observer(estimator, lambda: fitted_view(estimator, data, network))
    return [*callbacks, observing] if observing else callbacks


# Asked by every fit that begins: the estimator, and what makes a copy of it that is fitted with
# the weights as they stand. Returns a callback, or None for a fit that it has no interest in.
FitObserver = Callable[[Any, Callable[[], Any]], TrainingCallback | None]

_OBSERVER: ContextVar[FitObserver | None] = ContextVar("skgpt_fit_observer", default=None)


@contextmanager
def fit_observer(observer: FitObserver) -> Iterator[None]:
    """Let a surrounding search observe the fits of this thread, even inside nested Pipelines."""
    token = _OBSERVER.set(observer)
    try:
        yield
    finally:
        _OBSERVER.reset(token)


def begin_callbacks(
    estimator: Any,
    inputs: FitInputs,
    data: FitData,
    network: TextNetwork,
    n_epochs: int,
    previous: FittedModel | None = None,
) -> SklearnCallbacks:
    """Begin the fit for scikit-learn's callbacks."""
    own_held_out = inputs.X_val is None and len(data.split.held_out) > 0

    def rows(values: Any) -> Any:
        return rows_of(values, data.split.train) if own_held_out else values

    def metadata() -> dict[str, Any] | None:
        # Weights only, like scikit-learn's own: a ScoringMonitor passes all on to its metrics.
        if inputs.sample_weight is None:
            return None
        return {"sample_weight": data.sample_weight[data.split.train]}

    def snapshot(history: list[EpochRecord]) -> dict[str, Any]:
        scores = [r["validation_score"] for r in history if "validation_score" in r]
        best = 0 if np.isnan(scores).all() else int(np.nanargmax(scores)) + 1
        run = FitResult(history, scores, best, None)
        view = copy.copy(estimator)
        view._set_fitted(model_of_run(estimator, data, network, run, previous).copy())
        return vars(view)

    offer = {"X": lambda: rows(inputs.X), "y": lambda: rows(inputs.y), "metadata": metadata}
    return SklearnCallbacks(estimator, n_epochs, offer, snapshot)


# The record.


def model_of_run(
    estimator: Any,
    data: FitData,
    network: TextNetwork,
    run: FitResult | None = None,
    previous: FittedModel | None = None,
) -> FittedModel:
    """Return what a run came to, behind what a previous one did; None stands for no epoch."""
    run = run or FitResult([], [], 0, None)
    before = [] if previous is None else previous.history
    records: list[Any] = [{**r, "epoch": len(before) + r["epoch"]} for r in run.history]
    model: FittedModel = estimator._kind(
        network=network,
        **data.target.meaning,
        template=data.template,
        max_length=estimator.max_length,
        long_text=estimator.long_text,
        device=estimator.device,
        precision=estimator.precision,
        split_seed=data.split_seed,
        fitted_by=type(estimator).__name__,
        trained_on=count_rows(data.target, data.split.train, previous),
        columns=data.columns,
        history=[*before, *records],
        validation_scores=run.validation_scores,
        best_iteration=run.best_iteration,
    )
    return model


def count_rows(
    target: AnyTarget, rows: NDArray[np.int64], previous: FittedModel | None
) -> TrainedOn | None:
    """Count the rows that are trained on, those of previous calls included; None if unknown."""
    before: TrainedOn | None = {"rows": 0, "labels": {}}
    if previous is not None:
        before = previous.trained_on
    if before is None:
        return None
    counts, already = target.count(rows), before["labels"]
    return {
        "rows": before["rows"] + len(rows),
        "labels": {name: already.get(name, 0) + n for name, n in counts.items()},
    }


def fitted_view(
    estimator: Any,
    data: FitData,
    network: TextNetwork,
    held_out_scores: NDArray[np.float32] | None = None,
) -> Any:
    """Return a copy of the estimator, fitted with the network in training.

    It need not run the network over the held-out rows if their raw scores are passed.
    """
    model = model_of_run(estimator, data, network)
    if held_out_scores is not None and data.held_out is not None:
        model = replace(model, known_scores=(data.held_out.X, held_out_scores))
    view = copy.copy(estimator)
    view._set_fitted(model)
    return view


def calibrated(
    model: FittedClassifier, run: FitResult, data: FitData, verbose: int
) -> tuple[FittedClassifier, FitResult]:
    """Return the model with a temperature fitted on the held-out rows.

    Ctrl-C ends only this: the trained model is not lost by it.
    """
    assert data.held_out is not None and isinstance(data.target, Target)
    rows = data.split.held_out
    try:
        scores = model.of_outputs(model.raw_scores(data.held_out.X, verbose))
        found = [
            calibrate(
                part,
                output.truth(rows) > 0,
                data.sample_weight[rows],
                multilabel=model.multilabel,
            )
            for output, (_, part) in zip(data.target.outputs, scores, strict=True)
        ]
    except KeyboardInterrupt as error:
        return model, replace(run, interrupt=run.interrupt or error)
    return replace(model, calibration=found if model.multioutput else found[0]), run


# The checkpoint: all that a fit's result depends on, by names that a user knows.

# Parameters that a key describes by what they come to.
_RESOLVED = frozenset({"warm_start", "random_state", "device", "precision", "template"})


def open_checkpoint(
    estimator: Any,
    inputs: FitInputs,
    data: FitData,
    network: TextNetwork,
    seed: int,
    previous: FittedModel | None,
    limit: TimeLimit | None = None,
) -> AbstractContextManager[Checkpoint | None]:
    """Open the checkpoint of a fit for its length; None if `checkpoint_dir` is.

    With `random_state=None`, a checkpoint that is there brings its own seed.
    """
    if estimator.checkpoint_dir is None:
        return nullcontext()
    root = as_folder(estimator.checkpoint_dir, "checkpoint_dir").absolute()
    parameters = estimator.get_params(deep=False)
    left_out = WITHOUT_EFFECT | _RESOLVED
    key = {
        **{f"`{k}`": described(v) for k, v in parameters.items() if k not in left_out},
        **_describe_data(inputs, data, with_groups=holds_out(estimator)),
        "the model's weights": network.pretrained.fingerprint,
        "the model's tokenizer": digest([repr(network.pretrained.tokenizer.files()).encode()]),
        "`device`": network.device.type,
        "`precision`": str(network.dtype),
        "`random_state`": None if estimator.random_state is None else seed,
    }
    if limit is not None:
        key["what `max_seconds` leaves"] = [limit.n_epochs, network.spec.n_layers]
    if previous is not None:  # its weights: the new network's adapters may be drawn in this call
        key["the fitted weights that it starts from"] = _hash_learned(previous.network)
        key["the held-out rows"] = digest([data.split.held_out.tobytes()])
    return claimed_checkpoint(root, key, seed)


def _describe_data(inputs: FitInputs, data: FitData, *, with_groups: bool) -> dict[str, Any]:
    """Describe the rows. Which of them are held out follows from the rest."""
    groups = None
    if inputs.groups is not None and inputs.X_val is None and with_groups:
        groups = digest([group_codes(inputs.groups, len(data.target)).tobytes()])
    codes = data.target.codes
    return {
        "the texts": digest(
            json.dumps(part).encode() for column in data.cells for part in (len(column), *column)
        ),
        "`template`": [list(data.template.words), list(data.template.fields)],
        "the labels": [str(codes.dtype), list(codes.shape), digest([codes.tobytes()])],
        "the classes or units of y": described(data.target.plain_known),
        "the sample weights": digest([data.sample_weight.tobytes()]),
        "the rows of `X_val`": 0 if inputs.X_val is None else len(data.split.held_out),
        "the groups": groups,
    }


def _hash_learned(network: TextNetwork) -> str:
    tensors = {**network.learned, "offset": network.offset}
    return digest(
        piece
        for name, tensor in sorted(tensors.items())
        for piece in (name.encode(), tensor.detach().cpu().contiguous().numpy().data)
    )


# What the user hears of a fit.

# Warned of in this process already: each fold and candidate would warn again.
_WARNED: set[tuple[str, int]] = set()


def warn_of_cut_texts(
    estimator: str,
    max_length: int,
    n_cut: int,
    n_texts: int,
    hint: str = "",
    of: str = "of this fit",
) -> None:
    """Warn how many texts were cut, once in a process for each kind of estimator and length."""
    kind = (estimator, int(max_length))
    if not n_cut or kind in _WARNED:
        return
    warn_user(
        f"{n_cut} of the {n_texts} texts {of} are longer than "
        f"max_length={max_length} tokens and were cut at the end: raise max_length, "
        "or set long_text='windows' to have them read whole. This is said once, in a "
        f"cross-validation for its first fold's texts{hint}.",
        CutTextsWarning,
    )
    _WARNED.add(kind)  # only now: if warnings are errors, the next fit is to fail as well


def raise_if_interrupted(run: FitResult) -> None:
    """Let Ctrl-C, or an error that ended the run, go on up; the estimator is fitted."""
    if run.interrupt is None:
        return
    try:
        if isinstance(run.interrupt, KeyboardInterrupt):  # an error says it itself
            warn_user(
                f"This fit was interrupted after {len(run.history)} epochs. The estimator is "
                "fitted, as the last optimiser step left it.",
                InterruptedFitWarning,
            )
    finally:  # also if warnings are errors
        raise run.interrupt


def _what_was_cut(epochs: int, epochs_before: int, layers: int, layers_before: int) -> list[str]:
    said = []
    if layers < layers_before:
        said.append(f"{layers} of {layers_before} layers")
    if epochs < epochs_before:
        said.append(f"{epochs} of {epochs_before} epochs")
    return said


def note_time_limit(
    run: FitResult, limit: TimeLimit | None, network: TextNetwork, config: TrainingConfig
) -> None:
    """Write into the last epoch's record by what the time limit made the fit shorter."""
    if limit is None or not run.history:
        return
    said = _what_was_cut(
        limit.n_epochs, limit.n_epochs_before, network.spec.n_layers, limit.n_layers_before
    )
    if run.out_of_time:
        said.append(f"{run.n_steps} of the {config.n_steps} steps of these")
    if said:
        run.history[-1]["cut_short"] = ", ".join(said)


def warn_of_time_limit(estimator: Any, run: FitResult) -> None:
    """Warn by what the time limit made the fit shorter."""
    if run.history and (said := run.history[-1].get("cut_short")):
        warn_user(
            f"max_seconds={estimator.max_seconds:g} made this fit shorter: {said}. Give it more "
            "time for a better model.",
            TimeLimitWarning,
        )


# Of the first epoch's loss. The last of several epochs with a falling rate takes off a few percent.
_STEEP = 0.15


def warn_if_still_falling(run: FitResult, config: TrainingConfig) -> None:
    """Warn if the last epoch took much off the loss, unless something else ended the fit."""
    losses = [record["loss"] for record in run.history[config.head_first_epochs :]]
    if len(losses) < 2 or len(run.history) < config.n_epochs or run.out_of_time:
        return
    fell = (losses[-2] - losses[-1]) / losses[0]
    if fell > _STEEP:
        warn_user(
            f"This fit ended while its loss was still falling: the last of {len(losses)} epochs "
            f"took {fell:.0%} of the first one's loss off. Raise `max_epochs`, or leave it at "
            "'auto'.",
            ShortFitWarning,
        )


def warn_of_missing_scores(run: FitResult) -> None:
    """Warn in which epochs the scorer gave no number."""
    if epochs := [n for n, score in enumerate(run.validation_scores, 1) if np.isnan(score)]:
        warn_user(
            f"`scoring` gave no number for the held-out rows after epochs {epochs} of "
            f"{len(run.history)}, which counted as no improvement. A metric that needs every class "
            "may find too few rows there: raise `validation_fraction`, pass X_val and y_val, or "
            "choose another `scoring`.",
            MissingScoreWarning,
        )


def warn_of_skipped_steps(run: FitResult) -> None:
    """Warn how many steps were skipped; the fit has ended well otherwise."""
    if run.n_skipped:
        warn_user(
            f"{run.n_skipped} optimiser steps were skipped, as their loss or gradient was not "
            "finite: the model learned nothing from their texts. `history_` says in which epochs. "
            "Lower `learning_rate`, set `max_grad_norm=1.0`, or use precision='fp32'.",
            SkippedStepsWarning,
        )
