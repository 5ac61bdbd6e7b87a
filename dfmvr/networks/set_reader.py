"""What the landmarks' places in any number of views tell about a face.

Fusion of as many views as a network is built for can be one linear layer over all places (landmark_maps.py).
Here three things stand in for it:

- A view's places are split into the affine camera that carries a rough mean face onto them (least squares: a
  fixed matrix), and what is left. The camera tells how the head is turned, so that no yaw need be given; what
  is left is nearly the face's own shape, seen from there.
- What a shape looks like depends on the yaw. The linear layer and the statistics are interpolated between
  some yaws, at each of which they are free: at three such yaws, the layer over all places again.
- Every view tells a value and a precision for each feature. Their product with a prior of zero is the fused
  feature, as for independent Gaussian observations: a further view adds what it knows best. A small network
  adds what is not independent.

Axis letters: P present view, K landmark, J bend (a yaw at which the layers are free), C feature.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from dfmvr.networks.precision import full_precision
from dfmvr.networks.set_fusion import YAW_FEATURES, PresentViews
from dfmvr.types import N_LANDMARKS

_FIRST_INNER = 17
"""The landmarks before this one lie on the outline that is visible, not on fixed places of the head."""
_ROUGH_FACE = (
    # jaw, from the subject's right to the left
    *((-78, 32, -64), (-75, 15, -54), (-73, -8, -54), (-67, -29, -37), (-63, -45, -43), (-52, -66, -40)),
    *((-38, -82, -40), (-22, -83, 4), (0, -84, 19), (22, -83, 4), (38, -82, -40)),
    *((52, -66, -40), (63, -45, -43), (67, -29, -37), (73, -8, -54), (75, 15, -54), (78, 32, -64)),
    # brows, from the subject's right to the left
    *((-55, 47, 9), (-43, 54, 22), (-35, 55, 26), (-26, 56, 30), (-16, 56, 31)),
    *((16, 56, 31), (26, 56, 30), (35, 55, 26), (43, 54, 22), (55, 47, 9)),
    # nose: ridge, base
    *((0, 32, 28), (0, 18, 33), (0, 4, 42), (0, -8, 49)),
    *((-16, -17, 28), (-6, -19, 35), (0, -20, 36), (6, -19, 35), (16, -17, 28)),
    # eyes
    *((-45, 32, 13), (-39, 35, 19), (-28, 36, 21), (-18, 30, 17), (-28, 26, 19), (-39, 27, 18)),
    *((18, 30, 17), (28, 36, 21), (39, 35, 19), (45, 32, 13), (39, 27, 18), (28, 26, 19)),
    # mouth, outer and inner
    *((-26, -42, 24), (-23, -39, 28), (-9, -33, 37), (0, -33, 39), (9, -33, 37), (23, -39, 28)),
    *((26, -42, 24), (19, -49, 29), (13, -51, 31), (0, -53, 34), (-13, -51, 31), (-19, -49, 29)),
    *((-24, -41, 23), (-11, -41, 31), (0, -41, 33), (11, -41, 31)),
    *((24, -41, 23), (12, -40, 30), (0, -40, 33), (-12, -40, 30)),
)
"""A mean face's landmarks, rounded to mm, in model space: any face's would do."""
_UNIT_MM = 100.0
"""Of the rough face, so that cameras have numbers of the size of places."""

_BENDS = tuple(math.radians(degrees) for degrees in range(-80, 81, 40))
"""Yaws in radians between which the layers are interpolated; beyond the outer ones, those hold."""
_VIEWS_REMEMBERED = 256.0
"""Views whose statistics count; those of older ones fade."""
_SMALLEST_SPREAD = 3e-3
"""Share of the picture, a fifth of a pixel at 64: a place that hardly moves is not blown up to unit size."""
_SPLIT = 8 + 2 * N_LANDMARKS
"""Numbers that a view's places are split into."""


