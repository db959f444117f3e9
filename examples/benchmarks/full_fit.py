"""Table 1, one full fit: tokens per second and peak memory of fine-tuning every layer.

Arms: H0, Hugging Face's Trainer with default arguments (fp32, padded to the longest text of a
batch); H1, the Trainer as a careful user would set it (bf16, batches of like length); S, skgpt.
The same weights, texts, truncation, batch size, learning rate and threads. Each run is a process
of its own; the arms alternate, and the figure is the ratio of the medians over the rounds. A part
of an epoch over 1,600 articles of Reuters R8 is timed, after a warm-up.

With --accuracy H1 and S make whole fits instead, the same for both: 150 articles, two epochs,
batches of 8, three draws, judged on the same 500 articles of the test split. Pooling is the last
token's, as H1 has it. Their heads differ as they do by default: S starts its head at zero and
gives it a learning rate of 1e-3, H1 draws it and gives it the trunk's; S warms up, H1 doesn't.

    python examples/benchmarks/full_fit.py                        # three arms, two rounds
    python examples/benchmarks/full_fit.py --arms H1 S --rounds 3
    python examples/benchmarks/full_fit.py --accuracy               # H1 and S, about 13 minutes
    python examples/benchmarks/full_fit.py --device cuda
"""

import argparse
import json
import time
from statistics import mean, stdev
from typing import Any

import numpy as np
from _arms import (
    MODEL,
    Run,
    Setting,
    medians,
    parser_of,
    peak_memory,
    print_settings,
    print_table,
    product_rate,
    ratio,
    run_arm,
    test_sample,
)
from _data import News, sample_r8

N_TEXTS = 1600
BATCH = 16
N_TEST = 500
ARMS = ["H0", "H1", "S"]


def speed_run(arm: str, n_steps: int, device: str) -> Run:
    """Time some steps of one arm in this process."""
    news = sample_r8(N_TEXTS, 0)
    setting = Setting(batch=BATCH, device=device)
    if arm == "S":
        from _steps import time_skgpt

        clock = time_skgpt(news.texts, news.topics, n_steps, setting)
    else:
        from _trainer import time_trainer

        clock = time_trainer(news.texts, news.topics, n_steps, arm == "H1", setting)
    return {"rate": clock.rate(), "peak": peak_memory(device)}


def accuracy_run(arm: str, args: argparse.Namespace) -> Run:
    """Make whole fits of one arm in this process, one: a draw is a seed."""
    train, test = sample_r8(args.texts, args.seed), test_sample(args.test)
    setting = Setting(
        batch=args.batch,
        epochs=args.epochs,
        pooling="last",
        seed=args.seed,
        device=args.device,
        n_layers=args.layers,
    )
    fit, predict = _whole_skgpt(setting) if arm == "S" else _whole_trainer(arm == "H1", setting)
    began = time.perf_counter()
    fit(train)
    fitted = time.perf_counter()
    predicted = predict(test)
    return {
        "accuracy": 100 * float(np.mean(predicted == test.topics)),
        "fit": fitted - began,
        "predict": time.perf_counter() - fitted,
    }


def _whole_skgpt(setting: Setting) -> Any:
    classifier = setting.classifier()
    return (
        lambda news: classifier.fit(news.texts, news.topics),
        lambda news: classifier.predict(news.texts),
    )


def _whole_trainer(tuned: bool, setting: Setting) -> Any:
    from _trainer import WholeFit, load_tokenizer, tokenised

    whole = WholeFit(setting, tuned, load_tokenizer())

    def ids_of(news: News) -> list[list[int]]:
        return tokenised(news.texts, whole.tokenizer, setting.max_length)

    def fit(news: News) -> None:
        whole.load(news.topics)
        whole.train(ids_of(news))

    return fit, lambda news: whole.predict(ids_of(news))


def flop_per_token() -> float:
    """Return 6 FLOP for each weight of the blocks: two forwards, four backwards."""
    from skgpt.pretrained.loading import load_pretrained
    from skgpt.trunk.layers import find_blocks

    blocks = find_blocks(load_pretrained(MODEL).trunk)
    return 6.0 * sum(p.numel() for p in blocks.parameters() if p.ndim > 1)


def speed_table(args: argparse.Namespace) -> None:
    """Run the arms by turns and print the table."""
    runs: dict[str, list[Run]] = {arm: [] for arm in args.arms}
    products = []
    options = {"steps": args.steps, "device": args.device}
    for number in range(args.rounds):
        products.append(product_rate(args.device))
        for arm in args.arms:
            runs[arm].append(run_arm(__file__, arm, options, f"round {number + 1}"))
    rates, peaks = medians(runs, "rate"), medians(runs, "peak")
    product, flop = float(np.median(products)), flop_per_token()
    print_table(
        ["Arm", "real tokens/s", "S is faster by", "peak memory, GiB", "of the product rate"],
        [
            [
                arm,
                f"{rates[arm]:.0f}",
                ratio(rates, arm, "S"),
                f"{peaks[arm]:.1f}",
                f"{100 * rates[arm] * flop / product / 1e9:.0f} %",
            ]
            for arm in runs
        ],
    )
    print(f"bf16 products {product:.0f} GFLOP/s, {flop / 1e9:.2f} GFLOP a token")
    print_settings(
        rounds=args.rounds, steps=args.steps, batches_of=BATCH, max_length=256, device=args.device
    )


def accuracy_table(args: argparse.Namespace) -> None:
    """Fit the arms by turns on each draw and print their accuracies."""
    arms = [arm for arm in args.arms if arm != "H0"]
    runs: dict[str, list[Run]] = {arm: [] for arm in arms}
    names = ("texts", "test", "epochs", "batch", "layers", "device")
    options = {"accuracy": True, **{name: getattr(args, name) for name in names}}
    for seed in range(args.draws):
        for arm in arms:
            own = {**options, "seed": seed}
            runs[arm].append(run_arm(__file__, arm, own, f"draw {seed}"))
    fits, predicts = medians(runs, "fit"), medians(runs, "predict")
    rows = []
    for arm, done in runs.items():
        scores = [run["accuracy"] for run in done]
        spread = stdev(scores) if len(scores) > 1 else 0.0
        rows.append(
            [
                arm,
                f"{mean(scores):.2f} ± {spread:.2f}",
                ", ".join(f"{score:.1f}" for score in scores),
                f"{fits[arm]:.0f}",
                f"{predicts[arm]:.0f}",
            ]
        )
    print_table(["Arm", "accuracy, %", "of each draw", "fit, s", "predict, s"], rows)
    print_settings(**{name: getattr(args, name) for name in names}, learning_rate=1e-4)


def main() -> None:
    """Run one of the tables, or one arm of it."""
    parser = parser_of(__doc__, ARMS, rounds=2)
    parser.add_argument("--steps", type=int, default=12, help="steps of each run, warm-up included")
    parser.add_argument("--accuracy", action="store_true", help="whole fits of H1 and S")
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--texts", type=int, default=150, help="texts of an accuracy's fit")
    parser.add_argument("--test", type=int, default=N_TEST, help="texts it is judged on")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--layers", type=int, default=None, help="fewer layers, for a quick look")
    parser.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        one = accuracy_run(args.one, args) if args.accuracy else None
        print(json.dumps(one or speed_run(args.one, args.steps, args.device)))
    elif args.accuracy:
        accuracy_table(args)
    else:
        speed_table(args)


if __name__ == "__main__":
    main()
