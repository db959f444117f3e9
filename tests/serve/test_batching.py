"""The queue in front of the classifier, around a function that notes what it is asked."""

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from examples.serve.batching import Batcher, PredictionError

# On Windows an event loop talks to itself over a socket.
pytestmark = pytest.mark.allow_hosts(["127.0.0.1"])


class Lengths:
    """Predicts each text's length; while it is held, nothing is answered."""

    def __init__(self) -> None:
        self.calls: list[list[str]] = []
        self.threads: set[str] = set()
        self.held = threading.Event()
        self.held.set()

    def __call__(self, texts: list[str]) -> list[int]:
        self.calls.append(texts)
        self.threads.add(threading.current_thread().name)
        assert self.held.wait(30)
        if "bad" in texts:
            raise ValueError("bad")
        if "short" in texts:
            return []
        return [len(text) for text in texts]


def run(
    body: Callable[[Batcher], Awaitable[Any]], predict: Callable[[list[str]], Any], **options: Any
) -> Any:
    async def whole() -> Any:
        limits = {"max_texts": 4, "max_wait": 0.0, "max_unanswered": 1000}
        batcher = Batcher(predict, **(limits | options))
        async with asyncio.timeout(30), batcher.running():
            result = await body(batcher)
            assert batcher.unanswered == 0
            return result

    return asyncio.run(whole())


async def submitted(batcher: Batcher, *requests: list[str]) -> list[asyncio.Task[Any]]:
    """Return tasks that have submitted requests and wait for their answers."""
    tasks = [asyncio.create_task(batcher.submit(texts)) for texts in requests]
    await asyncio.sleep(0)
    return tasks


async def running(batcher: Batcher, predict: Lengths) -> asyncio.Task[Any]:
    """Return a request whose batch is held while it runs."""
    predict.held.clear()
    (task,) = await submitted(batcher, ["first"])
    while not predict.calls:
        await asyncio.sleep(0.001)
    return task


def test_batcher__requests_of_many_sizes__rows_of_their_own_and_no_batch_too_large() -> None:
    predict = Lengths()
    requests = [["x" * (i + j) for j in range(i % 6)] for i in range(60)]
    rows = run(lambda b: asyncio.gather(*map(b.submit, requests)), predict)
    assert rows == [[len(text) for text in texts] for texts in requests]
    assert all(len(call) <= 4 or call in requests for call in predict.calls)
    assert sum(map(len, predict.calls)) == sum(map(len, requests))
    assert predict.threads == {"predict_0"}
    pairs = zip(predict.calls, predict.calls[1:], strict=False)
    assert all(len(first) + len(second) > 4 for first, second in pairs)  # none waits for nothing


def test_batcher__arriving_while_a_batch_runs__share_the_next() -> None:
    predict = Lengths()

    async def body(batcher: Batcher) -> None:
        first = await running(batcher, predict)
        others = await submitted(batcher, *([str(i)] for i in range(4)))
        predict.held.set()
        await asyncio.gather(first, *others)

    run(body, predict)
    assert predict.calls == [["first"], ["0", "1", "2", "3"]]


def test_batcher__time_to_wait_after_company__a_second_request_joins_and_a_lone_one_goes() -> None:
    predict = Lengths()

    async def body(batcher: Batcher) -> float:
        await asyncio.gather(*(batcher.submit([text]) for text in ("one", "two")))
        first = asyncio.create_task(batcher.submit(["first"]))
        await asyncio.sleep(0.05)
        await asyncio.gather(first, batcher.submit(["second"]))
        began = time.monotonic()
        await batcher.submit(["alone"])
        return time.monotonic() - began

    assert run(body, predict, max_wait=0.3) + 0.02 >= 0.3
    assert predict.calls == [["one", "two"], ["first", "second"], ["alone"]]


def test_batcher__always_alone__waits_for_nobody() -> None:
    predict = Lengths()

    async def body(batcher: Batcher) -> None:
        for text in ("first", "second", "third"):
            await asyncio.wait_for(batcher.submit([text]), timeout=5)

    run(body, predict, max_wait=60.0)
    assert predict.calls == [["first"], ["second"], ["third"]]


@pytest.mark.parametrize("text", ["bad", "short"])
def test_batcher__a_batch_fails__only_its_requests_do(text: str) -> None:
    async def body(batcher: Batcher) -> list[Any]:
        requests = [["fine"] * 4, [text, "x"], ["shares"], ["fine"] * 4, ["fine"]]
        return await asyncio.gather(*map(batcher.submit, requests), return_exceptions=True)

    first, failed, shares, *others = run(body, Lengths())
    assert [first, *others] == [[4] * 4, [4] * 4, [4]]
    assert isinstance(failed, PredictionError) and isinstance(shares, PredictionError)
    assert isinstance(failed.__cause__, ValueError)


def test_batcher__who_gave_up__is_not_predicted() -> None:
    predict = Lengths()

    async def body(batcher: Batcher) -> Any:
        first = await running(batcher, predict)
        gone, stays = await submitted(batcher, ["gone"], ["stays"])
        first.cancel()  # while its batch runs
        gone.cancel()
        predict.held.set()
        return await asyncio.gather(first, gone, stays, return_exceptions=True)

    *cancelled, rows = run(body, predict)
    assert [type(each) for each in cancelled] == [asyncio.CancelledError] * 2
    assert rows == [5]
    assert predict.calls == [["first"], ["stays"]]
