"""What a landmark detector and a face parser would have found in the drawn pictures, in torch.

The errors are those of `data.datasets.detector`. Axis letters: P picture, S side in pixels, K landmark.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from dfmvr.data.datasets.detector import JAW, OCCLUDED_JAW_WEIGHT, OCCLUDED_WEIGHT
from dfmvr.data.preprocess.weight_map import BACKGROUND, FACE, FEATURE
from dfmvr.types import N_LANDMARKS, REGION_NAMES

_OUTLIER_GAIN, _OCCLUDED_GAIN, _SHARED = 6.0, 1.8, 0.35
_VISIBLE_WITHIN = 8.0
"""mm that a landmark may lie behind the drawn surface and still count as visible."""
_SMALL_REGIONS = (2, 3, 4, 5, 7, 8, 9)
"""Labels that a parser may miss."""
_WAVES = (5, 17)
"""Cells a side of the noise that bends boundaries."""


def visible(depth: Tensor, hidden: Tensor, pixels: Tensor, distance: Tensor) -> Tensor:
    """Say which landmarks are on the nearest surface and not hidden.

    Args:
        depth: [P, S, S] mm, 0 where there is no surface.
        hidden: [P, S, S] bool: something lies before the head.
        pixels: [P, K, 2].
        distance: [P, K] mm of the landmarks along the optical axis.

    Returns:
        [P, K] bool.
    """
    size = depth.shape[-1]
    column, row = pixels.long().clamp(0, size - 1).unbind(-1)
    place = row * size + column
    far = depth.masked_fill(depth <= 0, math.inf)
    # On an outline the pixel may show what lies just beside the point: the farthest neighbour decides.
    front = functional.max_pool2d(far, 3, stride=1, padding=1).flatten(1).gather(1, place)
    inside = ((pixels >= 0) & (pixels < size)).all(-1)
    return inside & (distance < front + _VISIBLE_WITHIN) & ~hidden.flatten(1).gather(1, place)


def detect_landmarks(
    pixels: Tensor, seen: Tensor, noise: float, outliers: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Return landmarks [P, 68, 2] as a detector finds them, and its confidences [P, 68].

    Args:
        pixels: [P, 68, 2] true places.
        seen: [P, 68] bool: visible.
        noise: standard deviation in pixels.
        outliers: share of points that are far off.
        generator: on their device.
    """
    device, shape = pixels.device, pixels.shape
    spread = noise * (1 + (_OCCLUDED_GAIN - 1) * (~seen).float())
    far_off = torch.rand(shape[:-1], generator=generator, device=device) < outliers
    spread = spread * (1 + (_OUTLIER_GAIN - 1) * far_off.float())
    shift = noise * _SHARED * torch.randn(shape[0], 1, 2, generator=generator, device=device)
    found = pixels + shift + spread.unsqueeze(-1) * torch.randn(shape, generator=generator, device=device)
    jaw = torch.arange(N_LANDMARKS, device=device) < len(JAW)
    doubt = OCCLUDED_WEIGHT + (OCCLUDED_JAW_WEIGHT - OCCLUDED_WEIGHT) * jaw.float()
    return found, seen.float() + (~seen).float() * doubt


def parse_regions(labels: Tensor, noise: float, blunders: float, generator: torch.Generator) -> Tensor:
    """Return labels [P, S, S] int64 as a parser draws them: wavy boundaries, now and then a missed region.

    Args:
        labels: [P, S, S] int64, the true ones.
        noise: standard deviation in pixels of the boundaries.
        blunders: share of the small regions that are missed.
        generator: on their device.
    """
    count, size, device = len(labels), labels.shape[-1], labels.device
    waves = torch.zeros(count, 2, size, size, device=device)
    for cells in _WAVES:
        layer = 0.7 * noise * torch.randn(count, 2, cells, cells, generator=generator, device=device)
        waves += functional.interpolate(layer, (size, size), mode="bicubic", align_corners=False)
    grid = torch.arange(size, device=device)
    column = (grid + waves[:, 0].round().long()).clamp(0, size - 1)
    row = (grid.unsqueeze(-1) + waves[:, 1].round().long()).clamp(0, size - 1)
    bent = labels.flatten(1).gather(1, (row * size + column).flatten(1))
    missed = torch.rand(count, len(REGION_NAMES), generator=generator, device=device) < blunders
    small = sum(torch.arange(len(REGION_NAMES), device=device) == region for region in _SMALL_REGIONS)
    names = torch.arange(len(REGION_NAMES), device=device).expand_as(missed)
    names = names.masked_fill(missed & (small > 0), 1)
    return names.gather(1, bent).view_as(labels)


def weight_maps(labels: Tensor, dilation: float) -> Tensor:
    """Return the photo loss's weights [P, S, S] (data.preprocess.weight_map, on the labels' device).

    Args:
        labels: [P, S, S] int64.
        dilation: pixels at 224 by which face and features grow.
    """
    levels = torch.full_like(labels, BACKGROUND, dtype=torch.float32)
    levels = levels.masked_fill(labels == 1, FACE).masked_fill(labels > 1, FEATURE)
    radius = dilation * labels.shape[-1] / 224
    grown = torch.zeros_like(levels)
    for above in range(int(radius) + 1):
        half = int(math.sqrt(radius**2 - above**2))
        rows = functional.max_pool2d(levels, (1, 2 * half + 1), stride=1, padding=(0, half))
        keep = labels.shape[-1] - above
        for target, source in ((slice(above, None), slice(keep)), (slice(keep), slice(above, None))):
            grown[:, target] = torch.maximum(grown[:, target], rows[:, source])
    return grown / 255
