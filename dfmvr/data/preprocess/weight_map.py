"""The photo loss's weight map (paper 4.1): features count most, then the face, then the background."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

BACKGROUND_WEIGHT = 32 / 255
FACE_WEIGHT = 128 / 255
FEATURE_WEIGHT = 254 / 255
_FIRST_FEATURE = 2  # labels: 0 background, 1 skin, 2-9 brows, eyes, nose, mouth


def weight_map(masks: NDArray[np.uint8], dilation: float = 20.0) -> NDArray[np.float32]:
    """Return the weight of each pixel.

    Args:
        masks: [*L, H, W] uint8 region labels 0-9.
        dilation: pixels by which features and face grow in a picture 224 px wide; scaled with the width.

    Returns:
        [*L, H, W] float32: 254, 128 or 32 over 255.
    """
    radius = dilation * masks.shape[-1] / 224
    weights = np.full(masks.shape, BACKGROUND_WEIGHT, np.float32)
    for mask, weight in zip(masks.reshape(-1, *masks.shape[-2:]), _flat(weights), strict=True):
        weight[_near(mask >= 1, radius)] = FACE_WEIGHT
        weight[_near(mask >= _FIRST_FEATURE, radius)] = FEATURE_WEIGHT
    return weights


def _near(region: NDArray[np.bool_], radius: float) -> NDArray[np.bool_]:
    """Pixels at most `radius` from a region: a dilation by a disc, at a cost that does not grow with it."""
    if not region.any():
        return region
    outside = (~region).astype(np.uint8)
    return cv2.distanceTransform(outside, cv2.DIST_L2, cv2.DIST_MASK_PRECISE) <= radius


def _flat(weights: NDArray[Any]) -> NDArray[Any]:
    return weights.reshape(-1, *weights.shape[-2:])
