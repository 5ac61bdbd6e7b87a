"""Measures the painter's fields on the average head (build time only).

Every number below that is a vertex is a 0-based id of MakeHuman's `base.obj`; lengths are millimetres.
"""

from __future__ import annotations

import io
import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from dfmvr.files import write_atomic
from dfmvr.morphable.anny import source
from dfmvr.morphable.anny.head import Head
from dfmvr.morphable.appearance import FIELDS_VERSION
from dfmvr.morphable.topology import PART_NAMES, BaseMesh, subdivide

Array = NDArray[np.float64]
Ints = NDArray[np.int64]

N_SMOOTH, N_NOISE = 32, 6
CHIN, NASION, SUBNASALE, ALARE, LIP_CORNER, TRAGUS, NOSE_TIP = 5225, 132, 343, 7119, 7191, 12335, 5054
BROW_TOP_MID, CHEEK_PAIR, UNDER_EYE, UPPER_LID = 220, (11676, 11677), 6862, 6930
UPPER_LASHES = (6850, 6847, 6886, 6844, 6841, 6838, 6785, 6784, 6790, 6793, 6796, 6799, 6802, 6805)
LOWER_LASHES = (
    *(6850, 6853, 6856, 6837, 11695, 6834, 6831, 6828, 6825, 6820, 6817, 6814, 11693, 6811, 6808, 6805),
)
NOSTRILS = (7107, 7108, 7083, 7089, 7090, 7091, *range(7141, 7159))
BROW_LINE = (
    ({7001: 0.5, 7006: 0.5}, 0.0),
    ({6983: 0.55, 7006: 0.45}, 1.0),
    ({6980: 0.5, 6997: 0.5}, 1.5),
    ({6979: 0.5, 6996: 0.5}, 1.5),
    ({6981: 0.4, 6998: 0.6}, 0.8),
    ({6982: 0.3, 6999: 0.7}, 0.0),
    ({6987: 0.2, 7024: 0.8}, -0.5),
)
"""Middle line of the left brow, inner to outer: weighted vertices, and a lift."""
N_DIRECTIONS, SPLAT_MM, SHADOW_BIAS_MM = 96, 3.0, 6.0


@dataclass(frozen=True)
class HeadInput:
    """The average head, at the base level and how it subdivides to level 1."""

    base_ids: Ints
    """[Nb] ids in base.obj."""
    base_vertices: Array
    """[Nb, 3] mm, model space."""
    base_quads: Ints
    """[Qb, 4] into the Nb vertices."""
    base_parts: Ints
    """[Nb] number of the part in `PART_NAMES`; -1 for vertices of no face."""
    base_mirror: Ints
    """[Nb] the vertex on the other side."""
    base_masks: dict[str, Array]
    """[Nb] each, 0..1: lips, eyelids, ears, inside_mouth, socket (from MPFB's UV masks)."""
    subdivision: sp.csr_matrix
    """[N, Nb] base to level 1."""
    quads: Ints
    """[Q, 4] level 1."""
    mirror: Ints
    """[N] level 1."""


def head_input(head: Head, base: BaseMesh, mean: Array) -> HeadInput:
    """Gather what the fields are measured on, from the head cut out of the source mesh and its mean shape."""
    fine = subdivide(base, 1)
    parts = np.full(len(mean), -1)
    for part in range(len(PART_NAMES)):
        parts[head.vertices_of(part)] = part
    lids = source.sample_picture(source.uv_mask("eyelids"), head.uvs) * (parts == 0)
    masks = {
        "lips": head.lips,
        "eyelids": (lids + lids[head.mirror]) / 2,
        "ears": head.ears,
        "inside_mouth": head.mouth_cavity.astype(float),
        "socket": head.eye_sockets.astype(float),
    }
    return HeadInput(
        head.obj_ids, mean, head.quads, parts, head.mirror, masks, fine.matrix, fine.quads, fine.mirror
    )


