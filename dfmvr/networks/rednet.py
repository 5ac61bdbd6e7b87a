"""RedNet-50: ResNet-50's layout with a 7 x 7 involution in place of each 3 x 3 convolution."""

from __future__ import annotations

from torch import nn

from dfmvr.networks.involution import Involution
from dfmvr.networks.residual import ResidualNet, convolution


class RedNet(ResidualNet):
    """Feature map [B, in_channels, H, W] of any size -> feature vector [B, out_features].

    Args:
        in_channels: channels of the input.
        base_channels: 64 in RedNet-50; every layer scales with it.
        bounded_kernels: see Involution; False as in the paper.
    """

    def __init__(self, in_channels: int, base_channels: int, *, bounded_kernels: bool = True) -> None:
        half = base_channels // 2
        stem = nn.Sequential(
            *convolution(in_channels, half, 3, stride=2),
            nn.ReLU(inplace=True),
            Involution(half, 3, bounded=bounded_kernels),
            nn.BatchNorm2d(half),
            nn.ReLU(inplace=True),
            *convolution(half, base_channels, 3),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, 2, padding=1),
        )
        super().__init__(
            stem,
            base_channels,
            lambda channels, stride: Involution(channels, 7, stride, bounded=bounded_kernels),
        )
