"""Pixel-Face, on trees of both arrangements written here (the data set may not be passed on)."""

from __future__ import annotations

import math
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from scipy.io import savemat

from dfmvr.data.datasets import pixel_face
from dfmvr.data.datasets.pixel_face import iter_records
from dfmvr.data.datasets.records import Problem, Record
from dfmvr.morphable.landmarks import ALIGN_7_IN_101

RNG = np.random.default_rng(0)
VERTICES = RNG.normal(0, 0.5, (200, 3))
FACES = RNG.integers(1, 201, (3, 300))
MARKS = RNG.permutation(200)[:106] + 1


def write_arranged(root: Path, half: str, subject: str, expression: str = "1", points: int = 106) -> Path:
    images = root / half / subject / expression / "Images"
    for view in "012":
        (images / view).mkdir(parents=True)
        (images / view / "t.jpg").write_bytes(b"picture")
    (images / "fusion").mkdir()
    lines = [f"{k / 100:.6f} {-k / 100:.6f} 0.5" for k in range(points)]
    (images / "fusion/nicp_106_pts.txt").write_text("\n".join(lines) + "\n")
    return images


def write_released(root: Path, samples: dict[str, str], **fields: object) -> None:
    """Write samples (name -> subject) of the release."""
    (root / "release_id/split").mkdir(parents=True, exist_ok=True)
    rows = [f"{subject} {sample} 1 30 {k}" for k, (sample, subject) in enumerate(samples.items())]
    (root / "release_id/release_info.txt").write_text("\n".join(rows))
    scan = {"v": VERTICES, "f": FACES, "tex": np.zeros_like(VERTICES), "kpt_ind": MARKS[None]} | fields
    for sample in samples:
        for view in "012":
            (root / sample / view).mkdir(parents=True, exist_ok=True)
            (root / sample / view / "t.bmp").write_bytes(b"picture")
        (root / sample / "fusion").mkdir(exist_ok=True)
        savemat(
            root / sample / "fusion/gt.mat",
            {"neck_obj09": {"v": VERTICES}, "new_kpt_gt_obj": scan},
            do_compression=True,
        )


def test_df_mvrs_arrangement(tmp_path: Path) -> None:
    write_arranged(tmp_path, "train", "s1")
    write_arranged(tmp_path, "val", "s2", "7")
    first, second = iter_records(str(tmp_path))
    assert isinstance(first, Record)
    assert isinstance(second, Record)
    assert (first.subject_id, first.expression_id, first.split) == ("s1", "1", "train")
    assert (second.subject_id, second.expression_id, second.split) == ("s2", "7", "test")
    files = {name: picture.uri for name, picture in first.pictures.items()}
    folder = tmp_path / "train/s1/1/Images"
    assert files == {"left": f"{folder}/0/t.jpg", "front": f"{folder}/1/t.jpg", "right": f"{folder}/2/t.jpg"}
    assert {picture.turn for picture in first.pictures.values()} == {"cw90_mirror"}
    assert first.pictures["front"].yaw == 0
    assert math.isnan(first.pictures["left"].yaw)


def test_points_are_the_101_in_mm(tmp_path: Path) -> None:
    write_arranged(tmp_path, "train", "s1")
    (record,) = iter_records(str(tmp_path))
    assert isinstance(record, Record)
    assert record.landmarks_3d is not None
    kept = [k for k in range(106) if k not in (3, 15, 17, 25, 27)]
    np.testing.assert_allclose(record.landmarks_3d[:, 0], kept)
    np.testing.assert_allclose(record.landmarks_3d[:, 1:], [[-k, 50] for k in kept])


def test_some_training_subjects_validate_always_the_same(tmp_path: Path) -> None:
    for k in range(60):
        write_arranged(tmp_path, "train", f"s{k}")
    splits = [{item.subject_id: item.split for item in iter_records(str(tmp_path))} for _ in range(2)]
    assert splits[0] == splits[1]
    assert 1 <= list(splits[0].values()).count("validation") <= 15
    assert set(splits[0].values()) == {"train", "validation"}


def test_broken_samples_are_told_and_stop_nothing(tmp_path: Path) -> None:
    (write_arranged(tmp_path, "train", "s1") / "2/t.jpg").unlink()
    (write_arranged(tmp_path, "train", "s2") / "fusion/nicp_106_pts.txt").unlink()
    write_arranged(tmp_path, "train", "s3", points=105)
    (write_arranged(tmp_path, "train", "s4") / "fusion/nicp_106_pts.txt").write_text("1 2 x\n" * 106)
    write_arranged(tmp_path, "train", "s5")
    items = list(iter_records(str(tmp_path)))
    assert [item.subject_id for item in items if isinstance(item, Record)] == ["s5"]
    images = f"{tmp_path}/train/s{{}}/1/Images"
    points = images + "/fusion/nicp_106_pts.txt"
    assert [str(item) for item in items if isinstance(item, Problem)] == [
        images.format(1) + "/2/t.jpg: expected the right view, got no such file",
        points.format(2) + ": expected the 106 points of the face, got no such file",
        points.format(3) + ": expected 106 lines of 3 numbers, got 105 lines",
        points.format(4) + ": expected 106 lines of 3 numbers, got '1 2 x' in line 1",
    ]


