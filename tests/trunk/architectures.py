"""Tiny trunks of architectures that `skgpt.testing` has none of, and what is known of them."""

from functools import partial
from typing import Any, NamedTuple
from unittest.mock import patch

import torch

from skgpt.testing import tiny, tiny_gpt
from skgpt.testing.tiny import _Architecture

WINDOW = 16  # of every sliding window and chunk: the longest text is several times as long

_PLAIN: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 1024,
}
_GROUPED = _PLAIN | {"num_key_value_heads": 2}
_AS_GPT2 = {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 1024} | {
    "resid_pdrop": 0.0,
    "embd_pdrop": 0.0,
    "attn_pdrop": 0.0,
}
_ONE_FULL = {"layer_types": ["sliding_attention", "sliding_attention", "full_attention"]}
_PADS = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}

_as_bert = partial(
    _Architecture,
    special_tokens=tiny._ARCHITECTURES["bert"].special_tokens,
    frame="[CLS] $A [SEP]",
    auto_class="AutoModelForMaskedLM",
)
_as_roberta = partial(
    _Architecture,
    special_tokens=_PADS | {"mask_token": "<mask>"},
    frame="<s> $A </s>",
    auto_class="AutoModelForMaskedLM",
)


class Known(NamedTuple):
    """What `probe` has to find out about a trunk, and whether it can be entered in the middle."""

    made: _Architecture
    packs: bool
    fast: bool = False
    causal: bool = True  # right padding changes a causal one in nothing, any other unless masked
    cut: bool = True


_packs = partial(Known, packs=True)
_pads = partial(Known, packs=False)

KNOWN: dict[str, Known] = {
    # As Qwen2 once was: a window in the later layers alone.
    "qwen2": _packs(
        _Architecture(
            "qwen2",
            _GROUPED
            | {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1},
        ),
        fast=True,
    ),
    "mistral with a window": _packs(
        _Architecture("mistral", _GROUPED | {"sliding_window": WINDOW}), fast=True
    ),
    # What a Llama's configuration says of a window is not acted upon.
    "llama with a stray window": _packs(
        _Architecture("llama", _GROUPED | {"sliding_window": WINDOW}), fast=True
    ),
    "smollm3": _packs(_Architecture("smollm3", _GROUPED | {"no_rope_layers": [1, 0, 1]}, _PADS)),
    "phi": _packs(_Architecture("phi", _PLAIN | {"partial_rotary_factor": 0.5})),
    "phi3": _packs(_Architecture("phi3", _GROUPED | {"sliding_window": WINDOW})),
    "olmo2": _packs(_Architecture("olmo2", _GROUPED)),
    "cohere2": _packs(_Architecture("cohere2", _GROUPED | {"sliding_window": WINDOW} | _ONE_FULL)),
    "mixtral": _packs(_Architecture("mixtral", _GROUPED | {"num_local_experts": 4})),
    "gemma2 without caps": _packs(
        _Architecture(
            "gemma2",
            _GROUPED | {"head_dim": 8, "sliding_window": WINDOW, "attn_logit_softcapping": None},
        )
    ),
    # Both see a window's width to either side; they count its width in two ways.
    "gemma3 as an encoder": _packs(
        _Architecture(
            "gemma3_text",
            _GROUPED
            | {"head_dim": 8, "sliding_window": WINDOW, "use_bidirectional_attention": True}
            | _ONE_FULL,
        ),
        causal=False,
    ),
    "modernbert": _packs(
        _as_bert("modernbert", _PLAIN | {"local_attention": WINDOW}), causal=False
    ),
    "distilbert": _packs(
        _as_bert(
            "distilbert",
            {"dim": 32, "hidden_dim": 64, "n_layers": 3, "n_heads": 4}
            | {"max_position_embeddings": 1024, "dropout": 0.0, "attention_dropout": 0.0},
        ),
        causal=False,
    ),
    # Positions that are counted from the padding id on.
    "roberta": _pads(_as_roberta("roberta", _PLAIN), causal=False),
    # Scores are capped, or a sink takes part of them.
    "gemma2": _pads(_Architecture("gemma2", _GROUPED | {"head_dim": 8, "sliding_window": WINDOW})),
    "gpt_oss": _pads(
        _Architecture(
            "gpt_oss",
            _GROUPED
            | {"head_dim": 8, "sliding_window": WINDOW}
            | {"num_local_experts": 4, "num_experts_per_tok": 2},
        )
    ),
    # A window, or chunks, that only their masks tell of.
    "llama4": _pads(
        _Architecture(
            "llama4_text",
            _GROUPED
            | {"head_dim": 8, "attention_chunk_size": WINDOW}
            | {"num_local_experts": 2, "intermediate_size_mlp": 64},
        )
    ),
    # Attention of their own, or none.
    "gptj": _pads(_Architecture("gptj", _AS_GPT2 | {"rotary_dim": 4})),
    "falcon": _pads(
        _Architecture(
            "falcon",
            {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "alibi": False},
        )
    ),
    "mamba": _pads(
        _Architecture("mamba", {"hidden_size": 32, "num_hidden_layers": 3, "state_size": 8})
    ),
    "xglm": _pads(
        _Architecture(
            "xglm",
            {"d_model": 32, "ffn_dim": 64, "num_layers": 3, "attention_heads": 4}
            | {"max_position_embeddings": 1024, "dropout": 0.0, "attention_dropout": 0.0},
        )
    ),
    # Its blocks return lists, which nothing can be put into.
    "openai-gpt": _pads(_Architecture("openai-gpt", _AS_GPT2), cut=False),
}


# The same of the architectures that `skgpt.testing` does have.
_FAST = {"llama", "mistral", "qwen3"}
_PACKED = _FAST | {"bert", "gemma3", "gpt2", "gpt_neox", "opt"}
ALL = {
    name: Known(made, packs=name in _PACKED, fast=name in _FAST, causal=name != "bert")
    for name, made in tiny._ARCHITECTURES.items()
} | KNOWN
FAST = sorted(_FAST)


def write_tiny(folder: str, name: str) -> str:
    """Write a tiny model of either table, with the weights and the tokenizer of `tiny_gpt`."""
    known = patch.dict(tiny._ARCHITECTURES, {name: ALL[name].made})
    # `tiny_gpt` adds to the vectors that are there, and some of these families draw theirs.
    with known, torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return tiny_gpt(folder, name)
