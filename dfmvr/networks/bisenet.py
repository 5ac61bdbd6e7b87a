"""BiSeNet (Yu et al., 2018): which region of the face every pixel of a picture shows.

A spatial path keeps fine places, a context path (laid out as ResNet-18) sees the whole face; attention weighs
the channels of what they hand on, and a fusion module joins them.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, cat, nn
from torch.nn import functional

from dfmvr.networks.residual import convolution, initialise
from dfmvr.types import REGION_NAMES

STRIDES = (2, 4, 8)
_BASE_CHANNELS = 64
_STAGES = 4
_BLOCKS = 2
"""ResNet-18 has two blocks in each of its four stages."""


@dataclass(frozen=True)
class ParserNetworkSettings:
    """What network parses faces, and at what size."""

    width: float = 0.25
    """Channels relative to the paper's."""
    stride: int = 2
    """Pixels a cell of the fused features. The paper's 8 suits pictures of 512 px and more."""
    image_size: int = 64
    """Pixels a side of the picture that the network looks at; other pictures are scaled to it."""

    def __post_init__(self) -> None:
        channels = self.width * _BASE_CHANNELS
        if channels < 1 or channels != int(channels):
            raise ValueError(f"parser.network.width: expected a multiple of 1/64 above 0, got {self.width}")
        if self.stride not in STRIDES:
            raise ValueError(f"parser.network.stride: expected one of {STRIDES}, got {self.stride}")
        if self.image_size < 1 or self.image_size % (4 * self.stride):
            raise ValueError(
                f"parser.network.image_size: expected a multiple of {4 * self.stride}, which the context "
                f"path divides by, got {self.image_size}"
            )


class BiSeNet(nn.Module):
    """Pictures [B, 3, H, W] in [0, 1] -> region scores [B, 10, H, W]; H and W are multiples of 4 x stride.

    Args:
        settings: width and stride.
    """

    def __init__(self, settings: ParserNetworkSettings) -> None:
        super().__init__()
        base = int(settings.width * _BASE_CHANNELS)
        self.spatial = _spatial_path(base, settings.stride)
        self.context = _ContextPath(base, settings.stride)
        self.fusion = _Fusion(4 * base)
        self.head = nn.Sequential(_layer(4 * base, base, 3), nn.Conv2d(base, len(REGION_NAMES), 1))
        initialise(self)

    def forward(self, images: Tensor) -> Tensor:
        """Return the scores, whose softmax over dimension 1 is each region's probability."""
        centred = 2 * images - 1
        fused = self.fusion(self.spatial(centred), self.context(centred))
        return _resize(self.head(fused), images)


class _ContextPath(nn.Module):
    """The two coarsest stages, their channels weighed, summed at the spatial path's scale.

    What the whole picture shows (the global mean) is added to the coarsest.
    """

    def __init__(self, base: int, stride: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            _layer(3, base, 7, stride=1 if stride == 2 else 2),
            nn.MaxPool2d(3, 2, padding=1) if stride == 8 else nn.Identity(),
        )
        widths = [base * 2**index for index in range(_STAGES)]
        self.stages = nn.ModuleList(
            nn.Sequential(
                *(
                    _Block(inner if block == 0 else outer, outer, 2 if index > 0 and block == 0 else 1)
                    for block in range(_BLOCKS)
                )
            )
            for index, (inner, outer) in enumerate(zip([base, *widths], widths, strict=False))
        )
        self.whole = _layer(widths[3], 2 * base, 1)
        self.refine_coarse = _Refinement(widths[3], 2 * base)
        self.refine_middle = _Refinement(widths[2], 2 * base)
        self.join_coarse = _layer(2 * base, 2 * base, 3)
        self.join_middle = _layer(2 * base, 2 * base, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Return [B, 2 base, H / stride, W / stride]."""
        x = self.stem(x)
        features = []
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        _, fine, middle, coarse = features
        whole = self.whole(coarse.mean((2, 3), keepdim=True))
        joined = self.join_coarse(_resize(self.refine_coarse(coarse) + whole, middle))
        return self.join_middle(_resize(self.refine_middle(middle) + joined, fine))


class _Block(nn.Module):
    """ResNet-18's block: two 3 x 3 convolutions and a shortcut around them."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            _layer(in_channels, out_channels, 3, stride), *convolution(out_channels, out_channels, 3)
        )
        same = stride == 1 and in_channels == out_channels
        self.shortcut = (
            nn.Identity() if same else nn.Sequential(*convolution(in_channels, out_channels, 1, stride))
        )

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.body(x) + self.shortcut(x), inplace=True)


class _Refinement(nn.Module):
    """Attention refinement: a 3 x 3 layer whose channels are weighed by the picture's mean."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.layer = _layer(in_channels, out_channels, 3)
        self.weigh = nn.Sequential(*convolution(out_channels, out_channels, 1), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer(x)
        weights: Tensor = self.weigh(x.mean((2, 3), keepdim=True))
        return x * weights


class _Fusion(nn.Module):
    """Feature fusion: both paths through a 1 x 1 layer, whose channels are weighed and added once more."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layer = _layer(channels, channels, 1)
        self.weigh = nn.Sequential(
            nn.Conv2d(channels, channels // 4, 1),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels // 4, channels, 1),
            nn.Sigmoid(),
        )

    def forward(self, spatial: Tensor, context: Tensor) -> Tensor:
        x = self.layer(cat([spatial, context], 1))
        weights: Tensor = self.weigh(x.mean((2, 3), keepdim=True))
        return x + x * weights


def _spatial_path(base: int, stride: int) -> nn.Sequential:
    """Return three layers that halve the picture until a cell is `stride` pixels wide."""
    halvings = STRIDES.index(stride) + 1
    first, second, third = (2 if layer < halvings else 1 for layer in range(3))
    return nn.Sequential(
        _layer(3, base, 7, first), _layer(base, base, 3, second), _layer(base, 2 * base, 3, third)
    )


def _layer(in_channels: int, out_channels: int, size: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(*convolution(in_channels, out_channels, size, stride), nn.ReLU(inplace=True))


def _resize(x: Tensor, like: Tensor) -> Tensor:
    return functional.interpolate(x, like.shape[-2:], mode="bilinear", align_corners=False)
