"""Train a network: `python -m ray_jobs.train --config configs/quickstart.yaml key=value ...`.

Ctrl-C stops after the current step and leaves a checkpoint; `--resume RUN` goes on from there.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import ray
import ray.train
from ray.data import Dataset, ExecutionOptions
from ray.exceptions import RayError
from ray.train.torch import TorchConfig, TorchTrainer

from dfmvr.config import Settings, load_settings
from dfmvr.data import storage
from dfmvr.data.manifest import Manifest, read_manifest
from dfmvr.data.on_the_fly.generator import planned_manifest
from dfmvr.data.settings import DataSettings
from dfmvr.networks.face_network import build_network
from dfmvr.networks.mulen_unet import SIZE_MULTIPLE
from dfmvr.networks.parser import FaceParser
from dfmvr.networks.weights import WEIGHTS_FILE, ModelCard, load_weights, save_model
from dfmvr.training.checkpoint import TrainingState
from dfmvr.training.step import TrainingSettings
from ray_jobs import scaling
from ray_jobs.dry_run import dry_run
from ray_jobs.monitor import Event, start_monitor
from ray_jobs.progress import Progress
from ray_jobs.reading import training_dataset
from ray_jobs.runs import (
    Run,
    best_checkpoint,
    checkpoint_state,
    fetch_checkpoint,
    new_run,
    newest_intact_checkpoint,
    newest_state,
    open_run,
    upload_folder,
    with_absolute_data,
    write_metrics,
    write_settings,
)
from ray_jobs.train_worker import Job, train_on_worker

EXAMPLES = """examples:
  python -m ray_jobs.train --config configs/quickstart.yaml
  python -m ray_jobs.train --config configs/small.yaml optimiser.learning_rate=2e-4 training.epochs=40
  python -m ray_jobs.train --config configs/small.yaml data.uri=s3://bucket/faces training.runs=s3://bucket/runs
  python -m ray_jobs.train --config configs/paper.yaml --dry-run
  python -m ray_jobs.train --resume 20261231-235959-small-1a2b
