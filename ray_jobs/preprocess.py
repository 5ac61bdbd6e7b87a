"""Make samples of photographs: python -m ray_jobs.preprocess --dataset NAME --root URI --out URI ...

Faces are found, cropped and parsed by actors of Ray Data. A job that was stopped goes on with the shards that
are missing; new photographs change the shards that they come into. `dataset.json` is written last. Pictures
that yield no sample stand in `rejects.parquet`, with the reason.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import ray
import ray.data
from ray.data import ActorPoolStrategy
from ray.exceptions import RayTaskError
from tqdm import tqdm

from dfmvr.config import SettingsError, load_settings
from dfmvr.data import storage
from dfmvr.data.datasets.adapters import ADAPTERS, open_records
from dfmvr.data.manifest import SPLITS, Manifest, manifest_uri, recipe_hash, write_manifest
from dfmvr.data.preprocess.landmark import check_finder
from dfmvr.data.preprocess.parse import build_parser, resolve_parser
from dfmvr.data.preprocess.pipeline import Reject
from dfmvr.data.preprocess.settings import PreprocessSettings
from dfmvr.data.sample import JPEG_QUALITY, SCHEMA_VERSION
from ray_jobs.preprocess_worker import (
    RECORDS_PER_SHARD,
    Shard,
    ShardFacts,
    ShardMaker,
    pack,
    plan_shards,
    read_facts,
)
from ray_jobs.scaling import cluster_cpus, init_ray
from ray_jobs.shards import DataSetExistsError

PREPROCESS_VERSION = 1
"""Raised when the same settings make other samples of the same photographs than before."""
REJECTS_FILE = "rejects.parquet"
_REJECT_SCHEMA = pa.schema([(field.name, pa.string()) for field in dataclasses.fields(Reject)])


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse, prepare, report; returns the exit status."""
    options = _parser().parse_args(arguments)
    started = time.monotonic()
    try:
        settings = load_settings(options.config, options.overrides)
        manifest, rejects = preprocess(
            options.dataset,
            options.root,
            options.out,
            settings.preprocess,
            dict(options.option or ()),
            workers=options.workers,
            overwrite=options.overwrite,
            address=options.address,
        )
    except (SettingsError, DataSetExistsError, OSError, ValueError, RayTaskError) as error:
        cause = error.cause if isinstance(error, RayTaskError) else error
        print(f"preprocess: {cause}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("preprocess: stopped; the same command goes on with what is missing", file=sys.stderr)
        return 130
    print("\n".join(_summary(options.out, manifest, rejects, time.monotonic() - started)))
    return 0


def preprocess(
    dataset: str,
    root: str,
    uri: str,
    settings: PreprocessSettings,
    options: Mapping[str, str],
    *,
    workers: int | None = None,
    overwrite: bool = False,
    address: str | None = None,
) -> tuple[Manifest, list[Reject]]:
    """Write a data set made of photographs, or what is missing of it.

    Args:
        dataset: one of ADAPTERS.
        root: folder of the photographs, local or s3://.
        uri: folder of the data set to write, local or s3://.
        settings: of the samples.
        options: of the adapter.
        workers: actors; None takes one for each of the cluster's CPUs.
        overwrite: delete another data set that lies at `uri`.
        address: of the Ray cluster, as `init_ray` takes it; not needed where nothing is missing.

    Returns:
        The manifest, and the pictures that yield no sample.

    Raises:
        DataSetExistsError: files of another recipe lie at `uri`, and `overwrite` is not set.
        ValueError: `root` is not such a data set, or an option or a backend is wrong.
        OSError: a folder cannot be read or written.
    """
    root, uri = storage.absolute(root), storage.absolute(uri)
    settings = dataclasses.replace(settings, parser=resolve_parser(settings))
    recipe = _recipe(dataset, root, settings, options)
    items = open_records(dataset, root, options)
    present = _present(uri, recipe_hash(recipe), overwrite)
    problems: list[Reject] = []
    planned: dict[str, str] = {}
    packed: list[Any] = []
    pictures = 0
    for shard in plan_shards(uri, items, settings.split_shares, problems):
        planned[shard.uri] = shard.split
        facts = present.get(shard.uri)
        if facts is None or facts.records_hash != shard.records_hash:
            if _needs_finder(shard, settings):
                check_finder(settings.landmarks)
            if not packed:
                _start(uri, settings, address)
            packed.append(ray.put(pack(shard)))
            pictures += _count(shard)
    if not planned:
        raise ValueError(f"{root}: expected records of {dataset}, got none and {len(problems)} problems")
    if packed:
        _make(packed, pictures, settings, recipe_hash(recipe), min(workers or cluster_cpus(), len(packed)))
    for stale in set(present) - set(planned):
        storage.delete(stale)
    facts_of = _read_all(planned)
    rejects = problems + [reject for facts in facts_of.values() for reject in facts.rejects]
    table = pa.Table.from_pylist([dataclasses.asdict(reject) for reject in rejects], _REJECT_SCHEMA)
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    storage.write_bytes(storage.join(uri, REJECTS_FILE), bytes(sink.getvalue()))
    manifest = _manifest(recipe, settings, planned, facts_of)
    write_manifest(uri, manifest)
    return manifest, rejects


def _recipe(
    dataset: str, root: str, settings: PreprocessSettings, options: Mapping[str, str]
) -> dict[str, Any]:
    return {
        "dataset": dataset,
        "root": root,
        "options": dict(options),
        "preprocess": json.loads(json.dumps(dataclasses.asdict(settings))),  # as it will be read: no tuples
        "preprocess_version": PREPROCESS_VERSION,
        "records_per_shard": RECORDS_PER_SHARD,
        "schema_version": SCHEMA_VERSION,
        "jpeg_quality": JPEG_QUALITY,
    }


def _present(uri: str, recipe: str, overwrite: bool) -> dict[str, ShardFacts]:
    """Return the shards that are at `uri` already; other files are refused, or deleted."""
    files = [file for split in SPLITS for file in storage.list_files(storage.join(uri, split), ".parquet")]
    with ThreadPoolExecutor(16) as pool:
        facts = dict(zip(files, pool.map(read_facts, files), strict=True))
    foreign = [file for file, found in facts.items() if found is None or found.recipe_hash != recipe]
    if foreign and not overwrite:
        found = facts[foreign[0]]
        raise DataSetExistsError(
            f"{uri} holds a data set made in another way: expected recipe {recipe}, "
            f"got {found.recipe_hash if found else 'none'} in {foreign[0]}; choose another --out, or replace "
            "it with --overwrite"
        )
    if foreign and storage.exists(manifest_uri(uri)):
        storage.delete(manifest_uri(uri))  # first, so that what is left never passes for complete
    for file in foreign:
        storage.delete(file)
    return {file: found for file, found in facts.items() if found and file not in foreign}


def _start(uri: str, settings: PreprocessSettings, address: str | None) -> None:
    """Take the mark of a complete set away and connect to Ray."""
    build_parser(settings, "cpu")  # what is missing is better told here than by an actor
    storage.check_writable(uri)
    if storage.exists(manifest_uri(uri)):
        storage.delete(manifest_uri(uri))
    init_ray(address)


def _needs_finder(shard: Shard, settings: PreprocessSettings) -> bool:
    if settings.landmarks != "auto":
        return settings.landmarks != "given"
    return any(picture.landmarks is None for record in shard.records for picture in record.pictures.values())


def _make(
    packed: Sequence[Any], pictures: int, settings: PreprocessSettings, recipe: str, workers: int
) -> None:
    """Make the packed shards on `workers` actors."""
    workers = max(1, min(workers, cluster_cpus()))
    gpus = ray.cluster_resources().get("GPU", 0.0)
    context = ray.data.DataContext.get_current()
    context.execution_options.preserve_order = False  # so that progress is told as it is made
    made = ray.data.from_arrow_refs(list(packed)).map_batches(
        ShardMaker,
        fn_constructor_kwargs={"settings": settings, "recipe_hash": recipe},
        batch_size=1,
        batch_format="pyarrow",
        compute=ActorPoolStrategy(size=workers),
        num_cpus=1,
        num_gpus=min(1.0, gpus / workers) or None,
    )
    with tqdm(total=pictures, unit=" pictures", smoothing=0.1, dynamic_ncols=True) as bar:
        for row in made.iter_rows():
            bar.update(row["pictures"])


def _read_all(planned: Iterable[str]) -> dict[str, ShardFacts]:
    files = list(planned)
    with ThreadPoolExecutor(16) as pool:
        found = dict(zip(files, pool.map(read_facts, files), strict=True))
    return {file: facts for file, facts in found.items() if facts is not None}


def _manifest(
    recipe: dict[str, Any],
    settings: PreprocessSettings,
    planned: Mapping[str, str],
    facts: Mapping[str, ShardFacts],
) -> Manifest:
    of_split = {split: [facts[file] for file in planned if planned[file] == split] for split in SPLITS}
    return Manifest(
        recipe=recipe,
        recipe_hash=recipe_hash(recipe),
        image_size=settings.image_size,
        views=list(settings.views),
        rows={split: sum(f.rows for f in found) for split, found in of_split.items()},
        subjects={split: len({s for f in found for s in f.subjects}) for split, found in of_split.items()},
        shards={split: len(found) for split, found in of_split.items()},
    )


def _count(shard: Shard) -> int:
    return sum(len(record.pictures) for record in shard.records)


def _summary(uri: str, manifest: Manifest, rejects: Sequence[Reject], seconds: float) -> list[str]:
    rows = ", ".join(f"{manifest.rows[split]} {split}" for split in SPLITS)
    lines = [f"{uri}: {rows} samples of {sum(manifest.subjects.values())} subjects; {seconds:.0f} s"]
    if rejects:
        reasons = ", ".join(
            f"{reason} {count}" for reason, count in Counter(r.reason for r in rejects).most_common()
        )
        lines.append(f"without a sample: {len(rejects)} ({reasons}); see {storage.join(uri, REJECTS_FILE)}")
    empty = [split for split in SPLITS if not manifest.rows[split]]
    if empty:
        lines.append(f"no sample is in {', '.join(empty)}: training and evaluation need all splits")
    return lines


def _option(text: str) -> tuple[str, str]:
    name, separator, value = text.partition("=")
    if not separator:
        raise argparse.ArgumentTypeError(f"expected name=value, got {text!r}")
    return name, value


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m ray_jobs.preprocess", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--dataset", required=True, metavar="NAME", help=f"one of {', '.join(ADAPTERS)}")
    parser.add_argument("--root", required=True, metavar="URI", help="its folder, local or s3://")
    parser.add_argument("--out", required=True, metavar="URI", help="the data set to write, local or s3://")
    parser.add_argument(
        "--option", action="append", type=_option, metavar="NAME=VALUE", help="of the data set's reader"
    )
    parser.add_argument("--config", help="YAML file of settings")
    parser.add_argument("--workers", type=int, help="actors (default: one a core)")
    parser.add_argument("--address", help="Ray cluster (default: RAY_ADDRESS, or a new one on this machine)")
    parser.add_argument(
        "--overwrite", action="store_true", help="replace a data set made with other settings"
    )
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="settings to change (preprocess.image_size=224)"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
