"""Ratings: what GPTTextRegressor() gives, beside what else a user could take in a minute.

Every arm is trained on the same draws of a train split. By default it is judged on 1,000 other
texts of that split, where parameters are chosen; ``--test`` judges on the test split of 1,000.

- R: ``GPTTextRegressor(random_state=draw)``, nothing else set
- H: the same, of which nothing but the head learns: ``trainable_layers=0``
- E: the same states, standardised, out of GPTTextEmbedder, and ridge
- M: states of ``minilm-l6`` out of GPTTextEmbedder, and ridge
- T: TF-IDF and ridge, n-grams by cross-validation as well

Ridge chooses its penalty by cross-validation within the training rows.

    python examples/benchmarks/regression.py --sets reviews --sizes 100 --draws 0 1 2
    python examples/benchmarks/regression.py --test                  # the whole table

The sets are how positive or negative people found short texts, from -4 to 4, the mean of twenty of
them (Hutto and Gilbert 2014): sentences of product reviews, sentences of film reviews, tweets, and
sentences of editorials.
"""

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import Ridge, RidgeCV
from sklearn.metrics import mean_absolute_error, r2_score
from sklearn.model_selection import GridSearchCV, KFold
from sklearn.pipeline import make_pipeline

from skgpt import GPTTextEmbedder, GPTTextRegressor
from skgpt.caching import searching

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from _data import Kind, load_rated

KINDS: dict[str, Kind] = {
    "reviews": "amazonReviewSnippets",
    "films": "movieReviewSnippets",
    "tweets": "tweets",
    "editorials": "nytEditorialSnippets",
}
_PENALTIES = np.logspace(-1, 5, 13)


def tfidf() -> GridSearchCV:
    """Return TF-IDF and ridge that choose penalty and n-grams on their training rows."""
    pipeline = make_pipeline(TfidfVectorizer(sublinear_tf=True), Ridge())
    grid = {
        "tfidfvectorizer__ngram_range": [(1, 1), (1, 2)],
        "ridge__alpha": [0.1, 0.3, 1, 3, 10],
    }
    return GridSearchCV(pipeline, grid, cv=KFold(3, shuffle=True, random_state=0))


MAKERS: dict[str, Callable[[int], Any]] = {
    "R": lambda seed: GPTTextRegressor(random_state=seed),
    "H": lambda seed: GPTTextRegressor(trainable_layers=0, random_state=seed),
    "E": lambda seed: make_pipeline(GPTTextEmbedder(), RidgeCV(_PENALTIES)),
    "M": lambda seed: make_pipeline(GPTTextEmbedder("minilm-l6"), RidgeCV(_PENALTIES)),
    "T": lambda seed: tfidf(),
}


def main() -> None:
    """Run the comparison."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sets", nargs="+", default=[*KINDS])
    parser.add_argument("--sizes", type=int, nargs="+", default=[100, 300, 1000])
    parser.add_argument("--draws", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--arms", nargs="+", default=[*MAKERS])
    parser.add_argument("--test", action="store_true", help="judge on the test split")
    args = parser.parse_args()
    for name in args.sets:
        X, y = load_rated(KINDS[name], "train")
        test = load_rated(KINDS[name], "test") if args.test else None
        for n in args.sizes:
            found: dict[str, list[tuple[float, float, float]]] = {arm: [] for arm in args.arms}
            for seed in args.draws:
                order = np.random.default_rng(seed).permutation(len(y))
                rows, rest = order[:n], order[n : n + 1000]
                X_other, y_other = test or (X[rest], y[rest])
                for arm in args.arms:
                    began = time.perf_counter()
                    model = MAKERS[arm](seed).fit(X[rows], y[rows])
                    seconds = time.perf_counter() - began
                    with searching():  # frozen layers run over the other texts once for all
                        predicted = model.predict(X_other)
                    r2 = r2_score(y_other, predicted)
                    error = mean_absolute_error(y_other, predicted)
                    found[arm].append((r2, error, seconds))
                    print(
                        f"{name} n={n} draw={seed} {arm}: R2 {r2:.3f}, mean absolute error "
                        f"{error:.3f}, fitted in {seconds:.0f} s",
                        flush=True,
                    )
            for arm, values in found.items():
                mean, spread = np.mean(values, axis=0), np.std(values, axis=0)
                print(
                    f"== {name} n={n} {arm}: R2 {mean[0]:.3f} +- {spread[0]:.3f}, mean absolute "
                    f"error {mean[1]:.3f} +- {spread[1]:.3f}, {mean[2]:.0f} s",
                    flush=True,
                )


if __name__ == "__main__":
    main()
