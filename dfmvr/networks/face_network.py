"""Pictures and masks of V views -> the parameters of one face.

Axis letters: B batch, V view, C channel, H W image.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from dfmvr.networks.heads import FaceHeads
from dfmvr.networks.mulen_unet import MulEnUnet
from dfmvr.networks.positions import ExpectedPositions
from dfmvr.networks.rednet import RedNet
from dfmvr.networks.settings import NetworkSettings
from dfmvr.types import REGION_NAMES, FaceParams

POSITION_FEATURES = 256
"""Features that the heat maps' positions are read into."""

_MASK_CHANNELS = {"one_hot": len(REGION_NAMES), "scalar": 1, "none": 0}


def build_network(settings: NetworkSettings) -> FaceNetwork:
    """Build the network that the settings name; its weights come from torch's global random state."""
    in_channels = 3 + _MASK_CHANNELS[settings.mask_input]
    match settings.name:
        case "mulen_unet_rednet":
            fusion = MulEnUnet(settings.n_views, in_channels, settings.fusion_channels)
            regressor = RedNet(fusion.out_channels, settings.regressor_channels)
        case _:
            raise ValueError(f"network.name: cannot build {settings.name!r}")
    readers: list[nn.Module] = [regressor]
    features = regressor.out_features
    if settings.heat_maps:
        readers.append(ExpectedPositions(fusion.out_channels, settings.heat_maps, POSITION_FEATURES))
        features += POSITION_FEATURES
    heads = FaceHeads(features, settings.n_views)
    return FaceNetwork(fusion, nn.ModuleList(readers), heads, settings.mask_input)


class FaceNetwork(nn.Module):
    """Fusion of the views, regression, heads.

    Args:
        fusion: [B, V, C, H, W] -> [B, F, H, W].
        readers: each [B, F, H, W] -> [B, features]; the heads see all of their features.
        heads: [B, features] -> FaceParams.
        mask_input: see NetworkSettings.
    """

    def __init__(self, fusion: nn.Module, readers: nn.ModuleList, heads: FaceHeads, mask_input: str) -> None:
        super().__init__()
        self.fusion = fusion
        self.readers = readers
        self.heads = heads
        self.mask_input = mask_input

    def forward(self, images: Tensor, masks: Tensor) -> FaceParams:
        """Predict the faces.

        Args:
            images: [B, V, 3, H, W] RGB in [0, 1].
            masks: [B, V, H, W] int64 region labels 0-9.

        Raises:
            ValueError: when images and masks do not fit each other or the network.
        """
        if images.ndim != 5 or masks.shape != (*images.shape[:2], *images.shape[3:]):
            raise ValueError(
                "images and masks: expected [B, V, 3, H, W] and [B, V, H, W], "
                f"got {tuple(images.shape)} and {tuple(masks.shape)}"
            )
        fused = self.fusion(self._inputs(images, masks))
        return self.heads(torch.cat([reader(fused) for reader in self.readers], 1))

    def _inputs(self, images: Tensor, masks: Tensor) -> Tensor:
        """Map the pictures to [-1, 1] and append the mask's channels; the result is stored channels last."""
        parts = [(2 * images - 1).movedim(2, -1)]
        match self.mask_input:
            case "one_hot":
                parts.append(functional.one_hot(masks, len(REGION_NAMES)).to(images.dtype))
            case "scalar":
                parts.append(masks.unsqueeze(-1).to(images.dtype))
        return torch.cat(parts, -1).movedim(-1, 2)
