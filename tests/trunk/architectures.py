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
_WINDOWED = _GROUPED | {"sliding_window": WINDOW}
_WINDOWED_8 = _WINDOWED | {"head_dim": 8}
_AS_GPT2 = {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 1024} | {
    "resid_pdrop": 0.0,
    "embd_pdrop": 0.0,
    "attn_pdrop": 0.0,
}
_FEW = {"max_position_embeddings": 1024, "dropout": 0.0, "attention_dropout": 0.0}
_ONE_FULL = {"layer_types": ["sliding_attention", "sliding_attention", "full_attention"]}
_PADS = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}

# What goes with the configuration.
_AS_BERT: dict[str, Any] = {
    "special_tokens": tiny._ARCHITECTURES["bert"].special_tokens,
    "frame": "[CLS] $A [SEP]",
    "auto_class": "AutoModelForMaskedLM",
}
_AS_ROBERTA: dict[str, Any] = {
    "special_tokens": _PADS | {"mask_token": "<mask>"},
    "frame": "<s> $A </s>",
    "auto_class": "AutoModelForMaskedLM",
}


class Known(NamedTuple):
    """What `probe` has to find out about a trunk, and whether it can be entered in the middle."""

    made: _Architecture
    packs: bool
    fast: bool = False
    causal: bool = True  # right padding changes a causal one in nothing, any other unless masked
    cut: bool = True


def _known(
    packs: bool,
    model_type: str,
    config: dict[str, Any],
    tokens: dict[str, Any] | None = None,
    **known: bool,
) -> Known:
    return Known(_Architecture(model_type, config, **(tokens or {})), packs, **known)


_packs = partial(_known, True)
_pads = partial(_known, False)

KNOWN: dict[str, Known] = {
    # As Qwen2 once was: a window in the later layers alone.
    "qwen2": _packs(
        "qwen2", _WINDOWED | {"use_sliding_window": True, "max_window_layers": 1}, fast=True
    ),
    "mistral with a window": _packs("mistral", _WINDOWED, fast=True),
    # What a Llama's configuration says of a window is not acted upon.
    "llama with a stray window": _packs("llama", _WINDOWED, fast=True),
    "smollm3": _packs(
        "smollm3", _GROUPED | {"no_rope_layers": [1, 0, 1]}, {"special_tokens": _PADS}
    ),
    "phi": _packs("phi", _PLAIN | {"partial_rotary_factor": 0.5}),
    "phi3": _packs("phi3", _WINDOWED),
    "olmo2": _packs("olmo2", _GROUPED),
    "cohere2": _packs("cohere2", _WINDOWED | _ONE_FULL),
    "mixtral": _packs("mixtral", _GROUPED | {"num_local_experts": 4}),
    "gemma2 without caps": _packs("gemma2", _WINDOWED_8 | {"attn_logit_softcapping": None}),
    # Both see a window's width to either side; they count its width in two ways.
    "gemma3 as an encoder": _packs(
        "gemma3_text",
        _WINDOWED_8 | {"use_bidirectional_attention": True} | _ONE_FULL,
        causal=False,
    ),
    "modernbert": _packs(
        "modernbert", _PLAIN | {"local_attention": WINDOW}, _AS_BERT, causal=False
    ),
    "distilbert": _packs(
        "distilbert",
        {"dim": 32, "hidden_dim": 64, "n_layers": 3, "n_heads": 4} | _FEW,
        _AS_BERT,
        causal=False,
    ),
    # Positions that are counted from the padding id on.
    "roberta": _pads("roberta", _PLAIN, _AS_ROBERTA, causal=False),
    # Scores are capped, or a sink takes part of them.
    "gemma2": _pads("gemma2", _WINDOWED_8),
    "gpt_oss": _pads("gpt_oss", _WINDOWED_8 | {"num_local_experts": 4, "num_experts_per_tok": 2}),
    # A window, or chunks, that only their masks tell of.
    "llama4": _pads(
        "llama4_text",
        _GROUPED
        | {"head_dim": 8, "attention_chunk_size": WINDOW}
        | {"num_local_experts": 2, "intermediate_size_mlp": 64},
    ),
    # Attention of their own, or none.
    "gptj": _pads("gptj", _AS_GPT2 | {"rotary_dim": 4}),
    "falcon": _pads(
        "falcon",
        {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "alibi": False},
    ),
    "mamba": _pads("mamba", {"hidden_size": 32, "num_hidden_layers": 3, "state_size": 8}),
    "xglm": _pads(
        "xglm", {"d_model": 32, "ffn_dim": 64, "num_layers": 3, "attention_heads": 4} | _FEW
    ),
    # Its blocks return lists, which nothing can be put into.
    "openai-gpt": _pads("openai-gpt", _AS_GPT2, cut=False),
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
