"""The parts of the head and their meshes at each level, computed from the base mesh at load time."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from dfmvr.morphable.subdivision import Subdivision, catmull_clark, quad_edges

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

PART_NAMES = ("skin", "left_eye", "right_eye", "upper_teeth", "lower_teeth", "tongue")
"""The separate surfaces of the head, in the order of `BaseMesh.quad_parts`; sides are the subject's."""

LEVELS = (1, 2)
"""Subdivision levels that can be asked for."""

MESH_PARTS = ("face", "head")
"""`face` is the front of the head that a network learns; `head` is everything."""

BORDER_SMOOTHING = 3
"""Rounds of averaging along the border of the face after it is moved onto the crop line."""


@dataclass(frozen=True, eq=False)
class BaseMesh:
    """The coarse all-quad head from which each level is made."""

    quads: np.ndarray
    """[Q, 4] int64, counter-clockwise seen from outside."""
    quad_parts: np.ndarray
    """[Q] int64 indices into PART_NAMES."""
    mirror: np.ndarray
    """[N0] int64."""
    face_field: np.ndarray
    """[N0] float; its subdivided zero line is the border of the face: positive inside."""

    @property
    def n_vertices(self) -> int:
        """Number of base vertices."""
        return len(self.mirror)


@dataclass(frozen=True, eq=False)
class PartTopology:
    """A part of the head at one level."""

    matrix: csr_matrix
    """[N, N0] float32: vertices = matrix @ base vertices."""
    triangles: np.ndarray
    """[F, 3] int64, counter-clockwise seen from outside."""
    head_ids: np.ndarray
    """[N] int64: the number of each vertex in the head of the same level."""
    mirror: np.ndarray
    """[N] int64."""
    pieces: np.ndarray
    """[N] int64 indices into PART_NAMES."""


@lru_cache(maxsize=4)
def subdivide(base: BaseMesh, level: int) -> Subdivision:
    """Return the whole head at a level, its matrix taken from the base mesh."""
    if level == 0:
        from scipy.sparse import identity

        return Subdivision(identity(base.n_vertices, format="csr"), base.quads, base.mirror)
    coarse = subdivide(base, level - 1)
    fine = catmull_clark(coarse.quads, coarse.matrix.shape[0], coarse.mirror)
    return Subdivision((fine.matrix @ coarse.matrix).tocsr(), fine.quads, fine.mirror)


def part_topology(base: BaseMesh, level: int, part: str) -> PartTopology:
    """Build a part of the head at a level.

    Args:
        base: the coarse mesh.
        level: 1 or 2.
        part: `face` or `head`.

    Raises:
        ValueError: unknown level or part.
    """
    _check_level_and_part(level, part)
    head = subdivide(base, level)
    pieces = np.zeros(head.matrix.shape[0], np.int64)
    pieces[head.quads.ravel()] = np.repeat(np.tile(base.quad_parts, 4**level), 4)
    if part == "head":
        ids = np.arange(len(pieces))
        matrix = head.matrix.astype(np.float32)
        return PartTopology(matrix, triangulate(head.quads), ids, head.mirror, pieces)
    field = head.matrix @ base.face_field
    field = (field + field[head.mirror]) / 2
    quads = head.quads[(field[head.quads] > 0).all(axis=1)]
    ids = np.unique(quads)
    number = np.full(len(field), -1)
    number[ids] = np.arange(len(ids))
    skin = number[quads[(pieces[quads] == PART_NAMES.index("skin")).all(axis=1)]]
    rows = _onto_crop_line(head.quads, quads, field)[ids]
    rows = _closed_holes(skin, len(ids)) @ _smooth_border(number[quads], len(ids)) @ rows
    matrix = (rows @ head.matrix).tocsr().astype(np.float32)
    return PartTopology(matrix, triangulate(number[quads]), ids, number[head.mirror[ids]], pieces[ids])


def fixed_topology(triangles: np.ndarray, mirror: np.ndarray, level: int, part: str) -> PartTopology:
    """Return a mesh that is the same at every level, and both face and head.

    Args:
        triangles: [F, 3].
        mirror: [N].
        level: 1 or 2.
        part: `face` or `head`.

    Raises:
        ValueError: unknown level or part.
    """
    from scipy.sparse import identity

    _check_level_and_part(level, part)
    n = len(mirror)
    matrix = identity(n, np.float32, format="csr")
    return PartTopology(matrix, triangles, np.arange(n), mirror, np.zeros(n, np.int64))


