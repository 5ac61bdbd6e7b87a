"""The regional protocol against faces whose errors are known by construction."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from dfmvr.cli import main
from dfmvr.evaluation.mesh_files import SCAN_REGIONS, MarkedMesh, MeshFileError, read_marked_mesh
from dfmvr.evaluation.published import now
from dfmvr.evaluation.realy import landmark_regions, measure_realy, regional_errors, summarise_realy
from dfmvr.evaluation.registration import Transform
from tests.evaluation.test_published import moved, scaled, write
from tests.evaluation.test_registration import MOVED

SIDE = 81
X, Y = (
    axis.ravel()
    for axis in np.meshgrid(np.linspace(-80, 80, SIDE), np.linspace(-100, 100, SIDE), indexing="ij")
)
MARKS = np.array([[-45, 25], [-18, 25], [18, 25], [45, 25], [3, -22], [-25, -50], [25, -50]], float)


def height(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The relief of conftest.py as a function: mm towards the viewer."""
    dome = 60 - x**2 / 110 - y**2 / 210 - 7 * np.exp(-((x + 30) ** 2 + (y - 25) ** 2) / 200)
    return dome + 22 * np.exp(-((x - 3) ** 2) / 160 - (y + 5) ** 2 / 500)


def on_surface(xy: np.ndarray) -> np.ndarray:
    return np.column_stack([xy, height(*xy.T)])


def bump(depth: float, x: float, y: float, width: float = 8.0) -> np.ndarray:
    """[N] mm of a smooth hill."""
    return depth * np.exp(-((X - x) ** 2 + (Y - y) ** 2) / (2 * width**2))


def raised(face: MarkedMesh, by: np.ndarray) -> MarkedMesh:
    return dataclasses.replace(face, vertices=face.vertices + np.outer(by, [0, 0, 1]))


@pytest.fixture(scope="module")
def face() -> MarkedMesh:
    ids = np.arange(SIDE * SIDE).reshape(SIDE, SIDE)
    a, b, c, d = (corner.ravel() for corner in (ids[:-1, :-1], ids[:-1, 1:], ids[1:, :-1], ids[1:, 1:]))
    triangles = np.concatenate([np.stack([a, d, b], 1), np.stack([a, c, d], 1)])
    return MarkedMesh(on_surface(np.column_stack([X, Y])), triangles, on_surface(MARKS))


def test_a_copy_that_was_moved_or_scaled_is_off_nowhere(face: MarkedMesh) -> None:
    """Size is free: the first alignment takes it from the landmarks, as REALY does."""
    for copy in (
        face,
        moved(face, dataclasses.replace(MOVED, scale=1.0)),
        scaled(face, 1.2),
        scaled(face, 1e-3),
    ):
        for region, errors in regional_errors(face, copy).items():
            assert errors.max() < 1e-3, region


def test_size_is_the_landmarks_and_not_fitted_again(face: MarkedMesh) -> None:
    """A face that is 5 % too large for its own landmarks stays so: regions move rigidly."""
    larger = dataclasses.replace(face, vertices=scaled(face, 1.05).vertices)
    assert min(measure_realy(face, larger).values()) > 0.3


@pytest.mark.parametrize("depth", [2.0, 4.0])
def test_a_bump_on_the_nose_is_an_error_of_the_nose_alone(face: MarkedMesh, depth: float) -> None:
    by = bump(depth, 3, 0)
    errors = regional_errors(face, raised(face, by))
    expected = by[landmark_regions(face) == SCAN_REGIONS.index("nose")].mean()
    # less than the height above, as the closest points lie aside and the rigid motion takes a share
    assert 0.7 * expected < errors["nose"].mean() < 1.05 * expected
    assert 0.75 * depth < errors["nose"].max() < 1.05 * depth
    for region in ("mouth", "forehead", "cheek"):
        assert errors[region].mean() < 0.02 * expected, region


@pytest.mark.parametrize(("region", "x", "y"), [("mouth", 0, -52), ("forehead", 0, 68), ("cheek", 42, -20)])
def test_a_bump_elsewhere_is_found_where_it_is(face: MarkedMesh, region: str, x: float, y: float) -> None:
    errors = measure_realy(face, raised(face, bump(3.0, x, y)))
    rest = [errors[name] for name in SCAN_REGIONS if name != region]
    assert errors[region] > 0.1
    assert max(rest) < 0.2 * errors[region]
    assert errors["all"] == pytest.approx((errors[region] + sum(rest)) / 4)


def test_a_wrong_place_on_the_right_surface_counts(face: MarkedMesh) -> None:
    """A mouth predicted 8 mm too wide, on the very same surface: no distance to a surface can tell."""
    wide = MARKS.copy()
    wide[5:, 0] += [-4, 4]
    prediction = dataclasses.replace(face, landmarks_7=on_surface(wide))
    assert now(face, prediction).mean() < 0.01
    errors = regional_errors(face, prediction)
    assert 1.0 < errors["mouth"].mean() < 4.0
    assert errors["mouth"].mean() > 3 * max(errors[region].mean() for region in ("nose", "forehead", "cheek"))


