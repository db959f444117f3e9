"""The record of a zero-shot fit: a prompt, the words behind it, and how likely they are."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp

from skgpt.caching import predicting
from skgpt.data.batching import Progress, no_progress
from skgpt.data.inputs import TextColumns, find_columns
from skgpt.data.template import Template
from skgpt.data.tokenization import Tokens, clean, in_windows, tokenise_rows, tokenise_with_spans
from skgpt.device import check_not_forked
from skgpt.exceptions import import_optional
from skgpt.explanations import Attributions, asked_for, directions, explanation_frame, predicted
from skgpt.fitted_model import TextModel
from skgpt.fitting import warn_of_cut_texts
from skgpt.label_words import lay_out_prompt, mean_log_odds, mean_log_probabilities
from skgpt.network.phrases import Phrase, log_likelihoods
from skgpt.pretrained.language_head import LanguageHead
from skgpt.pretrained.tokenizer import TextTokenizer
from skgpt.training.callbacks import work_bar

Calibration = Literal["content-free", "batch"] | None
Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False, kw_only=True)
class PromptedModel(TextModel):
    """All that predictions by label words need.

    `words` are the words or phrases of each class, and `phrases` their tokens behind the prompt.
    Where each label is asked for by itself, a phrase is the question's end, and `answers` the
    tokens of no and yes behind it. The template begins with the examples, `n_context` tokens of the
    rows `examples`; `prompt` is to be laid out over the columns of each X, if the fit had none.
    `frame` are the tokens that a prompt stands between. `prior` is what content-free texts say of
    the classes, as logarithms or log-odds. `placed` is the head on the network's device.
    """

    head: LanguageHead
    placed: Any
    classes: NDArray[Any]
    words: tuple[tuple[str, ...], ...]
    phrases: tuple[tuple[Phrase, ...], ...]
    answers: tuple[Phrase, ...]
    prompt: str | None
    frame: tuple[Phrase, Phrase]
    calibration: Calibration
    length_normalized: bool
    n_context: int = 0
    examples: tuple[int, ...] = ()
    prior: tuple[float, ...] | None = None

    @property
    def multilabel(self) -> bool:
        """Whether a text may have any number of labels."""
        return bool(self.answers)

    @property
    def outside(self) -> dict[str, Any]:
        """What goes into a pickle as it is: the classes may be dates, say."""
        return {"classes": self.classes}

    def attributes(self) -> dict[str, Any]:
        """Return the public attributes of a fitted estimator."""
        labels = self.classes.tolist()
        return {
            **super().attributes(),
            "classes_": self.classes,
            "label_words_": dict(zip(labels, map(list, self.words), strict=True)),
            **({} if self.prior is None else {"prior_": np.array(self.prior)}),
            **({"examples_": np.array(self.examples)} if self.examples else {}),
        }

    def copy(self) -> Self:
        """Return a copy; nothing was learned, so it shares the weights."""
        return replace(self, classes=self.classes.copy(), columns=copy.deepcopy(self.columns))

    @predicting()
    def scores(self, X: Any, verbose: int = 0) -> Floats:
        """Return the scores of texts, shape (n, n_classes): log-likelihoods less the prior."""
        _, cells, layout = self._read(X)
        found_NK = self.log_likelihoods(cells, layout, verbose)
        return found_NK - self._prior_of(found_NK)

    @predicting()
    def explain(self, X: Any, target: Any, verbose: int) -> Any:
        """Return the table that `GPTZeroShotClassifier.explain` describes."""
        import_optional("pandas", "explain")
        texts, cells, layout = self._read(X)
        chosen_NK = None
        if target is not None:
            chosen_NK = asked_for(target, len(texts), self.classes, self.fitted_by)
        found_NK = self.log_likelihoods(cells, layout, verbose)
        prior_K = self._prior_of(found_NK)
        if chosen_NK is None:
            chosen_NK = predicted(found_NK - prior_K, self.multilabel)
        explained_ND, directions_NDK = directions(chosen_NK, multilabel=True)
        tokens, spans = tokenise_with_spans(cells, layout, self._encoder, self._room)
        parts = []
        with work_bar(verbose) as bar:
            for i, directions_DK in enumerate(directions_NDK):
                # The text whole, without any token of its own, and without each of them.
                ids, start = tokens.row(i), tokens.offsets[i]
                own = np.flatnonzero(spans.column[start : tokens.offsets[i + 1]] >= 0)
                prompts = [ids, np.delete(ids, own), *(np.delete(ids, at) for at in own)]
                scores_VK = self._of_prompts(Tokens.of(prompts), layout) - prior_K
                odds_VK = scores_VK if self.multilabel else _log_odds(scores_VK)
                whole_D, bare_D, *without = odds_VK @ directions_DK.T
                values_TD = whole_D - np.reshape(without, (len(own), len(whole_D)))
                parts.append((start + own, Attributions(values_TD, bare_D)))
                bar.move("explain", i + 1, len(tokens), unit=" texts")
        names = self.columns.get("feature_names_in_", texts.names)
        return explanation_frame(cells, names, self.classes, explained_ND, parts, spans)

    def _read(self, X: Any) -> tuple[TextColumns, list[list[str]], Template]:
        """Return the columns of an X, their texts, and the template over them."""
        if self.prompt is None:
            return *self.read_texts(X), self.template
        texts = find_columns(X, estimator=self.fitted_by)
        layout = lay_out_prompt(self.prompt, len(texts.columns), texts.names)
        return texts, texts.read(layout.places(len(texts.columns))), layout

    def prior_in(self, found_NK: Floats) -> Floats:
        """Return what the mean of these texts says of the classes, shape (n_classes,)."""
        return mean_log_odds(found_NK) if self.multilabel else mean_log_probabilities(found_NK)

    def _prior_of(self, found_NK: Floats) -> Floats:
        """Return what is taken off log-likelihoods, shape (n_classes,)."""
        if self.calibration == "batch":
            return self.prior_in(found_NK)
        return np.zeros(len(self.classes)) if self.prior is None else np.array(self.prior)

    @property
    def _encoder(self) -> TextTokenizer:
        return self.network.pretrained.tokenizer.framed(*self.frame)

    @property
    def _room(self) -> int:
        """Tokens of a prompt."""
        longest = max(len(phrase) for of_class in self.phrases for phrase in of_class)
        return self.n_context + self.max_length - longest - n_longest(self.answers)

    def log_likelihoods(self, cells: list[list[str]], layout: Template, verbose: int = 0) -> Floats:
        """Return the log-likelihood of each class behind each prompt, shape (n, n_classes).

        Where each label is asked for by itself, it is the log-odds of yes. A text in several
        windows has the mean of theirs.
        """
        check_not_forked(self.network.device.type)
        encoder, room = self._encoder, self._room
        n_windows = np.ones(len(cells[0]), dtype=np.int64)
        if self.long_text == "windows":
            cells, n_windows = in_windows(cells, layout, encoder, room)
        with work_bar(verbose) as bar:
            say = partial(bar.move, "predict, tokenise", unit=" texts")
            prompts = tokenise_rows(cells, layout, encoder, room, progress=say)
            if self.long_text == "cut":
                n_cut, n = prompts.n_cut, len(prompts)
                warn_of_cut_texts(self.fitted_by, self.max_length, n_cut, n, of="of this call")
            found_WK = self._of_prompts(prompts, layout, partial(bar.move, "predict"))
        firsts = np.cumsum(n_windows) - n_windows
        return np.asarray(np.add.reduceat(found_WK, firsts, axis=0) / n_windows[:, None])

    def _of_prompts(
        self, prompts: Tokens, layout: Template, progress: Progress = no_progress
    ) -> Floats:
        """Return the log-likelihood of each class: of several phrases their mean likelihood.

        Where each label is asked for by itself, it is the log-odds of yes, the mean of several.
        """
        shared = self._encoder.encode([clean(layout.words[0])])[0]
        asked = [phrase for of_class in self.phrases for phrase in of_class]
        answers = self.answers or ((),)
        phrases = [(*phrase, *answer) for phrase in asked for answer in answers]
        n_given = [len(phrase) if self.answers else 0 for phrase in asked for _ in answers]
        prefix = (*self.frame[0], *shared)
        found_NP = log_likelihoods(
            self.network, self.placed, prompts, phrases, prefix, progress, n_given=n_given
        )
        if self.length_normalized:
            found_NP = found_NP / np.array(
                [len(p) - n for p, n in zip(phrases, n_given, strict=True)]
            )
        average: Callable[..., Floats] = _log_mean
        if self.answers:
            found_NP, average = found_NP[:, 1::2] - found_NP[:, ::2], np.mean
        ends = np.cumsum([len(of_class) for of_class in self.phrases])[:-1]
        parts = np.split(found_NP, ends, axis=1)
        return np.stack([average(part_NP, axis=1) for part_NP in parts], axis=1)

    def labels(self, scores_NK: Floats) -> NDArray[Any]:
        """Return the class of each row of scores, or an indicator of labels."""
        if self.multilabel:
            return (scores_NK > 0).astype(np.int64)
        return np.asarray(self.classes[scores_NK.argmax(axis=1)])


def _log_mean(logs: Floats, axis: int) -> Floats:
    return np.asarray(logsumexp(logs, axis=axis) - np.log(logs.shape[axis]))


def _log_odds(scores_NK: Floats) -> Floats:
    """Return how far each class is above all others together."""
    others = [logsumexp(np.delete(scores_NK, k, axis=1), axis=1) for k in range(scores_NK.shape[1])]
    return scores_NK - np.stack(others, axis=1)


def n_longest(phrases: Sequence[Phrase]) -> int:
    """Return how many tokens the longest of some phrases has."""
    return max(map(len, phrases), default=0)