class SetReader(nn.Module):
    """Places of the landmarks in the present views [P, K, 2] -> features of each view, and of each face.

    Args:
        out_features: number of features C.
    """

    def __init__(self, out_features: int) -> None:
        super().__init__()
        self.out_features = out_features
        n_bends = len(_BENDS)
        self.linear = nn.Linear(_SPLIT + n_bends * (1 + _SPLIT), out_features)
        self.residual = nn.Sequential(
            nn.Linear(_SPLIT + n_bends + YAW_FEATURES, out_features),
            nn.GELU(),
            nn.Linear(out_features, 2 * out_features),
        )
        self.precision = nn.Linear(n_bends, out_features)
        last = nn.Linear(out_features, out_features)
        for layer in (self.precision, last):  # at the start all views count alike, and their product stands
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        self.together = nn.Sequential(nn.Linear(out_features, out_features), nn.GELU(), last)
        self.prior = nn.Parameter(torch.zeros(out_features))
        face = _rough_face()
        self.register_buffer("face", face, persistent=False)
        self.register_buffer("fit", torch.linalg.pinv(face[_FIRST_INNER:]), persistent=False)
        self.register_buffer("bends", torch.tensor(_BENDS), persistent=False)
        self.register_buffer("mean", torch.zeros(n_bends, _SPLIT))
        self.register_buffer("variance", torch.full((n_bends, _SPLIT), 0.01))
        self.fit: Tensor
        self.face: Tensor
        self.bends: Tensor
        self.mean: Tensor
        self.variance: Tensor

    def forward(self, places: Tensor, yaws: Tensor, which: PresentViews) -> tuple[Tensor, Tensor]:
        """Return the features of the views [P, C] and of the samples [B, C].

        In training the running statistics take the batch in first.

        Args:
            places: [P, K, 2] shares of the picture.
            yaws: [P, YAW_FEATURES], see `yaw_features`.
            which: views of which samples these are.
        """
        with full_precision(places) as wide:
            return self._read(wide, yaws.to(wide.dtype), which)

    def _read(self, places: Tensor, yaws: Tensor, which: PresentViews) -> tuple[Tensor, Tensor]:
        split, yaw = self._split(places)
        near = _hats(yaw, self.bends)
        if self.training:
            self._take_in(split.detach(), near)
        unit = (split - near @ self.mean) / (near @ self.variance).sqrt().clamp_min(_SMALLEST_SPREAD)
        by_bend = near.unsqueeze(-1) * torch.cat([torch.ones_like(unit[:, :1]), unit], 1).unsqueeze(1)
        more, score = self.residual(torch.cat([unit, near, yaws], 1)).chunk(2, 1)
        values = self.linear(torch.cat([unit, by_bend.flatten(1)], 1)) + more
        fused = fuse(values, score + self.precision(near), self.prior, which)
        return values, fused + self.together(fused)

    def _split(self, places: Tensor) -> tuple[Tensor, Tensor]:
        """Return [P, _SPLIT] (camera, then what it leaves of the places), and the camera's yaw [P] rad."""
        camera = self.fit @ places[:, _FIRST_INNER:]
        left = places - self.face @ camera
        with torch.no_grad():  # of a blank picture the angle means nothing, nor does its gradient
            yaw = torch.atan2(camera[:, 2, 0], camera[:, 0, 0])
        return torch.cat([camera.flatten(1), left.flatten(1)], 1), yaw

    @torch.no_grad()
    def _take_in(self, split: Tensor, near: Tensor) -> None:
        """Let the means and variances at the bends follow the views near them."""
        count = near.sum(0)
        momentum = (1 - torch.exp(-count / _VIEWS_REMEMBERED)).unsqueeze(1)
        shares = near / count.clamp_min(1e-6)
        off = split - near @ self.mean
        self.mean += momentum * (shares.T @ off)
        squares = (split - near @ self.mean).square()
        self.variance.lerp_(shares.T @ squares, momentum)


def fuse(values: Tensor, scores: Tensor, prior: Tensor, which: PresentViews) -> Tensor:
    """Return the mean [B, C] of independent Gaussian observations, the prior's zero among them.

    Args:
        values: [P, C] what each view says.
        scores: [P, C] logarithm of each one's precision.
        prior: [C] logarithm of the prior's.
        which: views of which samples these are.
    """
    highest = torch.maximum(which.unpack(scores, -torch.inf).amax(1), prior).detach()
    precision = (scores - which.spread(highest)).exp()
    return which.sum(precision * values) / (which.sum(precision) + (prior - highest).exp())


def _hats(yaw: Tensor, bends: Tensor) -> Tensor:
    """Return the weights [P, J] that interpolate linearly between the bends [J], of one distance."""
    step = bends[1] - bends[0]
    inside = yaw.clamp(bends[0], bends[-1]).unsqueeze(1)
    return (1 - (inside - bends).abs() / step).clamp_min(0)


def _rough_face() -> Tensor:
    """Return [K, 4]: the rough face's landmarks, and ones. Times an affine camera [4, 2] they are places."""
    points = torch.tensor(_ROUGH_FACE, dtype=torch.float32) / _UNIT_MM
    return torch.cat([points, torch.ones(len(points), 1)], 1)
