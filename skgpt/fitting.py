"""What a fit is given, checked whole before anything is trained.

What every estimator's parameters may be: one table for the check, the message and the tests.

From an estimator's parameters to the plan of a training run.

`scoring` on the held-out rows, from raw scores that the network has computed anyway.

Going on from a fitted network: what must be as it was, and where old classes go.

Words about `max_length`: one larger than the model's, and texts that are longer.

How a fit can end otherwise than well, and what its user is told.

How what is around a fit, such as a search, watches it, however deep in Pipelines it lies.

Which checkpoint is a fit's own: all that its result depends on, by names that a user knows.
"""

import copy
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from inspect import signature
from numbers import Integral, Real
from os import PathLike
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import check_scoring, get_scorer_names
from sklearn.utils.validation import validate_data

from skgpt._files import as_folder
from skgpt._sklearn import Interval, StrOptions
from skgpt.data.inputs import TextColumns, check_texts, check_weight, rows_of
from skgpt.data.splits import Split, all_rows, given_rows, group_codes, hold_out
from skgpt.data.targets import Target, join
from skgpt.data.template import Template, parse_template
from skgpt.data.tokenization import TextIds
from skgpt.device import prefix_budget
from skgpt.exceptions import (
    ContinuationError,
    CutTextsWarning,
    InterruptedFitWarning,
    InvalidTextError,
    ModelNotSupportedError,
    SkippedStepsWarning,
    warn_user,
)
from skgpt.lora import LoRA
from skgpt.network.features import disk_room
from skgpt.network.lora import AdapterSpec
from skgpt.network.microbatches import token_budget
from skgpt.network.network import POOLINGS, NetworkSpec, TextNetwork
from skgpt.pretrained.loading import PretrainedModel
from skgpt.run_key import described, digest, encoded
from skgpt.training.callbacks import Monitor
from skgpt.training.checkpoint import Checkpoint, claimed_checkpoint
from skgpt.training.config import TrainingPlan, resolve_epochs
from skgpt.training.early_stopping import Judge
from skgpt.training.loop import FitResult

COLUMN_ATTRIBUTES = ("n_features_in_", "feature_names_in_")

Encode = Callable[[Any, int, Any, str], Target]  # y, rows, known classes or None, y's name


@dataclass(frozen=True)
class Given:
    """What the caller of `fit` passed, as it came.

    Parameters
    ----------
    X, y, sample_weight : array-like
    X_val, y_val, sample_weight_val : array-like or None
    groups : array-like or None
    """

    X: Any
    y: Any
    sample_weight: Any = None
    X_val: Any = None
    y_val: Any = None
    sample_weight_val: Any = None
    groups: Any = None


@dataclass(frozen=True)
class HeldOut:
    """The held-out rows as a scorer is to be given them: X of the user's kind, y an array."""

    X: Any
    y: Any
    sample_weight: NDArray[np.float64] | None


@dataclass(frozen=True)
class FitData:
    """Checked data of one fit: the rows to train on, and behind them those passed as `X_val`.

    Parameters
    ----------
    columns : list of list of str
        The texts, column by column.
    template : Template
    target : Target
    sample_weight : ndarray of shape (n,)
    split : Split
    held_out : HeldOut or None
    attributes : dict
        ``n_features_in_`` and ``feature_names_in_``, as far as X says them.
    split_seed : int
        What the held-out rows were, or would be, drawn from.
    """

    columns: list[list[str]]
    template: Template
    target: Target
    sample_weight: NDArray[np.float64]
    split: Split
    held_out: HeldOut | None
    attributes: dict[str, Any]
    split_seed: int


