from __future__ import annotations

import numpy as np
import pytest
import trimesh
from scipy.spatial.transform import Rotation

from dfmvr.evaluation.distance import Surface
from dfmvr.evaluation.registration import Transform, align_points, refine

MOVED = Transform(
    1.04, Rotation.from_euler("xyz", [4, -5, 3], degrees=True).as_matrix(), np.array([3.0, -2, 4])
)


def turned(degrees: tuple[float, float, float], scale: float, shift: tuple[float, float, float]) -> Transform:
    return Transform(scale, Rotation.from_euler("xyz", degrees, degrees=True).as_matrix(), np.array(shift))


def assert_same(found: Transform, expected: Transform, points: np.ndarray, atol: float) -> None:
    np.testing.assert_allclose(found.apply(points), expected.apply(points), atol=atol)


def test_transforms_compose_and_invert() -> None:
    points = np.random.default_rng(0).normal(size=(20, 3))
    other = turned((20, 30, -70), 0.5, (1, 2, 3))
    np.testing.assert_allclose(other.after(MOVED).apply(points), other.apply(MOVED.apply(points)), atol=1e-12)
    np.testing.assert_allclose(MOVED.invert(MOVED.apply(points)), points, atol=1e-12)


@pytest.mark.parametrize("with_scale", [True, False])
def test_landmarks_alone_find_an_exact_similarity(with_scale: bool) -> None:
    points = np.random.default_rng(1).normal(size=(7, 3)) * 30
    truth = turned((10, -40, 5), 1.3 if with_scale else 1.0, (5, 6, -7))
    found = align_points(points, truth.apply(points), with_scale=with_scale)
    assert found.scale == pytest.approx(truth.scale)
    assert_same(found, truth, points, 1e-9)


def test_landmarks_of_two_counts_are_refused() -> None:
    with pytest.raises(ValueError, match=r"expected two arrays \[K, 3\], got \[7, 3\] and \[6, 3\]"):
        align_points(np.zeros((7, 3)), np.zeros((6, 3)), with_scale=True)


@pytest.mark.parametrize("backend", ["kdtree", "auto"])
def test_refinement_converges_to_the_known_similarity(backend: str, relief: trimesh.Trimesh) -> None:
    surface = Surface(relief.vertices, relief.faces, backend)
    on_surface = trimesh.sample.sample_surface(relief, 1500, seed=1)[0]
    start = turned((-2, 3, 1), 0.98, (2, 3, -2)).after(MOVED)
    fit = refine(surface, MOVED.apply(on_surface), start, with_scale=True)
    assert fit.converged
    assert fit.iterations <= 25
    assert fit.transform.scale == pytest.approx(MOVED.scale, abs=1e-5)
    assert_same(fit.transform, MOVED, relief.vertices, 5e-3)


def test_refinement_without_scale_keeps_the_scale(relief: trimesh.Trimesh) -> None:
    surface = Surface(relief.vertices, relief.faces, "kdtree")
    rigid = turned((4, -5, 3), 1.0, (3, -2, 4))
    start = turned((-2, 3, 1), 1.0, (2, 3, -2)).after(rigid)
    fit = refine(surface, rigid.apply(relief.vertices[::3]), start, with_scale=False)
    assert fit.transform.scale == 1.0
    assert_same(fit.transform, rigid, relief.vertices, 5e-3)


def test_refinement_under_noise_ends_where_the_distances_are_least(relief: trimesh.Trimesh) -> None:
    surface = Surface(relief.vertices, relief.faces, "auto")
    rng = np.random.default_rng(4)
    inner = relief.vertices[np.abs(relief.vertices[:, :2] / [80, 100]).max(axis=1) < 0.9]
    points = MOVED.apply(inner) + rng.normal(0, 0.5, inner.shape)
    fit = refine(surface, points, turned((1, 2, -1), 1.01, (1, 1, 1)).after(MOVED), with_scale=True)

    def rms(transform: Transform) -> float:
        closest = surface.closest(transform.invert(points))
        return float(np.sqrt(np.mean((transform.scale * closest.distances) ** 2)))

    assert_same(fit.transform, MOVED, relief.vertices, 0.3)
    best = rms(fit.transform)
    assert best == pytest.approx(0.5, rel=0.1)  # only the noise along the normal remains
    for degrees, scale, shift in (
        ((0.1, 0, 0), 1, (0, 0, 0)),
        ((0, -0.1, 0), 1, (0, 0, 0)),
        ((0, 0, 0.2), 1, (0, 0, 0)),
        ((0, 0, 0), 1.002, (0, 0, 0)),
        ((0, 0, 0), 1, (0.3, 0, 0)),
        ((0, 0, 0), 1, (0, -0.3, 0)),
        ((0, 0, 0), 1, (0, 0, 0.1)),
    ):
        assert rms(turned(degrees, scale, shift).after(fit.transform)) > best


def test_a_planar_scan_leaves_what_it_cannot_see_alone() -> None:
    """On a plane, sliding, turning about the normal and growing change nothing: only the height is found."""
    corners = np.array([[-100, -100, 0], [100, -100, 0], [100, 100, 0], [-100, 100, 0]], dtype=float)
    surface = Surface(corners, np.array([[0, 1, 2], [0, 2, 3]]), "kdtree")
    grid = np.stack(np.meshgrid(np.linspace(-40, 40, 9), np.linspace(-40, 40, 9)), -1).reshape(-1, 2)
    points = np.concatenate([grid, np.full((81, 1), 6.0)], axis=1)
    fit = refine(surface, points, turned((2, 1, 0), 1.0, (0, 0, 0)), with_scale=True)
    assert fit.converged
    assert fit.transform.scale == pytest.approx(1, abs=1e-3)
    assert np.abs(fit.transform.apply(np.zeros((1, 3)))[0, :2]).max() < 0.5
    np.testing.assert_allclose(surface.closest(fit.transform.invert(points)).distances, 0, atol=1e-3)


def test_too_few_iterations_are_told(relief: trimesh.Trimesh) -> None:
    surface = Surface(relief.vertices, relief.faces, "kdtree")
    fit = refine(
        surface,
        MOVED.apply(relief.vertices[::9]),
        turned((0, 0, 0), 1, (0, 0, 0)),
        with_scale=True,
        iterations=1,
    )
    assert not fit.converged
    assert fit.iterations == 1
