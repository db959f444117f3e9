"""Table 10, what `plan` foresaw: seconds of a fit and of predictions, and memory, beside the real.

The quickstart's trunk (the first 12 layers, texts cut at 128 tokens, batches of 16) on articles of
Reuters R8, several epochs. Each arm plans, fits and predicts in a process of its own, once the
model is read. A factor above 1 means that the fit took longer than
was said. Memory is the peak of the process, above what it had before the plan, when libraries were
loaded but no model.

    python examples/benchmarks/plan.py
    python examples/benchmarks/plan.py --arms "last 4" head --texts 100 --rounds 2
    python examples/benchmarks/plan.py --device cuda
"""

import argparse
import json
import time
from statistics import median
from typing import Any

import psutil
from _arms import (
    MODEL,
    Run,
    by_turns,
    parser_of,
    peak_memory,
    print_settings,
    print_table,
    test_sample,
)
from _data import sample_r8

# Beside the parameters that all arms share.
ARMS: dict[str, dict[str, Any]] = {
    "all": {"trainable_layers": "all", "learning_rate": 1e-4},
    "last 4": {"trainable_layers": 4, "learning_rate": 2e-4},
    "head": {"trainable_layers": 0, "head_learning_rate": 1e-2},
    "LoRA": {"trainable_layers": "all", "learning_rate": 2e-3},
    "head, then last 4": {"trainable_layers": 4, "learning_rate": 2e-4, "head_first_epochs": 3},
    "last 4, held out": {"trainable_layers": 4, "early_stopping": True, "n_iter_no_change": 99},
}


def run_of(arm: str, args: argparse.Namespace) -> Run:
    """Plan, fit and predict in this process; the libraries are imported before the clock starts."""
    import transformers  # noqa: F401

    import skgpt.classifier  # noqa: F401
    from skgpt import GPTTextClassifier, LoRA
    from skgpt.pretrained.loading import load_pretrained

    train, test = sample_r8(args.texts, 0), test_sample(args.test)
    classifier = GPTTextClassifier(
        MODEL,
        n_layers=args.layers,
        lora=LoRA(rank=8) if arm == "LoRA" else None,
        max_length=args.length,
        max_epochs=args.epochs,
        batch_size=args.batch,
        random_state=0,
        device=args.device,
        **ARMS[arm],
    )
    before = psutil.Process().memory_info().rss / 2**30 if args.device == "cpu" else 0.0
    load_pretrained(MODEL)
    began = time.perf_counter()
    estimate = classifier.plan(train.texts, train.topics)
    planned = time.perf_counter()
    classifier.fit(train.texts, train.topics)
    fitted = time.perf_counter()
    peak = peak_memory(args.device) - before
    predicting = time.perf_counter()
    classifier.predict(test.texts)
    predicted = time.perf_counter()
    return {
        "plan": planned - began,
        "said fit": estimate.fit_seconds,
        "fit": fitted - planned,
        "said predict": estimate.seconds_per_1000_predictions * len(test.texts) / 1000,
        "predict": predicted - predicting,
        "said memory": estimate.memory_bytes / 2**30,
        "memory": peak,
    }


def main() -> None:
    """Run the arms by turns and print the table, or run one arm."""
    parser = parser_of(__doc__, list(ARMS), rounds=1)
    parser.add_argument("--texts", type=int, default=400)
    parser.add_argument("--test", type=int, default=200)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--length", type=int, default=128, help="tokens per text")
    args = parser.parse_args()
    if args.one:
        print(json.dumps(run_of(args.one, args)))
        return
    names = ("texts", "test", "epochs", "batch", "layers", "length", "device")
    options = {name: getattr(args, name) for name in names}
    runs = by_turns(__file__, args.arms, args.rounds, options)
    rows = []
    for arm, done in runs.items():
        row = [arm, f"{median(run['plan'] for run in done):.1f}"]
        for name, digits in (("fit", 1), ("predict", 1), ("memory", 2)):
            said, came = (median(run[key] for run in done) for key in (f"said {name}", name))
            row += [f"{said:.{digits}f}", f"{came:.{digits}f}", f"{came / said:.2f}"]
        rows.append(row)
    head = ["What learns", "plan, s"]
    for name in ("fit, s", f"{args.test} predictions, s", "memory, GiB"):
        head += [f"{name}: said", "came", "factor"]
    print_table(head, rows)
    print_settings(rounds=args.rounds, **options)


if __name__ == "__main__":
    main()
