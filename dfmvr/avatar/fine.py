"""The relief as shape: the head one subdivision finer, its skin displaced."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dfmvr.avatar.build import Avatar, image_at
from dfmvr.geometry.mesh import vertex_normals
from dfmvr.morphable.subdivision import catmull_clark, quad_edges
from dfmvr.morphable.topology import triangulate

Array = NDArray[Any]


def displaced(avatar: Avatar) -> Avatar:
    """Return an avatar at the next subdivision level with its relief as shape; itself where it has none.

    The positions are Catmull and Clark's, the texture coordinates linear between the coarse ones.

    Returns:
        An avatar without targets and relief.
    """
    if avatar.relief is None:
        return avatar
    quads = {name: _quads(triangles) for name, triangles in avatar.parts.items()}
    cut_quads = np.concatenate(list(quads.values()))
    coarse = np.zeros((int(avatar.source.max()) + 1, 3))
    coarse[avatar.source] = avatar.vertices
    head_quads = avatar.source[cut_quads]
    head = catmull_clark(head_quads, len(coarse), np.arange(len(coarse)))
    cut = catmull_clark(cut_quads, len(avatar.source), np.arange(len(avatar.source)))
    source, uvs = _finer_cut(avatar, cut_quads, head_quads)
    vertices = torch.from_numpy(head.matrix @ coarse)
    triangles = torch.from_numpy(triangulate(head.quads))
    heights = np.zeros(len(vertices))
    heights[source] = image_at(avatar.relief[..., None], uvs)[:, 0]
    vertices += vertex_normals(vertices, triangles) * torch.from_numpy(heights)[:, None]
    normals = vertex_normals(vertices, triangles).numpy()
    part_of_quad = np.tile(np.repeat(np.arange(len(quads)), [len(q) for q in quads.values()]), 4)
    return dataclasses.replace(
        avatar,
        vertices=vertices.numpy().astype(np.float32)[source],
        normals=normals.astype(np.float32)[source],
        source=source,
        uvs=uvs.astype(np.float32),
        parts={name: triangulate(cut.quads[part_of_quad == k]) for k, name in enumerate(quads)},
        targets={},
        relief=None,
        normal_map=None,
    )


def _quads(triangles: Array) -> Array:
    """Undo `triangulate`."""
    pairs = triangles.reshape(-1, 6)
    return np.asarray(pairs[:, [0, 1, 2, 5]])


def _finer_cut(avatar: Avatar, cut_quads: Array, head_quads: Array) -> tuple[Array, Array]:
    """Return the finer cut mesh's source [M'] and texture coordinates [M', 2]."""
    n_head, n_quads = int(avatar.source.max()) + 1, len(cut_quads)
    edges, of_side, _ = quad_edges(cut_quads, len(avatar.source))
    _, of_head_side, _ = quad_edges(head_quads, n_head)
    head_edge = np.zeros(len(edges), np.int64)
    head_edge[of_side] = of_head_side
    source = np.concatenate([avatar.source, n_head + np.arange(n_quads), n_head + n_quads + head_edge])
    uvs = avatar.uvs.astype(np.float64)
    return source, np.concatenate([uvs, uvs[cut_quads].mean(1), uvs[edges].mean(1)])
