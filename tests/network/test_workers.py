"""Micro-batches that run at once, in a thread each: the same results, and nothing left behind."""

import _thread
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch

import skgpt
from skgpt import LoRA
from skgpt.caching import keeps_texts, predicting
from skgpt.exceptions import LowMemoryWarning, NoMemoryError
from skgpt.network import microbatches
from skgpt.network.microbatches import MicroBatcher
from skgpt.network.network import TextNetwork
from skgpt.network.workers import in_order
from skgpt.pretrained.loading import load_pretrained
from tests.helpers import TextData, make
from tests.network.test_network import build


@pytest.fixture(autouse=True)
def empty_stores() -> Iterator[None]:
    skgpt.clear_cache()
    yield
    skgpt.clear_cache()


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], list[int]]]:
    """Return a function that sets torch's threads, and returns how many workers ran each time."""
    before = torch.get_num_threads()
    monkeypatch.setattr("skgpt.device.loky.cpu_count", lambda: 4)
    monkeypatch.setattr(microbatches, "_LEAST_TOKENS", 16)  # tiny texts are worth a thread

    def use(n: int) -> list[int]:
        skgpt.clear_cache()
        torch.set_num_threads(n)
        used: list[int] = []

        def noted(work: Any, parts: Any, n_workers: int, n_ahead: int) -> Iterator[Any]:
            used.append(n_workers)
            return in_order(work, parts, n_workers, n_ahead)

        monkeypatch.setattr(microbatches, "in_order", noted)
        return used

    yield use
    torch.set_num_threads(before)


@pytest.mark.first_tier(architecture=["llama"], options=[{"trainable_layers": "all"}])
@pytest.mark.first_tier(architecture=["bloom"], options=[{"trainable_layers": 1}])
@pytest.mark.parametrize("architecture", ["llama", "bloom"])  # which can't be packed
@pytest.mark.parametrize(
    "options",
    [
        {"trainable_layers": "all"},
        {"trainable_layers": 1},
        {"trainable_layers": 0},
        {"trainable_layers": 1, "head_first_epochs": 1, "max_length": 16, "long_text": "windows"},
    ],
    ids=["all", "one", "none", "windows"],
)
def test_fit_and_predict__several_workers__are_as_one_and_repeat(
    architecture: str,
    options: dict[str, Any],
    tiny_model: Callable[[str], str],
    two_class_data: TextData,
    threads: Callable[[int], list[int]],
) -> None:
    X, y = two_class_data

    def result() -> tuple[np.ndarray, list[float]]:
        clf = make(tiny_model(architecture), precision="fp32", **options).fit(X, y)
        return clf.predict_proba(X), clf.loss_curve_

    assert not (used := threads(1))
    alone, losses = result()
    assert not used
    used = threads(2)
    found, found_losses = result()
    assert {*used} == {2}
    np.testing.assert_allclose(found, alone, atol=1e-4)
    np.testing.assert_allclose(found_losses, losses, rtol=1e-4)
    threads(2)
    np.testing.assert_array_equal(result()[0], found)


def test_fit__bf16_and_dropout_in_several_workers__repeats(
    tiny_llama: str, two_class_data: TextData, threads: Callable[[int], list[int]]
) -> None:
    X, y = two_class_data
    found = []
    for _ in range(2):
        used = threads(2)
        clf = make(tiny_llama, precision="bf16", lora=LoRA(dropout=0.5), trainable_layers="all")
        found.append(clf.fit(X, y).predict_proba(X))
        assert used
    np.testing.assert_array_equal(*found)


