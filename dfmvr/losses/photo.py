"""Photo loss: how far the drawn face's colours lie from the picture's (paper 4.1)."""

from __future__ import annotations

from jaxtyping import Bool, Float
from torch import Tensor

_SMOOTHING = 1e-3
"""Colour difference below which the norm is rounded off, a quarter of an 8-bit level: at zero difference the
norm's own gradient does not exist."""


def photo_loss(
    drawn: Float[Tensor, "*L H W 3"],
    image: Float[Tensor, "*L H W 3"],
    weight_map: Float[Tensor, "*L H W"],
    shared: Bool[Tensor, "*L H W"],
) -> Float[Tensor, "*L"]:
    """Return the weighted mean norm of the colour differences, for each picture.

    The mean runs over the pixels that the drawing and the picture's face share, so that a face neither gains
    by shrinking nor is asked to look like hair or a hand.

    Args:
        drawn: [*L, H, W, 3] sRGB in [0, 1].
        image: [*L, H, W, 3] sRGB in [0, 1].
        weight_map: [*L, H, W] non-negative weights.
        shared: [*L, H, W] where the face is drawn and the picture shows a face.

    Returns:
        [*L], in colour units; 0 where nothing is shared.
    """
    squared = (drawn - image).square().sum(-1)
    norm = (squared + _SMOOTHING**2).sqrt() - _SMOOTHING
    weights = weight_map * shared
    total = weights.sum((-2, -1))
    return (weights * norm).sum((-2, -1)) / total.where(total > 0, total.new_ones(()))
