"""The regions of a face that errors are reported for.

They are drawn once on the face model's mean shape, from its labels and its 68 landmarks in the frontal plane,
and belong to vertices: a scan vertex takes the region of the nearest dense correspondence of the same sample.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from dfmvr.evaluation.distance import Floats, Ints
from dfmvr.geometry.camera import SUBJECT_DISTANCE, to_camera
from dfmvr.geometry.rotation import euler_to_matrix
from dfmvr.render.zbuffer import ZBufferRenderer
from dfmvr.types import REGION_NAMES

REGIONS = ("nose", "mouth", "eyes_brows", "cheeks", "forehead", "chin")
"""Names of the regions 0-5; -1 marks what no scanner sees and nothing measures."""

UNMEASURED = -1

SIDES_PITCH, SIDES_YAW = (-35.0, 0.0, 35.0), (-80.0, -40.0, 0.0, 40.0, 80.0)
"""Degrees: the sides that a scanner sees a face from."""
_PIXELS, _SPAN = 384, 240.0  # a pixel is 0.6 mm; a triangle of level 1 measures two or three

_LABEL = {name: label for label, name in enumerate(REGION_NAMES)}


def face_regions(vertices: Floats, triangles: Ints, labels: Ints, landmarks_68: Ints) -> NDArray[np.int8]:
    """Return the region of each vertex of a face model.

    Not measured are the inside of the mouth, and what cannot be seen from outside on the mean face: the backs
    of the eyeballs, the lids' and lips' inner sides.

    Args:
        vertices: [N, 3] mm, the mean shape in model space.
        triangles: [F, 3].
        labels: [N] region labels of types.REGION_NAMES.
        landmarks_68: [68] vertex ids, iBUG order.

    Returns:
        [N] index into REGIONS, or UNMEASURED.
    """
    points, marks = vertices[:, :2], vertices[landmarks_68, :2]
    brow_line = marks[17:27, 1].mean()
    mouth_width = float(np.linalg.norm(marks[54] - marks[48]))
    mouth_centre = (marks[48] + marks[54]) / 2
    lip_bottom, nose_bottom = marks[57, 1], marks[33, 1]

    regions = np.full(len(vertices), REGIONS.index("cheeks"), dtype=np.int8)
    regions[points[:, 1] > brow_line] = REGIONS.index("forehead")
    beside_midline = np.abs(points[:, 0] - mouth_centre[0])
    regions[(points[:, 1] < lip_bottom) & (beside_midline < 0.8 * mouth_width)] = REGIONS.index("chin")
    # The mouth takes the upper lip's skin up to the nose, and a rim of 4 mm around the lips elsewhere.
    above = points[:, 1] > mouth_centre[1]
    half_height = np.where(above, nose_bottom - mouth_centre[1] + 4.0, mouth_centre[1] - lip_bottom + 4.0)
    regions[_ellipse(points, mouth_centre, 0.72 * mouth_width, half_height)] = REGIONS.index("mouth")
    between_eyes = (beside_midline < 12.0) & (points[:, 1] > marks[39:43, 1].mean())
    regions[between_eyes & (points[:, 1] < brow_line)] = REGIONS.index("eyes_brows")
    for outer, inner in ((36, 39), (45, 42)):
        width = float(np.linalg.norm(marks[outer] - marks[inner]))
        centre = (marks[outer] + marks[inner]) / 2
        half_height = brow_line - centre[1] + 4.0
        regions[_ellipse(points, centre, width, half_height)] = REGIONS.index("eyes_brows")

    for region, members in (
        ("eyes_brows", ("right_brow", "left_brow", "right_eye", "left_eye")),
        ("nose", ("nose",)),
        ("mouth", ("upper_lip", "lower_lip")),
    ):
        regions[np.isin(labels, [_LABEL[name] for name in members])] = REGIONS.index(region)
    inside = np.isin(labels, [_LABEL["background"], _LABEL["mouth"]])
    regions[inside | ~seen_from_outside(vertices, triangles)] = UNMEASURED
    return regions


def seen_from_outside(vertices: Floats, triangles: Ints) -> NDArray[np.bool_]:
    """Return [N] whether a triangle around the vertex is seen from one of fifteen sides.

    Args:
        vertices: [N, 3] mm, a face in model space.
        triangles: [F, 3].
    """
    shape, faces = torch.as_tensor(vertices, dtype=torch.float32), torch.as_tensor(triangles)
    sides = [(pitch, yaw, 0.0) for pitch in SIDES_PITCH for yaw in SIDES_YAW]
    rotations = euler_to_matrix(torch.deg2rad(torch.tensor(sides)))
    focal = _PIXELS * SUBJECT_DISTANCE / _SPAN
    intrinsics = torch.tensor([[focal, 0, _PIXELS / 2], [0, focal, _PIXELS / 2], [0, 0, 1]])
    drawn = ZBufferRenderer()(
        to_camera(shape - shape.mean(dim=0), rotations, torch.zeros(3)),
        faces,
        torch.zeros(len(shape), 1),
        intrinsics,
        _PIXELS,
    )
    seen = np.zeros(len(vertices), dtype=bool)
    seen[triangles[np.unique(drawn.triangle_ids[drawn.mask].numpy())]] = True
    return seen


def nearest_regions(points: Floats, vertices: Floats, regions: NDArray[np.int8]) -> NDArray[np.int8]:
    """Return the region of the nearest vertex for each point.

    Args:
        points: [M, 3] mm, a scan's vertices.
        vertices: [N, 3] mm, the same face's dense correspondences.
        regions: [N] of these vertices.
    """
    from scipy.spatial import cKDTree

    return regions[cKDTree(vertices).query(points)[1]]


def _ellipse(
    points: Floats, centre: Floats, half_width: float, half_height: float | Floats
) -> NDArray[np.bool_]:
    x, y = (points - centre).T
    return (x / half_width) ** 2 + (y / half_height) ** 2 < 1
