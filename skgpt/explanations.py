"""Explanations: what each token of a text adds to the score of a class, as a table.

Integrated gradients along a path of embeddings (Sundararajan, Taly and Yan, "Axiomatic Attribution
for Deep Networks", 2017), to the text from a baseline that says nothing: the token that stands for
an empty text, then punctuation in turn. A baseline of zeros won't do: norms magnify it until the
first step decides everything. Nor will one token repeated: a decoder parks attention on the first
token, takes each token of such a row for one, and the first word of the text is then credited with
leaving that state. Punctuation in the first place gives that word a large value of either sign
(docs/failures.md has figures).

The trunk is too rough along that path for few steps to add up to the change of the score: in the
default model 128 steps were still off by a tenth. But the scores at both ends of each step are
known, so what a step's gradients leave unexplained is shared out among its tokens, in proportion
to what they have. The sum is then exact, whatever the number of steps or the precision.
"""

import numbers
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from skgpt.caching import predicting
from skgpt.data.batching import Progress, Rows, no_progress
from skgpt.data.inputs import TextColumns
from skgpt.data.targets import encode_target, has_columns
from skgpt.data.tokenization import (
    Tokens,
    TokenSpans,
    clean,
    tokenise_with_spans,
    word_at,
    words_of,
)
from skgpt.device import to_device
from skgpt.exceptions import InvalidTextError, ModelNotSupportedError, import_optional
from skgpt.fitted_model import FittedClassifier, FittedModel, FittedRegressor
from skgpt.network.layout import Layout, ids_of
from skgpt.network.microbatches import MicroBatcher, explain_no_memory, token_budget
from skgpt.network.network import TextNetwork
from skgpt.training.callbacks import work_bar
from skgpt.trunk.layers import PROBE_ERRORS

N_STEPS = 16
_TEXTS_AT_ONCE = 128  # whose gradients along the path are kept until they are added up


@dataclass(frozen=True)
class Attributions:
    """What each of T tokens adds to D scores of its text, zero if the baseline keeps it.

    The scores of the baseline and the values of a column add up to the score of the text.
    """

    values_TD: NDArray[np.float64]
    baseline_D: NDArray[np.float64]


@explain_no_memory()
def attribute(
    network: TextNetwork,
    tokens: Tokens,
    replaced: NDArray[np.bool_],
    directions_NDK: NDArray[np.float32],
    n_steps: int = N_STEPS,
    progress: Progress = no_progress,
) -> list[Attributions]:
    """Return what each token adds to scores of its text; nothing of the network is changed.

    `replaced` says which tokens the baseline replaces. A score to explain is a row of weights of
    the raw scores. A trunk that takes no embeddings is refused with a ModelNotSupportedError.
    """
    path = _Path(network, tokens, replaced, directions_NDK, n_steps, progress)
    path.check()
    found: list[Attributions] = []
    for start in range(0, len(tokens), _TEXTS_AT_ONCE):
        found += path.attributions(range(start, min(start + _TEXTS_AT_ONCE, len(tokens))))
    return found


