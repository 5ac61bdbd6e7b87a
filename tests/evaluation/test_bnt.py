"""Bosphorus' files, written here in the layout that its readers agree on."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
import trimesh

from dfmvr.cli import main
from dfmvr.data.datasets.bnt import landmarks_7, parse_bnt, parse_landmarks
from dfmvr.evaluation.bnt import read_scan
from dfmvr.evaluation.mesh_files import MarkedMesh, MeshFileError, pair_files
from tests.evaluation.test_published import write

BACKGROUND = -1e9
ROWS, COLUMNS = 61, 51
X, Y = np.meshgrid(np.linspace(-75, 75, COLUMNS), np.linspace(-90, 90, ROWS))
TIP, BOTTOM, LIP = np.array([0.0, 6.0, 68.0]), np.array([0.0, -15.0, 50.0]), np.array([0.0, -30.0, 52.0])

NAMED = {
    "Outer left eye corner": [45, 33, 40],
    "Inner left eye corner": [18, 33, 45],
    "Inner right eye corner": [-18, 33, 45],
    "Outer right eye corner": [-45, 33, 40],
    "Nose tip": TIP,
    "Left mouth corner": [24, -39, 45],
    "Right mouth corner": [-24, -39, 45],
    "Upper lip outer middle": LIP,
    "Chin middle": [0, -66, 45],
}


def face_grid() -> np.ndarray:
    """A face [ROWS, COLUMNS, 3] whose profile bends sharply at the nose's bottom."""
    z = 52 - X**2 / 150 - np.maximum(np.abs(Y) - 40, 0) ** 2 / 150
    ridge = np.interp(Y, [BOTTOM[1], TIP[1], 40], [-2, 16, 0], left=0, right=0)
    return np.stack([X, Y, z + ridge * np.exp(-((X / 12) ** 2))], axis=-1)


def write_bnt(path: Path, grid: np.ndarray, hidden: np.ndarray | None = None) -> Path:
    """Write a grid, with background where `hidden` says so."""
    values = np.concatenate([grid, np.zeros((*grid.shape[:2], 2))], axis=-1)
    if hidden is not None:
        values[hidden] = BACKGROUND
    name = f"{path.stem}.png".encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    header = struct.pack("<HHdH", *grid.shape[:2], BACKGROUND, len(name)) + name
    numbers = values.transpose(2, 0, 1).astype("<f8")
    path.write_bytes(header + struct.pack("<I", values.size) + numbers.tobytes())
    return path


def read_bnt(path: Path) -> tuple[np.ndarray, np.ndarray]:
    return parse_bnt(str(path), path.read_bytes())


def read_lm3(path: Path) -> dict[str, np.ndarray]:
    return parse_landmarks(str(path), path.read_bytes())


def write_lm3(path: Path, named: dict[str, object] = NAMED) -> Path:
    lines = ["# comment", "# another", "", f"{len(named)} landmarks:"]
    for name, point in named.items():
        lines += [name, " ".join(map(str, np.asarray(point)))]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")
    return path


def test_a_grid_becomes_a_surface_that_faces_the_viewer(tmp_path: Path) -> None:
    for grid in (face_grid(), face_grid()[::-1]):  # whether y rises or falls with the rows
        vertices, triangles = read_bnt(write_bnt(tmp_path / "a.bnt", grid))
        assert len(triangles) == 2 * (ROWS - 1) * (COLUMNS - 1)
        np.testing.assert_array_equal(np.unique(vertices, axis=0), np.unique(grid.reshape(-1, 3), axis=0))
        mesh = trimesh.Trimesh(vertices, triangles, process=False)
        assert mesh.face_normals[:, 2].min() > 0
        assert mesh.is_winding_consistent


