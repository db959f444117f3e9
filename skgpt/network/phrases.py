"""How likely phrases are behind prompts, as a decoder's language-model head has it."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from skgpt.data.batching import Progress, no_progress
from skgpt.data.tokenization import Tokens
from skgpt.device import to_device
from skgpt.exceptions import ModelNotSupportedError
from skgpt.network.features import TextFeatures
from skgpt.network.microbatches import MicroBatcher, explain_no_memory
from skgpt.network.network import TextNetwork
from skgpt.pretrained.language_head import log_probabilities

Phrase = tuple[int, ...]  # token ids


@explain_no_memory()
def log_likelihoods(
    network: TextNetwork,
    head: Any,
    prompts: Tokens,
    phrases: Sequence[Phrase],
    token_budget: int,
    memory_budget: int,
    progress: Progress = no_progress,
) -> NDArray[np.float64]:
    """Return the log-likelihood of each phrase right behind each prompt, shape (N, n_phrases).

    It is the sum over the phrase's tokens. `network` pools the last token of all of a decoder's
    layers, and `head` is what `LanguageHead.on` returned. A prompt runs once for all phrases of one
    token, and once more with each beginning that longer ones have, alone or in common.
    """
    texts, first = prompts.distinct()
    distinct = [prompts.row(row) for row in first.values()]
    words = sorted({token for phrase in phrases for token in phrase})
    steps = _steps(phrases, words)
    tokens = Tokens.of(
        [
            np.concatenate([prompt, beginning]).astype(np.int64)
            for prompt in distinct
            for beginning in steps
        ]
    )
    nexts = list(steps.values())
    result = np.zeros((len(distinct), len(phrases)))
    wanted = to_device(np.array(words), network.device)
    with torch.no_grad():
        features = TextFeatures(
            network,
            tokens,
            token_budget=token_budget,
            memory_budget=memory_budget,
            progress=progress,
        )
        batcher = MicroBatcher(network, token_budget)
        for micro_batch in batcher.map(np.arange(len(tokens)), features.lengths):
            with micro_batch as part:
                found = log_probabilities(head, features.pooled(part), wanted).cpu().numpy()
                # Add what comes next behind each beginning to the phrases that go on with it.
                prompt_of, beginning_of = np.divmod(part, len(steps))
                for i in np.unique(beginning_of):
                    ours = np.flatnonzero(beginning_of == i)
                    which, columns = nexts[i]
                    result[np.ix_(prompt_of[ours], which)] += found[np.ix_(ours, columns)]
    if not np.isfinite(result).all():
        raise ModelNotSupportedError(
            f"The logits of {network.pretrained.model!r} must stay finite. They don't in "
            f"{network.dtype}: set precision='fp32'."
        )
    place = {text: i for i, text in enumerate(first)}
    return result[[place[text] for text in texts]]


def _steps(
    phrases: Sequence[Phrase], words: list[int]
) -> dict[Phrase, tuple[list[int], list[int]]]:
    """Return of each beginning which phrases go on behind it, and with which of the words."""
    column = {word: i for i, word in enumerate(words)}
    steps: dict[Phrase, tuple[list[int], list[int]]] = {}
    for i, phrase in enumerate(phrases):
        for n, token in enumerate(phrase):
            which, columns = steps.setdefault(phrase[:n], ([], []))
            which.append(i)
            columns.append(column[token])
    return steps
