"""Heat maps of the landmarks, and where they say the landmarks are.

Average pooling tells a regressor that a feature is there, hardly where; a face's shape is in the where, to a
fraction of a pixel. So each view's encoder also draws a heat map for each landmark. The maps are trained on
the landmarks in the picture (losses/landmark.py); their centres of mass are handed to the regression's heads.

Axis letters: B batch, V view, K landmark, C channel, H W image.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from dfmvr.networks.precision import full_precision
from dfmvr.recompute import recomputed
from dfmvr.types import N_LANDMARKS

_SHARPNESS = 4.0
"""Factor on the scores: without it the maps stay smeared over the picture for the first few hundred steps."""
_MOMENTUM = 0.05
_SMALLEST_SPREAD = 3e-3
"""Share of the picture, a fifth of a pixel at 64: a place that hardly moves is not blown up to unit size."""


class LandmarkMaps(nn.Module):
    """One view's feature pyramid -> scores, whose softmax over the picture is each landmark's heat map.

    Each level adds its scores to the enlarged ones of the coarser level (as in Long et al., 2015): the coarse
    levels know which landmark it is, the fine ones where exactly.

    Args:
        channels: of the pyramid's levels, finest first; each level has half the size of the one before.
    """

    def __init__(self, channels: Sequence[int]) -> None:
        super().__init__()
        self.scores = nn.ModuleList(nn.Conv2d(count, N_LANDMARKS, 1) for count in channels)

    def forward(self, pyramid: Sequence[Tensor]) -> Tensor:
        """Return [B, K, h, w], of the finest level's size, for features [B, C, h / 2^l, w / 2^l]."""
        levels = [score(features) for score, features in zip(self.scores, pyramid, strict=True)]
        total = levels[-1]
        for finer in levels[-2::-1]:
            total = functional.interpolate(total, finer.shape[-2:], mode="bilinear") + finer
        with full_precision(total) as wide:
            return _SHARPNESS * wide


def expected_places(scores: Tensor) -> Tensor:
    """Return the maps' centres of mass [*L, K, 2], as shares of the picture, for scores [*L, K, h, w]."""
    return recomputed(_centres_of_mass, scores)


def _centres_of_mass(scores: Tensor) -> Tensor:
    height, width = scores.shape[-2:]
    with full_precision(scores) as wide:
        heat = wide.flatten(-2).softmax(-1).unflatten(-1, (height, width))
        return torch.stack([heat.sum(-2) @ _centres(width, heat), heat.sum(-1) @ _centres(height, heat)], -1)


class PlaceReader(nn.Module):
    """Places of the landmarks in all views [B, V, K, 2] -> features [B, out_features].

    Shape and pose are nearly linear in the places: a linear layer reads them, and a small network adds what
    is not. Both see places of unit spread. The statistics for that run along, as batch norm's do, but are
    used in training too: the mean of a batch of 16 is off by a quarter of the spread, and a shape by as much.
    Of several workers, the first one's statistics count, as for batch norm.
    """

    def __init__(self, n_views: int, out_features: int) -> None:
        super().__init__()
        n_places = n_views * N_LANDMARKS * 2
        self.linear = nn.Linear(n_places, out_features)
        self.residual = nn.Sequential(
            nn.Linear(n_places, out_features), nn.GELU(), nn.Linear(out_features, out_features)
        )
        self.register_buffer("mean", torch.full((n_places,), 0.5))
        self.register_buffer("variance", torch.full((n_places,), 0.01))
        self.mean: Tensor
        self.variance: Tensor

    def forward(self, places: Tensor, present: Tensor | None = None) -> Tensor:
        """Return the features; in training the running statistics take the batch in first.

        Args:
            places: [B, V, K, 2].
            present: [B, V] bool; the places of other views are taken to be average ones. None: all are there.
        """
        flat = places.flatten(1)
        if present is None:
            present = places.new_ones(places.shape[:2], dtype=torch.bool)
        known = present[:, :, None, None].expand_as(places).flatten(1).to(flat.dtype)
        if self.training:
            self._take_in(flat.detach(), known)
        spread = self.variance.sqrt().clamp_min(_SMALLEST_SPREAD)
        unit = known * (flat - self.mean) / spread
        return self.linear(unit) + self.residual(unit)

    @torch.no_grad()
    def _take_in(self, flat: Tensor, known: Tensor) -> None:
        count = known.sum(0)
        momentum = _MOMENTUM * (count > 0)
        self.mean.lerp_((known * flat).sum(0) / count.clamp_min(1), momentum)
        squares = known * (flat - self.mean).square()
        self.variance.lerp_(squares.sum(0) / count.clamp_min(1), momentum)


def _centres(count: int, like: Tensor) -> Tensor:
    return (torch.arange(count, device=like.device, dtype=like.dtype) + 0.5) / count
