"""Write a tiny seeded model with a byte tokenizer, for tests that need a model but no download.

Its folder is a transformers checkpoint like any other, so code under test loads it as it loads a
real model. torch and transformers are imported only when one is written.
"""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_HIDDEN, _HEADS, _LAYERS = 32, 4, 3
_POSITIONS = 1024
_N_BYTES = 256

# Wide enough that two texts end in clearly different hidden states, narrow enough that three
# residual blocks don't blow up; what a token is weighs more than where it stands, as in real
# models, or nothing could be learned from a few dozen texts.
_TOKEN_STD, _POSITION_STD, _MATRIX_STD = 0.5, 0.05, 0.15
# Biases and norms are off their neutral values, or code that forgets one would pass its tests.
_VECTOR_STD = 0.1

_BOS_EOS = {"bos_token": "<s>", "eos_token": "</s>"}
_END_OF_TEXT = {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"}
_BERT_TOKENS = {
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "pad_token": "[PAD]",
    "mask_token": "[MASK]",
}


class _Architecture(NamedTuple):
    """How one family is made small: its config, its special tokens and what frames a text."""

    model_type: str
    config: dict[str, Any]
    special_tokens: dict[str, str] = _BOS_EOS
    frame: str | None = None  # a post-processor template, where the family has one
    auto_class: str = "AutoModelForCausalLM"


_SIZES: dict[str, Any] = {
    "hidden_size": _HIDDEN,
    "num_hidden_layers": _LAYERS,
    "num_attention_heads": _HEADS,
    "max_position_embeddings": _POSITIONS,
}
_WIDE_SIZES = _SIZES | {"intermediate_size": 2 * _HIDDEN}
_LLAMA_LIKE = _WIDE_SIZES | {
    "num_key_value_heads": _HEADS // 2,
    "head_dim": _HIDDEN // _HEADS,
    "tie_word_embeddings": True,
}

_ARCHITECTURES: dict[str, _Architecture] = {
    "bert": _Architecture(
        "bert",
        _WIDE_SIZES | {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
        _BERT_TOKENS,
        "[CLS] $A [SEP]",
        "AutoModel",
    ),
    "bloom": _Architecture("bloom", {"hidden_size": _HIDDEN, "n_layer": _LAYERS, "n_head": _HEADS}),
    # The window is shorter than a long text on purpose: attention that ignores it is wrong here.
    "gemma3": _Architecture(
        "gemma3_text",
        {**_LLAMA_LIKE, "query_pre_attn_scalar": 8, "sliding_window": 64}
        | {"layer_types": ["sliding_attention", "sliding_attention", "full_attention"]},
        {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>"},
        "<bos> $A",
    ),
    "gpt2": _Architecture(
        "gpt2",
        {"n_embd": _HIDDEN, "n_layer": _LAYERS, "n_head": _HEADS, "n_positions": _POSITIONS}
        | {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
        _END_OF_TEXT,
    ),
    "gpt_neo": _Architecture(
        "gpt_neo",
        {"hidden_size": _HIDDEN, "num_layers": _LAYERS, "num_heads": _HEADS}
        | {"max_position_embeddings": _POSITIONS, "window_size": 64}
        | {"attention_types": [[["global"], 1], [["local"], 1], [["global"], 1]]},
        _END_OF_TEXT,
    ),
    "gpt_neox": _Architecture("gpt_neox", _WIDE_SIZES, _END_OF_TEXT),
    "llama": _Architecture("llama", _LLAMA_LIKE),
    "mistral": _Architecture(
        "mistral",
        _LLAMA_LIKE | {"sliding_window": None, "tie_word_embeddings": False},
        frame="<s> $A",
    ),
    "opt": _Architecture(
        "opt",
        _SIZES | {"word_embed_proj_dim": _HIDDEN, "ffn_dim": 2 * _HIDDEN, "dropout": 0.0},
        {"bos_token": "</s>", "eos_token": "</s>", "pad_token": "<pad>"},
        "</s> $A",
    ),
    "qwen3": _Architecture("qwen3", _LLAMA_LIKE),
}


def tiny_gpt(folder: str | os.PathLike[str], architecture: str = "llama", seed: int = 0) -> str:
    """Write a tiny decoder with random weights and a byte tokenizer as a transformers folder.

    The weights depend on `architecture` and `seed` alone, so two calls write the same
    ``model.safetensors``; torch's global random state is left as it was. Three layers, hidden
    width 32, 1024 positions, one token per UTF-8 byte: it knows no language, but it tells texts
    apart, and it can be fine-tuned in a second.

    Parameters
    ----------
    folder : str or path-like
        Where to write; made if needed. Files of the same names are overwritten.
    architecture : str, default="llama"
        The family: "bert" (an encoder), "bloom", "gemma3", "gpt2", "gpt_neo", "gpt_neox",
        "llama", "mistral", "opt" or "qwen3". "gemma3" and "gpt_neo" have attention windows of 64
        tokens in some layers.
    seed : int, default=0
        Of the weights.

    Returns
    -------
    path : str
        The absolute path of `folder`, to be passed as ``model=``.

    Raises
    ------
    ValueError
        If there is no such architecture.

    Examples
    --------
    >>> import tempfile
    >>> from skgpt.testing import tiny_gpt
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = tiny_gpt(folder, "gpt2")  # doctest: +SKIP
    """
    if architecture not in _ARCHITECTURES:
        raise ValueError(
            f"`architecture` must be one of {', '.join(sorted(_ARCHITECTURES))}. "
            f"Got {architecture!r}."
        )
    import torch
    import transformers

    family = _ARCHITECTURES[architecture]
    path = Path(folder).absolute()
    path.mkdir(parents=True, exist_ok=True)
    tokenizer = _byte_tokenizer(family)
    config = transformers.AutoConfig.for_model(
        family.model_type,
        vocab_size=len(tokenizer),
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **family.config,
    )
    auto_class = getattr(transformers, family.auto_class)
    # The constructor draws weights too; none of them is kept, but the generator is the global one.
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        model = auto_class.from_config(config, dtype=torch.float32)
        _draw_weights(model, seed)
    _save_quietly(model, path)
    tokenizer.save_pretrained(path)
    return str(path)


def _byte_tokenizer(family: _Architecture) -> "PreTrainedTokenizerBase":
    """Make a BPE tokenizer without merges: a byte's id is its value, special tokens follow."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    # Byte-level BPE writes a printable byte as its own character, the others from 256 on.
    alphabet = set(pre_tokenizers.ByteLevel.alphabet())
    others = iter(sorted(alphabet - {chr(byte) for byte in range(_N_BYTES)}))
    vocabulary = {
        chr(byte) if chr(byte) in alphabet else next(others): byte for byte in range(_N_BYTES)
    }
    for token in family.special_tokens.values():
        vocabulary.setdefault(token, len(vocabulary))
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    # A byte is a token with or without the split into words, but the library keeps the ids of
    # 10,000 words: without it, of as many whole texts.
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    backend.decoder = decoders.ByteLevel()
    if family.frame is not None:
        specials = [(token, i) for token, i in vocabulary.items() if i >= _N_BYTES]
        backend.post_processor = processors.TemplateProcessing(
            single=family.frame, special_tokens=specials
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        model_max_length=_POSITIONS,
        clean_up_tokenization_spaces=False,
        **family.special_tokens,
    )


def _draw_weights(model: Any, seed: int) -> None:
    """Set every parameter from one generator, in the order of their names."""
    import torch

    stds = {
        module.weight: _POSITION_STD  # or of the segment, in an encoder
        for module in model.modules()
        if isinstance(module, torch.nn.Embedding)
    }
    stds[model.get_input_embeddings().weight] = _TOKEN_STD
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, parameter in sorted(model.named_parameters()):
            std = stds.get(parameter, _MATRIX_STD if parameter.ndim > 1 else _VECTOR_STD)
            noise = torch.randn(parameter.shape, generator=generator) * std
            if parameter.ndim == 1:  # a norm stays near its neutral value, be it one or zero
                noise += parameter
            parameter.copy_(noise)


def _save_quietly(model: Any, path: Path) -> None:
    """Save without the progress bar that transformers shows even for a few kilobytes."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        model.save_pretrained(path)
    finally:
        if shown:
            logging.enable_progress_bar()
