"""Table 7, prediction: texts per second against transformers' text-classification pipeline.

One model, fitted once: GPTTextClassifier with the quickstart's depth (the first 12 layers, the last
4 trained) and the last token's pooling, on 300 articles of Reuters R8. Its weights are put into an
AutoModelForSequenceClassification and saved in fp32, so every arm computes the same function of
the same tokens (which is checked) on the 2,189 test articles, cut at 256 tokens. Arms: P,
`pipeline("text-classification", batch_size=32)` with default arguments; P16, the same with
dtype=bfloat16; P16-sorted, which is also given the longest texts first, as a careful user would;
S, a classifier that a fresh process opened from its pickle. Opening the model is not timed in any
arm.

    python examples/benchmarks/prediction.py
    python examples/benchmarks/prediction.py --texts 500 --rounds 3
"""

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import joblib
import numpy as np
from _arms import (
    Run,
    Setting,
    by_turns,
    medians,
    parser_of,
    print_settings,
    print_table,
    test_sample,
)
from _data import sample_r8
from numpy.typing import NDArray

ARMS = ["P", "P16", "P16-sorted", "S"]
BATCH = 32
MAX_LENGTH = 256
PICKLE, EXPORTED = "classifier.joblib", "exported"


def prepare(folder: Path, args: argparse.Namespace) -> None:
    """Fit the classifier; leave it in the folder as a pickle and as a transformers model."""
    train = sample_r8(args.fit_texts, 0)
    setting = Setting(
        max_length=MAX_LENGTH,
        epochs=args.epochs,
        learning_rate=2e-4,
        n_layers=args.layers,
        trainable_layers=4,
        pooling="last",
        device=args.device,
    )
    classifier = setting.classifier().fit(train.texts, train.topics)
    joblib.dump(classifier, folder / PICKLE)
    export(classifier, setting, folder / EXPORTED)
    check_tokens(classifier, folder / EXPORTED, texts_of(args))


def export(classifier: Any, setting: Setting, folder: Path) -> None:
    """Save a fitted classifier in fp32 as a sequence classifier of transformers."""
    import torch
    from _trainer import load_classifier, load_tokenizer

    network = classifier._model.network
    model = load_classifier(len(classifier.classes_), setting)
    tokenizer = load_tokenizer()
    with torch.no_grad():
        for name, master in network.learnable.items():
            model.model.get_parameter(name).copy_(master)
        model.score.weight.copy_(network.head.weight)
    model.config.id2label = dict(enumerate(map(str, classifier.classes_)))
    model.config.label2id = {label: i for i, label in model.config.id2label.items()}
    model.config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def texts_of(args: argparse.Namespace) -> list[str]:
    """Return the texts to predict."""
    return [str(text) for text in test_sample(args.texts).texts]


def check_tokens(classifier: Any, folder: Path, texts: list[str]) -> None:
    """Raise unless both sides see the same tokens of every text."""
    from _trainer import tokenised
    from transformers import AutoTokenizer

    from skgpt.data.tokenization import tokenise

    theirs = tokenised(texts, AutoTokenizer.from_pretrained(folder), MAX_LENGTH)
    ours = tokenise(texts, classifier._model.network.pretrained.tokenizer, MAX_LENGTH)
    differ = [i for i, row in enumerate(theirs) if row != ours.row(i).tolist()]
    if differ:
        raise AssertionError(f"{len(differ)} texts have other tokens, {texts[differ[0]]!r} first")


def run_pipeline(arm: str, folder: Path, texts: list[str], device: str) -> Run:
    """Time the pipeline of transformers in this process."""
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    own = {} if arm == "P" else {"dtype": torch.bfloat16}
    classify = transformers.pipeline(
        "text-classification", model=str(folder / EXPORTED), device=device, **own
    )
    began = time.perf_counter()
    order = np.arange(len(texts))
    if arm == "P16-sorted":
        order = np.argsort([-len(text) for text in texts], kind="stable")
    found = classify(
        [texts[i] for i in order],
        batch_size=BATCH,
        truncation=True,
        max_length=MAX_LENGTH,
        top_k=None,
    )
    seconds = time.perf_counter() - began
    labels = sorted(classify.model.config.id2label.values())
    probabilities = np.empty((len(texts), len(labels)))
    for i, scores in zip(order, found, strict=True):
        by_label = {score["label"]: score["score"] for score in scores}
        probabilities[i] = [by_label[label] for label in labels]
    return _saved(folder, arm, probabilities, {"seconds": seconds})


def run_skgpt(folder: Path, texts: list[str]) -> Run:
    """Time the predictions of a classifier out of its pickle, in this process."""
    import transformers  # noqa: F401  # as in the other arms, before the clock starts

    began = time.perf_counter()
    classifier = joblib.load(folder / PICKLE)
    opened = time.perf_counter()
    probabilities = classifier.predict_proba(texts)
    times = {"open": opened - began, "seconds": time.perf_counter() - opened}
    return _saved(folder, "S", probabilities, times)


def _saved(folder: Path, arm: str, probabilities: NDArray[np.float64], run: Run) -> Run:
    np.save(folder / f"{arm}.npy", probabilities)
    return run


def print_comparison(folder: Path, arms: list[str], truth: NDArray[np.int64]) -> None:
    """Print accuracies, and how far each arm is from P."""
    found = {arm: np.load(folder / f"{arm}.npy") for arm in arms}
    rows = []
    for arm, own in found.items():
        row = [arm, f"{100 * (own.argmax(axis=1) == truth).mean():.2f}"]
        if "P" in found and arm != "P":
            equal = (own.argmax(axis=1) == found["P"].argmax(axis=1)).mean()
            apart = np.abs(own - found["P"])
            row += [f"{100 * equal:.2f} %", f"{apart.max():.3f}", f"{apart.mean():.5f}"]
        rows.append([*row, *"---"][:5])
    head = ["Arm", "accuracy, %", "labels as P's", "probabilities: largest difference", "mean"]
    print_table(head, rows)


def main() -> None:
    """Fit, run the arms by turns and print the tables, or run one arm."""
    parser = parser_of(__doc__, ARMS, rounds=1)
    parser.add_argument("--texts", type=int, default=2189, help="test texts to predict")
    parser.add_argument("--fit-texts", type=int, default=300)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        texts = texts_of(args)
        is_ours = args.one == "S"
        run = (
            run_skgpt(args.folder, texts)
            if is_ours
            else run_pipeline(args.one, args.folder, texts, args.device)
        )
        print(json.dumps(run))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(folder, args)
        options = {"texts": args.texts, "device": args.device, "folder": folder}
        runs = by_turns(__file__, args.arms, args.rounds, options)
        seconds = medians(runs, "seconds")
        rows = []
        for arm, own in seconds.items():
            ratio = f"{seconds[arm] / seconds['S']:.2f}" if "S" in seconds else "-"
            rows.append([arm, f"{own:.1f}", f"{args.texts / own:.1f}", ratio])
        print_table(["Arm", "seconds", "texts/s", "S is faster by"], rows)
        topics = np.unique(sample_r8(args.fit_texts, 0).topics)
        truth = np.searchsorted(topics, test_sample(args.texts).topics)
        print_comparison(folder, args.arms, truth)
    print_settings(
        layers=args.layers,
        rounds=args.rounds,
        texts=args.texts,
        batches_of=BATCH,
        max_length=MAX_LENGTH,
        device=args.device,
        fitted_on=args.fit_texts,
        epochs=args.epochs,
    )


if __name__ == "__main__":
    main()
