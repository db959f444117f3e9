"""GPTZeroShotClassifier: a pretrained GPT tells classes apart by their names, without training."""

import copy
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_softmax, logsumexp, softmax
from sklearn.base import ClassifierMixin
from sklearn.utils.validation import check_is_fitted

from skgpt._base import SHARED_CONSTRAINTS, BaseTextModel
from skgpt._sklearn import StrOptions, fit_context
from skgpt.caching import predicting
from skgpt.data.inputs import find_columns
from skgpt.data.targets import check_classes, encode_target
from skgpt.data.template import Template
from skgpt.data.tokenization import clean, tokenise_rows
from skgpt.device import (
    check_not_forked,
    own_settings,
    prefix_budget,
    resolve_device,
    resolve_precision,
)
from skgpt.exceptions import (
    CutTextsWarning,
    InvalidTextError,
    ModelNotFoundError,
    warn_user,
)
from skgpt.fitted_model import column_attributes, match_columns
from skgpt.fitting import check_max_length
from skgpt.label_words import (
    CONTENT_FREE,
    LabelWords,
    check_prompt,
    lay_out_prompt,
    mean_log_probabilities,
    tokens_of,
    words_of,
)
from skgpt.network.microbatches import explain_no_memory, token_budget
from skgpt.network.network import TextNetwork, build_network
from skgpt.network.phrases import Phrase, log_likelihoods
from skgpt.pretrained.language_head import LanguageHead, language_head
from skgpt.pretrained.loading import load_pretrained
from skgpt.pretrained.tokenizer import TextTokenizer
from skgpt.saving.state import (
    FORMAT,
    StoreBase,
    check_format,
    holds_base,
    pack_network,
    unpack_network,
    where_to_open,
)
from skgpt.tensor_files import State
from skgpt.training.callbacks import work_bar

Calibration = Literal["content-free", "batch"] | None
Floats = NDArray[np.float64]

# Fields of a PromptedModel that are saved as they are.
_PLAIN = (
    *("words", "phrases", "template", "calibration", "prior"),
    *("max_length", "device", "precision"),
)


@dataclass(frozen=True, eq=False)
class PromptedModel:
    """All that predictions by label words need; it is to a zero-shot fit what FittedModel is.

    `words` are the words or phrases of each class, and `phrases` their tokens behind the prompt.
    `layout` is the template over the columns of the fit's X, None if there was no X. `prior` is
    what content-free texts say of the classes, as logarithms. `placed` is the head on the network's
    device.
    """

    network: TextNetwork
    head: LanguageHead
    placed: Any
    classes: NDArray[Any]
    words: tuple[tuple[str, ...], ...]
    phrases: tuple[tuple[Phrase, ...], ...]
    template: str
    layout: Template | None
    calibration: Calibration
    prior: tuple[float, ...] | None
    max_length: int
    device: str
    precision: Any
    columns: Mapping[str, Any]
    fitted_by: str  # the estimator's class, for messages

    @property
    def outside(self) -> dict[str, Any]:
        """What goes into a pickle as it is: the classes may be dates, say."""
        return {"classes": self.classes}

    def attributes(self) -> dict[str, Any]:
        """Return the public attributes of a fitted estimator."""
        labels = self.classes.tolist()
        return {
            **self.columns,
            "classes_": self.classes,
            "label_words_": dict(zip(labels, map(list, self.words), strict=True)),
            "model_id_": self.network.pretrained.model,
            "device_": str(self.network.device),
            **({} if self.prior is None else {"prior_": np.array(self.prior)}),
        }

    def copy(self) -> "PromptedModel":
        """Return a copy; nothing was learned, so it shares the weights."""
        return replace(self, classes=self.classes.copy(), columns=copy.deepcopy(self.columns))

    @predicting()
    def scores(self, X: Any, verbose: int = 0) -> Floats:
        """Return the scores of texts, shape (n, n_classes): log-likelihoods less the prior."""
        texts = find_columns(X, estimator=self.fitted_by)
        layout = self.layout
        if layout is None:
            layout = lay_out_prompt(self.template, len(texts.columns), texts.names)
            places = layout.places(len(texts.columns))
        else:
            places = match_columns(self.columns, layout, texts, name=self.fitted_by)
        scores_NK = self.log_likelihoods(texts.read(places), layout, verbose)
        if self.calibration == "batch":
            return scores_NK - mean_log_probabilities(scores_NK)
        return scores_NK if self.prior is None else scores_NK - np.array(self.prior)

    def log_likelihoods(self, cells: list[list[str]], layout: Template, verbose: int = 0) -> Floats:
        """Return the log-likelihood of each class behind each prompt, shape (n, n_classes).

        A class of several phrases has the mean of their likelihoods.
        """
        network = self.network
        check_not_forked(network.device.type)
        encoder = network.pretrained.tokenizer.open_ended()
        phrases = [phrase for of_class in self.phrases for phrase in of_class]
        room = self.max_length - max(map(len, phrases))
        with work_bar(verbose) as bar:
            say = partial(bar.move, "predict, tokenise", unit=" texts")
            prompts = tokenise_rows(cells, layout, encoder, room, progress=say)
            if prompts.n_cut:
                warn_user(
                    f"{prompts.n_cut} of {len(prompts)} texts are longer than the "
                    f"max_length={self.max_length} tokens that they share with the template and "
                    "the label words, and were cut at the end: raise max_length.",
                    CutTextsWarning,
                )
            found_NP = log_likelihoods(
                network,
                self.placed,
                prompts,
                phrases,
                token_budget(network, learning=False),
                prefix_budget(network.device) // 4,  # a part: it may never be asked for again
                partial(bar.move, "predict"),
            )
        ends = np.cumsum([len(of_class) for of_class in self.phrases])[:-1]
        return np.stack(
            [
                logsumexp(part_NP, axis=1) - np.log(part_NP.shape[1])
                for part_NP in np.split(found_NP, ends, axis=1)
            ],
            axis=1,
        )

    def labels(self, scores_NK: Floats) -> NDArray[Any]:
        """Return the class of each row of scores."""
        return np.asarray(self.classes[scores_NK.argmax(axis=1)])