def test_background_and_jumps_in_depth_are_left_out(tmp_path: Path) -> None:
    grid = face_grid()
    hidden = np.zeros((ROWS, COLUMNS), bool)
    hidden[:5], hidden[30, 20] = True, True
    vertices, triangles = read_bnt(write_bnt(tmp_path / "a.bnt", grid, hidden))
    assert len(vertices) == ROWS * COLUMNS - hidden.sum()
    assert np.abs(vertices).max() < 1000
    # of the hole's four cells each keeps the triangle of its other corners
    assert len(triangles) == 2 * (ROWS - 6) * (COLUMNS - 1) - 4
    grid[:, :10, 2] -= 100
    vertices, triangles = read_bnt(write_bnt(tmp_path / "b.bnt", grid, hidden))
    edges = np.linalg.norm(vertices[triangles] - np.roll(vertices[triangles], 1, axis=1), axis=2)
    assert edges.max() < 20
    assert len(triangles) == 2 * (ROWS - 6) * (COLUMNS - 2) - 4


def test_a_lone_point_is_no_surface(tmp_path: Path) -> None:
    grid = face_grid()
    grid[20, 20, 2] += 300
    vertices, _ = read_bnt(write_bnt(tmp_path / "a.bnt", grid))
    assert len(vertices) == ROWS * COLUMNS - 1
    assert vertices[:, 2].max() < 100


def test_scans_that_are_not_what_they_should_be_are_told(tmp_path: Path) -> None:
    data = write_bnt(tmp_path / "a.bnt", face_grid()).read_bytes()
    start = len(data) - 8 * ROWS * COLUMNS * 5 - 4
    wrong = struct.pack("<I", 7)
    for content, words in {
        data[:10]: r"bad\.bnt: expected a Bosphorus scan, got 10 bytes: no header",
        data[:20]: r"bad\.bnt: expected a Bosphorus scan, got 20 bytes: no header",
        data[:-8]: rf"bad\.bnt: expected {len(data)} bytes, got {len(data) - 8}",
        data + b"\0": rf"bad\.bnt: expected {len(data)} bytes, got {len(data) + 1}",
        data[:start] + wrong + data[start + 4 :]: (
            rf"bad\.bnt: expected 5 numbers for each of {ROWS} x {COLUMNS} points, got a count of 7"
        ),
    }.items():
        (tmp_path / "bad.bnt").write_bytes(content)
        with pytest.raises(ValueError, match=words):
            read_bnt(tmp_path / "bad.bnt")


def test_another_order_of_the_points_is_noticed(tmp_path: Path) -> None:
    shuffled = face_grid().swapaxes(0, 1).reshape(ROWS, COLUMNS, 3)
    with pytest.raises(ValueError, match=r"expected points row after row, .* got 3\.\d\d and \d\d\."):
        read_bnt(write_bnt(tmp_path / "a.bnt", shuffled))
    with pytest.raises(ValueError, match=r"expected points row after row, .* got nan and nan"):
        read_bnt(write_bnt(tmp_path / "b.bnt", face_grid(), np.ones((ROWS, COLUMNS), bool)))


def test_landmarks_are_read_by_name(tmp_path: Path) -> None:
    landmarks = read_lm3(write_lm3(tmp_path / "a.lm3"))
    assert list(landmarks) == [name.lower() for name in NAMED]
    np.testing.assert_array_equal(landmarks["nose tip"], TIP)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", r"a\.lm3: expected a line such as '22 landmarks:', got \[\]"),
        (
            "# 2 landmarks:\nNose tip\n",
            r"a\.lm3: expected a line such as '22 landmarks:', got \['Nose tip'\]",
        ),
        ("2 landmarks:\nNose tip\n1 2 3\nChin middle\n", "expected 2 names and as many points, got 2 and 1"),
        ("1 landmarks:\nNose tip\n1 2\n", r"a\.lm3: expected x y z of Nose tip, got '1 2'"),
        ("1 landmarks:\nNose tip\n1 2 nan\n", r"a\.lm3: expected x y z of Nose tip, got '1 2 nan'"),
        ("1 landmarks:\nNose tip\n1 2 z\n", r"a\.lm3: expected x y z of Nose tip, got '1 2 z'"),
    ],
)
def test_bad_landmarks_are_told(tmp_path: Path, content: str, words: str) -> None:
    (tmp_path / "a.lm3").write_text(content)
    with pytest.raises(ValueError, match=words):
        read_lm3(tmp_path / "a.lm3")


