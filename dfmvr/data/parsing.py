"""Variation of pictures and their region labels: size, turn, place, and left for right."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from dfmvr.types import REGION_NAMES

_ZOOM = 1.4
"""Faces appear up to this much larger or smaller."""
_TURN = math.radians(15)
_SHIFT = 0.15
"""Of the picture's side."""


def vary_geometry(
    images: Float[Tensor, "B 3 H W"], labels: Int[Tensor, "B H W"], size: int, generator: torch.Generator
) -> tuple[Float[Tensor, "B 3 S S"], Int[Tensor, "B S S"]]:
    """Draw a similarity, and whether to mirror, for each picture.

    What lies outside a picture repeats its border, and is background.

    Args:
        images: on any device.
        labels: their regions 0-9; mirrored, left and right change names.
        size: pixels a side to return.
        generator: on the CPU; the same state gives the same pictures.
    """
    n_samples = len(images)

    def uniform(reach: float, *shape: int) -> Tensor:
        return reach * (2 * torch.rand(n_samples, *shape, generator=generator) - 1)

    zoom, turn, shift = torch.exp(uniform(math.log(_ZOOM))), uniform(_TURN), uniform(2 * _SHIFT, 2)
    mirror = torch.rand(n_samples, generator=generator) < 0.5
    side = 1 - 2 * mirror.float()
    rows = [side * turn.cos() / zoom, -turn.sin() / zoom, side * turn.sin() / zoom, turn.cos() / zoom]
    matrix = torch.cat([torch.stack(rows, -1).reshape(-1, 2, 2), shift.unsqueeze(-1)], -1).to(images.device)
    grid = functional.affine_grid(matrix, [n_samples, 3, size, size], align_corners=False)
    varied = functional.grid_sample(images, grid, padding_mode="border", align_corners=False)
    named = torch.where(mirror.to(labels.device).view(-1, 1, 1), mirrored_names(labels), labels)
    moved = functional.grid_sample(named.unsqueeze(1).to(images.dtype), grid, "nearest", align_corners=False)
    return varied, moved.squeeze(1).round().long()


def mirrored_names(labels: Tensor) -> Tensor:
    """Give regions of the right side the left side's labels, and the other way round."""
    others = [_other_side(name) for name in REGION_NAMES]
    table = torch.tensor([REGION_NAMES.index(name) for name in others], device=labels.device)
    return table[labels]


def _other_side(name: str) -> str:
    side, _, part = name.partition("_")
    return {"right": f"left_{part}", "left": f"right_{part}"}.get(side, name)
