"""Published protocols against truth that is known without this project's code."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import trimesh

from dfmvr.cli import PROTOCOL_NAMES, main
from dfmvr.evaluation.mesh_files import MarkedMesh, MeshFileError, pair_files, read_marked_mesh
from dfmvr.evaluation.published import PROTOCOLS, measure_published, nose_tip, summarise
from dfmvr.evaluation.registration import Transform
from tests.evaluation.test_registration import MOVED

RADIUS = 50.0


def marked(mesh: trimesh.Trimesh, landmarks: np.ndarray) -> MarkedMesh:
    return MarkedMesh(np.asarray(mesh.vertices, float), np.asarray(mesh.faces, np.int64), landmarks)


def moved(mesh: MarkedMesh, transform: Transform) -> MarkedMesh:
    return MarkedMesh(transform.apply(mesh.vertices), mesh.triangles, transform.apply(mesh.landmarks_7))


def scaled(mesh: MarkedMesh, factor: float) -> MarkedMesh:
    return moved(mesh, Transform(factor, np.eye(3), np.zeros(3)))


@pytest.fixture(scope="module")
def ball(sphere: trimesh.Trimesh) -> MarkedMesh:
    """A sphere about the origin, whose landmarks lie so far apart that the crop holds all of it."""
    eyes = [[-60, 30, 30], [-20, 30, 45], [20, 30, 45], [60, 30, 30]]
    return marked(sphere, np.array([*eyes, [0, -45, 20], [-25, -60, 30], [25, -60, 30]], float))


@pytest.fixture(scope="module")
def face(relief: trimesh.Trimesh) -> MarkedMesh:
    """The relief with landmarks where a face has them."""
    xy = np.array([[-45, 25], [-18, 25], [18, 25], [45, 25], [3, -22], [-25, -50], [25, -50]], float)
    ids = [np.linalg.norm(relief.vertices[:, :2] - point, axis=1).argmin() for point in xy]
    return marked(relief, np.asarray(relief.vertices, float)[ids])


@pytest.mark.parametrize("thicker", [-2.0, 0.5, 3.0])
def test_a_sphere_that_is_larger_by_d_is_off_by_d(ball: MarkedMesh, thicker: float) -> None:
    larger = dataclasses.replace(ball, vertices=ball.vertices * (1 + thicker / RADIUS))
    distances = measure_published("now-metrical", ball, larger)
    assert len(distances) == len(ball.vertices)
    # the triangles of a sphere cut a little off it
    np.testing.assert_allclose(distances, abs(thicker), atol=0.1)
    assert summarise("now-metrical", [distances])["median_mm"] == pytest.approx(abs(thicker), abs=0.1)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_copy_that_was_moved_is_not_off(face: MarkedMesh, protocol: str) -> None:
    rigid = dataclasses.replace(MOVED, scale=1.0)
    distances = measure_published(protocol, face, moved(face, rigid))
    assert distances.max() < 1e-3


def test_a_scaled_copy_is_off_only_where_size_counts(ball: MarkedMesh, face: MarkedMesh) -> None:
    for protocol in set(PROTOCOLS) - {"now-metrical"}:
        assert measure_published(protocol, face, scaled(face, 1.1)).max() < 1e-3, protocol
    distances = measure_published("now-metrical", ball, scaled(ball, 1.1))
    np.testing.assert_allclose(distances, 0.1 * RADIUS, atol=0.1)


def test_distances_are_the_scans_millimetres(face: MarkedMesh) -> None:
    """A prediction in metres is as good as in millimetres where size is free, and no better."""
    bumpy = dataclasses.replace(face, vertices=face.vertices + [0, 0, 1] * np.sin(face.vertices[:, :1]))
    expected = measure_published("now", face, bumpy)
    assert expected.mean() > 0.1
    np.testing.assert_allclose(measure_published("now", face, scaled(bumpy, 1e-3)), expected, atol=1e-2)


def test_now_pools_vertices_and_the_others_average_scans() -> None:
    faces = [np.zeros(30), np.full(10, 4.0)]
    assert summarise("now", faces) == pytest.approx({"median_mm": 0, "mean_mm": 1, "std_mm": np.sqrt(3)})
    assert summarise("df-mvr", faces) == pytest.approx({"rmse_mm": 2, "rmse_std_mm": 2})
    legacy = summarise("df-mvr-legacy", [np.array([1.0, 3.0]), np.array([4.0])])
    assert legacy == pytest.approx({"mean_distance_mm": 3, "mean_distance_std_mm": 1})


def test_the_tip_of_the_nose_is_foremost(face: MarkedMesh) -> None:
    tip = nose_tip(moved(face, MOVED))
    np.testing.assert_allclose(MOVED.invert(tip[None])[0][:2], [3, -3], atol=5)


def test_a_cloud_of_points_can_be_the_scan(face: MarkedMesh) -> None:
    cloud = dataclasses.replace(face, triangles=np.zeros((0, 3), np.int64))
    assert measure_published("now", cloud, face).max() < 1e-3


def test_what_cannot_be_measured_is_told(face: MarkedMesh) -> None:
    far = dataclasses.replace(face, landmarks_7=face.landmarks_7 + 1000)
    with pytest.raises(ValueError, match=r"scan: expected surface within \d+ mm of .*, got none of 3721"):
        measure_published("now", far, face)
    with pytest.raises(ValueError, match="scan: expected vertices within 40 mm of the nose, got none"):
        measure_published("micc", far, face)
    with pytest.raises(ValueError, match=r"protocol: expected one of now, .*, got 'nwo'"):
        measure_published("nwo", face, face)


def write(mesh: MarkedMesh, path: Path, landmarks: str = ".npy") -> None:
    path.parent.mkdir(exist_ok=True)
    trimesh.Trimesh(mesh.vertices, mesh.triangles, process=False).export(path)
    beside = path.with_suffix(landmarks)
    match landmarks:
        case ".npy":
            np.save(beside, mesh.landmarks_7)
        case ".txt":
            np.savetxt(beside, mesh.landmarks_7)
        case _:
            beside.write_text(json.dumps(mesh.landmarks_7.tolist()))


@pytest.mark.parametrize(("mesh", "landmarks"), [(".obj", ".npy"), (".ply", ".txt"), (".stl", ".json")])
def test_meshes_of_any_kind_are_read_in_their_unit(
    face: MarkedMesh, tmp_path: Path, mesh: str, landmarks: str
) -> None:
    write(scaled(face, 0.1), tmp_path / f"a{mesh}", landmarks)
    read = read_marked_mesh(tmp_path / f"a{mesh}", "cm")
    np.testing.assert_allclose(read.landmarks_7, face.landmarks_7, atol=1e-4)
    assert len(read.triangles) == len(face.triangles)
    assert measure_published("now-metrical", face, read).max() < 1e-2


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        (
            "a.npy",
            None,
            r"a\.ply: expected its seven landmarks in one of a\.npy, a\.txt, a\.json, found none",
        ),
        ("a.txt", "1 2 3\n", r"a\.txt: expected finite landmarks \[7, 3\], got \[3\]"),
        ("a.json", "{}", r"a\.json: expected seven landmarks, got"),
        ("a.json", "[[null]]", r"a\.json: expected seven landmarks, got|expected finite landmarks"),
        ("a.npy", "pickle", r"a\.npy: expected seven landmarks, got"),
    ],
)
def test_bad_landmarks_are_named(
    face: MarkedMesh, tmp_path: Path, name: str, content: str | None, words: str
) -> None:
    write(face, tmp_path / "a.ply")
    (tmp_path / "a.npy").unlink()
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(MeshFileError, match=words):
        read_marked_mesh(tmp_path / "a.ply")


def test_bad_meshes_are_named(face: MarkedMesh, tmp_path: Path) -> None:
    (tmp_path / "a.ply").write_text("no mesh")
    with pytest.raises(MeshFileError, match=r"a\.ply: expected a mesh, got"):
        read_marked_mesh(tmp_path / "a.ply")
    broken = face.vertices.copy()
    broken[7] = np.nan
    write(dataclasses.replace(face, vertices=broken), tmp_path / "b.ply")
    with pytest.raises(MeshFileError, match=r"b\.ply: expected finite vertices, got NaN or infinity"):
        read_marked_mesh(tmp_path / "b.ply")


def test_files_are_paired_by_name_and_the_rest_is_told(face: MarkedMesh, tmp_path: Path) -> None:
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    for path in (ours / "a.obj", theirs / "a.ply", ours / "b.obj", theirs / "c.ply", ours / "d.obj"):
        write(face, path)
    for path in (ours / "d.ply", theirs / "d.ply"):
        write(face, path)
    pairs, problems = pair_files(ours, theirs)
    assert [(pair.name, pair.prediction.name, pair.scan.name) for pair in pairs] == [("a", "a.obj", "a.ply")]
    assert [problem.split(",")[0] for problem in problems] == [
        f"{name}: expected one mesh in each folder" for name in "bcd"
    ]
    with pytest.raises(MeshFileError, match="expected a folder of meshes, found none"):
        pair_files(ours, tmp_path / "nothing")


def test_the_command_measures_what_it_can(
    face: MarkedMesh, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    for name in ("a", "b"):
        write(scaled(face, 0.001), ours / f"{name}.obj")
        write(face, theirs / f"{name}.ply")
    (ours / "b.npy").unlink()
    arguments = ["--predictions", str(ours), "--scans", str(theirs), "--prediction-unit", "m"]
    out = tmp_path / "results" / "now.json"
    assert main(["evaluate", *arguments, "--protocol", "now-metrical", "--out", str(out)]) == 0
    told = capsys.readouterr()
    assert "now-metrical, 1 faces (1 left out)" in told.out
    assert "left out: b: " in told.err
    content = json.loads(out.read_text())
    assert content["mean_mm"] == content["faces"]["a"]["mean_mm"] < 1e-2
    assert len(content["left_out"]) == 1
    (theirs / "a.npy").unlink()
    assert main(["evaluate", *arguments, "--protocol", "now"]) == 2
    assert "expected at least one face to measure, got none of 2" in capsys.readouterr().err


def test_the_command_line_names_every_protocol() -> None:
    assert (*PROTOCOLS, "realy") == PROTOCOL_NAMES
