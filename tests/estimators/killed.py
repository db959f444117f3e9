"""Fits in processes of their own, which a test may end as it pleases."""

import signal
import sys
import time
import warnings
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

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


def _fit(pipe: Connection, every: float, handler: bool, options: Any) -> None:
    checkpoint._EVERY_SECONDS = every
    GPTTextClassifier._training_callbacks = lambda *_: [_Telling(pipe)]  # type: ignore[method-assign]
    if handler:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(EXIT_OF_HANDLER))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        X, y = make_text_data(n_classes=3)
        clf = make(**options).fit(X, y)
    scores = getattr(clf, "validation_scores_", None)
    pipe.send(("done", (clf.predict_proba(X).tolist(), clf.loss_curve_, scores)))


class FitProcess:
    """A process that fits with `options` and tells of its steps.

    It checkpoints `every` so many seconds (0: after each step); with `handler`, SIGTERM ends it
    with `EXIT_OF_HANDLER`.
    """

    def __init__(self, *, every: float = 0.0, handler: bool = False, **options: Any) -> None:
        self.began_at: list[int] = []
        self.pipe, theirs = _CONTEXT.Pipe(duplex=False)
        self.process = _CONTEXT.Process(target=_fit, args=(theirs, every, handler, options))
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

    def result(self) -> tuple[Any, ...]:
        """Let it come to its end; return what the model says, its losses and its scores."""
        while True:
            kind, value = self._next()
            if kind == "done":
                self.process.join(_PATIENCE)
                assert self.process.exitcode == 0
                return value
