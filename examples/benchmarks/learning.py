"""Table 9, what learns: every weight, the last layers, adapters, or the head alone.

The quickstart's trunk (the first 12 layers, texts cut at 128 tokens, batches of 16) on 1,000
articles of Reuters R8, three draws, judged on 1,000 articles of the test split: seconds of the fit
and of the predictions, the size of a pickle, and accuracy. T is TF-IDF with a linear SVM on the
same articles. Each arm has the learning rate that is usual for it; a run is a process of its own.

    python examples/benchmarks/learning.py
    python examples/benchmarks/learning.py --arms lora head --seeds 1 --texts 200
    python examples/benchmarks/learning.py --device cuda
"""

import argparse
import json
import tempfile
import time
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

import joblib
import numpy as np
from _arms import MODEL, Run, parser_of, print_settings, print_table, run_arm, test_sample
from _data import sample_r8

MB = 1e6
# Beside the parameters that all arms share.
ARMS: dict[str, dict[str, Any]] = {
    "full": {"trainable_layers": "all", "learning_rate": 1e-4},
    "last 4": {"trainable_layers": 4, "learning_rate": 2e-4},
    "LoRA": {"trainable_layers": "all", "learning_rate": 2e-3},
    "LoRA, last 4": {"trainable_layers": 4, "learning_rate": 2e-3},
    "head": {"trainable_layers": 0, "head_learning_rate": 1e-2},
    "head, then last 4": {"trainable_layers": 4, "learning_rate": 2e-4, "head_first_epochs": 5},
    "T": {},
}


def estimator_of(arm: str, args: argparse.Namespace) -> Any:
    """Return the unfitted estimator of an arm."""
    if arm == "T":
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.pipeline import make_pipeline
        from sklearn.svm import LinearSVC

        return make_pipeline(TfidfVectorizer(sublinear_tf=True), LinearSVC(random_state=0))
    from skgpt import GPTTextClassifier, LoRA

    return GPTTextClassifier(
        MODEL,
        n_layers=args.layers,
        lora=LoRA(rank=8) if arm.startswith("LoRA") else None,
        max_length=args.length,
        max_epochs=args.epochs,
        batch_size=args.batch,
        random_state=args.seed,
        device=args.device,
        **ARMS[arm],
    )


def run_of(arm: str, args: argparse.Namespace) -> Run:
    """Fit one arm in this process, judge it and keep it in a file."""
    train, test = sample_r8(args.texts, args.seed), test_sample(args.test)
    estimator = estimator_of(arm, args)
    began = time.perf_counter()
    estimator.fit(train.texts, train.topics)
    fitted = time.perf_counter()
    predicted = estimator.predict(test.texts)
    done = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "fitted.joblib"
        joblib.dump(estimator, file)
        size = file.stat().st_size / MB
    return {
        "accuracy": 100 * float(np.mean(predicted == test.topics)),
        "fit": fitted - began,
        "predict": done - fitted,
        "size": size,
    }


def main() -> None:
    """Run the table, or one arm of it."""
    parser = parser_of(__doc__, list(ARMS), rounds=1)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--texts", type=int, default=1000)
    parser.add_argument("--test", type=int, default=1000)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--length", type=int, default=128, help="tokens per text")
    parser.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(run_of(args.one, args)))
        return
    names = ("texts", "test", "epochs", "batch", "layers", "length", "device")
    options = {name: getattr(args, name) for name in names}
    runs: dict[str, list[Run]] = {arm: [] for arm in args.arms}
    for seed in range(args.seeds):
        for arm in args.arms:
            runs[arm].append(run_arm(__file__, arm, {**options, "seed": seed}, f"draw {seed}"))
    rows = []
    for arm, done in runs.items():
        scores = [run["accuracy"] for run in done]
        spread = stdev(scores) if len(scores) > 1 else 0.0
        middle = {name: median(run[name] for run in done) for name in ("fit", "predict", "size")}
        rows.append(
            [
                arm,
                f"{middle['fit']:.1f}",
                f"{middle['predict']:.1f}",
                f"{middle['size']:.2f}",
                f"{mean(scores):.2f} ± {spread:.2f}",
            ]
        )
    print_table(["What learns", "fit, s", "predict, s", "pickle, MB", "accuracy, %"], rows)
    print_settings(seeds=args.seeds, **options)


if __name__ == "__main__":
    main()
