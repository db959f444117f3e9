"""Table 12, export: one text after the other in torch and in ONNX Runtime, on one thread.

GPTTextClassifier with its defaults, fitted on a few articles of Reuters R8, beside what `save_onnx`
writes of it, as examples/onnx_server.py runs that: T32 and T16 are `predict_proba` in fp32 and
bf16, O32 and O8 are ONNX Runtime in fp32 and int8. All arms run in this process, on one thread, and
by turns for each text; times are its processor seconds, so they hold on a busy machine too.
"All at once" is one call for all texts, which ONNX Runtime has no use for: it would pad them.

    python examples/benchmarks/onnx_runtime.py
    python examples/benchmarks/onnx_runtime.py --texts 100 --fit-texts 120 --epochs 1
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _arms import print_settings, print_table, test_sample
from _data import sample_r8
from numpy.typing import NDArray
from onnx_server import Model

import skgpt
from skgpt import GPTTextClassifier
from skgpt.network.network import TextNetwork

WARM_UP = 4  # texts that are not timed
Arm = Callable[[list[str]], NDArray[np.float64]]


def in_precision(classifier: Any, dtype: torch.dtype) -> Arm:
    """Return what predicts probabilities in this precision."""
    model = classifier._model
    twin = TextNetwork(model.network.pretrained, model.network.spec, dtype, model.network.device)
    twin.take_over(model.network)
    model = replace(model, network=twin)
    return lambda texts: model.probabilities(model.raw_scores(texts))


def prepare(folder: Path, args: argparse.Namespace) -> None:
    """Fit the classifier, and write it and both graphs, unless an earlier run did."""
    if (folder / "int8").exists():
        return
    train = sample_r8(args.fit_texts, 0)
    own = {} if args.epochs is None else {"max_epochs": args.epochs}
    classifier = GPTTextClassifier(max_length=args.max_length, random_state=0, device="cpu", **own)
    skgpt.save(classifier.fit(train.texts, train.topics), folder / "classifier")
    for name in ("fp32", "int8"):
        classifier.save_onnx(folder / name, int8=name == "int8")


def exported(folder: Path) -> tuple[Arm, float]:
    """Return what runs the graph a text at a time, and the size of its files in MB."""
    model = Model(folder, threads=1)
    size = sum(path.stat().st_size for path in folder.iterdir()) / 1e6
    return lambda texts: np.concatenate([model.predict([text])[0] for text in texts]), size


def one_by_one(
    arms: dict[str, Arm], texts: list[str]
) -> tuple[dict[str, list[float]], dict[str, NDArray[np.float64]]]:
    """Return the seconds of each text in each arm, and the probabilities."""
    seconds: dict[str, list[float]] = {arm: [] for arm in arms}
    rows: dict[str, list[NDArray[np.float64]]] = {arm: [] for arm in arms}
    for text in texts:
        for arm, predict in arms.items():
            began = time.process_time()
            rows[arm].append(predict([text]))
            seconds[arm].append(time.process_time() - began)
    return seconds, {arm: np.concatenate(each)[WARM_UP:] for arm, each in rows.items()}


def main() -> None:
    """Fit and export, in a folder of its own unless one is named, and compare."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--texts", type=int, default=300, help="test texts")
    parser.add_argument("--fit-texts", type=int, default=300)
    parser.add_argument("--epochs", type=int, help="the classifier's own number if left out")
    parser.add_argument("--max-length", type=int, default=128)
    parser.add_argument("--folder", type=Path, help="where fit and graphs are kept for later runs")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        compare(args.folder or Path(scratch), args)


def compare(folder: Path, args: argparse.Namespace) -> None:
    """Run all arms and print the table."""
    prepare(folder, args)
    classifier = skgpt.load(folder / "classifier")
    o32, size_32 = exported(folder / "fp32")
    o8, size_8 = exported(folder / "int8")
    t32, t16 = (in_precision(classifier, dtype) for dtype in (torch.float32, torch.bfloat16))
    arms = {"T32": t32, "T16": t16, "O32": o32, "O8": o8}

    test = test_sample(args.texts + WARM_UP)
    texts = [str(text) for text in test.texts]
    truth = test.topics[WARM_UP:]
    seconds, found = one_by_one(arms, texts)
    at_once = {}
    for arm in ("T32", "T16"):
        began = time.process_time()
        arms[arm](texts[WARM_UP:])
        at_once[arm] = len(truth) / (time.process_time() - began)

    rows = []
    for arm, each in seconds.items():
        p50, p95 = 1000 * np.percentile(each[WARM_UP:], [50, 95])
        labels = classifier.classes_[found[arm].argmax(axis=1)]
        same = found[arm].argmax(axis=1) == found["T32"].argmax(axis=1)
        row = [arm, f"{p50:.0f}", f"{p95:.0f}", f"{1 / np.mean(each[WARM_UP:]):.1f}"]
        row += [f"{at_once[arm]:.1f}" if arm in at_once else "-"]
        row += [f"{100 * (labels == truth).mean():.1f}", f"{100 * same.mean():.1f}"]
        row += [f"{np.abs(found[arm] - found['T32']).max():.1e}"]
        row += [{"O32": f"{size_32:.0f}", "O8": f"{size_8:.0f}"}.get(arm, "-")]
        rows.append(row)
    head = ["Arm", "p50, ms", "p95, ms", "texts/s", "all at once", "accuracy, %"]
    head += ["labels as T32's, %", "probabilities: largest difference", "files, MB"]
    print_table(head, rows)
    print_settings(
        texts=args.texts,
        fitted_on=classifier._model.trained_on["rows"],
        epochs=classifier.n_iter_,
        max_length=classifier._model.max_length,
        layers=classifier.n_layers_,
    )


if __name__ == "__main__":
    main()
