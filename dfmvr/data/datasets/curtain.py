"""Long hair: a wavy sheet that hangs around the sides and the back of the head."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from dfmvr.data.datasets import surfaces
from dfmvr.data.datasets.people import Assets, Person
from dfmvr.data.datasets.surfaces import Surfaces, mesh_normals

Array = NDArray[Any]
COLUMNS, ROWS = 56, 16
_BAND = 9.0
"""Half the height in mm of the slices in which the head is measured."""
_AXIS_BEHIND_EAR = 30.0
"""mm by which the axis that the hair hangs around lies behind the ears."""
_TOP_ABOVE_EAR = 62.0


def hang_hair(assets: Assets, person: Person, dressed: Array) -> Surfaces:
    """Make the sheet.

    Args:
        assets: shared.
        person: whose hair it is.
        dressed: [N, 3] the head with its short hair, mm.
    """
    hair, rng = person.hair, np.random.default_rng([person.growth_seed, 1])
    landmarks = dressed[assets.landmarks_68]
    ear, chin = landmarks[[0, 16]].mean(0), landmarks[8]
    centre = ear[2] - _AXIS_BEHIND_EAR
    heights = np.linspace(ear[1] + _TOP_ABOVE_EAR, chin[1] - hair.length, ROWS)
    width, depth = _head_profile(assets, dressed, heights, centre, over_ears=hair.cover > 0)
    down = np.linspace(0, 1, ROWS)[:, None]
    around = np.linspace(-1, 1, COLUMNS)[None]
    locks = rng.normal(size=(1, COLUMNS))
    loose = 0.25 * hair.thickness * down
    waves = 2.5 * np.sin(rng.uniform(0.5, 4) * 6 * down + 9 * around) * down + 1.5 * locks * down
    flare = 1 + rng.normal(0, 0.05) * down**2
    half_width = (width[:, None] + 1.5 + loose + waves) * flare
    half_depth = (depth[:, None] + 1.5 + loose + waves) * flare
    edge = np.clip((ear[2] + hair.cover - centre) / half_depth, -0.9, 0.9)
    # A rounded box, since heads are flatter at the sides than an ellipse; rounder at the top.
    power = np.interp(down, [0, 0.35], [0.85, 0.5])
    start = np.arccos(_signed_power(edge, 1 / power))
    angle = np.pi + around * (np.pi - start)
    sine, cosine = np.sin(angle), np.cos(angle)
    x = half_width * _signed_power(sine, power)
    z = centre + half_depth * _signed_power(cosine, power)
    y = heights[:, None] + 4 * locks * down
    vertices = np.stack(np.broadcast_arrays(x, y, z), axis=-1).reshape(-1, 3).astype(np.float32)
    triangles = _grid_triangles(ROWS, COLUMNS)
    channels = np.zeros((len(vertices), surfaces.N_CHANNELS), dtype=np.float32)
    tone = np.clip(1 + 0.2 * np.broadcast_to(locks, x.shape).reshape(-1), 0.4, 1.8)
    channels[:, surfaces.ALBEDO] = person.paint.hair_colour * tone[:, None]
    channels[:, surfaces.NORMAL] = mesh_normals(vertices, triangles)
    channels[:, surfaces.OPENNESS] = 0.85
    channels[:, surfaces.GLOSS], channels[:, surfaces.SHARPNESS] = 0.1, np.log(9.0)
    channels[:, surfaces.STRANDS] = 1.0
    return Surfaces(vertices, triangles, channels, np.zeros(len(vertices), dtype=np.uint8))


def _signed_power(x: Array, power: Array) -> Array:
    result: Array = np.sign(x) * np.abs(x) ** power
    return result


def _head_profile(
    assets: Assets, head: Array, heights: Array, centre: float, *, over_ears: bool
) -> tuple[Array, Array]:
    """Half widths and depths behind `centre` at the heights, top to bottom, never narrowing: hair hangs."""
    behind = head[:, 2] < centre + _AXIS_BEHIND_EAR
    if not over_ears:
        behind &= assets.painter["ears"] < 0.3
    width, depth = np.zeros(len(heights)), np.zeros(len(heights))
    shoulders = head[assets.landmarks_68[8], 1] - 15
    for k, height in enumerate(heights):
        band = behind & (np.abs(head[:, 1] - max(height, shoulders)) < _BAND)
        width[k], depth[k] = np.abs(head[band, 0]).max(), centre - head[band, 2].min()
    return np.maximum.accumulate(width), np.maximum.accumulate(depth)


def _grid_triangles(rows: int, columns: int) -> Array:
    """Two triangles a cell, facing outwards."""
    ids = np.arange(rows * columns).reshape(rows, columns)
    a, b, c, d = ids[:-1, :-1], ids[:-1, 1:], ids[1:, :-1], ids[1:, 1:]
    halves = (np.stack([a, c, b], axis=-1).reshape(-1, 3), np.stack([b, c, d], axis=-1).reshape(-1, 3))
    return np.concatenate(halves).astype(np.int64)
