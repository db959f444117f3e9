"""GPTZeroShotClassifier: a pretrained GPT tells classes apart by their names, without training."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from numbers import Integral
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.base import ClassifierMixin

from skgpt._base import SHARED_CONSTRAINTS, BaseTextModel
from skgpt._sklearn import Interval, StrOptions, fit_context
from skgpt.calibration import link_for
from skgpt.data.inputs import find_columns, frame_columns, frame_names
from skgpt.data.targets import Target, check_classes, encode_target
from skgpt.data.template import Template, fields_of
from skgpt.data.tokenization import LongText, clean, cut_row
from skgpt.device import own_settings, resolve_device, resolve_precision
from skgpt.exceptions import InvalidTextError, ModelNotFoundError
from skgpt.fitted_model import column_attributes, match_columns
from skgpt.fitting import check_max_length, draw_seed
from skgpt.label_words import (
    CONTENT_FREE,
    LABEL,
    LabelWords,
    Question,
    behind,
    check_prompt,
    lay_out_prompt,
    question_of,
    tokens_of,
    words_of,
)
from skgpt.network.microbatches import explain_no_memory
from skgpt.network.network import build_network
from skgpt.network.phrases import Phrase
from skgpt.pretrained.language_head import language_head
from skgpt.pretrained.loading import load_pretrained
from skgpt.pretrained.tokenizer import TextTokenizer
from skgpt.prompted_model import Calibration, Floats, PromptedModel, n_longest
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

_LEAST_OF_FIELD = 8  # tokens that an example's text must have room for

# Fields of a PromptedModel that are saved as they are.
_PLAIN = (
    *("words", "phrases", "answers", "prompt", "frame", "n_context", "examples", "calibration"),
    *("prior", "length_normalized", "max_length", "long_text", "device", "precision"),
)


# --- The prompt and the words -----------------------------------------------------------------


def _check_answers(answers: Any) -> tuple[str, str]:
    """Return the words for no and yes, without white space around them."""
    texts = all(isinstance(word, str) and word.strip() for word in answers)
    if not texts or len(answers) != 2 or answers[0].strip() == answers[1].strip():
        raise InvalidTextError(
            "`answers` must be two different words or phrases, the one for no first. Got "
            f"{answers!r}: pass a pair as in ('no', 'yes')."
        )
    return answers[0].strip(), answers[1].strip()


def _check_lengths(
    n_tokens: Mapping[str, int], layout: Template, tokenizer: TextTokenizer, max_length: int
) -> None:
    """Check that the template, a token for each field, and the longest phrase fit in a text."""
    longest = max(n_tokens, key=lambda word: n_tokens[word])
    n_words = len(tokenizer.encode([clean("".join(layout.words))])[0])
    n_special = len(tokenizer.prefix_ids) + len(tokenizer.suffix_ids)
    needed = n_words + len(layout.fields) + n_special + n_tokens[longest]
    if needed > max_length:
        raise InvalidTextError(
            f"`max_length` must leave room for the template and the label words. The template's "
            f"own words take {n_words} tokens and {longest!r} takes {n_tokens[longest]}, so with "
            f"one for each field at least {needed} are needed. Got max_length={max_length}: raise "
            "it, or use fewer words."
        )


# --- Examples in the prompt ---------------------------------------------------------------------


def _draw(codes: NDArray[np.int64], n: int, seed: int) -> NDArray[np.int64]:
    """Draw n rows, of each class its share of them, in an order that mixes the classes."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(codes))
    counts = np.bincount(codes)
    # A row's place among those of its class, in random order, as a share of them.
    place = np.empty(len(codes))
    for code in np.unique(codes):
        of_class = order[codes[order] == code]
        place[of_class] = (np.arange(len(of_class)) + rng.uniform()) / counts[code]
    return np.argsort(place, kind="stable")[:n]


