"""What can be done with each family of models, tried on tiny ones: the table of docs/models.md."""

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING

from skgpt import GPTTextClassifier, LoRA
from skgpt.data.tokenization import tokenise
from skgpt.exceptions import ModelNotSupportedError
from skgpt.network.features import CacheLevel, cache_level
from skgpt.pretrained.loading import load_pretrained
from tests.estimators.test_exchange import PROBES, piped, same
from tests.helpers import TextData, make
from tests.pretrained.fake_weights import make_llama, write_gguf

PAGE = Path(__file__).parents[2] / "docs" / "models.md"
HEADER = (
    "| Model | `model_type` | Texts lie | Frozen layers run | LoRA | `save_pretrained` |\n"
    "|---|---|---|---|---|---|\n"
)
# What people call it, and its name in the tables of tiny models.
FAMILIES = {
    "GPT-2": "gpt2",
    "GPT-Neo": "gpt_neo",
    "GPT-J": "gptj",
    "GPT-NeoX, Pythia": "gpt_neox",
    "OPT": "opt",
    "Llama 2 and 3, SmolLM, SmolLM2, TinyLlama": "llama",
    "SmolLM3": "smollm3",
    "Qwen2, Qwen2.5": "qwen2",
    "Qwen3": "qwen3",
    "Mistral": "mistral",
    "Gemma 2": "gemma2",
    "Gemma 3": "gemma3",
    "Phi 1 to 2": "phi",
    "Phi 3 and 4": "phi3",
    "OLMo 2": "olmo2",
    "BLOOM": "bloom",
    "Falcon": "falcon",
    "BERT (encoder)": "bert",
    "RoBERTa (encoder)": "roberta",
    "ModernBERT (encoder)": "modernbert",
}


def assert_pickles(clf: GPTTextClassifier, X: Any) -> None:
    again = pickle.loads(pickle.dumps(clf))
    twice = pickle.loads(pickle.dumps(again))
    assert np.array_equal(again.predict_proba(X), clf.predict_proba(X))
    assert np.array_equal(twice.predict_proba(X), clf.predict_proba(X))


def is_cut(clf: GPTTextClassifier, X: Any) -> bool:
    """Say whether what frozen layers return is kept, not computed in every epoch."""
    network = clf._model.network
    tokens = tokenise(list(X), network.pretrained.tokenizer, 64)
    return cache_level(network, tokens, 2**30) is CacheLevel.HIDDEN


def exported(folder: str, X: Any, y: Any, where: Path) -> str:
    """Return what the table says of `save_pretrained`; what it writes says what we say."""
    options: dict[str, Any] = {"n_layers": 2, "precision": "fp32", "max_epochs": 1}
    if not load_pretrained(folder).capabilities.causal:
        with pytest.raises(ModelNotSupportedError, match="needs a decoder"):
            make(folder, pooling="last", **options).fit(X, y)
        with pytest.raises(ModelNotSupportedError, match=r"`model`.*skgpt\.save"):
            make(folder, **options).fit(X, y).save_pretrained(where)
        assert not where.exists()
        return "no: an encoder has no last token to pool"
    clf = make(folder, pooling="last", **options).fit(X, y)
    if type(clf._model.network.trunk.config) not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING:
        with pytest.raises(ModelNotSupportedError, match="`model`"):
            clf.save_pretrained(where)
        return "no: transformers has no class for it"
    clf.save_pretrained(where)
    expected = clf.predict_proba(PROBES)
    same(piped(where, clf.classes_.tolist()), expected, 1e-4)
    opened = GPTTextClassifier.from_pretrained(where, precision="fp32")
    same(opened.predict_proba(PROBES), expected)
    return "yes"


@pytest.mark.first_tier(
    family=["Llama 2 and 3, SmolLM, SmolLM2, TinyLlama", "GPT-Neo", "BERT (encoder)", "Gemma 3"]
)
@pytest.mark.parametrize("family", FAMILIES)
def test_family__fitted_cut_pickled_adapted_and_exported__is_as_the_page_says(
    family: str, tiny_model: Callable[[str], str], two_class_data: TextData, tmp_path: Path
) -> None:
    X, y = two_class_data
    folder = tiny_model(FAMILIES[family])
    source = load_pretrained(folder)
    whole = make(folder, trainable_layers="all", max_epochs=3).fit(X, y)
    assert whole.loss_curve_[-1] < whole.loss_curve_[0]
    assert whole.predict(X).shape == y.shape
    assert_pickles(whole, X)
    cut = make(folder, n_layers=2, trainable_layers=1, max_epochs=1, precision="bf16").fit(X, y)
    assert_pickles(cut, X)
    lora = make(folder, trainable_layers="all", max_epochs=3, lora=LoRA(rank=2)).fit(X, y)
    assert lora.loss_curve_[-1] < lora.loss_curve_[0]
    assert_pickles(lora, X)
    cells = [
        family,
        f"`{source.trunk.config.model_type}`",
        "end to end" if source.capabilities.supports_packing else "side by side",
        "once" if is_cut(cut, X) else "in every epoch",
        "yes",
        exported(folder, X, y, tmp_path / "exported"),
    ]
    row = f"| {' | '.join(cells)} |"
    assert row in PAGE.read_text("utf-8").splitlines(), f"docs/models.md lacks: {row}"


def test_gguf_file__by_its_path__is_fitted_and_its_weights_go_into_pickles(
    two_class_data: TextData, tmp_path: Path
) -> None:
    X, y = two_class_data
    file = tmp_path / "model.gguf"
    write_gguf(file, make_llama(), quantised=True)
    for options in ({"trainable_layers": 1}, {"lora": LoRA(rank=2), "trainable_layers": "all"}):
        clf = make(str(file), max_epochs=2, **options).fit(X, y)
        kept, expected = pickle.dumps(clf), clf.predict_proba(X)
        moved = file.rename(tmp_path / "elsewhere.gguf")
        assert np.array_equal(pickle.loads(kept).predict_proba(X), expected)
        moved.rename(file)


def test_page__its_table__has_these_families_and_no_others() -> None:
    page = PAGE.read_text("utf-8")
    assert HEADER in page
    rows = page.split(HEADER)[1].split("\n\n")[0].splitlines()
    assert [row.split(" | ")[0].removeprefix("| ") for row in rows] == list(FAMILIES)