@dataclass
class _Path:
    """The path of every text from its baseline to itself, in equal steps."""

    network: TextNetwork
    tokens: Tokens
    replaced: NDArray[np.bool_]
    directions_NDK: NDArray[np.float32]
    n_steps: int
    progress: Progress

    def __post_init__(self) -> None:
        tokenizer = self.network.pretrained.tokenizer
        neutral = np.array([tokenizer.empty_id, *tokenizer.neutral_ids()])
        with torch.no_grad():
            self.neutral_PE = self.network.embed(to_device(neutral, self.network.device)).float()

    def check(self) -> None:
        """Check that embeddings put in are as good as the ids that they come from."""
        network = self.network
        rows = np.array([int(self.tokens.lengths.argmin())])
        layout = Layout.of(self.tokens.lengths[rows], network.pretrained, network.device)
        ids_T = ids_of(self.tokens, rows, network.device)
        tolerance = 1e-3 if network.dtype == torch.float32 else 5e-2
        what = "it computes something else"
        cause: Exception | None = None
        with torch.no_grad():
            expected_BH = network.pooled(ids_T, layout)
            try:
                got_BH = network.pooled_from_embeddings(network.embed(ids_T), layout)
                if (got_BH - expected_BH).norm() <= tolerance * expected_BH.norm():
                    return
            except PROBE_ERRORS as error:
                what, cause = f"it raises {error!r}", error
        raise ModelNotSupportedError(
            "To be explained, a model must take embeddings in the place of token ids. Given them, "
            f"{type(network.trunk).__name__} is not the same: {what}. Use another model."
        ) from cause

    def attributions(self, texts: range) -> Iterator[Attributions]:
        """Yield the attributions of some texts."""
        n_nodes = self.n_steps + 1
        rows = np.arange(len(texts) * n_nodes)
        lengths = np.repeat(self.tokens.lengths[texts.start : texts.stop], n_nodes)
        scores: dict[int, NDArray[np.float64]] = {}
        slopes: dict[int, NDArray[np.float64]] = {}
        limit = token_budget(self.network, learning=True, frozen_too=True)
        batcher = MicroBatcher(self.network, limit, learning=True)

        def show(done: int, total: int) -> None:
            self.progress(texts.start + len(texts) * done // total, len(self.tokens))

        def gradients(part: Rows) -> tuple[Tensor, Tensor]:
            at = (part % n_nodes) / self.n_steps
            return self._gradients(texts.start + part // n_nodes, at)

        for part, made in batcher.map(gradients, rows, lengths, show):
            scores_BD, slopes_TD = (x.double().cpu().numpy() for x in made)
            each = np.split(slopes_TD, np.cumsum(lengths[part])[:-1])
            for row, score_D, slope_TD in zip(part.tolist(), scores_BD, each, strict=True):
                scores[row], slopes[row] = score_D, slope_TD
        for place, text in enumerate(texts):
            nodes = range(place * n_nodes, (place + 1) * n_nodes)
            within = slice(self.tokens.offsets[text], self.tokens.offsets[text + 1])
            yield _add_up(
                np.stack([scores[node] for node in nodes]),
                np.stack([slopes[node] for node in nodes]),
                self.replaced[within],
            )

    def _gradients(self, texts: Rows, at: NDArray[np.float64]) -> tuple[Tensor, Tensor]:
        """Return the scores at spans of the texts' paths, (B, D), and their slopes, (T, D)."""
        network, device = self.network, self.network.device
        layout = Layout.of(self.tokens.lengths[texts], network.pretrained, device)
        with torch.no_grad():
            embedded_TE = network.embed(ids_of(self.tokens, texts, device)).float()
            at_T = np.concatenate([np.arange(n) for n in self.tokens.lengths[texts]])
            in_turn_T = np.where(at_T == 0, 0, 1 + at_T % (len(self.neutral_PE) - 1))
            baseline_TE = self.neutral_PE[to_device(in_turn_T, device)]
            offsets = self.tokens.offsets
            replaced = [self.replaced[offsets[text] : offsets[text + 1]] for text in texts]
            replaced_T1 = to_device(np.concatenate(replaced), device)[:, None]
            whole_TE = torch.where(replaced_T1, embedded_TE - baseline_TE, 0.0)
            share_B = to_device(1 - at.astype(np.float32), device)
            left_T1 = share_B.repeat_interleave(layout.lengths_B)[:, None]
            on_path_TE = (embedded_TE - left_T1 * whole_TE).to(network.dtype)
        directions_BDK = to_device(self.directions_NDK[texts], device)
        with torch.enable_grad():
            on_path_TE.requires_grad_()
            logits_BK = network.score(network.pooled_from_embeddings(on_path_TE, layout))
            scores_BD = (logits_BK[:, None] * directions_BDK).sum(-1)
            totals = scores_BD.sum(0).unbind()
        slopes = []
        for k, total in enumerate(totals):
            # Asked for this one gradient, torch leaves out the products that weights' would take.
            (grad_TE,) = torch.autograd.grad(total, on_path_TE, retain_graph=k + 1 < len(totals))
            slopes.append((grad_TE.float() * whole_TE).sum(-1))
        return scores_BD.detach(), torch.stack(slopes, dim=-1)


def _add_up(
    scores_SD: NDArray[np.float64], slopes_STD: NDArray[np.float64], replaced_T: NDArray[np.bool_]
) -> Attributions:
    """Integrate slopes along a path; each step adds up to what the scores change by."""
    steps_STD = (slopes_STD[1:] + slopes_STD[:-1]) / (2 * (len(scores_SD) - 1))
    rest_SD = np.diff(scores_SD, axis=0) - steps_STD.sum(axis=1)
    shares_STD = np.abs(steps_STD)
    # Where no token moved the score, rounding did; it is shared alike.
    shares_STD[:, replaced_T] += np.finfo(np.float64).tiny
    totals_S1D = shares_STD.sum(axis=1, keepdims=True)
    if replaced_T.any():
        steps_STD = steps_STD + rest_SD[:, None] * shares_STD / totals_S1D
    return Attributions(steps_STD.sum(axis=0), scores_SD[0])


@predicting()
def explain(
    model: FittedClassifier, X: Any, target: Any = None, output: Any = None, verbose: int = 0
) -> Any:
    """Return the table that `GPTTextClassifier.explain` describes."""
    import_optional("pandas", "explain")  # before anything runs
    at = _check_output(model, output)
    texts, cells = model.read_texts(X)
    n_scores = model.network.spec.n_outputs
    # One of several outputs is a model of its own, on some of the raw scores.
    views = model.of_outputs(np.zeros((1, n_scores), dtype=np.float32))
    own, before = views[at][0], sum(part.shape[1] for _, part in views[:at])
    n_classes = len(own.classes)
    if target is None:
        scores_NK = model.raw_scores(texts.X, verbose)[:, before : before + n_classes]
        chosen = predicted(scores_NK, own.multilabel)
    else:
        chosen = asked_for(target, len(texts), own.classes, own.fitted_by)
    explained_ND, own_NDK = directions(chosen, own.multilabel)
    around = ((0, 0), (0, 0), (before, n_scores - before - n_classes))
    return _explained(
        model, texts, cells, own.classes, explained_ND, np.pad(own_NDK, around), verbose
    )


def _check_output(model: FittedClassifier, output: Any) -> int:
    """Return which of the outputs is to be explained."""
    n_outputs = len(model.classes) if model.multioutput else 1
    if output is None and n_outputs == 1:
        return 0
    is_one = isinstance(output, numbers.Integral) and not isinstance(output, bool)
    if model.multioutput and is_one and 0 <= output < n_outputs:
        return int(output)
    if model.multioutput:
        raise InvalidTextError(
            f"`output` must say which column of y to explain, 0 to {n_outputs - 1}, as this model "
            f"was fitted on several. Got {output!r}: pass output=0 for the first."
        )
    raise InvalidTextError(
        "`output` is for models that were fitted on several columns of classes, and this one "
        f"wasn't. Got {output!r}: leave it at None."
    )


@predicting()
def explain_values(model: FittedRegressor, X: Any, target: Any = None, verbose: int = 0) -> Any:
    """Return the table that `GPTTextRegressor.explain` describes."""
    import_optional("pandas", "explain")  # before anything runs
    texts, cells = model.read_texts(X)
    mean_K, scale_K = (np.array(each) for each in (model.units.mean, model.units.scale))
    columns = np.arange(len(scale_K))
    if target is not None:
        if not isinstance(target, numbers.Integral) or target not in columns:
            raise InvalidTextError(
                f"`target` must be a column of y, 0 to {len(columns) - 1}, or None for all. Got "
                f"{target!r}."
            )
        columns = np.array([int(target)])
    explained = np.tile(columns, (len(texts), 1))
    directions_NDK = np.diag(scale_K).astype(np.float32)[explained]
    names = np.arange(len(scale_K))
    table = _explained(model, texts, cells, names, explained, directions_NDK, verbose)
    table["baseline"] += mean_K[table["class"]]
    table.attrs["numbers"] = True  # for plots, whose words are others of a class
    return table


def _explained(
    model: FittedModel,
    texts: TextColumns,
    cells: list[list[str]],
    names_K: NDArray[Any],
    explained_ND: NDArray[np.int64],
    directions_NDK: NDArray[np.float32],
    verbose: int,
) -> Any:
    """Return the table of what is explained of each text: raw scores' names, and directions."""
    network = model.network
    with work_bar(verbose) as bar:
        how = model.template, network.tokenizer, model.max_length, model.long_text
        say = partial(bar.move, "explain, tokenise", unit=" texts")
        tokens, spans = tokenise_with_spans(cells, *how, say)
        run, first = tokens.run, tokens.first
        of_run = np.repeat(np.arange(len(tokens)), np.diff(first))
        say = partial(bar.move, "explain", unit=" texts")
        found = _attributed(network, run, spans, explained_ND[of_run], directions_NDK[of_run], say)
    parts = [
        _of_text(found[start:end], run.offsets[start : end + 1], spans)
        for start, end in pairwise(first.tolist())
    ]
    names = model.columns.get("feature_names_in_", texts.names)
    return explanation_frame(cells, names, names_K, explained_ND, parts, spans)


def _attributed(
    network: TextNetwork,
    run: Tokens,
    spans: TokenSpans,
    explained_ND: NDArray[np.int64],
    directions_NDK: NDArray[np.float32],
    progress: Progress,
) -> list[Attributions]:
    """Return the attributions of all texts or windows, equal ones computed once."""
    replaced = spans.column >= 0
    # Equal tokens may be others' words, where a template repeats what stands in a cell, and equal
    # windows may be of texts of different classes.
    keys = [
        (text, replaced[start:end].tobytes(), explained.tobytes())
        for text, start, end, explained in zip(
            run.distinct()[0], run.offsets[:-1], run.offsets[1:], explained_ND, strict=True
        )
    ]
    first = {key: row for row, key in reversed([*enumerate(keys)])}
    rows = np.array(sorted(first.values()))
    replaced = np.concatenate([replaced[run.offsets[i] : run.offsets[i + 1]] for i in rows])
    found = attribute(network, run.take(rows), replaced, directions_NDK[rows], progress=progress)
    made = dict(zip(rows.tolist(), found, strict=True))
    return [made[first[key]] for key in keys]


def _of_text(
    windows: list[Attributions], offsets: NDArray[np.int64], spans: TokenSpans
) -> tuple[NDArray[np.int64], Attributions]:
    """Put a text together from its windows, which begin at these offsets.

    Returns where among `spans` the text's own tokens lie, and what these add. A text has the mean
    of its windows' scores, as the head is linear, so a token has the mean of what it adds to each
    window, zero in one that it isn't in.
    """
    within = np.arange(offsets[0], offsets[-1])
    own = within[spans.column[within] >= 0]
    _, at, token = np.unique(spans.index[own], return_index=True, return_inverse=True)
    each_TD = np.concatenate([window.values_TD for window in windows])[own - offsets[0]]
    values_TD = np.zeros((len(at), each_TD.shape[1]))
    np.add.at(values_TD, token, each_TD / len(windows))
    baseline_D = np.mean([window.baseline_D for window in windows], axis=0)
    return own[at], Attributions(values_TD, baseline_D)


def predicted(scores_NK: NDArray[np.floating[Any]], multilabel: bool) -> NDArray[np.bool_]:
    """Say which labels of each text are predicted; where none is, the one nearest to it."""
    highest_NK = np.arange(scores_NK.shape[1]) == scores_NK.argmax(axis=1)[:, None]
    return highest_NK | (scores_NK > 0) if multilabel else highest_NK


def asked_for(target: Any, n: int, known: NDArray[Any], name: str) -> NDArray[np.bool_]:
    """Say which labels of n texts the user wants explained: one for all, or some for each."""
    each = [target] * n if np.isscalar(target) else target
    columns = np.arange(len(known))
    classes = columns if has_columns(each) else known
    found = encode_target(each, n, name=name, classes=classes, what="`target`")
    return found.codes > 0 if found.is_multilabel else found.codes[:, None] == columns


def directions(
    chosen_NK: NDArray[np.bool_], multilabel: bool
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return the classes to explain, (N, D), and as weights of raw scores, (N, D, K).

    A text of fewer classes than others has -1 and zeros in their place. Of two classes the score
    is what tells them apart, their difference, as in `decision_function`.
    """
    n_classes = chosen_NK.shape[1]
    each = np.eye(n_classes, dtype=np.float32)
    if n_classes == 2 and not multilabel:
        each = np.array([[1, -1], [-1, 1]], dtype=np.float32)
    most = max(1, chosen_NK.sum(axis=1).max())
    explained_ND = np.argsort(~chosen_NK, axis=1, kind="stable")[:, :most]
    is_chosen_ND = np.take_along_axis(chosen_NK, explained_ND, axis=1)
    directions_NDK = each[explained_ND] * is_chosen_ND[:, :, None]
    return np.where(is_chosen_ND, explained_ND, -1), directions_NDK


def explanation_frame(
    columns: list[list[str]],
    column_names: Sequence[str] | None,
    classes: NDArray[Any],
    explained_ND: NDArray[np.int64],
    parts: list[tuple[NDArray[np.int64], Attributions]],
    spans: TokenSpans,
) -> Any:
    """Return a DataFrame with a row for each token and explained class.

    `parts` are of each text where among the spans its own tokens lie, and what they add.
    """
    pandas = import_optional("pandas", "explain")
    words = cache(words_of)
    rows: list[tuple[Any, ...]] = []
    for text, ((tokens, added), explained_D) in enumerate(zip(parts, explained_ND, strict=True)):
        for d in np.flatnonzero(explained_D >= 0):
            label, baseline = classes[explained_D[d]], added.baseline_D[d]
            for token, value in zip(tokens, added.values_TD[:, d], strict=True):
                column, start, end = spans.column[token], spans.start[token], spans.end[token]
                cell = columns[column][text]
                word_start, word_end = word_at(words(cell), cell, start, end)
                # Cleaned, as pandas' texts hold no lone surrogates.
                place = (column, start, end, clean(cell[start:end]))
                word = (word_start, clean(cell[word_start:word_end]))
                rows.append((text, label, *place, *word, value, baseline))
    names = ("text", "class", "column", "start", "end", "token", "word_start", "word")
    values = list(zip(*rows, strict=True)) or [()] * (len(names) + 2)
    kinds: dict[str, Any] = dict.fromkeys(
        ("text", "column", "start", "end", "word_start"), np.int64
    )
    kinds |= {"class": classes.dtype, "token": object, "word": object}
    table = {
        name: np.array(column, dtype=kinds.get(name, np.float64))
        for name, column in zip((*names, "value", "baseline"), values, strict=True)
    }
    if column_names is not None:
        table["column"] = np.array(column_names, dtype=object)[table["column"]]
    return pandas.DataFrame(table)
