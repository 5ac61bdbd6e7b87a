"""What is behind and before the drawn heads, and what a camera makes of both, in torch.

Axis letters: P picture (sample and view), S side in pixels. Lengths in pixels are meant at a size of 224.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from dfmvr.lighting import linear_to_srgb

_CLOUDS = (3, 6, 12, 30)
"""Cells a side of the noise's octaves."""
_BOXES = 4
"""Boxes in a background, at most."""


def backgrounds(samples: int, views: int, size: int, generator: torch.Generator) -> Tensor:
    """Return [samples x views, 3, S, S] linear: a gradient with clouds and boxes in one room's colours."""
    count, device = samples * views, generator.device

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, device=device)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, device=device)

    spread = 0.12 + 0.48 * (uniform(samples, 1, 1) < 0.25)
    palette = (0.02 + 0.68 * uniform(samples, 4, 1)) * (spread * normal(samples, 4, 3)).exp()
    palette = palette.clamp(0.01, 0.95).repeat_interleave(views, 0)

    def colours(number: int) -> Tensor:
        which = torch.randint(4, (count, number, 1), generator=generator, device=device)
        return palette.gather(1, which.expand(-1, -1, 3))

    image = _enlarge(colours(4).mT.reshape(count, 3, 2, 2), size, "bilinear")
    octaves = [
        _enlarge(normal(count, 1, cells, cells) * (0.1 + 0.9 * uniform(count, 1, 1, 1)) / cells**0.3, size)
        for cells in _CLOUDS
    ]
    strength = (0.1 + 0.6 * uniform(count, 1, 1, 1)) * (uniform(count, 1, 1, 1) < 0.75)
    image = image * (1 + strength * torch.stack(octaves).sum(0).clamp(-1, 1.5))
    for colour in (colours(_BOXES) * (0.3 * normal(count, _BOXES, 1)).exp()).unbind(1):
        half = 0.03 + 0.32 * uniform(count, 2)
        inside = _ellipses(uniform(count, 2), half, 0.08 * normal(count), size, power=16)
        present = (uniform(count) < 0.4)[:, None, None]
        image = torch.where((inside & present).unsqueeze(1), colour[:, :, None, None], image)
    sigma = (0.3 + 3.7 * uniform(count)) * size / 224
    return blur(image, sigma, 4.0 * size / 224).clamp(0, 1.5)


def hide(images: Tensor, share: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Put a plain thing before a share of the pictures, at the side of the face.

    Args:
        images: [P, 3, S, S] linear.
        share: of the pictures.
        generator: on their device.

    Returns:
        The pictures, and [P, S, S] bool: what the thing covers.
    """
    count, size, device = len(images), images.shape[-1], images.device

    def uniform(*shape: int) -> Tensor:
        return torch.rand(count, *shape, generator=generator, device=device)

    angle = 2 * math.pi * uniform()
    centre = 0.5 + (0.2 + 0.22 * uniform(1)) * torch.stack([angle.cos(), angle.sin()], -1)
    covered = _ellipses(centre, 0.06 + 0.2 * uniform(2), math.pi * uniform(), size)
    covered = covered & (uniform() < share)[:, None, None]
    colour = (0.02 + 0.6 * uniform(3))[:, :, None, None]
    return torch.where(covered.unsqueeze(1), colour, images), covered


def expose(images: Tensor, metered: Tensor, generator: torch.Generator) -> Tensor:
    """Scale linear light so that the face is about rightly lit (data.datasets.degrade.expose).

    Args:
        images: [P, 3, S, S] linear.
        metered: [P, S, S] weights of the pixels that count.
        generator: on their device.
    """
    count, device = len(images), images.device

    def normal(*shape: int) -> Tensor:
        return torch.randn(count, *shape, generator=generator, device=device)

    total = metered.sum((-2, -1))
    brightness = (images.mean(1) * metered).sum((-2, -1)) / total.clamp_min(1)
    brightness = brightness.where(total > 0, brightness.new_full((), 0.2))
    share = 0.45 + 0.5 * torch.rand(count, generator=generator, device=device)
    gain = (0.24 / brightness.clamp_min(1e-3)) ** share * (0.18 * normal()).exp()
    return images * (gain.unsqueeze(-1) * (0.07 * normal(3)).exp())[:, :, None, None]


def take(images: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """Turn linear light into pictures: lens blur, sensor noise, tone curve, 8 bits; no compression.

    Args:
        images: [P, 3, S, S] linear, exposed.
        strength: 0 switches blur, noise and tone off; 1 is the usual amount.
        generator: on their device.

    Returns:
        [P, 3, S, S] sRGB in [0, 1].
    """
    count, device, scale = len(images), images.device, images.shape[-1] / 224

    def uniform() -> Tensor:
        return torch.rand(count, 1, 1, 1, generator=generator, device=device)

    def normal() -> Tensor:
        return torch.randn(count, 1, 1, 1, generator=generator, device=device)

    if strength > 0:
        usual, bad = 0.2 + 1.4 * uniform(), 1.6 + 1.9 * uniform()
        sigma = torch.where(uniform() < 0.85, usual, bad) * strength * scale
        images = blur(images, sigma.flatten(), 3.5 * strength * scale)
        level = strength * (0.002 + 0.018 * uniform()) * (1 + (uniform() < 0.15).float())
        grain = torch.randn(images.shape, generator=generator, device=device)
        images = images + level * (images.clamp(0, 1.2) + 0.02).sqrt() * grain
    encoded = linear_to_srgb(images.clamp(0, 1)).clamp(0, 1) ** (0.1 * strength * normal()).exp()
    contrast = 1 + 0.1 * strength * normal()
    encoded = (0.45 + contrast * (encoded - 0.45) + 0.02 * strength * normal()).clamp(0, 1)
    grey = uniform() < 0.06 * strength
    encoded = torch.where(grey, encoded.mean(1, keepdim=True), encoded)
    return (255 * encoded).round() / 255


def blur(images: Tensor, sigma: Tensor, largest: float) -> Tensor:
    """Blur each picture by its own Gaussian.

    Args:
        images: [P, C, S, S].
        sigma: [P] standard deviations in pixels.
        largest: bound of them, known on the host.
    """
    from kornia import filters  # seconds to import, and only training needs it

    side = 2 * math.ceil(2 * largest) + 1
    blurred: Tensor = filters.gaussian_blur2d(
        images, (side, side), sigma.clamp_min(0.05).unsqueeze(-1).expand(-1, 2), "replicate"
    )
    return blurred


def _ellipses(centre: Tensor, half: Tensor, turn: Tensor, size: int, power: int = 2) -> Tensor:
    """Return the pixels [P, S, S] inside turned superellipses (a large power makes boxes).

    Args:
        centre: [P, 2] x, y as shares of the side.
        half: [P, 2] half axes, likewise.
        turn: [P] radians.
        size: S.
        power: of the superellipse, even.
    """
    grid = (torch.arange(size, device=centre.device) + 0.5) / size
    x = grid - centre[:, 0, None, None]
    y = grid.unsqueeze(-1) - centre[:, 1, None, None]
    cosine, sine = turn.cos()[:, None, None], turn.sin()[:, None, None]
    across = (cosine * x + sine * y) / half[:, 0, None, None]
    along = (cosine * y - sine * x) / half[:, 1, None, None]
    return across**power + along**power < 1


def _enlarge(images: Tensor, size: int, mode: str = "bicubic") -> Tensor:
    return functional.interpolate(images, (size, size), mode=mode, align_corners=False)
