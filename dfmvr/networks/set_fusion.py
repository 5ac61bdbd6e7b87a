"""A U-Net for any number of views, in any order: one encoder for all, attention over the views in each skip.

MulEn-Unet (mulen_unet.py) has an encoder for each view and concatenates their skips, so it is built for one
number of views. Here a view is told apart by its yaw alone, where that is known, and the skips are averaged:
a set of views gives the same result in any order, and a view that is not there changes nothing.

Axis letters: B batch, V view, P present view (of all samples, one after the other), C channel, H W image,
G group of channels.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn
from torch.nn import functional

from dfmvr.networks.mulen_unet import LEVELS, SIZE_MULTIPLE, DoubleConv, Encoder
from dfmvr.networks.residual import initialise

YAW_FEATURES = 3
"""Length of what tells a view's yaw: sine, cosine, and whether it is known."""
_YAW_HIDDEN = 32
_GROUPS = 4
"""Groups of a skip's channels, each with its own weights for the views."""


class PresentViews:
    """Which views there are; carries values between views of samples [B, V, ...] and present views [P, ...].

    Args:
        present: [B, V] bool.
    """

    def __init__(self, present: Tensor) -> None:
        self.present = present
        self._all = bool(present.all())

    def pack(self, values: Tensor) -> Tensor:
        """Return [P, ...], without the views that are not there, for [B, V, ...]."""
        return values.flatten(0, 1) if self._all else values[self.present]

    def unpack(self, values: Tensor, fill: float = 0.0) -> Tensor:
        """Return [B, V, ...], `fill` where a view is not there, for [P, ...]."""
        if self._all:
            return values.unflatten(0, self.present.shape)
        dense = values.new_full((*self.present.shape, *values.shape[1:]), fill)
        dense[self.present] = values
        return dense

    def spread(self, values: Tensor) -> Tensor:
        """Return [P, ...], a sample's value for each of its views, for [B, ...]."""
        shape = (*self.present.shape, *values.shape[1:])
        return self.pack(values.unsqueeze(1).expand(shape))

    def shares(self, scores: Tensor) -> Tensor:
        """Return the softmax [P, ...] of scores [P, ...] over the views of each sample."""
        return self.pack(self.unpack(scores, -torch.inf).softmax(1))

    def sum(self, values: Tensor) -> Tensor:
        """Return the sums [B, ...] of values [P, ...] over the views of each sample."""
        return self.unpack(values).sum(1)


def yaw_features(yaws: Tensor) -> Tensor:
    """Return [*L, YAW_FEATURES] for yaws [*L] in radians; all zero where a yaw is unknown (NaN)."""
    known = ~yaws.isnan()
    angles = yaws.nan_to_num()
    return torch.stack([angles.sin(), angles.cos(), torch.ones_like(angles)], -1) * known.unsqueeze(-1)


class SetUnet(nn.Module):
    """The views of each sample -> one fusion feature [B, out_channels, H, W].

    Args:
        in_channels: channels of a view.
        base_channels: channels of the finest level, doubled on each of the four levels below.
    """

    def __init__(self, in_channels: int, base_channels: int) -> None:
        super().__init__()
        channels = [base_channels * 2**level for level in range(LEVELS)]
        self.in_channels = in_channels
        self.out_channels = 2 * base_channels
        self.pyramid_channels = channels
        self.encoder = Encoder([in_channels, *channels])
        self.bottom = ViewAttention(channels[-1], channels[-1])
        self.stages = nn.ModuleList(
            SetDecoderStage(coarse, fine, fuse=level > 0)
            for level, (fine, coarse) in reversed(list(enumerate(itertools.pairwise(channels))))
        )
        initialise(self)
        self.turned = YawModulation(channels)

    def forward(self, views: Tensor, yaws: Tensor, which: PresentViews) -> tuple[Tensor, list[Tensor]]:
        """Fuse the views.

        Args:
            views: [P, in_channels, H, W].
            yaws: [P, YAW_FEATURES].
            which: views of which samples these are; every sample has one or more.

        Returns:
            The fusion feature, and the encoder's features [P, C, H / 2^l, W / 2^l] of every level l, finest
            first; their channels are `pyramid_channels`.

        Raises:
            ValueError: another number of channels than this network was built for, or a height or width that
                is not a multiple of SIZE_MULTIPLE.
        """
        _check(views, self.in_channels)
        pyramid = self.turned(self.encoder(views), yaws)
        whole = which.sum(pyramid[-1]) / which.present.sum(1).view(-1, 1, 1, 1)
        x = self.bottom(whole, pyramid[-1], which)
        for stage, skip in zip(self.stages, pyramid[-2::-1], strict=True):
            x = stage(x, skip, which)
        return x, pyramid


