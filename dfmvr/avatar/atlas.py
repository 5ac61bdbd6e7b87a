"""Where each part of the head lies in the texture: the skin unfolded as one sheet, the other parts beside it.

The face model's own texture coordinates are the whole body's, and its seams are shared vertices. Here the
skin ends at the lowest line of edges that runs around the neck, without the face model's stubs of
shoulders. It is cut from the nape to the crown and spread over a rectangle so that no two triangles
overlap: every inner vertex is a weighted mean of its neighbours (Tutte; Floater 1997), with weights that
are adapted until every millimetre gets about the texels it deserves (stretch minimisation: Yoshizawa,
Belyaev and Seidel, "A fast and simple stretch-minimizing mesh parameterization", SMI 2004). Mirroring the
head mirrors the skin's sheet from left to right.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dfmvr.morphable.subdivision import quad_edges
from dfmvr.morphable.topology import PART_NAMES, triangulate
from dfmvr.types import REGION_NAMES

Array = NDArray[Any]

PARTS = ("skin", "eyes", "teeth", "tongue")
_PART_OF_PIECE = np.array([0, 1, 1, 2, 2, 3])
"""Which of PARTS each of topology.PART_NAMES belongs to."""

SKIN_HEIGHT = 0.8
"""Height of the skin's sheet as a share of its width, the texture's; the other parts lie above it."""
_BOXES = {
    "right_eye": (0.01, 0.18),
    "left_eye": (0.20, 0.18),
    "upper_teeth": (0.39, 0.18),
    "lower_teeth": (0.58, 0.18),
    "tongue": (0.77, 0.18),
}
"""Left edge and side of the square that each other piece has in the strip above the skin."""
_STRIP_MARGIN = 0.01

_BACK_DENSITY = 0.4
_POCKET_DENSITY = 0.1
"""Texels per millimetre that the back of the head, and the mouth's cavity and eye sockets, want, as shares
of the face's."""
_STEPS = 5
_RATE = 0.7
"""Rounds of adapting the weights, and the power of the stretch in each; more rounds fold the sheet at the
neck."""
_MIN_EDGE = 0.2
"""In mm: shorter edges pull no more than this one."""
_FRONT_SHARE = 0.9
"""Share of an eye's radius in the texture that its front half gets."""


@dataclass(frozen=True, eq=False)
class Atlas:
    """The head's surface, cut so that each vertex has one place in the texture."""

    source: Array
    """[M] int64: the head's vertex that each of the cut mesh's is (the cut's are there twice, the shoulders'
    not at all)."""
    uvs: Array
    """[M, 2] float32, origin at the bottom left."""
    triangles: Array
    """[F, 3] int64, counter-clockwise seen from outside; in the head's order."""
    parts: Array
    """[F] int64 indices into PARTS."""
    pockets: Array
    """[M] bool: the skin's mouth cavity and eye sockets, which no photograph shows."""


def build_atlas(vertices: Array, quads: Array, pieces: Array, mirror: Array, labels: Array) -> Atlas:
    """Lay out a head.

    Args:
        vertices: [N, 3] mm, symmetric: the mean head.
        quads: [Q, 4].
        pieces: [N] indices into topology.PART_NAMES.
        mirror: [N].
        labels: [N] region labels 0-9.

    Raises:
        ValueError: the skin is no sheet with one border, the neck's.
    """
    vertices = vertices.astype(np.float64)
    quads = _without_shoulders(vertices, quads, pieces, mirror)
    is_skin = pieces[quads[:, 0]] == PART_NAMES.index("skin")
    cut = _nape_to_crown(vertices, quads[is_skin], mirror)
    copies = np.arange(len(vertices))
    copies[cut[:-1]] = len(vertices) + np.arange(len(cut) - 1)
    on_right = is_skin & (vertices[quads].mean(1)[:, 0] < 0)
    cut_quads = np.where(on_right[:, None], copies[quads], quads)
    source = np.concatenate([np.arange(len(vertices)), cut[:-1]])
    pockets = _pockets(quads[is_skin], labels)[source]
    density = np.where(pockets, _POCKET_DENSITY, np.where(labels[source] > 0, 1.0, _BACK_DENSITY))
    uvs = np.zeros((len(source), 2))
    _unfold(uvs, vertices[source], cut_quads[is_skin], int(cut[-1]), copies[cut[:-1]], density)
    for index, name in enumerate(PART_NAMES[1:], start=1):
        ids = np.flatnonzero(pieces == index)
        part = vertices[ids]
        flat = _eye_disc(part) if name.endswith("eye") else _bite_side(part, name == "upper_teeth")
        left, side = _BOXES[name]
        uvs[ids] = (left, SKIN_HEIGHT + _STRIP_MARGIN) + side * flat
    parts = np.repeat(_PART_OF_PIECE[pieces[quads[:, 0]]], 2)
    used, corners = np.unique(cut_quads, return_inverse=True)
    triangles = triangulate(corners.reshape(cut_quads.shape))
    return Atlas(source[used], uvs[used].astype(np.float32), triangles, parts, pockets[used])


