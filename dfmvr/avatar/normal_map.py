"""The relief as glTF's normal map: what coarse triangles look like when lit.

Tangent space: x along growing u, y up in the picture, z outwards, each from -1 to 1 in a channel. The frame
at a vertex is its normal n, its tangent t and n x t; the skin's sheet is mirrored nowhere, so the sign that
glTF keeps with a tangent is +1.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dfmvr.avatar.head import Head
from dfmvr.avatar.relief import bent_normals
from dfmvr.avatar.texels import find_texels
from dfmvr.geometry.mesh import vertex_normals

Array = NDArray[Any]


def vertex_tangents(vertices: Array, normals: Array, uvs: Array, triangles: Array) -> Array:
    """Return the unit tangents along growing u, at right angles to the normals.

    Args:
        vertices: [M, 3].
        normals: [M, 3] unit vectors.
        uvs: [M, 2].
        triangles: [F, 3].

    Returns:
        [M, 3] float64; any tangent where a vertex has no triangle of any area in the texture.
    """
    a, b, c = vertices[triangles].astype(np.float64).transpose(1, 0, 2)
    (u0, v0), (u1, v1), (u2, v2) = uvs[triangles].astype(np.float64).transpose(1, 2, 0)
    # Twice the triangle's area in the texture times dx/du: large triangles count more.
    along_u = (b - a) * (v2 - v0)[:, None] - (c - a) * (v1 - v0)[:, None]
    along_u *= np.sign((u1 - u0) * (v2 - v0) - (v1 - v0) * (u2 - u0))[:, None]
    tangents = np.stack(
        [np.bincount(triangles.ravel(), np.repeat(along_u[:, k], 3), len(vertices)) for k in range(3)], 1
    )
    tangents = _off_normal(tangents, normals)
    lost = np.linalg.norm(tangents, axis=1) < 1e-9
    least = np.eye(3)[np.abs(normals[lost]).argmin(1)]
    tangents[lost] = _off_normal(least, normals[lost])
    return np.asarray(tangents / np.linalg.norm(tangents, axis=1, keepdims=True))


def draw_normal_map(head: Head, vertices: Tensor, relief: Array) -> NDArray[np.uint8]:
    """Draw a relief as a normal map.

    Args:
        head: the rig.
        vertices: [N, 3] mm: the head at rest.
        relief: [S, S] mm along its normals.

    Returns:
        [S, S, 3]: round(255 (n + 1) / 2); flat: (128, 128, 255).
    """
    texels, atlas = find_texels(head, len(relief)), head.atlas
    at_vertices = vertex_normals(vertices, head.model.triangles)
    normals = _unit(texels.spread(at_vertices))
    cut = at_vertices.numpy()[atlas.source]
    tangents = vertex_tangents(vertices.numpy()[atlas.source], cut, atlas.uvs, atlas.triangles)
    whole = np.zeros((len(vertices), 3))
    whole[atlas.source] = tangents  # either side of the cut will do: there is no relief on it
    along = texels.spread(torch.from_numpy(whole).float())
    along = _unit(_off_normal(along, normals))
    frame = np.stack([along, np.cross(normals, along), normals], -2)
    bent = bent_normals(texels.spread(vertices), normals, relief)
    local = np.where((relief != 0)[..., None], (frame * bent[..., None, :]).sum(-1), (0, 0, 1))
    return np.round((local + 1) / 2 * 255).astype(np.uint8)


def _off_normal(vectors: Array, normals: Array) -> Array:
    """Return the part of vectors [*, 3] at right angles to the normals [*, 3]."""
    return np.asarray(vectors - normals * (vectors * normals).sum(-1, keepdims=True))


def _unit(vectors: Array) -> Array:
    return np.asarray(vectors / np.linalg.norm(vectors, axis=-1, keepdims=True).clip(1e-9))
