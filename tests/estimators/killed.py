"""Fits in processes of their own, which a test may end as it pleases."""

import signal
import sys
import time
import warnings
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
from sklearn.model_selection import cross_validate

from skgpt import GPTTextClassifier
from skgpt.training import checkpoint
from skgpt.training.callbacks import StepDone, TrainingCallback
from tests.helpers import make, make_text_data, process_context

_CONTEXT = process_context(
    [
        "tests.estimators.killed",
        "transformers.models.auto.modeling_auto",
        "transformers.models.auto.tokenization_auto",
        "transformers.models.llama.modeling_llama",
    ]
)
_PATIENCE = 60.0
EXIT_OF_HANDLER = 7


class _Telling(TrainingCallback):
    """Tells the test of every step; slow, so that there is time to be killed in."""

    def __init__(self, pipe: Connection) -> None:
        self.pipe = pipe

    def on_train_begin(self, config: Any, n_steps: int = 0, history: Any = ()) -> None:
        self.pipe.send(("start", n_steps))

    def on_step(self, event: StepDone) -> None:
        self.pipe.send(("step", event.step))
        time.sleep(0.02)


def learned(clf: GPTTextClassifier) -> dict[str, Any]:
    """Return what a fit came to: what was learned, and what its history says but for times."""
    network = clf._model.network
    tensors = {**network.learnable, "head": network.head.weight}
    return {
        "weights": {name: tensor.detach().numpy().copy() for name, tensor in tensors.items()},
        "history": [
            {k: v for k, v in record.items() if "second" not in k} for record in clf.history_
        ],
        "scores": getattr(clf, "validation_scores_", None),
    }


def assert_same(one: list[dict[str, Any]], two: list[dict[str, Any]]) -> None:
    """Assert that fits came to the same, bit for bit."""
    assert len(one) == len(two)
    for mine, others in zip(one, two, strict=True):
        assert mine["history"] == others["history"] and mine["scores"] == others["scores"]
        assert mine["weights"].keys() == others["weights"].keys()
        for name, weight in mine["weights"].items():
            assert np.array_equal(weight, others["weights"][name]), name


def _fit(pipe: Connection, every: float, handler: bool, folds: int, options: Any) -> None:
    checkpoint._EVERY_SECONDS = every
    GPTTextClassifier._training_callbacks = lambda *_: [_Telling(pipe)]  # type: ignore[method-assign]
    if handler:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(EXIT_OF_HANDLER))
    X, y = make_text_data(n_classes=3)
    clf = make(**options)
    if folds:
        found = cross_validate(clf, X, y, cv=folds, return_estimator=True, error_score="raise")
        fitted = found["estimator"]
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            fitted = [clf.fit(X, y)]
    pipe.send(("done", [learned(one) for one in fitted]))


class FitProcess:
    """A process that fits with `options` and tells of its steps.

    It checkpoints `every` so many seconds (0: after each step); with `handler`, SIGTERM ends it
    with `EXIT_OF_HANDLER`; with `folds`, it cross-validates.
    """

    def __init__(
        self, *, every: float = 0.0, handler: bool = False, folds: int = 0, **options: Any
    ) -> None:
        self.began_at: list[int] = []
        self.pipe, theirs = _CONTEXT.Pipe(duplex=False)
        arguments = (theirs, every, handler, folds, options)
        self.process = _CONTEXT.Process(target=_fit, args=arguments)
        self.process.start()
        theirs.close()

    def _next(self) -> tuple[str, Any]:
        assert self.pipe.poll(_PATIENCE), "the process says nothing"
        kind, value = self.pipe.recv()
        if kind == "start":
            self.began_at.append(value)
        return kind, value

    def steps(self, n: int) -> "FitProcess":
        """Wait for so many steps."""
        while n:
            kind, _ = self._next()
            assert kind != "done", "the fit was over before it could be killed"
            n -= kind == "step"
        return self

    def ended(self, end: Callable[[], None]) -> int:
        """End it by its process' `kill` or `terminate`; return the exit code that came of it."""
        end()
        self.process.join(_PATIENCE)
        self.pipe.close()
        assert self.process.exitcode
        return self.process.exitcode

    def result(self) -> list[dict[str, Any]]:
        """Let it come to its end; return what was learned, of every fold."""
        while True:
            kind, value = self._next()
            if kind == "done":
                self.process.join(_PATIENCE)
                assert self.process.exitcode == 0
                return value
