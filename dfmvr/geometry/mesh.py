"""Normals and areas of triangle meshes that share one topology across the leading dimensions.

Work is done vertex-major, [N, *L, 3]: gathering and adding whole rows is several times faster, forward and
backward, than gathering along an inner dimension.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

_MIN_SQUARED_NORMAL = 1e-20
"""In mm^4: a summed normal shorter than its root belongs to no area and is left near zero, not blown up."""


def vertex_normals(
    vertices: Float[Tensor, "*L N 3"], triangles: Int[Tensor, "F 3"]
) -> Float[Tensor, "*L N 3"]:
    """Return unit normals, the area-weighted mean over a vertex's triangles, outwards for outward triangles.

    Args:
        vertices: [*L, N, 3] mm.
        triangles: [F, 3], counter-clockwise seen from outside.

    Returns:
        [*L, N, 3] unit vectors; zero, with finite gradients, where a vertex has no triangle of any area.
    """
    rows = vertices.movedim(-2, 0)
    crossed = _crossed_edges(rows, triangles).flatten(1)
    normals = torch.zeros_like(rows).flatten(1)
    for corner in range(3):
        normals = normals.index_add(0, triangles[:, corner], crossed)
    normals = normals.view_as(rows)
    squared = normals.square().sum(-1, keepdim=True).clamp_min(_MIN_SQUARED_NORMAL)
    return (normals * squared.rsqrt()).movedim(0, -2)


def triangle_areas(vertices: Float[Tensor, "*L N 3"], triangles: Int[Tensor, "F 3"]) -> Float[Tensor, "*L F"]:
    """Return the triangles' areas, [*L, F] mm^2; a degenerate triangle has area 0 and a zero gradient."""
    squared = _crossed_edges(vertices.movedim(-2, 0), triangles).square().sum(-1)
    # sqrt has no finite gradient at zero, so zeros are kept away from it.
    safe = torch.where(squared > 0, squared, torch.ones_like(squared))
    return torch.where(squared > 0, 0.5 * safe.sqrt(), torch.zeros_like(squared)).movedim(0, -1)


def vertex_areas(vertices: Float[Tensor, "*L N 3"], triangles: Int[Tensor, "F 3"]) -> Float[Tensor, "*L N"]:
    """Return each vertex's share of the surface, [*L, N] mm^2: a third of the area of its triangles."""
    thirds = triangle_areas(vertices, triangles).movedim(-1, 0) / 3.0
    areas = vertices.new_zeros(vertices.shape[-2], *thirds.shape[1:])
    for corner in range(3):
        areas = areas.index_add(0, triangles[:, corner], thirds)
    return areas.movedim(0, -1)


def _crossed_edges(rows: Float[Tensor, "N *L 3"], triangles: Int[Tensor, "F 3"]) -> Float[Tensor, "F *L 3"]:
    """Return the cross product of each triangle's first two edges: twice the area along the normal."""
    flat = rows.flatten(1)
    a, b, c = (flat.index_select(0, triangles[:, k]).view(-1, *rows.shape[1:]) for k in range(3))
    crossed: Tensor = torch.linalg.cross(b - a, c - a)
    return crossed