def test_a_scan_gets_its_seven_landmarks(tmp_path: Path) -> None:
    write_lm3(tmp_path / "a.lm3")
    scan = read_scan(write_bnt(tmp_path / "a.bnt", face_grid()))
    corners = scan.landmarks_7[[0, 1, 2, 3, 5, 6]]
    assert corners[:, 0].tolist() == [-45, -18, 18, 45, -24, 24]  # the subject's right first
    np.testing.assert_allclose(scan.landmarks_7[4], BOTTOM, atol=3.1)  # a step of the grid
    in_metres = read_scan(tmp_path / "a.bnt", "m")
    np.testing.assert_allclose(in_metres.vertices, 1000 * scan.vertices)


def test_sides_are_told_by_where_they_lie(tmp_path: Path) -> None:
    """Whether left is the subject's or the viewer's, the landmarks come out alike."""
    swapped = {
        name.lower().replace("left", "?").replace("right", "left").replace("?", "right"): point
        for name, point in NAMED.items()
    }
    vertices, _ = read_bnt(write_bnt(tmp_path / "a.bnt", face_grid()))
    ours, theirs = (
        landmarks_7(read_lm3(write_lm3(tmp_path / f"{i}.lm3", named)), vertices)
        for i, named in enumerate((NAMED, swapped))
    )
    np.testing.assert_array_equal(ours, theirs)


def test_missing_landmarks_are_told(tmp_path: Path) -> None:
    path = write_bnt(tmp_path / "a.bnt", face_grid())
    with pytest.raises(MeshFileError, match=r"a\.bnt: expected its landmarks in a\.lm3, found none"):
        read_scan(path)
    write_lm3(tmp_path / "a.lm3", {name: point for name, point in NAMED.items() if name != "Nose tip"})
    with pytest.raises(MeshFileError, match=r"a\.lm3: expected outer left eye corner, .*, found no nose tip"):
        read_scan(path)
    write_lm3(tmp_path / "a.lm3", {name: np.add(point, 500) for name, point in NAMED.items()})
    with pytest.raises(MeshFileError, match="expected scan within 3 mm of the midline below the nose"):
        read_scan(path)


def test_the_command_finds_scans_of_subjects(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scans, ours = tmp_path / "scans", tmp_path / "ours"
    path = write_bnt(scans / "bs000" / "bs000_N_N_0.bnt", face_grid())
    write_lm3(path.with_suffix(".lm3"))
    scan = read_scan(path)
    write(MarkedMesh(scan.vertices + 7, scan.triangles, scan.landmarks_7 + 7), ours / "bs000_N_N_0.obj")
    assert [pair.scan for pair in pair_files(ours, scans)[0]] == [path]
    arguments = ["--predictions", str(ours), "--scans", str(scans), "--protocol", "now"]
    assert main(["evaluate", *arguments]) == 0
    told = capsys.readouterr().out.splitlines()
    assert told[0] == "now, 1 faces (0 left out)"
    assert float(told[1].removeprefix("median_mm")) < 1e-3


def test_predictions_are_no_scans(tmp_path: Path) -> None:
    write_bnt(tmp_path / "ours" / "a.bnt", face_grid())
    write_bnt(tmp_path / "scans" / "a.bnt", face_grid())
    with pytest.raises(MeshFileError, match=r"ours: expected meshes \(\.obj, .*\.off\), found none"):
        pair_files(tmp_path / "ours", tmp_path / "scans")
