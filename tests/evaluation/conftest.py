"""Small analytic surfaces."""

from __future__ import annotations

import numpy as np
import pytest
import trimesh


@pytest.fixture(scope="session")
def sphere() -> trimesh.Trimesh:
    """A sphere of radius 50 mm, 2,562 vertices, whose triangles lie within 0.1 mm of it."""
    return trimesh.creation.icosphere(subdivisions=4, radius=50.0)


@pytest.fixture(scope="session")
def relief() -> trimesh.Trimesh:
    """A face-like relief of 160 x 200 mm: a dome with a nose, without any symmetry to slide along."""
    n = 61
    x, y = np.meshgrid(np.linspace(-80, 80, n), np.linspace(-100, 100, n))
    z = 60 - x**2 / 110 - y**2 / 210
    z += 22 * np.exp(-((x - 3) ** 2) / 160 - (y + 5) ** 2 / 500) - 7 * np.exp(
        -((x + 30) ** 2 + (y - 25) ** 2) / 200
    )
    ids = np.arange(n * n).reshape(n, n)
    a, b, c, d = (corner.ravel() for corner in (ids[:-1, :-1], ids[:-1, 1:], ids[1:, :-1], ids[1:, 1:]))
    triangles = np.concatenate([np.stack([a, b, d], 1), np.stack([a, d, c], 1)])
    return trimesh.Trimesh(np.stack([x, y, z], -1).reshape(-1, 3), triangles, process=False)
