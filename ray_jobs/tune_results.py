"""What a sweep has found: one row a trial, read from its folder, and which settings mattered."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from ray.tune import Result, ResultGrid
from scipy.stats import rankdata, spearmanr

from dfmvr.data import storage
from ray_jobs.runs import newest_state, open_run
from ray_jobs.tune_space import Dimension, Point
from ray_jobs.tune_sweep import Sweep
from ray_jobs.tune_trial import claimed_cpus

_ENOUGH = 4
"""Trials that are needed before a setting's importance says anything."""


@dataclass(frozen=True)
class TrialRow:
    """One trial."""

    id: str
    number: int
    """From 1, in the order of trying."""
    point: Point
    status: str
    """`finished`, `stopped` (by the scheduler), `failed`, or `unfinished` (the sweep was interrupted)."""
    reason: str = ""
    """Why it failed."""
    curve: tuple[tuple[int, float], ...] = ()
    """Epoch and validation error in mm, of every validated epoch."""
    step_ms: float = math.nan
    startup_seconds: float = math.nan
    """From the trial's beginning until its workers are ready, the last time."""
    seconds: float = 0.0
    """Of training, all starts together."""
    cpus: float = 0.0
    gpus: float = 0.0

    @property
    def epochs(self) -> int:
        """Epochs done."""
        return self.curve[-1][0] if self.curve else 0

    @property
    def val_dense_mm(self) -> float:
        """Error after the last epoch; NaN where there is none."""
        return self.curve[-1][1] if self.curve else math.nan

    @property
    def cpu_hours(self) -> float:
        """CPU hours kept from others, the last start among them."""
        startup = 0.0 if math.isnan(self.startup_seconds) else self.startup_seconds
        return (self.seconds + startup) * self.cpus / 3600


@dataclass(frozen=True)
class Summary:
    """A sweep's outcome."""

    trials: tuple[TrialRow, ...]
    count: int
    """Trials planned."""
    epochs: int
    """Epochs of a trial that is not stopped."""
    objectives: tuple[str, ...]
    importance: dict[str, float] = field(default_factory=dict)
    importance_epoch: int = 0

    @property
    def complete(self) -> bool:
        """Every trial has been tried to its end."""
        return len(self.trials) == self.count and all(t.status != "unfinished" for t in self.trials)

    @property
    def finished(self) -> list[TrialRow]:
        """Trials that did all their epochs, best first."""
        done = [trial for trial in self.trials if trial.status == "finished"]
        return sorted(done, key=lambda trial: getattr(trial, self.objectives[0]))

    @property
    def best(self) -> TrialRow | None:
        """The finished trial with the lowest first objective."""
        return next(iter(self.finished), None)

    @property
    def front(self) -> set[str]:
        """Ids of the finished trials that no other finished one beats in every objective."""
        figures = {t.id: [getattr(t, name) for name in self.objectives] for t in self.finished}
        return {
            id_
            for id_, own in figures.items()
            if not any(
                other != own and all(o <= mine for o, mine in zip(other, own, strict=True))
                for other in figures.values()
            )
        }

    @property
    def epochs_done(self) -> int:
        """Epochs of all trials together."""
        return sum(trial.epochs for trial in self.trials)

    @property
    def cpu_hours(self) -> float:
        """CPU hours of all trials together."""
        return sum(trial.cpu_hours for trial in self.trials)

    @property
    def gpu_hours(self) -> float:
        """GPU hours of all trials together."""
        return sum(trial.seconds * trial.gpus for trial in self.trials) / 3600


def summarise(sweep: Sweep, results: ResultGrid, count: int) -> Summary:
    """Collect what the trials' folders and Ray Tune know.

    Args:
        sweep: the sweep.
        results: Tune's.
        count: trials planned.
    """
    place = {trial_id: index for index, trial_id in enumerate(sweep.trial_order())}
    ordered = sorted(
        (results[index] for index in range(len(results))),
        key=lambda result: place.get(Path(result.path).name, len(place)),
    )
    trials = tuple(_row(sweep, number, result) for number, result in enumerate(ordered, start=1))
    epochs = max(base.training.epochs for base in sweep.bases.values())
    summary = Summary(trials, count, epochs, sweep.tune.objectives)
    values, epoch, comparable = comparable_figures(trials)
    found = {
        dimension.name: importance(dimension, [trial.point for trial in comparable], values)
        for dimension in sweep.space.dimensions
    }
    ranked = sorted(((v, name) for name, v in found.items() if not math.isnan(v)), reverse=True)
    return replace(summary, importance={name: v for v, name in ranked}, importance_epoch=epoch)