def check_fit_data(
    estimator: Any,
    given: Given,
    encode: Encode,
    *,
    classes: Any = None,
    columns: dict[str, Any] | None = None,
    seed: int,
) -> FitData:
    """Check everything that a fit is given, and draw what it holds out.

    Parameters
    ----------
    estimator : BaseGPTText
        For its parameters; nothing is set on it.
    given : Given
    encode : callable
        Checks y.
    classes : ndarray, default=None
        The classes, where they are known already.
    columns : dict, default=None
        `COLUMN_ATTRIBUTES` of an earlier call, which X must match.
    seed : int
        Of the rows to hold out.

    Returns
    -------
    data : FitData

    Raises
    ------
    ValueError
        If something is not as `fit` describes it.
    """
    texts = check_texts(given.X, estimator=estimator)
    attributes = column_attributes(estimator, texts)
    if columns is not None:
        check_columns_match(columns, texts, estimator=estimator)
        attributes = columns
    n = len(texts)
    template = parse_template(estimator.template, len(texts.cells), texts.names)
    target = encode(given.y, n, classes, "y")
    weight = check_weight(given.sample_weight, n)
    data = FitData(texts.cells, template, target, weight, all_rows(n), None, attributes, seed)
    if given.X_val is not None:
        return _with_validation_data(data, estimator, given, encode)
    for name in ("y_val", "sample_weight_val"):
        if getattr(given, name) is not None:
            raise InvalidTextError(f"`{name}` belongs to `X_val`, which is None: pass both.")
    return _with_held_out_rows(data, estimator, given) if estimator._holds_out else data


def trained_on(
    data: FitData, goes_on_from: Mapping[str, Any] | None = None
) -> dict[str, Any] | None:
    """Count the rows that are trained on, and those of each label.

    Parameters
    ----------
    data : FitData
    goes_on_from : mapping, default=None
        The attributes of an estimator whose calls before are counted too, if there were any.

    Returns
    -------
    counts : dict or None
        ``rows``, and ``labels``: for each label, as text, its rows. None if the calls before
        didn't count theirs, as those in older pickles.
    """
    before: Mapping[str, Any] | None = {"rows": 0, "labels": {}}
    if goes_on_from is not None and "_fitted_with" in goes_on_from:
        before = goes_on_from["_fitted_with"].get("trained_on")
    if before is None:
        return None
    codes = data.target.codes[data.split.train]
    if data.target.is_multilabel:
        each = codes.sum(axis=0)
    else:
        each = np.bincount(codes, minlength=data.target.width)
    names = map(str, data.target.classes.tolist())
    return {
        "rows": before["rows"] + len(codes),
        "labels": {
            name: before["labels"].get(name, 0) + int(n)
            for name, n in zip(names, each, strict=True)
        },
    }


def _with_validation_data(data: FitData, estimator: Any, given: Given, encode: Encode) -> FitData:
    if given.y_val is None:
        raise InvalidTextError("`X_val` needs its labels, `y_val`, which is None: pass both.")
    with _about("X_val"):
        texts = check_texts(given.X_val, estimator=estimator)
    check_columns_match(data.attributes, texts, of="X_val", estimator=estimator)
    n, n_val = len(data.columns[0]), len(texts)
    target = encode(given.y_val, n_val, data.target.classes, "y_val")
    with _about("sample_weight_val"):
        weight = check_weight(given.sample_weight_val, n_val)
    given_weight = None if given.sample_weight_val is None else weight
    return replace(
        data,
        columns=[a + b for a, b in zip(data.columns, texts.cells, strict=True)],
        target=join(data.target, target),
        sample_weight=np.concatenate([data.sample_weight, weight]),
        split=given_rows(n, n_val),
        held_out=HeldOut(given.X_val, target.labels, given_weight),
    )


@contextmanager
def _about(name: str) -> Iterator[None]:
    """Say in an error of a check that it speaks of another argument than usual."""
    try:
        yield
    except ValueError as error:
        raise InvalidTextError(f"In `{name}`: {error}") from error