def _without_shoulders(vertices: Array, quads: Array, pieces: Array, mirror: Array) -> Array:
    """Return the quads without those of the skin below the neck's lowest closed line of edges."""
    from scipy.sparse import csr_matrix
    from scipy.sparse.csgraph import connected_components

    skin = np.flatnonzero(pieces[quads[:, 0]] == PART_NAMES.index("skin"))
    half = _neck_line(vertices, quads[skin], mirror)
    edges, of_side, _ = quad_edges(quads[skin], len(vertices))
    crossed = ~np.isin(edges[of_side], [half, mirror[half]]).all(-1)
    quad, edge = np.nonzero(crossed)[0], len(skin) + of_side[crossed]
    n = len(skin) + len(edges)
    _, group = connected_components(csr_matrix((np.ones(len(quad)), (quad, edge)), (n, n)), directed=False)
    crown = vertices[quads[skin]].mean(1)[:, 1].argmax()
    return np.delete(quads, skin[group[: len(skin)] != group[crown]], axis=0)


def _neck_line(vertices: Array, quads: Array, mirror: Array) -> Array:
    """Return the vertices of the lowest line of edges around the left half of the neck, throat to nape.

    Raises:
        ValueError: no line of edges leads around the neck.
    """
    edges, sharing = _edges(quads)
    middle = mirror == np.arange(len(mirror))
    beside: dict[int, list[int]] = {}
    for a, b in edges.tolist():
        beside.setdefault(a, []).append(b)
        beside.setdefault(b, []).append(a)
    around: dict[int, list[Array]] = {}
    for quad in quads:
        for corner in quad.tolist():
            around.setdefault(corner, []).append(quad)
    border = [v for v in np.unique(edges[sharing == 1]).tolist() if middle[v]]
    start, before = max(border, key=lambda v: vertices[v, 2]), -1
    while True:
        line = [start, *(v for v in beside[start] if vertices[v, 0] > 0 and not middle[v])]
        while len(line) > 1 and not middle[line[-1]]:
            last = line[-1]
            ring = np.concatenate([quad for quad in around[last] if line[-2] in quad])
            ahead = [v for v in beside[last] if v not in ring] if len(beside[last]) == 4 else []
            line = [*line, *ahead] if len(ahead) == 1 and len(line) < len(beside) else []
        if line and vertices[line[-1], 2] < vertices[start, 2]:
            return np.array(line)
        onwards = [v for v in beside[start] if middle[v] and v != before]
        if len(onwards) != 1:
            raise ValueError("head: expected a line of edges around the neck, got none that closes")
        before, start = start, onwards[0]


def _nape_to_crown(vertices: Array, quads: Array, mirror: Array) -> Array:
    """Return the ids of the midline's vertices from the neck's border up the back to the highest one."""
    edges, sharing = _edges(quads)
    middle = mirror == np.arange(len(mirror))
    starts = [v for v in np.unique(edges[sharing == 1]) if middle[v]]
    if not starts:
        raise ValueError("head: expected a skin with a border on its midline, got none")
    path = [min(starts, key=lambda v: vertices[v, 2])]
    along = edges[middle[edges].all(1)]
    crown = vertices[np.unique(along), 1].max()
    while vertices[path[-1], 1] < crown:
        beside = along[(along == path[-1]).any(1)].ravel()
        onwards = [v for v in beside if v not in path]
        if not onwards:
            raise ValueError("head: expected a midline of the skin from the nape to the crown, got a gap")
        path.append(onwards[0])
    return np.array(path)


def _pockets(quads: Array, labels: Array) -> Array:
    """Say which vertices [N] of the skin are the mouth's cavity or an eye socket."""
    from scipy.sparse import csr_matrix
    from scipy.sparse.csgraph import connected_components

    edges, _ = _edges(quads)
    unlabelled = edges[(labels[edges] == 0).all(1)]
    n = len(labels)
    _, group = connected_components(csr_matrix((np.ones(len(unlabelled)), tuple(unlabelled.T)), (n, n)))
    outside = np.bincount(group[unlabelled[:, 0]]).argmax()
    on_skin = np.isin(np.arange(n), quads)
    return np.asarray(on_skin & np.isin(labels, (0, REGION_NAMES.index("mouth"))) & (group != outside))


def _unfold(uvs: Array, vertices: Array, quads: Array, crown: int, right_cut: Array, density: Array) -> None:
    """Fill in `uvs` [M, 2] of the skin."""
    from scipy.sparse import csr_matrix, diags
    from scipy.sparse.linalg import splu

    edges, sharing = _edges(quads)
    loop = _border_loop(edges[sharing == 1], crown, right_cut[-1])
    uvs[loop] = _around_rectangle(vertices[loop], len(right_cut))
    free = np.setdiff1d(quads, loop)
    rows, columns = np.concatenate([edges, edges[:, ::-1]]).T
    density = _smoothed(density, rows, columns)
    triangles = triangulate(quads)
    weights = 1 / np.linalg.norm(vertices[rows] - vertices[columns], axis=1).clip(_MIN_EDGE)
    for _ in range(_STEPS):
        matrix = csr_matrix((weights, (rows, columns)), (len(uvs), len(uvs)))
        laplacian = (diags(np.asarray(matrix.sum(1)).ravel()) - matrix).tocsr()[free]
        uvs[free] = splu(laplacian[:, free].tocsc()).solve(-(laplacian[:, loop] @ uvs[loop]))
        weights = weights / _stretch(uvs, vertices, triangles, density)[columns] ** _RATE


