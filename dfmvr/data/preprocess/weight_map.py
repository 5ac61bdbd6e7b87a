"""The photo loss's weight map (paper 4.1): features count most, then the face, then the background."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

BACKGROUND, FACE, FEATURE = 32, 128, 254
"""Weights, over 255."""
_LEVEL_OF_LABEL = np.array([BACKGROUND, FACE] + [FEATURE] * 254, np.uint8)


def weight_map(masks: NDArray[np.uint8], dilation: float = 20.0) -> NDArray[np.float32]:
    """Return the weight of each pixel.

    Args:
        masks: [*L, H, W] uint8 region labels 0-9: 0 background, 1 skin, 2-9 brows, eyes, nose, mouth.
        dilation: pixels by which features and face grow in a picture 224 px wide; scaled with the width.

    Returns:
        [*L, H, W] float32: 254, 128 or 32 over 255.
    """
    disc = _disc(dilation * masks.shape[-1] / 224)
    levels = _LEVEL_OF_LABEL[masks].reshape(-1, *masks.shape[-2:])
    # Features outweigh the face, and the face the background: the highest level nearby grows all at once.
    grown = np.stack([cv2.dilate(level, disc) for level in levels])
    return np.divide(grown, 255, dtype=np.float32).reshape(masks.shape)


def _disc(radius: float) -> NDArray[np.uint8]:
    reach = np.arange(-int(radius), int(radius) + 1)
    return (np.hypot(reach[:, None], reach) <= radius).astype(np.uint8)
