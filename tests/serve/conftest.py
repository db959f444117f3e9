"""A classifier in a folder, and a server of it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

import skgpt
from skgpt import GPTTextClassifier
from tests.helpers import make_text_data
from tests.serve.server import RunningServer, running


@pytest.fixture(scope="session")
def saved(tiny_llama: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a fitted classifier, with its base inside."""
    data = make_text_data(n_classes=3)
    clf = GPTTextClassifier(
        tiny_llama, max_epochs=2, device="cpu", precision="fp32", random_state=0
    )
    folder = tmp_path_factory.mktemp("serve") / "classifier"
    skgpt.save(clf.fit(data.X, data.y), folder)
    return folder


@pytest.fixture(scope="session")
def server(saved: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """Return a server that all tests share."""
    with running(saved, tmp_path_factory.mktemp("log") / "log") as started:
        yield started
