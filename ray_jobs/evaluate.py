"""Measure a trained network in millimetres: `python -m ray_jobs.evaluate --run runs/quickstart`.

The test split goes through the network once, on Ray Data; every sample is measured where it is predicted.
metrics.json, report.html and evaluation/samples.parquet go to the run's folder, or to --out.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from ray.exceptions import RayError
from tqdm import tqdm

from dfmvr.config import Settings, config_hash, dump_settings, load_settings
from dfmvr.data import storage
from dfmvr.data.manifest import Manifest, read_manifest
from dfmvr.data.rejects import Rejects, TooManyBadRows
from dfmvr.data.sample import BadRow
from dfmvr.evaluation.charts import nice_top
from dfmvr.evaluation.evaluator import METHODS, Evaluator
from dfmvr.evaluation.gallery import GalleryItem, picture_sample
from dfmvr.evaluation.report import ReportContent, write_report
from dfmvr.evaluation.results import rows_to_table
from dfmvr.evaluation.summary import gallery_rows, percentile, pooled_areas, summarise, terminal_table
from dfmvr.morphable.model import MorphableModel
from dfmvr.networks.weights import ModelCard, read_card
from dfmvr.predictor import MESH_LEVEL, SHIPPED_MODEL
from dfmvr.types import FRONT
from ray_jobs.evaluate_worker import RowResult, local_model, measure_split, read_stored_row
from ray_jobs.runs import open_run
from ray_jobs.scaling import init_ray

EXAMPLES = """examples:
  python -m ray_jobs.evaluate --run runs/quickstart
  python -m ray_jobs.evaluate --run s3://bucket/runs/small evaluation.max_samples=50
  python -m ray_jobs.evaluate --model shipped --config configs/small.yaml --out runs/shipped