class _Measurer:
    """The average head at level 1, folded onto its left half, with the tools that fields are made with."""

    def __init__(self, head: HeadInput) -> None:
        self.head = head
        self.index = {int(b): i for i, b in enumerate(head.base_ids)}
        self.vertices = np.asarray(head.subdivision @ head.base_vertices)
        self.folded = self.vertices.copy()
        self.folded[:, 0] = np.abs(self.folded[:, 0])
        self.n = len(self.vertices)
        self.part = np.full(self.n, 0, dtype=np.uint8)
        for part in range(len(PART_NAMES)):
            touched = head.subdivision @ (head.base_parts == part).astype(float)
            self.part[touched > 0.5] = part
        self.skin = self.part == 0
        neighbours = sp.coo_matrix(
            (np.ones(head.quads.size), (head.quads.ravel(), np.roll(head.quads, -1, axis=1).ravel())),
            shape=(self.n, self.n),
        ).tocsr()
        neighbours = ((neighbours + neighbours.T) > 0).astype(float)
        degree = np.maximum(np.asarray(neighbours.sum(axis=1)).ravel(), 1)
        self.average = sp.diags(1 / degree) @ neighbours

    def at(self, base_id: int) -> Array:
        """Position [3] of a base vertex."""
        return self.head.base_vertices[self.index[base_id]]

    def mask(self, name: str) -> Array:
        """One of the base masks, subdivided."""
        return np.clip(self.head.subdivision @ self.head.base_masks[name], 0, 1)

    def spot(self, centre: Array, radius: float) -> Array:
        """A Gaussian spot on both sides."""
        return np.exp(-((self.folded - centre) ** 2).sum(1) / (2 * radius**2))

    def smooth(self, field: Array, times: int) -> Array:
        """Average over neighbours."""
        for _ in range(times):
            field = self.average @ field
        return field

    def line_distance(self, base_ids: tuple[int, ...]) -> Array:
        """Distance to a polyline of vertices (and to its mirror image)."""
        points = np.array([self.at(i) for i in base_ids])
        best = np.full(self.n, np.inf)
        for start, end in itertools.pairwise(points):
            step = end - start
            t = np.clip((self.folded - start) @ step / (step @ step), 0, 1)
            best = np.minimum(best, np.linalg.norm(self.folded - start - t[:, None] * step, axis=1))
        return best

    def normals(self) -> Array:
        """[N, 3] unit normals."""
        corners = self.vertices[self.head.quads]
        face = np.cross(corners[:, 2] - corners[:, 0], corners[:, 3] - corners[:, 1])
        total = np.zeros_like(self.vertices)
        for corner in range(4):
            np.add.at(total, self.head.quads[:, corner], face)
        return total / np.maximum(np.linalg.norm(total, axis=1, keepdims=True), 1e-12)


def build_fields(head: HeadInput, seed: int = 11) -> dict[str, NDArray[Any]]:
    """All fields of the painter, as float64 over the level-1 head ([N] or [N, K]); `part` is uint8."""
    m = _Measurer(head)
    fields: dict[str, NDArray[Any]] = {"part": m.part}
    fields |= _masks(m) | _spots(m) | _brow(m)
    fields["upper_lash"] = np.minimum(m.line_distance(UPPER_LASHES), 6.0)
    fields["lower_lash"] = np.minimum(m.line_distance(LOWER_LASHES), 6.0)
    fields["beard"] = _beard(m, fields)
    fields["hair"] = _hair(m, fields)
    fields["eye_radius"] = _eye_radius(m)
    fields["tooth_light"] = np.interp(m.folded[:, 0], [10, 24], [1.0, 0.3])
    fields["concavity"] = _concavity(m)
    fields["smooth"] = _eigenfunctions(head, N_SMOOTH)
    noise = m.smooth(np.random.default_rng(seed).normal(size=(m.n, N_NOISE)), 2)
    fields["noise"] = noise / noise.std(axis=0)
    fields["openness"] = _openness(m, fields)
    fields["collar"] = (
        np.clip(m.vertices[:, 1] - m.vertices[m.skin, 1].min(), 0, 100) * m.skin + 100.0 * ~m.skin
    )
    fields["lower_face"] = _lower_face(m, fields)
    return fields