def _edges(quads: Array) -> tuple[Array, Array]:
    """Return the edges [E, 2] and how many quads share each."""
    edges, _, counts = quad_edges(quads, int(quads.max()) + 1)
    return edges, counts


def _border_loop(edges: Array, start: int, second: int) -> Array:
    """Return the border's vertices in order."""
    loop = [start, second]
    while True:
        beside = edges[(edges == loop[-1]).any(1)].ravel()
        onwards = [v for v in beside if v not in (loop[-1], loop[-2])]
        if len(onwards) != 1:
            raise ValueError(f"head: expected a skin with one border, got a fork at vertex {loop[-1]}")
        if onwards[0] == start:
            break
        loop.append(onwards[0])
    if len(loop) != len(edges):
        raise ValueError(f"head: expected a skin with one border, got {len(edges) - len(loop)} more edges")
    return np.array(loop)


def _around_rectangle(border: Array, n_cut: int) -> Array:
    """Spread the border [L, 3] (crown, right cut, neck, left cut) over the rectangle's: [L, 2].

    The crown lies in the middle of the top, the neck along the bottom; the subject's right is at u = 0.
    """
    lengths = np.linalg.norm(np.roll(border, -1, axis=0) - border, axis=1)
    ends = np.concatenate([[0], np.cumsum(lengths)])

    def share(first: int, last: int) -> Array:
        run = ends[first : last + 1] - ends[first]
        return np.asarray(run / run[-1])

    def side(share: Array) -> Array:
        """Walk from the middle of the top to the corner and down."""
        way = share * (0.5 + SKIN_HEIGHT)
        return np.stack([way.clip(max=0.5), SKIN_HEIGHT - (way - 0.5).clip(0)], 1)

    right = side(share(0, n_cut)) * (-1, 1) + (0.5, 0)
    along = share(n_cut, len(border) - n_cut)
    neck = np.stack([along, np.zeros_like(along)], 1)
    left = side(1 - share(len(border) - n_cut, len(border)))
    left[:, 0] += 0.5
    return np.concatenate([right[:-1], neck, left[1:-1]])


def _smoothed(values: Array, rows: Array, columns: Array) -> Array:
    """Average values [M] with their neighbours', so that the density changes gently."""
    degree = np.bincount(rows, minlength=len(values)).clip(1)
    for _ in range(8):
        values = (values + np.bincount(rows, values[columns], len(values)) / degree) / 2
    return values


def _stretch(uvs: Array, vertices: Array, triangles: Array, density: Array) -> Array:
    """Return how much too few texels each vertex has: the root mean square stretch times the density wanted.

    A triangle's stretch is that of Sander et al. (2001): the mean of the squared singular values of the map
    from the texture to space.
    """
    (u0, v0), (u1, v1), (u2, v2) = uvs[triangles].transpose(1, 2, 0)
    twice = ((u1 - u0) * (v2 - v0) - (v1 - v0) * (u2 - u0))[:, None].clip(1e-12)
    a, b, c = vertices[triangles].transpose(1, 0, 2)
    along_u = (a * (v1 - v2)[:, None] + b * (v2 - v0)[:, None] + c * (v0 - v1)[:, None]) / twice
    along_v = (a * (u2 - u1)[:, None] + b * (u0 - u2)[:, None] + c * (u1 - u0)[:, None]) / twice
    squared = ((along_u**2).sum(1) + (along_v**2).sum(1)) / 2 * density[triangles].mean(1) ** 2
    areas = np.linalg.norm(np.cross(b - a, c - a), axis=1)
    corners, n = triangles.ravel(), len(uvs)
    total = np.bincount(corners, np.repeat(areas * squared, 3), n)
    stretch = np.sqrt(total / np.bincount(corners, np.repeat(areas, 3), n).clip(1e-12))
    return np.where(stretch > 0, stretch, 1.0)


def _eye_disc(vertices: Array) -> Array:
    """Spread an eyeball [K, 3] over a disc in the unit square by the angle from its axis, z: [K, 2]."""
    way = vertices - (vertices.max(0) + vertices.min(0)) / 2
    across = np.linalg.norm(way[:, :2], axis=1)
    angle = np.arctan2(across, way[:, 2])
    front = np.interp(angle, [0, np.pi / 2, np.pi], [0, _FRONT_SHARE, 1])
    return np.asarray(0.5 + 0.5 * way[:, :2] * (front / across.clip(1e-9))[:, None])


def _bite_side(vertices: Array, upper: bool) -> Array:
    """Spread teeth or a tongue [K, 3] over the unit square, seen from between the jaws: [K, 2]."""
    low, high = vertices.min(0), vertices.max(0)
    flat = ((vertices - low) / (high - low))[:, [0, 2]]
    if not upper:
        flat[:, 1] = 1 - flat[:, 1]
    return np.asarray(flat)
