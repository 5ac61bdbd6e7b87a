"""Render the synthetic multi-view data set: python -m ray_jobs.make_dataset --config FILE key=value ...

A shard holds a few people of one split. Its bytes depend on the settings, the seed and its number, and on
nothing else: any number of workers makes the same set, and a run that was stopped goes on with the shards
that are missing. `dataset.json` is written last.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import ray.data
from ray.data import TaskPoolStrategy
from tqdm import tqdm

from dfmvr.config import SettingsError, load_settings
from dfmvr.data import storage
from dfmvr.data.datasets.synthetic import RENDERING_VERSION, SyntheticSettings, render_sample
from dfmvr.data.manifest import SPLITS, Manifest, recipe_hash, write_manifest
from dfmvr.data.sample import JPEG_QUALITY, SCHEMA_VERSION
from dfmvr.morphable.appearance import FIELDS_PATH
from dfmvr.morphable.io import DEFAULT_MODEL, DEFAULT_POPULATION
from ray_jobs.scaling import cluster_cpus, init_ray
from ray_jobs.shards import (
    SUBJECTS_PER_SHARD,
    DataSetExistsError,
    Render,
    Shard,
    missing_shards,
    plan_shards,
    write_shard,
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse, render, report; returns the exit status."""
    options = _parser().parse_args(arguments)
    started = time.monotonic()
    try:
        settings = load_settings(options.config, options.overrides)
        uri = options.out or settings.data.uri
        manifest = make_dataset(
            uri,
            settings.synthetic,
            settings.seed,
            workers=options.workers,
            overwrite=options.overwrite,
            address=options.address,
        )
    except (SettingsError, DataSetExistsError, OSError, ValueError) as error:
        print(f"make_dataset: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("make_dataset: stopped; the same command goes on with what is missing", file=sys.stderr)
        return 130
    rows = ", ".join(f"{manifest.rows[split]} {split}" for split in SPLITS)
    people, seconds = sum(manifest.subjects.values()), time.monotonic() - started
    print(f"{uri}: {rows} samples of {people} subjects; {seconds:.0f} s")
    return 0


def make_dataset(
    uri: str,
    settings: SyntheticSettings,
    seed: int,
    *,
    workers: int | None = None,
    overwrite: bool = False,
    render: Render = render_sample,
    address: str | None = None,
) -> Manifest:
    """Write a data set, or what is missing of it.

    Args:
        uri: folder, local or s3://.
        settings: of the people and the pictures.
        seed: of everything that is drawn.
        workers: processes that render; None takes one for each of the cluster's CPUs.
        overwrite: delete another data set that lies at `uri`.
        render: makes one sample.
        address: of the Ray cluster, as `init_ray` takes it; not needed where nothing is missing.

    Raises:
        DataSetExistsError: files of another recipe lie at `uri`, and `overwrite` is not set.
        ValueError: there are too few subjects to fill the splits.
        StorageError: `uri` cannot be read or written.
    """
    uri = storage.absolute(uri)
    shards = plan_shards(uri, settings)
    manifest = _manifest(settings, seed, shards)
    missing = missing_shards(uri, shards, manifest.recipe_hash, overwrite)
    if missing:
        storage.check_writable(uri)
        init_ray(address)
        write = partial(
            write_shard, settings=settings, seed=seed, render=render, recipe_hash=manifest.recipe_hash
        )
        _write_shards(missing, write, min(workers or cluster_cpus(), cluster_cpus()), settings.n_subjects)
    write_manifest(uri, manifest)
    return manifest


def _manifest(settings: SyntheticSettings, seed: int, shards: Sequence[Shard]) -> Manifest:
    recipe = {
        "synthetic": json.loads(
            json.dumps(dataclasses.asdict(settings))
        ),  # as it will be read: lists, no tuples
        "seed": seed,
        "rendering_version": RENDERING_VERSION,
        "face_model": str(np.load(DEFAULT_MODEL)["hash"]),
        "population": str(np.load(DEFAULT_POPULATION)["hash"]),
        "appearance": hashlib.sha256(FIELDS_PATH.read_bytes()).hexdigest(),
        "schema_version": SCHEMA_VERSION,
        "jpeg_quality": JPEG_QUALITY,
        "subjects_per_shard": SUBJECTS_PER_SHARD,
    }
    subjects = {split: sum(len(s.subjects) for s in shards if s.split == split) for split in SPLITS}
    return Manifest(
        recipe=recipe,
        recipe_hash=recipe_hash(recipe),
        image_size=settings.image_size,
        views=list(settings.view_names),
        subjects=subjects,
        rows={split: count * settings.expressions_per_subject for split, count in subjects.items()},
        shards={split: sum(s.split == split for s in shards) for split in SPLITS},
    )


def _write_shards(
    missing: Sequence[Shard], write: Callable[[dict[str, Any]], dict[str, Any]], workers: int, n_subjects: int
) -> None:
    context = ray.data.DataContext.get_current()
    context.execution_options.preserve_order = False  # so that progress is told as it is made
    items = [dataclasses.asdict(shard) for shard in missing]
    written = ray.data.from_items(items, override_num_blocks=len(items)).map(
        write, compute=TaskPoolStrategy(size=min(workers, len(items))), num_cpus=1
    )
    left = sum(len(shard.subjects) for shard in missing)
    with tqdm(total=n_subjects, initial=n_subjects - left, unit=" subjects", smoothing=0.1) as bar:
        for row in written.iter_rows():
            bar.update(row["subjects"])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m ray_jobs.make_dataset", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--config", help="YAML file of settings")
    parser.add_argument("--out", help="folder of the data set, local or s3:// (default: data.uri)")
    parser.add_argument("--workers", type=int, help="rendering processes (default: one a core)")
    parser.add_argument("--address", help="Ray cluster (default: RAY_ADDRESS, or a new one on this machine)")
    parser.add_argument(
        "--overwrite", action="store_true", help="replace a data set made with other settings"
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings to change")
    return parser


if __name__ == "__main__":
    sys.exit(main())
