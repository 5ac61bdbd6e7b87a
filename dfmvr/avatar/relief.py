"""A relief on a surface from its shading: the problem of least squares behind detail.py.

The surface is a grid of texels; the relief d moves each along its normal n by d mm. To first order the new
normal is along m = n - a^u d_u - a^v d_v, where d_u and d_v are differences along the grid and a^u, a^v the
dual basis of the grid's tangents (a^i x_j = delta_ij). What a view observes at a texel is the logarithm of
the shading of m / |m|; its light is known. The relief found minimises

    1/2 sum_v w_v (rho(observed_v - log shading_v(m)))  +  1/2 sum (d / DEPTH)^2  +  1/2 sum (lap d / BEND)^2

with Geman and McClure's rho. The second term keeps the relief off what shading tells least, coarse shape; the
third one keeps noise out. Gauss-Newton steps, each solved by conjugate gradients. (Shading that is linear in
the slopes: Pentland, "Linear shape from shading", IJCV 1990; here it is linearised around a known surface.)

Axis letters: T texel of the domain, V view.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dfmvr.lighting import sh_basis

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

Array = NDArray[Any]

DEPTH = 0.5
"""How deep a relief is, one standard deviation in mm."""
BEND = 0.2
"""How much it bends: of the Laplacian, in 1/mm."""
NOISE = 0.04
"""How far the logarithm of a view's shading is off."""
OUTLIER = 4.0
"""Number of those deviations beyond which a texel of a view pulls the less, the farther it is off."""
STEPS = 4
_TOLERANCE = 1e-2
"""Of the conjugate gradients: what a step leaves, the next one takes."""
_LEAST_SHADING = 0.05


@dataclass(frozen=True, eq=False)
class Grid:
    """Part of a surface, sampled on a grid."""

    dual: Array
    """[T, 2, 3] float64 1/mm: a^u and a^v, u to the right, v down."""
    normals: Array
    """[T, 3] float64 unit normals, model space."""
    differences: tuple[csr_matrix, csr_matrix]
    """Two [T, T]: central differences along u and v, a texel apart; the relief is 0 outside the domain."""
    laplacian: csr_matrix
    """[T, T] 1/mm^2."""

    def bent(self, relief: Array) -> Array:
        """Return m [T, 3] (not of unit length) under a relief [T] in mm."""
        across, down = (matrix @ relief for matrix in self.differences)
        return self.normals - self.dual[:, 0] * across[:, None] - self.dual[:, 1] * down[:, None]


@dataclass(frozen=True, eq=False)
class View:
    """What one view tells about the domain."""

    rotation: Array
    """[3, 3] model space to the light's axes."""
    light: Array
    """[9, 3]."""
    observed: Array
    """[T] logarithm of the shading, the mean over the colours."""
    weights: Array
    """[T] in [0, 1]."""


def build_grid(positions: Array, normals: Array, inside: Array) -> Grid:
    """Prepare part of a surface.

    Args:
        positions: [S, S, 3] mm.
        normals: [S, S, 3] unit vectors; used inside.
        inside: [S, S] bool; the texels beside the domain hold positions as well, and the edge of the grid
            does not belong to it.

    Raises:
        ValueError: the domain touches the grid's edge.
    """
    if inside[[0, -1]].any() or inside[:, [0, -1]].any():
        raise ValueError("inside: expected a domain off the grid's edge, got one that touches it")
    from scipy.sparse import diags, identity

    dual, area = _dual_basis(positions, normals, inside)
    right, left, below, above = (_neighbour(inside, step) for step in ((0, 1), (0, -1), (1, 0), (-1, 0)))
    laplacian = diags(1 / area) @ (right + left + below + above - 4 * identity(len(area)))
    differences = ((right - left) / 2).tocsr(), ((below - above) / 2).tocsr()
    return Grid(dual, normals[inside].astype(np.float64), differences, laplacian.tocsr())


def bent_normals(positions: Array, normals: Array, relief: Array) -> Array:
    """Return the unit normals [S, S, 3] of a surface with a relief.

    Args:
        positions: [S, S, 3] mm; texels beside the relief hold positions as well.
        normals: [S, S, 3] unit vectors.
        relief: [S, S] mm along them, 0 at the grid's edge.
    """
    touched = np.zeros(relief.shape, bool)
    touched[1:-1, 1:-1] = cv2.dilate((relief != 0).astype(np.uint8), np.ones((3, 3), np.uint8))[1:-1, 1:-1]
    dual, _ = _dual_basis(positions, normals, touched)
    rows, columns = np.nonzero(touched)
    across = (relief[rows, columns + 1] - relief[rows, columns - 1]) / 2
    down = (relief[rows + 1, columns] - relief[rows - 1, columns]) / 2
    bent = normals.copy()
    turned = normals[touched] - dual[:, 0] * across[:, None] - dual[:, 1] * down[:, None]
    bent[touched] = turned / np.linalg.norm(turned, axis=1, keepdims=True)
    return bent


