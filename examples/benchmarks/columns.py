"""Text beside other columns: what encoders of text give to gradient boosting, skrub's among them.

The genre of films (comedy, documentary, drama or horror) by title and director beside year,
minutes, reviews, critics' liking, country and language. Every arm has the same draws of the first
1,500 films of `load_films`, and is judged on the 700 after these. Nothing was chosen on the 700.

- N: no text, the other columns alone
- T: TF-IDF and an SVD to 30 numbers
- K: skrub's ``StringEncoder()``: TF-IDF of character n-grams, an SVD to 30 numbers
- A: skrub's ``tabular_pipeline``, which encodes title and director each by a ``StringEncoder``
- M: states of ``minilm-l6`` out of GPTTextEmbedder, a PCA to 30 numbers
- G: states of the default model out of GPTTextEmbedder, a PCA to 30 numbers
- G-: the same without the other columns

All but A put title and director into one text. Behind each is
``HistGradientBoostingClassifier(random_state=0)``, nothing else set.

    pip install skrub
    python examples/benchmarks/columns.py
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from sklearn.decomposition import PCA, TruncatedSVD
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.metrics import f1_score
from sklearn.pipeline import make_pipeline
from skrub import StringEncoder, tabular_pipeline

from skgpt import GPTTextEmbedder
from skgpt.caching import searching

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from _data import load_films

OTHERS = ["year", "minutes", "reviews", "liked", "country", "language"]
N_DRAWN, N_JUDGED = 1500, 700

ENCODERS: dict[str, Callable[[], Any]] = {
    "T": lambda: make_pipeline(
        TfidfVectorizer(sublinear_tf=True), TruncatedSVD(30, random_state=0)
    ),
    "K": lambda: StringEncoder(random_state=0),
    "M": lambda: make_pipeline(GPTTextEmbedder("minilm-l6"), PCA(30, random_state=0)),
    "G": lambda: make_pipeline(GPTTextEmbedder(), PCA(30, random_state=0)),
}
ARMS = ["N", *ENCODERS, "A", "G-"]


def tables(arm: str, fitted: pd.DataFrame, judged: pd.DataFrame) -> list[pd.DataFrame]:
    """Return what an arm gives to the learner, of the rows to fit and of those to judge."""
    if arm == "N":
        return [fitted[OTHERS], judged[OTHERS]]
    if arm == "A":
        return [table[["title", "director", *OTHERS]] for table in (fitted, judged)]
    encoder = ENCODERS[arm.rstrip("-")]()
    found = []
    for table, encode in ((fitted, encoder.fit_transform), (judged, encoder.transform)):
        text = table["title"] + ", a film by " + table["director"]
        features = pd.DataFrame(np.asarray(encode(text)), index=table.index).add_prefix("text")
        found.append(features if arm.endswith("-") else table[OTHERS].join(features))
    return found


def main() -> None:
    """Run the comparison."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[300, 1000])
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--arms", nargs="+", default=ARMS)
    args = parser.parse_args()
    films = load_films()
    judged = films[N_DRAWN : N_DRAWN + N_JUDGED]
    for size in args.sizes:
        found: dict[str, list[tuple[float, float]]] = {arm: [] for arm in args.arms}
        for draw in range(args.draws):
            fitted = films[:N_DRAWN].sample(size, random_state=draw)
            for arm in args.arms:
                learner = HistGradientBoostingClassifier(random_state=0)
                clf = tabular_pipeline(learner) if arm == "A" else learner
                with searching():  # the models run over each text once for all draws
                    X, X_judged = tables(arm, fitted, judged)
                predicted = clf.fit(X, fitted["genre"]).predict(X_judged)
                right = 100 * float(np.mean(predicted == judged["genre"]))
                macro = 100 * f1_score(judged["genre"], predicted, average="macro")
                found[arm].append((right, macro))
                print(f"n={size} draw={draw} {arm}: {right:.1f} / {macro:.1f}", flush=True)
        for arm, values in found.items():
            mean, spread = np.mean(values, axis=0), np.std(values, axis=0)
            print(
                f"== n={size} {arm}: {mean[0]:.1f} +- {spread[0]:.1f} / {mean[1]:.1f}", flush=True
            )


if __name__ == "__main__":
    main()
