"""What lies behind and before the face: backgrounds, hands and other things that hide parts of it."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


def sample_palette(rng: np.random.Generator) -> Array:
    """[4, 3] linear colours of one room; mostly muted."""
    base = rng.uniform(0.02, 0.7, (4, 1)) * np.exp(rng.normal(0, 0.1, (1, 3)))
    spread = 0.6 if rng.random() < 0.25 else 0.12
    return np.clip(base * np.exp(rng.normal(0, spread, (4, 3))), 0.01, 0.95).astype(np.float32)


def draw_background(rng: np.random.Generator, palette: Array, size: int) -> Array:
    """[size, size, 3] linear: a gradient, cloudy noise, or a blurred room of boxes."""
    corners = palette[rng.integers(0, 4, 4)].reshape(2, 2, 3)
    image = cv2.resize(corners, (size, size), interpolation=cv2.INTER_LINEAR)
    if rng.random() < 0.75:
        image = image * (1 + rng.uniform(0.1, 0.7) * _clouds(rng, size))
    if rng.random() < 0.7:
        for _ in range(int(rng.integers(1, 9))):
            _draw_shape(rng, image, palette)
    sigma = float(rng.uniform(0.3, 4)) * size / 224
    return np.clip(cv2.GaussianBlur(image, (0, 0), sigma), 0.0, 1.5)


def _clouds(rng: np.random.Generator, size: int) -> Array:
    """[size, size, 1] noise of several octaves, about -1 to 1."""
    total = np.zeros((size, size), dtype=np.float32)
    for cells in (3, 6, 12, 30, 70):
        layer = rng.normal(size=(cells, cells)).astype(np.float32) * rng.uniform(0.1, 1) / cells**0.3
        total += cv2.resize(layer, (size, size), interpolation=cv2.INTER_CUBIC)
    return np.clip(total, -1, 1.5)[..., None]


def _draw_shape(rng: np.random.Generator, image: Array, palette: Array) -> None:
    size = len(image)
    colour = [float(c) for c in palette[rng.integers(0, 4)] * np.exp(rng.normal(0, 0.3))]
    if rng.random() < 0.6:
        centre, half = rng.uniform(0, size, 2), rng.uniform(0.03, 0.35, 2) * size
        turn = rng.normal(0, 0.08)
        across = np.array([np.cos(turn), np.sin(turn)])
        along = np.array([-across[1], across[0]])
        corners = [centre + sx * half[0] * across + sy * half[1] * along for sx, sy in _SQUARE]
        cv2.fillPoly(image, [np.round(corners).astype(np.int32)], colour)
    else:
        points = rng.integers(0, size, (int(rng.integers(3, 6)), 2)).astype(np.int32)
        cv2.fillPoly(image, [points], colour)


_SQUARE = ((-1, -1), (1, -1), (1, 1), (-1, 1))


def draw_occluder(rng: np.random.Generator, size: int) -> tuple[Array, Array]:
    """Something before the face: a hand, or a plain thing.

    Returns:
        Coverage [size, size] in 0..1, and linear colour [size, size, 3].
    """
    mask = np.zeros((size, size), dtype=np.uint8)
    angle = rng.uniform(0, 2 * np.pi)
    centre = size / 2 + size * rng.uniform(0.2, 0.42) * np.array([np.cos(angle), np.sin(angle)])
    if rng.random() < 0.6:
        _draw_hand(rng, mask, centre, -np.array([np.cos(angle), np.sin(angle)]))
        melanin = rng.random()
        colour = np.array([0.50, 0.30, 0.21]) * (1 - melanin) + np.array([0.12, 0.06, 0.04]) * melanin
    else:
        axes = (int(size * rng.uniform(0.06, 0.2)), int(size * rng.uniform(0.06, 0.3)))
        box = (tuple(map(float, centre)), tuple(2.0 * a for a in axes), float(rng.uniform(0, 180)))
        if rng.random() < 0.5:
            cv2.ellipse(mask, box, 255, -1)
        else:
            cv2.fillPoly(mask, [np.round(cv2.boxPoints(box)).astype(np.int32)], 255)
        colour = rng.uniform(0.02, 0.7) * np.exp(rng.normal(0, 0.4, 3))
    cover = cv2.GaussianBlur(mask.astype(np.float32) / 255, (0, 0), size / 200)
    relief = cv2.GaussianBlur(cover, (0, 0), size / 28)
    slope = np.gradient(relief)
    lit = 0.55 + 0.35 * relief + rng.normal(0, size / 14) * slope[0] + rng.normal(0, size / 14) * slope[1]
    lit = np.clip(lit * (1 + 0.05 * _clouds(rng, size)[..., 0]), 0.05, 1.5) * rng.uniform(0.5, 1.1)
    return cover, (lit[..., None] * colour).astype(np.float32)


def _draw_hand(rng: np.random.Generator, mask: Array, centre: Array, towards: Array) -> None:
    """A palm and three to five fingers, from outside the picture towards the face."""
    size = len(mask)
    palm = centre - towards * size * 0.1
    side = np.array([-towards[1], towards[0]])
    width = size * rng.uniform(0.04, 0.06)
    cv2.ellipse(mask, (tuple(map(float, palm)), (5.5 * width, 6 * width), 0.0), 255, -1)
    cv2.line(mask, _pixel(palm), _pixel(palm - towards * size), 255, int(4.4 * width))
    count = int(rng.integers(3, 6))
    for k in range(count):
        spread = (k - (count - 1) / 2) * rng.uniform(1.0, 1.25)
        root = palm + side * spread * width + towards * 1.5 * width
        length = size * rng.uniform(0.12, 0.22) * (1 - 0.08 * abs(spread))
        knuckle = root + (towards + 0.12 * spread * side) * length * 0.55
        tip = knuckle + (towards + rng.normal(0, 0.2) * side) * length * 0.45
        for start, end in ((root, knuckle), (knuckle, tip)):
            cv2.line(mask, _pixel(start), _pixel(end), 255, max(1, int(width)), cv2.LINE_AA)


def _pixel(point: Array) -> tuple[int, int]:
    return round(float(point[0])), round(float(point[1]))
