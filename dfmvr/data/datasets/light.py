"""Light of the synthetic pictures: an uneven sky and one or two lamps, with soft skin and highlights.

It is deliberately richer than the spherical harmonics that the face model is fitted with.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

SKIN_WRAP = np.array([0.22, 0.10, 0.06], dtype=np.float32)
"""How far light of each colour creeps around the terminator of skin."""


@dataclass(frozen=True, eq=False)
class Light:
    """Light in model axes; the same for all the views of a sample, up to each view's own changes."""

    sky: Array
    """[3] average ambient radiance."""
    slope: Array
    """[3, 3]: ambient radiance changes by normal @ slope."""
    directions: Array
    """[L, 3] unit vectors towards the lamps."""
    lamps: Array
    """[L, 3] lamp radiances."""

    def changed(self, rng: np.random.Generator) -> Light:
        """The same light as another camera meets it: gains and directions drift a little."""
        directions = self.directions + rng.normal(0, 0.12, self.directions.shape)
        directions /= np.linalg.norm(directions, axis=1, keepdims=True)
        lamps = self.lamps * np.exp(rng.normal(0, 0.15, (len(self.lamps), 1)))
        return Light(self.sky * np.exp(rng.normal(0, 0.1)), self.slope, directions, lamps)


def sample_light(rng: np.random.Generator) -> Light:
    """Draw a light: from overcast to one strong lamp at the side."""
    tint = np.exp(rng.normal(0, 0.07, 3))
    sky = rng.uniform(0.35, 0.95) * tint
    slope = rng.normal(0, 0.12, (3, 1)) * tint
    slope[1] += rng.uniform(0, 0.25)
    count = 1 + int(rng.random() < 0.4)
    directions = rng.normal(size=(count, 3)) * (1.0, 0.6, 0.8) + (0, 0.45, 0.7)
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    strength = rng.uniform(0.15, 1.1, count) * (1.0, 0.5)[:count]
    lamps = strength[:, None] * np.exp(rng.normal(0, 0.09, (count, 3)))
    return Light(
        *(np.asarray(x, dtype=np.float32) for x in (sky, slope * (1, 1, 1) * sky, directions, lamps))
    )


def shade_points(
    light: Light, albedo: Array, normals: Array, view: Array, openness: Array, gloss: Array, sharpness: Array
) -> Array:
    """Radiance of points of the surface.

    Args:
        light: in model axes.
        albedo: [P, 3] linear.
        normals: [P, 3] unit vectors, model axes.
        view: [3] unit vector towards the camera, model axes.
        openness: [P] share of the sky seen.
        gloss: [P] strength of the highlight.
        sharpness: [P] logarithm of its exponent.

    Returns:
        [P, 3] linear radiance.
    """
    ambient = light.sky + normals @ light.slope
    diffuse = np.maximum(ambient, 0.05 * light.sky) * openness[:, None]
    highlight = np.zeros_like(albedo)
    shadow = 0.35 + 0.65 * openness
    power = np.exp(sharpness)
    for direction, lamp in zip(light.directions, light.lamps, strict=True):
        cosine = (normals @ direction)[:, None]
        lit = np.maximum((cosine + SKIN_WRAP) / (1 + SKIN_WRAP), 0) * shadow[:, None]
        diffuse = diffuse + lit * lamp
        half = direction + view
        half = half / np.linalg.norm(half)
        glint = gloss * np.maximum(normals @ half, 0) ** power * (cosine[:, 0] > 0) * shadow
        highlight += glint[:, None] * lamp
    radiance: Array = albedo * diffuse + highlight
    return radiance
