"""Late fusion: each view goes through a network of its own, and the results are concatenated (v1, v2).

Axis letters: B batch, V view, C channel, H W image.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn

from dfmvr.networks.mulen_unet import LEVELS, DecoderStage, DoubleConv, Encoder, check_views
from dfmvr.networks.residual import initialise

_CNN_DEPTH = 3
"""Double convolutions of the plain network."""


class LateFusion(nn.Module):
    """V views [B, V, in_channels, H, W] -> their own features side by side [B, out_channels, H, W].

    Args:
        n_views: number of views V.
        in_channels: channels of a view.
        base_channels: channels of each view's features (and of a U-Net's finest level).
        tower: the network of a view.
    """

    def __init__(
        self, n_views: int, in_channels: int, base_channels: int, tower: type[UNet] | type[PlainCnn]
    ) -> None:
        super().__init__()
        self.n_views = n_views
        self.in_channels = in_channels
        self.out_channels = n_views * base_channels
        towers = [tower(in_channels, base_channels) for _ in range(n_views)]
        self.pyramid_channels = towers[0].pyramid_channels
        self.towers = nn.ModuleList(towers)
        initialise(self)

    def forward(self, views: Tensor) -> tuple[Tensor, list[list[Tensor]]]:
        """Return the features, and the encoders' features of every view and level (none of a plain network).

        Raises:
            ValueError: as `check_views`.
        """
        check_views(views, self.n_views, self.in_channels)
        results = [tower(view) for tower, view in zip(self.towers, views.unbind(1), strict=True)]
        return torch.cat([features for features, _ in results], 1), [pyramid for _, pyramid in results]


class UNet(nn.Module):
    """A U-Net (Ronneberger et al., 2015) of one view: features [B, base_channels, H, W], and its pyramid."""

    def __init__(self, in_channels: int, base_channels: int) -> None:
        super().__init__()
        channels = [base_channels * 2**level for level in range(LEVELS)]
        self.pyramid_channels = channels
        self.encoder = Encoder([in_channels, *channels])
        self.stages = nn.ModuleList(
            DecoderStage(channels[level + 1], channels[level], n_views=1, fuse=True, gated=False)
            for level in reversed(range(LEVELS - 1))
        )

    def forward(self, view: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return the finest features and the encoder's, finest first, for a view [B, C, H, W]."""
        pyramid: list[Tensor] = self.encoder(view)
        x = pyramid[-1]
        for stage, skip in zip(self.stages, pyramid[-2::-1], strict=True):
            x = stage(x, (skip,))
        return x, pyramid


class PlainCnn(nn.Sequential):
    """Convolutions at the picture's size, with nothing that looks further: [B, base_channels, H, W]."""

    def __init__(self, in_channels: int, base_channels: int) -> None:
        sizes = [in_channels] + [base_channels] * _CNN_DEPTH
        super().__init__(*(DoubleConv(inner, outer) for inner, outer in itertools.pairwise(sizes)))
        self.pyramid_channels: list[int] = []

    def forward(self, view: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return the features of a view [B, C, H, W], and no pyramid."""
        return super().forward(view), []
