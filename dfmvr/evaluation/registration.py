"""Registration of a predicted face to a scan: seven landmarks, then the surfaces.

The prediction moves, the scan stays, as in the NoW protocol: distances are the scan's millimetres, and a face
that is predicted too small cannot look better by shrinking the truth.

Axis letters: M scan points, K landmarks.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from dfmvr.evaluation.distance import Floats, Ints, Surface
from dfmvr.geometry.align import umeyama

TOUCHING = 1e-3
"""mm: below it, the direction of a distance is rounding noise, and the surface normal takes its place."""
WEAKEST_MOTION = 1e-6
"""Motions below this share of the largest eigenvalue are unobservable (sliding on a plane): not made."""

CURVE_BITS = 10
"""Cells a side, as a power of two, of the grid that the space-filling curve walks."""


@dataclass(frozen=True)
class Transform:
    """A similarity: x -> scale * R x + t."""

    scale: float
    rotation: Floats
    """[3, 3], determinant +1."""
    translation: Floats
    """[3] mm."""

    def apply(self, points: Floats) -> Floats:
        """Move points [M, 3]."""
        return self.scale * points @ self.rotation.T + self.translation

    def invert(self, points: Floats) -> Floats:
        """Move points [M, 3] back."""
        return (points - self.translation) @ self.rotation / self.scale

    def without_scale(self, about: Floats) -> Transform:
        """Return the rigid motion that turns alike and takes the same point to `about` [3]."""
        source = self.invert(about[None])[0]
        return Transform(1.0, self.rotation, about - self.rotation @ source)

    def after(self, first: Transform) -> Transform:
        """Return the transform that applies `first`, then this one."""
        return Transform(
            self.scale * first.scale, self.rotation @ first.rotation, self.apply(first.translation[None])[0]
        )


@dataclass(frozen=True)
class Registration:
    """Where a registration ended."""

    transform: Transform
    """Prediction -> scan."""
    iterations: int
    converged: bool


def align_points(
    source: Floats, target: Floats, *, with_scale: bool, weights: Floats | None = None
) -> Transform:
    """Return the least-squares similarity (or rigid motion) that takes points [K, 3] to others [K, 3].

    Args:
        source: [K, 3] mm.
        target: [K, 3] mm, corresponding points.
        with_scale: estimate a scale; otherwise it is 1.
        weights: [K]; all equal if None.

    Raises:
        ValueError: the shapes differ.
    """
    if source.shape != target.shape or source.ndim != 2 or source.shape[1] != 3:
        raise ValueError(
            f"points: expected two arrays [K, 3], got {list(source.shape)} and {list(target.shape)}"
        )
    fit = umeyama(
        torch.from_numpy(np.asarray(source, dtype=np.float64)),
        torch.from_numpy(np.asarray(target, dtype=np.float64)),
        None if weights is None else torch.from_numpy(np.asarray(weights, dtype=np.float64)),
        with_scale=with_scale,
    )
    return Transform(float(fit.scale), fit.rotation.numpy(), fit.translation.numpy())


def curve_order(points: Floats) -> Ints:
    """Return the ids of points [M, 3] along a space-filling (Morton) curve: neighbours stay near."""
    cells = 2**CURVE_BITS - 1
    low, high = points.min(axis=0), points.max(axis=0)
    grid = ((points - low) / np.maximum(high - low, 1e-9) * cells).astype(np.int64)
    codes = np.zeros(len(points), dtype=np.int64)
    for bit in range(CURVE_BITS):
        for axis in range(3):
            codes |= ((grid[:, axis] >> bit) & 1) << (3 * bit + axis)
    return np.argsort(codes, kind="stable")


def even_subset(areas: Floats, count: int) -> Ints:
    """Return at most `count` ids of points that are spread evenly over a surface; the same each time.

    One is taken for every equal share of area along the curve. Against every n-th vertex of a mesh, a
    registration on as many points ends ten times closer to the one on all points.

    Args:
        areas: [M] mm² of surface around each point, the points being in `curve_order`.
        count: wanted number.
    """
    cumulative = np.cumsum(areas)
    stops = (np.arange(count) + 0.5) / count * cumulative[-1]
    return np.unique(np.searchsorted(cumulative, stops))


def refine(
    surface: Surface,
    points: Floats,
    start: Transform,
    *,
    with_scale: bool,
    iterations: int = 30,
    tolerance: float = 1e-3,
) -> Registration:
    """Move a surface so that the squared distances from scan points to it become least (ICP).

    Each step finds the closest surface points and solves the linearised problem for the seven (or six)
    parameters of the motion: Gauss-Newton on the very distances that are measured afterwards.

    Args:
        surface: the prediction, in its own frame.
        points: [M, 3] mm, the scan's, evenly spread (`even_subset`): all count alike.
        start: prediction -> scan, near enough that closest points are meaningful (the landmarks' alignment).
        with_scale: also let the prediction grow or shrink; otherwise `start.scale` stays.
        iterations: most steps.
        tolerance: mm; stop when a step moves nothing on the scan by more.
    """
    transform = start
    reach = float(np.linalg.norm(points - points.mean(axis=0), axis=1).max())
    for iteration in range(1, iterations + 1):
        closest = surface.closest(transform.invert(points))
        feet = transform.apply(closest.points)
        gaps = points - feet
        lengths = np.linalg.norm(gaps, axis=1)
        normals = surface.triangle_normals[closest.triangles] @ transform.rotation.T
        touching = (lengths < TOUCHING)[:, None]
        directions = np.where(touching, normals, gaps / np.maximum(lengths, TOUCHING)[:, None])
        centre = feet.mean(axis=0)  # where turning and growing are least mixed with shifting
        step, motion = _gauss_newton_step(feet - centre, gaps, directions, reach, with_scale)
        to_centre = Transform(1.0, np.eye(3), -centre)
        transform = Transform(1.0, np.eye(3), centre).after(step).after(to_centre).after(transform)
        if motion < tolerance:
            return Registration(transform, iteration, converged=True)
    return Registration(transform, iterations, converged=False)


def _gauss_newton_step(
    arms: Floats, gaps: Floats, directions: Floats, reach: float, with_scale: bool
) -> tuple[Transform, float]:
    """Return the motion about the origin that best closes the gaps, and the most it moves a point (mm).

    Rotation and scale are solved for in mm at `reach`, so that all unknowns have one unit.
    """
    columns = [np.cross(arms, directions) / reach, directions]
    if with_scale:
        columns.append(np.sum(arms * directions, axis=1, keepdims=True) / reach)
    jacobian = np.concatenate(columns, axis=1)
    residuals = np.sum(gaps * directions, axis=1)
    normal_matrix, right_side = jacobian.T @ jacobian, jacobian.T @ residuals
    solution = np.linalg.lstsq(normal_matrix, right_side, rcond=WEAKEST_MOTION)[0]
    turn, shift = solution[:3], solution[3:6]
    growth = float(solution[6]) if with_scale else 0.0
    step = Transform(1.0 + growth / reach, _rotation_from_vector(turn / reach), shift)
    return step, float(np.linalg.norm(turn) + np.linalg.norm(shift) + abs(growth))


def _rotation_from_vector(vector: Floats) -> Floats:
    """Return Rodrigues' [3, 3] of a rotation vector [3] (rad)."""
    angle = float(np.linalg.norm(vector))
    x, y, z = vector
    cross = np.array([[0.0, -z, y], [z, 0.0, -x], [-y, x, 0.0]])
    # sin(a)/a and (1 - cos(a))/a^2, without dividing by a small angle
    return (
        np.eye(3) + np.sinc(angle / np.pi) * cross + 0.5 * np.sinc(angle / (2 * np.pi)) ** 2 * cross @ cross
    )
