"""Table 8, memory: what many fits, loads and predictions leave, and estimators as pickles.

Twenty fits with the quickstart's recipe (the first 12 layers, the last 4 trained, 128 tokens) on
60 articles of Reuters R8 each, another draw every time, one epoch: the resident set after the
second and after the last, how much of the growth is what skgpt keeps for texts it has seen, and
what is left after the estimator is deleted, the caches are cleared and the C library is told to
give back what it holds of freed memory. The base model is mapped from its file and counts. Then
estimators of 16 layers with the head alone, the last four layers and all of them trained: the size
of the pickle, the seconds to dump it, and to load it where the base model is not in memory yet (a
fresh process, its imports not counted) and where it is. The first predict is not part of a load.

Then a server's life, in minutes since the model is a tiny one of random weights: 1,000 predictions
of texts that no one has seen, fifty times; the same folder loaded fifty times; fifty fits on 1,000
unseen texts each, under ``skgpt.set_cache_memory``; and the same 1,000 texts a round sent to the
server of examples/serve, a process of its own, in requests of fifty. The resident set after the
first of them, the tenth (whatever keeps a bounded number of things is full by then) and the last;
--flat prints this table alone, --server its last row.

    python examples/benchmarks/memory.py
"""

import argparse
import gc
import http.client
import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import psutil
from _arms import Run, Setting, print_settings, print_table, run_arm
from _data import News, load_r8
from serving import BATCH_TEXTS, HOST, post, server

RECIPE = Setting(
    max_length=128, batch=16, learning_rate=2e-4, n_layers=12, trainable_layers=4, pooling="mean"
)
DEPTHS: dict[str, Any] = {"head only": 0, "last 4": 4, "all": "all"}
EARLY = 2  # fits after which everything that is made once has been made
LIMIT = 2**24  # bytes that the many small fits may keep of their texts
REPEATED = ("predictions", "loads", "fits", "requests")
IN_A_REQUEST = 50  # texts
FULL = 10  # rounds after which all that is bounded is full
MB = 1e6


def resident() -> float:
    """Return the memory of this process, in MB."""
    gc.collect()
    return float(psutil.Process().memory_info().rss) / MB


def draw(n: int, seed: int) -> News:
    """Return n articles of the train split; with so few a topic may be missing."""
    news = load_r8("train")
    rows = np.random.default_rng(seed).permutation(len(news.texts))[:n]
    return News(news.texts[rows], news.topics[rows])


def kept_states() -> float:
    """Return what skgpt keeps of texts it has seen, in MB."""
    import skgpt

    info = skgpt.cache_info()
    per_text = [i for name, i in info.items() if "states on" in name or name == "token ids"]
    return sum(i["bytes"] for i in per_text) / MB


def many_fits(args: argparse.Namespace) -> Run:
    """Make the fits in this process; return its memory along the way."""
    import skgpt

    setting = replace(RECIPE, n_layers=args.layers)
    run: dict[str, Any] = {"start": resident()}
    for number in range(1, args.fits + 1):
        news = draw(args.texts, number)
        classifier = setting.classifier().fit(news.texts, news.topics)
        classifier.predict(news.texts)
        if number == EARLY:
            run |= {"early": resident(), "early_states": kept_states()}
    run |= {"late": resident(), "late_states": kept_states()}
    del classifier
    run["deleted"] = resident()
    skgpt.clear_cache()
    run["cleared"] = resident()
    from skgpt.device import trim_malloc

    if trim_malloc():
        run["trimmed"] = resident()
    return run


def pickled(args: argparse.Namespace) -> Run:
    """Fit one estimator in this process and dump it to the file that the arguments name."""
    setting = replace(RECIPE, n_layers=args.deep, trainable_layers=DEPTHS[args.depth])
    news = draw(args.texts, 0)
    classifier = setting.classifier().fit(news.texts, news.topics)
    began = time.perf_counter()
    joblib.dump(classifier, args.file)
    return {"dump": time.perf_counter() - began, "size": args.file.stat().st_size / MB}


def opened(file: Path) -> Run:
    """Load the file twice in this process."""
    import transformers  # noqa: F401

    import skgpt.classifier  # noqa: F401

    times = []
    for _ in range(2):
        began = time.perf_counter()
        joblib.load(file)
        times.append(time.perf_counter() - began)
    return {"fresh": times[0], "again": times[1]}


def unseen_texts(n: int, number: int) -> list[str]:
    """Return n texts that are those of no other number."""
    words = np.random.default_rng(number).integers(0, 10**6, (n, 15))
    return [" ".join(map(str, row)) for row in words]


def flat(args: argparse.Namespace) -> Run:
    """Predict, load or fit over and over in this process; return its memory along the way."""
    import skgpt
    from skgpt import GPTTextClassifier
    from skgpt.testing import tiny_gpt

    def unseen(number: int) -> list[str]:
        return unseen_texts(args.of, number)

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        skgpt.set_cache_memory(LIMIT)
        classifier = GPTTextClassifier(
            tiny_gpt(folder / "model"), trainable_layers=1, max_length=128, max_epochs=1
        )
        labels = np.arange(args.of) % 2
        classifier.fit(unseen(0), labels)
        skgpt.save(classifier, folder / "classifier")
        if args.repeat == "requests":
            return served(folder, args)
        if args.repeat == "predictions":
            skgpt.set_cache_memory(None)
            skgpt.clear_cache()
        sizes = []
        for number in range(1, args.rounds + 1):
            if args.repeat == "fits":
                classifier.fit(unseen(number), labels)
            if args.repeat == "loads":
                classifier = skgpt.load(folder / "classifier")
            classifier.predict(unseen(number)[: 1 if args.repeat == "loads" else args.of])
            sizes.append(resident())
    return {"sizes": sizes, "states": kept_states()}


