"""The prompt and the words that stand for labels behind it, and the head that starts from them."""

import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_expit, log_softmax, logsumexp

from skgpt.data.template import Template, before_field, fields_of, parse_template
from skgpt.data.tokenization import begins_wide, clean, tokenise_rows
from skgpt.exceptions import InvalidTextError, LabelWordsWarning, warn_user
from skgpt.network.network import TextNetwork
from skgpt.network.phrases import Phrase
from skgpt.network.word_head import start_head
from skgpt.pretrained.language_head import language_head
from skgpt.pretrained.tokenizer import TextTokenizer

Floats = NDArray[np.float64]
LabelWords = Mapping[Any, str | Sequence[str]] | Literal["auto"] | None

LABEL = "label"  # the field of a template that asks for each label by itself

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


class Question(NamedTuple):
    """A template that names a label, cut there: what stands before it, and what around it."""

    prompt: str  # a template, to be laid out
    gap: str
    rest: str

    def about(self, word: str) -> str:
        """Return what follows the prompt, for one label."""
        return self.gap + word + self.rest


def question_of(template: str, *, ends_in_words: bool = True) -> Question | None:
    """Return the question for each label that a template holds, None if it names none."""
    fields = fields_of(template)
    if LABEL not in fields:
        return None
    layout = check_prompt(template, ends_in_words=ends_in_words)
    place, others = fields.index(LABEL), len(fields) - 1
    if layout.fields.count(place) != 1 or layout.fields[-1] != place or not others:
        raise InvalidTextError(
            "`template` must name the label once, behind the text, so that a text runs once for "
            f"all labels. Got {template!r}: write it as in '{{text}}\\nIs this about {{label}}? "
            "Answer:'."
        )
    if not layout.words[-2].strip():
        raise InvalidTextError(
            f"`template` must have words between the text and `{{label}}`. Got {template!r}: write "
            "it as in '{text}\\nIs this about {label}? Answer:'."
        )
    prompt = before_field(template, LABEL)
    return Question(prompt, prompt[len(prompt.rstrip(" ")) :], layout.words[-1])


def words_of(label_words: LabelWords, classes: list[Any]) -> tuple[tuple[str, ...], ...]:
    """Return the words of each class, without white space around them, each once."""
    has_own = isinstance(label_words, Mapping)
    if not isinstance(label_words, Mapping):  # None or "auto"
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
    if not has_own and (odd := [w for w in owners if not any(map(str.isalpha, w))]):
        warn_user(
            f"The labels {odd[:10]} are no words, and a language model knows little of what they "
            "stand for: name words for the labels in `label_words`, as in {0: 'negative', "
            "1: 'positive'}.",
            LabelWordsWarning,
        )
    return tuple(result)


def behind(word: str, prompt_end: str) -> str:
    """Return a word as it stands behind the words that a prompt ends in: with a space before it.

    There is none if the prompt ends in other white space or in an opening bracket or quote, or if
    the word is Chinese or Japanese.
    """
    last = prompt_end[-1]
    opens = last in "\"'" or unicodedata.category(last) in _OPENINGS
    return word if last.isspace() or opens or begins_wide(word) else f" {word}"


def tokens_of(phrase: str, prompt_end: str, tokenizer: TextTokenizer) -> Phrase:
    """Return the tokens of what stands behind the words that a prompt ends in."""
    before, after = tokenizer.encode([clean(prompt_end), clean(prompt_end + phrase)])
    if after[: len(before)] != before or len(after) == len(before):
        raise InvalidTextError(
            f"The label word {phrase.strip()!r} must be tokens of its own behind {prompt_end!r}. "
            "The tokenizer joins them: end `template` in another character, or choose another word."
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
    tokenizer, end = network.tokenizer, prompt.words[-1]
    phrases = [
        [tokens_of(behind(word, end), end, tokenizer) for word in of_class]
        for of_class in words_of(label_words, classes)
    ]
    cells = [list(CONTENT_FREE) for _ in prompt.fields]
    prompts = tokenise_rows(cells, prompt, tokenizer, max_length)
    pretrained = network.pretrained
    head = language_head(pretrained).on(network.trunk, network.device)
    start_head(network, head, prompts, phrases)


def mean_log_odds(odds_NK: Floats) -> Floats:
    """Return the log-odds of the labels' mean probabilities, shape (n_labels,)."""
    return np.asarray(
        logsumexp(log_expit(odds_NK), axis=0) - logsumexp(log_expit(-odds_NK), axis=0)
    )


def mean_log_probabilities(scores_NK: Floats) -> Floats:
    """Return the logarithms of the mean probabilities of the classes, shape (n_classes,)."""
    return np.asarray(logsumexp(log_softmax(scores_NK, axis=1), axis=0) - np.log(len(scores_NK)))
