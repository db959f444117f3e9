"""Long texts: cut, read whole in windows, and cut later.

Articles of 20 Newsgroups of at least 300 words, so of 400 tokens and more. They are cut at 128
tokens, read whole in windows of 128 tokens (`long_text="windows"`), and cut at 512 tokens. The
quickstart's recipe (the first 12 layers, the last 4 trained) for a fixed number of epochs with
several seeds; the articles of the test split are of the same length. The seconds are those of the
first seed's fit and prediction: later ones find what the frozen layers returned.

    python examples/benchmarks/long_text.py
    python examples/benchmarks/long_text.py --texts 40 --test 40 --epochs 1 --layers 2
"""

import argparse
import json
import time
from typing import Any

import numpy as np
from _arms import (
    Run,
    Setting,
    by_turns,
    medians,
    parser_of,
    peak_memory,
    print_settings,
    print_table,
    ratio,
)
from _data import News, Split, load_news
from sklearn.model_selection import train_test_split

ARMS = ("cut", "windows", "cut later")
LATER = 4  # times as many tokens


def long_articles(split: Split, n: int, words: int) -> News:
    """Return n articles of a split that have so many words, stratified."""
    news = load_news("20ng", split)
    rows = np.array([i for i, text in enumerate(news.texts) if len(text.split()) >= words])
    if n < len(rows):
        rows, _ = train_test_split(rows, train_size=n, stratify=news.topics[rows], random_state=0)
    return News(news.texts[rows], news.topics[rows])


def classifier(arm: str, seed: int, args: argparse.Namespace) -> Any:
    """Return the unfitted classifier of an arm."""
    setting = Setting(
        max_length=args.length * (LATER if arm == "cut later" else 1),
        epochs=args.epochs,
        learning_rate=2e-4,
        n_layers=args.layers,
        trainable_layers=min(4, args.layers),
        seed=seed,
        device=args.device,
    )
    return setting.classifier().set_params(long_text="windows" if arm == "windows" else "cut")


def one_run(arm: str, args: argparse.Namespace) -> Run:
    """Fit an arm with every seed; the libraries are imported before the clock starts."""
    import skgpt.classifier  # noqa: F401

    train = long_articles("train", args.texts, args.words)
    test = long_articles("test", args.test, args.words)
    accuracies, seconds = [], []
    for seed in range(args.seeds):
        began = time.perf_counter()
        fitted = classifier(arm, seed, args).fit(train.texts, train.topics)
        between = time.perf_counter()
        accuracies.append(100 * fitted.score(test.texts, test.topics))
        seconds.append((between - began, time.perf_counter() - between))
    return {
        "fit": seconds[0][0],
        "predict": seconds[0][1],
        "test": float(np.mean(accuracies)),
        "sd": float(np.std(accuracies, ddof=1)) if len(accuracies) > 1 else 0.0,
        "peak": peak_memory(args.device),
    }


def main() -> None:
    """Run the arms by turns and print the table, or run one arm."""
    parser = parser_of(__doc__, ARMS, rounds=1)
    parser.add_argument("--texts", type=int, default=600)
    parser.add_argument("--test", type=int, default=600, help="articles of the test split")
    parser.add_argument("--words", type=int, default=300, help="that an article has at least")
    parser.add_argument("--length", type=int, default=128, help="tokens of a text or window")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--layers", type=int, default=12)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(one_run(args.one, args)))
        return
    names = ("texts", "test", "words", "length", "epochs", "seeds", "layers", "device")
    options = {name: getattr(args, name) for name in names}
    runs = by_turns(__file__, args.arms, args.rounds, options)
    fit, predict = medians(runs, "fit"), medians(runs, "predict")
    rows = []
    for arm in args.arms:
        one = runs[arm][-1]
        rows.append(
            [
                arm,
                args.length * (LATER if arm == "cut later" else 1),
                f"{one['test']:.1f} ± {one['sd']:.1f}",
                f"{fit[arm]:.0f}",
                ratio(fit, arm, "cut", times=True),
                f"{1000 * predict[arm] / args.test:.1f}",
                f"{one['peak']:.2f}",
            ]
        )
    head = ["Long texts", "max_length", "on the test texts, %", "fit, s", "times that of cut"]
    print_table([*head, "predict, s per 1,000", "peak memory, GiB"], rows)
    print_settings(rounds=args.rounds, **options)


if __name__ == "__main__":
    main()