# --- The prompt and the words -----------------------------------------------------------------


def _check_lengths(
    words: Sequence[Sequence[str]],
    phrases: Sequence[Sequence[Phrase]],
    layout: Template,
    tokenizer: TextTokenizer,
    max_length: int,
) -> None:
    """Check that the template, a token for each field, and the longest phrase fit in a text."""
    sizes = {
        word: len(phrase)
        for of_words, of_phrases in zip(words, phrases, strict=True)
        for word, phrase in zip(of_words, of_phrases, strict=True)
    }
    longest = max(sizes, key=lambda word: sizes[word])
    n_words = len(tokenizer.encode([clean("".join(layout.words))])[0])
    needed = n_words + len(layout.fields) + len(tokenizer.prefix_ids) + sizes[longest]
    if needed > max_length:
        raise InvalidTextError(
            f"`max_length` must leave room for the template and the label words. The template's "
            f"own words take {n_words} tokens and {longest!r} takes {sizes[longest]}, so with one "
            f"for each field at least {needed} are needed. Got max_length={max_length}: raise it, "
            "or use fewer words."
        )


# --- The estimator ----------------------------------------------------------------------------


class GPTZeroShotClassifier(ClassifierMixin, BaseTextModel):
    r"""Classify texts by how likely a pretrained GPT finds each label's words behind a prompt.

    Nothing is trained, so no labelled text is needed: ``fit(None, ["negative", "positive"])``.

    Parameters
    ----------
    model : str or path-like, default="smollm2-135m"
        An alias, a Hugging Face hub id, a local transformers folder or a .gguf file: a decoder with
        its language-model head.
    revision : str or None, default=None
        Hub revision: a branch, tag or commit.
    label_words : dict or None, default=None
        The words of each label: a word, a phrase, or a list of them, whose probabilities are
        averaged. Labels that the fit doesn't meet may be there too. None takes ``str(label)``.
    template : str, default="{text}\nTopic:"
        The prompt: how the columns of a row become one text, as in ``"{title}\n{body}\nTopic:"``.
        ``{text}`` is the whole row, its columns joined with a blank line. It must end in words; a
        space is put between them and a label's where the language has one.
    calibration : {"content-free", "batch"} or None, default="content-free"
        What is taken off the scores, as a model likes some words better than others whatever the
        text. "content-free": what it says of the texts "N/A", "" and "[MASK]" [1]_. "batch": what
        it says of all rows that one call is given, in the mean [2]_: a prediction then depends on
        the other rows, and a single row tells nothing. None takes off nothing.
    max_length : int, default=256
        Tokens per text, template and label words included. Of a text that is too long the longest
        field is cut at its end, never the template's own words.
    device : str, default="auto"
        "auto" (a CUDA device if there is one, else the CPU), "cpu", "cuda", "cuda:1" or "mps".
    precision : {"auto", "bf16", "fp16", "fp32"}, default="auto"
        Precision of the trunk's arithmetic. "auto": bf16 where the hardware is fast at it, else
        fp32. The language-model head is always in fp32.
    store_base : "auto" or bool, default="auto"
        Whether a pickle or saved folder holds the base model and its tokenizer. "auto": only if
        they can't be fetched again by name, like those of a local folder. False: never; opening
        then needs the same model in the same place. You may set it on a fitted estimator.
    verbose : int, default=0
        0 is silent; 1 shows a progress bar of predictions that take more than a second.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
        The labels, sorted.
    label_words_ : dict
        The words that stand for each label, a list each.
    prior_ : ndarray of shape (n_classes,)
        What is taken off the scores, only with ``calibration="content-free"``: the logarithms of
        the mean probabilities of the content-free texts.
    model_id_ : str
        The model that was loaded.
    device_ : str
        The device that the model is on.
    n_features_in_ : int
        Number of columns of a 2-D X.
    feature_names_in_ : ndarray of shape (`n_features_in_`,)
        Names of the columns of X, if all of them are str.

    See Also
    --------
    GPTTextClassifier : Learns from labelled texts.

    Notes
    -----
    The score of a class is the sum of the log-probabilities of its phrase's tokens behind the
    prompt. A prompt runs once for all phrases of a single token, and once more for each beginning
    that longer ones have, so single words are fast.

    References
    ----------
    .. [1] Z. Zhao, E. Wallace, S. Feng, D. Klein and S. Singh, "Calibrate Before Use: Improving
       Few-Shot Performance of Language Models", ICML 2021.
    .. [2] H. Zhou et al., "Batch Calibration: Rethinking Calibration for In-Context Learning and
       Prompt Engineering", ICLR 2024.

    Examples
    --------
    >>> from skgpt import GPTZeroShotClassifier
    >>> clf = GPTZeroShotClassifier(template="Review: {text}\nSentiment:")
    >>> clf.fit(None, ["negative", "positive"])  # doctest: +SKIP
    >>> clf.predict(["A delight from beginning to end."])  # doctest: +SKIP
    array(['positive'], dtype='<U8')
    """

    _parameter_constraints: dict[str, list[Any]] = {
        **{
            name: SHARED_CONSTRAINTS[name]
            for name in (
                *("model", "revision", "max_length", "device", "precision"),
                *("store_base", "verbose"),
            )
        },
        "label_words": [Mapping, None],
        "template": [str],
        "calibration": [StrOptions({"content-free", "batch"}), None],
    }

    def __init__(
        self,
        model: str | os.PathLike[str] = "smollm2-135m",
        *,
        revision: str | None = None,
        label_words: LabelWords = None,
        template: str = "{text}\nTopic:",
        calibration: Calibration = "content-free",
        max_length: int = 256,
        device: str = "auto",
        precision: Literal["auto", "bf16", "fp16", "fp32"] = "auto",
        store_base: StoreBase = "auto",
        verbose: int = 0,
    ) -> None:
        self.model = model
        self.revision = revision
        self.label_words = label_words
        self.template = template
        self.calibration = calibration
        self.max_length = max_length
        self.device = device
        self.precision = precision
        self.store_base = store_base
        self.verbose = verbose

    @fit_context(prefer_skip_nested_validation=True)
    @own_settings()
    def fit(self, X: Any, y: Any) -> Self:
        """Learn the classes, and load the model; nothing is trained.

        Parameters
        ----------
        X : array-like of shape (n,) or (n, n_columns), or None
            Texts: a list, array or Series of str, or columns of them. They are checked, their
            columns are noted, and that is all. None if there are none.
        y : array-like of shape (n,)
            Labels: str, int or bool. Without X, each label once, or as often as you like.

        Returns
        -------
        self : GPTZeroShotClassifier
            The fitted estimator.

        Raises
        ------
        ValueError
            If X, y or a parameter is not as described here, or the model has no language-model
            head; before any text is run.
        OSError
            If the model can't be found, fetched or read.
        """
        name = type(self).__name__
        named = check_prompt(self.template)
        columns: dict[str, Any] = {}
        layout = None
        if X is None:
            classes = check_classes(y, name=name, what="y")
        else:
            texts = find_columns(X, estimator=name)
            columns = column_attributes(texts, name)
            layout = lay_out_prompt(self.template, len(texts.columns), texts.names)
            texts.read(match_columns(columns, layout, texts, name=name), to_fit=name)
            classes = self._check_labels(y, len(texts))
        words = words_of(self.label_words, classes.tolist())
        model = self._load(classes, words, named)
        model = replace(model, columns=columns, layout=layout)
        if self.calibration == "content-free":
            cells = [list(CONTENT_FREE) for _ in named.fields]
            scores = model.log_likelihoods(cells, named)
            model = replace(model, prior=tuple(mean_log_probabilities(scores).tolist()))
        self._set_fitted(model)
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
        labels : ndarray of shape (n,)
            Labels out of ``classes_``.
        """
        model = self._fitted()
        return model.labels(model.scores(X, self.verbose))

    @own_settings()
    def predict_proba(self, X: Any) -> Floats:
        """Predict the probability of each class: the softmax of the scores.

        Parameters
        ----------
        X : array-like of shape (n,) or (n, n_columns)
            Texts, as in `fit`.

        Returns
        -------
        probabilities : ndarray of shape (n, n_classes), float64
            In the order of ``classes_``. Each row adds up to one.
        """
        return np.asarray(softmax(self._fitted().scores(X, self.verbose), axis=1))

    @own_settings()
    def predict_log_proba(self, X: Any) -> Floats:
        """Predict the logarithm of the probability of each class.

        Parameters
        ----------
        X : array-like of shape (n,) or (n, n_columns)
            Texts, as in `fit`.

        Returns
        -------
        log_probabilities : ndarray of shape (n, n_classes), float64
            Computed from the scores, so finite even where a probability rounds to zero.
        """
        return np.asarray(log_softmax(self._fitted().scores(X, self.verbose), axis=1))

    @own_settings()
    def decision_function(self, X: Any) -> Floats:
        """Return the scores: log-likelihoods of the labels' words, less the prior.

        Parameters
        ----------
        X : array-like of shape (n,) or (n, n_columns)
            Texts, as in `fit`.

        Returns
        -------
        scores : ndarray of shape (n,) or (n, n_classes), float64
            With two classes the second's score less the first's.
        """
        scores = self._fitted().scores(X, self.verbose)
        return scores[:, 1] - scores[:, 0] if scores.shape[1] == 2 else scores

    def _fitted(self) -> PromptedModel:
        """Return the record of the fit, read once: another thread's fit can't mix two models."""
        check_is_fitted(self)
        model: PromptedModel = self._model
        return model

    def _check_labels(self, y: Any, n: int) -> NDArray[Any]:
        """Return the classes of n rows."""
        target = encode_target(y, n, name=type(self).__name__)
        if target.codes.ndim == 2:
            raise InvalidTextError(
                f"y must hold one label per text: {type(self).__name__} takes a single column "
                "of labels. Use GPTTextClassifier, or one zero-shot classifier per label."
            )
        return target.classes

    @explain_no_memory()
    def _load(
        self, classes: NDArray[Any], words: tuple[tuple[str, ...], ...], named: Template
    ) -> PromptedModel:
        """Load the model and its head, and check the words against its tokens."""
        device = resolve_device(self.device)
        dtype = resolve_precision(self.precision, device)
        pretrained = load_pretrained(self.model, self.revision)
        check_max_length(self.max_length, pretrained)
        tokenizer = pretrained.tokenizer
        phrases = tuple(
            tuple(tokens_of(word, named.words[-1], tokenizer) for word in of_class)
            for of_class in words
        )
        _check_lengths(words, phrases, named, tokenizer, self.max_length)
        head = language_head(pretrained)
        network = build_network(
            pretrained,
            n_layers=None,
            trainable_layers=0,
            pooling="last",
            n_outputs=1,  # of a head that nobody asks: the language model has its own
            dtype=dtype,
            device=device,
        )
        return PromptedModel(
            network=network,
            head=head,
            placed=head.on(network.trunk, device),
            classes=classes,
            words=words,
            phrases=phrases,
            template=self.template,
            layout=None,
            calibration=self.calibration,
            prior=None,
            max_length=int(self.max_length),
            device=self.device,
            precision=self.precision,
            columns={},
            fitted_by=type(self).__name__,
        )

    def _pack(self) -> State:
        """Return the record, but for its classes; the head's own weights go where the base goes."""
        model: PromptedModel = self._model
        layout = model.layout
        values = {
            "format": FORMAT,
            **{name: getattr(model, name) for name in _PLAIN},
            "columns": dict(model.columns),
            "layout": layout and asdict(layout),
            "head": model.head.fingerprint,
        }
        own = model.head.own if holds_base(model.network.pretrained, self.store_base) else {}
        network = pack_network(model.network, self.store_base)
        return State.of(model=State(own, values), network=network)

    def _unpack(self, state: State, outside: dict[str, Any]) -> PromptedModel:
        """Make the record again, on the device that its fit asked for if this machine has it."""
        saved = state.part("model")
        values = saved.values
        check_format(values)
        device, dtype = where_to_open(values["device"], values["precision"])
        network = unpack_network(state.part("network"), dtype, device)
        pretrained = network.pretrained
        head = language_head(pretrained, None if pretrained.shared else saved.tensors)
        if head.fingerprint != values["head"]:
            raise ModelNotFoundError(
                f"This fitted model stands on the language-model head of {pretrained.model!r} as "
                "it was when it was fitted. What has that name here holds other weights: copy the "
                "model from the machine that fitted it, or save there with store_base=True."
            )
        return PromptedModel(
            **{name: values[name] for name in _PLAIN},
            network=network,
            head=head,
            placed=head.on(network.trunk, device),
            **outside,
            columns=values["columns"],
            layout=Template(**values["layout"]) if values["layout"] else None,
            fitted_by=type(self).__name__,
        )

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        # The checks' tables of numbers, read as text, are no ground to judge a language model on.
        tags.classifier_tags.poor_score = True
        return tags
