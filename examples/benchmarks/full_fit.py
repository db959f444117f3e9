"""Table 1, one full fit: tokens per second and peak memory of fine-tuning every layer.

Arms: H0, Hugging Face's Trainer with default arguments (fp32, padded to the longest text of a
batch); H1, the Trainer as a careful user would set it (bf16, batches of like length); S, skgpt.
The same weights, texts, truncation, batch size, learning rate and threads. Each run is a process
of its own; the arms alternate, and the figure is the ratio of the medians over the rounds. A part
of an epoch over 1,600 articles of Reuters R8 is timed, after a warm-up.

    python examples/benchmarks/full_fit.py                        # three arms, two rounds
    python examples/benchmarks/full_fit.py --arms H1 S --rounds 3
    python examples/benchmarks/full_fit.py --device cuda
"""

import argparse
import json
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from _data import sample_r8

N_TEXTS = 1600
BATCH = 16
MAX_LENGTH = 256
WARM_UP = 2  # steps that are not timed
MODEL = "smollm2-135m"


class Clock:
    """Notes when each step ended, and how many real tokens it had."""

    def __init__(self) -> None:
        self.ends: list[float] = []
        self.tokens: list[int] = []

    def tick(self, tokens: int) -> None:
        """Note the end of a step."""
        self.ends.append(time.perf_counter())
        self.tokens.append(tokens)

    def rate(self) -> float:
        """Real tokens per second after the warm-up."""
        seconds = self.ends[-1] - self.ends[WARM_UP - 1]
        return sum(self.tokens[WARM_UP:]) / seconds


def run_skgpt(n_steps: int, device: str) -> Clock:
    """Time S: the first steps of a fit."""
    from skgpt import GPTTextClassifier
    from skgpt.training.watch import Monitor, StepDone

    clock = Clock()

    class Done(Exception):
        """Enough steps."""

    class Ticks(Monitor):
        def step(self, event: StepDone) -> None:
            clock.tick(event.n_tokens)
            if len(clock.ends) == n_steps:
                raise Done

    class Timed(GPTTextClassifier):
        def _monitors(self, network: Any) -> list[Monitor]:
            return [Ticks()]

    news = sample_r8(N_TEXTS, 0)
    classifier = Timed(
        MODEL, max_length=MAX_LENGTH, batch_size=BATCH, max_epochs=1, random_state=0, device=device
    )
    try:
        classifier.fit(news.texts, news.topics)
    except Done:
        return clock
    raise AssertionError("the fit was over before the steps were")


def run_trainer(n_steps: int, tuned: bool, device: str) -> Clock:
    """Time H0 or H1: the first steps of `Trainer.train`."""
    import numpy as np
    import torch
    from transformers import (
        AutoModelForSequenceClassification,
        AutoTokenizer,
        DataCollatorWithPadding,
        Trainer,
        TrainingArguments,
    )

    from skgpt.model.conversion import alias_folder

    folder = str(alias_folder(MODEL))
    news = sample_r8(N_TEXTS, 0)
    topics, labels = np.unique(news.topics, return_inverse=True)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    encoded = tokenizer(list(news.texts), truncation=True, max_length=MAX_LENGTH)["input_ids"]
    rows = [
        {"input_ids": ids, "labels": int(label)} for ids, label in zip(encoded, labels, strict=True)
    ]
    model = AutoModelForSequenceClassification.from_pretrained(
        folder, num_labels=len(topics), dtype=torch.float32
    )
    model.config.pad_token_id = tokenizer.pad_token_id
    clock = Clock()

    class Timed(Trainer):
        def _get_train_sampler(self, *args: Any, **kwargs: Any) -> list[int]:
            # Batches from all over the epoch: grouped ones come with the longest first.
            order = list(super()._get_train_sampler(*args, **kwargs))
            batches = [order[i : i + BATCH] for i in range(0, len(order), BATCH)]
            chosen = np.linspace(0, len(batches) - 1, n_steps).round().astype(int)
            return [row for i in np.roll(chosen, WARM_UP) for row in batches[i]]

        def training_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            # The optimiser's step follows this, so a step is timed from one end to the next.
            clock.tick(int(inputs["attention_mask"].sum()))
            return super().training_step(model, inputs, *args, **kwargs)

    own: dict[str, Any] = (
        {"bf16": True, "train_sampling_strategy": "group_by_length"} if tuned else {}
    )
    with tempfile.TemporaryDirectory() as scratch:
        arguments = TrainingArguments(
            output_dir=scratch,
            per_device_train_batch_size=BATCH,
            learning_rate=1e-4,
            max_steps=n_steps,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            logging_strategy="no",
            use_cpu=device == "cpu",
            seed=0,
            **own,
        )
        trainer = Timed(
            model=model,
            args=arguments,
            train_dataset=rows,
            data_collator=DataCollatorWithPadding(tokenizer),
        )
        trainer.train()
    clock.ends = [*clock.ends[1:], time.perf_counter()]  # from starts to ends
    return clock


