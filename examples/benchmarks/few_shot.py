"""From no label to 64 a class: what each road gives, on topics and on tone.

Every arm has the same draws of k texts a class of a train split, and is judged on the same texts of
the test split. The words and prompts below were chosen on train splits.

- Z: ``GPTZeroShotClassifier``: a prompt and the labels' words, no label
- I: the same with up to ``--in-prompt`` of the labelled texts a class in the prompt
- W: ``GPTTextClassifier(label_words=...)``: the same words as the head's start, and training
- S: ``GPTTextClassifier()``, nothing set
- M: frozen ``minilm-l6`` and a linear SVM
- T: TF-IDF and a logistic regression, tuned within the training rows

    python examples/benchmarks/few_shot.py --sets tone tweets r8 --draws 0 1 2 3 4
    python examples/benchmarks/few_shot.py --sets 20ng --sizes 0 4 8 16 --draws 0 1

``tone`` are sentences of reviews, ``tweets`` those of 4,200 tweets that 20 people found clearly
good or bad (a mean rating of at least one).
"""

import argparse
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import accuracy_score, f1_score

from skgpt import GPTTextClassifier, GPTZeroShotClassifier
from skgpt.exceptions import CutTextsWarning

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from _data import News, Split, load_news, load_rated, load_tone
from defaults import FrozenEncoder, tfidf


class Task(NamedTuple):
    """How a set is asked for its labels."""

    load: Callable[[Split], News]
    template: str
    label_words: dict[str, str]


def load_tweets(split: Split) -> News:
    """Return tweets that people found clearly good or bad."""
    tweets = load_rated("tweets", split)
    clear = np.abs(tweets.ratings) >= 1
    return News(tweets.texts[clear], np.where(tweets.ratings[clear] > 0, "good", "bad"))


_TONE_WORDS = {"good": "positive", "bad": "negative"}
TASKS = {
    "tone": Task(load_tone, "Review: {text}\nSentiment:", _TONE_WORDS),
    "tweets": Task(load_tweets, "Tweet: {text}\nSentiment:", _TONE_WORDS),
    "r8": Task(
        lambda split: load_news("r8", split),
        "{text}\nThe topic of this news is",
        {
            "acq": "acquisitions",
            "crude": "oil",
            "earn": "earnings",
            "grain": "grain",
            "interest": "interest",
            "money-fx": "currency",
            "ship": "shipping",
            "trade": "trade",
        },
    ),
    "20ng": Task(
        lambda split: load_news("20ng", split),
        "{text}\nThe topic of this message is",
        {
            "alt.atheism": "atheism",
            "comp.graphics": "graphics",
            "comp.os.ms-windows.misc": "Windows",
            "comp.sys.ibm.pc.hardware": "PC hardware",
            "comp.sys.mac.hardware": "Mac hardware",
            "comp.windows.x": "X windows",
            "misc.forsale": "for sale",
            "rec.autos": "cars",
            "rec.motorcycles": "motorcycles",
            "rec.sport.baseball": "baseball",
            "rec.sport.hockey": "hockey",
            "sci.crypt": "encryption",
            "sci.electronics": "electronics",
            "sci.med": "medicine",
            "sci.space": "space",
            "soc.religion.christian": "Christianity",
            "talk.politics.guns": "guns",
            "talk.politics.mideast": "the Middle East",
            "talk.politics.misc": "politics",
            "talk.religion.misc": "religion",
        },
    ),
}


def draw_per_class(y: NDArray[np.str_], k: int, seed: int) -> NDArray[np.int64]:
    """Return k rows of every class, or all that it has."""
    order = np.random.default_rng(seed).permutation(len(y))
    return np.concatenate([order[y[order] == label][:k] for label in np.unique(y)])


def make(arm: str, task: Task, k: int, seed: int, in_prompt: int, encoder: Any) -> Any:
    """Return the unfitted estimator of an arm."""
    asked = {"template": task.template, "label_words": task.label_words}
    if arm == "Z":
        return GPTZeroShotClassifier(**asked)
    if arm == "I":
        n_examples = len(task.label_words) * min(k, in_prompt)
        return GPTZeroShotClassifier(
            **asked, n_examples=n_examples, max_length=512, random_state=seed
        )
    if arm == "W":
        return GPTTextClassifier(**asked, random_state=seed)
    if arm == "S":
        return GPTTextClassifier(random_state=seed)
    return encoder if arm == "M" else tfidf()


def show(name: str, k: int, found: dict[str, list[tuple[float, float, float]]]) -> None:
    """Print a line per arm: mean and deviation over the draws."""
    for arm, values in found.items():
        if values:
            mean, spread = np.mean(values, axis=0), np.std(values, axis=0)
            print(
                f"== {name} k={k} {arm}: accuracy {mean[0]:.1f} +- {spread[0]:.1f} %, "
                f"macro F1 {mean[1]:.1f} %, {mean[2]:.0f} s",
                flush=True,
            )


def main(argv: Sequence[str] | None = None) -> None:
    """Run the comparison."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sets", nargs="+", choices=list(TASKS), default=list(TASKS))
    parser.add_argument("--sizes", type=int, nargs="+", default=[0, 4, 8, 16, 64])
    parser.add_argument("--draws", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--arms", nargs="+", default=list("ZIWSMT"))
    parser.add_argument("--in-prompt", type=int, default=2, help="examples a class in the prompt")
    parser.add_argument("--n-test", type=int, default=1000)
    args = parser.parse_args(argv)
    warnings.simplefilter("ignore", CutTextsWarning)
    encoder = FrozenEncoder()
    for name in args.sets:
        task = TASKS[name]
        X, y = task.load("train")
        X_test, y_test = task.load("test")
        rows = np.random.default_rng(0).permutation(len(y_test))[: args.n_test]
        X_test, y_test = X_test[rows], y_test[rows]
        for k in args.sizes:
            arms = [arm for arm in args.arms if (arm == "Z") == (k == 0)]
            found: dict[str, list[tuple[float, float, float]]] = {arm: [] for arm in arms}
            for seed in args.draws if k else args.draws[:1]:
                drawn = draw_per_class(y, k, seed)
                for arm in arms:
                    model = make(arm, task, k, seed, args.in_prompt, encoder)
                    began = time.perf_counter()
                    if k:
                        model.fit(X[drawn], y[drawn])
                    else:
                        model.fit(None, np.unique(y).tolist())
                    seconds = time.perf_counter() - began
                    predicted = model.predict(X_test)
                    accuracy = 100 * accuracy_score(y_test, predicted)
                    f1 = 100 * f1_score(y_test, predicted, average="macro", zero_division=0)
                    found[arm].append((accuracy, f1, seconds))
                    print(
                        f"{name} k={k} draw={seed} {arm}: accuracy {accuracy:.1f} %, "
                        f"macro F1 {f1:.1f} %, fitted in {seconds:.0f} s",
                        flush=True,
                    )
            show(name, k, found)


if __name__ == "__main__":
    main()
