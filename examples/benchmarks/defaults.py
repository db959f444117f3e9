"""No parameters: what GPTTextClassifier() gives, beside what else a user could take in a minute.

Every arm is trained on the same draws of a train split. By default it is judged on 1,000 other
texts of that split, where parameters are chosen; ``--test`` judges on the official test split.

- S: ``GPTTextClassifier(random_state=draw)``, nothing else set
- Q: the first quickstart's recipe, 12 layers, causal
- D: the first defaults: all 30 layers learn, causal, batches of 32
- T: TF-IDF and logistic regression, C and n-grams by cross-validation within the training rows
- M: mean-pooled states of ``minilm-l6``, frozen, and a linear SVM

    python examples/benchmarks/defaults.py --sets r8 --sizes 100 300 --draws 0 1 2
    python examples/benchmarks/defaults.py --test                     # the whole table: hours

Beside the three news sets there are three other kinds of task, made of the same texts: ``snippets``
(the first twelve words of 20 Newsgroups, six groups), ``relevance`` (crude or not, R8), and
``rare`` (R52's topics of at least ten texts, most of them rare). ``tone`` is 3,000 sentences of
reviews, good or bad (Kotzias and others 2015), as the npm package ``sentiment`` has them for its
tests; it needs npm, and a third of them is the test split.
"""

import argparse
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, f1_score
from sklearn.model_selection import GridSearchCV, StratifiedKFold, train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.svm import LinearSVC

from skgpt import GPTTextClassifier
from skgpt.exceptions import CutTextsWarning

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from _data import Split, load_news, load_tone

Data = tuple[NDArray[np.object_], NDArray[np.str_]]

QUICKSTART: dict[str, Any] = {
    "n_layers": 12,
    "trainable_layers": 4,
    "attention": "causal",
    "max_length": 128,
    "batch_size": 16,
    "learning_rate": 2e-4,
}
FIRST_DEFAULTS: dict[str, Any] = {
    "n_layers": None,
    "trainable_layers": "all",
    "attention": "causal",
    "batch_size": 32,
    "learning_rate": 1e-4,
}
_N_WORDS = 12  # of a snippet
_N_RARE = 10  # texts of a topic, at least
_GROUPS = {"alt": "talk", "soc": "talk"}  # of 20 Newsgroups: by the first part of the name


def load(name: str, split: Split) -> Data:
    """Return the texts and labels of a task."""
    if name == "snippets":
        texts, topics = load_news("20ng", split)
        first = [topic.split(".")[0] for topic in topics]
        snippets = [" ".join(text.split()[:_N_WORDS]) for text in texts]
        return np.array(snippets, dtype=object), np.array([_GROUPS.get(t, t) for t in first])
    if name == "tone":
        return load_tone(split)
    if name == "relevance":
        texts, topics = load_news("r8", split)
        return texts, np.where(topics == "crude", "relevant", "other")
    if name == "rare":
        texts, topics = load_news("r52", split)
        counted = np.unique(load_news("r52", "train").topics, return_counts=True)
        kept = np.isin(topics, counted[0][counted[1] >= _N_RARE])
        return texts[kept], topics[kept]
    news = load_news(name, split)  # type: ignore[arg-type]
    return news.texts, news.topics


def draw_rows(y: NDArray[np.str_], n: int | None, seed: int) -> NDArray[np.int64]:
    """Return n rows, stratified where there are enough of them for that; all for None."""
    rows = np.arange(len(y))
    if n is None or n >= len(y):
        return rows
    labels, counts = np.unique(y, return_counts=True)
    stratify = y if n >= len(labels) and counts.min() > 1 else None
    drawn, _ = train_test_split(rows, train_size=n, stratify=stratify, random_state=seed)
    return np.asarray(drawn)


def tfidf() -> GridSearchCV:
    """Return TF-IDF and logistic regression that choose C and n-grams on their training rows."""
    pipeline = make_pipeline(TfidfVectorizer(sublinear_tf=True), LogisticRegression(max_iter=2000))
    grid = {
        "tfidfvectorizer__ngram_range": [(1, 1), (1, 2)],
        "logisticregression__C": [1, 10, 100, 1000],
    }
    folds = StratifiedKFold(3, shuffle=True, random_state=0)
    return GridSearchCV(pipeline, grid, cv=folds)