def _draw_answered(codes_NK: NDArray[Any], n: int, seed: int) -> NDArray[np.int64]:
    """Draw n rows, labels to ask them for, and the answers, shape (n, 3); yes and no by turns."""
    drawn = []
    for answer in (1, 0):
        pairs = np.argwhere(codes_NK == answer)
        chosen = pairs[_draw(pairs[:, 1], n, seed)] if len(pairs) else pairs
        drawn.append(np.column_stack([chosen, np.full(len(chosen), answer)]))
    turn = np.concatenate([np.arange(len(part)) for part in drawn])
    return np.concatenate(drawn)[np.argsort(turn, kind="stable")[:n]]


def _lay_out_examples(layout: Template, endings: Sequence[str]) -> Template:
    """Return the template of so many filled prompts, each with fields of its own, and its ending.

    A blank line stands behind each.
    """
    pieces = [""]
    for ending in endings:
        first, *others = layout.words
        pieces[-1] += first
        pieces += others
        pieces[-1] += ending + "\n\n"
    return Template(tuple(pieces), tuple(range(len(pieces) - 1)))


def _examples(
    rows: Sequence[Sequence[str]],
    endings: Sequence[str],
    layout: Template,
    tokenizer: TextTokenizer,
    room: int,
) -> str:
    """Return the text of examples, the longest cut to make them fit in so many tokens."""
    tokenizer = tokenizer.framed((), ())
    needed = [
        len(tokenizer.encode([clean("".join(laid_out.words))])[0])
        + _LEAST_OF_FIELD * len(laid_out.fields)
        for laid_out in (_lay_out_examples(layout, endings[: n + 1]) for n in range(len(endings)))
    ]
    n_fit = sum(n_tokens <= room for n_tokens in needed)
    if n_fit < len(endings):
        raise InvalidTextError(
            f"The examples in the prompt must fit in {room} tokens. {len(endings)} need at least "
            f"{needed[-1]}, and {n_fit} fit: set n_examples={n_fit}, or change max_length. The "
            "examples may take as many tokens, and the model must have positions for both."
        )
    laid_out = _lay_out_examples(layout, endings)
    values = [row[field] for row in rows for field in layout.fields]
    return laid_out.render(cut_row(values, laid_out, tokenizer, room))


def _after(context: str, layout: Template) -> Template:
    """Return a template whose prompts stand behind a text."""
    first, *others = layout.words
    return replace(layout, words=(context + first, *others))


# --- The estimator ----------------------------------------------------------------------------


