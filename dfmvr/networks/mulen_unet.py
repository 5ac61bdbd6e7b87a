"""MulEn-Unet: an encoder for each view, one decoder that fuses them through gated skips (paper 3.3).

Axis letters: B batch, V view, C channel, H W image.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn
from torch.nn import functional

from dfmvr.networks.residual import initialise

LEVELS = 5
"""Levels of a U-Net, the finest at the picture's size."""
SIZE_MULTIPLE = 2 ** (LEVELS - 1)
"""Image height and width must be multiples of this: the encoders halve them four times."""


class MulEnUnet(nn.Module):
    """V views [B, V, in_channels, H, W] -> one fusion feature [B, out_channels, H, W].

    The encoders do not share weights, because each view shows other things. On its finest level the decoder
    stops at the concatenation of its own features with the gated skips: with 64 base channels and three views
    these are the paper's 256 channels.

    Args:
        n_views: number of views V, each with its own encoder.
        in_channels: channels of a view.
        base_channels: channels of the finest level (paper: 64), doubled on each of the four levels below.
        shared_encoders: one encoder for all views (not the paper's).
        attention_gates: False hands the skips on as they are (not the paper's).
    """

    def __init__(
        self,
        n_views: int,
        in_channels: int,
        base_channels: int,
        *,
        shared_encoders: bool = False,
        attention_gates: bool = True,
    ) -> None:
        super().__init__()
        channels = [base_channels * 2**level for level in range(LEVELS)]
        self.n_views = n_views
        self.in_channels = in_channels
        self.out_channels = (1 + n_views) * base_channels
        self.pyramid_channels: list[int] = channels
        n_encoders = 1 if shared_encoders else n_views
        self.encoders = nn.ModuleList(Encoder([in_channels, *channels]) for _ in range(n_encoders))
        self.stages = nn.ModuleList(
            DecoderStage(
                in_channels=n_views * channels[-1] if level == LEVELS - 2 else channels[level + 1],
                channels=channels[level],
                n_views=n_views,
                fuse=level > 0,
                gated=attention_gates,
            )
            for level in reversed(range(LEVELS - 1))
        )
        initialise(self)

    def forward(self, views: Tensor) -> tuple[Tensor, list[list[Tensor]]]:
        """Fuse the views.

        Returns:
            The fusion feature, and the encoders' features [B, C, H / 2^l, W / 2^l] of every view and level l,
            finest first; their channels are `pyramid_channels`.

        Raises:
            ValueError: when the number of views or channels is another than this network was built for, or
                the height or width is not a multiple of SIZE_MULTIPLE.
        """
        check_views(views, self.n_views, self.in_channels)
        encoders = [self.encoders[view % len(self.encoders)] for view in range(self.n_views)]
        pyramids = [encoder(view) for encoder, view in zip(encoders, views.unbind(1), strict=True)]
        x = torch.cat([pyramid[-1] for pyramid in pyramids], 1)
        for stage, skips in zip(self.stages, list(zip(*pyramids, strict=True))[-2::-1], strict=True):
            x = stage(x, skips)
        return x, pyramids


def check_views(views: Tensor, n_views: int, in_channels: int) -> None:
    """Check the input of a fusion network.

    Raises:
        ValueError: it is not [B, n_views, in_channels, H, W] with sides that are multiples of SIZE_MULTIPLE.
    """
    if views.ndim != 5 or views.shape[1:3] != (n_views, in_channels):
        raise ValueError(f"views: expected [B, {n_views}, {in_channels}, H, W], got {tuple(views.shape)}")
    height, width = views.shape[-2:]
    if height % SIZE_MULTIPLE or width % SIZE_MULTIPLE:
        raise ValueError(
            f"image size: expected multiples of {SIZE_MULTIPLE} for both sides, got {height} x {width}"
        )


class Encoder(nn.Module):
    """A double convolution on each level, with 2 x 2 max-pooling between the levels."""

    def __init__(self, channels: list[int]) -> None:
        super().__init__()
        self.levels = nn.ModuleList(DoubleConv(inner, outer) for inner, outer in itertools.pairwise(channels))

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return the features of every level, finest first."""
        pyramid: list[Tensor] = []
        for level in self.levels:
            x = level(functional.max_pool2d(x, 2) if pyramid else x)
            pyramid.append(x)
        return pyramid


class DecoderStage(nn.Module):
    """Doubles the size of the coarser features, adds every view's gated skip, and (`fuse`) mixes them."""

    def __init__(
        self, in_channels: int, channels: int, n_views: int, *, fuse: bool, gated: bool = True
    ) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(in_channels, channels, 2, stride=2)
        self.gates = nn.ModuleList(AttentionGate(channels) for _ in range(n_views * gated))
        self.fuse = DoubleConv((1 + n_views) * channels, channels) if fuse else nn.Identity()

    def forward(self, x: Tensor, skips: tuple[Tensor, ...]) -> Tensor:
        """Return the features of this level from those of the coarser one and this level's skips."""
        x = self.up(x)
        if self.gates:
            skips = tuple(gate(x, skip) for gate, skip in zip(self.gates, skips, strict=True))
        return self.fuse(torch.cat([x, *skips], 1))


class AttentionGate(nn.Module):
    """Additive attention (Oktay et al., 2018): scales each place of a skip by a number in (0, 1)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        inner = max(channels // 2, 1)
        self.gate = nn.Sequential(nn.Conv2d(channels, inner, 1), nn.BatchNorm2d(inner))
        self.skip = nn.Sequential(nn.Conv2d(channels, inner, 1), nn.BatchNorm2d(inner))
        self.score = nn.Sequential(nn.Conv2d(inner, 1, 1), nn.BatchNorm2d(1), nn.Sigmoid())

    def forward(self, gate: Tensor, skip: Tensor) -> Tensor:
        """Return `skip` [B, C, H, W] scaled by what the decoder's features `gate` [B, C, H, W] ask for."""
        return skip * self.score(functional.relu(self.gate(gate) + self.skip(skip), inplace=True))


class DoubleConv(nn.Sequential):
    """Two 3 x 3 convolutions, each with batch-norm and ReLU."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(
            nn.Conv2d(in_channels, out_channels, 3, padding=1),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(out_channels, out_channels, 3, padding=1),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(inplace=True),
        )