def _with_held_out_rows(data: FitData, estimator: Any, given: Given) -> FitData:
    # A row that weighs nothing is as good as left out, and no use among the held-out rows.
    weighty = np.flatnonzero(data.sample_weight > 0)
    groups = None
    if given.groups is not None:
        groups = group_codes(given.groups, len(data.target))[weighty]
    strata = data.target.codes[weighty]
    fraction, seed = estimator.validation_fraction, data.split_seed
    held = weighty[hold_out(strata, fraction, seed, groups).held_out]
    return replace(
        data,
        split=Split(np.setdiff1d(np.arange(len(data.sample_weight)), held), held),
        held_out=HeldOut(
            rows_of(given.X, held),
            data.target.labels[held],
            None if given.sample_weight is None else data.sample_weight[held],
        ),
    )


def column_attributes(estimator: Any, texts: TextColumns) -> dict[str, Any]:
    """Return what scikit-learn would set for the columns of X, on a copy that is thrown away."""
    names = texts.names or []
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise InvalidTextError(
            f"The columns of X must have different names. Several are called {twice[0]!r}: rename "
            "them, or pass X.to_numpy()."
        )
    probe = copy.copy(estimator)
    for name in COLUMN_ATTRIBUTES:
        probe.__dict__.pop(name, None)
    validate_data(probe, texts.X, skip_check_array=True)
    return {name: probe.__dict__[name] for name in COLUMN_ATTRIBUTES if name in probe.__dict__}


def columns_of_fit(fitted: Any) -> dict[str, Any]:
    """Return those of `COLUMN_ATTRIBUTES` that an estimator has."""
    return {name: getattr(fitted, name) for name in COLUMN_ATTRIBUTES if hasattr(fitted, name)}


def check_columns_match(
    fitted: Mapping[str, Any], texts: TextColumns, *, of: str = "X", estimator: Any
) -> None:
    """Check that X has the columns of the fit; one column and a plain list are the same.

    Parameters
    ----------
    fitted : mapping
        Holds `COLUMN_ATTRIBUTES`, as far as the fitted X said them.
    texts : TextColumns
    of : str
        Its name, for error messages.
    estimator : estimator
        Named in scikit-learn's error messages.

    Raises
    ------
    ValueError
        If the number of columns or their names differ.
    """
    expected, found = fitted.get("n_features_in_"), texts.n_features
    if found is not None and expected is not None:
        probe = copy.copy(estimator)
        probe.__dict__.update(fitted)
        validate_data(probe, texts.X, reset=False, skip_check_array=True)
    elif (found or 1) != (expected or 1):
        raise InvalidTextError(
            f"{of} must have as many columns as at fit: {expected or 'one text per row'}. Got "
            f"{found or 'one text per row'}."
        )


SHARED_CONSTRAINTS: dict[str, list[Any]] = {
    "model": [str],
    "revision": [str, None],
    "n_layers": [Interval(Integral, 1, None, closed="left"), None],
    "trainable_layers": [Interval(Integral, 0, None, closed="left"), StrOptions({"all"})],
    "lora": [LoRA, None],
    "head_first_epochs": [Interval(Integral, 0, None, closed="left")],
    "pooling": [StrOptions({"auto", *POOLINGS})],
    "template": [str, None],
    "max_length": [Interval(Integral, 2, None, closed="left")],
    "long_text": [StrOptions({"cut", "windows"})],
    "max_epochs": [Interval(Integral, 1, None, closed="left"), StrOptions({"auto"})],
    "batch_size": [Interval(Integral, 1, None, closed="left")],
    "learning_rate": [Interval(Real, 0, None, closed="neither")],
    "head_learning_rate": [Interval(Real, 0, None, closed="neither")],
    "weight_decay": [Interval(Real, 0, None, closed="left")],
    "warmup_ratio": [Interval(Real, 0, 1, closed="both")],
    "lr_schedule": [StrOptions({"linear", "cosine", "constant"})],
    "max_grad_norm": [Interval(Real, 0, None, closed="neither"), None],
    "early_stopping": ["boolean"],
    "validation_fraction": [Interval(Real, 0, 1, closed="neither")],
    "n_iter_no_change": [Interval(Integral, 1, None, closed="left")],
    "tol": [Interval(Real, 0, None, closed="left")],
    "scoring": [StrOptions(set(get_scorer_names())), callable, None],
    "warm_start": ["boolean"],
    "device": [str],
    "precision": [StrOptions({"auto", "bf16", "fp16", "fp32"})],
    "store_base": ["boolean", StrOptions({"auto"})],
    "checkpoint_dir": [str, PathLike, None],
    "random_state": ["random_state"],
    "verbose": [Interval(Integral, 0, None, closed="left"), bool],
}


