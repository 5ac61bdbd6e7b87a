from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from ray import cloudpickle

from dfmvr.data import storage
from dfmvr.data.datasets.synthetic import SyntheticSettings, split_of
from dfmvr.data.manifest import SPLITS, read_manifest
from dfmvr.data.sample import SCAN_COLUMNS, Sample
from dfmvr.types import VIEW_NAMES
from ray_jobs import make_dataset as job
from ray_jobs.make_dataset import main, make_dataset
from ray_jobs.shards import SUBJECTS_PER_SHARD, DataSetExistsError, plan_shards

pytestmark = pytest.mark.ray
cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import test files

SETTINGS = SyntheticSettings(n_subjects=24, image_size=32)
SEED = 5


def draw_sample(settings: SyntheticSettings, seed: int, subject: int, expression: int) -> Sample:
    """Stands in for the renderer: noise, at once."""
    rng = np.random.default_rng([seed, subject, expression])
    size, n_views = settings.image_size, len(VIEW_NAMES)

    def points(*shape: int) -> np.ndarray:
        return rng.normal(0, 10, shape).astype(np.float32)

    truth = {}
    if split_of(settings, subject) != "train":
        truth = {name: points(7, 3) for name in SCAN_COLUMNS}
        truth["scan_triangles"] = np.array([[0, 1, 2]], np.int32)
    return Sample(
        sample_id=f"s{subject}-e{expression}",
        subject_id=f"s{subject}",
        expression_id=f"e{expression}",
        view_names=VIEW_NAMES,
        view_yaws=points(n_views),
        images=rng.integers(0, 256, (n_views, size, size, 3), dtype=np.uint8),
        masks=rng.integers(0, 10, (n_views, size, size), dtype=np.uint8),
        landmarks_2d=points(n_views, 68, 2),
        landmarks_2d_weights=np.ones((n_views, 68), np.float32),
        intrinsics=points(n_views, 3, 3),
        landmarks_3d=points(101, 3),
        **truth,
    )


def digests(uri: str) -> dict[str, str]:
    files = [file for split in SPLITS for file in storage.list_files(storage.join(uri, split))]
    files.append(storage.join(uri, "dataset.json"))
    return {file.removeprefix(uri): hashlib.sha256(storage.read_bytes(file)).hexdigest() for file in files}


@pytest.fixture(scope="module")
def made(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    make_dataset(str(folder), SETTINGS, SEED, workers=1, render=draw_sample)
    return folder


def test_every_subject_is_in_one_split_and_every_row_in_its_shard(made: Path) -> None:
    manifest = read_manifest(str(made))
    seen: dict[str, set[str]] = {}
    for split in SPLITS:
        files = sorted((made / split).iterdir())
        assert [file.name for file in files] == [
            f"part-{k:05d}.parquet" for k in range(manifest.shards[split])
        ]
        tables = [pq.read_table(file) for file in files]
        assert all(len(set(table["subject_id"].to_pylist())) == SUBJECTS_PER_SHARD for table in tables[:-1])
        assert sum(len(table) for table in tables) == manifest.rows[split]
        seen[split] = {name for table in tables for name in table["subject_id"].to_pylist()}
        assert len(seen[split]) == manifest.subjects[split]
        truth = [value for table in tables for value in table["dense_vertices"].to_pylist()]
        assert all((value is None) == (split == "train") for value in truth)
    assert sum(map(len, seen.values())) == len(set.union(*seen.values())) == SETTINGS.n_subjects
    assert manifest.recipe["synthetic"]["n_subjects"] == 24
    assert manifest.recipe["seed"] == SEED


def test_the_bytes_do_not_depend_on_the_number_of_workers(made: Path, tmp_path: Path) -> None:
    make_dataset(str(tmp_path), SETTINGS, SEED, workers=2, render=draw_sample)
    assert digests(str(tmp_path)) == digests(str(made))


def test_object_storage_gets_the_same_bytes(made: Path, s3_server: str) -> None:
    uri = f"{s3_server}/sets/made"
    make_dataset(uri, SETTINGS, SEED, render=draw_sample)
    assert digests(uri) == digests(str(made))


def test_a_stopped_run_goes_on_with_what_is_missing(made: Path, tmp_path: Path) -> None:
    make_dataset(str(tmp_path), SETTINGS, SEED, render=draw_sample)
    (tmp_path / "dataset.json").unlink()
    (tmp_path / "train" / "part-00001.parquet").unlink()
    kept = tmp_path / "train" / "part-00000.parquet"
    before = kept.stat().st_mtime_ns
    make_dataset(str(tmp_path), SETTINGS, SEED, render=draw_sample)
    assert kept.stat().st_mtime_ns == before
    assert digests(str(tmp_path)) == digests(str(made))


def test_a_complete_set_is_left_alone(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job, "init_ray", lambda _: pytest.fail("nothing is to be rendered"))
    assert make_dataset(str(made), SETTINGS, SEED, render=draw_sample) == read_manifest(str(made))


def test_another_set_is_not_written_over_unless_asked(made: Path, tmp_path: Path) -> None:
    uri = str(tmp_path)
    make_dataset(uri, SETTINGS, SEED, render=draw_sample)
    with pytest.raises(DataSetExistsError, match=r"made with other settings: expected recipe .*--overwrite"):
        make_dataset(uri, SETTINGS, SEED + 1, render=draw_sample)
    assert digests(uri) == digests(str(made))
    fewer = SyntheticSettings(n_subjects=12, image_size=32)
    make_dataset(uri, fewer, SEED, render=draw_sample, overwrite=True)
    assert sum(read_manifest(uri).subjects.values()) == 12
    files = [file for split in SPLITS for file in storage.list_files(storage.join(uri, split))]
    assert len(files) == len(plan_shards(uri, fewer))


def test_a_split_without_subjects_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"n_subjects: expected enough .* got 3, which leaves the split 'valid"
    ):
        make_dataset(str(tmp_path), SyntheticSettings(n_subjects=3), SEED, render=draw_sample)


def test_a_place_that_cannot_be_written_is_told_before_rendering(s3_server: str) -> None:
    with pytest.raises(storage.StorageError, match=r"cannot write s3://no-such-bucket/set/\.writable"):
        make_dataset("s3://no-such-bucket/set", SETTINGS, SEED, render=draw_sample)


def test_the_command_says_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--out", str(tmp_path), "synthetic.n_subject=3"]) == 1
    assert "make_dataset: " in (message := capsys.readouterr().err)
    assert "did you mean 'synthetic.n_subjects'?" in message


@pytest.mark.slow
def test_the_command_renders(ray_cluster: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    changes = ["synthetic.n_subjects=10", "synthetic.image_size=48", "synthetic.expressions_per_subject=1"]
    assert main(["--out", str(tmp_path / "two"), *changes]) == 0
    assert "8 train, 1 validation, 1 test samples of 10 subjects" in capsys.readouterr().out
    assert main(["--out", str(tmp_path / "one"), "--workers", "1", *changes]) == 0
    assert digests(str(tmp_path / "two")) == digests(str(tmp_path / "one"))