def test_a_cloud_of_points_can_be_the_scan(face: MarkedMesh) -> None:
    cloud = dataclasses.replace(face, triangles=np.zeros((0, 3), np.int64))
    assert measure_realy(cloud, face)["all"] < 1e-3


def test_regions_lie_where_the_landmarks_say_in_any_pose(face: MarkedMesh) -> None:
    regions = landmark_regions(face)
    for region, spots in {
        "nose": [(3, -5), (0, 15), (-15, -15)],
        "mouth": [(0, -50), (28, -50), (0, -32)],
        "forehead": [(0, 60), (-50, 60)],
        "cheek": [(45, -10), (-50, -40)],
    }.items():
        ids = [np.hypot(X - x, Y - y).argmin() for x, y in spots]
        assert (regions[ids] == SCAN_REGIONS.index(region)).all(), region
    eyes = [np.hypot(X - x, Y - 25).argmin() for x in (-30, 30)]
    assert (regions[eyes] == -1).all()
    np.testing.assert_array_equal(
        landmark_regions(moved(face, dataclasses.replace(MOVED, scale=1.0))), regions
    )


def test_labels_of_the_scan_come_first(face: MarkedMesh, tmp_path: Path) -> None:
    labels = np.full(len(X), -1)
    for label, (x, y) in enumerate([(40, -10), (0, -50), (0, 60), (-40, -10)]):  # the "nose" lies on a cheek
        labels[np.hypot(X - x, Y - y) < 15] = label
    write(face, tmp_path / "a.ply")
    (tmp_path / "a.regions.txt").write_text("\n".join(map(str, labels)))
    scan = read_marked_mesh(tmp_path / "a.ply")
    assert scan.regions is not None
    np.testing.assert_array_equal(scan.regions, labels)
    errors = measure_realy(scan, raised(face, bump(3.0, 40, -10)))
    assert errors["nose"] > 0.3
    assert max(errors[region] for region in ("mouth", "forehead", "cheek")) < 0.05


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("0 1 2", r"a\.regions\.txt: expected a number from -1 to 3 for each vertex of 6561, got 3"),
        ("nose", r"a\.regions\.txt: expected a number from -1 to 3 for each vertex, got invalid literal"),
        ("4 " * 6561, r"a\.regions\.txt: expected a number from -1 to 3 for each vertex, got 4 to 4"),
    ],
)
def test_bad_labels_are_named(face: MarkedMesh, tmp_path: Path, content: str, words: str) -> None:
    write(face, tmp_path / "a.ply")
    (tmp_path / "a.regions.txt").write_text(content)
    with pytest.raises(MeshFileError, match=words):
        read_marked_mesh(tmp_path / "a.ply")


def test_a_scan_without_a_region_is_told(face: MarkedMesh) -> None:
    scan = dataclasses.replace(face, regions=np.zeros(len(X), np.int64))
    with pytest.raises(ValueError, match="at least 20 vertices with surface in the region 'mouth', got 0"):
        measure_realy(scan, face)


def test_faces_are_summarised_region_by_region() -> None:
    faces = [dict.fromkeys((*SCAN_REGIONS, "all"), value) | {"nose": 1.0} for value in (2.0, 4.0, 9.0)]
    summary = summarise_realy(faces)
    assert list(summary) == [*SCAN_REGIONS, "all"]
    assert summary["nose"] == pytest.approx({"mean_mm": 1, "median_mm": 1, "std_mm": 0})
    assert summary["all"] == pytest.approx({"mean_mm": 5, "median_mm": 4, "std_mm": np.sqrt(26 / 3)})
    with pytest.raises(ValueError, match="expected the errors of at least one face, got none"):
        summarise_realy([])


def test_the_command_shows_every_region(
    face: MarkedMesh, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(face, tmp_path / "scans" / "a.ply")
    prediction = moved(raised(face, bump(3.0, 3, 0)), Transform(0.001, np.eye(3), np.zeros(3)))
    write(prediction, tmp_path / "ours" / "a.obj")
    out = tmp_path / "realy.json"
    arguments = [
        "--predictions",
        str(tmp_path / "ours"),
        "--scans",
        str(tmp_path / "scans"),
        "--out",
        str(out),
    ]
    assert main(["evaluate", *arguments, "--prediction-unit", "m", "--protocol", "realy"]) == 0
    content = json.loads(out.read_text())
    assert content["nose"]["mean_mm"] == content["faces"]["a"]["nose"]["mean_mm"] > 0.2
    assert content["forehead"]["mean_mm"] < 0.02
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "realy, 1 faces (0 left out)"
    assert [line.split()[0] for line in lines[1:]] == [*SCAN_REGIONS, "all"]
    assert lines[1].split()[1::2] == ["mean_mm", "median_mm", "std_mm"]
    assert float(lines[1].split()[2]) == pytest.approx(content["nose"]["mean_mm"], abs=1e-4)
