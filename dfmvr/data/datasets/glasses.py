"""Spectacles: a wire frame in model space that is drawn over a rendered view."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
_RIGHT_EYE, _LEFT_EYE, _NOSE_BRIDGE = slice(36, 42), slice(42, 48), 27
_HIDDEN_BEHIND = 5.0
"""mm that a surface must lie before a part of the frame to hide it."""


@dataclass(frozen=True, eq=False)
class Glasses:
    """Frame and lenses in model space, mm."""

    rims: tuple[Array, Array]
    """Closed curves [R, 3] around the right and the left eye."""
    wires: tuple[Array, ...]
    """Open curves [W, 3]: the bridge and the two arms."""
    width: float
    """mm of the rims."""
    colour: Array
    """[3] linear."""
    tint: Array
    """[3] linear colour of the lenses."""
    opacity: float
    """0 clear to 1 opaque lenses."""


def sample_glasses(rng: np.random.Generator, landmarks: Array) -> Glasses:
    """Draw a pair that fits a head's 68 landmarks [68, 3]."""
    half = np.array([rng.uniform(23, 29), rng.uniform(15, 23)])
    roundness = rng.uniform(2.0, 4.5)
    lift, tilt = rng.normal(-3, 2), rng.uniform(0.02, 0.12)
    angle = np.linspace(0, 2 * np.pi, 49)[:-1]
    outline = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    outline = half * np.sign(outline) * np.abs(outline) ** (2 / roundness)
    bridge = landmarks[_NOSE_BRIDGE]
    rims = []
    for eye, side in ((_RIGHT_EYE, -1.0), (_LEFT_EYE, 1.0)):
        centre = landmarks[eye].mean(0)
        x = centre[0] + side * 3 + outline[:, 0]
        y = centre[1] + lift + outline[:, 1]
        z = bridge[2] + 1 - 0.22 * np.abs(x - bridge[0]) ** 2 / 60 + tilt * outline[:, 1]
        rims.append(np.stack([x, y, z], axis=1))
    inner = [rim[np.abs(rim[:, 0] - bridge[0]).argmin()] for rim in rims]
    arch = np.linspace(0, 1, 9)[:, None]
    across = (
        inner[0] * (1 - arch) + inner[1] * arch + np.array([0, 1, 0.8]) * 5 * np.sin(np.pi * arch) + (0, 4, 0)
    )
    arms = []
    for rim, ear in zip(rims, landmarks[[0, 16]], strict=True):
        hinge = rim[np.abs(rim[:, 0] - bridge[0]).argmax()] + (0, 0.4 * half[1], 0)
        ear = ear * (1.04, 1, 1) + np.array([0, 12, -8])
        along = np.linspace(0, 1, 25)[:, None]
        arms.append(hinge * (1 - along) + ear * along)
    dark = rng.random() < 0.12
    colour = (
        rng.uniform(0.005, 0.15) * np.exp(rng.normal(0, 0.4, 3))
        if rng.random() < 0.8
        else rng.uniform(0.2, 0.6, 3)
    )
    opacity = rng.uniform(0.75, 0.97) if dark else rng.uniform(0.0, 0.15)
    tint = rng.uniform(0.0, 0.05, 3) if dark else rng.uniform(0.2, 0.8, 3)
    return Glasses((rims[0], rims[1]), (across, *arms), rng.uniform(0.8, 3.2), colour, tint, opacity)


def draw_glasses(
    glasses: Glasses, image: Array, depth: Array, projected: list[Array], focal: float
) -> tuple[Array, Array]:
    """Draw the glasses into `image` [S, S, 3], in place.

    Args:
        glasses: what to draw.
        image: linear radiance.
        depth: [S, S] mm of what is drawn already, 0 where nothing is.
        projected: each curve of `curves(glasses)` as [K, 3]: pixels and depth.
        focal: pixels.

    Returns:
        Where frame and dark lenses hide the face, and where lenses lie: two [S, S] bool maps.
    """
    size = len(image)
    front = np.where(depth > 0, depth, np.inf)
    frame, lenses = np.zeros((size, size), dtype=np.uint8), np.zeros((size, size), dtype=np.uint8)
    for curve in projected[:2]:
        patch = np.zeros_like(lenses)
        cv2.fillPoly(patch, [np.round(curve[:, :2]).astype(np.int32)], 255)
        lenses |= patch * (front > curve[:, 2].mean() - _HIDDEN_BEHIND)
    for k, curve in enumerate(projected):
        closed = k < 2
        ends = np.roll(curve, -1, axis=0) if closed else curve[1:]
        for start, end in zip(curve[: len(ends)], ends, strict=True):
            middle = (start + end) / 2
            column, row = int(middle[0]), int(middle[1])
            inside = 0 <= column < size and 0 <= row < size
            if inside and front[row, column] > middle[2] - _HIDDEN_BEHIND:
                thickness = max(1, round(glasses.width * focal / middle[2]))
                cv2.line(frame, _pixel(start), _pixel(end), 255, thickness, cv2.LINE_AA)
    cover = (lenses.astype(np.float32) / 255 * glasses.opacity)[..., None]
    image += cover * (glasses.tint - image)
    cover = (frame.astype(np.float32) / 255)[..., None]
    image += cover * (glasses.colour * 0.7 - image)
    hidden = frame > 127
    if glasses.opacity > 0.5:
        hidden |= lenses > 127
    return hidden, lenses > 127


def curves(glasses: Glasses) -> list[Array]:
    """All curves in the order that `draw_glasses` expects."""
    return [*glasses.rims, *glasses.wires]


def _pixel(point: Array) -> tuple[int, int]:
    return round(float(point[0])), round(float(point[1]))
