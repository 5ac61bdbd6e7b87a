"""Training what the tables compare, each system as `ray_jobs.train` does it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable, Sequence

from benchmarks.tables.results import Runs
from benchmarks.tables.systems import BY_NAME, SYSTEMS, System


def train_all(runs: Runs, names: Iterable[str], epochs: int, overrides: Sequence[str]) -> None:
    """Train every seed of some systems."""
    for name in names:
        for seed in BY_NAME[name].seeds:
            train(runs, BY_NAME[name], seed, epochs, overrides)


def train(runs: Runs, system: System, seed: int, epochs: int, overrides: Sequence[str]) -> None:
    """Train a system, or go on with a run that was stopped; one that is finished is left alone.

    Raises:
        SystemExit: training failed.
    """
    epochs *= system.epochs
    done = runs.training(system, seed)
    if done and done["epochs"] >= epochs:
        return
    run_id = runs.id(system, seed)
    more = [f"training.runs={runs.root}", f"training.epochs={epochs}", *overrides]
    if (runs.root / run_id / "config.yaml").is_file():
        which = ["--resume", run_id]
    else:
        which = ["--config", f"configs/{system.config}.yaml", "--run-id", run_id]
        more.append(f"seed={seed}")
    print(f"== {run_id}", flush=True)
    command = [sys.executable, "-m", "ray_jobs.train", *which, *more]
    if status := subprocess.run(command, check=False).returncode:
        raise SystemExit(status)


def training_times(runs: Runs) -> dict[str, dict[str, float]]:
    """Return what each run took."""
    found = {}
    for system in SYSTEMS:
        for seed in runs.trained_seeds(system):
            training = runs.training(system, seed) or {}
            found[runs.id(system, seed)] = {name: training[name] for name in ("epochs", "step", "seconds")}
    return found
