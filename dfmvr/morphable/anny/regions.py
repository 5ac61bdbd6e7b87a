"""Region labels, landmark sets and the crop of the face, drawn on the mean head."""

from __future__ import annotations

import itertools

import numpy as np

from dfmvr.morphable.anny import anatomy
from dfmvr.morphable.anny.head import Head
from dfmvr.morphable.landmarks import KEPT_OF_106
from dfmvr.morphable.topology import PART_NAMES, BaseMesh, subdivide
from dfmvr.types import REGION_NAMES

LABEL = {name: i for i, name in enumerate(REGION_NAMES)}
PIECE = {name: i for i, name in enumerate(PART_NAMES)}

PIECE_DEPTHS = {"left_eye": 14.0, "right_eye": 14.0, "upper_teeth": 20.0, "lower_teeth": 20.0, "tongue": 20.0}
"""mm behind its foremost point up to which a piece belongs to the face."""

CAVITY_DEPTH, SOCKET_DEPTH = 55.0, 6.0
"""mm behind the corner of the mouth, and behind the lid, up to which inner skin belongs to the face.

Deeper, the throat would show behind the face's border in a side view."""

LANDMARK_MARGIN = 4.0
"""Least value of the crop field at a landmark that is looked for: the border itself is moved."""

EAR_SLOPE = 20.0
"""mm of the crop field for one step of the painted ears."""


def crop_field(head: Head, mean: np.ndarray) -> np.ndarray:
    """Return the field whose zero line is the border of the face: [N0], about mm, positive inside.

    Args:
        head: the base-level head.
        mean: [N0, 3] mm, model space.
    """
    x, y, z = np.abs(mean[:, 0]), mean[:, 1], mean[:, 2]
    jaw = mean[
        head.ids([anatomy.LANDMARKS_68_MIDDLE[8], *(anatomy.LANDMARKS_68_LEFT[i] for i in range(9, 17))])
    ]
    ear, chin = jaw[-1], jaw[0]
    brow = mean[head.ids(anatomy.LANDMARKS_68_LEFT[24])[0]]
    under = jaw[2]
    behind = np.interp(
        y,
        [under[1], jaw[4][1], ear[1] - 20, ear[1], brow[1], brow[1] + 50],
        [under[2] - 14, jaw[4][2] - 12, ear[2] - 9, ear[2] - 8, ear[2] + 9, ear[2] + 40],
    )
    hairline = np.interp(
        x, [0, 25, 45, 60, 75], [brow[1] + 45, brow[1] + 45, brow[1] + 40, brow[1] + 26, brow[1] - 4]
    )
    slope = (under[1] - chin[1]) / (under[2] - chin[2])
    below = chin[1] + slope * (z - chin[2]) - 7
    skin = _soft_minimum([z - behind, hairline - y, y - below], width=4.0)
    lip_z = mean[head.ids(anatomy.UPPER_LIP_CONTACT[0])[0], 2]
    lid_z = mean[head.ids(anatomy.UPPER_LID_MIDDLE)[0], 2]
    skin = np.where(head.mouth_cavity, np.minimum(skin, z - (lip_z - CAVITY_DEPTH)), skin)
    skin = np.where(head.eye_sockets, np.minimum(skin, z - (lid_z - SOCKET_DEPTH)), skin)
    skin = np.minimum(skin, (0.5 - head.ears) * EAR_SLOPE)
    field = skin
    for part, depth in PIECE_DEPTHS.items():
        ids = head.vertices_of(PIECE[part])
        field[ids] = z[ids] - (z[ids].max() - depth)
    return (field + field[head.mirror]) / 2


def _soft_minimum(fields: list[np.ndarray], width: float) -> np.ndarray:
    """Return a minimum whose corners are rounded over `width`."""
    stack = np.stack(fields)
    lowest = stack.min(axis=0)
    return lowest - width * np.log(np.exp(-(stack - lowest) / width).sum(axis=0))