def comparable_figures(trials: Sequence[TrialRow]) -> tuple[list[float], int, list[TrialRow]]:
    """Return errors that can be compared: of the last epoch that at least half of the trials reached.

    Returns:
        Errors in mm, the epoch (0 where there is none), and the trials they are of.
    """
    curves = [dict(trial.curve) for trial in trials if trial.curve]
    epochs = (
        [e for e in set().union(*curves) if 2 * sum(e in c for c in curves) >= len(curves)] if curves else []
    )
    if not epochs:
        return [], 0, []
    epoch = max(epochs)
    reached = [trial for trial in trials if epoch in dict(trial.curve)]
    return [dict(trial.curve)[epoch] for trial in reached], epoch, reached


def importance(dimension: Dimension, points: Sequence[Point], values: Sequence[float]) -> float:
    """Return how much of the order of the trials a setting explains, 0 to 1; NaN for too few trials.

    That is the absolute rank correlation (Spearman) for ranges, and the correlation ratio of the ranks for
    choices. Settings that act only together are missed; it is a hint, not a test.

    Args:
        dimension: the setting.
        points: of the trials.
        values: their figures.
    """
    name = dimension.name
    pairs = [(p[name], value) for p, value in zip(points, values, strict=True) if name in p]
    if len(pairs) < _ENOUGH or len({value for _, value in pairs}) < 2 or len({repr(s) for s, _ in pairs}) < 2:
        return math.nan
    ranks = rankdata([value for _, value in pairs])
    if dimension.kind != "choice":
        return abs(float(spearmanr([setting for setting, _ in pairs], ranks).statistic))
    groups: dict[str, list[float]] = {}
    for (setting, _), rank in zip(pairs, ranks, strict=True):
        groups.setdefault(repr(setting), []).append(float(rank))
    between = sum(len(group) * (np.mean(group) - ranks.mean()) ** 2 for group in groups.values())
    return float(math.sqrt(between / ((ranks - ranks.mean()) ** 2).sum()))


def merged_curve(*histories: Sequence[Mapping[str, Any]]) -> tuple[tuple[int, float], ...]:
    """Return epochs and errors of several accounts of one trial; of an epoch, the later account counts."""
    errors = {
        int(entry["epoch"]): float(entry["val_dense_mm"])
        for history in histories
        for entry in history
        if not math.isnan(entry.get("val_dense_mm", math.nan))
    }
    return tuple(sorted(errors.items()))


def reported(result: Result) -> list[dict[str, Any]]:
    """Return what a trial told Tune: the scheduler may end it before that epoch's checkpoint is there."""
    table = result.metrics_dataframe
    return [] if table is None or "epoch" not in table else table.to_dict("records")


def _told_seconds(metrics: Mapping[str, Any]) -> float:
    """Return the seconds of training in the last start, by Tune's clock."""
    return max(0.0, metrics.get("time_total_s", 0.0) - metrics.get("startup_seconds", 0.0))


def _row(sweep: Sweep, number: int, result: Result) -> TrialRow:
    trial_id, metrics = Path(result.path).name, result.metrics or {}
    uri = sweep.path("trials", trial_id)
    row = TrialRow(trial_id, number, dict(result.config or {}), "unfinished")
    if storage.exists(storage.join(uri, "config.yaml")):
        training = open_run(uri).settings.training
        state = newest_state(storage.join(uri, "checkpoints"))
        history = state.history if state else ()
        row = replace(
            row,
            status="finished" if state and state.epoch >= training.epochs else "unfinished",
            curve=merged_curve(history, reported(result)),
            step_ms=metrics.get("step_ms", math.nan),
            startup_seconds=metrics.get("startup_seconds", math.nan),
            seconds=max(state.seconds if state else 0.0, _told_seconds(metrics)),
            cpus=claimed_cpus(training, sweep.tune.concurrent),
            gpus=float(training.workers if training.use_gpu else 0),
        )
    if result.error is not None:
        return replace(row, status="failed", reason=str(result.error).strip().splitlines()[-1])
    stopped = row.status == "unfinished" and metrics.get("done", False)
    return replace(row, status="stopped") if stopped else row
