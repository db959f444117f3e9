"""Requests that arrive together are classified together: one queue, one worker thread.

A text is whatever the classifier takes a list of: a text, or a row of several columns.

A GPT runs over the texts of a batch in hardly more time than over a few of them, and two
predictions at once would fight over the same cores. So there is one prediction at a time, and what
has arrived meanwhile shares the next.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from typing import Any

log = logging.getLogger("skgpt.serve")

Rows = Sequence[Any]  # one for each text


class StoppingError(RuntimeError):
    """The server is about to end and takes nothing new."""


class BusyError(RuntimeError):
    """More is waiting already than can be answered soon."""


class PredictionError(RuntimeError):
    """The prediction of a batch failed; the log has why."""


@dataclass(frozen=True)
class _Request:
    texts: list[Any]
    due: float  # until when it may wait for others
    answer: asyncio.Future[Rows]


class Batcher:
    """Gathers texts of concurrent requests and has them predicted together.

    Parameters
    ----------
    predict : callable
        From a list of texts to a row for each. It runs in a thread of its own, once at a time.
    max_texts : int
        Texts in a batch. A request is never divided: one with more goes alone.
    max_wait : float
        Seconds that a request may wait for others. It does so only where the batch before it was of
        several requests: who is alone would wait for nobody.
    max_unanswered : int
        Texts that may be unanswered at once. A request that comes when there are none is taken
        whatever its size.
    """

    def __init__(
        self,
        predict: Callable[[list[Any]], Rows],
        *,
        max_texts: int,
        max_wait: float,
        max_unanswered: int,
    ) -> None:
        self.predict = predict
        self.max_texts = max_texts
        self.max_wait = max_wait
        self.max_unanswered = max_unanswered
        self.unanswered = 0
        self.stopping = False
        self._queue: asyncio.Queue[_Request] = asyncio.Queue()
        self._next: _Request | None = None  # taken from the queue, too large for its batch
        self._crowded = False  # whether the last request had company
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="predict")

    def refuse_new(self) -> None:
        """Take no more requests; those that were taken are answered. May be called anywhere."""
        self.stopping = True

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Answer requests as long as the body runs."""
        worker = asyncio.create_task(self._work())
        try:
            yield
        finally:
            self.refuse_new()
            worker.cancel()
            with suppress(asyncio.CancelledError):
                await worker
            self._thread.shutdown(wait=False, cancel_futures=True)

    async def submit(self, texts: list[Any]) -> Rows:
        """Return the rows of these texts when they are there.

        Parameters
        ----------
        texts : list of str or of dict

        Returns
        -------
        rows : sequence
            One for each text, in order.

        Raises
        ------
        StoppingError
            After `refuse_new`.
        BusyError
            If too much is waiting.
        PredictionError
            If the batch that they were in failed.
        """
        if self.stopping:
            raise StoppingError
        if not texts:
            return []
        if self.unanswered and self.unanswered + len(texts) > self.max_unanswered:
            raise BusyError
        loop = asyncio.get_running_loop()
        request = _Request(texts, loop.time() + self.max_wait, loop.create_future())
        self.unanswered += len(texts)
        try:
            self._queue.put_nowait(request)
            return await request.answer
        finally:
            self.unanswered -= len(texts)

    async def _work(self) -> None:
        while True:
            await self._answer(await self._gather())

    async def _gather(self) -> list[_Request]:
        first, self._next = self._next or await self._queue.get(), None
        batch, n_texts = [first], len(first.texts)
        while n_texts < self.max_texts:
            request = await self._next_until(first.due)
            if request is None:
                break
            n_texts += len(request.texts)
            if n_texts > self.max_texts:
                self._next = request
                break
            batch.append(request)
        self._crowded = len(batch) > 1 or self._next is not None
        return batch

    async def _next_until(self, due: float) -> _Request | None:
        """Return the next request: at once if it is there, None if none comes in time."""
        if not self._queue.empty():
            return self._queue.get_nowait()
        if not self._crowded:
            return None
        try:
            async with asyncio.timeout_at(due):
                return await self._queue.get()
        except TimeoutError:
            return None

    async def _answer(self, batch: list[_Request]) -> None:
        batch = [request for request in batch if not request.answer.done()]  # some gave up
        texts = [text for request in batch for text in request.texts]
        if not texts:
            return
        try:
            rows = await asyncio.get_running_loop().run_in_executor(
                self._thread, self.predict, texts
            )
            if len(rows) != len(texts):
                raise ValueError(f"{len(texts)} texts must give as many rows. Got {len(rows)}.")
        except Exception as error:  # whatever it is, the next batch may be well
            log.exception("a batch of %d texts failed", len(texts))
            for request in batch:
                _settle(request, error)
        else:
            in_order = iter(rows)
            for request in batch:
                _settle(request, list(islice(in_order, len(request.texts))))


def _settle(request: _Request, outcome: Rows | Exception) -> None:
    if request.answer.done():  # it gave up while its batch ran
        return
    if isinstance(outcome, Exception):
        failed = PredictionError("the prediction of the batch failed")
        failed.__cause__ = outcome
        request.answer.set_exception(failed)
    else:
        request.answer.set_result(outcome)
