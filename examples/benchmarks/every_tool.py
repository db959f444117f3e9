"""Every tool of scikit-learn that takes a classifier, tried on real news texts.

Prints a markdown table: the tool, whether it works on texts, and what came out. What takes no
texts is there too, with scikit-learn's reason and what to do instead; each reason is checked.
Needs pandas and matplotlib besides skgpt.

    python examples/benchmarks/every_tool.py                      # all of them
    python examples/benchmarks/every_tool.py --only GridSearchCV  # those with that in their name
    python examples/benchmarks/every_tool.py --small              # fewer texts, fewer layers
"""

import argparse
import sys
import time
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parent))
from _data import load_r8
from _tools import TOOLS, Labels, Texts

from skgpt import GPTTextClassifier

for _module in ("_tools_judging", "_tools_composing", "_tools_inspecting"):
    import_module(_module)  # which enters its tools, in the table's order

RECIPE: dict[str, Any] = {
    "n_layers": 4,
    "trainable_layers": 1,
    "max_length": 32,
    "max_epochs": 2,
    "batch_size": 8,
    "learning_rate": 2e-4,
    "head_learning_rate": 5e-3,
    "random_state": 0,
}
TOPICS = ("crude", "ship", "trade")

# What takes an estimator and is not in the list, by name.
LEFT_OUT = {
    "regressors only": (
        *("AdaBoostRegressor", "BaggingRegressor", "IterativeImputer", "MultiOutputRegressor"),
        *("PredictionErrorDisplay", "RANSACRegressor", "RegressorChain", "StackingRegressor"),
        *("TransformedTargetRegressor", "VotingRegressor"),
    ),
    "takes an estimator of covariances": (
        *("LinearDiscriminantAnalysis", "QuadraticDiscriminantAnalysis"),
    ),
    "checks and questions that the others ask": (
        *("check_X_y", "check_array", "check_cv", "check_is_fitted", "check_same_namespace"),
        *("check_scoring", "get_tags", "has_fit_parameter", "is_classifier", "is_clusterer"),
        *("is_outlier_detector", "is_regressor", "assert_all_finite", "validate_data"),
    ),
}


def news(n_per_topic: int) -> tuple[Texts, Labels]:
    """Return articles of three topics about goods and money, in random order."""
    train = load_r8("train")
    rng = np.random.default_rng(0)
    drawn = [
        rng.choice(np.flatnonzero(train.topics == topic), n_per_topic, replace=False)
        for topic in TOPICS
    ]
    rows = rng.permutation(np.concatenate(drawn))
    return train.texts[rows], train.topics[rows]


def main() -> None:
    """Run the tools and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", metavar="NAME", help="tools with NAME in their name")
    parser.add_argument("--small", action="store_true", help="36 texts and 2 layers, not 60 and 4")
    args = parser.parse_args()
    chosen = {name: tool for name, tool in TOOLS.items() if args.only.lower() in name.lower()}
    if not chosen:
        parser.error(
            f"--only must be in the name of a tool. Got {args.only!r}; there are {[*TOOLS]}"
        )
    import matplotlib as mpl

    mpl.use("Agg")
    X, y = news(12 if args.small else 20)
    classifier = GPTTextClassifier(**(RECIPE | {"n_layers": 2} if args.small else RECIPE))
    print("| Tool | Works on texts | What came out |\n|---|---|---|", flush=True)
    began = time.perf_counter()
    for name, tool in chosen.items():
        missing = tool.missing()
        if missing is None:
            outcome = tool.run(classifier, X, y)
            works, result = outcome.works, outcome.result.removeprefix("no: ")
        else:
            works, result = "-", f"needs {missing}"
        print(f"| `{name}` | {works} | {result} |", flush=True)
    seconds = time.perf_counter() - began
    recipe = " ".join(repr(classifier).split())
    print(f"\n{len(chosen)} tools, {len(X)} texts, {seconds:.0f} s; {recipe}")


if __name__ == "__main__":
    main()