def _masks(m: _Measurer) -> dict[str, Array]:
    nostrils = np.zeros(len(m.head.base_ids))
    ids = [m.index[i] for i in NOSTRILS]
    nostrils[ids] = 1
    nostrils[m.head.base_mirror[ids]] = 1
    return {
        "lips": m.smooth(m.mask("lips"), 1) * m.skin,
        "lids": m.mask("eyelids"),
        "ears": m.mask("ears"),
        "cavity": (m.mask("inside_mouth") > 0.5).astype(float),
        "socket": m.mask("socket"),
        "nostrils": np.clip(m.head.subdivision @ nostrils, 0, 1),
    }


def _spots(m: _Measurer) -> dict[str, Array]:
    cheek = (m.at(CHEEK_PAIR[0]) + m.at(CHEEK_PAIR[1])) / 2
    return {
        "cheek": m.spot(cheek, 15) * m.skin,
        "nose_tip": m.spot(m.at(NOSE_TIP), 9) * m.skin,
        "under_eye": m.spot(m.at(UNDER_EYE) - (0, 3, 0), 7) * m.skin,
        "upper_lid": m.spot(m.at(UPPER_LID), 6) * m.skin,
    }


def _brow(m: _Measurer) -> dict[str, Array]:
    """Coordinates of the brow: along its middle line (0 inner end to 1 outer end) and mm above it."""
    line = np.array(
        [sum(w * m.at(i) for i, w in weights.items()) + np.array([0, lift, 0]) for weights, lift in BROW_LINE]
    )[:, :2]
    plane = m.folded[:, :2]
    arcs = np.r_[0, np.cumsum(np.linalg.norm(np.diff(line, axis=0), axis=1))]
    best, along, across = np.full(m.n, np.inf), np.full(m.n, 2.0), np.full(m.n, 12.0)
    for k, (start, end) in enumerate(itertools.pairwise(line)):
        step = end - start
        length = float(np.linalg.norm(step))
        t = (plane - start) @ step / length**2
        t = np.clip(t, -1.0 if k == 0 else 0.0, 2.0 if k == len(line) - 2 else 1.0)
        offset = plane - start - t[:, None] * step
        distance = np.linalg.norm(offset, axis=1)
        side = np.sign(step[0] * offset[:, 1] - step[1] * offset[:, 0])
        closer = distance < best
        best[closer] = distance[closer]
        along[closer] = ((arcs[k] + t * length) / arcs[-1])[closer]
        across[closer] = (side * distance)[closer]
    near = (best < 12) & m.skin & (m.vertices[:, 2] > m.at(BROW_TOP_MID)[2] - 50)
    return {
        "brow_along": np.where(near, np.clip(along, -0.3, 1.3), 1.3),
        "brow_across": np.where(near, across, 12.0),
    }


def _beard(m: _Measurer, fields: dict[str, Array]) -> Array:
    """Moustache, chin, jaw and throat."""
    corner = m.at(LIP_CORNER)[1]
    knots = [m.at(SUBNASALE)[1] - 2, m.at(ALARE)[1] - 3, corner - 2, corner + 10, corner + 32]
    top = np.interp(m.folded[:, 0], [0, 12, 30, 60, 75], knots)
    below = 1 / (1 + np.exp(np.clip((m.vertices[:, 1] - top) / 3.5, -30, 30)))
    above_throat = 1 / (1 + np.exp(np.clip(-(m.vertices[:, 1] - (m.at(CHIN)[1] - 22)) / 5, -30, 30)))
    front = m.vertices[:, 2] > m.at(TRAGUS)[2] - 4
    bare_under_lip = 1 - 0.75 * m.spot(m.at(724) + np.array([14, 10, 0]), 7) * (m.folded[:, 0] > 6)
    return (
        below * above_throat * front * (1 - fields["lips"]) * (1 - fields["ears"]) * m.skin * bare_under_lip
    )


