"""FaceScape, on a tree of its layout written here (the data set may not be passed on)."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trimesh

from dfmvr.data.datasets.facescape import iter_records
from dfmvr.data.datasets.records import Problem, Record

SCALE = 20.0
TURN = trimesh.transformations.euler_matrix(0.3, -0.5, 0.8)[:3, :3]
SHIFT = np.array([4.0, -7.0, 11.0])
K = np.array([[5000.0, 0, 1400], [0, 5000, 2100], [0, 0, 1]])
DISTORTION = [-0.1, 0.05, 0.001, -0.002, 0.0]
YAWS = {0: -90, 1: -42, 2: 2, 3: 47, 4: 130, 5: 0, 6: -45}
"""Degrees of each camera: negative ones stand to the subject's left. 5 looks from above, 6 is not valid."""
SCAN = trimesh.creation.icosphere(subdivisions=1, radius=100.0)


def to_scan_frame(points: np.ndarray) -> np.ndarray:
    """Bring points of the common frame to the scan's own."""
    return (points - SHIFT) @ TURN / SCALE


def camera(yaw: float, pitch: float) -> list[list[float]]:
    """World-to-camera matrix (OpenCV), in the scan's frame, of a camera that looks at the head from 1.5 m."""
    a, b = math.radians(yaw), math.radians(pitch)
    direction = np.array([-math.sin(a) * math.cos(b), math.sin(b), math.cos(a) * math.cos(b)])
    forward = -direction
    right = np.cross(forward, [0, 1, 0])
    right /= np.linalg.norm(right)
    axes = np.stack([right, np.cross(forward, right), forward])
    rotation = axes @ TURN
    return np.column_stack([rotation, -rotation @ to_scan_frame(1500 * direction)]).tolist()


def write_shot(root: Path, subject: str, shot: str = "1_neutral") -> Path:
    folder = root / subject / shot
    folder.mkdir(parents=True)
    params: dict[str, Any] = {}
    for number, yaw in YAWS.items():
        (folder / f"{number}.jpg").write_bytes(b"picture")
        params |= {
            f"{number}_K": K.tolist(),
            f"{number}_Rt": camera(yaw, 60 if number == 5 else 5),
            f"{number}_distortion": DISTORTION,
            f"{number}_width": 2800,
            f"{number}_height": 4200,
            f"{number}_valid": number != 6,
        }
    (folder / "params.json").write_text(json.dumps(params))
    trimesh.Trimesh(to_scan_frame(SCAN.vertices), SCAN.faces, process=False).export(
        root / subject / f"{shot}.ply"
    )
    return folder


def write_alignment(root: Path, subjects: tuple[str, ...] = ("1", "2"), **changes: object) -> None:
    entry = [SCALE, np.column_stack([TURN, SHIFT]).tolist()]
    content = {subject: {"1": entry, "2": entry} for subject in subjects}
    (root / "Rt_scale_dict.json").write_text(json.dumps(content | changes))


def test_cameras_are_chosen_by_where_they_stand(tmp_path: Path) -> None:
    write_shot(tmp_path, "1")
    write_shot(tmp_path, "1", "2_smile")
    write_alignment(tmp_path)
    records = [record for record in iter_records(str(tmp_path)) if isinstance(record, Record)]
    assert [(record.subject_id, record.expression_id) for record in records] == [
        ("1", "1_neutral"),
        ("1", "2_smile"),
    ]
    pictures = records[0].pictures
    numbers = {name: Path(picture.uri).name for name, picture in pictures.items()}
    assert numbers == {"left": "1.jpg", "front": "2.jpg", "right": "3.jpg"}
    assert [math.degrees(picture.yaw) for picture in pictures.values()] == pytest.approx([-42, 2, 47])


def test_views_that_no_camera_has_are_told(tmp_path: Path) -> None:
    write_shot(tmp_path, "1")
    write_alignment(tmp_path)
    (problem,) = iter_records(str(tmp_path), side="90")
    expected = "a camera for the right view within 20 degrees of yaw 90, got the nearest 40 degrees off"
    assert str(problem) == f"{tmp_path}/1/1_neutral/params.json: expected {expected}"


def test_cameras_keep_their_lenses(tmp_path: Path) -> None:
    write_shot(tmp_path, "1")
    write_alignment(tmp_path)
    (record,) = iter_records(str(tmp_path))
    assert isinstance(record, Record)
    picture = record.pictures["left"]
    assert picture.intrinsics is not None
    assert picture.distortion is not None
    np.testing.assert_allclose(picture.intrinsics, [[5000, 0, 1400.5], [0, 5000, 2100.5], [0, 0, 1]])
    assert picture.distortion.tolist() == DISTORTION


