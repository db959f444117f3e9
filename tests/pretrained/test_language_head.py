"""The language-model head: transformers' own logits from hidden states, or an error."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from skgpt.exceptions import ModelNotSupportedError
from skgpt.pretrained.language_head import language_head, log_probabilities
from skgpt.pretrained.loading import load_pretrained
from skgpt.testing import tiny_gpt
from tests.pretrained.fake_weights import make_llama, write_gguf

CPU = torch.device("cpu")
IDS = torch.tensor([[5, 70, 11, 13, 2]])


def ours(model: str) -> torch.Tensor:
    """Return the log-probabilities of all tokens behind `IDS`, by our head."""
    pretrained = load_pretrained(model)
    head = language_head(pretrained).on(pretrained.trunk, CPU)
    with torch.no_grad():
        hidden = pretrained.trunk(input_ids=IDS, use_cache=False).last_hidden_state[0]
        tokens = torch.arange(pretrained.trunk.config.vocab_size)
        return log_probabilities(head, hidden.float(), tokens)


def theirs(model: str) -> torch.Tensor:
    causal = AutoModelForCausalLM.from_pretrained(model).eval()
    with torch.no_grad():
        return causal(input_ids=IDS).logits[0].float().log_softmax(dim=-1)


@pytest.mark.parametrize(
    "architecture",
    ["bloom", "gemma3", "gpt2", "gpt_neo", "gpt_neox", "llama", "mistral", "opt", "qwen3"],
)
def test_language_head__tied_or_not__is_that_of_transformers(
    architecture: str, tiny_model: Callable[[str], str]
) -> None:
    model = tiny_model(architecture)
    torch.testing.assert_close(ours(model), theirs(model), rtol=1e-5, atol=1e-5)
    head = language_head(load_pretrained(model))
    assert bool(head.own) == (architecture in ("gpt_neox", "mistral"))


# Logits that are capped, scaled, or have a bias.
@pytest.mark.parametrize(
    ("model_type", "config"),
    [
        ("gemma2", {"final_logit_softcapping": 2.0, "head_dim": 8, "attn_logit_softcapping": None}),
        ("granite", {"logits_scaling": 4.0}),
        ("cohere", {"logit_scale": 0.3}),
        ("phi", {"num_key_value_heads": None}),
    ],
)
def test_language_head__logits_with_something_behind_them__honoured(
    model_type: str, config: dict[str, Any], tmp_path: Path
) -> None:
    model = tiny_gpt(tmp_path)
    sizes = json.loads((tmp_path / "config.json").read_text())
    names = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers")
    names += ("num_attention_heads", "num_key_value_heads", "eos_token_id", "bos_token_id")
    wanted = {name: sizes[name] for name in names} | {"pad_token_id": 0} | config
    with torch.random.fork_rng():
        torch.manual_seed(0)
        causal = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **wanted))
        with torch.no_grad():
            for parameter in causal.parameters():
                parameter.add_(0.3 * torch.randn_like(parameter))
    causal.save_pretrained(tmp_path)
    torch.testing.assert_close(ours(model), theirs(model), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("tied", [True, False])
def test_language_head__gguf_file__its_own_or_the_embedding(tied: bool, tmp_path: Path) -> None:
    llama = make_llama()
    weight = np.random.default_rng(0).normal(size=llama.embed_tokens.weight.shape)
    output = None if tied else weight.astype(np.float32)
    write_gguf(tmp_path / "tiny.gguf", llama, output=output)
    pretrained = load_pretrained(str(tmp_path / "tiny.gguf"))
    head = language_head(pretrained)
    placed = head.on(pretrained.trunk, CPU).lm_head.weight.numpy()
    expected = llama.embed_tokens.weight.detach().numpy() if output is None else output
    np.testing.assert_allclose(placed, expected, atol=1e-6)
    assert bool(head.own) == (not tied)


def test_language_head__encoder__error_says_what_to_use(tiny_model: Callable[[str], str]) -> None:
    pretrained = load_pretrained(tiny_model("bert"))
    with pytest.raises(ModelNotSupportedError, match=r"is an encoder.*smollm2-135m"):
        language_head(pretrained)


def test_language_head__checkpoint_of_a_trunk_alone__error_names_what_is_missing(
    tmp_path: Path,
) -> None:
    model = tiny_gpt(tmp_path, "mistral")
    weights = load_file(tmp_path / "model.safetensors")
    kept = {name: t.clone() for name, t in weights.items() if not name.startswith("lm_head")}
    assert len(kept) == len(weights) - 1
    save_file(kept, tmp_path / "model.safetensors", {"format": "pt"})
    state = torch.get_rng_state()
    with pytest.raises(ModelNotSupportedError, match=r"has no 'lm_head\.weight'.*GPTTextClass"):
        language_head(load_pretrained(model))
    assert torch.equal(torch.get_rng_state(), state)


def test_language_head__logits_of_more_than_the_last_states__refused(
    tiny_model: Callable[[str], str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from transformers import LlamaForCausalLM

    forward = LlamaForCausalLM.forward

    def by_position(self: Any, *args: Any, input_ids: Any = None, **kwargs: Any) -> Any:
        output = forward(self, *args, input_ids=input_ids, **kwargs)
        if input_ids is not None:
            output.logits = output.logits + input_ids[..., None]
            output.logits[..., 0] = 0
        return output

    monkeypatch.setattr(LlamaForCausalLM, "forward", by_position)
    with pytest.raises(ModelNotSupportedError, match="from the last hidden states alone"):
        language_head(load_pretrained(tiny_gpt(tmp_path)))


def test_language_head__asked_twice__read_once(tiny_model: Callable[[str], str]) -> None:
    pretrained = load_pretrained(tiny_model("mistral"))
    assert language_head(pretrained) is language_head(pretrained)
