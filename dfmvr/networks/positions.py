"""Where features are: spatial softmax (Levine et al. 2016, End-to-end training of deep visuomotor policies).

Axis letters: B batch, C channel, H W image.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class ExpectedPositions(nn.Module):
    """Reads heat maps off a feature map and returns what their centres of mass say.

    Average pooling tells a regressor that a feature is there, hardly where; a face's shape is in the where,
    to a fraction of a pixel. Each heat map is one linear reading of the features, so that a channel which
    marks a point of the face gives its place at once.

    Args:
        in_channels: channels C of the feature map.
        n_maps: number of heat maps.
        out_features: length of the vector that is returned.
    """

    def __init__(self, in_channels: int, n_maps: int, out_features: int) -> None:
        super().__init__()
        self.maps = nn.Conv2d(in_channels, n_maps, 1)
        # places vary by a few hundredths of the picture: batch norm brings them to unit size
        self.read = nn.Sequential(
            nn.BatchNorm1d(2 * n_maps),
            nn.Linear(2 * n_maps, out_features),
            nn.BatchNorm1d(out_features),
            nn.ReLU(),
        )

    def forward(self, features: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, out_features]."""
        height, width = features.shape[-2:]
        heat = self.maps(features).flatten(2).softmax(-1).unflatten(-1, (height, width))
        x = torch.linspace(-1, 1, width, device=features.device, dtype=features.dtype)
        y = torch.linspace(-1, 1, height, device=features.device, dtype=features.dtype)
        places = torch.cat([heat.sum(-2) @ x, heat.sum(-1) @ y], -1)
        return self.read(places)
