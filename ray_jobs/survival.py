"""What a worker does about trouble: a peer that hangs, a node about to be taken away, a step not finite."""

from __future__ import annotations

import dataclasses
import faulthandler
import time
from collections.abc import Sequence
from typing import Any, Self

import ray
import ray.train
import safetensors.torch
import torch
from ray.actor import ActorHandle
from torch import Tensor

from dfmvr.data import storage
from dfmvr.types import ViewBatch

PREEMPTION_POLL_S = 5.0
"""Asking costs a barrier over all workers."""
_STDERR = 2
"""The file descriptor: `sys.stderr` may be something without one."""
_GATHERING_S = 3.0
"""How long after the first time-out the others' may come: they wait for the same peer."""


class Alarm:
    """Ends this process, with all threads' stacks in its log, when it is not rewound in time.

    A context manager that switches itself off.

    Args:
        limit_s: seconds.
    """

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s

    def __enter__(self) -> Self:
        self.rewind()
        return self

    def __exit__(self, *_: object) -> None:
        faulthandler.cancel_dump_traceback_later()

    def rewind(self) -> None:
        """Start the time anew."""
        faulthandler.dump_traceback_later(self._limit_s, exit=True, file=_STDERR)


class PreemptionWatch:
    """Asks now and then whether a node of this run is about to be taken away."""

    def __init__(self) -> None:
        self._asked_at = time.monotonic()
        self._known: frozenset[str] = frozenset()

    def is_due(self) -> bool:
        """Return whether it is time to ask again; all workers must then ask together."""
        return time.monotonic() - self._asked_at >= PREEMPTION_POLL_S

    def ask(self) -> str:
        """Return words about nodes that will go and that were not known yet; empty where there are none."""
        info = ray.train.get_preemption_info()
        self._asked_at = time.monotonic()
        nodes = frozenset(info.preempted_node_ids) if info else frozenset()
        news, self._known = nodes - self._known, self._known | nodes
        if not info or not news:
            return ""
        return f"node {', '.join(sorted(news))} will be taken away, with ranks {info.preempted_ranks}"


def is_timeout(error: RuntimeError) -> bool:
    """Return whether workers that wait for each other have given up waiting."""
    return "timed out" in str(error).lower()


def missing_ranks(monitor: ActorHandle[Any], rank: int, world_size: int, step: int) -> list[int] | None:
    """Tell that this rank has waited in vain, and find out who did not answer.

    Returns:
        The ranks that have not given up waiting as well: they hang. None on all ranks but one, which tells.
    """
    ray.get(monitor.give_up.remote(rank, step))
    time.sleep(_GATHERING_S)
    waited: set[int] = ray.get(monitor.gave_up.remote(step))
    if rank != min(waited):
        return None
    return sorted(set(range(world_size)) - waited)


def suspects(batches: Sequence[ViewBatch]) -> list[str]:
    """Return the ids of the samples whose own numbers are not finite; of all, where every number is."""
    ids = [name for batch in batches for name in batch.sample_ids]
    bad = [name for batch in batches for name in _not_finite(batch)]
    return bad or ids


def keep_batches(folder: str, name: str, batches: Sequence[ViewBatch]) -> str:
    """Write batches and their sample ids to a .safetensors file in `folder`; return its URI."""
    tensors = {
        f"{number}/{field}": value.detach().cpu().contiguous()
        for number, batch in enumerate(batches)
        for field, value in _tensors(batch).items()
    }
    ids = {f"{number}/sample_ids": "\n".join(batch.sample_ids) for number, batch in enumerate(batches)}
    uri = storage.join(folder, f"{name}.safetensors")
    storage.write_bytes(uri, safetensors.torch.save(tensors, ids))
    return uri


def _tensors(batch: ViewBatch) -> dict[str, Tensor]:
    values = {field.name: getattr(batch, field.name) for field in dataclasses.fields(batch)}
    return {name: value for name, value in values.items() if isinstance(value, Tensor)}


def _not_finite(batch: ViewBatch) -> list[str]:
    per_sample = [
        torch.isfinite(value).flatten(1).all(1) for value in _tensors(batch).values() if value.ndim > 1
    ]
    fine = torch.stack(per_sample).all(0).tolist()
    return [name for name, good in zip(batch.sample_ids, fine, strict=True) if not good]
