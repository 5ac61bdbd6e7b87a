"""The regions of a face that errors are reported for.

They are drawn once on the face model's mean shape, from its labels and its 68 landmarks in the frontal plane,
and belong to vertices: a scan vertex takes the region of the nearest dense correspondence of the same sample.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dfmvr.evaluation.distance import Floats, Ints
from dfmvr.types import REGION_NAMES

REGIONS = ("nose", "mouth", "eyes_brows", "cheeks", "forehead", "chin")
"""Names of the regions 0-5; -1 marks what no scanner sees and nothing measures: the inside of the mouth."""

UNMEASURED = -1

_LABEL = {name: label for label, name in enumerate(REGION_NAMES)}


def face_regions(vertices: Floats, labels: Ints, landmarks_68: Ints) -> NDArray[np.int8]:
    """Return the region of each vertex of a face model.

    Args:
        vertices: [N, 3] mm, the mean shape in model space.
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
    regions[np.isin(labels, [_LABEL["background"], _LABEL["mouth"]])] = UNMEASURED
    return regions


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
