"""The prompt and the words that stand for labels behind it, and the head that starts from them."""

import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_softmax, logsumexp

from skgpt.data.template import Template, fields_of, parse_template
from skgpt.data.tokenization import begins_wide, clean, tokenise_rows
from skgpt.exceptions import InvalidTextError, LabelWordsWarning, warn_user
from skgpt.network.network import TextNetwork
from skgpt.network.phrases import Phrase
from skgpt.network.word_head import start_head
from skgpt.pretrained.language_head import language_head
from skgpt.pretrained.tokenizer import TextTokenizer

Floats = NDArray[np.float64]
LabelWords = Mapping[Any, str | Sequence[str]] | None

# Texts that say nothing about any class (Zhao et al. 2021).
CONTENT_FREE = ("N/A", "", "[MASK]")
_OPENINGS = ("Ps", "Pi")  # Unicode's brackets and quotes that open


def lay_out_prompt(template: str | None, n_columns: int, names: Sequence[str] | None) -> Template:
    """Return the template over these columns; spaces at its end belong to the words behind it."""
    if template is None:
        raise InvalidTextError(
            "`label_words` needs a `template` that ends in a prompt, behind which the words would "
            "follow. Got template=None: name one, as in '{text}\\nTopic:'."
        )
    return parse_template(template.rstrip(" "), n_columns, names, joins=True)


def check_prompt(template: str, *, ends_in_words: bool = True) -> Template:
    """Check a template whose columns nobody knows: they are what it names."""
    fields = fields_of(template) or ["text"]
    layout = lay_out_prompt(template, len(fields), fields)
    if ends_in_words and not layout.words[-1].strip():
        raise InvalidTextError(
            "`template` must end in words, behind which the model is asked for the label's. Got "
            f"{template!r}, which ends in a field: end it as in '{{text}}\\nTopic:'."
        )
    return layout


def words_of(label_words: LabelWords, classes: list[Any]) -> tuple[tuple[str, ...], ...]:
    """Return the words of each class, without white space around them, each once."""
    if label_words is None:
        found: list[tuple[str, ...]] = [(str(label),) for label in classes]
    else:
        if missing := [label for label in classes if label not in label_words]:
            raise InvalidTextError(
                f"`label_words` must name words for every class. {missing[:10]} are missing; it "
                f"has {list(label_words)[:10]}: add them, with labels of the same type."
            )
        given = [(label, label_words[label]) for label in classes]
        found = [
            tuple(words) if np.iterable(words) and not isinstance(words, str) else (words,)
            for _, words in given
        ]
    owners: dict[str, Any] = {}
    result = []
    for label, words in zip(classes, found, strict=True):
        if not words:
            raise InvalidTextError(
                f"Every label needs a word. `label_words` has an empty list for {label!r}."
            )
        for word in words:
            if not isinstance(word, str) or not word.strip():
                raise InvalidTextError(
                    "Label words must be str that hold more than white space. Got "
                    f"{word!r} for the label {label!r}: name a word or phrase in `label_words`."
                )
            if owners.setdefault(word.strip(), label) != label:
                raise InvalidTextError(
                    f"Two labels must not have the same words. {word.strip()!r} stands for both "
                    f"{owners[word.strip()]!r} and {label!r}: change one in `label_words`."
                )
        result.append(tuple(dict.fromkeys(word.strip() for word in words)))
    if label_words is None and (odd := [w for w in owners if not any(map(str.isalpha, w))]):
        warn_user(
            f"The labels {odd[:10]} are no words, and a language model knows little of what they "
            "stand for: name words for the labels in `label_words`, as in {0: 'negative', "
            "1: 'positive'}.",
            LabelWordsWarning,
        )
    return tuple(result)


def joint(word: str, prompt_end: str) -> str:
    """Return what goes between the words that a prompt ends in and a label's.

    It is a space, unless the prompt ends in other white space or in an opening bracket or quote, or
    the word is Chinese or Japanese.
    """
    last = prompt_end[-1]
    opens = last in "\"'" or unicodedata.category(last) in _OPENINGS
    return "" if last.isspace() or opens or begins_wide(word) else " "


def tokens_of(word: str, prompt_end: str, tokenizer: TextTokenizer) -> Phrase:
    """Return the tokens of a word or phrase behind the words that the prompt ends in."""
    whole = prompt_end + joint(word, prompt_end) + word
    before, after = tokenizer.encode([clean(prompt_end), clean(whole)])
    if after[: len(before)] != before or len(after) == len(before):
        raise InvalidTextError(
            f"The label word {word!r} must be tokens of its own behind {prompt_end!r}. The "
            "tokenizer joins them: end `template` in another character, or choose another word."
        )
    return tuple(after[len(before) :])


def start_from_words(
    network: TextNetwork,
    label_words: LabelWords,
    template: str,
    classes: list[Any],
    max_length: int,
) -> None:
    """Have the head of a prompted network say what a zero-shot classifier says.

    That is so for words of one token. Longer ones, and several, have the mean of their tokens'
    logits.
    """
    prompt = check_prompt(template)
    tokenizer = network.tokenizer
    phrases = [
        [tokens_of(word, prompt.words[-1], tokenizer) for word in of_class]
        for of_class in words_of(label_words, classes)
    ]
    cells = [list(CONTENT_FREE) for _ in prompt.fields]
    prompts = tokenise_rows(cells, prompt, tokenizer, max_length)
    pretrained = network.pretrained
    head = language_head(pretrained).on(network.trunk, network.device)
    start_head(network, head, prompts, phrases)


def mean_log_probabilities(scores_NK: Floats) -> Floats:
    """Return the logarithms of the mean probabilities of the classes, shape (n_classes,)."""
    return np.asarray(logsumexp(log_softmax(scores_NK, axis=1), axis=0) - np.log(len(scores_NK)))