def served(folder: Path, args: argparse.Namespace) -> Run:
    """Send texts to a server of the folder over and over; return its memory along the way."""
    sizes = []
    with server(folder, BATCH_TEXTS) as port:
        [process] = psutil.Process().children()
        connection = http.client.HTTPConnection(HOST, port, timeout=600)
        for number in range(1, args.rounds + 1):
            texts = unseen_texts(args.of, number)
            for start in range(0, args.of, IN_A_REQUEST):
                post(connection, texts[start : start + IN_A_REQUEST])
            sizes.append(process.memory_info().rss / MB)
    return {"sizes": sizes, "states": 0.0}


def print_flat(args: argparse.Namespace, what: Sequence[str] = REPEATED) -> None:
    """Print the memory of repeated predictions, loads, fits and requests."""
    rows = []
    for repeat in what:
        options = {"repeat": repeat, "rounds": args.rounds, "of": args.of}
        run = run_arm(__file__, "flat", options, f"{repeat}:")
        sizes = [run["sizes"][min(at, args.rounds) - 1] for at in (1, FULL, args.rounds)]
        growth = [f"{100 * (sizes[2] / size - 1):+.1f} %" for size in sizes[:2]]
        cells = [f"{size:.0f}" for size in (*sizes, max(run["sizes"]))]
        times = f"{args.rounds} " if repeat == "loads" else f"{args.rounds} x {args.of} "
        name = {"fits": "texts fitted", "requests": "texts served"}.get(repeat, repeat)
        rows.append([times + name, *cells, *growth, f"{run['states']:.1f}"])
    head = ["Resident set, MB", "after 1", f"after {FULL}", f"after {args.rounds}", "at most"]
    head += ["since the first", f"since {FULL}", "kept of texts"]
    print_table(head, rows)


def print_fits(run: Run, n_fits: int) -> None:
    """Print the memory of the twenty fits."""
    growth = (run["late"] - run["early"]) / max(1, n_fits - EARLY)
    states = (run["late_states"] - run["early_states"]) / max(1, n_fits - EARLY)
    rows = [
        ["before the first fit", f"{run['start']:.0f}"],
        [f"after {EARLY} fits", f"{run['early']:.0f}"],
        [f"after {n_fits} fits", f"{run['late']:.0f}"],
        ["growth per fit", f"{growth:.1f}"],
        ["of it kept on purpose, for texts that were seen", f"{states:.1f}"],
        ["after `del`", f"{run['deleted']:.0f}"],
        ["after `skgpt.clear_cache()`", f"{run['cleared']:.0f}"],
    ]
    if "trimmed" in run:
        rows.append(["after the C library gave back what was freed", f"{run['trimmed']:.0f}"])
    print_table(["Resident set", "MB"], rows)


def main() -> None:
    """Run everything in processes of their own and print the tables, or run one part."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--fits", type=int, default=20)
    parser.add_argument("--texts", type=int, default=60, help="texts of each fit")
    parser.add_argument("--layers", type=int, default=RECIPE.n_layers, help="of the many fits")
    parser.add_argument("--deep", type=int, default=16, help="layers of what is pickled")
    parser.add_argument("--flat", action="store_true", help="the table of a server's life alone")
    parser.add_argument("--server", action="store_true", help="the last row of it alone")
    parser.add_argument("--rounds", type=int, default=50, help="of that table")
    parser.add_argument("--of", type=int, default=1000, help="texts in each of its rounds")
    parser.add_argument("--one", choices=["fits", "dump", "load", "flat"], help=argparse.SUPPRESS)
    parser.add_argument("--repeat", help=argparse.SUPPRESS)
    parser.add_argument("--depth", choices=DEPTHS, help=argparse.SUPPRESS)
    parser.add_argument("--file", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        how = {"fits": many_fits, "dump": pickled, "flat": flat}
        how["load"] = lambda args: opened(args.file)
        print(json.dumps(how[args.one](args)))
        return
    if args.flat or args.server:
        print_flat(args, REPEATED[-1:] if args.server else REPEATED)
        print_settings(rounds=args.rounds, of=args.of)
        return
    options = {"fits": args.fits, "texts": args.texts, "layers": args.layers}
    run = run_arm(__file__, "fits", options, "memory:")
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name in DEPTHS:
            own = {"depth": name, "texts": args.texts, "deep": args.deep}
            own["file"] = Path(folder) / "classifier.joblib"
            dump = run_arm(__file__, "dump", own, f"{name}:")
            load = run_arm(__file__, "load", {"file": own["file"]}, f"{name}:")
            times = (dump["dump"], load["fresh"], load["again"])
            rows.append([name, f"{dump['size']:.2f}", *(f"{seconds:.2f}" for seconds in times)])
    print_fits(run, args.fits)
    head = ["Layers trained", "pickle, MB", "dump, s", "load, base not in memory, s", "load again"]
    print_table(head, rows)
    print_flat(args)
    print_settings(**options, pickled_layers=args.deep)


if __name__ == "__main__":
    main()
