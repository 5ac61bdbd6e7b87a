"""Catmull-Clark subdivision as a sparse matrix: linear in the vertices, so one matrix drives mean and bases.

New vertices follow the old ones: rows 0..n-1 are the old vertices (moved), then one row a face, then one row
an edge. A vertex therefore keeps its number at every finer level.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix


@dataclass(frozen=True)
class Subdivision:
    """A refined all-quad mesh."""

    matrix: csr_matrix
    """[N', N] weights: new vertices = matrix @ old vertices."""
    quads: np.ndarray
    """[4Q, 4] int64; children of quad q are rows q, q + Q, q + 2Q, q + 3Q."""
    mirror: np.ndarray
    """[N'] int64: the vertex that a mirror image along x puts in this place."""


def quad_edges(quads: np.ndarray, n_vertices: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the unique edges of a quad mesh.

    Returns:
        edges [E, 2] (lower id first, sorted), the edge of each quad side [Q, 4], and how many quads share
        each edge [E].
    """
    sides = np.sort(np.stack([quads, np.roll(quads, -1, axis=1)], axis=-1), axis=-1).reshape(-1, 2)
    keys, of_side, count = np.unique(
        sides[:, 0] * n_vertices + sides[:, 1], return_inverse=True, return_counts=True
    )
    edges = np.stack([keys // n_vertices, keys % n_vertices], axis=1)
    return edges, of_side.reshape(-1, 4), count


def catmull_clark(quads: np.ndarray, n_vertices: int, mirror: np.ndarray) -> Subdivision:
    """Subdivide once.

    Args:
        quads: [Q, 4] int64 vertex ids; every vertex belongs to at least one quad.
        n_vertices: N.
        mirror: [N] int64 mirror map of the vertices; the quads must be closed under it.

    Raises:
        ValueError: an edge is shared by more than two quads.
    """
    from scipy.sparse import csr_matrix, diags, vstack

    n_quads = len(quads)
    edges, edge_of_side, sharing = quad_edges(quads, n_vertices)
    n_edges = len(edges)
    if sharing.max() > 2:
        raise ValueError(f"quads: expected a manifold mesh, got an edge shared by {sharing.max()} quads")
    on_border = sharing == 1
    quad_ids = np.repeat(np.arange(n_quads), 4)
    edge_ids = np.repeat(np.arange(n_edges), 2)

    quad_centre = csr_matrix((np.full(4 * n_quads, 0.25), (quad_ids, quads.ravel())), (n_quads, n_vertices))
    edge_middle = csr_matrix((np.full(2 * n_edges, 0.5), (edge_ids, edges.ravel())), (n_edges, n_vertices))
    beside_edge = csr_matrix(
        (np.full(4 * n_quads, 0.5), (edge_of_side.ravel(), quad_ids)), (n_edges, n_quads)
    )
    edge_points = diags(np.where(on_border, 1.0, 0.5)) @ edge_middle + diags(
        np.where(on_border, 0.0, 0.5)
    ) @ (beside_edge @ quad_centre)

    valence = np.bincount(edges.ravel(), minlength=n_vertices).astype(float)
    n_faces = np.bincount(quads.ravel(), minlength=n_vertices).astype(float)
    border_vertex = np.zeros(n_vertices, bool)
    border_vertex[edges[on_border].ravel()] = True
    inner = ~border_vertex
    around_faces = csr_matrix((np.ones(4 * n_quads), (quads.ravel(), quad_ids)), (n_vertices, n_quads))
    around_edges = csr_matrix((np.ones(2 * n_edges), (edges.ravel(), edge_ids)), (n_vertices, n_edges))
    border_edges = around_edges @ diags(on_border.astype(float))
    vertex_points = (
        diags(np.where(inner, 1 / (valence * n_faces), 0)) @ around_faces @ quad_centre
        + diags(np.where(inner, 2 / valence**2, 0)) @ around_edges @ edge_middle
        + diags(np.where(inner, (valence - 3) / valence, 0.5))
        + diags(np.where(inner, 0, 0.25)) @ border_edges @ edge_middle
    )
    matrix = vstack([vertex_points, quad_centre, edge_points]).tocsr()
    matrix.eliminate_zeros()

    face_points = n_vertices + np.arange(n_quads)
    side_points = n_vertices + n_quads + edge_of_side
    children = [
        np.stack([quads[:, i], side_points[:, i], face_points, side_points[:, i - 1]], axis=1)
        for i in range(4)
    ]
    fine_mirror = np.concatenate(
        [
            mirror,
            n_vertices + _mirrored_rows(quads, mirror, n_vertices),
            n_vertices + n_quads + _mirrored_rows(edges, mirror, n_vertices),
        ]
    )
    return Subdivision(matrix, np.concatenate(children), fine_mirror)


def _mirrored_rows(elements: np.ndarray, mirror: np.ndarray, n_vertices: int) -> np.ndarray:
    """Return for each element (row of vertex ids) the element made of the mirrored vertices."""
    keys = _element_keys(elements, n_vertices)
    order = np.argsort(keys)
    wanted = _element_keys(mirror[elements], n_vertices)
    found = order[np.searchsorted(keys[order], wanted).clip(0, len(keys) - 1)]
    if (keys[found] != wanted).any():
        raise ValueError("mirror: expected a map that keeps the mesh's quads, got one that does not")
    return found


def _element_keys(elements: np.ndarray, n_vertices: int) -> np.ndarray:
    """Return one integer per set of vertex ids."""
    keys = np.zeros(len(elements), np.int64)
    for column in np.sort(elements, axis=1).T:
        keys = keys * n_vertices + column
    return keys