def draw_seed(random_state: Any) -> int:
    """Draw the one integer that all randomness of a fit follows from.

    Parameters
    ----------
    random_state : int, RandomState instance or None
        An int is used as it is given, so nothing global is touched. None draws from numpy's global
        generator, as everywhere in scikit-learn.

    Returns
    -------
    seed : int
    """
    if isinstance(random_state, Integral):
        return int(random_state)
    generator = np.random.mtrand._rand if random_state is None else random_state
    return int(generator.randint(np.iinfo(np.int32).max))


def seed_to_come(random_state: Any) -> int:
    """Return the integer that `draw_seed` would draw next, and leave the generator as it is.

    Parameters
    ----------
    random_state : int, RandomState instance or None
        None stands for a generator that others draw from as well: any integer will do, 0.

    Returns
    -------
    seed : int
    """
    return 0 if random_state is None else draw_seed(copy.deepcopy(random_state))


def plan_of_fit(estimator: Any, network: TextNetwork, n_rows: int, seed: int) -> TrainingPlan:
    """Return the plan of a whole fit.

    Parameters
    ----------
    estimator : BaseGPTText
        For its parameters.
    network : TextNetwork
        About to be trained.
    n_rows : int
        To train on.
    seed : int
    """
    head_first = int(estimator.head_first_epochs)
    n_epochs = resolve_epochs(estimator.max_epochs, n_rows, estimator.batch_size)
    return TrainingPlan(
        n_rows=n_rows,
        n_epochs=head_first + n_epochs,
        batch_size=estimator.batch_size,
        learning_rate=estimator.learning_rate,
        head_learning_rate=estimator.head_learning_rate,
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


def plan_of_part(
    estimator: Any, network: TextNetwork, n_rows: int, seed: int, first_epoch: int
) -> TrainingPlan:
    """Return the plan of one call of `partial_fit`: a pass at a constant rate.

    Parameters
    ----------
    estimator, network, n_rows, seed
        As in `plan_of_fit`.
    first_epoch : int
        Passes that earlier calls have made.
    """
    return replace(
        plan_of_fit(estimator, network, n_rows, seed),
        n_epochs=1,
        warmup_ratio=0.0,
        schedule="constant",
        first_epoch=first_epoch,
        head_first_epochs=0,
    )


def make_judge(
    scoring: Any, held_out: HeldOut, truth_NK: NDArray[np.float32], fitted: Callable[[], Any]
) -> Judge | None:
    """Turn the `scoring` parameter into a function of the held-out rows' raw scores.

    Parameters
    ----------
    scoring : str, callable or None
        As for scikit-learn's `check_scoring`; None watches the loss instead. A scorer that takes
        no `sample_weight` isn't given any.
    held_out : HeldOut
    truth_NK : ndarray of shape (n_held_out, n_outputs)
        Raw scores that say what is true of the held-out rows.
    fitted : callable
        Makes a copy of the estimator that is fitted with the network in training.

    Returns
    -------
    judge : callable or None

    Raises
    ------
    InvalidTextError
        If the scorer fails, or gives no number, even where everything is predicted right: now,
        before anything is trained.
    """
    if scoring is None:
        return None

    def judge(logits_NK: NDArray[np.float32]) -> float:
        # The network has run over these rows already: predictions follow from its raw scores.
        view = fitted()
        run = view._scores
        view._scores = lambda X: logits_NK if X is held_out.X else run(X)
        try:
            scorer = check_scoring(view, scoring)
            options = {}
            if held_out.sample_weight is not None and _takes_weights(scorer):
                options = {"sample_weight": held_out.sample_weight}
            return float(scorer(view, held_out.X, held_out.y, **options))
        finally:
            del view._scores  # else it would refer to itself, and keep the network alive

    try:  # with right predictions, since metrics of a model that knows nothing are ill-defined
        best = judge(truth_NK)
    except (TypeError, ValueError) as error:
        raise InvalidTextError(
            f"`scoring` must be able to score the held-out rows. {scoring!r} can't: {error}"
        ) from error
    if np.isnan(best):
        raise InvalidTextError(
            f"`scoring` must give a number on the held-out rows. It gives {best} even where all of "
            "them are predicted right: a metric that needs every class finds too few rows there; "
            "raise `validation_fraction`, pass X_val and y_val, or choose another `scoring`."
        )
    return judge


def _takes_weights(scorer: Any) -> bool:
    # scikit-learn's scorers take weights for any metric and fail with one that doesn't.
    return "sample_weight" in signature(getattr(scorer, "_score_func", scorer)).parameters


def check_same_model(estimator: Any, network: TextNetwork) -> None:
    """Check that the parameters still name the model that was fitted.

    Raises
    ------
    ContinuationError
        If `model` or `revision` has another value.
    """
    pretrained = network.pretrained
    for name, then in {"model": pretrained.model, "revision": pretrained.revision}.items():
        now = getattr(estimator, name)
        if now != then:
            raise _other(name, then, now)


def check_same_shape(
    now: NetworkSpec, then: NetworkSpec, *, may_learn_more: bool, may_have_more: bool
) -> None:
    """Check that a network of one spec can take over what one of another has learned.

    Parameters
    ----------
    now, then : NetworkSpec
    may_learn_more : bool
        Whether layers that were frozen may learn now (their optimiser has no moments).
    may_have_more : bool
        Whether there may be more outputs.

    Raises
    ------
    ContinuationError
        If they differ otherwise; the message names the parameter.
    """
    for name in ("n_layers", "pooling"):
        if getattr(now, name) != getattr(then, name):
            raise _other(name, getattr(then, name), getattr(now, name))
    if _form(now) != _form(then):
        raise _other("lora", _said(then.lora), _said(now.lora))
    if now.trainable_layers != then.trainable_layers and not (
        may_learn_more and _learns(now) > _learns(then)
    ):
        more = (
            "More layers may learn than before, not fewer."
            if may_learn_more
            else "With warm_start=True, fit may go on with more layers than before."
        )
        raise _other("trainable_layers", then.trainable_layers, now.trainable_layers, more)
    if now.n_outputs != then.n_outputs and not may_have_more:
        raise ContinuationError(
            f"The fitted model tells {then.n_outputs} labels apart. Got {now.n_outputs}: set "
            "warm_start=False to start anew."
        )


def _form(spec: NetworkSpec) -> AdapterSpec | None:
    """Return what adapters are but for their dropout, which leaves nothing behind."""
    return None if spec.lora is None else replace(spec.lora, dropout=0.0)


def _said(spec: AdapterSpec | None) -> LoRA | None:
    """Return adapters as the user says them."""
    if spec is None:
        return None
    whole = float(spec.alpha).is_integer()  # as it is usually written
    return LoRA(**{**vars(spec), "alpha": int(spec.alpha) if whole else spec.alpha})


def _learns(spec: NetworkSpec) -> float:
    return np.inf if spec.trainable_layers == "all" else spec.trainable_layers


def _other(name: str, then: Any, now: Any, more: str = "") -> ContinuationError:
    return ContinuationError(
        f"To go on from a fitted model, `{name}` must be as it was, {then!r}. Got {now!r}: set it "
        f"back, or call fit with warm_start=False to start anew. {more}".rstrip()
    )


def places_of(old: NDArray[Any], new: NDArray[Any]) -> NDArray[np.int64]:
    """Return where each old class stands among the new ones.

    Raises
    ------
    ContinuationError
        If one is missing.
    """
    place = {label: i for i, label in enumerate(new.tolist())}
    missing = [label for label in old.tolist() if label not in place]
    if missing:
        raise ContinuationError(
            f"`classes` must hold every class that was fitted: {old.tolist()}. {missing} are "
            f"missing from {new.tolist()}."
        )
    return np.array([place[label] for label in old.tolist()], dtype=np.int64)


# What was said in this process already: each fold and candidate would say it again.
_SAID: set[tuple[str, int]] = set()
_SAYING = threading.Lock()


def check_length(max_length: int, pretrained: PretrainedModel) -> None:
    """Raise ModelNotSupportedError if a model has not so many positions."""
    limit = pretrained.max_positions
    if limit is not None and max_length > limit:
        raise ModelNotSupportedError(
            f"`max_length` must be at most {limit}, the positions that {pretrained.model!r} has. "
            f"Got {max_length}."
        )


def warn_of_cut_texts(estimator: Any, tokens: TextIds) -> None:
    """Say how many of a fit's texts were cut, once in a process: nobody learns from how they end.

    Once for each kind of estimator and each `max_length`, that is: who raises it and hears nothing
    would take it for enough.

    Parameters
    ----------
    estimator : BaseGPTText
    tokens : Tokens or Windows
        Of all texts that the fit was given.
    """
    if not tokens.n_cut:
        return
    kind = (type(estimator).__name__, int(estimator.max_length))
    with _SAYING:
        if kind in _SAID:
            return
        warn_user(
            f"{tokens.n_cut} of {len(tokens)} texts are longer than "
            f"max_length={estimator.max_length} tokens and were cut at the end: raise max_length, "
            "or set long_text='windows' to have them read whole. This is said once.",
            CutTextsWarning,
        )
        _SAID.add(kind)  # only now: where warnings are errors, the next fit is to fail as well


def warn_and_raise(result: FitResult) -> NoReturn:
    """Let what ended a fit early go on up; the estimator has been given its attributes.

    Parameters
    ----------
    result : FitResult
        Of a fit with an `interrupt`.
    """
    assert result.interrupt is not None
    try:
        if isinstance(result.interrupt, KeyboardInterrupt):  # another says it itself
            warn_user(
                f"This fit was interrupted after {len(result.history)} epochs. The estimator is "
                "fitted, as the last optimiser step left it.",
                InterruptedFitWarning,
            )
    finally:  # also where warnings are errors
        raise result.interrupt


def warn_of_skipped_steps(result: FitResult) -> None:
    """Say how many steps were skipped, if any were; the fit has ended well otherwise.

    Parameters
    ----------
    result : FitResult
    """
    if result.n_skipped:
        warn_user(
            f"{result.n_skipped} optimiser steps were skipped, as their loss or gradient was not "
            "finite: the model learned nothing from their texts. `history_` says in which epochs. "
            "Lower `learning_rate`, set `max_grad_norm=1.0`, or use precision='fp32'.",
            SkippedStepsWarning,
        )


# Asked by every fit that begins: the estimator, and what makes a copy of it that is fitted with
# the weights as they stand. It returns a monitor, or None for a fit that it has no interest in.
Watcher = Callable[[Any, Callable[[], Any]], Monitor | None]

_WATCHER: ContextVar[Watcher | None] = ContextVar("skgpt_watcher", default=None)


@contextmanager
def watched_by(watcher: Watcher) -> Iterator[None]:
    """Have the fits in the body watched: those of this thread, not of others.

    Parameters
    ----------
    watcher : callable
        See `Watcher`. The copy that it is offered shares the network in training: it predicts with
        the weights as they are when it is asked.
    """
    token = _WATCHER.set(watcher)
    try:
        yield
    finally:
        _WATCHER.reset(token)


def monitors_from_outside(estimator: Any, fitted: Callable[[], Any]) -> list[Monitor]:
    """Return the monitor of what is around a fit, if there is one.

    Parameters
    ----------
    estimator : BaseGPTText
        About to be trained.
    fitted : callable
        Makes a copy of it that is fitted with the network in training.
    """
    watcher = _WATCHER.get()
    monitor = None if watcher is None else watcher(estimator, fitted)
    return [] if monitor is None else [monitor]


# Those that change nothing, and those of which what they come to is asked for instead.
_NOT_ASKED = frozenset(
    {"verbose", "checkpoint_dir", "store_base", "warm_start", "random_state"}
    | {"device", "precision", "template"}
)


@contextmanager
def checkpoint_of(
    estimator: Any, given: Given, data: FitData, network: TextNetwork, seed: int, *, goes_on: bool
) -> Iterator[Checkpoint | None]:
    """Have the checkpoint of a fit for its length; None where `checkpoint_dir` is.

    Parameters
    ----------
    estimator : BaseGPTText
        Nothing is set on it.
    given : Given
    data : FitData
        Checked. Which of its rows are held out is looked at only where a fit goes on: otherwise
        that follows from the rest.
    network : TextNetwork
        About to be trained.
    seed : int
        Of this call; where `random_state` is None, a checkpoint that is there has its own.
    goes_on : bool
        Whether the network has learned something already.

    Yields
    ------
    checkpoint : Checkpoint or None

    Raises
    ------
    InvalidArgumentError
        If `checkpoint_dir` names nothing.
    StorageError
        If the folder can't be written to, or what is there is damaged.
    ContinuationError
        If what is there belongs to another fit; the message names what differs.
    """
    if estimator.checkpoint_dir is None:
        yield None
        return
    root = as_folder(estimator.checkpoint_dir, "checkpoint_dir").absolute()
    belongs_to = {
        **_of_parameters(estimator),
        **_of_data(estimator, given, data),
        **_of_network(network),
        **(_of_fitted(estimator._network, data) if goes_on else {}),
        "`random_state`": None if estimator.random_state is None else seed,
    }
    with claimed_checkpoint(root, belongs_to, seed) as checkpoint:
        yield checkpoint


def _of_parameters(estimator: Any) -> dict[str, Any]:
    parameters = estimator.get_params(deep=False)
    return {f"`{k}`": described(v) for k, v in parameters.items() if k not in _NOT_ASKED}


def _of_data(estimator: Any, given: Given, data: FitData) -> dict[str, Any]:
    groups = None
    if given.groups is not None and given.X_val is None and estimator._holds_out:
        groups = digest([group_codes(given.groups, len(data.target)).tobytes()])
    codes = data.target.codes
    return {
        "the texts": digest(encoded(data.columns)),
        "`template`": [list(data.template.words), list(data.template.fields)],
        "the labels": [str(codes.dtype), list(codes.shape), digest([codes.tobytes()])],
        "the classes": described(data.target.classes.tolist()),
        "the sample weights": digest([data.sample_weight.tobytes()]),
        "the rows of `X_val`": 0 if given.X_val is None else len(data.split.held_out),
        "the groups": groups,
    }


def _of_network(network: TextNetwork) -> dict[str, Any]:
    return {
        "the model's weights": network.pretrained.fingerprint,
        "the model's tokenizer": digest([repr(network.pretrained.tokenizer.files()).encode()]),
        "`device`": network.device.type,
        "`precision`": str(network.dtype),
    }


def _of_fitted(network: TextNetwork, data: FitData) -> dict[str, Any]:
    """Describe what is gone on from: the fitted network, and the held-out rows as it had them.

    It is not the new network that is asked, whose adapters may have been drawn in this call.
    """
    return {
        "the fitted weights that it starts from": _learned(network),
        "the held-out rows": digest([data.split.held_out.tobytes()]),
    }


def _learned(network: TextNetwork) -> str:
    tensors = {**network.learnable, "head": network.head.weight}
    return digest(
        piece
        for name, tensor in sorted(tensors.items())
        for piece in (name.encode(), tensor.detach().cpu().contiguous().numpy().data)
    )
