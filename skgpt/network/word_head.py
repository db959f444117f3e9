"""A head that starts as label words'; it alone joins a network's head and a language model's."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from skgpt.data.tokenization import Tokens
from skgpt.device import to_device
from skgpt.network.features import TextFeatures
from skgpt.network.microbatches import explain_no_memory
from skgpt.network.network import TextNetwork
from skgpt.network.phrases import Phrase
from skgpt.pretrained.language_head import linear_part


@explain_no_memory()
def start_head(
    network: TextNetwork, head: Any, prompts: Tokens, phrases: Sequence[Sequence[Phrase]]
) -> None:
    """Have a network's head start as the language model's, for the phrases of each class.

    A phrase of several tokens has the mean of their logits, and so has a class of several phrases.
    What it says of the classes behind `prompts`, which say nothing, is taken off: the logarithms of
    the mean probabilities. `head` is what `LanguageHead.on` returned.
    """
    device = network.device
    with torch.no_grad():
        features = TextFeatures(
            network, prompts, token_budget=int(prompts.lengths.sum()), memory_budget=0
        )
        pooled_BH = torch.from_numpy(features.pooled_array(np.arange(len(prompts)))).to(device)
    tokens = [token for of_class in phrases for phrase in of_class for token in phrase]
    weight, bias = linear_part(head, to_device(np.array(tokens), device), pooled_BH)
    with torch.no_grad():
        network.head.weight.copy_(_means(weight, phrases))
        network.offset.copy_(_means(bias, phrases))
        log_p_BK = network.score(pooled_BH).log_softmax(1)
        network.offset -= log_p_BK.logsumexp(0) - np.log(len(log_p_BK))


def _means(values: Tensor, phrases: Sequence[Sequence[Phrase]]) -> Tensor:
    """Return the mean over each class' phrases of the means over their tokens, one value each."""
    lengths = [len(phrase) for of_class in phrases for phrase in of_class]
    of_phrases = torch.stack([part.mean(0) for part in values.split(lengths)])
    return torch.stack([part.mean(0) for part in of_phrases.split([*map(len, phrases)])])