def test_the_release(tmp_path: Path) -> None:
    write_released(tmp_path, {"d1": "anna", "d2": "bert", "d3": "carl"})
    (tmp_path / "release_id/split/release_train.txt").write_text("d1\n")
    (tmp_path / "release_id/split/release_eva.txt").write_text("d2\n")
    records = [record for record in iter_records(str(tmp_path)) if isinstance(record, Record)]
    ids = [(record.subject_id, record.expression_id, record.split) for record in records]
    assert ids == [("anna", "0-d1", "train"), ("bert", "1-d2", "test"), ("carl", "2-d3", None)]
    first = records[0]
    assert first.pictures["left"].uri == f"{tmp_path}/d1/0/t.bmp"
    assert first.scan_vertices is not None
    assert first.scan_triangles is not None
    assert first.landmarks_3d is not None
    assert first.scan_landmarks_7 is not None
    np.testing.assert_allclose(first.scan_vertices, 100 * VERTICES)
    np.testing.assert_array_equal(first.scan_triangles, FACES.T - 1)
    kept = np.delete(MARKS - 1, [3, 15, 17, 25, 27])
    np.testing.assert_allclose(first.landmarks_3d, 100 * VERTICES[kept])
    np.testing.assert_allclose(first.scan_landmarks_7, first.landmarks_3d[list(ALIGN_7_IN_101)])


@pytest.mark.parametrize(
    ("fields", "got"),
    [
        ({"kpt_ind": MARKS[:-1]}, "expected 106 landmarks in new_kpt_gt_obj.kpt_ind, got 105"),
        (
            {"kpt_ind": np.arange(106)},
            "expected whole numbers 1 to 200 in new_kpt_gt_obj.kpt_ind, got 0 to 105",
        ),
        ({"f": FACES + 1}, "expected whole numbers 1 to 200 in new_kpt_gt_obj.f, got "),
        ({"f": FACES[:2]}, "expected shape [n, 3] or [3, n] of new_kpt_gt_obj.f, got [2, 300]"),
        ({"v": VERTICES * np.nan}, "expected finite numbers in new_kpt_gt_obj.v, got float64"),
        ({"v": "text"}, "expected finite numbers in new_kpt_gt_obj.v, got <U4"),
    ],
)
def test_wrong_scans_are_told_and_stop_nothing(fields: dict[str, object], got: str, tmp_path: Path) -> None:
    write_released(tmp_path, {"good": "anna"})
    write_released(tmp_path, {"bad": "bert"}, **fields)
    (tmp_path / "release_id/release_info.txt").write_text("bert bad 1 30 2\nbert 3\nanna good 1 30 2\n")
    bad, line, good = iter_records(str(tmp_path))
    assert isinstance(good, Record)
    assert str(bad).startswith(f"{tmp_path}/bad/fusion/gt.mat: {got}")
    expected = "expected subject, sample, sex, age, expression, got 'bert 3' in line 2"
    assert str(line) == f"{tmp_path}/release_id/release_info.txt: {expected}"


def test_damaged_mat_files_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_released(tmp_path, {"d1": "anna"})
    file = tmp_path / "d1/fusion/gt.mat"
    data = file.read_bytes()

    def told() -> str:
        (problem,) = iter_records(str(tmp_path))
        assert isinstance(problem, Problem)
        assert problem.path == str(file)
        return str(problem)

    file.write_bytes(data[:-100])
    assert "expected a .mat file (version 5 to 7) with new_kpt_gt_obj: v, f, kpt_ind, got " in told()
    file.write_bytes(data[:200] + bytes(50) + data[250:])
    assert "expected whole compressed parts, got " in told()
    file.write_bytes(b"no .mat at all")
    assert "expected a .mat file (version 5 to 7) with new_kpt_gt_obj: v, f, kpt_ind, got " in told()
    savemat(file, {"neck_obj09": {"v": VERTICES}})
    assert told().endswith("got no struct new_kpt_gt_obj")
    savemat(file, {"new_kpt_gt_obj": {"v": VERTICES, "f": FACES}})
    assert told().endswith("got new_kpt_gt_obj with v, f")
    monkeypatch.setattr(pixel_face, "MAT_LIMIT", 100_000)
    bomb = zlib.compress(bytes(10**6))
    file.write_bytes(data[:128] + struct.pack("<II", 15, len(bomb)) + bomb)
    assert told().endswith("expected at most 100000 bytes unpacked, got more")
    file.write_bytes(bytes(100_001))
    assert "expected at most 100000 bytes, got more" in told()


def test_pictures_that_are_upright_already(tmp_path: Path) -> None:
    write_arranged(tmp_path, "val", "s1")
    (record,) = iter_records(str(tmp_path), turn="none")
    assert isinstance(record, Record)
    assert {picture.turn for picture in record.pictures.values()} == {"none"}
    with pytest.raises(ValueError, match="turn: expected one of cw90_mirror, none, got 'mirror'"):
        iter_records(str(tmp_path), turn="mirror")


def test_another_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "CelebA-HQ-img").mkdir()
    words = r"expected train/ and val/, or release_id/release_info.txt of Pixel-Face, got CelebA-HQ-img"
    with pytest.raises(ValueError, match=words):
        iter_records(str(tmp_path))
    with pytest.raises(NotADirectoryError, match="absent: expected a folder with train/ and val/"):
        iter_records(str(tmp_path / "absent"))
