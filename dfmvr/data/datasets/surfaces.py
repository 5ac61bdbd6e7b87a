"""Surfaces that the renderer draws: a mesh, and what is interpolated over it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dfmvr.geometry.mesh import vertex_normals

Array = NDArray[Any]

ALBEDO, NORMAL, OPENNESS, GLOSS, SHARPNESS, STRANDS = slice(0, 3), slice(3, 6), 6, 7, 8, 9
"""Columns of `Surfaces.channels`: linear albedo; normal in model space; share of the sky seen; strength of
the highlight and the logarithm of its exponent; how much of the surface is hair."""
N_CHANNELS = 10


@dataclass(frozen=True, eq=False)
class Surfaces:
    """Surfaces in model space, mm."""

    vertices: Array
    """[M, 3] float32."""
    triangles: Array
    """[T, 3] int64."""
    channels: Array
    """[M, N_CHANNELS] float32."""
    labels: Array
    """[M] uint8 region labels; 0 where hair or cloth hides the face."""


def join(parts: list[Surfaces]) -> Surfaces:
    """Put several surfaces into one mesh, in order."""
    starts = np.cumsum([0, *(len(part.vertices) for part in parts[:-1])])
    return Surfaces(
        vertices=np.concatenate([part.vertices for part in parts]),
        triangles=np.concatenate([part.triangles + start for part, start in zip(parts, starts, strict=True)]),
        channels=np.concatenate([part.channels for part in parts]),
        labels=np.concatenate([part.labels for part in parts]),
    )


def mesh_normals(vertices: Array, triangles: Array) -> Array:
    """[N, 3] unit vertex normals."""
    with torch.no_grad():
        result: Array = vertex_normals(torch.from_numpy(vertices), torch.from_numpy(triangles)).numpy()
    return result