class FrozenEncoder:
    """Mean-pooled states of `minilm-l6` and a linear SVM."""

    states: dict[str, NDArray[np.float32]]

    def __init__(self) -> None:
        self.states = {}

    def fit(self, X: NDArray[np.object_], y: NDArray[np.str_]) -> "FrozenEncoder":
        """Fit the SVM."""
        self.svm = LinearSVC().fit(self._states(X), y)
        return self

    def predict(self, X: NDArray[np.object_]) -> Any:
        """Predict with it."""
        return self.svm.predict(self._states(X))

    def _states(self, X: NDArray[np.object_]) -> NDArray[np.float32]:
        import torch
        from transformers import AutoModel, AutoTokenizer

        from skgpt.pretrained.default_models import alias_folder

        folder = alias_folder("minilm-l6")
        tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder)
        new = sorted({text for text in X if text not in self.states}, key=len)
        for start in range(0, len(new), 64):
            some = new[start : start + 64]
            batch = tokenizer(
                some, truncation=True, max_length=256, padding=True, return_tensors="pt"
            )
            with torch.no_grad():
                hidden = model(**batch).last_hidden_state
            mask = batch["attention_mask"][..., None]
            means = (hidden * mask).sum(1) / mask.sum(1)
            means = torch.nn.functional.normalize(means)
            self.states |= dict(zip(some, means.numpy(), strict=True))
        return np.stack([self.states[text] for text in X])


def main() -> None:
    """Run the comparison."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sets", nargs="+", default=["r8", "r52", "20ng"])
    parser.add_argument("--sizes", type=int, nargs="+", default=[50, 100, 300, 1000, 0])
    parser.add_argument("--draws", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--arms", nargs="+", default=["S", "T", "M"])
    parser.add_argument("--test", action="store_true", help="judge on the official test split")
    args = parser.parse_args()
    warnings.simplefilter("ignore", CutTextsWarning)
    encoder = FrozenEncoder()
    makers: dict[str, Callable[[int], Any]] = {
        "S": lambda seed: GPTTextClassifier(random_state=seed),
        "Q": lambda seed: GPTTextClassifier(random_state=seed, **QUICKSTART),
        "D": lambda seed: GPTTextClassifier(random_state=seed, **FIRST_DEFAULTS),
        "T": lambda seed: tfidf(),
        "M": lambda seed: encoder,
    }
    for name in args.sets:
        X, y = load(name, "train")
        for n in args.sizes:  # 0: all of them
            found: dict[str, list[tuple[float, float, float]]] = {arm: [] for arm in args.arms}
            for seed in args.draws if n else args.draws[:1]:
                rows = draw_rows(y, n or (None if args.test else len(y) - 1000), seed)
                if args.test:
                    X_other, y_other = load(name, "test")
                else:
                    rest = np.setdiff1d(np.arange(len(y)), rows)
                    rest = np.random.default_rng(0).permutation(rest)[:1000]
                    X_other, y_other = X[rest], y[rest]
                for arm in args.arms:
                    began = time.perf_counter()
                    model = makers[arm](seed).fit(X[rows], y[rows])
                    seconds = time.perf_counter() - began
                    predicted = model.predict(X_other)
                    accuracy = 100 * accuracy_score(y_other, predicted)
                    f1 = 100 * f1_score(y_other, predicted, average="macro", zero_division=0)
                    found[arm].append((accuracy, f1, seconds))
                    print(
                        f"{name} n={len(rows)} draw={seed} {arm}: accuracy {accuracy:.1f} %, "
                        f"macro F1 {f1:.1f} %, fitted in {seconds:.0f} s",
                        flush=True,
                    )
            for arm, values in found.items():
                mean, spread = np.mean(values, axis=0), np.std(values, axis=0)
                print(
                    f"== {name} n={n or 'all'} {arm}: accuracy {mean[0]:.1f} +- {spread[0]:.1f} %, "
                    f"macro F1 {mean[1]:.1f} %, {mean[2]:.0f} s",
                    flush=True,
                )


if __name__ == "__main__":
    main()
