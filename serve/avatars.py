"""Who makes animatable heads: one thread, whose seconds of work mostly run without the interpreter lock."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

from serve.problems import Problem

RETRY_AFTER_S = 5
"""About as long as one head takes."""

Make = Callable[..., Awaitable[bytes]]


class AvatarQueue:
    """Makes one head at a time; a few more may wait, all others are told when to come again.

    Args:
        places: for heads under way, the one that is being made included.
    """

    def __init__(self, places: int) -> None:
        self._places = places
        self._free = threading.Semaphore(places)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="avatar")

    @contextmanager
    def place(self) -> Iterator[Make]:
        """Take a place; yield what does work in the thread: `await make(work, *arguments)`, once.

        A thread cannot be stopped: a request that is given up keeps its place until its work has ended.

        Raises:
            Problem: all places are taken.
        """
        if not self._free.acquire(blocking=False):
            raise Problem(
                503,
                f"as many heads as this replica takes ({self._places}) are under way; try again",
                reason="avatar_queue_full",
                headers={"Retry-After": str(RETRY_AFTER_S)},
            )
        job: Future[bytes] | None = None

        def make(work: Callable[..., bytes], *arguments: Any) -> Awaitable[bytes]:
            nonlocal job
            job = self._thread.submit(work, *arguments)
            return asyncio.wrap_future(job)  # cancels the job with itself while the job waits

        try:
            yield make
        finally:
            if job is None:
                self._free.release()
            else:
                job.add_done_callback(lambda _: self._free.release())

    def close(self) -> None:
        """Let the thread end after what it is at."""
        self._thread.shutdown(wait=False, cancel_futures=True)
