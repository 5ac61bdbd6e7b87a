"""Pictures and masks as a network's input channels.

Axis letters: B batch, V view, C channel, H W image.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from dfmvr.types import REGION_NAMES

MASK_CHANNELS = {"one_hot": len(REGION_NAMES), "scalar": 1, "none": 0}
"""Channels of a mask, by NetworkSettings.mask_input."""


def network_inputs(images: Tensor, masks: Tensor, mask_input: str, present: Tensor | None = None) -> Tensor:
    """Map the pictures to [-1, 1] and append the masks' channels.

    Args:
        images: [B, V, 3, H, W] RGB in [0, 1].
        masks: [B, V, H, W] int64 region labels 0-9.
        mask_input: see NetworkSettings.
        present: [B, V] bool; if given, other views are zero everywhere, and a last channel says which are.

    Returns:
        [B, V, C, H, W], stored channels last.

    Raises:
        ValueError: when images and masks do not fit each other.
    """
    if images.ndim != 5 or masks.shape != (*images.shape[:2], *images.shape[3:]):
        raise ValueError(
            "images and masks: expected [B, V, 3, H, W] and [B, V, H, W], "
            f"got {tuple(images.shape)} and {tuple(masks.shape)}"
        )
    parts = [(2 * images - 1).movedim(2, -1)]
    match mask_input:
        case "one_hot":
            parts.append(functional.one_hot(masks, len(REGION_NAMES)).to(images.dtype))
        case "scalar":
            parts.append(masks.unsqueeze(-1).to(images.dtype))
    if present is None:
        return torch.cat(parts, -1).movedim(-1, 2)
    flags = present[:, :, None, None, None].to(images.dtype).expand(*masks.shape, 1)
    return (torch.cat([*parts, torch.ones_like(flags)], -1) * flags).movedim(-1, 2)
