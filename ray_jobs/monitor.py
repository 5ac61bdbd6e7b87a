"""What training tells its driver while it runs, and the wish to stop that the driver tells training.

One small actor stands between them: rank 0 posts events to it and reads the wish from the answer; the driver
takes the events and shows them. Neither ever waits for the other.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any, cast

import ray
from ray.actor import ActorHandle

POST_INTERVAL = 0.25


@dataclass(frozen=True)
class Event:
    """One thing that happened in training."""

    kind: str
    """`start` (workers are ready), `step`, `epoch`, `checkpoint`, `warning`, `fatal` (the run must end), or
    `end`."""
    step: int
    """Optimiser steps done."""
    epoch: int
    """Epochs finished."""
    values: dict[str, float] = field(default_factory=dict)
    message: str = ""


class _Monitor:
    def __init__(self) -> None:
        self.events: list[Event] = []
        self.stop = False
        self.waited: dict[int, set[int]] = {}

    def post(self, events: list[Event]) -> bool:
        """Keep events for the driver; return whether training shall stop."""
        self.events += events
        return self.stop

    def request_stop(self) -> None:
        self.stop = True

    def give_up(self, rank: int, step: int) -> None:
        """Note that a rank has waited for the others in vain."""
        self.waited.setdefault(step, set()).add(rank)

    def gave_up(self, step: int) -> set[int]:
        """Return the ranks that have."""
        return self.waited[step]

    def take(self) -> list[Event]:
        """Hand over the events that nobody has taken yet."""
        events, self.events = self.events, []
        return events


def start_monitor() -> ActorHandle[Any]:
    """Start the actor on the driver's node; it claims no CPU and lives as long as the driver."""
    return cast(ActorHandle[Any], ray.remote(num_cpus=0)(_Monitor).remote())


class Post:
    """Rank 0's side: sends events a few times a second, without waiting."""

    def __init__(self, monitor: ActorHandle[Any]) -> None:
        self._monitor = monitor
        self._waiting: list[Event] = []
        self._answer: ray.ObjectRef[bool] | None = None
        self._sent_at = 0.0
        self.stop_requested = False

    def send(self, event: Event, *, now: bool = False) -> None:
        """Queue an event; send the queue when it is time, or `now`."""
        self._waiting.append(event)
        self._read_answer(block=now)
        if now or (self._answer is None and time.monotonic() - self._sent_at >= POST_INTERVAL):
            self._answer = self._monitor.post.remote(self._waiting)
            self._waiting, self._sent_at = [], time.monotonic()
        if now:
            self._read_answer(block=True)

    def _read_answer(self, *, block: bool) -> None:
        if self._answer is None:
            return
        ready, _ = ray.wait([self._answer], timeout=None if block else 0)
        if ready:
            self.stop_requested |= ray.get(self._answer)
            self._answer = None
