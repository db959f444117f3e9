"""Callbacks as scikit-learn's FitCallback describes them, which write down what they are told."""

import copy
import pickle
from collections.abc import Callable
from typing import Any


class Listener:
    """A callback that asks for nothing, and stops the fit at the end of an epoch if told to."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.stop_after = stop_after
        self.told: list[tuple[str, str, int]] = []  # hook, task, its number
        self.tasks: dict[str, Any] = {}

    def setup(self, estimator: Any, context: Any) -> None:
        self.told.append(("setup", context.task_name, context.task_id))

    def teardown(self, estimator: Any, context: Any) -> None:
        self.told.append(("teardown", context.task_name, context.task_id))

    def on_fit_task_begin(self, estimator: Any, context: Any) -> None:
        self.told.append(("begin", context.task_name, context.task_id))
        self.tasks[context.task_name] = context

    def on_fit_task_end(self, estimator: Any, context: Any) -> bool:
        self.told.append(("end", context.task_name, context.task_id))
        return context.task_name == "epoch" and context.task_id + 1 == self.stop_after


class Recorder(Listener):
    """A callback that asks for everything there is, and keeps it."""

    def __init__(self, at_end: Callable[[Any, Any], None] = lambda *_: None) -> None:
        super().__init__()
        self.at_end = at_end
        self.begun: list[Any] = []
        self.ended: list[Any] = []
        self.given: list[tuple[Any, Any, Any]] = []

    def on_fit_task_begin(  # type: ignore[override]
        self, estimator: Any, context: Any, *, fitted_estimator: Any
    ) -> None:
        self.begun.append(fitted_estimator)

    def on_fit_task_end(  # type: ignore[override]
        self, estimator: Any, context: Any, *, X: Any, y: Any, metadata: Any, fitted_estimator: Any
    ) -> None:
        self.ended.append(fitted_estimator)
        self.given.append((X, y, metadata))
        self.at_end(estimator, fitted_estimator)


class Copier(Listener):
    """A callback that copies and pickles what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.copies: list[Any] = []

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "copies": []}

    def on_fit_task_end(  # type: ignore[override]
        self, estimator: Any, context: Any, *, fitted_estimator: Any
    ) -> None:
        for one in (estimator, fitted_estimator):
            self.copies += [copy.copy(one), copy.deepcopy(one), pickle.loads(pickle.dumps(one))]
