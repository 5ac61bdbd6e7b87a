"""What a sweep prints while it runs: a line when a trial starts, after each of its epochs and at its end."""

from __future__ import annotations

from typing import Any

from ray.tune import Callback
from ray.tune.experiment import Trial

from ray_jobs.tune_space import Point
from ray_jobs.tune_sweep import Sweep


class SweepProgress(Callback):
    """Prints lines, and keeps the trials' order; Ray Tune calls it.

    Args:
        sweep: the sweep.
        count: its trials in all.
    """

    def __init__(self, sweep: Sweep, count: int) -> None:
        self._sweep, self._count = sweep, count
        self._order: list[str] = []

    def setup(self, *arguments: Any, **info: Any) -> None:
        """Read the order so far: a sweep that goes on has this callback as it was at the very start."""
        self._order = self._sweep.trial_order()

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Tell a trial's number and point."""
        if trial.trial_id not in self._order:
            self._order.append(trial.trial_id)
            self._sweep.write_trial_order(self._order)
        number = self._order.index(trial.trial_id) + 1
        print(f"trial {number} of {self._count} ({trial.trial_id}): {describe(trial.config)}", flush=True)

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any
    ) -> None:
        """Tell an epoch's figure."""
        if "val_dense_mm" in result:
            figure = f"{result['val_dense_mm']:.3f} mm"
            print(f"  {trial.trial_id} epoch {result['epoch']}: {figure}", flush=True)

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Tell that a trial has ended."""
        print(f"  {trial.trial_id} ended after epoch {trial.last_result.get('epoch', 0)}", flush=True)

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Tell that a trial has failed; the sweep goes on."""
        print(f"  {trial.trial_id} failed, the sweep goes on", flush=True)


def describe(point: Point) -> str:
    """Return a point in a line."""
    return "  ".join(f"{name} {short(value)}" for name, value in point.items())


def short(value: object) -> str:
    """Return a value with four digits that matter."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
