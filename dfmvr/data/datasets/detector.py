"""What a landmark detector and a face parser would have said: the truth with their kinds of errors."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

JAW = np.arange(17)
"""iBUG's outline points."""
OCCLUDED_WEIGHT, OCCLUDED_JAW_WEIGHT = 0.5, 0.15
_OUTLIER_GAIN, _OCCLUDED_GAIN = 6.0, 1.8
_SHARED = 0.35
"""Share of the landmark noise that moves the whole face."""


def detect_landmarks(
    rng: np.random.Generator, points: Array, visible: Array, noise: float, outliers: float
) -> tuple[Array, Array]:
    """Landmarks as a detector finds them.

    Args:
        rng: chance.
        points: [68, 2] true pixels.
        visible: [68] bool.
        noise: standard deviation in pixels.
        outliers: share of points that are far off.

    Returns:
        Pixels [68, 2] float32 and confidences [68] float32; hidden points are less certain, and those of the
        outline, where detectors slide along the cheek, hardly count.
    """
    spread = noise * np.where(visible, 1.0, _OCCLUDED_GAIN)
    spread = spread * np.where(rng.random(len(points)) < outliers, _OUTLIER_GAIN, 1.0)
    shift = rng.normal(0, noise * _SHARED, 2)
    found = points + shift + rng.normal(size=points.shape) * spread[:, None]
    hidden_weight = np.full(len(points), OCCLUDED_WEIGHT)
    hidden_weight[JAW] = OCCLUDED_JAW_WEIGHT
    weights = np.where(visible, 1.0, hidden_weight)
    return found.astype(np.float32), weights.astype(np.float32)


def parse_regions(rng: np.random.Generator, labels: Array, noise: float, blunders: float) -> Array:
    """A label map as a parser draws it: wavy boundaries, and now and then a missed region.

    Args:
        rng: chance.
        labels: [S, S] uint8, the true labels.
        noise: standard deviation in pixels of the boundaries.
        blunders: share of the small regions (brows, eyes, lips) that are missed.
    """
    size = len(labels)
    grid = np.arange(size, dtype=np.float32)
    maps = []
    for axis in range(2):
        waves = np.zeros((size, size), dtype=np.float32)
        for cells, share in ((5, 0.7), (17, 0.7)):
            layer = rng.normal(0, noise * share, (cells, cells)).astype(np.float32)
            waves += cv2.resize(layer, (size, size), interpolation=cv2.INTER_CUBIC)
        maps.append(waves + (grid[None] if axis == 0 else grid[:, None]))
    noisy = cv2.remap(labels, maps[0], maps[1], cv2.INTER_NEAREST, borderMode=cv2.BORDER_REPLICATE)
    for region in (2, 3, 4, 5, 7, 8, 9):
        if rng.random() < blunders:
            noisy[noisy == region] = 1
    return noisy
