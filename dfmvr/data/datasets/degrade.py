"""The camera's part: exposure, colour cast, lens blur, sensor noise, tone curve and JPEG."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


def expose(rng: np.random.Generator, image: Array, face: Array) -> Array:
    """Scale linear light so that the face is rightly lit, give or take a camera's errors.

    Dark skin stays darker than light skin: exposure makes up only part of the difference.

    Args:
        rng: chance.
        image: [H, W, 3] linear.
        face: [H, W] weights of the pixels that are metered.
    """
    weight = float(face.sum())
    brightness = float((image.mean(-1) * face).sum() / weight) if weight > 0 else 0.2
    gain = (0.24 / max(brightness, 1e-3)) ** rng.uniform(0.45, 0.95) * np.exp(rng.normal(0, 0.18))
    cast = np.exp(rng.normal(0, 0.07, 3))
    return (image * (gain * cast)).astype(np.float32)


def take_picture(rng: np.random.Generator, image: Array, strength: float) -> Array:
    """Turn linear light into a stored picture.

    Args:
        rng: chance.
        image: [S, S, 3] linear, exposed.
        strength: 0 switches blur, noise, tone and compression off; 1 is the usual amount.

    Returns:
        [S, S, 3] uint8 sRGB.
    """
    size = len(image)
    blur = (
        strength * float(rng.uniform(0.2, 1.6) if rng.random() < 0.85 else rng.uniform(1.6, 3.5)) * size / 224
    )
    if blur > 0.12:
        image = cv2.GaussianBlur(image, (0, 0), blur)
    level = strength * rng.uniform(0.002, 0.02) * (2.0 if rng.random() < 0.15 else 1.0)
    shot = np.sqrt(np.clip(image, 0, 1.2) + 0.02) * rng.normal(size=image.shape)
    image = np.clip(image + level * shot, 0, 1).astype(np.float32)
    encoded = _srgb(image) ** np.exp(strength * rng.normal(0, 0.1))
    contrast = 1 + strength * rng.normal(0, 0.1)
    encoded = np.clip(0.45 + contrast * (encoded - 0.45) + strength * rng.normal(0, 0.02), 0, 1)
    if rng.random() < 0.06 * strength:
        encoded = np.repeat(encoded.mean(-1, keepdims=True), 3, axis=-1)
    picture = np.round(255 * encoded).astype(np.uint8)
    if strength <= 0:
        return picture
    quality = int(rng.integers(45, 97))
    stored = cv2.imencode(".jpg", picture[..., ::-1].copy(), [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
    decoded: Array = np.asarray(cv2.imdecode(stored, cv2.IMREAD_COLOR_RGB))
    return decoded


def _srgb(linear: Array) -> Array:
    """Encode linear light in [0, 1] as sRGB."""
    return np.where(
        linear <= 0.0031308, 12.92 * linear, 1.055 * np.maximum(linear, 0.0031308) ** (1 / 2.4) - 0.055
    )
