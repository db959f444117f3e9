"""What several test modules use and that is no fixture."""

import copy
import multiprocessing
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from html.parser import HTMLParser
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray
from torch import Tensor

from skgpt import GPTTextClassifier, LoRA
from skgpt.tensor_files import State, from_bytes, to_bytes
from skgpt.testing.text_checks import global_random_states

_KEYWORDS = {
    "sport": ("goal", "match", "coach", "league"),
    "money": ("bank", "profit", "shares", "market"),
    "space": ("orbit", "rocket", "planet", "launch"),
}
_FILLER = ("the", "of", "today", "report", "new", "about", "in", "after")


def _makes_links() -> bool:
    with tempfile.TemporaryDirectory() as folder:
        try:
            os.symlink(folder, os.path.join(folder, "link"))
        except OSError:
            return False
    return True


class ArrowStream:
    """A frame, or a column, that speaks the Arrow PyCapsule protocol and nothing else."""

    def __init__(self, values: Any) -> None:
        self.values = values

    def __arrow_c_stream__(self, requested_schema: Any = None) -> Any:
        return self.values.__arrow_c_stream__(requested_schema)


needs_links = pytest.mark.skipif(
    not _makes_links(), reason="Windows lets this account make no symbolic links"
)
needs_sigterm = pytest.mark.skipif(
    sys.platform == "win32", reason="Windows has no SIGTERM to catch"
)


def process_context(preload: Sequence[str]) -> Any:
    """Return what makes processes, forked from one that has imported these and done nothing.

    Windows forks none; there, each imports what it needs.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([*preload])
    return context


class TextData(NamedTuple):
    """A small data set that keywords give away; `X` and `y` are read-only."""

    X: NDArray[np.object_]
    y: NDArray[np.object_]


def make_text_data(n_classes: int, n_per_class: int = 20, seed: int = 0) -> TextData:
    """Return texts of 3 to 6 words, three of them of their class alone, in random order."""
    rng = np.random.default_rng(seed)
    labels = list(_KEYWORDS)[:n_classes]  # not sorted, so that an order of appearance shows
    rows = []
    for label in labels:
        for _ in range(n_per_class):
            words = [*rng.choice(_KEYWORDS[label], 3), *rng.choice(_FILLER, rng.integers(0, 4))]
            rows.append((" ".join(rng.permutation(words)), label))
    order = rng.permutation(len(rows))
    X = np.array([rows[i][0] for i in order], dtype=object)
    y = np.array([rows[i][1] for i in order], dtype=object)
    X.setflags(write=False)
    y.setflags(write=False)
    return TextData(X, y)


FAST: dict[str, Any] = {
    "n_layers": None,
    "trainable_layers": 1,
    "max_epochs": 6,
    "batch_size": 8,
    "max_length": 64,
    "learning_rate": 1e-3,
    "head_learning_rate": 1e-2,
    "random_state": 0,
}


def make(folder: str, **options: Any) -> GPTTextClassifier:
    """Return an unfitted classifier that learns made-up texts within a second."""
    return GPTTextClassifier(folder, **{**FAST, **options})


class Fitted(NamedTuple):
    """A fitted classifier that tests share, and what it was fitted on: read it, don't change it."""

    clf: GPTTextClassifier
    X: NDArray[np.object_]
    y: NDArray[Any]


# What each kind of fitted classifier that tests share is fitted with.
KINDS: dict[str, dict[str, Any]] = {
    "default": {},  # three classes, the last layer trained
    "two classes": {},
    "head only": {"trainable_layers": 0},
    "all layers": {"trainable_layers": "all"},
    "multilabel": {"trainable_layers": "all", "max_epochs": 8},
    "several outputs": {},
    "lora": {"lora": LoRA(rank=4), "trainable_layers": "all", "learning_rate": 1e-2},
    "windows": {"long_text": "windows", "max_length": 12},
    "calibrated": {"calibrate": True, "validation_fraction": 0.25},
    "early stopping": {"early_stopping": True, "validation_fraction": 0.25},
}


def columns_of_classes(y: NDArray[np.object_]) -> Any:
    """Return a frame of the labels, of something else, and of whether the text is about sport."""
    n = np.arange(len(y)) // 2 % 2
    return pd.DataFrame({"topic": y, "n": n, "sport": (y == "sport").astype(bool)})


def fit_kind(folder: str, kind: str) -> Fitted:
    """Return one of `KINDS`."""
    X, y = make_text_data(n_classes=2 if kind == "two classes" else 3)
    if kind == "multilabel":
        y = np.stack([y == label for label in ("money", "space", "sport")], axis=1)
        y = y.astype(np.int64)
        y[::5] = 0  # some texts have no label, others two
        y[1::5, 0] = 1
    if kind == "several outputs":
        y = columns_of_classes(y)
    return Fitted(make(folder, **KINDS[kind]).fit(X, y), X, y)


@contextmanager
def global_random_state_unchanged() -> Iterator[None]:
    """Assert that the body leaves the global generators of random, numpy and torch as they were.

    torch counts only if it was imported before the body.
    """
    before = global_random_states()
    yield
    after = global_random_states()
    changed = [name for name, state in before.items() if after[name] != state]
    assert not changed, f"changed the global random state of {', '.join(changed)}"


class Reader(HTMLParser):
    """Notes the tags and the texts of a piece of HTML."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.texts: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.tags.add(tag)

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def rewritten(
    state: NDArray[np.uint8], change: Callable[[dict[str, Any], dict[str, Tensor]], object]
) -> NDArray[np.uint8]:
    """Change the values and tensors of a saved model as somebody does who knows how."""
    saved = from_bytes(state)
    values, tensors = copy.deepcopy(dict(saved.values)), dict(saved.tensors)
    change(values, tensors)
    return to_bytes(State(tensors, values))
