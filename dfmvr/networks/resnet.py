"""ResNet-50 (He et al., 2016) as a regressor: RedNet's peer with plain convolutions (the paper's v3)."""

from __future__ import annotations

from torch import nn

from dfmvr.networks.residual import ResidualNet, convolution


class ResNet(ResidualNet):
    """Feature map [B, in_channels, H, W] of any size -> feature vector [B, out_features].

    The stride lies on the 3 x 3 convolution, as in most of today's implementations.

    Args:
        in_channels: channels of the input.
        base_channels: 64 in ResNet-50; every layer scales with it.
    """

    def __init__(self, in_channels: int, base_channels: int) -> None:
        stem = nn.Sequential(
            *convolution(in_channels, base_channels, 7, stride=2),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, 2, padding=1),
        )
        super().__init__(stem, base_channels, _convolution)


def _convolution(channels: int, stride: int) -> nn.Module:
    return nn.Conv2d(channels, channels, 3, stride, padding=1, bias=False)