def _hair(m: _Measurer, fields: dict[str, Array]) -> Array:
    """Signed depth behind the hair line, about millimetres, clipped to +-40; positive inside the hair."""
    brow, chin, tragus = m.at(BROW_TOP_MID)[1], m.at(CHIN)[1], m.at(TRAGUS)
    y, z = m.vertices[:, 1], m.vertices[:, 2]
    front = np.interp(m.folded[:, 0], [0, 18, 38, 55, 66, 76], [50, 52, 50, 38, 22, 2]) + brow
    heights = [chin, tragus[1] - 30, tragus[1], brow + 10, brow + 50]
    side = np.interp(y, heights, tragus[2] + np.array([-60, -24, 6, 27, 55]))
    field = np.maximum(y - front, np.minimum(side - z, y - (tragus[1] - 75)))
    bare = ~m.skin | (fields["ears"] > 0.3) | (fields["cavity"] > 0.5) | (fields["socket"] > 0.5)
    return np.where(bare, -40.0, np.clip(field, -40, 40))


def _eye_radius(m: _Measurer) -> Array:
    """Distance of the eyes' front vertices from the eye's axis; 20 elsewhere."""
    radius = np.full(m.n, 20.0)
    for name in ("left_eye", "right_eye"):
        eye = m.part == PART_NAMES.index(name)
        centre = (m.vertices[eye].max(0) + m.vertices[eye].min(0)) / 2
        offset = m.vertices - centre
        front = eye & (offset[:, 2] > 0)
        radius[front] = np.minimum(np.hypot(offset[front, 0], offset[front, 1]), 20)
    return radius


def _concavity(m: _Measurer) -> Array:
    """Positive in folds, negative on ridges; the 95th percentile of the skin is 1."""
    height = ((m.average @ m.vertices - m.vertices) * m.normals()).sum(1)
    height = m.smooth(height, 3)
    return np.clip(height / np.percentile(np.abs(height[m.skin]), 95), -1, 1.5)


def _eigenfunctions(head: HeadInput, count: int) -> Array:
    """[N, count] smooth patterns: eigenfunctions of the skin's Laplacian, of unit rms and fixed sign."""
    from scipy.sparse.linalg import eigsh

    x, quads = head.base_vertices, head.base_quads[(head.base_parts[head.base_quads] == 0).all(1)]
    used = np.unique(quads)
    i, j = quads.ravel(), np.roll(quads, -1, axis=1).ravel()
    weight = sp.coo_matrix(
        (1 / (np.linalg.norm(x[i] - x[j], axis=1) + 0.3), (i, j)), shape=(len(x),) * 2
    ).tocsr()
    weight = weight.maximum(weight.T)[used][:, used]
    area = np.zeros(len(x))
    diagonals = np.cross(x[quads[:, 2]] - x[quads[:, 0]], x[quads[:, 3]] - x[quads[:, 1]])
    np.add.at(area, quads.ravel(), np.repeat(np.linalg.norm(diagonals, axis=1) / 8, 4))
    mass = sp.diags(area[used] + 1e-3).tocsc()
    laplacian = (sp.diags(np.asarray(weight.sum(1)).ravel()) - weight).tocsc()
    start = np.cos(np.arange(len(used)))
    values, modes = eigsh(laplacian, k=count + 1, M=mass, sigma=-1e-6, which="LM", v0=start)
    modes = modes[:, np.argsort(values)][:, 1:]
    modes /= np.sqrt((modes**2).mean(0))
    modes *= np.sign(start @ modes)
    full = np.zeros((len(x), count))
    full[used] = modes
    return np.asarray(head.subdivision @ full)


