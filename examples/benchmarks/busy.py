"""A fit and a prediction on a quiet machine and beside one busy process, by two ways of threading.

"shared" has torch's threads share every matrix product; "each its own" is what skgpt does: a thread
per core, with a micro-batch of its own. Each arm is a process that is measured quiet and busy by
turns; "others" is what other processes took meanwhile, in cores: a check of both words.

    python examples/benchmarks/busy.py --texts 100 --rounds 3
"""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import psutil
from _arms import MODEL, Run, by_turns, parser_of, print_settings, print_table, test_sample

ARMS = ("shared", "each its own")
_SPIN = "import time\nend = time.time() + 600\nwhile time.time() < end: pass"


def measured(work: Callable[[], Any]) -> tuple[float, float]:
    """Return how many seconds work takes, and how many cores others were busy on meanwhile."""

    def busy() -> float:
        times = psutil.cpu_times()
        return times.user + times.system

    others, own, began = busy(), time.process_time(), time.perf_counter()
    work()
    seconds = time.perf_counter() - began
    return seconds, (busy() - others - (time.process_time() - own)) / seconds


def run(arm: str, n_texts: int, rounds: int) -> Run:
    """Measure one arm."""
    import skgpt
    from skgpt import GPTTextClassifier
    from skgpt.network import microbatches

    if arm == "shared":
        microbatches.n_threads = lambda device: 1  # type: ignore[assignment]
    news = test_sample(n_texts)
    clf = GPTTextClassifier(MODEL, max_epochs=1, random_state=0).fit(news.texts, news.topics)

    def fit() -> None:
        skgpt.clear_cache()
        clf.fit(news.texts, news.topics)

    def predict() -> None:
        skgpt.clear_cache()
        clf.predict(news.texts)

    done: Run = {}
    for _ in range(rounds):
        for state in ("quiet", "busy"):
            beside = None
            if state == "busy":
                beside = subprocess.Popen([sys.executable, "-c", _SPIN])
                time.sleep(0.5)
            for name, work in (("predict", predict), ("fit", fit)):
                done.setdefault(f"{name} {state}", []).append(measured(work))
            if beside is not None:
                beside.kill()
                beside.wait()
    return done


def main() -> None:
    """Run the arms and print the table."""
    parser = parser_of(__doc__, ARMS, rounds=3)
    parser.add_argument("--texts", type=int, default=100)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(run(args.one, args.texts, args.rounds)))
        return
    runs = by_turns(__file__, args.arms, 1, {"texts": args.texts, "rounds": args.rounds})
    rows = []
    for arm, (done,) in runs.items():
        for name in ("predict", "fit"):
            of = {state: done[f"{name} {state}"] for state in ("quiet", "busy")}
            quiet, busy = (median(seconds for seconds, _ in of[state]) for state in of)
            others = (median(cores for _, cores in of[state]) for state in of)
            rows.append(
                [
                    name,
                    arm,
                    f"{quiet:.1f}",
                    f"{busy:.1f}",
                    f"{busy / quiet:.2f}",
                    *(f"{cores:.2f}" for cores in others),
                ]
            )
    head = ["", "threads", "quiet s", "busy s", "busy / quiet", "others, quiet", "others, busy"]
    print_table(head, rows)
    print_settings(texts=args.texts, rounds=args.rounds, device="cpu")


if __name__ == "__main__":
    main()