class GPTZeroShotClassifier(ClassifierMixin, BaseTextModel[PromptedModel]):
    r"""Classify texts by how likely a pretrained GPT finds each label's words behind a prompt.

    Nothing is trained, so no labelled text is needed: ``fit(None, ["negative", "positive"])``. If a
    text may have any number of labels, let the template ask for each, as in
    ``"{text}\nIs this about {label}? Answer:"``.

    Parameters
    ----------
    model : str or path-like, default="smollm2-135m"
        An alias, a Hugging Face hub id, a local transformers folder or a .gguf file: a decoder with
        its language-model head.
    revision : str or None, default=None
        Hub revision: a branch, tag or commit.
    label_words : dict, "auto" or None, default=None
        The words of each label: a word, a phrase, or a list of them, whose probabilities are
        averaged. Labels that the fit doesn't meet may be there too. None and "auto" take
        ``str(label)``, for an indicator that is a DataFrame the names of its columns.
    template : str, default="{text}\nTopic:"
        The prompt: how the columns of a row become one text, as in ``"{title}\n{body}\nTopic:"``.
        ``{text}`` is the whole row, its columns joined with a blank line. It must end in words; a
        space is put between them and a label's where the language has one. If it names ``{label}``,
        once and behind the text, each label is asked for by itself, its words in that place, and a
        text may have any number of them.
    answers : pair of str, default=("no", "yes")
        The words that say that a text doesn't have a label, and that it has it; only read where
        `template` names ``{label}``.
    n_examples : int, default=0
        How many rows of the fit stand in the prompt as examples, each the template filled and the
        first of its label's words, with a blank line behind it. Every class has its share of them;
        of labels that are asked for, each example asks for one, and the answers come by turns.
        They take at most `max_length` tokens together, beside those of the text; the longest are
        cut. They run once, whatever the number of texts.
    calibration : {"content-free", "batch"} or None, default="content-free"
        What is taken off the scores, as a model likes some words better than others whatever the
        text. "content-free": what it says of the texts "N/A", "" and "[MASK]" [1]_. "batch": what
        it says of all rows that one call is given, in the mean [2]_: a prediction then depends on
        the other rows, and a single row tells nothing. None takes off nothing. Of a label that is
        asked for by itself, that is the log-odds of yes: "batch" takes half of the rows to have it.
    length_normalized : bool, default=False
        Whether a phrase's log-likelihood is the mean over its tokens, not their sum, so that long
        phrases are not at a disadvantage.
    chat : bool, default=False
        Whether the filled template is a user's message in the tokenizer's own chat template, and
        the labels' words begin the answer. For models that were tuned to follow instructions; the
        template may then end in a field.
    max_length : int, default=256
        Tokens per text, template and label words included, examples not.
    long_text : {"cut", "windows"}, default="cut"
        "cut" cuts the longest field of a text that is too long at its end, never the template's own
        words. "windows" reads that field in windows that overlap by half, each in a prompt of its
        own, and averages their scores.
    device : str, default="auto"
        "auto" (a CUDA device if there is one, else the CPU), "cpu", "cuda", "cuda:1" or "mps".
    precision : {"auto", "bf16", "fp16", "fp32"}, default="auto"
        Precision of the trunk's arithmetic. "auto": bf16 where the hardware is fast at it, else
        fp32. The language-model head is always in fp32.
    store_base : "auto" or bool, default="auto"
        Whether a pickle or saved folder holds the base model and its tokenizer. "auto": only if
        they can't be fetched again by name, like those of a local folder. False: never; opening
        then needs the same model in the same place. You may set it on a fitted estimator.
    random_state : int, RandomState instance or None, default=None
        Draws the examples.
    verbose : int, default=0
        0 is silent; 1 shows a progress bar of predictions that take more than a second.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
        The labels, sorted; of an indicator the numbers of its columns.
    label_words_ : dict
        The words that stand for each label, a list each.
    prior_ : ndarray of shape (n_classes,)
        What is taken off the scores, only with ``calibration="content-free"``: the logarithms of
        the mean probabilities of the content-free texts; their log-odds where a text may have any
        number of labels.
    examples_ : ndarray of shape (n_examples,)
        The rows that stand in the prompt, in this order; only with `n_examples`.
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
    prompt. A prompt runs once for all phrases, which it is followed by as a tree: a beginning that
    several share is in it once. What all prompts begin with, examples above all, runs once for all
    texts, and its keys and values are kept. Questions for labels are phrases too, of which only the
    answers count, the score of yes less that of no. On architectures where that can't be shown to
    be exact (scores that are capped, ALiBi), each beginning of a phrase runs behind a prompt of its
    own.

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

    Texts with any number of labels; what is predicted is an indicator of ``classes_``:

    >>> clf = GPTZeroShotClassifier(template="{text}\nIs this about {label}? Answer:")
    >>> clf.fit(None, ["food", "prices"])  # doctest: +SKIP
    >>> clf.predict(["The soup was cold, and dear."])  # doctest: +SKIP
    array([[1, 1]])
    """

    _kind = PromptedModel

    _parameter_constraints: dict[str, list[Any]] = {
        **{
            name: SHARED_CONSTRAINTS[name]
            for name in (
                *("model", "revision", "max_length", "long_text", "device", "precision"),
                *("store_base", "random_state", "verbose"),
            )
        },
        "label_words": [Mapping, StrOptions({"auto"}), None],
        "template": [str],
        "answers": [tuple, list],
        "n_examples": [Interval(Integral, 0, None, closed="left")],
        "length_normalized": ["boolean"],
        "chat": ["boolean"],
        "calibration": [StrOptions({"content-free", "batch"}), None],
    }

    def __init__(
        self,
        model: str | os.PathLike[str] = "smollm2-135m",
        *,
        revision: str | None = None,
        label_words: LabelWords = None,
        template: str = "{text}\nTopic:",
        answers: tuple[str, str] = ("no", "yes"),
        n_examples: int = 0,
        calibration: Calibration = "content-free",
        length_normalized: bool = False,
        chat: bool = False,
        max_length: int = 256,
        long_text: LongText = "cut",
        device: str = "auto",
        precision: Literal["auto", "bf16", "fp16", "fp32"] = "auto",
        store_base: StoreBase = "auto",
        random_state: Any = None,
        verbose: int = 0,
    ) -> None:
        self.model = model
        self.revision = revision
        self.label_words = label_words
        self.template = template
        self.answers = answers
        self.n_examples = n_examples
        self.calibration = calibration
        self.length_normalized = length_normalized
        self.chat = chat
        self.max_length = max_length
        self.long_text = long_text
        self.device = device
        self.precision = precision
        self.store_base = store_base
        self.random_state = random_state
        self.verbose = verbose

    @fit_context(prefer_skip_nested_validation=True)
    @own_settings()
    def fit(self, X: Any, y: Any = None) -> Self:
        """Learn the classes, and load the model; nothing is trained.

        Parameters
        ----------
        X : array-like of shape (n,) or (n, n_columns), or None
            Texts: a list, array or Series of str, or columns of them. They are checked, their
            columns are noted, and `n_examples` of them are drawn. None if there are none.
        y : array-like of shape (n,) or (n, n_labels)
            Labels: str, int or bool; where `template` names ``{label}``, an indicator matrix of
            zeros and ones. Without X, each label once, or as often as you like.

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
        question = question_of(self.template, ends_in_words=not self.chat)
        prompt = self.template if question is None else question.prompt
        named = check_prompt(prompt, ends_in_words=question is not None or not self.chat)
        columns: dict[str, Any] = {}
        layout, target = None, None
        if y is None:
            raise InvalidTextError(
                f"{name} requires y to be passed, but the target y is None: without labelled "
                "texts, name the labels, as in fit(None, ['negative', 'positive'])."
            )
        if X is None:
            classes = check_classes(y, name=name, what="y")
        else:
            texts = find_columns(X, estimator=name)
            columns = column_attributes(texts, name)
            layout = lay_out_prompt(prompt, len(texts.columns), texts.names)
            cells = texts.read(match_columns(columns, layout, texts, name=name), to_fit=name)
            target = self._check_labels(y, len(texts), question)
            classes = target.classes
        self._check_n_examples(0 if target is None else len(target))
        words = words_of(self._label_words(y, question), classes.tolist())
        model = self._load(classes, words, named, question)
        model = replace(model, columns=columns)
        if layout is not None and target is not None:
            model = replace(model, template=layout, prompt=None)
            if self.n_examples:
                model, context = self._with_examples(model, cells, target, question)
                named = _after(context, named)
        if self.calibration == "content-free":
            free = [list(CONTENT_FREE) for _ in named.fields]
            prior = model.prior_in(model.log_likelihoods(free, named))
            model = replace(model, prior=tuple(prior.tolist()))
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
        labels : ndarray of shape (n,) or (n, n_classes)
            Labels out of ``classes_``; where a text may have any number of them an indicator of
            int.
        """
        model = self._fitted()
        return model.labels(model.scores(X, self.verbose))

    @own_settings()
    def predict_proba(self, X: Any) -> Floats:
        """Predict the probability of each class: the softmax of the scores, or their logistic.

        Parameters
        ----------
        X : array-like of shape (n,) or (n, n_columns)
            Texts, as in `fit`.

        Returns
        -------
        probabilities : ndarray of shape (n, n_classes), float64
            In the order of ``classes_``. Each row adds up to one, unless a text may have any number
            of labels: then each has a probability of its own.
        """
        model = self._fitted()
        return link_for(model.multilabel).probabilities(model.scores(X, self.verbose))

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
        model = self._fitted()
        return link_for(model.multilabel).log_probabilities(model.scores(X, self.verbose))

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
            With two classes the second's score less the first's. Where a text may have any number
            of labels, the log-odds of each, above zero where it is predicted.
        """
        model = self._fitted()
        scores = model.scores(X, self.verbose)
        one_column = scores.shape[1] == 2 and not model.multilabel
        return scores[:, 1] - scores[:, 0] if one_column else scores

    @own_settings()
    def explain(self, X: Any, *, target: Any = None) -> Any:
        """Say what each token of each text adds to the log-odds of a class, the predicted one.

        Each is left out in turn, so a text of n tokens runs n + 2 times. Of a text that is too long
        only the beginning is explained, also with ``long_text="windows"``.

        Parameters
        ----------
        X : array-like of shape (n,) or (n, n_columns)
            Texts, as in `fit`.
        target : label or array-like of shape (n,) or (n, n_classes), default=None
            The class to explain: one for all texts, one for each, or an indicator of several for
            each, whose columns are those of `classes_`. None for the predicted class; where a text
            may have any number of labels, those that are predicted, or the nearest to it.

        Returns
        -------
        table : pandas.DataFrame
            A row for each token of each text and each class that is explained, with the columns of
            `GPTTextClassifier.explain`. ``value`` is what the log-odds of the class fall by without
            the token; with two classes, or any number of labels, these are what
            `decision_function` gives. ``baseline`` are the log-odds without any token of the text;
            the values need not add up to the rest.

        Raises
        ------
        ImportError
            If pandas is not installed.
        ValueError
            If X or `target` is not as described, or if the model's tokenizer doesn't say where
            tokens lie.
        """
        return self._fitted().explain(X, target, self.verbose)

    def _check_labels(self, y: Any, n: int, question: Question | None) -> Target:
        """Return the labels of n rows, one each or an indicator as the template asks for."""
        name = type(self).__name__
        target = encode_target(y, n, name=name)
        if target.is_multioutput:
            raise InvalidTextError(
                f"y must hold one label per text, or an indicator of several: {name} takes no "
                "columns of classes. Use GPTTextClassifier, or a zero-shot classifier for each."
            )
        if question is None and target.is_multilabel:
            raise InvalidTextError(
                "y must hold one label per text with this template. Got an indicator of several: "
                f"name each in `template`, as in '{{text}}\\nIs this about {{label}}? Answer:'. "
                f"Got {self.template!r}."
            )
        if question is not None and not target.is_multilabel:
            raise InvalidTextError(
                "y must be an indicator of zeros and ones, as scikit-learn's MultiLabelBinarizer "
                "makes it: `template` asks for each {label} by itself. Got one label per text: "
                f"end the template where the label's words would follow. Got {self.template!r}."
            )
        return target

    def _check_n_examples(self, n: int) -> None:
        if self.n_examples > n:
            raise InvalidTextError(
                f"`n_examples` must be at most the number of labelled texts that fit is given. Got "
                f"{self.n_examples} for {n}: pass them as X and y, or lower it."
            )

    def _label_words(self, y: Any, question: Question | None) -> LabelWords:
        """Return the words of the labels: those of a DataFrame's columns are their names."""
        if isinstance(self.label_words, Mapping) or question is None or frame_columns(y) is None:
            return self.label_words
        names = frame_names(y)
        return None if names is None else dict(enumerate(names))

    def _with_examples(
        self,
        model: PromptedModel,
        cells: list[list[str]],
        target: Target,
        question: Question | None,
    ) -> tuple[PromptedModel, str]:
        """Return the model with examples before each prompt, and their text."""
        # Draw rows, and say what stands behind each.
        n, seed = int(self.n_examples), draw_seed(self.random_state)
        first_words = [of_class[0] for of_class in model.words]
        if question is None:
            rows, end = _draw(target.codes, n, seed), model.template.words[-1]
            said = [("", first_words[code]) for code in target.codes[rows]]
        else:
            rows, labels, answered = _draw_answered(target.codes, n, seed).T
            answers, end = _check_answers(self.answers), question.rest
            pairs = zip(labels, answered, strict=True)
            said = [(question.about(first_words[k]), answers[yes]) for k, yes in pairs]
        endings = [before + (behind(word, end) if end else f"\n{word}") for before, word in said]
        # Cut them to what there is room for.
        pretrained = model.network.pretrained
        positions = pretrained.max_positions or 2 * self.max_length
        room = min(self.max_length, positions - self.max_length)
        values = [[column[row] for column in cells] for row in rows]
        context = _examples(values, endings, model.template, pretrained.tokenizer, room)
        model = replace(
            model,
            template=_after(context, model.template),
            n_context=len(pretrained.tokenizer.encode([clean(context)])[0]),
            examples=tuple(rows.tolist()),
        )
        return model, context

    @explain_no_memory()
    def _load(
        self,
        classes: NDArray[Any],
        words: tuple[tuple[str, ...], ...],
        named: Template,
        question: Question | None,
    ) -> PromptedModel:
        """Load the model and its head, and check the words against its tokens."""
        device = resolve_device(self.device)
        dtype = resolve_precision(self.precision, device)
        answers = () if question is None else _check_answers(self.answers)
        pretrained = load_pretrained(self.model, self.revision)
        check_max_length(self.max_length, pretrained)
        in_tokens = self._in_tokens(pretrained.tokenizer, words, answers, named, question)
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
            **in_tokens,
            template=named,
            prompt=self.template if question is None else question.prompt,
            calibration=self.calibration,
            length_normalized=bool(self.length_normalized),
            max_length=int(self.max_length),
            long_text=self.long_text,
            device=self.device,
            precision=self.precision,
            fitted_by=type(self).__name__,
        )

    def _in_tokens(
        self,
        tokenizer: TextTokenizer,
        words: tuple[tuple[str, ...], ...],
        answers: tuple[str, ...],
        named: Template,
        question: Question | None,
    ) -> dict[str, Any]:
        """Return what stands behind prompts and around them as tokens, and check its length."""
        tokenizer, end = tokenizer.open_ended(), named.words[-1]
        if question is not None:
            end = question.rest
        if self.chat:
            tokenizer, end = tokenizer.in_chat()
        end, (before, after) = end or "\n", (tokenizer.prefix_ids, tokenizer.suffix_ids)

        def tokens_behind(word: str) -> Phrase:
            if question is None:
                return tokens_of(behind(word, end), end, tokenizer)
            return (*tokens_of(question.about(word), named.words[-1], tokenizer), *after)

        phrases = tuple(tuple(map(tokens_behind, of_class)) for of_class in words)
        said = tuple(tokens_of(behind(word, end), end, tokenizer) for word in answers)
        # What a chat closes a message with stands behind the prompt, or behind the question.
        frame = (before, after if question is None else ())
        n_tokens = {
            word: len(phrase) + n_longest(said)
            for of_class in zip(words, phrases, strict=True)
            for word, phrase in zip(*of_class, strict=True)
        }
        _check_lengths(n_tokens, named, tokenizer.framed(*frame), self.max_length)
        return {"phrases": phrases, "answers": said, "frame": frame}

    def _pack(self) -> State:
        """Return the record, but for its classes; the head's own weights go where the base goes."""
        model = self._model
        values = {
            "format": FORMAT,
            **{name: getattr(model, name) for name in _PLAIN},
            "columns": dict(model.columns),
            "template": asdict(model.template),
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
            template=Template(**values["template"]),
            fitted_by=type(self).__name__,
        )

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        # The checks' tables of numbers, read as text, are no ground to judge a language model on.
        tags.classifier_tags.poor_score = True
        tags.classifier_tags.multi_label = LABEL in fields_of(str(self.template))
        return tags