def test_the_scan_comes_in_mm_in_the_common_frame(tmp_path: Path) -> None:
    write_shot(tmp_path, "1")
    write_alignment(tmp_path)
    (record,) = iter_records(str(tmp_path))
    assert isinstance(record, Record)
    assert record.scan_vertices is not None
    np.testing.assert_allclose(record.scan_vertices, SCAN.vertices, atol=1e-3)
    np.testing.assert_array_equal(record.scan_triangles, SCAN.faces)


def test_the_alignment_may_lie_elsewhere(tmp_path: Path) -> None:
    write_shot(tmp_path / "data", "1")
    with pytest.raises(ValueError, match=r"Rt_scale_dict.json: expected FaceScape's .*, got no such file"):
        iter_records(str(tmp_path / "data"))
    write_alignment(tmp_path)
    (record,) = iter_records(str(tmp_path / "data"), alignment=str(tmp_path / "Rt_scale_dict.json"))
    assert isinstance(record, Record)


def change(key: str, value: object) -> Callable[[Path], None]:
    def spoil(file: Path) -> None:
        file.write_text(json.dumps(json.loads(file.read_text()) | {key: value}))

    return spoil


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-300])


def invalidate(file: Path) -> None:
    params = json.loads(file.read_text())
    file.write_text(json.dumps({k: False if k.endswith("_valid") else v for k, v in params.items()}))


@pytest.mark.parametrize(
    ("file", "spoil", "words"),
    [
        ("1_neutral/2.jpg", Path.unlink, "expected the photograph of camera 2, got no such file"),
        ("1_neutral/params.json", Path.unlink, "expected cameras of FaceScape, got no such file"),
        ("1_neutral/params.json", cut, "expected cameras of FaceScape (JSON), got "),
        (
            "1_neutral/params.json",
            change("2_K", [1, 2]),
            "expected 2_K [3, 3], 2_Rt [3, 4] and 2_distortion, got shapes [2]",
        ),
        ("1_neutral/params.json", change("2_Rt", None), "2_distortion, got null"),
        ("1_neutral/params.json", change("2_distortion", [0.1]), "got shapes [3, 3], [3, 4] and [1]"),
        (
            "1_neutral/params.json",
            change("2_valid", False),
            "for the front view within 20 degrees of yaw 0, got the nearest 4",
        ),
        ("1_neutral/params.json", invalidate, "got no valid camera"),
        ("1_neutral.ply", Path.unlink, "expected the scan of this expression, got no such file"),
        ("1_neutral.ply", cut, "expected a mesh in a PLY file, got "),
    ],
)
def test_a_broken_file_is_told_and_stops_no_other_subject(
    file: str, spoil: Callable[[Path], None], words: str, tmp_path: Path
) -> None:
    write_shot(tmp_path, "1")
    write_shot(tmp_path, "2")
    write_alignment(tmp_path)
    spoil(tmp_path / "1" / file)
    problem, record = iter_records(str(tmp_path))
    assert isinstance(problem, Problem)
    assert isinstance(record, Record)
    assert record.subject_id == "2"
    assert problem.path == str(tmp_path / "1" / file)
    assert words in str(problem)


@pytest.mark.parametrize(
    ("entry", "got"),
    [
        (None, "got none"),
        ({"1": [1.0]}, "got [1.0]"),
        ({"1": [-1.0, np.eye(4).tolist()]}, "got scale -1.0 and matrix [4, 4]"),
        ({"1": [1.0, [1, 2]]}, "got scale 1.0 and matrix [2]"),
        ({"1": [1.0, "x"]}, 'got "x"'),
    ],
)
def test_an_expression_without_alignment_is_told(entry: object, got: str, tmp_path: Path) -> None:
    write_shot(tmp_path, "1")
    write_alignment(tmp_path, **{"1": entry})
    (problem,) = iter_records(str(tmp_path))
    expected = "1_neutral: expected scale and [3, 4] matrix of this expression in Rt_scale_dict.json, "
    assert expected + got in str(problem)


def test_wrong_options_and_folders_are_refused(tmp_path: Path) -> None:
    write_shot(tmp_path / "data", "1")
    write_alignment(tmp_path / "data")
    for side in ("5", "-45", "far"):
        with pytest.raises(ValueError, match=f"side: expected whole degrees from 10 to 90, got '{side}'"):
            iter_records(str(tmp_path / "data"), side=side)
    with pytest.raises(ValueError, match="expected folders of subjects such as 1 or 122, found none"):
        iter_records(str(tmp_path))
    (tmp_path / "data/Rt_scale_dict.json").write_text("[]")
    with pytest.raises(ValueError, match=r"Rt_scale_dict.json: expected .* \(a JSON object\), got list"):
        iter_records(str(tmp_path / "data"))
