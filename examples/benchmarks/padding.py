"""Table 2, padding: where texts differ in length, and where they hardly do.

Three data sets: Reuters R8 cut at 256 tokens (most are short, some very long), 20 Newsgroups cut
at 256 (a third is cut), and R8 cut at 32 (nearly all are cut, so nearly all are of one length).
Arms: H0, the Trainer with default arguments; H1, the Trainer with bf16 and batches of like length;
S, skgpt, which lays texts end to end. All train every one of the model's first 8 layers, which is
enough to see the padding and leaves time for three data sets. The share of padding is what an arm
computes that is no token of a text: H's up to the longest text of a batch, S's up to a round
number of tokens.

    python examples/benchmarks/padding.py
    python examples/benchmarks/padding.py --arms H1 S --rounds 3 --layers 30
"""

import argparse
import json

from _arms import (
    Run,
    Setting,
    by_turns,
    medians,
    parser_of,
    print_settings,
    print_table,
    ratio,
)
from _data import Name, sample_news

N_TEXTS = 1600
BATCH = 16
SETS: dict[str, tuple[Name, int]] = {
    "r8-256": ("r8", 256),
    "20ng-256": ("20ng", 256),
    "r8-32": ("r8", 32),
}
NAMES = {
    "r8-256": "R8, 256: skewed",
    "20ng-256": "20 Newsgroups, 256: long",
    "r8-32": "R8, 32: even and short",
}
ARMS = ["H0", "H1", "S"]


def one_run(arm: str, args: argparse.Namespace) -> Run:
    """Time some steps of one arm on one data set in this process."""
    name, max_length = SETS[args.set]
    news = sample_news(name, N_TEXTS, 0)
    setting = Setting(max_length=max_length, batch=BATCH, n_layers=args.layers, device=args.device)
    if arm == "S":
        from _steps import time_skgpt

        clock = time_skgpt(news.texts, news.topics, args.steps, setting)
    else:
        from _trainer import time_trainer

        clock = time_trainer(news.texts, news.topics, args.steps, arm == "H1", setting)
    return {"rate": clock.rate(), "padding": 100 * clock.padding()}


def main() -> None:
    """Run the arms by turns on each data set and print the table, or run one arm."""
    parser = parser_of(__doc__, ARMS, rounds=2)
    parser.add_argument("--steps", type=int, default=12, help="steps of each run, warm-up included")
    parser.add_argument("--layers", type=int, default=8, help="layers kept, all of them trained")
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS))
    parser.add_argument("--set", choices=SETS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(one_run(args.one, args)))
        return
    rows = []
    for name in args.sets:
        print(NAMES[name], flush=True)
        options = {
            "set": name,
            "steps": args.steps,
            "layers": args.layers,
            "device": args.device,
        }
        runs = by_turns(__file__, args.arms, args.rounds, options)
        rates, padding = medians(runs, "rate"), medians(runs, "padding")
        rows += [
            [NAMES[name], arm, f"{rates[arm]:.0f}", ratio(rates, arm, "S"), f"{padding[arm]:.1f} %"]
            for arm in args.arms
        ]
    print_table(["Texts", "Arm", "real tokens/s", "S is faster by", "padding"], rows)
    print_settings(
        rounds=args.rounds,
        steps=args.steps,
        batches_of=BATCH,
        layers=args.layers,
        device=args.device,
    )


if __name__ == "__main__":
    main()
