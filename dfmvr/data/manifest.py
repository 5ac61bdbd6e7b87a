"""dataset.json: what a data set holds and how it was made. It is written last, so it marks a complete set."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from typing import Any

from dfmvr.data import storage
from dfmvr.data.sample import SCHEMA_VERSION

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Manifest:
    """Contents and origin of a data set."""

    recipe: dict[str, Any]
    """Everything that decides the set's bytes: settings, seed, hash of the face model, ..."""
    recipe_hash: str
    image_size: int
    """Pixels a side."""
    views: list[str]
    rows: dict[str, int]
    """Samples of each split."""
    subjects: dict[str, int]
    shards: dict[str, int]
    schema_version: int = SCHEMA_VERSION


def recipe_hash(recipe: dict[str, Any]) -> str:
    """Return 16 hex digits that change with any part of a recipe."""
    return hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:16]


def manifest_uri(uri: str) -> str:
    """Return where a data set's manifest lies."""
    return storage.join(uri, "dataset.json")


def shard_uri(uri: str, split: str, index: int) -> str:
    """Return where a shard lies."""
    return storage.join(uri, split, f"part-{index:05d}.parquet")


def write_manifest(uri: str, manifest: Manifest) -> None:
    """Write a data set's manifest.

    Raises:
        StorageError: it cannot be written.
    """
    text = json.dumps(dataclasses.asdict(manifest), indent=2, sort_keys=True)
    storage.write_bytes(manifest_uri(uri), (text + "\n").encode())


def read_manifest(uri: str) -> Manifest:
    """Return a data set's manifest.

    Raises:
        FileNotFoundError: there is no (complete) data set at `uri`.
        ValueError: the manifest is damaged, or of another version of the schema.
    """
    place = manifest_uri(uri)
    try:
        content = json.loads(storage.read_bytes(place))
    except FileNotFoundError:
        raise FileNotFoundError(
            f"no complete data set at {uri}: {place} is missing; python -m ray_jobs.make_dataset makes one"
        ) from None
    except ValueError as error:
        raise ValueError(f"{place}: expected JSON, got something else ({error})") from error
    names = {field.name for field in dataclasses.fields(Manifest)}
    if not isinstance(content, dict) or set(content) != names:
        got = ", ".join(sorted(content)) if isinstance(content, dict) else type(content).__name__
        raise ValueError(f"{place}: expected the keys {', '.join(sorted(names))}, got {got}")
    if content["schema_version"] != SCHEMA_VERSION:
        raise ValueError(
            f"{place}: expected schema version {SCHEMA_VERSION}, got {content['schema_version']}; "
            "make the set again"
        )
    return Manifest(**content)
