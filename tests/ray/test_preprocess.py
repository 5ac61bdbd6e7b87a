from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from dfmvr.config import load_settings
from dfmvr.data import storage
from dfmvr.data.datasets.records import Picture, Problem, Record
from dfmvr.data.manifest import SPLITS, read_manifest
from dfmvr.data.preprocess.pipeline import Reject, subject_split
from dfmvr.data.preprocess.settings import PreprocessSettings
from dfmvr.data.sample import decode_row
from dfmvr.geometry.camera import default_intrinsics, project, to_camera
from dfmvr.geometry.rotation import euler_to_matrix
from dfmvr.morphable.model import MorphableModel
from dfmvr.types import VIEW_NAMES
from ray_jobs import preprocess as job
from ray_jobs.preprocess import REJECTS_FILE, main, preprocess
from ray_jobs.preprocess_worker import RECORDS_PER_SHARD, plan_shards
from ray_jobs.shards import DataSetExistsError

pytestmark = pytest.mark.ray

N_SUBJECTS = 40
SIDE = 120
SETTINGS = PreprocessSettings(image_size=32, landmarks="given", parser="landmarks")
ARGUMENTS = ["preprocess.image_size=32", "preprocess.landmarks=given", "preprocess.parser=landmarks"]


def write_pictures(root: Path) -> None:
    """Write a user's folder: noise as photographs, a face's landmarks beside them, a few bad ones."""
    model = MorphableModel.load(level=1)
    mean = model.mean_shape[model.landmarks_68]
    points = {}
    for name, degrees in zip(VIEW_NAMES, (-40.0, 0.0, 40.0), strict=True):
        rotation = euler_to_matrix(torch.deg2rad(torch.tensor([0.0, degrees, 0.0])))
        points[name] = project(to_camera(mean, rotation, torch.zeros(3)), default_intrinsics(SIDE)).tolist()
    noise = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), np.uint8)
    encoded = cv2.imencode(".jpg", noise)[1].tobytes()
    for subject in range(N_SUBJECTS):
        folder = root / f"s{subject:02d}" / "neutral"
        folder.mkdir(parents=True)
        for name in VIEW_NAMES:
            (folder / f"{name}.jpg").write_bytes(encoded)
            (folder / f"{name}.json").write_text(json.dumps(points[name]))
    (root / "s03" / "neutral" / "left.jpg").write_bytes(encoded[:300])
    (root / "s05" / "neutral" / "front.jpg").write_text("no picture")
    (root / "s07" / "neutral" / "right.jpg").unlink()
    cv2.imwrite(str(root / "s09" / "neutral" / "front.jpg"), np.full((SIDE, SIDE, 3), 90, np.uint8))
    (root / "s11" / "neutral" / "left.json").write_text(json.dumps(points["right"]))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    write_pictures(folder)
    return folder


