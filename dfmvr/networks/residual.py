"""The layout that ResNet-50 and RedNet-50 share: bottlenecks in four stages, then the picture's mean."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn
from torch.nn import functional

_STAGES = (3, 4, 6, 3)
"""Bottlenecks in each stage; every stage but the first halves the picture."""

_EXPANSION = 4

Spatial = Callable[[int, int], nn.Module]
"""(channels, stride) -> the layer of a bottleneck that looks at more than one pixel."""


class ResidualNet(nn.Module):
    """Feature map [B, C, H, W] of any size -> feature vector [B, out_features].

    Args:
        stem: first layers, [B, C, H, W] -> [B, base_channels, H / 4, W / 4].
        base_channels: 64 at full width; every layer scales with it.
        spatial: makes the layer that tells the networks apart.
    """

    def __init__(self, stem: nn.Module, base_channels: int, spatial: Spatial) -> None:
        super().__init__()
        self.stem = stem
        blocks: list[Bottleneck] = []
        channels, out_channels = base_channels, _EXPANSION * base_channels
        for stage, count in enumerate(_STAGES):
            for index in range(count):
                stride = 2 if stage > 0 and index == 0 else 1
                blocks.append(Bottleneck(channels, out_channels, stride, spatial))
                channels = out_channels
            out_channels *= 2
        self.blocks = nn.Sequential(*blocks)
        self.out_features = channels
        initialise(self)
        for block in blocks:
            nn.init.zeros_(block.norm.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Return the globally averaged features."""
        return self.blocks(self.stem(x)).mean((2, 3))


class Bottleneck(nn.Module):
    """1 x 1 convolution, spatial layer, 1 x 1 convolution, and a shortcut around them.

    The last batch-norm starts at zero, so that a block starts as its shortcut. An involution is quadratic in
    its input as long as batch-norm has no statistics yet: without this a new RedNet in eval mode overflows.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, spatial: Spatial) -> None:
        super().__init__()
        inner = out_channels // _EXPANSION
        self.body = nn.Sequential(
            *convolution(in_channels, inner, 1),
            nn.ReLU(inplace=True),
            spatial(inner, stride),
            nn.BatchNorm2d(inner),
            nn.ReLU(inplace=True),
            nn.Conv2d(inner, out_channels, 1, bias=False),
        )
        self.norm = nn.BatchNorm2d(out_channels)
        same = stride == 1 and in_channels == out_channels
        self.shortcut = (
            nn.Identity() if same else nn.Sequential(*convolution(in_channels, out_channels, 1, stride))
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return [B, out_channels, ceil(H / stride), ceil(W / stride)] for x [B, in_channels, H, W]."""
        return functional.relu(self.norm(self.body(x)) + self.shortcut(x), inplace=True)


def initialise(module: nn.Module) -> None:
    """Draw every convolution's weights after He et al. (2015), and set its biases to zero."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def convolution(
    in_channels: int, out_channels: int, size: int, stride: int = 1
) -> tuple[nn.Conv2d, nn.BatchNorm2d]:
    """Return a convolution that keeps the picture's size up to its stride, and its batch-norm."""
    convolution = nn.Conv2d(in_channels, out_channels, size, stride, padding=size // 2, bias=False)
    return convolution, nn.BatchNorm2d(out_channels)