class YawModulation(nn.Module):
    """Scales and shifts the channels of every level by the view's yaw: averages still tell views apart.

    It starts by changing nothing.

    Args:
        channels: of the pyramid's levels.
    """

    def __init__(self, channels: list[int]) -> None:
        super().__init__()
        self.channels = [count for count in channels for _ in ("scale", "shift")]
        last = nn.Linear(_YAW_HIDDEN, sum(self.channels))
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.network = nn.Sequential(nn.Linear(YAW_FEATURES, _YAW_HIDDEN), nn.GELU(), last)

    def forward(self, pyramid: list[Tensor], yaws: Tensor) -> list[Tensor]:
        """Return the changed features for a pyramid of [P, C, h, w] and yaws [P, YAW_FEATURES]."""
        changes = self.network(yaws)[:, :, None, None].split(self.channels, 1)
        return [
            features * (1 + scale) + shift
            for features, scale, shift in zip(pyramid, changes[::2], changes[1::2], strict=True)
        ]


class SetDecoderStage(nn.Module):
    """Doubles the size of the coarser features, adds the skips' gated average, and (`fuse`) mixes them."""

    def __init__(self, in_channels: int, channels: int, *, fuse: bool) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(in_channels, channels, 2, stride=2)
        self.attention = ViewAttention(channels, channels)
        self.fuse = DoubleConv(2 * channels, channels) if fuse else nn.Identity()

    def forward(self, x: Tensor, skips: Tensor, which: PresentViews) -> Tensor:
        """Return this level's features [B, C, h, w] from the coarser ones and the skips [P, C, h, w]."""
        x = self.up(x)
        return self.fuse(torch.cat([x, self.attention(x, skips, which)], 1))


class ViewAttention(nn.Module):
    """Additive attention over the views, at every pixel and in every group of channels.

    As in an attention gate (Oktay et al., 2018) the decoder's features and a view's together say how much of
    the view passes, a number in (0, 1); a second score, through a softmax over the views, says whose it is.

    Args:
        gate_channels: of the decoder's features.
        channels: of the views' features.
    """

    def __init__(self, gate_channels: int, channels: int) -> None:
        super().__init__()
        inner = max(channels // 2, 1)
        self.groups = min(_GROUPS, channels)
        self.gate = nn.Sequential(nn.Conv2d(gate_channels, inner, 1), nn.BatchNorm2d(inner))
        self.skip = nn.Sequential(nn.Conv2d(channels, inner, 1), nn.BatchNorm2d(inner))
        self.score = nn.Sequential(nn.Conv2d(inner, 2 * self.groups, 1), nn.BatchNorm2d(2 * self.groups))

    def forward(self, gate: Tensor, skips: Tensor, which: PresentViews) -> Tensor:
        """Return the average [B, C, h, w] of `skips` [P, C, h, w] that `gate` [B, C', h, w] asks for."""
        hidden = functional.relu(which.spread(self.gate(gate)) + self.skip(skips), inplace=True)
        passes, whose = self.score(hidden).chunk(2, 1)
        weights = passes.sigmoid() * which.shares(whose)
        weighted = skips.unflatten(1, (self.groups, -1)) * weights.unsqueeze(2)
        return which.sum(weighted.flatten(1, 2))


def _check(views: Tensor, in_channels: int) -> None:
    if views.ndim != 4 or views.shape[1] != in_channels:
        raise ValueError(f"views: expected [P, {in_channels}, H, W], got {tuple(views.shape)}")
    height, width = views.shape[-2:]
    if height % SIZE_MULTIPLE or width % SIZE_MULTIPLE:
        raise ValueError(
            f"image size: expected multiples of {SIZE_MULTIPLE} for both sides, got {height} x {width}"
        )
