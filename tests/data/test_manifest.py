from __future__ import annotations

import json
from pathlib import Path

import pytest

from dfmvr.data.manifest import Manifest, read_manifest, recipe_hash, shard_uri, write_manifest


@pytest.fixture
def manifest() -> Manifest:
    counts = {"train": 8, "validation": 1, "test": 1}
    return Manifest({"seed": 3}, "ab" * 8, 112, ["left", "front", "right"], counts, counts, counts)


def test_a_manifest_survives_the_file(tmp_path: Path, manifest: Manifest) -> None:
    write_manifest(str(tmp_path), manifest)
    assert read_manifest(str(tmp_path)) == manifest
    assert json.loads((tmp_path / "dataset.json").read_text())["rows"]["train"] == 8


def test_a_manifest_that_is_missing_or_wrong_is_refused(tmp_path: Path, manifest: Manifest) -> None:
    with pytest.raises(FileNotFoundError, match=r"no complete data set at .*dataset.json is missing"):
        read_manifest(str(tmp_path))
    file = tmp_path / "dataset.json"
    file.write_text("{")
    with pytest.raises(ValueError, match=r"dataset.json: expected JSON"):
        read_manifest(str(tmp_path))
    file.write_text('{"rows": 3}')
    with pytest.raises(ValueError, match=r"expected the keys image_size, .*, got rows"):
        read_manifest(str(tmp_path))
    write_manifest(str(tmp_path), manifest)
    file.write_text(file.read_text().replace('"schema_version": 1', '"schema_version": 9'))
    with pytest.raises(ValueError, match="expected schema version 1, got 9"):
        read_manifest(str(tmp_path))


def test_any_change_of_a_recipe_changes_its_hash() -> None:
    assert recipe_hash({"a": 1, "b": [2]}) == recipe_hash({"b": [2], "a": 1})
    assert recipe_hash({"a": 1, "b": [2]}) != recipe_hash({"a": 1, "b": [3]})


def test_shards_have_their_places() -> None:
    assert shard_uri("s3://bucket/set/", "test", 7) == "s3://bucket/set/test/part-00007.parquet"
