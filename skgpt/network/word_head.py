"""A head that starts as label words'; it alone joins a network's head and a language model's."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from skgpt.data.tokenization import Tokens
from skgpt.device import to_device
from skgpt.network.features import TextFeatures
from skgpt.network.microbatches import explain_no_memory
from skgpt.network.network import TextNetwork
from skgpt.pretrained.language_head import linear_part


@explain_no_memory()
def start_head(
    network: TextNetwork, head: Any, prompts: Tokens, words: Sequence[Sequence[int]]
) -> None:
    """Have a network's head start as the language model's, for the token or tokens of each class.

    Several have their mean. What it says of the classes behind `prompts`, which say nothing, is
    taken off: the logarithms of the mean probabilities. `head` is what `LanguageHead.on` returned.
    """
    device = network.device
    with torch.no_grad():
        features = TextFeatures(
            network, prompts, token_budget=int(prompts.lengths.sum()), memory_budget=0
        )
        pooled_BH = torch.from_numpy(features.pooled_array(np.arange(len(prompts)))).to(device)
    flat = to_device(np.concatenate([np.asarray(each) for each in words]), device)
    weight, bias = linear_part(head, flat, pooled_BH)
    sizes = [len(each) for each in words]
    with torch.no_grad():
        network.head.weight.copy_(torch.stack([w.mean(0) for w in weight.split(sizes)]))
        network.offset.copy_(torch.stack([b.mean() for b in bias.split(sizes)]))
        log_p_BK = network.score(pooled_BH).log_softmax(1)
        network.offset -= log_p_BK.logsumexp(0) - np.log(len(log_p_BK))