def test_fit_and_predict__in_workers__leave_no_thread_and_torchs_number(
    tiny_llama: str,
    two_class_data: TextData,
    threads: Callable[[int], list[int]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    X, y = two_class_data
    used = threads(3)
    seen: list[int] = []
    pooled, running = TextNetwork.pooled, threading.active_count()

    def noting(self: Any, *args: Any) -> torch.Tensor:
        if threading.current_thread() is not threading.main_thread():
            seen.append(torch.get_num_threads())
        return pooled(self, *args)

    monkeypatch.setattr(TextNetwork, "pooled", noting)
    clf = make(tiny_llama, trainable_layers="all").fit(X, y)
    clf.predict(X)
    assert used and set(seen) == {1}  # no compute threads of their own
    assert threading.active_count() == running
    assert torch.get_num_threads() == 3
    of_new_threads: list[int] = []
    thread = threading.Thread(target=lambda: of_new_threads.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert of_new_threads == [3]
    # Nor does an error leave any, which is the caller's.
    monkeypatch.setattr(TextNetwork, "pooled", lambda *args: [].pop())
    with pytest.raises(IndexError, match="pop from empty"):
        clf.predict(X)
    assert threading.active_count() == running
    assert torch.get_num_threads() == 3


def test_in_order__parts_that_end_in_another_order__come_in_theirs() -> None:
    done: list[int] = []

    def work(part: int) -> int:
        if part == 0:
            while 1 not in done:  # another thread's
                time.sleep(0.001)
        done.append(part)
        return part

    assert [*in_order(work, range(7), 2, 1)] == [*range(7)]
    assert done.index(1) < done.index(0)


def test_in_order__of_the_caller__are_gradients_and_context_variables() -> None:
    def state(part: int) -> tuple[bool, bool]:
        return torch.is_grad_enabled(), keeps_texts()

    with torch.no_grad(), predicting():
        assert {*in_order(state, range(4), 2, 0)} == {(False, False)}
    assert {*in_order(state, range(4), 2, 0)} == {(True, True)}


def test_in_order__ctrl_c__ends_what_the_workers_do() -> None:
    running = threading.active_count()
    both = threading.Barrier(2)

    def work(part: int) -> None:
        if both.wait() == 0:
            _thread.interrupt_main()
        while True:  # as long as nobody ends it
            time.sleep(0.001)

    with pytest.raises(KeyboardInterrupt):
        next(in_order(work, range(2), 2, 0))
    assert threading.active_count() == running


def test_in_order__once_the_main_thread_has_ended__goes_on_in_its_caller() -> None:
    code = """
import threading
from skgpt.network.workers import in_order

def work(part):
    if part == 9:
        raise ValueError(part)
    return part

begun = in_order(work, range(10), 2, 0)
print(next(begun))

def late():
    threading.main_thread().join()
    try:
        for part in begun:
            print(part)
    except ValueError as error:
        print(error)
    print(*in_order(work, range(4), 2, 0))

threading.Thread(target=late).start()
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.stdout.split() == [*"0123456789", *"0123"], run.stderr


def test_micro_batcher__memory_runs_out_in_workers__goes_down_to_one_text_at_a_time(
    tiny_llama: str, threads: Callable[[int], list[int]]
) -> None:
    threads(2)
    rows, lengths = np.arange(8), np.arange(40, 48)
    held, lock = [0], threading.Lock()

    def work(part: np.ndarray) -> list[int]:
        with lock:
            held[0] += int(lengths[part].sum())
            too_many = held[0] > most
        try:
            time.sleep(0.01)  # beside another's
        finally:
            with lock:
                held[0] -= int(lengths[part].sum())
        if too_many:
            raise torch.OutOfMemoryError("too many at once")
        return part.tolist()

    batcher = MicroBatcher(build(load_pretrained(tiny_llama)), 2048)
    most = 50
    with pytest.warns(LowMemoryWarning):
        found = [*batcher.map(work, rows, lengths)]
    assert all(part.tolist() == made for part, made in found)
    assert sorted(np.concatenate([part for part, _ in found])) == rows.tolist()
    most = 30
    with pytest.raises(NoMemoryError, match="with a text of 47 tokens alone"):
        next(batcher.map(work, rows, lengths))