def region_labels(head: Head, base: BaseMesh, mean: np.ndarray, lower_mouth: np.ndarray) -> np.ndarray:
    """Return the region label of every vertex of the head at level 2: [N2] uint8.

    Args:
        head: the base-level head.
        base: its mesh, with the crop of the face.
        mean: [N0, 3] mm, model space.
        lower_mouth: [N0] bool, tells the lower lip from the upper one.
    """
    fine = subdivide(base, 2)
    vertices = fine.matrix @ mean
    pieces = np.zeros(len(vertices), np.int64)
    pieces[fine.quads.ravel()] = np.repeat(np.tile(head.quad_parts, 16), 4)
    in_face = fine.matrix @ base.face_field > 0
    coarse_field = subdivide(base, 1).matrix @ base.face_field
    in_face[: len(coarse_field)] |= coarse_field > 0
    cavity = (fine.matrix @ head.mouth_cavity.astype(float)) > 0.5
    outer = (pieces == PIECE["skin"]) & ~cavity & ((fine.matrix @ head.eye_sockets.astype(float)) < 0.3)
    left = vertices[:, 0] > 0
    folded = vertices * (-1, 1, 1)
    folded[left] = vertices[left]

    labels = np.where(in_face, LABEL["skin"], LABEL["background"])
    labels[outer & _inside_nose(head, mean, folded)] = LABEL["nose"]
    brow = outer & _inside_brow(head, mean, folded)
    labels[brow] = np.where(left[brow], LABEL["left_brow"], LABEL["right_brow"])
    lips = outer & ((fine.matrix @ head.lips) > 0.5)
    upper = (fine.matrix @ lower_mouth.astype(float)) < 0.5
    labels[lips] = np.where(upper[lips], LABEL["upper_lip"], LABEL["lower_lip"])
    labels[cavity] = LABEL["mouth"]
    for piece in ("upper_teeth", "lower_teeth", "tongue"):
        labels[pieces == PIECE[piece]] = LABEL["mouth"]
    labels[pieces == PIECE["left_eye"]] = LABEL["left_eye"]
    labels[pieces == PIECE["right_eye"]] = LABEL["right_eye"]
    return _symmetric(labels, fine.mirror).astype(np.uint8)


def _symmetric(labels: np.ndarray, mirror: np.ndarray) -> np.ndarray:
    """Copy the labels of one half to the other, so that rounding cannot make them differ."""
    swap = np.arange(len(REGION_NAMES))
    for side in ("brow", "eye"):
        right, left = LABEL[f"right_{side}"], LABEL[f"left_{side}"]
        swap[[right, left]] = left, right
    first = np.arange(len(labels)) <= mirror
    return np.where(first, labels, swap[labels[mirror]])


def _inside_nose(head: Head, mean: np.ndarray, folded: np.ndarray) -> np.ndarray:
    """Return which vertices, folded to the left half, lie inside the nose seen from the front."""
    ridge = anatomy.LANDMARKS_68_MIDDLE
    bridge = [(width, mean[head.ids(ridge[i])[0], 1]) for i, width in anatomy.NOSE_BRIDGE_HALF_WIDTH]
    wing = mean[head.ids(list(anatomy.NOSE_OUTLINE))][:, :2]
    wing = wing[wing[:, 1] < bridge[-1][1] - 1]
    top, bottom = (-1.0, bridge[0][1] + 1), (-1.0, wing[-1, 1])
    outline = np.array([top, *bridge, *wing, bottom])
    in_front = folded[:, 2] > mean[head.ids(anatomy.NOSE_OUTLINE[3])[0], 2] - 6
    return _inside_polygon(outline, folded[:, :2]) & in_front