"""
STOPPED = 130
"""Exit status after Ctrl-C, as shells have it."""
OpenData = dict[str, Dataset | Callable[[], Dataset]]
"""Split -> what opens it; called whenever the workers (re)start."""


class TrainingFailedError(RuntimeError):
    """The run has ended before its last epoch; the message says why."""


@dataclass(frozen=True)
class Outcome:
    """How a run ended."""

    metrics: dict[str, Any]
    model: str
    """Folder of the exported model."""
    complete: bool
    """A checkpoint of the last epoch's end is stored."""


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, build, run, report; return the exit status."""
    arguments = parse(argv)
    stop = threading.Event()
    try:
        if arguments.dry_run:
            dry_run(load_settings(arguments.config, arguments.overrides))
            return 0
        run = choose_run(arguments)
        manifest = check_data(run.settings)
        if not is_finished(run):
            storage.check_writable(run.uri.rpartition("/")[0])  # of all runs: none is begun yet
            scaling.init_ray(arguments.address)
            stop_on_signals(stop)
            train(run, manifest, stop)
        outcome = finish(run)
    except (ValueError, OSError, TrainingFailedError, RayError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    report(run, outcome)
    if not outcome.complete and not stop.is_set():
        print("error: the end was reached but not stored; see the warnings above", file=sys.stderr)
        return 1
    return 0 if outcome.complete else STOPPED


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        "python -m ray_jobs.train",
        description="Train a network on a data set of multi-view faces, on Ray.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--config", metavar="FILE", help="settings of a new run (YAML)")
    which.add_argument("--resume", metavar="RUN", help="go on with a run: its id, or its folder's address")
    parser.add_argument("--run-id", metavar="ID", help="id of the new run (default: time, name, random part)")
    parser.add_argument(
        "--dry-run", action="store_true", help="run one step on made-up data here, and tell what it costs"
    )
    parser.add_argument("--address", help="a running Ray cluster (default: RAY_ADDRESS, else start one here)")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings to change")
    arguments = parser.parse_intermixed_args(argv)
    if arguments.resume and arguments.dry_run:
        parser.error("--dry-run looks at the settings of a new run; expected it with --config")
    if arguments.resume and arguments.run_id:
        parser.error("--run-id names a new run; expected it without --resume")
    return arguments


def choose_run(arguments: argparse.Namespace) -> Run:
    """Name a new run, or find the one to resume.

    Raises:
        SettingsError: the settings are wrong.
        RunError: the run exists already, or does not.
    """
    if arguments.resume:
        prefix = "training.runs="
        runs = [item.removeprefix(prefix) for item in arguments.overrides if item.startswith(prefix)]
        return open_run(arguments.resume, arguments.overrides, runs[-1] if runs else "runs")
    return new_run(load_settings(arguments.config, arguments.overrides), arguments.run_id)


def check_data(settings: Settings) -> Manifest:
    """Read the data set's manifest and compare it with the settings, before anything is started.

    Raises:
        FileNotFoundError: there is no complete data set.
        ValueError: it does not fit the settings.
    """
    made = settings.data.on_the_fly
    manifest = (
        planned_manifest(settings.data, settings.synthetic) if made else read_manifest(settings.data.uri)
    )
    if settings.losses.needs_parser:
        FaceParser.load(settings.parser.weights)
    data, n_views = settings.data, settings.network.n_views
    multiple = SIZE_MULTIPLE * settings.network.input_stride
    if data.image_size % multiple:
        raise ValueError(
            f"data.image_size: expected a multiple of {multiple}, which the network can divide, "
            f"got {data.image_size}"
        )
    if manifest.image_size != data.image_size:
        raise ValueError(
            f"data.image_size: expected {manifest.image_size} as in {data.uri}, got {data.image_size}"
        )
    if missing := set(data.views) - set(manifest.views):
        raise ValueError(
            f"data.views: expected some of {manifest.views} as in {data.uri}, got {sorted(missing)}"
        )
    if len(data.views) != n_views:
        raise ValueError(
            f"network.n_views: expected {len(data.views)}, one for each of data.views, got {n_views}"
        )
    if data.missing_view_share and data.tell_missing_views != settings.network.view_flags:
        raise ValueError(
            f"data.tell_missing_views: expected {str(settings.network.view_flags).lower()} as "
            f"network.view_flags, got {str(data.tell_missing_views).lower()}"
        )
    if data.fewest_views and settings.network.name not in ("set_rednet", "resnet_per_view"):
        raise ValueError(
            "data.fewest_views: expected 0 for a network whose views have their places, "
            f"{settings.network.name}, got {data.fewest_views}"
        )
    if data.single_views and settings.network.name != "resnet_per_view":
        raise ValueError(
            "data.single_views: expected false for a network that looks at all views together, "
            f"{settings.network.name}, got true"
        )
    if manifest.rows["validation"] < settings.training.workers:
        raise ValueError(
            f"{data.uri}: expected at least one validation row a worker, got {manifest.rows['validation']} "
            f"rows for {settings.training.workers} workers"
        )
    return manifest


def is_finished(run: Run) -> bool:
    """Whether a run has done all its epochs."""
    newest = newest_state(run.checkpoints)
    return newest is not None and newest.epoch >= run.settings.training.epochs


def train(
    run: Run,
    manifest: Manifest,
    stop: threading.Event | None = None,
    watch: Callable[[Event], None] = lambda event: None,
) -> None:
    """Train a run to its end on the Ray cluster that this process is connected to.

    Args:
        run: new or resumed.
        manifest: of its data set.
        stop: set it to stop after the current step, with a checkpoint.
        watch: is called with every event.

    Raises:
        PreflightError: the cluster is too small.
        TrainingFailedError: training ended early, and not because of `stop`.
    """
    fit(run, manifest.rows, train_on_worker, open_data, stop, watch)


def fit(
    run: Run,
    rows: dict[str, int],
    train_loop: Callable[[dict[str, Job]], None],
    open_data: Callable[[Job], OpenData],
    stop: threading.Event | None = None,
    watch: Callable[[Event], None] = lambda event: None,
) -> None:
    """Run a training loop on every worker, and show what it tells.

    Args:
        run: new or resumed.
        rows: of every split.
        train_loop: what every worker runs.
        open_data: returns what opens each split, whenever the workers (re)start.
        stop: as in `train`.
        watch: as in `train`.

    Raises:
        PreflightError: as `train`.
        TrainingFailedError: as `train`.
    """
    resources = ray.cluster_resources()
    scaling.preflight(run.settings.training, resources)
    write_settings(run)
    monitor = start_monitor()
    job = Job(run, with_absolute_data(run.settings), monitor, rows)
    fitting = Fitting(build_trainer(job, resources, train_loop, open_data(job)))
    before = newest_state(run.checkpoints)
    print(f"run {run.id} in {run.uri}: {job.steps_per_epoch} steps an epoch, {job.total_steps} in all")
    asked = False
    with Progress(run, job.total_steps, before.step if before else 0) as progress:
        silence = Silence(run.settings.training.hang_timeout_s)
        while fitting.is_running(wait=0.3):
            if stop is not None and stop.is_set() and not asked:
                asked = True
                progress.say("stopping after this step; a second Ctrl-C ends at once, without a checkpoint")
                monitor.request_stop.remote()
            events: list[Event] = ray.get(monitor.take.remote())
            if words := silence.notice(events):
                progress.say(words)
            _pass_on(events, progress, watch)
        _pass_on(ray.get(monitor.take.remote()), progress, watch)
    ray.kill(monitor)
    if progress.fatal or fitting.error is not None:
        raise TrainingFailedError(progress.fatal or f"training failed: {_root_cause(fitting.error)}")


def build_trainer(
    job: Job, resources: dict[str, float], train_loop: Callable[[dict[str, Job]], None], datasets: OpenData
) -> TorchTrainer:
    """Settings -> Ray Train: data, scaling, failures, checkpoints."""
    training = job.settings.training
    system, path = storage.filesystem(job.run.uri)
    return TorchTrainer(
        train_loop,
        train_loop_config={"job": job},
        datasets=datasets,
        dataset_config=ray.train.DataConfig(
            # Overrides the data sets' own options; which rows a worker gets must not depend on timing.
            execution_options=ExecutionOptions(preserve_order=True),
            enable_shard_locality=False,
        ),
        scaling_config=scaling.scaling_config(training, resources),
        torch_config=TorchConfig(
            backend="nccl" if training.use_gpu else "gloo", timeout_s=training.hang_timeout_s
        ),
        run_config=ray.train.RunConfig(
            name="checkpoints",  # a folder of the run; Ray goes on by itself with what it finds there
            storage_path=path,
            storage_filesystem=system,
            failure_config=ray.train.FailureConfig(max_failures=training.max_failures),
            checkpoint_config=ray.train.CheckpointConfig(
                num_to_keep=training.keep,
                checkpoint_score_attribute="val_loss",
                checkpoint_score_order="min",
            ),
        ),
    )


def open_data(job: Job) -> OpenData:
    """Return what opens the splits of a set of faces; nothing where the workers make them."""
    if job.settings.data.on_the_fly:
        return {}
    return {
        "train": partial(open_training_data, job.settings, job.run.checkpoints),
        "validation": partial(open_validation_data, job.settings.data),
    }


def open_training_data(settings: Settings, checkpoints: str) -> Dataset:
    """Open the training split so that its first pass is shuffled as the epoch to go on with."""
    epoch = epoch_to_go_on_with(checkpoints)
    return training_dataset(settings.data, "train", seed=settings.seed, start_epoch=epoch)


def epoch_to_go_on_with(checkpoints: str) -> int:
    """Return the epoch of the checkpoint that the workers will choose; 0 where there is none."""
    name, _ = newest_intact_checkpoint(checkpoints)
    return checkpoint_state(checkpoints, name).epoch if name else 0


def open_validation_data(settings: DataSettings) -> Dataset:
    """Open the validation split in stored order, with the true vertices."""
    return training_dataset(settings, "validation", truth=("dense_vertices",))


class Silence:
    """Notices that nothing is heard of a run.

    Args:
        limit_s: seconds after which that is worth telling.
    """

    def __init__(self, limit_s: float) -> None:
        self._limit_s, self._heard_at, self._last = limit_s, time.monotonic(), "the start"

    def notice(self, events: Sequence[Event]) -> str:
        """Take the newest events; return words about a long silence, once each time the limit has passed."""
        now = time.monotonic()
        if events:
            self._last = f"step {events[-1].step}"
        elif now - self._heard_at <= self._limit_s:
            return ""
        self._heard_at = now
        if events:
            return ""
        return (
            f"nothing heard of training for {self._limit_s:g} s since {self._last}: does it wait for nodes?"
        )


class Fitting:
    """`trainer.fit()` in a thread, so that the main thread shows progress and takes signals.

    (In the main thread Ray would install its own handler, which aborts without a checkpoint.)
    """

    def __init__(self, trainer: TorchTrainer) -> None:
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._fit, args=(trainer,), daemon=True)
        self._thread.start()

    def is_running(self, wait: float) -> bool:
        """Wait up to `wait` seconds for the end; return whether it has not come."""
        self._thread.join(wait)
        return self._thread.is_alive()

    def _fit(self, trainer: TorchTrainer) -> None:
        try:
            trainer.fit()
        except Exception as error:  # noqa: BLE001  # handed to the main thread, which raises
            self.error = error


def finish(run: Run) -> Outcome:
    """Export the best model and write the metrics.

    Raises:
        TrainingFailedError: there is no checkpoint at all.
    """
    newest, best = newest_state(run.checkpoints), best_checkpoint(run.checkpoints)
    if newest is None or best is None:
        raise TrainingFailedError(f"{run.checkpoints}: expected a checkpoint, found none")
    name, state = best
    card = export_model(run, name, state)
    metrics = {
        "run_id": run.id,
        "step": newest.step,
        "epochs": newest.epoch,
        "seconds": round(newest.seconds, 1),
        "skipped_steps": newest.skipped_steps,
        "failed_checkpoints": newest.failed_checkpoints,
        "best_checkpoint": name,
        "best": state.validation,
        "weights_hash": card.weights_hash,
        "config_hash": newest.config_hash,
        "face_model_hash": newest.face_model_hash,
        "versions": newest.versions,
        "history": newest.history,
    }
    write_metrics(run, metrics)
    return Outcome(metrics, run.path("model"), newest.epoch >= run.settings.training.epochs)


def export_model(run: Run, checkpoint: str, state: TrainingState) -> ModelCard:
    """Write a checkpoint's network as a model folder, `model/` in the run's."""
    settings = run.settings
    network = build_network(settings.network)
    with tempfile.TemporaryDirectory() as folder:
        fetch_checkpoint(run.checkpoints, checkpoint, Path(folder) / "checkpoint")
        load_weights(network, Path(folder) / "checkpoint" / WEIGHTS_FILE)
        card = ModelCard(
            network=settings.network,
            image_size=settings.data.image_size,
            view_names=settings.data.views,
            face_model_hash=state.face_model_hash,
            face_model_level=settings.face_model.level,
            run_id=run.id,
            step=state.step,
            config_hash=state.config_hash,
            licence="Apache-2.0",
            metrics={k: v for k, v in state.validation.items() if k.startswith("val_")},
        )
        card = save_model(Path(folder) / "model", network, card)
        upload_folder(Path(folder) / "model", run.path("model"))
    return card


def stop_on_signals(stop: threading.Event) -> None:
    """Make SIGINT and SIGTERM set the event; a second one ends the process at once."""

    def on_signal(number: int, frame: object) -> None:
        if stop.is_set():
            os._exit(128 + number)
        stop.set()

    signal.signal(signal.SIGINT, on_signal)
    signal.signal(signal.SIGTERM, on_signal)


def report(run: Run, outcome: Outcome) -> None:
    """Print how the run ended and where its results are."""
    metrics = outcome.metrics
    best = "  ".join(f"{name} {value:.4g}" for name, value in metrics["best"].items())
    where = run.id if run.settings.training.runs == TrainingSettings().runs else run.uri
    end = "done" if outcome.complete else f"stopped; go on with --resume {where}"
    print(f"{end}: {metrics['epochs']} epochs, {metrics['step']} steps, {metrics['seconds'] / 60:.1f} min")
    if metrics["skipped_steps"] or metrics["failed_checkpoints"]:
        print(
            f"skipped steps: {metrics['skipped_steps']}, failed checkpoints: {metrics['failed_checkpoints']}"
        )
    print(f"best checkpoint: {metrics['best_checkpoint']}  {best}")
    print(f"weights: {outcome.model}/{WEIGHTS_FILE}")


def _pass_on(events: list[Event], progress: Progress, watch: Callable[[Event], None]) -> None:
    progress.show(events)
    for event in events:
        watch(event)


def _root_cause(error: BaseException | None) -> str:
    """The last line of a worker's traceback, which says what happened."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1].strip() if lines else type(error).__name__


if __name__ == "__main__":
    sys.exit(main())
