"""One trial of a sweep: a run as `ray_jobs.train` makes them, whose epochs are reported to Ray Tune.

The function of a trial drives a TorchTrainer and passes on what the training's monitor tells. (Ray's
TuneReportCallback would do so from the training's controller. But it needs one more process a trial; its
driver never hears that a trial shall stop, so that no process can be used again; and a last report that Tune
fetches after the training's end blocks the trial for ever.) `epoch` is the measure of time: Tune counts its
own iterations anew after a restart.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ray
import ray.train
from ray import tune

from dfmvr.data import storage
from dfmvr.training.step import TrainingSettings
from ray_jobs.monitor import Event
from ray_jobs.runs import Run, newest_state, with_absolute_data
from ray_jobs.scaling import PreflightError
from ray_jobs.train import check_data, finish, fit, is_finished, open_data
from ray_jobs.train_worker import Job, Worker, share_cores, work
from ray_jobs.tune_space import Point
from ray_jobs.tune_sweep import Sweep

TRIAL_CPUS = 0.1
"""CPUs that a trial's own process claims beside its workers: it waits most of the time (Ray refuses 0)."""
_READER_CPUS = 1.0
"""CPUs left to Ray Data, shared by all trials."""
_SECONDS_TO_STOP = 600
"""A stopped trial finishes its step and writes a checkpoint before its process takes the next trial."""


PACE_FILE = "pace.json"
"""In a trial's folder: the time of its last step and of its start."""


class TrialError(ValueError):
    """A trial cannot be judged; the message says why."""


def worker_cpus(training: TrainingSettings, concurrent: int, resources: Mapping[str, float]) -> float:
    """Return the CPUs that every worker of every trial claims.

    That is training.cpus_per_worker, or where that is 0 an equal share of what readers and trials leave.

    Args:
        training: of a trial.
        concurrent: trials at the same time.
        resources: of the cluster, as `ray.cluster_resources()` gives them.

    Raises:
        PreflightError: the cluster is too small for that many trials at a time, and they would wait for ever.
    """
    cpus, gpus = resources.get("CPU", 0.0), resources.get("GPU", 0.0)
    workers = concurrent * training.workers
    left = cpus - _READER_CPUS - concurrent * TRIAL_CPUS
    each = training.cpus_per_worker or math.floor(100 * left / workers) / 100
    if each < 0.01 or workers * each > left + 1e-9:
        raise PreflightError(
            f"{concurrent} trials at a time, each of {training.workers} workers and {TRIAL_CPUS} CPU of its "
            f"own, and {_READER_CPUS:g} CPU to read data: expected more than {cpus:g} CPUs; lower "
            "concurrent, settings.training.workers or settings.training.cpus_per_worker"
        )
    if training.use_gpu and gpus < workers:
        raise PreflightError(
            f"settings.training.use_gpu: expected {workers} GPUs, one a worker of {concurrent} trials at a "
            f"time, got {gpus:g}; lower concurrent or settings.training.workers"
        )
    return each


def claimed_cpus(training: TrainingSettings, concurrent: int) -> float:
    """Return the CPUs that a trial keeps from others: its workers', its own and its share of reading."""
    return training.workers * training.cpus_per_worker + TRIAL_CPUS + _READER_CPUS / concurrent


def trainable(sweep: Sweep) -> Callable[[Point], None]:
    """Return the function that Ray Tune calls with the point of each trial."""
    bases = {name: with_absolute_data(base) for name, base in sweep.bases.items()}
    absolute = dataclasses.replace(sweep, bases=bases)

    def trial(point: Point) -> None:
        os.environ["TUNE_FUNCTION_THREAD_TIMEOUT_S"] = str(_SECONDS_TO_STOP)  # read here, by Tune's actor
        run_trial(absolute, tune.get_context().get_trial_id(), point)

    return trial


def run_trial(sweep: Sweep, trial_id: str, point: Point) -> None:
    """Train a trial to its end, or until Tune wants no more of it, from its newest checkpoint on.

    Raises:
        ValueError: its settings do not fit together or to the data, or its figures are not finite.
        TrainingFailedError: training ended early.
    """
    settings = sweep.settings_at(point)
    cpus = worker_cpus(settings.training, sweep.tune.concurrent, ray.cluster_resources())
    run = sweep.run(trial_id, point, cpus)
    reports = Reports(run, sweep.tune.objectives)
    manifest = check_data(run.settings)
    reports.tell_newest()
    if not is_finished(run) and not reports.stop.is_set():
        fit(run, manifest.rows, loop_beside(sweep.tune.concurrent), open_data, reports.stop, reports)
    if reports.error is not None:
        raise reports.error
    finish(run)


def loop_beside(trials: int) -> Callable[[dict[str, Job]], None]:
    """Return `train_on_worker` for workers that share their node's cores with other trials'."""

    def train_loop(config: dict[str, Job]) -> None:
        worker = Worker(config["job"])
        share_cores(ray.train.get_context().get_local_world_size() * trials)
        work(worker)

    return train_loop


class Reports:
    """Passes epochs on to Tune; sets `stop` when Tune, or a figure that is not finite, ends the trial.

    Args:
        run: the trial's.
        objectives: figures that every report must have.
        report: takes the figures; raises SystemExit where Tune wants the trial to end.
    """

    def __init__(
        self, run: Run, objectives: Sequence[str], report: Callable[[dict[str, Any]], None] = tune.report
    ) -> None:
        self.stop = threading.Event()
        self.error: BaseException | None = None
        """What ends the trial early."""
        self._run, self._objectives, self._report = run, objectives, report
        self._began = time.monotonic()
        self._pace = {"step_ms": math.nan, "startup_seconds": math.nan}

    def __call__(self, event: Event) -> None:
        """Take an event of the training."""
        match event.kind:
            case "start":
                self._pace["startup_seconds"] = time.monotonic() - self._began
            case "step":
                self._pace["step_ms"] = event.values["step_ms"]
            case "epoch" if "val_loss" in event.values and not self.stop.is_set():
                storage.write_bytes(self._run.path(PACE_FILE), json.dumps(self._pace).encode())
                self._tell(event.epoch, event.values)

    def tell_newest(self) -> None:
        """Tell the last epoch of a run that goes on: Tune may have been stopped before it heard of it."""
        state = newest_state(self._run.checkpoints)
        if state is None or "val_loss" not in state.validation:
            return
        if storage.exists(self._run.path(PACE_FILE)):
            self._pace |= json.loads(storage.read_bytes(self._run.path(PACE_FILE)))
        self._tell(state.epoch, state.validation)

    def _tell(self, epoch: int, values: Mapping[str, float]) -> None:
        figures = {**values, **self._pace, "epoch": epoch}
        try:
            self._check(figures)
            self._report(figures)
        except (TrialError, SystemExit) as end:
            self.error = end
            self.stop.set()

    def _check(self, figures: Mapping[str, float]) -> None:
        for name in self._objectives:
            if name not in figures:
                raise TrialError(
                    f"{name}: expected it among the validation's figures, got {', '.join(figures)}; "
                    "the validation split must have the true vertices (dense_vertices)"
                )
            if not math.isfinite(figures[name]):
                raise TrialError(
                    f"{name}: expected a finite figure after epoch {figures['epoch']}, got {figures[name]}"
                )
