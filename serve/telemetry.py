"""What is counted: in each replica, and summed over them for Prometheus."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.metrics_core import Metric

SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)
FORGOTTEN = "gone"
"""The source that stands for all replicas that have ended: sums must never fall."""


class Telemetry:
    """The counters of one replica."""

    def __init__(self, max_batch_size: int) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "dfmvr_requests",
            "Requests answered, by route and status",
            ["route", "status"],
            registry=self.registry,
        )
        self.latency = Histogram(
            "dfmvr_request_seconds",
            "From a request's arrival to its answer",
            ["route"],
            buckets=SECONDS,
            registry=self.registry,
        )
        self.stages = Histogram(
            "dfmvr_stage_seconds",
            "Time in each stage of a reconstruction",
            ["stage"],
            buckets=SECONDS,
            registry=self.registry,
        )
        self.batches = Histogram(
            "dfmvr_batch_size",
            "Faces computed at once",
            buckets=range(1, max_batch_size + 1),
            registry=self.registry,
        )
        self.rejects = Counter(
            "dfmvr_rejects", "Requests refused, by reason", ["reason"], registry=self.registry
        )
        self.under_way = Gauge("dfmvr_requests_under_way", "Requests being handled", registry=self.registry)

    @contextmanager
    def stage(self, name: str, timings: dict[str, float] | None = None) -> Iterator[None]:
        """Time a stage; add its seconds to `timings` too."""
        start = perf_counter()
        try:
            yield
        finally:
            seconds = perf_counter() - start
            self.stages.labels(name).observe(seconds)
            if timings is not None:
                timings[name] = timings.get(name, 0.0) + seconds

    def snapshot(self) -> Snapshot:
        """Return everything that was counted."""
        families = tuple(
            Family(
                metric.name,
                metric.documentation,
                metric.type,
                tuple(
                    (sample.name, tuple(sorted(sample.labels.items())), float(sample.value))
                    for sample in metric.samples
                    if not sample.name.endswith("_created")
                ),
            )
            for metric in self.registry.collect()
        )
        return Snapshot(families)


@dataclass(frozen=True)
class Family:
    """One metric with its samples (name, labels, value)."""

    name: str
    documentation: str
    kind: str
    samples: tuple[tuple[str, tuple[tuple[str, str], ...], float], ...]


@dataclass(frozen=True)
class Snapshot:
    """All metrics of one replica at one moment."""

    families: tuple[Family, ...] = ()


def add(snapshots: Iterable[Snapshot]) -> Snapshot:
    """Sum snapshots, sample by sample."""
    facts: dict[str, Family] = {}
    sums: dict[str, dict[tuple[str, tuple[tuple[str, str], ...]], float]] = {}
    for snapshot in snapshots:
        for family in snapshot.families:
            facts.setdefault(family.name, family)
            total = sums.setdefault(family.name, {})
            for name, labels, value in family.samples:
                total[name, labels] = total.get((name, labels), 0.0) + value
    return Snapshot(
        tuple(
            Family(
                name,
                family.documentation,
                family.kind,
                tuple((*key, value) for key, value in sums[name].items()),
            )
            for name, family in facts.items()
        )
    )


def without_gauges(snapshot: Snapshot) -> Snapshot:
    """Drop what describes a moment: it ends with its replica."""
    return Snapshot(tuple(family for family in snapshot.families if family.kind != "gauge"))


def exposition(snapshot: Snapshot) -> bytes:
    """Write a snapshot in Prometheus' text format."""
    registry = CollectorRegistry()
    registry.register(_Fixed(snapshot))
    return generate_latest(registry)


class _Fixed:
    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics as prometheus_client wants them."""
        for family in self._snapshot.families:
            metric = Metric(family.name, family.documentation, family.kind)
            for name, labels, value in family.samples:
                metric.add_sample(name, dict(labels), value)
            yield metric