def one_run(arm: str, n_steps: int, device: str) -> dict[str, float]:
    """Run one arm in this process."""
    import torch

    skgpts = arm == "S"
    clock = run_skgpt(n_steps, device) if skgpts else run_trainer(n_steps, arm == "H1", device)
    if device == "cpu":
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    else:
        peak = torch.cuda.max_memory_allocated() / 2**30
    return {"rate": clock.rate(), "peak": peak}


def product_rate(device: str) -> float:
    """Return the machine's own rate of bf16 matrix products, in GFLOP/s: the best of a few."""
    import torch

    best = 0.0
    for size in (2048, 4096):
        a = torch.randn(size, size, dtype=torch.bfloat16, device=device)
        for _ in range(6):
            began = time.perf_counter()
            a @ a
            if device != "cpu":
                torch.cuda.synchronize()
            best = max(best, 2 * size**3 / (time.perf_counter() - began) / 1e9)
    return best


def flop_per_token() -> float:
    """Return 6 FLOP for each weight of the blocks: two forwards, four backwards."""
    from skgpt.model.blocks import find_blocks
    from skgpt.model.sources import load_source

    blocks = find_blocks(load_source(MODEL).trunk)
    return 6.0 * sum(p.numel() for p in blocks.parameters() if p.ndim > 1)


def main() -> None:
    """Run the arms by turns and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arms", nargs="+", choices=["H0", "H1", "S"], default=["H0", "H1", "S"])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=12, help="steps of each run, warm-up included")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(one_run(args.one, args.steps, args.device)))
        return
    runs: dict[str, list[dict[str, float]]] = {arm: [] for arm in args.arms}
    products = []
    for number in range(args.rounds):
        products.append(product_rate(args.device))
        for arm in args.arms:
            command = [sys.executable, __file__, "--one", arm, "--steps", str(args.steps)]
            done = subprocess.run(
                [*command, "--device", args.device], capture_output=True, text=True, check=False
            )
            if done.returncode:
                sys.exit(f"{arm} failed:\n{done.stderr}")
            runs[arm].append(json.loads(done.stdout.splitlines()[-1]))
            print(f"round {number + 1} {arm}: {runs[arm][-1]}", flush=True)
    rates = {arm: median(run["rate"] for run in done) for arm, done in runs.items()}
    product, flop = median(products), flop_per_token()
    print("\n| Arm | real tokens/s | S is faster by | peak memory, GiB | of the product rate |")
    print("|---|---|---|---|---|")
    for arm, done in runs.items():
        ratio = f"{rates['S'] / rates[arm]:.2f}" if "S" in rates else "-"
        peak = median(run["peak"] for run in done)
        share = 100 * rates[arm] * flop / product / 1e9
        print(f"| {arm} | {rates[arm]:.0f} | {ratio} | {peak:.1f} | {share:.0f} % |")
    print(
        f"\nbf16 products {product:.0f} GFLOP/s, {flop / 1e9:.2f} GFLOP a token; {args.rounds} "
        f"rounds of {args.steps} steps of {BATCH}; {platform.machine()}"
    )


if __name__ == "__main__":
    main()
