"""What every test stands on: an environment without a network, tiny models, learnable texts."""

import functools
import multiprocessing
import os
import shutil
import signal

# Read when scipy, huggingface_hub or tokenizers are imported, so set before anything else is.
os.environ["SCIPY_ARRAY_API"] = "1"  # else scikit-learn skips one of its checks
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"  # no warning from processes that are forked
os.environ["TRANSFORMERS_VERBOSITY"] = "error"
# Tiny matrices gain nothing from a second thread, and threads that wait for each other beside
# another busy process make everything ten times slower.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from collections.abc import Callable, Iterator
from typing import Any

import joblib
import pytest

from tests.helpers import Fitted, TextData, fit_kind, make_text_data


@pytest.hookimpl(tryfirst=True)  # before -m looks at the markers
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out thorough tests, give sockets to network tests, skip gpu tests without a GPU."""
    for item in items:
        if " at 0x" in item.nodeid:
            raise pytest.UsageError(f"{item.nodeid} has another name in every process: give it ids")
        chosen = [mark.kwargs for mark in item.iter_markers("first_tier")]
        if chosen and not any(_has_parameters(item, each) for each in chosen):
            item.add_marker(pytest.mark.thorough)
    if not _selects(config):
        left_out = {item for item in items if item.get_closest_marker("thorough")}
        config.hook.pytest_deselected(items=[*left_out])
        items[:] = [item for item in items if item not in left_out]
    for item in items:
        if item.get_closest_marker("network"):
            item.add_marker(pytest.mark.enable_socket)
    on_gpu = [item for item in items if item.get_closest_marker("gpu")]
    if on_gpu:
        import torch

        if not torch.cuda.is_available():
            for item in on_gpu:
                item.add_marker(pytest.mark.skip(reason="needs CUDA"))


def _has_parameters(item: pytest.Item, values: dict[str, list[Any]]) -> bool:
    """Say whether a parametrized test has one of the values of each parameter."""
    params = item.callspec.params  # type: ignore[attr-defined]
    return all(params[name] in allowed for name, allowed in values.items())


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int | None:
    """Return a worker a core for folders of tests, and none where somebody looks at a few.

    For files and for tests by name, and with -s, this process runs them: breakpoint() and print
    work. So it does where there is a GPU, whose memory some tests measure.
    """
    if "PYTEST_XDIST_AUTO_NUM_WORKERS" in os.environ:
        return None  # xdist reads it
    few = not any(os.path.isdir(arg) for arg in config.args)
    n_cores = joblib.cpu_count()
    if few or config.option.capture == "no" or n_cores == 1 or shutil.which("nvidia-smi"):
        return 0
    return min(n_cores, 8)  # each imports torch and takes about 1 GB


def _selects(config: pytest.Config) -> bool:
    """Say whether the command selects tests by -m, -k or name, and so which tier doesn't matter."""
    options = config.option
    return bool(options.markexpr or options.keyword or any("::" in arg for arg in config.args))


def pytest_report_header(config: pytest.Config) -> str | None:
    return None if _selects(config) else "first tier: without the tests marked thorough"


@pytest.fixture(scope="session", autouse=True)
def _ctrl_c() -> None:
    """Have Ctrl-C work where the tests run in the background: shells switch it off there."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def _no_process_is_left() -> Iterator[None]:
    """End what tests that failed have left: Python waits for its child processes when it exits."""
    yield
    for process in multiprocessing.active_children():
        if not process.name.startswith("Loky"):  # joblib ends its own
            process.kill()


@pytest.fixture(autouse=True)
def _no_downloads(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep pip off the network as well: blocked sockets don't reach a child process."""
    if not request.node.get_closest_marker("network"):
        monkeypatch.setenv("PIP_NO_INDEX", "1")


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """Return a function from an architecture to the folder of a tiny model, written once.

    There are those of `skgpt.testing` and those of tests/trunk/architectures.py.
    """
    root = tmp_path_factory.mktemp("tiny_models")

    def folder_of(architecture: str) -> str:
        from tests.trunk.architectures import write_tiny

        folder = root / architecture.replace(" ", "_")
        return str(folder) if folder.exists() else write_tiny(str(folder), architecture)

    return folder_of


@pytest.fixture(scope="session")
def tiny_llama(tiny_model: Callable[[str], str]) -> str:
    """Return the folder of a tiny Llama: the model that most tests use."""
    return tiny_model("llama")


@pytest.fixture
def two_class_data() -> TextData:
    """Return 40 texts of two classes, each with words of its own."""
    return make_text_data(n_classes=2)


@pytest.fixture
def three_class_data() -> TextData:
    """Return 60 texts of three classes, each with words of its own."""
    return make_text_data(n_classes=3)


@pytest.fixture(scope="session")
def fitted_model(tiny_llama: str) -> Callable[[str], Fitted]:
    """Return a function from a kind to a fitted model that all tests share, for tests that read.

    ``clf, X, y = fitted_model("lora")``; `tests.helpers.KINDS` names the kinds. A test that fits,
    or sets parameters, takes a clone.
    """
    return functools.cache(functools.partial(fit_kind, tiny_llama))
