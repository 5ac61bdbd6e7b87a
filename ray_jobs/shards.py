"""The shards of a synthetic data set: which there are, which are missing, and how one is made."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from dfmvr.data import storage
from dfmvr.data.datasets.synthetic import SyntheticSettings, split_of
from dfmvr.data.manifest import SPLITS, manifest_uri, shard_uri
from dfmvr.data.sample import Sample, samples_to_parquet
from dfmvr.threads import use_threads

SUBJECTS_PER_SHARD = 8
_HASH_KEY = "dfmvr.recipe_hash"

Render = Callable[[SyntheticSettings, int, int, int], Sample]
"""(settings, seed, subject, expression) -> sample; the same arguments give the same sample."""


class DataSetExistsError(RuntimeError):
    """Another data set lies where this one is to be written."""


@dataclass(frozen=True)
class Shard:
    """A file of the data set, and the people in it."""

    uri: str
    split: str
    subjects: tuple[int, ...]


def plan_shards(uri: str, settings: SyntheticSettings) -> list[Shard]:
    """Divide the people into splits, and these into shards.

    Raises:
        ValueError: a split would be empty.
    """
    shards = []
    for split in SPLITS:
        subjects = [subject for subject in range(settings.n_subjects) if split_of(settings, subject) == split]
        if not subjects:
            raise ValueError(
                f"synthetic.n_subjects: expected enough subjects for the shares {settings.split_shares}, got "
                f"{settings.n_subjects}, which leaves the split {split!r} empty"
            )
        for start in range(0, len(subjects), SUBJECTS_PER_SHARD):
            place = shard_uri(uri, split, start // SUBJECTS_PER_SHARD)
            shards.append(Shard(place, split, tuple(subjects[start : start + SUBJECTS_PER_SHARD])))
    return shards


def missing_shards(uri: str, shards: Sequence[Shard], recipe_hash: str, overwrite: bool) -> list[Shard]:
    """Return the shards that are not at `uri` yet; what is there must belong to the set."""
    present = [file for split in SPLITS for file in storage.list_files(storage.join(uri, split), ".parquet")]
    with ThreadPoolExecutor(16) as pool:
        hashes = dict(zip(present, pool.map(_recipe_hash_of, present), strict=True))
    foreign = [file for file, found in hashes.items() if found != recipe_hash]
    if foreign and not overwrite:
        raise DataSetExistsError(
            f"{uri} holds a data set made with other settings: expected recipe {recipe_hash}, "
            f"got {hashes[foreign[0]] or 'none'} in {foreign[0]}; choose another --out, or replace it with "
            "--overwrite"
        )
    if foreign and storage.exists(manifest_uri(uri)):
        storage.delete(manifest_uri(uri))  # first, so that what is left never passes for complete
    for file in foreign:
        storage.delete(file)
    kept = set(present) - set(foreign)
    return [shard for shard in shards if shard.uri not in kept]


def _recipe_hash_of(file: str) -> str | None:
    system, path = storage.filesystem(file)
    try:
        metadata = pq.read_schema(path, filesystem=system).metadata or {}
    except pa.ArrowInvalid:  # not a Parquet file: certainly not one of ours
        return None
    found = metadata.get(_HASH_KEY.encode())
    return found.decode() if found else None


def write_shard(
    row: dict[str, Any], settings: SyntheticSettings, seed: int, render: Render, recipe_hash: str
) -> dict[str, Any]:
    """Render and write the shard that a row (the fields of a `Shard`) describes.

    Returns:
        How many people it holds: `subjects`.
    """
    use_threads(1)  # the processes share the cores, and sums do not depend on their number
    samples = [
        render(settings, seed, int(subject), expression)
        for subject in row["subjects"]
        for expression in range(settings.expressions_per_subject)
    ]
    storage.write_bytes(str(row["uri"]), samples_to_parquet(samples, {_HASH_KEY: recipe_hash}))
    return {"subjects": len(row["subjects"])}
