"""Corrections of the source mesh, all linear, so that slider targets and bases keep them.

Subdivision draws the lips apart and the lids are thin: the lips are closed for every identity at rest, and
the eyeballs lie a little deeper, deeper still while a lid passes over them on its straight way.
"""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from dfmvr.morphable.anny import anatomy
from dfmvr.morphable.anny.head import Head
from dfmvr.morphable.anny.units import Units
from dfmvr.morphable.topology import PART_NAMES, BaseMesh, subdivide

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

LIP_OVERLAP = 0.3
"""mm by which the lips press into each other at rest."""

LIP_REACH = 4.0
"""mm from the line of contact at which the correction of the lips has fallen to a third."""

LIP_ROUNDS = 4
"""How often the gap that subdivision leaves is measured and closed."""

EYE_DEPTH = 0.3
"""mm by which the eyeballs lie deeper than in the source mesh."""

LID_UNITS_DEPTH = {
    "eyeBlink{Side}": 1.5,
    "eye-{side}-closure": 1.2,
    "eye-{side}-slit": 1.2,
    "eyeSquint{Side}": 0.5,
}
"""mm by which an eyeball retreats while a unit moves the lid."""


class LipClosure:
    """Closes the lips at rest: an affine map of the base vertices, of which offsets take the linear part."""

    def __init__(self, head: Head, lower_mouth: np.ndarray) -> None:
        """Build the map; `lower_mouth` [N0] tells the lower lip from the upper one."""
        self.matrix, self.shift = _lip_step(head, lower_mouth)

    def of_shape(self, vertices: np.ndarray) -> np.ndarray:
        """Return a head at rest [N0, 3] mm with closed lips."""
        closed = vertices.copy()
        for _ in range(LIP_ROUNDS):
            closed[:, 1] = self.matrix @ closed[:, 1] + self.shift
        return closed

    def of_offsets(self, offsets: np.ndarray) -> np.ndarray:
        """Return identity offsets [T, N0, 3] mm that keep the lips closed."""
        closed = offsets.copy()
        heights = offsets[..., 1].T
        for _ in range(LIP_ROUNDS):
            heights = self.matrix @ heights
        closed[..., 1] = heights.T
        return closed


def _lip_step(head: Head, lower_mouth: np.ndarray) -> tuple[csr_matrix, np.ndarray]:
    """Return the matrix [N0, N0] and the shift [N0] mm that act on heights."""
    from scipy.sparse import csr_matrix, identity

    n = len(head.obj_ids)
    base = BaseMesh(head.quads, head.quad_parts, head.mirror, np.zeros(n))
    fine = subdivide(base, 2).matrix
    upper, lower = (
        head.contact_line(line) for line in (anatomy.UPPER_LIP_CONTACT, anatomy.LOWER_LIP_CONTACT)
    )
    x = head.neutral[:, 0]
    skin = np.zeros(n, bool)
    skin[head.vertices_of(0)] = True
    # Half the gap, times the falloff: the upper lip goes down and the lower one up by it.
    strength = np.zeros(n)
    for line, side, sign in ((upper, ~lower_mouth, 0.5), (lower, lower_mouth, -0.5)):
        distance = _distance(head.neutral, head.neutral[line])
        strength += sign * side * skin * np.exp(-((distance / LIP_REACH) ** 2))
    near = np.flatnonzero(np.abs(strength) > 1e-3)
    gap = _reader(x[near], x[upper]) @ fine[upper] - _reader(x[near], x[lower]) @ fine[lower]
    change = csr_matrix((strength[near], (near, np.arange(len(near)))), (n, len(near))) @ gap
    # The overlap fades to nothing at the corners of the mouth, where both lips are one.
    corner = np.abs(x[upper]).max()
    fade = np.clip(4 * (1 - np.abs(x) / corner), 0, 1)
    return (identity(n, format="csr") - change).tocsr(), -strength * fade * LIP_OVERLAP


def _distance(points: np.ndarray, line: np.ndarray) -> np.ndarray:
    """Return the distance of points [N, 3] from a polyline [K, 3]."""
    distance = np.full(len(points), np.inf)
    for start, end in itertools.pairwise(line):
        way = end - start
        along = np.clip((points - start) @ way / (way @ way), 0, 1)
        distance = np.minimum(distance, np.linalg.norm(points - start - along[:, None] * way, axis=1))
    return distance


def _reader(x: np.ndarray, knots: np.ndarray) -> csr_matrix:
    """Return [P, K] weights that interpolate values at rising knots [K] linearly at positions x [P]."""
    from scipy.sparse import csr_matrix

    right = np.clip(np.searchsorted(knots, x), 1, len(knots) - 1)
    share = np.clip((x - knots[right - 1]) / (knots[right] - knots[right - 1]), 0, 1)
    rows = np.arange(len(x))
    values = np.concatenate([1 - share, share])
    columns = np.concatenate([right - 1, right])
    return csr_matrix((values, (np.concatenate([rows, rows]), columns)), (len(x), len(knots)))


def mend_eyes(head: Head, neutral: np.ndarray, units: Units) -> tuple[np.ndarray, Units]:
    """Return the neutral head and the units with the eyeballs set deeper."""
    neutral, offsets = neutral.copy(), units.offsets.copy()
    for part, side in (("left_eye", "left"), ("right_eye", "right")):
        ball = head.vertices_of(PART_NAMES.index(part))
        neutral[ball, 2] -= EYE_DEPTH
        for name, depth in LID_UNITS_DEPTH.items():
            row = units.names.index(name.format(side=side, Side=side.title()))
            offsets[row, ball, 2] -= depth
    return neutral, replace(units, offsets=offsets)