@pytest.fixture(scope="module")
def made(ray_cluster: None, root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    preprocess("folder", str(root), str(folder), SETTINGS, {})
    return folder


def digests(uri: str) -> dict[str, str]:
    files = [file for split in SPLITS for file in storage.list_files(storage.join(uri, split))]
    files += [storage.join(uri, name) for name in ("dataset.json", REJECTS_FILE)]
    return {file.removeprefix(uri): hashlib.sha256(storage.read_bytes(file)).hexdigest() for file in files}


def test_good_records_become_samples_split_by_subject(made: Path) -> None:
    manifest = read_manifest(str(made))
    seen: dict[str, str] = {}
    for split in SPLITS:
        for file in sorted((made / split).iterdir()):
            for index, row in enumerate(pq.read_table(file).to_pylist()):
                sample = decode_row(row, str(file), index, views=VIEW_NAMES, image_size=32)
                assert row["row"] == index
                assert seen.setdefault(sample.subject_id, split) == split
                assert split == subject_split(sample.subject_id, SETTINGS.split_shares)
                assert (sample.masks > 1).any(axis=(1, 2)).all()
                assert np.degrees(sample.view_yaws) == pytest.approx([-40, 0, 40], abs=3)
    bad = {"s03", "s05", "s07", "s09", "s11"}
    assert set(seen) == {f"s{k:02d}" for k in range(N_SUBJECTS)} - bad
    assert Counter(seen.values()) == manifest.subjects == manifest.rows
    assert manifest.recipe["dataset"] == "folder"


def test_every_picture_without_a_sample_is_told_with_its_reason(made: Path, root: Path) -> None:
    rejects = [Reject(**row) for row in pq.read_table(made / REJECTS_FILE).to_pylist()]
    reasons = {(r.subject_id, r.view): r.reason for r in rejects if r.reason not in ("missing view",)}
    assert reasons == {
        ("s03", "left"): "unreadable",
        ("s05", "front"): "unreadable",
        ("s09", "front"): "blurred",
        **{("s11", view): "landmark disagreement" for view in VIEW_NAMES},
    }
    others = Counter(r.subject_id for r in rejects if r.reason == "missing view")
    assert others == {"s03": 2, "s05": 2, "s07": 2, "s09": 2}
    assert {r.uri for r in rejects if r.subject_id == "s05"} == {
        str(root / "s05" / "neutral" / f"{view}.jpg") for view in VIEW_NAMES
    }


def test_a_stopped_job_goes_on_with_what_is_missing(made: Path, root: Path, tmp_path: Path) -> None:
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    (tmp_path / "dataset.json").unlink()
    (tmp_path / "train" / "part-00000.parquet").unlink()
    kept = [file for split in ("validation", "test") for file in (tmp_path / split).iterdir()]
    before = [file.stat().st_mtime_ns for file in kept]
    preprocess("folder", str(root), str(tmp_path), SETTINGS, {})
    assert [file.stat().st_mtime_ns for file in kept] == before
    assert digests(str(tmp_path)) == digests(str(made))


def test_a_killed_job_does_nothing_twice_and_loses_nothing(made: Path, root: Path, tmp_path: Path) -> None:
    """The job waits at a landmark file that is a pipe, amid its last shard, while it is killed."""
    place = ["--dataset", "folder", "--root", str(root), "--out", str(tmp_path)]
    arguments = [*place, "--workers", "1", *ARGUMENTS]
    expected = {str(file.relative_to(made)) for split in SPLITS for file in (made / split).iterdir()}
    last = "test/part-00000.parquet"
    subject = pq.read_table(made / last)["subject_id"].to_pylist()[-1]
    landmarks = root / subject / "neutral" / "left.json"
    kept = landmarks.rename(landmarks.with_suffix(".kept"))
    os.mkfifo(landmarks)
    log = tmp_path / "log"
    with log.open("w") as stream:
        process = subprocess.Popen(
            [sys.executable, "-m", "ray_jobs.preprocess", *arguments],
            stdout=stream, stderr=stream, start_new_session=True,
        )  # fmt: skip
    try:
        deadline = time.monotonic() + 300
        while not all((tmp_path / file).exists() for file in expected - {last}):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        kept.rename(landmarks)
    found = {str(file.relative_to(tmp_path)) for file in tmp_path.rglob("*.parquet")}
    assert found == expected - {last}
    assert not (tmp_path / "dataset.json").exists()
    before = {file: (tmp_path / file).stat().st_mtime_ns for file in found}
    assert main(arguments) == 0
    assert {file: (tmp_path / file).stat().st_mtime_ns for file in found} == before
    assert digests(str(tmp_path)) == digests(str(made))


def test_a_complete_set_is_left_alone(made: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job, "init_ray", lambda _: pytest.fail("nothing is to be made"))
    before = digests(str(made))
    assert preprocess("folder", str(root), str(made), SETTINGS, {})[0] == read_manifest(str(made))
    assert digests(str(made)) == before


def test_object_storage_is_read_and_written(ray_cluster: None, root: Path, s3_server: str) -> None:
    source, target = f"{s3_server}/pictures", f"{s3_server}/prepared"
    for file in (root / "s00" / "neutral").iterdir():
        storage.write_bytes(f"{source}/s00/neutral/{file.name}", file.read_bytes())
    manifest, rejects = preprocess("folder", source, target, SETTINGS, {})
    assert sum(manifest.rows.values()) == 1
    assert rejects == []
    assert storage.exists(f"{target}/{REJECTS_FILE}")


def test_another_set_is_not_written_over_unless_asked(made: Path, root: Path, tmp_path: Path) -> None:
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    smaller = PreprocessSettings(image_size=24, landmarks="given", parser="landmarks")
    with pytest.raises(DataSetExistsError, match=r"made in another way: expected recipe .*--overwrite"):
        preprocess("folder", str(root), str(tmp_path), smaller, {})
    assert digests(str(tmp_path)) == digests(str(made))
    preprocess("folder", str(root), str(tmp_path), smaller, {}, overwrite=True)
    assert read_manifest(str(tmp_path)).image_size == 24


def test_the_command_tells_what_it_made(made: Path, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--dataset", "folder", "--root", str(root), "--out", str(made), *ARGUMENTS]) == 0
    text = capsys.readouterr().out
    assert "samples of 35 subjects" in text
    assert "without a sample: 14 (missing view 8, landmark disagreement 3, unreadable 2, blurred 1)" in text


def test_the_command_says_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--dataset", "foldr", "--root", str(tmp_path), "--out", str(tmp_path / "out")]) == 1
    assert "did you mean folder?" in capsys.readouterr().err
    wrong = ["--dataset", "folder", "--root", str(tmp_path), "--out", "x", "preprocess.image_sizes=3"]
    assert main(wrong) == 1
    assert "did you mean 'preprocess.image_size'?" in capsys.readouterr().err


def test_shards_follow_splits_and_problems_are_kept(tmp_path: Path) -> None:
    pictures = {"front": Picture("front.jpg")}
    records = [Record(f"s{k}", "e", pictures, split="train") for k in range(RECORDS_PER_SHARD + 1)]
    scan = np.zeros((3, 3))
    records[0] = Record("s0", "e", pictures, split="train", scan_vertices=scan)
    tested = Record("t", "e", pictures, split="test", scan_vertices=scan)
    stray = Record("s1", "late", pictures, split="test")
    problems: list[Reject] = []
    items = [*records, Problem("scan.bnt", "27 landmarks", "3"), tested, stray]
    shards = list(plan_shards(str(tmp_path), items, (1.0, 0.0, 0.0), problems))
    assert [(shard.split, len(shard.records)) for shard in shards] == [
        ("train", 32),
        ("train", 1),
        ("test", 1),
    ]
    assert [shard.uri for shard in shards][1:] == [
        str(tmp_path / "train" / "part-00001.parquet"), str(tmp_path / "test" / "part-00000.parquet")
    ]  # fmt: skip
    assert shards[0].records[0].scan_vertices is None
    assert shards[2].records[0].scan_vertices is scan
    assert [(r.uri, r.subject_id, r.detail) for r in problems] == [
        ("scan.bnt", "", "expected 27 landmarks, got 3"),
        ("", "s1", "expected the split train, in which its subject is already, got test"),
    ]
    assert shards[0].records_hash != shards[1].records_hash


def test_the_settings_are_a_branch_of_the_tree() -> None:
    assert load_settings(None, ["preprocess.parser=landmarks"]).preprocess.parser == "landmarks"


def test_what_is_missing_is_told_before_anything_is_made(
    root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    place = ["--dataset", "folder", "--root", str(root), "--out", str(tmp_path)]
    monkeypatch.setitem(sys.modules, "dlib", None)
    monkeypatch.setattr(job, "init_ray", lambda _: pytest.fail("nothing can be made"))
    assert main([*place, "preprocess.parser=landmarks"]) == 1
    assert "dlib-bin, which finds faces and landmarks; pip install" in capsys.readouterr().err
    assert main([*place, *ARGUMENTS[:2], f"preprocess.parser_weights={tmp_path}/none.pt2"]) == 1
    assert "none.pt2: expected a network saved by torch.export.save" in capsys.readouterr().err
