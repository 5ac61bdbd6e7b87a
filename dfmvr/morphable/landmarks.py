"""Landmark sets: how many, in which order, and how they relate.

Sets: `68` iBUG order; `101` the order of Pixel-Face's 106 points without five points of the face contour;
`7` the points on which two faces are aligned.
"""

from __future__ import annotations

import numpy as np

ALIGN_7_IN_68 = (36, 39, 42, 45, 33, 48, 54)
"""Four eye corners, bottom of the nose, two corners of the mouth."""

DROPPED_FROM_106 = (3, 15, 17, 25, 27)
"""Contour points that Pixel-Face's 106 have and its 101 lack."""

KEPT_OF_106 = tuple(i for i in range(106) if i not in DROPPED_FROM_106)
"""Index in the 106 of each of the 101."""

ALIGN_7_IN_101 = tuple(KEPT_OF_106.index(i) for i in (52, 55, 58, 61, 49, 84, 90))
"""Positions of the seven alignment points in the 101."""


def mirror_order(ids: np.ndarray, mirror: np.ndarray) -> np.ndarray:
    """Return the permutation of a landmark set under a mirror image.

    Args:
        ids: [K] vertex ids; a vertex may stand in several places.
        mirror: [N] mirror map of the vertices.

    Returns:
        [K] int64 p: landmark k of the mirrored face is the mirror image of landmark p[k].

    Raises:
        ValueError: the set is not closed under the mirror map.
    """
    order = np.empty(len(ids), np.int64)
    free = np.ones(len(ids), bool)
    for k, vertex in enumerate(mirror[ids]):
        places = np.flatnonzero((ids == vertex) & free)
        if len(places) == 0:
            raise ValueError(f"landmarks: expected the mirror image of number {k} in the set, got none")
        order[k] = places[0]
        free[places[0]] = False
    return order
