"""Shape from shading on small surfaces, in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dfmvr.avatar.relief import (
    OUTLIER,
    Grid,
    ReliefFit,
    View,
    bent_normals,
    build_grid,
    log_shading,
    solve_relief,
)
from dfmvr.geometry.rotation import euler_to_matrix

SIZE = 24
TEXEL = 0.7
"""In mm."""


def cylinder(size: int = SIZE) -> tuple[np.ndarray, np.ndarray]:
    """Positions and normals [S, S, 3] of a part of a cylinder, of texels that are not quite square."""
    rows, columns = np.mgrid[:size, :size] - size / 2
    angle = columns * TEXEL / 40
    normals = np.stack([np.sin(angle), np.zeros_like(angle), np.cos(angle)], -1)
    return 40 * normals - rows[..., None] * 1.2 * TEXEL * np.array([0, 1, 0]), normals


def domain(size: int = SIZE) -> np.ndarray:
    inside = np.zeros((size, size), bool)
    inside[2:-2, 3:-2] = True
    inside[8:11, 8:11] = False  # a hole
    return inside


def waves(inside: np.ndarray, height: float = 0.1) -> np.ndarray:
    """A relief [S, S] that fades out towards the domain's border."""
    size = len(inside)
    rows, columns = np.mgrid[:size, :size]
    fade = np.sin(np.pi * rows / size) * np.sin(np.pi * columns / size)
    return height * fade * np.sin(2 * np.pi * (rows + 2 * columns) / 18) * inside


@pytest.fixture(scope="module")
def grid() -> Grid:
    return build_grid(*cylinder(), domain())


def view(grid: Grid, yaw: float, relief: np.ndarray | None = None) -> View:
    """A view in light from its upper left; of a relief [T], or with noise."""
    rng = np.random.default_rng(7)
    light = np.zeros((9, 3))
    light[:5] = [[0.8, 0.75, 0.7], [0.2, 0.2, 0.2], [0.2, 0.2, 0.3], [-0.3, -0.3, -0.2], [0.1, 0, 0]]
    rotation = euler_to_matrix(torch.tensor([0.1, yaw, 0.0], dtype=torch.float64)).numpy()
    size = len(grid.normals)
    seen = View(rotation, light, np.zeros(size), rng.uniform(0.3, 1, size))
    normals = grid.normals if relief is None else grid.bent(relief)
    observed = log_shading(torch.from_numpy(normals), seen).numpy()
    if relief is None:
        observed = observed + rng.normal(0, 0.1, size)
    return View(rotation, light, observed, seen.weights)


def test_the_gradient_is_the_objectives(grid: Grid) -> None:
    fit = ReliefFit(grid, [view(grid, 0.4), view(grid, -0.4)])
    rng = np.random.default_rng(0)
    relief = rng.normal(0, 0.05, len(grid.normals))
    gradient, _ = fit.normal_equations(relief)
    for way in rng.normal(size=(4, len(relief))):
        step = 1e-6 * way
        slope = (fit.objective(relief + step) - fit.objective(relief - step)) / 2e-6
        assert gradient @ way == pytest.approx(slope, rel=1e-5)


def test_the_hessian_is_that_of_the_residuals_jacobian(grid: Grid) -> None:
    """Gauss and Newton's: J^T W J + precision, with J by finite differences."""
    fit = ReliefFit(grid, [view(grid, 0.4)])
    rng = np.random.default_rng(1)
    relief = rng.normal(0, 0.05, len(grid.normals))
    _, hessian = fit.normal_equations(relief)
    (residual,) = fit.residuals(relief)
    weights = view(grid, 0.4).weights / (1 + (residual / OUTLIER) ** 2) ** 2
    way = rng.normal(size=len(relief))
    (above,), (below,) = fit.residuals(relief + 1e-6 * way), fit.residuals(relief - 1e-6 * way)
    turned = (above - below) / 2e-6
    expected = (weights * turned**2).sum() + way @ (fit.precision @ way)
    assert way @ (hessian @ way) == pytest.approx(expected, rel=1e-6)


def test_bent_normals_are_those_of_the_moved_surface() -> None:
    """To first order in the relief's height; the moved surface's are taken by differences of its places."""
    positions, normals = cylinder(48)
    inside = domain(48)
    inside[8:11, 8:11] = True
    relief = waves(inside, 0.02)
    moved = positions + relief[..., None] * normals
    across, down = np.gradient(moved, axis=1), np.gradient(moved, axis=0)
    expected = np.cross(down, across)
    expected /= np.linalg.norm(expected, axis=-1, keepdims=True)
    middle = (slice(4, -4), slice(4, -4))
    turn = np.abs(expected - normals)[middle].max()
    difference = np.abs(bent_normals(positions, normals, relief) - expected)[middle].max()
    assert turn > 0.015
    assert difference < 0.05 * turn
    grid = build_grid(positions, normals, inside)
    bent = grid.bent(relief[inside])
    bent /= np.linalg.norm(bent, axis=1, keepdims=True)
    np.testing.assert_allclose(bent, bent_normals(positions, normals, relief)[inside], atol=1e-12)


def test_a_relief_is_found_again() -> None:
    """From two views, without noise; slopes across the light are what is told least."""
    inside = domain(48)
    grid = build_grid(*cylinder(48), inside)
    truth = waves(inside)[inside]
    found = solve_relief(ReliefFit(grid, [view(grid, yaw, truth) for yaw in (-0.5, 0.5)]), len(truth))
    assert np.corrcoef(found, truth)[0, 1] > 0.9
    assert np.sqrt(((found - truth) ** 2).mean()) < 0.6 * np.sqrt((truth**2).mean())


def test_a_domain_at_the_edge_is_refused() -> None:
    with pytest.raises(ValueError, match="a domain off the grid's edge"):
        build_grid(*cylinder(), np.ones((SIZE, SIZE), bool))
