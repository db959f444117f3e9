"""What a user sees of a fit or a prediction, and the warning of a fit that takes very long."""

import io
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, TextIO
from unittest.mock import Mock

import numpy as np
import pytest

from skgpt import GPTTextClassifier, clear_cache
from skgpt.training.callbacks import (
    EpochLines,
    EpochRecord,
    ProgressBar,
    StepDone,
    fit_progress,
    shows_bars,
    work_bar,
)
from tests.helpers import make_text_data
from tests.terminals import Terminal, lines_of
from tests.training.test_config import make_config

DATA = make_text_data(n_classes=2, n_per_class=8)


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    made = Terminal()
    yield made
    made.close()


def record(epoch: int, **more: float) -> EpochRecord:
    made = {"epoch": epoch, "loss": 0.25, "learning_rate": 0.1, "seconds": 2.0}
    made |= {"tokens_per_second": 20.0, "skipped_steps": 0, **more}
    return made  # type: ignore[return-value]


def fit(model: str, verbose: int) -> GPTTextClassifier:
    clf = GPTTextClassifier(
        model, trainable_layers=1, max_epochs=3, verbose=verbose, random_state=0
    )
    return clf.set_params(early_stopping=True, scoring="accuracy").fit(DATA.X, DATA.y)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Return what says what time it is: seconds pass only when it is told to."""
    made = SimpleNamespace(now=0.0)
    monkeypatch.setattr("skgpt.training.callbacks.time.perf_counter", lambda: made.now)
    return made


def test_progress_bar__many_steps__the_loss_is_read_now_and_then() -> None:
    mean_loss = Mock(return_value=0.25)
    bar = ProgressBar()
    bar.on_train_begin(make_config(n_rows=8000, batch_size=8, n_epochs=1), 0, [])
    bar.on_epoch_begin(1)
    for step in range(1, 1001):
        bar.on_step(StepDone(step, 1, 10, mean_loss))
    bar.on_train_end()
    assert mean_loss.call_count < 100  # a wait for the device each time


@pytest.mark.parametrize(
    ("head_first", "left"),
    [
        (0, [", 00:06 left", ", 00:04 left", ", 00:02 left", ""]),
        (1, ["", ", 00:04 left", ", 00:02 left", ""]),  # its epochs say nothing of the others
    ],
)
def test_epoch_lines__epochs_of_two_seconds__tell_the_time_left(
    head_first: int, left: list[str], capsys: pytest.CaptureFixture[str], clock: SimpleNamespace
) -> None:
    lines = EpochLines()
    lines.on_train_begin(replace(make_config(n_epochs=4), head_first_epochs=head_first), 0, [])
    for epoch in range(1, 5):
        clock.now += 2.0 if epoch > head_first else 0.5
        lines.on_epoch(record(epoch))
    assert capsys.readouterr().err.splitlines() == [
        f"epoch {i}/4: loss 0.2500, 2.0 s, 20 tokens/s{left[i - 1]}" for i in range(1, 5)
    ]


@pytest.mark.parametrize("verbose", [0, 1, 2])
def test_fit_and_predict__stderr_is_a_file__a_line_per_epoch(
    verbose: int, tiny_llama: str, capfd: pytest.CaptureFixture[str]
) -> None:
    clf = fit(tiny_llama, verbose)
    clf.predict(DATA.X)
    out, err = capfd.readouterr()
    assert out == "" and "\r" not in err and "\x1b" not in err
    lines = err.splitlines()
    for line, entry in zip(lines, clf.history_ if verbose else [], strict=True):
        assert line.startswith(f"epoch {entry['epoch']}/3: loss {entry['loss']:.4f}, validation")
        assert f"score {entry['validation_score']:.4f}" in line


@pytest.mark.parametrize(("verbose", "n_epoch_lines"), [(1, 0), (2, 3)])
def test_fit__in_a_terminal__one_bar_stays_and_lines_stand_above_it(
    verbose: int,
    n_epoch_lines: int,
    tiny_llama: str,
    terminal: Terminal,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "stderr", terminal.file)
    clear_cache()
    clf = fit(tiny_llama, verbose)
    screen = terminal.read()
    assert "frozen layers" in screen
    left = lines_of(screen)
    assert len(left) == n_epoch_lines + 1
    assert all(re.match(r"epoch \d/3: loss", line) for line in left[:-1])
    last = clf.history_[-1]
    assert re.match(rf"epoch {clf.n_iter_}/3 +\d+%\|", left[-1])
    said = f"loss {last['loss']:.3f}, score {last['validation_score']:.3f}, "
    assert said in left[-1] and "tok/s" in left[-1]
    assert max(map(len, left[-1:])) <= 100


@pytest.mark.parametrize("trainable_layers", ["all", 1])
def test_predict__in_a_terminal__a_bar_if_it_takes_long_and_gone_at_the_end(
    trainable_layers: object,
    tiny_llama: str,
    terminal: Terminal,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clf = GPTTextClassifier(tiny_llama, trainable_layers=trainable_layers, max_epochs=1)
    clf.set_params(random_state=0).fit(DATA.X, DATA.y).set_params(verbose=1)
    monkeypatch.setattr(sys, "stderr", terminal.file)
    texts = [*DATA.X, "unseen"]  # the frozen layers run over the last alone
    expected = clf.predict_proba(texts)
    assert terminal.read() == ""  # too short to be worth it
    monkeypatch.setattr("skgpt.training.callbacks._SHORT_SECONDS", 0.0)
    np.testing.assert_array_equal(clf.predict_proba(texts), expected)
    screen = terminal.read()
    assert ("predict, frozen layers" in screen) == (trainable_layers == 1)
    assert "predict, tokenise" in screen and "predict: " in screen
    assert lines_of(screen) == []
    clf.explain(texts[-2:])
    clf.plan([*DATA.X, f"planned {trainable_layers}"])
    screen = terminal.read()
    assert "explain, tokenise" in screen and "explain: " in screen
    assert "\rtokenise: " in screen
    assert lines_of(screen) == []


def test_work_bar__an_error__takes_it_away(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stderr", terminal.file)
    monkeypatch.setattr("skgpt.training.callbacks._SHORT_SECONDS", 0.0)
    with suppress(ZeroDivisionError), work_bar(1) as bar:
        for done in (1, 2):
            bar.move("frozen layers", done, 3)
        bar.move("predict", 1, 3)
        raise ZeroDivisionError
    screen = terminal.read()
    assert "frozen layers" in screen
    assert lines_of(screen) == []


def closed_file() -> TextIO:
    file = io.StringIO()
    file.close()
    return file


def bare_file() -> Mock:
    return Mock(spec=["write"])


@pytest.mark.parametrize("stderr", [lambda: None, closed_file, bare_file, io.StringIO])
def test_fit__a_stderr_that_can_do_little__has_no_bars_and_is_no_reason_to_end(
    stderr: Callable[[], Any], tiny_llama: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stderr", stderr())
    assert not shows_bars()
    assert [type(shown) for shown in fit_progress(1)] == [EpochLines]
    assert fit(tiny_llama, 2).n_iter_ == 3


def test_shows_bars__a_terminal_that_has_no_width__has_no_room(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    termios = pytest.importorskip("termios")
    monkeypatch.setattr(sys, "stderr", terminal.file)
    assert shows_bars()
    termios.tcsetwinsize(terminal.file.fileno(), (0, 0))
    assert not shows_bars()


def test_shows_bars__a_notebook_with_widgets__always(monkeypatch: pytest.MonkeyPatch) -> None:
    class NotebookBar:
        __module__ = "tqdm.notebook"

    monkeypatch.setattr("skgpt.training.callbacks.tqdm", NotebookBar)
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    assert shows_bars()
    assert [type(shown) for shown in fit_progress(2)] == [ProgressBar, EpochLines]
