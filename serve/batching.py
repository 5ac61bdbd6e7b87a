"""Dynamic batching: what waits when the model becomes free is computed together.

Ray's `serve.batch` closes the next batch while the present one is still being computed, so that without a
waiting time most batches hold a single request.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

T = TypeVar("T")
R = TypeVar("R")


class Batcher(Generic[T, R]):
    """Computes single items in batches, one batch at a time, in the order of their arrival.

    Args:
        compute: returns a result for each item of a batch.
        max_size: items of a batch.
        wait_s: how long the first item waits for others when the model is free.
    """

    def __init__(
        self, compute: Callable[[list[T]], Awaitable[list[R]]], max_size: int, wait_s: float = 0.0
    ) -> None:
        self._compute, self._max_size, self._wait_s = compute, max_size, wait_s
        self._waiting: deque[tuple[T, asyncio.Future[R]]] = deque()
        self._worker: asyncio.Task[None] | None = None

    async def __call__(self, item: T) -> R:
        """Return the item's result; an error of its batch is raised for each of the batch's items."""
        result: asyncio.Future[R] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, result))
        if self._worker is None or self._worker.done():
            self._worker = asyncio.create_task(self._work())
        return await result

    async def _work(self) -> None:
        await asyncio.sleep(self._wait_s)
        while self._waiting:
            batch: list[tuple[T, asyncio.Future[R]]] = []
            while self._waiting and len(batch) < self._max_size:
                item, result = self._waiting.popleft()
                if not result.done():  # else its request has been given up
                    batch.append((item, result))
            if not batch:
                continue
            try:
                computed = await self._compute([item for item, _ in batch])
                outcomes: list[R | Exception] = list(computed)
            except Exception as error:  # noqa: BLE001  it is the requests' to handle
                outcomes = [error] * len(batch)
            for (_, result), outcome in zip(batch, outcomes, strict=True):
                if result.done():
                    continue
                if isinstance(outcome, Exception):
                    result.set_exception(outcome)
                else:
                    result.set_result(outcome)
