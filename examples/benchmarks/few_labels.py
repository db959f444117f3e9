"""Few labels: a fine-tuned GPT and a linear model on the same draws of Reuters R8.

Arms S (skgpt) and T (TF-IDF + linear SVM) are trained on the same stratified samples of the train
split and judged on the whole official test split. Prints one line per draw, then a table of means
and standard deviations.

    python examples/benchmarks/few_labels.py                     # 5 draws at 100, 300 and 1,000
    python examples/benchmarks/few_labels.py --sizes 300 --draws 2 --recipe '{"pooling": "last"}'
    python examples/benchmarks/few_labels.py --sizes 1500 5485 --arms T
"""

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.metrics import accuracy_score, f1_score
from sklearn.pipeline import make_pipeline
from sklearn.svm import LinearSVC

from skgpt import GPTTextClassifier

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from _data import load_r8, sample_r8

# The quickstart's recipe; see docs/benchmarks.md for what else was tried.
RECIPE: dict[str, object] = {
    "n_layers": 12,
    "trainable_layers": 4,
    "pooling": "mean",
    "max_length": 128,
    "batch_size": 16,
    "learning_rate": 2e-4,
}


def main() -> None:
    """Run the comparison."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[100, 300, 1000])
    parser.add_argument("--draws", type=int, default=5)
    parser.add_argument("--arms", nargs="+", choices=["S", "T"], default=["S", "T"])
    parser.add_argument("--recipe", type=json.loads, default={}, help="JSON, over the default")
    args = parser.parse_args()
    recipe = {**RECIPE, **args.recipe}
    print("recipe:", recipe, flush=True)
    test = load_r8("test")
    for n in args.sizes:
        scores: dict[str, list[tuple[float, float]]] = {arm: [] for arm in args.arms}
        for seed in range(args.draws):
            train = sample_r8(n, seed)
            arms = {
                "S": GPTTextClassifier(random_state=seed, **recipe),  # type: ignore[arg-type]
                "T": make_pipeline(
                    TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True), LinearSVC()
                ),
            }
            for arm in args.arms:
                model = arms[arm]
                began = time.perf_counter()
                model.fit(train.texts, train.topics)
                fitted = time.perf_counter()
                predicted = model.predict(test.texts)
                accuracy = 100 * accuracy_score(test.topics, predicted)
                f1 = 100 * f1_score(test.topics, predicted, average="macro")
                scores[arm].append((accuracy, f1))
                print(
                    f"n={n} draw={seed} {arm}: accuracy {accuracy:.2f} %, macro F1 {f1:.2f} %, "
                    f"fit {fitted - began:.0f} s, predict {time.perf_counter() - fitted:.0f} s",
                    flush=True,
                )
        for arm, values in scores.items():
            mean = np.mean(values, axis=0)
            spread = np.std(values, axis=0, ddof=min(1, args.draws - 1))
            print(
                f"== n={n} {arm}: accuracy {mean[0]:.2f} +- {spread[0]:.2f} %, "
                f"macro F1 {mean[1]:.2f} +- {spread[1]:.2f} %",
                flush=True,
            )


if __name__ == "__main__":
    main()