def _dual_basis(positions: Array, normals: Array, inside: Array) -> tuple[Array, Array]:
    """Return a^u and a^v [T, 2, 3] in 1/mm, and the texels' areas [T] in mm^2, float64."""
    rows, columns = np.nonzero(inside)
    along_u = (positions[rows, columns + 1] - positions[rows, columns - 1]).astype(np.float64) / 2
    along_v = (positions[rows + 1, columns] - positions[rows - 1, columns]).astype(np.float64) / 2
    # a^u = x_v x n / [x_u x_v n], a^v = n x x_u / [x_u x_v n]
    unit = normals[inside].astype(np.float64)
    duals = np.stack([np.cross(along_v, unit), np.cross(unit, along_u)], 1)
    volume = (along_u * duals[:, 0]).sum(-1)
    return duals / volume[:, None, None], np.linalg.norm(np.cross(along_u, along_v), axis=1)


def _neighbour(inside: Array, step: tuple[int, int]) -> csr_matrix:
    """Return [T, T] that takes each texel's neighbour; 0 where it lies outside the domain."""
    from scipy.sparse import csr_matrix

    numbers = np.full(inside.shape, -1)
    numbers[inside] = np.arange(inside.sum())
    beside = np.roll(numbers, (-step[0], -step[1]), (0, 1))[inside]
    rows = np.flatnonzero(beside >= 0)
    return csr_matrix((np.ones(len(rows)), (rows, beside[rows])), (len(beside), len(beside)))


class ReliefFit:
    """The relief's problem.

    Args:
        grid: the surface.
        views: at least one.
    """

    def __init__(self, grid: Grid, views: list[View]) -> None:
        from scipy.sparse import identity

        self._grid, self._views = grid, views
        precision = identity(len(grid.normals)) / DEPTH**2 + grid.laplacian.T @ grid.laplacian / BEND**2
        self.precision = precision.tocsr()
        """[T, T] inverse covariance of the relief, before a view is seen."""

    def residuals(self, relief: Array) -> list[Array]:
        """Return for each view, in units of NOISE, how far its shading [T] is above the observed one."""
        bent = torch.from_numpy(self._grid.bent(relief))
        return [(log_shading(bent, view).numpy() - view.observed) / NOISE for view in self._views]

    def objective(self, relief: Array) -> float:
        """Return what is minimised."""
        data = sum(
            float((view.weights * _robust(residual)).sum())
            for view, residual in zip(self._views, self.residuals(relief), strict=True)
        )
        return 0.5 * (data + float(relief @ (self.precision @ relief)))

    def normal_equations(self, relief: Array) -> tuple[Array, csr_matrix]:
        """Return the objective's gradient [T], and its Hessian [T, T] as Gauss and Newton approximate it."""
        from scipy.sparse import diags

        gradient, hessian = self.precision @ relief, self.precision
        bent = self._grid.bent(relief)
        for view in self._views:
            shading, turning = _shading_and_gradient(bent, view)
            residual = (shading - view.observed) / NOISE
            by_difference = -(turning[:, None] * self._grid.dual).sum(-1) / NOISE
            jacobian = sum(
                diags(by_difference[:, k]) @ matrix for k, matrix in enumerate(self._grid.differences)
            )
            weights = view.weights / (1 + (residual / OUTLIER) ** 2) ** 2
            gradient = gradient + jacobian.T @ (weights * residual)
            hessian = hessian + jacobian.T @ diags(weights) @ jacobian
        return gradient, hessian.tocsr()


def log_shading(normals: Tensor, view: View) -> Tensor:
    """Return the logarithm [T] of a view's shading, the mean over the colours.

    Args:
        normals: [T, 3] model space, of any length.
        view: whose light it is.
    """
    turned = torch.nn.functional.normalize(normals, dim=-1) @ torch.from_numpy(view.rotation.T)
    shaded = sh_basis(turned) @ torch.from_numpy(view.light)
    return shaded.clamp_min(_LEAST_SHADING).log().mean(-1)


def _shading_and_gradient(normals: Array, view: View) -> tuple[Array, Array]:
    """Return a view's log_shading [T] and how it changes with the normals [T, 3]."""
    with torch.inference_mode(False), torch.enable_grad():
        turned = torch.from_numpy(normals).requires_grad_()
        shading = log_shading(turned, view)
        (gradient,) = torch.autograd.grad(shading.sum(), turned)
    return shading.detach().numpy(), gradient.numpy()


def solve_relief(fit: ReliefFit, size: int, steps: int = STEPS) -> Array:
    """Return the relief [T] in mm that minimises the objective, from a flat one.

    Args:
        fit: the problem.
        size: T.
        steps: at most this many; a step that leads up is halved, and ends the walk if that does not help.
    """
    from scipy.sparse import diags
    from scipy.sparse.linalg import cg

    relief, value = np.zeros(size), fit.objective(np.zeros(size))
    for _ in range(steps):
        gradient, hessian = fit.normal_equations(relief)
        move, _ = cg(hessian, -gradient, rtol=_TOLERANCE, maxiter=200, M=diags(1 / hessian.diagonal()))
        for share in (1.0, 0.5, 0.25):
            candidate = fit.objective(relief + share * move)
            if candidate < value:
                relief, value = relief + share * move, candidate
                break
        else:
            break
    return relief


def _robust(residuals: Array) -> Array:
    squared = residuals**2
    return np.asarray(squared / (1 + squared / OUTLIER**2))