def _check_level_and_part(level: int, part: str) -> None:
    if level not in LEVELS:
        raise ValueError(f"level: expected one of {LEVELS}, got {level!r}")
    if part not in MESH_PARTS:
        raise ValueError(f"part: expected one of {MESH_PARTS}, got {part!r}")


def triangulate(quads: np.ndarray) -> np.ndarray:
    """Split quads [Q, 4] into triangles [2Q, 3]; the two halves of a quad follow each other."""
    return quads[:, [0, 1, 2, 0, 2, 3]].reshape(-1, 3)


def _border_edges(quads: np.ndarray, n_vertices: int) -> np.ndarray:
    edges, _, sharing = quad_edges(quads, n_vertices)
    return edges[sharing == 1]


def _onto_crop_line(all_quads: np.ndarray, kept: np.ndarray, field: np.ndarray) -> csr_matrix:
    """Return [N, N] weights that move the border of the kept quads to where the field is zero.

    A border vertex goes towards its neighbours outside, as far as the field falls to zero. The weights depend
    on the field alone, so that the face stays linear in the coefficients.
    """
    from scipy.sparse import csr_matrix, diags

    n = len(field)
    border = np.zeros(n, bool)
    border[_border_edges(kept, n).ravel()] = True
    sides = np.stack([all_quads, np.roll(all_quads, -1, axis=1)], axis=-1).reshape(-1, 2)
    diagonals = np.concatenate([all_quads[:, [0, 2]], all_quads[:, [1, 3]]])
    outside = field <= 0
    moves = []
    for ways in (sides, diagonals):
        both = np.concatenate([ways, ways[:, ::-1]])
        both = both[border[both[:, 0]] & outside[both[:, 1]]]
        outwards = np.unique(both, axis=0)
        moves.append(outwards)
        border[outwards[:, 0]] = False  # a diagonal is taken only where no side leads outside
    pairs = np.concatenate(moves)
    share = 1 / np.bincount(pairs[:, 0], minlength=n).clip(1)[pairs[:, 0]]
    way = field[pairs[:, 0]] / (field[pairs[:, 0]] - field[pairs[:, 1]])
    step = csr_matrix((share * way, (pairs[:, 0], pairs[:, 1])), (n, n))
    return (diags(1 - np.asarray(step.sum(axis=1)).ravel()) + step).tocsr()


def _smooth_border(quads: np.ndarray, n_vertices: int) -> csr_matrix:
    """Return [N, N] weights that average each border vertex with its two neighbours along the border."""
    from scipy.sparse import csr_matrix, diags, identity

    edges = _border_edges(quads, n_vertices)
    pairs = np.concatenate([edges, edges[:, ::-1]])
    degree = np.bincount(pairs[:, 0], minlength=n_vertices)
    pairs = pairs[degree[pairs[:, 0]] == 2]
    beside = csr_matrix((np.full(len(pairs), 0.25), (pairs[:, 0], pairs[:, 1])), (n_vertices, n_vertices))
    once = diags(1 - np.asarray(beside.sum(axis=1)).ravel()) + beside
    rows = identity(n_vertices, format="csr")
    for _ in range(BORDER_SMOOTHING):
        rows = once @ rows
    return rows.tocsr()


def _closed_holes(quads: np.ndarray, n_vertices: int) -> csr_matrix:
    """Return [N, N] weights that draw every border but the longest one shut to its middle.

    The crop cuts the throat and the eye sockets open; through an open mouth one would look out at the back.
    """
    from scipy.sparse import csr_matrix, diags
    from scipy.sparse.csgraph import connected_components

    edges = _border_edges(quads, n_vertices)
    graph = csr_matrix((np.ones(len(edges)), (edges[:, 0], edges[:, 1])), (n_vertices, n_vertices))
    _, loop = connected_components(graph, directed=False)
    size = np.bincount(loop)
    in_hole = (size[loop] > 1) & (size[loop] < size.max())
    members = np.flatnonzero(in_hole)
    average = csr_matrix((1 / size[loop[members]], (loop[members], members)), (len(size), n_vertices))
    spread = csr_matrix((np.ones(len(members)), (members, loop[members])), (n_vertices, len(size)))
    return (diags((~in_hole).astype(float)) + spread @ average).tocsr()