def _openness(m: _Measurer, fields: dict[str, Array]) -> Array:
    """Share of the sky that a vertex sees, weighted by the cosine: ambient occlusion of the neutral head.

    From each direction the head's points are splatted into a depth grid; a point behind its cell's front is
    in shadow. The closed mouth hides what is inside, so there the depth behind the lips sets it instead.
    """
    points = np.concatenate([m.vertices, m.vertices[m.head.quads].mean(1)])
    normals = m.normals()
    golden = np.pi * (3 - np.sqrt(5))
    k = np.arange(N_DIRECTIONS)
    height = 1 - 2 * (k + 0.5) / N_DIRECTIONS
    ring = np.sqrt(1 - height**2)
    directions = np.stack([ring * np.cos(golden * k), height, ring * np.sin(golden * k)], axis=1)
    seen, total = np.zeros(m.n), np.zeros(m.n)
    for direction in directions:
        cosine = np.clip(normals @ direction, 0, None)
        seen += cosine * _visible(points, m.n, direction)
        total += cosine
    openness = m.smooth(seen / np.maximum(total, 1e-9), 1)
    openness = (openness + openness[m.head.mirror]) / 2
    depth = m.at(LIP_CORNER)[2] - m.vertices[:, 2]
    inside = np.interp(depth, [-12, 5, 30], [0.75, 0.4, 0.1])
    eyes = (m.part == PART_NAMES.index("left_eye")) | (m.part == PART_NAMES.index("right_eye"))
    openness = np.where((fields["cavity"] > 0.5) | (~m.skin & ~eyes), inside, openness)
    return np.where(eyes, np.clip(0.45 + 0.5 * openness, 0, 1), openness)


def _visible(points: Array, count: int, direction: Array) -> NDArray[np.bool_]:
    """[count] whether the first points see out along `direction` past all points."""
    helper = np.array([1.0, 0, 0]) if abs(direction[0]) < 0.9 else np.array([0, 1.0, 0])
    u = np.cross(direction, helper)
    u /= np.linalg.norm(u)
    v = np.cross(direction, u)
    cell = np.floor(np.stack([points @ u, points @ v], axis=1) / SPLAT_MM).astype(int)
    cell -= cell.min(0) - 1
    depth = points @ direction
    grid = np.full(cell.max(0) + 2, -np.inf)
    np.maximum.at(grid, (cell[:, 0], cell[:, 1]), depth)
    return depth[:count] > grid[cell[:count, 0], cell[:count, 1]] - SHADOW_BIAS_MM


def _lower_face(m: _Measurer, fields: dict[str, Array]) -> Array:
    """Where a surgical mask lies: from the nose bridge over the cheeks to under the chin."""
    bridge = (m.at(NASION)[1] + m.at(NOSE_TIP)[1]) / 2
    top = np.interp(
        m.folded[:, 0], [0, 12, 45, 70], [bridge, bridge - 8, m.at(NOSE_TIP)[1], m.at(SUBNASALE)[1]]
    )
    y, z = m.vertices[:, 1], m.vertices[:, 2]
    inside = (
        (y < top) & (y > m.at(CHIN)[1] - 14) & (z > m.at(TRAGUS)[2] + 18) & m.skin & (fields["cavity"] < 0.5)
    )
    return m.smooth(inside.astype(float), 2)


def save_fields(fields: dict[str, NDArray[Any]], path: Path) -> None:
    """Write the fields quantised to 8 bits: value = integer x scale, one scale for each column."""
    arrays: dict[str, NDArray[Any]] = {"version": np.array(FIELDS_VERSION), "part": fields["part"]}
    for name, value in fields.items():
        if name == "part":
            continue
        scale = np.maximum(np.abs(value).max(axis=0), 1e-9) / 127
        arrays[name] = np.round(value / scale).astype(np.int8)
        arrays[f"{name}__scale"] = np.asarray(scale, dtype=np.float32)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]  # its stub has no room for names
    write_atomic(path, buffer.getvalue())
