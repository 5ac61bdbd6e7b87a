"""Train the face parser: `python -m ray_jobs.pretrain_parser --config configs/parser.yaml key=value ...`.

It learns from the masks of a data set of multi-view faces (one view of each sample a step, drawn anew in each
epoch), or from CelebAMask-HQ. Ctrl-C stops after the current step and leaves a checkpoint and a parser;
`--resume RUN` goes on from there.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ray.exceptions import RayError
from torch import Tensor

from dfmvr.config import Settings, load_settings
from dfmvr.data.datasets.celebamask_hq import picture_numbers
from dfmvr.data.manifest import SPLITS, read_manifest
from dfmvr.data.rejects import Rejects
from dfmvr.evaluation.parsing import intersection_over_union
from dfmvr.networks.bisenet import BiSeNet
from dfmvr.networks.parser import ParserCard, save_parser
from dfmvr.networks.weights import WEIGHTS_FILE, load_weights
from dfmvr.types import FRONT
from ray_jobs import scaling
from ray_jobs.monitor import Event
from ray_jobs.pretrain_parser_worker import count_regions, open_data, open_split, train_on_worker
from ray_jobs.reading import iterate_batches
from ray_jobs.runs import (
    Run,
    best_checkpoint,
    fetch_checkpoint,
    new_run,
    newest_state,
    open_run,
    upload_folder,
    with_absolute_data,
    write_metrics,
)
from ray_jobs.train import (
    STOPPED,
    TrainingFailedError,
    fit,
    is_finished,
    stop_on_signals,
)

EXAMPLES = """examples:
  python -m ray_jobs.pretrain_parser --config configs/parser.yaml
  python -m ray_jobs.pretrain_parser --config configs/parser.yaml data.uri=data/quickstart training.epochs=3
  python -m ray_jobs.pretrain_parser --config configs/parser.yaml parser.celebamask_hq=data/CelebAMask-HQ
  python -m ray_jobs.pretrain_parser --resume 20261231-235959-parser-1a2b
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, build, run, report; return the exit status."""
    arguments = parse(argv)
    stop = threading.Event()
    try:
        run = choose_run(arguments)
        rows = check_data(run.settings)
        scaling.init_ray(arguments.address)
        if not is_finished(run):
            stop_on_signals(stop)
            train(run, rows, stop)
        metrics = finish(run, rows)
    except (ValueError, OSError, TrainingFailedError, RayError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    report(run, metrics)
    return 0 if metrics["epochs"] >= run.settings.training.epochs else STOPPED if stop.is_set() else 1


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        "python -m ray_jobs.pretrain_parser",
        description="Train the face parser (BiSeNet, 10 regions), on Ray.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--config", metavar="FILE", help="settings of a new run (YAML)")
    which.add_argument("--resume", metavar="RUN", help="go on with a run: its id, or its folder's address")
    parser.add_argument("--run-id", metavar="ID", help="id of the new run (default: time, name, random part)")
    parser.add_argument("--address", help="a running Ray cluster (default: RAY_ADDRESS, else start one here)")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings to change")
    arguments = parser.parse_intermixed_args(argv)
    if arguments.resume and arguments.run_id:
        parser.error("--run-id names a new run; expected it without --resume")
    return arguments


def choose_run(arguments: argparse.Namespace) -> Run:
    """Name a new run, or find the one to resume; CelebAMask-HQ has front views alone.

    Raises:
        SettingsError: the settings are wrong.
        RunError: the run exists already, or does not.
    """
    if arguments.resume:
        return open_run(arguments.resume, arguments.overrides)
    settings = load_settings(arguments.config, arguments.overrides)
    if settings.parser.celebamask_hq:
        settings = dataclasses.replace(settings, data=dataclasses.replace(settings.data, views=(FRONT,)))
    return new_run(settings, arguments.run_id)


def check_data(settings: Settings) -> dict[str, int]:
    """Return the rows of every split, before anything is started.

    Raises:
        FileNotFoundError: there are no complete data.
        ValueError: they do not fit the settings.
    """
    data, folder = settings.data, settings.parser.celebamask_hq
    if data.missing_mask_share:
        raise ValueError(
            "data.missing_mask_share: expected 0, masks are what a parser learns, "
            f"got {data.missing_mask_share}"
        )
    if folder:
        rows = {split: len(picture_numbers(folder, split)) for split in SPLITS}
    else:
        manifest = read_manifest(data.uri)
        rows = manifest.rows
        if manifest.image_size != data.image_size:
            expected = f"{manifest.image_size} as in {data.uri}"
            raise ValueError(f"data.image_size: expected {expected}, got {data.image_size}")
    few = {split: count for split, count in rows.items() if count < settings.training.workers}
    if few:
        raise ValueError(f"{folder or data.uri}: expected at least one picture a worker, got {few}")
    return rows


def train(
    run: Run,
    rows: dict[str, int],
    stop: threading.Event | None = None,
    watch: Callable[[Event], None] = lambda event: None,
) -> None:
    """Train a run to its end, as `ray_jobs.train.train` does with the reconstruction network."""
    fit(run, rows, train_on_worker, open_data, stop, watch)


def finish(run: Run, rows: dict[str, int]) -> dict[str, Any]:
    """Test the best network, write it as a parser's folder, and write the metrics.

    Raises:
        TrainingFailedError: there is no checkpoint at all.
    """
    newest, best = newest_state(run.checkpoints), best_checkpoint(run.checkpoints)
    if newest is None or best is None:
        raise TrainingFailedError(f"{run.checkpoints}: expected a checkpoint, found none")
    name, state = best
    settings = with_absolute_data(run.settings)
    network = BiSeNet(settings.parser.network)
    with tempfile.TemporaryDirectory() as folder:
        fetch_checkpoint(run.checkpoints, name, Path(folder) / "checkpoint")
        load_weights(network, Path(folder) / "checkpoint" / WEIGHTS_FILE)
        figures = intersection_over_union(count_test_split(network, settings, rows))
        card = ParserCard(
            network=settings.parser.network,
            trained_on=run.settings.parser.celebamask_hq or run.settings.data.uri,
            run_id=run.id,
            step=state.step,
            config_hash=state.config_hash,
            licence="Apache-2.0",
            metrics=figures,
        )
        card = save_parser(Path(folder) / "model", network, card)
        upload_folder(Path(folder) / "model", run.path("model"))
    metrics = {
        "run_id": run.id,
        "step": newest.step,
        "epochs": newest.epoch,
        "seconds": round(newest.seconds, 1),
        "best_checkpoint": name,
        "miou": figures["mean"],
        "iou": {region: iou for region, iou in figures.items() if region != "mean"},
        "weights_hash": card.weights_hash,
        "config_hash": newest.config_hash,
        "versions": newest.versions,
        "history": newest.history,
    }
    write_metrics(run, metrics)
    return metrics


def count_test_split(network: BiSeNet, settings: Settings, rows: dict[str, int]) -> Tensor:
    """Count the regions of the test split, here."""
    rejects = Rejects(settings.data.max_bad_share, rows["test"])
    batches = iterate_batches(
        open_split(settings, "test").iterator(), settings.data,
        epoch=0, seed=0, rejects=rejects, shuffle=False, drop_last=False,
    )  # fmt: skip
    return count_regions(network, settings.parser.network.image_size, batches)


def report(run: Run, metrics: dict[str, Any]) -> None:
    """Print how the run ended and where its results are."""
    print(f"{metrics['epochs']} epochs, {metrics['step']} steps, {metrics['seconds'] / 60:.1f} min")
    for region, iou in {**metrics["iou"], "mean": metrics["miou"]}.items():
        print(f"  {region:<12}{iou:8.3f}")
    print(f"parser: {run.path('model')}")


if __name__ == "__main__":
    sys.exit(main())
