"""At which depth are frozen states best? The embedder's layer="auto" beside every fourth layer.

Texts of a train split, cut at 128 tokens; their mean-pooled states behind each depth, standardised
by the training rows, and a logistic regression (C=0.01) on 100, 300 and 1,000 of them, judged on
500 others. `GPTTextEmbedder` runs a model once for each layer; here one run of transformers' own
model gives the states of all, which are compared with the embedder's on a few texts first.

Beside them, on the same rows: TF-IDF and a logistic regression (C=10), and both kinds of feature
in one (the states of layer="auto" times 0.03, C=10), as docs/embedder.md has them.

    python examples/benchmarks/depths.py
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_array, hstack
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler
from transformers import AutoModel, AutoTokenizer

from skgpt import GPTTextEmbedder
from skgpt.device import resolve_device, resolve_precision
from skgpt.pretrained.default_models import alias_folder

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from _data import News, load_news

MODEL = "smollm2-135m"
MAX_LENGTH = 128
LAYERS = (4, 8, 12, 16, 20, 24, 28, 30)
N_JUDGED = 500
_BATCH = 16


def states_of(texts: list[str]) -> NDArray[np.float32]:
    """Return the pooled states behind each of `LAYERS`, shape (len(LAYERS), n_texts, width)."""
    folder = alias_folder(MODEL)
    precision = resolve_precision("auto", resolve_device("cpu"))  # the embedder's
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModel.from_pretrained(folder, dtype=precision)
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
                states[place, rows] = ((normed.float() * mask).sum(1) / mask.sum(1)).numpy()
    return states


def check(texts: list[str], states: NDArray[np.float32]) -> int:
    """Compare the states with the embedder's; return the layer that "auto" is."""
    embedder = GPTTextEmbedder(MODEL, max_length=MAX_LENGTH, standardize=False, device="cpu")
    found = embedder.fit_transform(texts)
    auto = int(embedder.layer_)
    off = np.linalg.norm(found - states[LAYERS.index(auto)]) / np.linalg.norm(found)
    print(f"The states are off the embedder's by {off:.1%}", file=sys.stderr)
    assert off < 0.02  # two ways of rounding to bf16
    return auto


def accuracies(
    news: News, states: NDArray[np.float32], auto: int, size: int, draw: int
) -> NDArray[np.float64]:
    """Return accuracies in %, fitted on so many texts: each layer's, TF-IDF's, and of both."""
    texts, y = news
    rest, judged = train_test_split(np.arange(len(y)), test_size=N_JUDGED, random_state=draw)
    fitted = rest[:size]

    def right(features: Any, penalty: float) -> float:
        clf = LogisticRegression(C=penalty, max_iter=1000).fit(features[fitted], y[fitted])
        return 100 * float(clf.score(features[judged], y[judged]))

    scaled = [StandardScaler().fit(each[fitted]).transform(each) for each in states]
    words = TfidfVectorizer(sublinear_tf=True).fit(texts[fitted]).transform(texts)
    both = hstack([0.03 * csr_array(scaled[auto]), words], format="csr")
    return np.array([*(right(each, 0.01) for each in scaled), right(words, 10), right(both, 10)])


def main() -> None:
    """Print a line for each set and size."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sets", nargs="+", default=["r8", "20ng"])
    parser.add_argument("--sizes", type=int, nargs="+", default=[100, 300, 1000])
    parser.add_argument("--draws", type=int, default=5)
    args = parser.parse_args()
    heads = ["Set", "labels", *map(str, LAYERS), "TF-IDF", "auto and TF-IDF", "best less auto"]
    print("| " + " | ".join(heads) + " |")
    print("|---" * len(heads) + "|")
    for name in args.sets:
        news = load_news(name, "train")
        n_texts = max(args.sizes) + N_JUDGED
        rows = np.random.default_rng(0).permutation(len(news.texts))[:n_texts]
        news = News(news.texts[rows], news.topics[rows])
        states = states_of(news.texts.tolist())
        auto = LAYERS.index(check(news.texts[:8].tolist(), states[:, :8]))
        for size in args.sizes:
            draws = range(args.draws)
            found = np.array([accuracies(news, states, auto, size, draw) for draw in draws])
            mean, spread = found.mean(axis=0), found.std(axis=0)
            cells = [f"{m:.1f} ± {s:.1f}" for m, s in zip(mean, spread, strict=True)]
            cells.append(f"{mean[: len(LAYERS)].max() - mean[auto]:.1f}")
            print(f"| {name} | {size} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
