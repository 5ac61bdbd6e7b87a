"""What the replicas share: answers by Idempotency-Key, request rates by key, counters.

One small deployment without a model. A replica claims a key before it computes; while it lives (it beats once
a second) others wait for its answer, and when it has died the next one takes the claim over. If the ledger
itself dies, Serve starts a new one that has forgotten: a request in that moment may then be computed twice.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

from serve.telemetry import FORGOTTEN, Snapshot, add, exposition, without_gauges

BEAT_S = 1.0
LEASE_S = 4.0
"""A replica that has not beaten for this long is taken for dead."""
FORGET_S = 3600.0
"""What a replica has counted is kept apart for so long after its last beat: it may only have been busy."""
POLL_S = 0.2


@dataclass(frozen=True)
class StoredAnswer:
    """An HTTP response, kept to be given again."""

    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes


@dataclass(frozen=True)
class Claim:
    """What a replica is told that wants to compute: go on, take this answer, or the key is another's."""

    granted: bool = False
    answer: StoredAnswer | None = None
    conflict: bool = False


@dataclass
class _Entry:
    fingerprint: str
    owner: str
    begun: float
    answer: StoredAnswer | None = None
    settled: asyncio.Event = field(default_factory=asyncio.Event)


class Book:
    """The ledger's state; knows nothing of Ray.

    Args:
        minutes: that answers are kept for.
        max_bytes: of all answers together.
        requests_per_minute: of each key; 0 sets no limit.
        clock: seconds.
    """

    def __init__(
        self,
        minutes: float,
        max_bytes: int,
        requests_per_minute: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._kept_s, self._max_bytes, self._per_minute = 60 * minutes, max_bytes, requests_per_minute
        self._clock = clock
        self._entries: OrderedDict[str, _Entry] = OrderedDict()
        self._bytes = 0
        self._beats: dict[str, float] = {}
        self._counts: dict[str, Snapshot] = {}
        self._buckets: dict[str, tuple[float, float]] = {}

    async def claim(self, key: str, fingerprint: str, owner: str, patience_s: float) -> Claim:
        """Let `owner` compute, or wait for the answer of the one that does.

        Args:
            key: the client's, with whatever tells clients apart.
            fingerprint: of the request; a key belongs to one request.
            owner: the replica that asks; it must have beaten.
            patience_s: how long to wait for another's answer.

        Raises:
            TimeoutError: the other one has not finished in time.
        """
        self._forget()
        deadline = self._clock() + patience_s
        while True:
            entry = self._entries.get(key)
            if entry is None or (entry.answer is None and not self._alive(entry.owner)):
                self._entries[key] = _Entry(fingerprint, owner, self._clock())
                return Claim(granted=True)
            if entry.fingerprint != fingerprint:
                return Claim(conflict=True)
            if entry.answer is not None:
                return Claim(answer=entry.answer)
            if self._clock() >= deadline:
                raise TimeoutError(key)
            try:
                async with asyncio.timeout(POLL_S):
                    await entry.settled.wait()
            except TimeoutError:
                continue

    def settle(self, key: str, owner: str, answer: StoredAnswer | None) -> None:
        """Keep the owner's answer for those who ask again; None lets the next one compute."""
        entry = self._entries.get(key)
        if entry is None or entry.owner != owner or entry.answer is not None:
            return
        if answer is None:
            del self._entries[key]
        else:
            entry.answer = answer
            self._bytes += len(answer.body)
            self._forget()
        entry.settled.set()

    def take_token(self, name: str) -> float:
        """Count a request of a key; return 0, or the seconds after which it may try again."""
        if not self._per_minute:
            return 0.0
        most, now = max(1.0, self._per_minute), self._clock()
        tokens, before = self._buckets.get(name, (most, now))
        tokens = min(most, tokens + (now - before) * self._per_minute / 60)
        if tokens < 1:
            self._buckets[name] = (tokens, now)
            return (1 - tokens) * 60 / self._per_minute
        self._buckets[name] = (tokens - 1, now)
        return 0.0

    def beat(self, owner: str, counts: Snapshot) -> None:
        """Note that a replica lives, and what it has counted."""
        now = self._clock()
        self._beats[owner], self._counts[owner] = now, counts
        for name in [name for name in self._beats if not self._alive(name)]:
            self._counts[name] = without_gauges(self._counts[name])
            if now - self._beats[name] > FORGET_S:
                del self._beats[name]
                last = [self._counts.pop(name), self._counts.get(FORGOTTEN, Snapshot())]
                self._counts[FORGOTTEN] = add(last)

    def exposition(self) -> bytes:
        """Return the sums over all replicas, in Prometheus' text format."""
        return exposition(add(self._counts.values()))

    def _alive(self, owner: str) -> bool:
        return self._clock() - self._beats.get(owner, float("-inf")) < LEASE_S

    def _forget(self) -> None:
        """Drop answers that are too old, and the oldest while there are too many bytes."""
        now = self._clock()
        for key, entry in list(self._entries.items()):
            old = now - entry.begun > self._kept_s
            if entry.answer is None or not (old or self._bytes > self._max_bytes):
                continue
            self._bytes -= len(entry.answer.body)
            del self._entries[key]
