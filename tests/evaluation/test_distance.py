from __future__ import annotations

import sys

import numpy as np
import pytest
import trimesh

from dfmvr.evaluation.distance import Surface, available_backend, closest_on_triangles

BACKENDS = [
    "kdtree",
    pytest.param(
        "open3d",
        marks=pytest.mark.skipif(available_backend() != "open3d", reason="open3d does not import here"),
    ),
]


@pytest.mark.parametrize("backend", BACKENDS)
def test_distances_to_a_plane_are_heights(backend: str) -> None:
    corners = np.array([[-100, -100, 5], [100, -100, 5], [100, 100, 5], [-100, 100, 5]], dtype=float)
    surface = Surface(corners, np.array([[0, 1, 2], [0, 2, 3]]), backend)
    rng = np.random.default_rng(0)
    queries = rng.uniform(-90, 90, (500, 3))
    closest = surface.closest(queries)
    np.testing.assert_allclose(closest.distances, np.abs(queries[:, 2] - 5), atol=2e-5)
    np.testing.assert_allclose(closest.points[:, :2], queries[:, :2], atol=1e-4)
    np.testing.assert_allclose(surface.plane_distances(queries, closest), closest.distances, atol=2e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_distances_to_a_sphere_are_differences_of_radius(backend: str, sphere: trimesh.Trimesh) -> None:
    surface = Surface(sphere.vertices, sphere.faces, backend)
    directions = np.random.default_rng(1).normal(size=(1000, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    for radius in (43.0, 50.0, 58.0):
        distances = surface.closest(radius * directions).distances
        np.testing.assert_allclose(
            distances, abs(radius - 50), atol=0.12
        )  # the triangles cut below the sphere
    np.testing.assert_allclose(surface.closest(sphere.vertices).distances, 0, atol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_agrees_with_trimesh_on_every_triangle(backend: str, relief: trimesh.Trimesh) -> None:
    surface = Surface(relief.vertices, relief.faces, backend)
    rng = np.random.default_rng(2)
    queries = relief.vertices[rng.permutation(len(relief.vertices))[:150]] + rng.normal(0, 3, (150, 3))
    _, expected, _ = trimesh.proximity.closest_point_naive(relief, queries)
    np.testing.assert_allclose(surface.closest(queries).distances, expected, atol=2e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_beyond_the_border_the_closest_point_lies_on_the_border(backend: str) -> None:
    surface = Surface(np.eye(3), np.array([[0, 1, 2]]), backend)
    closest = surface.closest(np.array([[3.0, 0.0, 0.0], [0.0, 0.0, 0.0]]))
    np.testing.assert_allclose(closest.points, [[1, 0, 0], [1 / 3, 1 / 3, 1 / 3]], atol=1e-6)
    np.testing.assert_allclose(closest.distances, [2, 1 / np.sqrt(3)], atol=1e-6)


def test_the_plane_distance_is_never_larger_on_a_flat_part_and_differs_at_the_border() -> None:
    surface = Surface(
        np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0]], dtype=float), np.array([[0, 1, 2]]), "kdtree"
    )
    queries = np.array([[-4.0, 0.0, 3.0]])
    closest = surface.closest(queries)
    assert closest.distances[0] == pytest.approx(5)
    assert surface.plane_distances(queries, closest)[0] == pytest.approx(3)


def test_closest_points_reach_faces_edges_and_corners_of_random_triangles() -> None:
    rng = np.random.default_rng(3)
    corners, queries = rng.normal(size=(400, 3, 3)), 2 * rng.normal(size=(400, 3))
    found = closest_on_triangles(queries, corners[:, 0], corners[:, 1], corners[:, 2])
    expected = trimesh.triangles.closest_point(corners, queries)
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_normals_point_outwards_and_survive_triangles_without_area(sphere: trimesh.Trimesh) -> None:
    triangles = np.concatenate([sphere.faces, [[0, 0, 1]]])
    surface = Surface(sphere.vertices, triangles, "kdtree")
    np.testing.assert_allclose(surface.vertex_normals, sphere.vertices / 50, atol=0.02)
    assert np.array_equal(surface.triangle_normals[-1], np.zeros(3))
    assert np.isfinite(surface.closest(sphere.vertices * 1.1).distances).all()


def test_a_vertex_that_no_triangle_uses_is_not_on_the_surface() -> None:
    vertices = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [9, 9, 9]], dtype=float)
    closest = Surface(vertices, np.array([[0, 1, 2]]), "kdtree").closest(np.array([[9.0, 9.0, 9.0]]))
    assert closest.distances[0] == pytest.approx(np.linalg.norm([8.5, 8.5, 9.0]))


def test_without_open3d_the_kdtree_takes_over_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "open3d", None)
    assert Surface(np.eye(3), np.array([[0, 1, 2]])).backend == "kdtree"
    with pytest.raises(ImportError):
        Surface(np.eye(3), np.array([[0, 1, 2]]), "open3d")


@pytest.mark.parametrize(
    ("vertices", "triangles", "message"),
    [
        (np.zeros((4, 2)), [[0, 1, 2]], r"vertices: expected shape \[N, 3\], got \[4, 2\]"),
        (np.eye(3), np.zeros((0, 3)), r"triangles: expected shape \[F, 3\] with F > 0, got \[0, 3\]"),
        (np.eye(3), [[0, 1, 3]], r"triangles: expected ids in 0\.\.2, got 0\.\.3"),
        (
            np.diag([1, np.nan, 1]),
            [[0, 1, 2]],
            r"vertices: expected finite mm, got 1 that are not, the first at 1",
        ),
    ],
)
def test_wrong_meshes_are_refused(vertices: np.ndarray, triangles: list, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Surface(vertices, np.asarray(triangles), "kdtree")


def test_an_unknown_backend_is_refused() -> None:
    with pytest.raises(ValueError, match="expected 'auto', 'open3d' or 'kdtree', got 'cgal'"):
        Surface(np.eye(3), np.array([[0, 1, 2]]), "cgal")
