"""How likely phrases are behind prompts, as a decoder's language-model head has it.

What all prompts begin with runs once, and its keys and values are kept. Behind each prompt the
phrases' tokens are a tree, of which each node sees its own beginning alone: a prompt runs once for
all phrases, and a beginning that phrases share once for all of them. Where a probe has found that
a trunk can't do that, each beginning runs whole behind a prompt of its own.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from skgpt.caching import Store
from skgpt.data.batching import Progress, Rows, no_progress
from skgpt.data.tokenization import Tokens
from skgpt.device import prefix_budget, to_device
from skgpt.exceptions import ModelNotSupportedError
from skgpt.network.features import TextFeatures
from skgpt.network.layout import Layout, ids_of
from skgpt.network.microbatches import MicroBatcher, explain_no_memory, token_budget
from skgpt.network.network import TextNetwork
from skgpt.pretrained.language_head import log_probabilities
from skgpt.trunk.attention import Prefix

Phrase = tuple[int, ...]  # token ids

_LEAST_SHARED = 16  # tokens at the beginning of all prompts; fewer aren't worth keeping
_MOST_BEGINNINGS = 512  # in a tree, whose attention is computed for all pairs


@explain_no_memory()
def log_likelihoods(
    network: TextNetwork,
    head: Any,
    prompts: Tokens,
    phrases: Sequence[Phrase],
    shared: Phrase = (),
    progress: Progress = no_progress,
    *,
    n_given: Sequence[int] | None = None,
) -> NDArray[np.float64]:
    """Return the log-likelihood of each phrase right behind each prompt, shape (N, n_phrases).

    It is the sum over the phrase's tokens, less the first `n_given`, which are taken as said.
    `network` pools the last token of all of a decoder's layers, and `head` is what
    `LanguageHead.on` returned. `shared` is what the prompts begin with, as far as their tokens are
    the same.
    """
    texts, first = prompts.distinct()
    distinct = prompts.take(np.array([*first.values()]))
    given = [0] * len(phrases) if n_given is None else n_given
    result_DP = _of_distinct(network, head, distinct, phrases, given, shared, progress)
    if not np.isfinite(result_DP).all():
        raise ModelNotSupportedError(
            f"The logits of {network.pretrained.model!r} must stay finite. They don't in "
            f"{network.dtype}: set precision='fp32'."
        )
    place = {text: i for i, text in enumerate(first)}
    return result_DP[[place[text] for text in texts]]


def _of_distinct(
    network: TextNetwork,
    head: Any,
    prompts: Tokens,
    phrases: Sequence[Phrase],
    given: Sequence[int],
    shared: Phrase,
    progress: Progress,
) -> NDArray[np.float64]:
    words = sorted({token for p, n in zip(phrases, given, strict=True) for token in p[n:]})
    beginnings = _steps(phrases, given, words)
    can = network.pretrained.capabilities.supports_context
    if can and len(beginnings) > _MOST_BEGINNINGS and len(phrases) > 1:
        half = len(phrases) // 2
        parts = ((phrases[:half], given[:half]), (phrases[half:], given[half:]))
        return np.hstack(
            [_of_distinct(network, head, prompts, *part, shared, progress) for part in parts]
        )
    n_shared = _n_shared(prompts, shared) if can else 0
    steps = {begins: step for begins, step in beginnings.items() if step[0]}
    if can and (n_shared or len(beginnings) > 1):
        lengths, states_of = _in_context(network, prompts, [*beginnings], [*steps], n_shared)
    else:
        lengths, states_of = _whole(network, prompts, [*steps], progress)
    result_DP = np.zeros((len(prompts), len(phrases)))
    wanted = to_device(np.array(words), network.device)
    batcher = MicroBatcher(network, token_budget(network, learning=False))

    def run(part: Rows) -> tuple[Rows, NDArray[np.float32]]:
        number, states = states_of(part)
        return number, log_probabilities(head, states, wanted).cpu().numpy()

    with torch.no_grad():
        for _, (number, found) in batcher.map(run, np.arange(len(lengths)), lengths, progress):
            # Add what comes next behind each beginning to the phrases that go on with it.
            prompt_of, beginning_of = np.divmod(number, len(steps))
            for i, step in enumerate(steps.values()):
                which, columns = map(np.array, step)
                ours = np.flatnonzero(beginning_of == i)
                result_DP[np.ix_(prompt_of[ours], which)] += found[np.ix_(ours, columns)]
    return result_DP


def _steps(
    phrases: Sequence[Phrase], given: Sequence[int], words: list[int]
) -> dict[Phrase, tuple[list[int], list[int]]]:
    """Return of each beginning which phrases go on behind it, and with which of the words.

    Those that go on with what is given don't count: none may be left.
    """
    column = {word: i for i, word in enumerate(words)}
    steps: dict[Phrase, tuple[list[int], list[int]]] = {}
    for i, (phrase, n_given) in enumerate(zip(phrases, given, strict=True)):
        for n, token in enumerate(phrase):
            which, columns = steps.setdefault(phrase[:n], ([], []))
            if n >= n_given:
                which.append(i)
                columns.append(column[token])
    return steps


def _n_shared(prompts: Tokens, shared: Phrase) -> int:
    """Return how many tokens all prompts begin with, of those shared, if they are worth keeping.

    Where the words before a field end, a tokenizer may join them with what comes. And of each
    prompt something is left to run.
    """
    n = min(len(shared), int(prompts.lengths.min()) - 1)
    expected = np.array(shared)
    for i in range(len(prompts)):
        differs = prompts.row(i)[:n] != expected[:n]
        n = int(differs.argmax()) if differs.any() else n
    return n if n >= _LEAST_SHARED else 0


# Both return the tokens of what is run, and a function from rows of it to the states that come
# out: the number of each, as prompt times beginning, and itself.
_Runner = tuple[NDArray[np.int64], Callable[[Rows], tuple[Rows, Tensor]]]


def _whole(
    network: TextNetwork, prompts: Tokens, beginnings: list[Phrase], progress: Progress
) -> _Runner:
    """Run each beginning whole behind each prompt; a fit's or search's states are kept."""
    rows = [prompts.row(i) for i in range(len(prompts))]
    texts = [np.array([*row, *begins], dtype=np.int64) for row in rows for begins in beginnings]
    features = TextFeatures(
        network,
        Tokens.of(texts),
        token_budget=token_budget(network, learning=False),
        memory_budget=prefix_budget(network.device) // 4,  # a part: it may never be asked for again
        progress=progress,
    )
    return features.lengths, lambda rows: (rows, features.pooled(rows))


def _in_context(
    network: TextNetwork,
    prompts: Tokens,
    beginnings: list[Phrase],
    wanted: list[Phrase],
    n_shared: int,
) -> _Runner:
    """Run each prompt, less what all share, once with all beginnings behind it.

    The states that come out are those of the wanted beginnings.
    """
    # The tree: of each beginning its last token, which sees those of the beginnings it begins with.
    number = {begins: i for i, begins in enumerate(beginnings[1:])}
    tree_MM = np.zeros((len(number), len(number)), dtype=bool)
    for begins, i in number.items():
        tree_MM[i, [number[begins[: n + 1]] for n in range(len(begins))]] = True
    nodes = np.array([begins[-1] for begins in number], dtype=np.int64)
    texts = Tokens.of(
        [np.concatenate([prompts.row(i)[n_shared:], nodes]) for i in range(len(prompts))]
    )
    context: dict[str, Any] = {}
    if n_shared:
        context["prefix"] = _kept_prefix(network, prompts.row(0)[:n_shared])
    if len(nodes):
        context["tree_MM"] = to_device(tree_MM, network.device)

    # How far before the last node each of the wanted beginnings ends.
    back = np.array([len(nodes) - 1 - number.get(begins, -1) for begins in wanted])

    def run(rows: Rows) -> tuple[Rows, Tensor]:
        at = rows[:, None] * len(wanted) + np.arange(len(wanted))
        layout = Layout.of(texts.lengths[rows], network.pretrained, network.device, **context)
        ids_T = ids_of(texts, rows, network.device)
        if not len(nodes):
            return at.ravel(), network.pooled(ids_T, layout)
        hidden_TH = network.hidden(ids_T, layout)
        ends_BS = layout.ends_B[:, None] - to_device(back, network.device)
        return at.ravel(), hidden_TH[ends_BS.flatten()].float()

    return texts.lengths, run


def _kept_prefix(network: TextNetwork, ids: NDArray[np.int64]) -> Prefix:
    """Return the keys and values of what all prompts begin with, run only if they aren't kept."""

    def run() -> Prefix:
        prefix = Prefix()
        layout = Layout.of(np.array([len(ids)]), network.pretrained, network.device, prefix=prefix)
        network.hidden(to_device(ids, network.device), layout)
        return prefix.first(len(ids))

    device = network.device
    # Apart from the states of texts, which `set_cache_memory` bounds: every prediction asks for it.
    kept: Store[Prefix] = Store.named(f"prompts on {device}", lambda: prefix_budget(device) // 8)
    key = (ids.tobytes(), network.spec.n_layers, network.cache_key)
    return kept.get_or_make(key, run, lambda prefix: prefix.nbytes)
