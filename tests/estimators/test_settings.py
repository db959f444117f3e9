"""Settings of the caller's that change arithmetic: none of them reaches skgpt, and all stay set."""

import copy
import pickle
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import skgpt
from skgpt.device import own_settings
from tests.helpers import make, make_text_data

X, Y = make_text_data(n_classes=3)
NEW = ["goal " * n for n in range(1, 6)]


@contextmanager
def set_to(write: Callable[[Any], Any], value: Any, before: Any) -> Iterator[None]:
    """Have the body run under a setting that is a pair of functions and no context."""
    write(value)
    try:
        yield
    finally:
        write(before)


def anomaly_mode() -> AbstractContextManager[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it says that it is slow
        return torch.autograd.detect_anomaly()


def general_precision(value: str) -> None:
    torch.backends.fp32_precision = value


SETTINGS: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "inference mode": torch.inference_mode,
    "no grad": torch.no_grad,
    "default dtype": lambda: set_to(torch.set_default_dtype, torch.float64, torch.float32),
    "default device": lambda: torch.device("meta"),
    "set default device": lambda: set_to(torch.set_default_device, "meta", None),
    "deterministic": lambda: set_to(torch.use_deterministic_algorithms, True, False),
    "anomaly mode": anomaly_mode,
    "errstate": lambda: np.errstate(all="raise"),
    "matmul precision": lambda: set_to(torch.set_float32_matmul_precision, "medium", "highest"),
    "fp32_precision": lambda: set_to(general_precision, "tf32", "none"),
}


def now() -> dict[str, Any]:
    """Return every setting that a test changes, as the caller sees it."""
    return {
        "autocast": torch.is_autocast_enabled("cpu"),
        "inference": torch.is_inference_mode_enabled(),
        "grad": torch.is_grad_enabled(),
        "dtype": torch.get_default_dtype(),
        "device": torch.get_default_device(),
        "deterministic": torch.get_deterministic_debug_mode(),
        "anomaly": torch.is_anomaly_enabled(),
        "errors": np.geterr(),
        "cuda": torch.backends.cuda.matmul.fp32_precision,
        "mkldnn": torch.backends.mkldnn.matmul.fp32_precision,
    }


def everything(folder: str, saved: Path) -> Iterator[tuple[str, np.ndarray]]:
    """Go through every public method that computes, and yield what comes out."""
    options: dict[str, Any] = {"precision": "fp32", "max_epochs": 2}
    sure = {**options, "head_learning_rate": 10.0}  # so that exponentials underflow
    clf = make(folder, **sure).fit(X, Y)
    yield "predict_proba", clf.predict_proba(NEW)
    yield "predict_log_proba", clf.predict_log_proba(NEW)
    yield "decision_function", clf.decision_function(NEW)
    yield "explain", clf.explain(NEW[:2])["value"].to_numpy()
    yield "plan", np.array(clf.plan(X, Y).memory["activations"] > 0)
    skgpt.save(clf, saved)
    yield "load", skgpt.load(saved).predict_proba(NEW)
    again = pickle.loads(pickle.dumps(clf))
    yield "pickle", again.set_params(warm_start=True).fit(X, Y).predict_proba(NEW)
    yield "copy", copy.deepcopy(clf).partial_fit(X, Y).predict_proba(NEW)
    calibrated = make(folder, calibrate=True, validation_fraction=0.25, **sure).fit(X, Y)
    yield "calibrate", calibrated.predict_proba(NEW)
    head_alone = make(folder, trainable_layers=0, **options).fit(X, Y)
    yield "head alone", head_alone.predict_proba(NEW)


@pytest.fixture(scope="module")
def expected(tiny_llama: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    return dict(everything(tiny_llama, tmp_path_factory.mktemp("plain") / "saved"))


@pytest.mark.parametrize("name", SETTINGS)
def test_every_method__a_setting_of_the_callers__changes_nothing(
    name: str, tiny_llama: str, tmp_path: Path, expected: dict[str, np.ndarray]
) -> None:
    skgpt.clear_cache()  # so that the model is read, and every state made, under the setting
    found = {}
    with SETTINGS[name]():
        before = now()
        for what, values in everything(tiny_llama, tmp_path / "saved"):
            found[what] = values
            assert now() == before, what
    for what, values in expected.items():
        assert np.array_equal(found[what], values), what
    # Nor is anything of another precision kept for those who come later.
    assert np.array_equal(skgpt.load(tmp_path / "saved").predict_proba(NEW), expected["load"])


def test_own_settings__all_of_the_callers_at_once__are_torchs_own_inside_and_back_after() -> None:
    plain = now()
    with own_settings():
        assert now() == plain  # nothing to do
    with ExitStack() as stack:
        for setting in SETTINGS.values():
            stack.enter_context(setting())
        before = now()
        with own_settings(), own_settings():
            inside = now()
        assert now() == before
        with pytest.raises(ZeroDivisionError), own_settings():
            divmod(1, 0)
        assert now() == before
    precisions = {"cuda": "ieee", "mkldnn": "ieee"}  # what "none" is too
    assert inside == plain | precisions


def test_own_settings__two_threads__the_last_to_leave_gives_the_callers_back() -> None:
    entered, left = threading.Event(), threading.Event()
    seen = []

    def other() -> None:
        with own_settings():
            entered.set()
            left.wait(60)
            seen.append(torch.get_default_dtype())

    with SETTINGS["default dtype"]():
        thread = threading.Thread(target=other)
        with own_settings():
            thread.start()
            entered.wait(60)
        seen.append(torch.get_default_dtype())  # the other thread still computes
        left.set()
        thread.join(60)
        seen.append(torch.get_default_dtype())
    assert seen == [torch.float32, torch.float32, torch.float64]
