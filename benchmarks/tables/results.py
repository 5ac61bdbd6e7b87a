"""What has been trained and measured, and the statistics over it."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.tables.systems import Condition, System
from dfmvr.evaluation.summary import share_below
from dfmvr.files import write_atomic

Rows = list[dict[str, Any]]
DRAWS = 2000
"""Resamplings of the people behind an interval."""


@dataclass(frozen=True)
class Measured:
    """The rows of one system in one condition; with several seeds, their means."""

    rmse_mm: NDArray[np.float64]
    """[N] of each sample."""
    values: dict[str, float]
    """Means over samples by name (measuring.VALUES)."""
    subjects: tuple[str, ...]
    """[N]"""
    of_seeds: tuple[float, ...] = ()
    """Mean RMSE of each seed."""

    @property
    def mean(self) -> float:
        """Mean RMSE, mm."""
        return float(self.rmse_mm.mean())

    @property
    def interval(self) -> tuple[float, float]:
        """95 % bounds of the mean RMSE over resampled people."""
        _, person = np.unique(self.subjects, return_inverse=True)
        sums, counts = np.bincount(person, self.rmse_mm), np.bincount(person)
        picks = np.random.default_rng(0).integers(len(sums), size=(DRAWS, len(sums)))
        low, high = np.quantile(sums[picks].sum(1) / counts[picks].sum(1), [0.025, 0.975])
        return float(low), float(high)

    def below(self, other: Measured) -> dict[str, float]:
        """Return the share by which this mean RMSE lies below another's on the same samples, with bounds."""
        return share_below(self.rmse_mm, other.rmse_mm, self.subjects, DRAWS)


class Runs:
    """The folder of all runs; what is measured is kept beside each.

    Args:
        root: training.runs.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def id(self, system: System, seed: int) -> str:
        """Return the id of a system's run."""
        return f"tables-{system.name}-s{seed}"

    def model(self, system: System, seed: int) -> Path:
        """Return the folder of its model."""
        return self.root / self.id(system, seed) / "model"

    def training(self, system: System, seed: int) -> dict[str, Any] | None:
        """Return what training wrote of a finished run."""
        file = self.root / self.id(system, seed) / "metrics.json"
        return json.loads(file.read_text())["training"] if file.is_file() else None

    def trained_seeds(self, system: System) -> tuple[int, ...]:
        """Return the seeds whose runs are finished, or were stopped after an epoch or more."""
        return tuple(seed for seed in system.seeds if (self.training(system, seed) or {}).get("epochs"))

    def rows(
        self,
        system: System | None,
        seed: int,
        condition: Condition,
        names: Sequence[str],
        make: Callable[[], Rows],
    ) -> Rows:
        """Return the rows of a run's measurement by the samples' names: stored ones, else made and stored.

        They are made anew when the weights have changed or a sample is missing. No system: the mean face.
        """
        training = {} if system is None else self.training(system, seed) or {}
        weights = training.get("weights_hash")
        folder = self.root / ("tables-mean_face" if system is None else self.id(system, seed))
        file = folder / "tables" / f"{condition.name}.json"
        if file.is_file():
            stored = json.loads(file.read_text())
            found = {row["sample_id"]: row for row in stored["rows"]}
            if stored["weights"] == weights and set(names) <= set(found):
                return [found[name] for name in names]
        rows = make()
        write_atomic(file, json.dumps({"weights": weights, "rows": rows}).encode())
        return rows


def combine(of_seeds: Sequence[Rows]) -> Measured:
    """Return the mean over seeds, sample by sample."""
    rmse = np.array([[row["rmse"] for row in rows] for rows in of_seeds])
    names = [name for name in of_seeds[0][0] if name not in ("sample_id", "subject_id")]
    values = {name: float(np.mean([row[name] for rows in of_seeds for row in rows])) for name in names}
    subjects = tuple(str(row["subject_id"]) for row in of_seeds[0])
    return Measured(rmse.mean(0), values, subjects, tuple(rmse.mean(1).tolist()))


def best_of(views: Sequence[Rows]) -> Rows:
    """Return for each sample the row of the view that came out best (an oracle: it needs the truth)."""
    return [min(rows, key=lambda row: float(row["rmse"])) for rows in zip(*views, strict=True)]