"""
SHIPPED = "shipped"


@dataclass(frozen=True)
class Task:
    """What is to be measured, and where the results go."""

    name: str
    settings: Settings
    model: str
    """Folder of the model: a local path or an s3:// address."""
    out: str
    """Folder of the results, likewise."""
    command: str


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, measure, report; return the exit status."""
    arguments = parse(argv)
    try:
        task = plan(arguments, sys.argv[1:] if argv is None else list(argv))
        card = read_card(local_model(task.model))
        manifest = check_data(with_card(task.settings, card))
        init_ray(arguments.address)
        metrics = evaluate(task, card, manifest, arguments.workers)
    except (ValueError, OSError, TooManyBadRows) as error:  # settings, data, storage, weights: told in a line
        print(f"error: {error}", file=sys.stderr)
        return 1
    except RayError as error:  # the last line is the worker's own error
        print(f"error: {str(error).strip().splitlines()[-1]}", file=sys.stderr)
        return 1
    print(f"\n{terminal_table(metrics)}\n{storage.join(task.out, 'report.html')}")
    return 0


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        "python -m ray_jobs.evaluate",
        description="Measure a trained network against true scans: millimetres, by region, with a report.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--run", metavar="RUN", help="a training run: its id, or its folder's address")
    which.add_argument(
        "--model", metavar="DIR", help=f"a model's folder, or `{SHIPPED}` for the package's own"
    )
    parser.add_argument("--config", metavar="FILE", help="settings (YAML) for --model; a run has its own")
    parser.add_argument("--out", metavar="DIR", help="folder of the results (default: the run's)")
    parser.add_argument("--workers", type=int, help="processes that measure (default: one for each CPU)")
    parser.add_argument("--address", help="a running Ray cluster (default: RAY_ADDRESS, else start one here)")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings to change")
    arguments = parser.parse_intermixed_args(argv)
    if arguments.run and arguments.config:
        parser.error("--config goes with --model; a run has its own settings, change them with key=value")
    if arguments.model and not arguments.out:
        parser.error("--model needs --out DIR, the folder of the results")
    return arguments


def plan(arguments: argparse.Namespace, argv: Sequence[str]) -> Task:
    """Find settings, model and folder of the results.

    Raises:
        SettingsError: the settings are wrong.
        RunError: there is no such run.
    """
    command = " ".join(["python -m ray_jobs.evaluate", *argv])
    if arguments.run:
        run = open_run(arguments.run, arguments.overrides)
        return Task(
            run.id, run.settings, run.path("model"), storage.absolute(arguments.out or run.uri), command
        )
    settings = load_settings(arguments.config, arguments.overrides)
    model = str(SHIPPED_MODEL) if arguments.model == SHIPPED else arguments.model
    return Task(settings.name, settings, storage.absolute(model), storage.absolute(arguments.out), command)


def with_card(settings: Settings, card: ModelCard) -> Settings:
    """Return the settings with the views and the image size that the network was made for."""
    data = dataclasses.replace(
        settings.data,
        uri=storage.absolute(settings.data.uri),
        views=tuple(card.view_names),
        image_size=card.image_size,
        tell_missing_views=card.network.view_flags,
    )
    return dataclasses.replace(settings, data=data)


def check_data(settings: Settings) -> Manifest:
    """Compare the data set with what the network needs, before anything is started.

    Raises:
        FileNotFoundError: there is no complete data set.
        ValueError: it has no test samples, other views or another image size.
    """
    data, manifest = settings.data, read_manifest(settings.data.uri)
    if manifest.image_size != data.image_size:
        raise ValueError(
            f"{data.uri}: expected images of {data.image_size} px, as the network was trained with, got "
            f"{manifest.image_size} px"
        )
    if missing := set(data.views) - set(manifest.views):
        raise ValueError(f"{data.uri}: expected the views {', '.join(data.views)}, got none of {missing}")
    given = settings.evaluation.given_views
    if given and not set(given) & set(data.views if data.tell_missing_views else (FRONT,)):
        raise ValueError(
            f"evaluation.given_views: expected {FRONT!r} among them, which stands in for what is missing "
            f"(the network has no network.view_flags), got {given}"
        )
    if manifest.rows["test"] == 0:
        raise ValueError(f"{data.uri}: expected test samples, got an empty split")
    return manifest


def evaluate(task: Task, card: ModelCard, manifest: Manifest, workers: int | None = None) -> dict[str, Any]:
    """Measure the test split and write the results; return the metrics.

    Args:
        task: what to measure.
        card: of the network.
        manifest: of the data set.
        workers: processes that measure; None takes one for each CPU.

    Raises:
        TooManyBadRows: the share of unreadable samples is above data.max_bad_share.
        ValueError: not one sample could be measured.
    """
    started = time.monotonic()
    settings = with_card(task.settings, card)
    total = min(manifest.rows["test"], settings.evaluation.max_samples or manifest.rows["test"])
    results, n_bad_rows = measure_all(task, settings, total, workers)
    rows = [result.row for result in results]
    metrics = summarise(rows, settings.evaluation.bootstrap_draws, settings.seed) | {
        "n_bad_rows": n_bad_rows,
        "name": task.name,
        "config_hash": config_hash(task.settings),
        "weights_hash": card.weights_hash,
        "face_model_hash": card.face_model_hash,
        "dataset_hash": manifest.recipe_hash,
        "distance_backend": rows[0]["backend"],
        "seconds": round(time.monotonic() - started, 1),
    }
    areas = {method: pooled_areas(rows, method) for method in METHODS}
    top_mm = nice_top(percentile(areas["mean_face"], 0.9))
    content = ReportContent(
        title=task.name,
        metrics=metrics,
        areas=areas,
        rmse_mm={method: np.array([row[f"{method}_rmse_mm"] for row in rows]) for method in METHODS},
        gallery=draw_gallery(settings, results, top_mm),
        top_mm=top_mm,
        facts=facts(task, metrics),
        settings_yaml=dump_settings(task.settings),
    )
    write_metrics(task.out, metrics)
    storage.write_bytes(storage.join(task.out, "evaluation/samples.parquet"), rows_to_table(rows))
    storage.write_bytes(storage.join(task.out, "report.html"), write_report(content).encode())
    return metrics


def measure_all(
    task: Task, settings: Settings, total: int, workers: int | None
) -> tuple[list[RowResult], int]:
    """Return the results of the test split's first `total` rows, and how many rows could not be read.

    Raises:
        TooManyBadRows: more than data.max_bad_share allows.
    """
    rejects = Rejects(settings.data.max_bad_share, total, storage.join(task.out, "logs/bad-test-rows.jsonl"))
    results = []
    with tqdm(total=total, unit="sample", desc="evaluate", dynamic_ncols=True) as bar:
        for result in measure_split(settings, task.model, total, workers):
            bar.update()
            if result.reason:
                rejects.add(BadRow(result.file, result.index, *result.reason))
            else:
                results.append(result)
    return results, len(rejects.items)


def write_metrics(out: str, metrics: dict[str, Any]) -> None:
    """Write the evaluation's part of metrics.json, keeping what training wrote there."""
    uri = storage.join(out, "metrics.json")
    content = json.loads(storage.read_bytes(uri)) if storage.exists(uri) else {}
    kept = {name: content[name] for name in ("training",) if name in content}
    storage.write_bytes(uri, (json.dumps(metrics | kept, indent=2) + "\n").encode())


def facts(task: Task, metrics: dict[str, Any]) -> dict[str, str]:
    """Return what identifies an evaluation, without a path of this machine beyond the command's own."""
    return {
        "data set": f"{task.settings.data.uri} · {metrics['dataset_hash']}",
        "weights": metrics["weights_hash"],
        "face model": metrics["face_model_hash"],
        "settings": metrics["config_hash"],
        "distances by": metrics["distance_backend"],
        "unreadable samples": str(metrics["n_bad_rows"]),
        "time": f"{metrics['seconds']:.0f} s",
        "command": task.command,
    }


def draw_gallery(settings: Settings, results: Sequence[RowResult], top_mm: float) -> list[GalleryItem]:
    """Draw samples from the best to the worst; only these are read again."""
    chosen = gallery_rows([result.row for result in results], settings.evaluation.gallery)
    if not chosen:
        return []
    path = settings.face_model.path
    model = MorphableModel.load(path, level=MESH_LEVEL)
    evaluator = Evaluator(model, MorphableModel.load(path, level=1), settings.evaluation)
    places = {result.row["sample_id"]: (result.file, result.index) for result in results}
    return [
        picture_sample(evaluator, read_stored_row(settings.data, *places[row["sample_id"]]), row, top_mm)
        for row in tqdm(chosen, unit="picture", desc="draw", dynamic_ncols=True)
    ]


if __name__ == "__main__":
    sys.exit(main())
