"""Rigid alignment of a sample of heads, and the principal components of its even and odd parts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dfmvr.morphable.population import rigid_rotation

FLIP = np.array([-1, 1, 1], np.float32)


@dataclass(frozen=True)
class Modes:
    """Principal components of identity."""

    basis: np.ndarray
    """[P, N0, 3] mm per standard deviation."""
    variance: np.ndarray
    """[P] share of the weighted variance."""
    antisymmetric: np.ndarray
    """[P] bool."""


def align(
    shapes: np.ndarray, weights: np.ndarray, mirror: np.ndarray, start: np.ndarray, rounds: int = 3
) -> np.ndarray:
    """Align heads in place, rigidly and without scale, to their mirror-symmetric mean.

    Args:
        shapes: [S, N0, 3] float32 mm, overwritten.
        weights: [N0] summing to one.
        mirror: [N0].
        start: [N0, 3] first reference.
        rounds: how often the mean is taken anew.

    Returns:
        the mean [N0, 3] float64, its weighted centre in the origin.
    """
    weights = weights.astype(np.float32)
    reference = (start - weights @ start).astype(np.float32)
    mean = reference.astype(np.float64)
    for _ in range(rounds):
        for shape in shapes:
            shape -= weights @ shape
            shape[:] = shape @ rigid_rotation(shape, reference, weights)
        mean = shapes.mean(axis=0, dtype=np.float64)
        mean = (mean + mean[mirror] * FLIP) / 2
        mean -= weights @ mean
        reference = mean.astype(np.float32)
    return mean


def principal_modes(
    shapes: np.ndarray, mean: np.ndarray, weights: np.ndarray, mirror: np.ndarray, n_modes: int
) -> Modes:
    """Return the first modes of aligned heads; the two parities are merged by variance.

    The sign of a mode is fixed: its largest weighted entry is positive.
    """
    offsets = shapes - mean.astype(np.float32)
    mirrored = offsets[:, mirror] * FLIP
    parts = ((offsets + mirrored) / 2, (offsets - mirrored) / 2)
    rows = np.flatnonzero(weights > 0)
    root = np.sqrt(weights[rows]).astype(np.float32)[:, None]
    bases, variances = [], []
    for part in parts:
        weighted = (part[:, rows] * root).reshape(len(part), -1)
        values, vectors = np.linalg.eigh(
            weighted.astype(np.float64) @ weighted.T.astype(np.float64) / len(part)
        )
        scores = vectors[:, ::-1][:, :n_modes] * np.sqrt(len(part))
        bases.append((scores.T @ part.reshape(len(part), -1) / len(part)).reshape(n_modes, -1, 3))
        variances.append(values[::-1])
    total = sum(v.sum() for v in variances)
    merged = np.concatenate([v[:n_modes] for v in variances])
    order = np.argsort(-merged, kind="stable")[:n_modes]
    basis = np.concatenate(bases)[order]
    flat = (basis[:, rows] * root).reshape(n_modes, -1)
    largest = np.abs(flat).argmax(axis=1)
    basis *= np.sign(flat[np.arange(n_modes), largest])[:, None, None]
    return Modes(basis, merged[order] / total, order >= n_modes)


def vertex_areas(vertices: np.ndarray, quads: np.ndarray) -> np.ndarray:
    """Return a third of the area of the triangles around each vertex: [N]."""
    triangles = quads[:, [0, 1, 2, 0, 2, 3]].reshape(-1, 3)
    a, b, c = vertices[triangles].transpose(1, 0, 2)
    areas = np.linalg.norm(np.cross(b - a, c - a), axis=1) / 2
    return np.bincount(triangles.ravel(), np.repeat(areas / 3, 3), len(vertices))
