"""Fits linear albedo modes to painted people (build time only)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dfmvr.morphable.appearance import AlbedoPainter
from dfmvr.morphable.topology import PART_NAMES


@dataclass(frozen=True)
class AlbedoStatistics:
    """Principal components of painted albedo; a mode is `basis[k] * scale[k]`, per standard deviation."""

    mean: NDArray[np.float32]
    """[N, 3] linear, mirror symmetric."""
    basis: NDArray[np.int8]
    """[K, N, 3]."""
    scale: NDArray[np.float32]
    """[K]."""
    explained: float
    """Share of the variance that K modes keep."""


def albedo_statistics(
    painter: AlbedoPainter, mirror: NDArray[np.int64], n_paints: int = 600, n_modes: int = 80, seed: int = 1
) -> AlbedoStatistics:
    """Paint many people and fit linear albedo modes to them; the inside of the mouth has no say in the fit.

    Args:
        painter: of the level-1 head.
        mirror: [N] mirror vertex.
        n_paints: people.
        n_modes: modes K kept.
        seed: of the people.
    """
    rng = np.random.default_rng(seed)
    paints = np.empty((n_paints, painter.n_vertices, 3), dtype=np.float32)
    for i in range(n_paints):
        female, years = bool(rng.random() < 0.5), float(rng.uniform(20, 75))
        paints[i] = painter.paint(rng, female, years, rng.dirichlet([0.5, 0.5, 0.5])).albedo
    mean = paints.mean(0)
    mean = (mean + mean[mirror]) / 2
    paints -= mean
    inside = painter["cavity"] > 0.5
    for name in ("upper_teeth", "lower_teeth", "tongue"):
        inside |= painter["part"] == PART_NAMES.index(name)
    flat = paints[:, ~inside].reshape(n_paints, -1)
    gram = _gram(flat)
    values, vectors = np.linalg.eigh(gram)
    order = np.argsort(values)[::-1][:n_modes]
    scores = vectors[:, order] * np.sqrt(n_paints)
    modes = (scores.T.astype(np.float32) @ paints.reshape(n_paints, -1) / n_paints).reshape(n_modes, -1, 3)
    # Brighter is positive; the uneven part decides for modes that are antisymmetric.
    direction = 1 + 0.5 * np.cos(np.arange(modes[0].size, dtype=np.float32))
    modes *= np.where(modes.reshape(n_modes, -1) @ direction < 0, -1, 1).astype(np.float32)[:, None, None]
    scale = np.abs(modes).reshape(n_modes, -1).max(1) / 127
    basis = np.round(modes / scale[:, None, None]).astype(np.int8)
    explained = float(values[order].sum() / values.sum())
    return AlbedoStatistics(mean, basis, scale.astype(np.float32), explained)


def _gram(flat: NDArray[np.float32], block: int = 8192) -> NDArray[np.float64]:
    """[n, n] mean products of rows, summed in double precision block by block."""
    total = np.zeros((len(flat), len(flat)))
    for start in range(0, flat.shape[1], block):
        part = flat[:, start : start + block].astype(np.float64)
        total += part @ part.T
    return total / len(flat)
