"""At which depth are frozen states best? The embedder's layer="auto" beside every fourth layer.

Texts of a train split, cut at 128 tokens; their mean-pooled states behind each depth, standardised
by the training rows, and a logistic regression (C=0.01) on 100, 300 and 1,000 of them, judged on
500 others. `GPTTextEmbedder` runs a model once for each layer; here one run of transformers' own
model gives the states of all, which are compared with the embedder's on a few texts first.

    python examples/benchmarks/depths.py
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from transformers import AutoModel, AutoTokenizer

from skgpt import GPTTextEmbedder
from skgpt.pretrained.default_models import alias_folder

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from _data import load_news

MODEL = "smollm2-135m"
MAX_LENGTH = 128
LAYERS = (4, 8, 12, 16, 20, 24, 28, 30)
N_JUDGED = 500
_BATCH = 16


def states_of(texts: list[str]) -> NDArray[np.float32]:
    """Return the pooled states behind each of `LAYERS`, shape (len(LAYERS), n_texts, width)."""
    folder = alias_folder(MODEL)
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder)
    tokenizer.padding_side = "right"
    states = np.empty((len(LAYERS), len(texts), model.config.hidden_size), dtype=np.float32)
    order = np.argsort([len(text) for text in texts])
    for start in range(0, len(texts), _BATCH):
        rows = order[start : start + _BATCH]
        batch = tokenizer(
            [texts[i] for i in rows],
            truncation=True,
            max_length=MAX_LENGTH,
            padding=True,
            return_tensors="pt",
        )
        with torch.inference_mode():
            hidden = model(**batch, output_hidden_states=True).hidden_states
            mask = batch["attention_mask"][..., None]
            for place, layer in enumerate(LAYERS):
                # transformers has normed the last one already.
                last = layer == model.config.num_hidden_layers
                normed = hidden[layer] if last else model.norm(hidden[layer])
                states[place, rows] = ((normed * mask).sum(1) / mask.sum(1)).numpy()
    return states


def check(texts: list[str], states: NDArray[np.float32]) -> int:
    """Compare the states with the embedder's; return the layer that "auto" is."""
    how: dict[str, Any] = {"max_length": MAX_LENGTH, "standardize": False, "precision": "fp32"}
    embedder = GPTTextEmbedder(MODEL, **how)
    found = embedder.fit_transform(texts)
    auto = int(embedder.layer_)
    assert np.allclose(found, states[LAYERS.index(auto)], rtol=1e-3, atol=1e-3)
    return auto


def accuracies(
    states: NDArray[np.float32], y: NDArray[np.str_], size: int, draw: int
) -> NDArray[np.float64]:
    """Return the accuracy of each layer in %, fitted on so many texts."""
    rows = np.arange(len(y))
    rest, judged = train_test_split(rows, test_size=N_JUDGED, random_state=draw)
    fitted = rest[:size]
    found = []
    for of_layer in states:
        clf = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=1000))
        clf.fit(of_layer[fitted], y[fitted])
        found.append(100 * clf.score(of_layer[judged], y[judged]))
    return np.array(found)


def main() -> None:
    """Print a line for each set and size."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sets", nargs="+", default=["r8", "20ng"])
    parser.add_argument("--sizes", type=int, nargs="+", default=[100, 300, 1000])
    parser.add_argument("--draws", type=int, default=5)
    args = parser.parse_args()
    print("| Set | labels | " + " | ".join(map(str, LAYERS)) + " | best less auto |")
    print("|---" * (len(LAYERS) + 3) + "|")
    for name in args.sets:
        news = load_news(name, "train")
        n_texts = max(args.sizes) + N_JUDGED
        rows = np.random.default_rng(0).permutation(len(news.texts))[:n_texts]
        texts, y = news.texts[rows].tolist(), news.topics[rows]
        states = states_of(texts)
        auto = LAYERS.index(check(texts[:8], states[:, :8]))
        for size in args.sizes:
            found = np.array([accuracies(states, y, size, draw) for draw in range(args.draws)])
            mean, spread = found.mean(axis=0), found.std(axis=0)
            cells = [f"{m:.1f} ± {s:.1f}" for m, s in zip(mean, spread, strict=True)]
            print(f"| {name} | {size} | {' | '.join(cells)} | {mean.max() - mean[auto]:.1f} |")


if __name__ == "__main__":
    main()