def _inside_polygon(polygon: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Return which points [N, 2] lie inside a polygon [P, 2] (even-odd rule)."""
    inside = np.zeros(len(points), bool)
    for (x0, y0), (x1, y1) in zip(polygon, np.roll(polygon, -1, axis=0), strict=True):
        if y0 == y1:
            continue
        crosses = (points[:, 1] >= min(y0, y1)) & (points[:, 1] < max(y0, y1))
        at = x0 + (points[:, 1] - y0) * (x1 - x0) / (y1 - y0)
        inside ^= crosses & (points[:, 0] < at)
    return inside


def brow_line(head: Head, mean: np.ndarray) -> np.ndarray:
    """Return the middle line of the left brow [7, 3] mm, from the nose outwards."""
    line = [
        sum(weight * mean[head.ids(vertex)[0]] for vertex, weight in point) for point in anatomy.BROW_LINE
    ]
    return np.array(line) + np.outer(anatomy.BROW_LIFT, (0, 1, 0))


def _inside_brow(head: Head, mean: np.ndarray, folded: np.ndarray) -> np.ndarray:
    line = brow_line(head, mean)
    distance = np.full(len(folded), np.inf)
    share = np.zeros(len(folded))
    lengths = np.linalg.norm(np.diff(line, axis=0), axis=1)
    before = np.concatenate([[0], np.cumsum(lengths)]) / lengths.sum()
    for i, (start, end) in enumerate(itertools.pairwise(line)):
        along = np.clip((folded - start) @ (end - start) / lengths[i] ** 2, 0, 1)
        here = np.linalg.norm(folded - start - along[:, None] * (end - start), axis=1)
        nearer = here < distance
        distance[nearer] = here[nearer]
        share[nearer] = before[i] + along[nearer] * (before[i + 1] - before[i])
    return distance < np.interp(share, *anatomy.BROW_HALF_WIDTH)


def landmark_sets(head: Head, base: BaseMesh, mean: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the 68 and the 101 landmarks as vertices of the head at level 1."""
    set_68 = np.full(68, -1)
    for number, vertex in anatomy.LANDMARKS_68_MIDDLE.items():
        set_68[number] = head.ids(vertex)[0]
    for number, vertex in anatomy.LANDMARKS_68_LEFT.items():
        set_68[number] = head.ids(vertex)[0]
        set_68[anatomy.LEFT_TO_RIGHT_68[number]] = head.mirror[set_68[number]]
    set_106 = _dense_set(head, base, mean, set_68)
    return set_68, set_106[list(KEPT_OF_106)]


def _dense_set(head: Head, base: BaseMesh, mean: np.ndarray, set_68: np.ndarray) -> np.ndarray:
    """Return Pixel-Face's 106 points as vertices of the head at level 1."""
    level_1 = subdivide(base, 1)
    vertices, mirror = level_1.matrix @ mean, level_1.mirror
    pieces = np.zeros(len(vertices), np.int64)
    pieces[level_1.quads.ravel()] = np.repeat(np.tile(head.quad_parts, 4), 4)
    hidden = level_1.matrix @ (head.mouth_cavity | head.eye_sockets).astype(float)
    in_face = level_1.matrix @ base.face_field > LANDMARK_MARGIN
    outer = np.flatnonzero((pieces == PIECE["skin"]) & (hidden < 0.3) & in_face & (vertices[:, 0] > -0.1))

    def along(line: np.ndarray, n: int) -> list[int]:
        """Return the vertices nearest to n points at equal steps along a line, its ends left out."""
        length = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(line, axis=0), axis=1))])
        steps = np.linspace(0, length[-1], n + 2)[1:-1]
        points = np.stack([np.interp(steps, length, line[:, i]) for i in range(3)], axis=1)
        return [int(outer[((vertices[outer] - point) ** 2).sum(1).argmin()]) for point in points]

    def both(left: dict[int, int], right: dict[int, int]) -> None:
        """Set the points of the left half, and their mirror images at the numbers in `right`."""
        for number, vertex in left.items():
            dense[number] = vertex
            dense[right[number]] = mirror[vertex]

    dense = np.full(106, -1)
    dense[0:33:2] = set_68[:17]
    middles = [along(vertices[set_68[[k, k + 1]]], 1)[0] for k in range(8, 16)]
    both(dict(zip(range(17, 33, 2), middles, strict=True)), {17 + 2 * i: 15 - 2 * i for i in range(8)})
    dense[33:43] = set_68[17:27]
    dense[43:47], dense[47:52] = set_68[27:31], set_68[31:36]
    dense[52:58], dense[58:64] = set_68[36:42], set_68[42:48]
    brow = along(vertices[head.ids(list(anatomy.LOWER_BROW_LEFT))], 4)
    both(dict(zip(range(68, 72), brow, strict=True)), {68 + i: 67 - i for i in range(4)})
    pupil = _pupil(vertices, pieces)
    upper, lower = head.ids([anatomy.UPPER_LID_MIDDLE, anatomy.LOWER_LID_MIDDLE])
    both({75: upper, 76: lower, 77: pupil, 105: pupil}, {75: 72, 76: 73, 77: 74, 105: 104})
    sides = head.ids([anatomy.NOSE_SIDE_UPPER, anatomy.NOSE_SIDE_MIDDLE, anatomy.NOSE_WING])
    both(dict(zip((79, 81, 83), sides, strict=True)), {79: 78, 81: 80, 83: 82})
    dense[84:96], dense[96:104] = set_68[48:60], set_68[60:68]
    return dense


def _pupil(vertices: np.ndarray, pieces: np.ndarray) -> int:
    """Return the foremost vertex of the left eye's axis."""
    ids = np.flatnonzero(pieces == PIECE["left_eye"])
    centre = vertices[ids].mean(axis=0)
    front = ids[vertices[ids, 2] > centre[2]]
    return int(front[np.hypot(*(vertices[front] - centre)[:, :2].T).argmin()])
