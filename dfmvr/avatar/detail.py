"""Wrinkles and folds: a relief of the skin, finer than the face model, from the shading of the photographs.

1. Each photograph's light is fitted anew, in closed form, to the reconstruction in the model's albedo.
2. What is left of a photograph's brightness, albedo and light divided out and everything wide taken off, is
   the shading of detail: the albedo is assumed to be the model's but for wide changes.
3. relief.py finds the relief that explains it best in all views, each weighed by visibility and angle.

Shading and albedo cannot be told apart for certain. Shading in white light keeps the colour, so texels whose
colour changes weigh little; so do hard outliers, which no smooth relief explains (the robust loss), among
them those where views disagree about one and the same relief. Brows, lips, eyes and nostrils, highlights and
what lies in the dark say nothing about shape and are left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dfmvr.avatar.head import Head
from dfmvr.avatar.relief import ReliefFit, View, build_grid, solve_relief
from dfmvr.avatar.shots import Shot
from dfmvr.avatar.sight import Sight, look, shading, skin_normals
from dfmvr.avatar.texels import TONE_REGIONS, Texels, find_texels, in_regions, off_openings, ramp
from dfmvr.lighting import SH_BANDS, sh_basis

Array = NDArray[Any]

DETAIL_SIZE = 512
"""Side of the relief in texels: about 0.7 mm each on the face."""
BOUND = 1.5
"""In mm: no relief is higher or deeper."""
WIDE = 0.016
"""Standard deviation, as a share of the grid's side (6 mm), of the blur that separates detail from what is
wide."""

_LIGHT_RIDGE = 0.02
"""Weight of the network's light against one texel of skin, as a share of all texels."""
_COLOUR = 0.12
"""Change of the logarithm of colour, at fixed brightness, that halves a texel's weight."""
_GRAIN = 0.003
"""Standard deviation, as a share of the grid's side, of the blur that takes noise off that change."""
_LEAST_WEIGHT = 0.02
_REACH = 0.02
"""The relief is sought within this share of the grid's side from texels that weigh more than the first."""
_HIGHLIGHT = (0.85, 0.97)
"""Brightest channel, linear: no highlight up to the first, surely one beyond the second."""
_SHADE = (0.25, 0.5)
"""Shading as a share of its median: nothing is read below the first."""
_FEATURES = (0.01, 0.028)
"""Shares of the grid's side from a brow, lip, eye or nostril: unused within the first, trusted beyond the
second."""
_DARK = 0.7
"""A nostril's albedo, and less, as a share of the skin's."""
_TINY = 1e-3


def find_detail(
    head: Head, vertices: Tensor, albedo: Tensor, shots: Sequence[Shot], size: int = DETAIL_SIZE
) -> Array:
    """Find a head's relief.

    Args:
        head: the rig.
        vertices: [N, 3] mm, model space: the head with the expression of the photographs.
        albedo: [N, 3] linear, the model's.
        shots: the photographs; without any there is no detail.
        size: side of the grid in texels.

    Returns:
        [S, S] float32 mm along the outward normals, within BOUND of 0, and 0 where nothing is known; laid out
        as the texture.
    """
    relief = np.zeros((size, size), np.float32)
    if not shots:
        return relief
    texels = find_texels(head, size)
    inside = in_regions(texels, TONE_REGIONS)
    inside[[0, -1]] = inside[:, [0, -1]] = False
    model = texels.spread(albedo)
    plain = plain_skin(texels, model) * inside
    views = [_view(shot, look(shot, head, texels, vertices, model), model, plain) for shot in shots]
    inside &= _near(np.max([weights for _, _, weights in views], 0) > _LEAST_WEIGHT)
    grid = build_grid(texels.spread(vertices), skin_normals(head, texels, vertices), inside)
    observed = [
        View(
            shot.rotation.double().numpy(),
            light.double().numpy(),
            brightness[inside].astype(np.float64),
            weights[inside].astype(np.float64),
        )
        for shot, (light, brightness, weights) in zip(shots, views, strict=True)
    ]
    relief[inside] = solve_relief(ReliefFit(grid, observed), len(grid.normals))
    relief -= blur(relief, inside.astype(np.float32), WIDE) * inside
    return np.asarray(BOUND * np.tanh(relief / BOUND))


def fit_light(sight: Sight, albedo: Array, weights: Array, prior: Tensor) -> Tensor:
    """Fit a view's light: weighted least squares with a ridge around a first guess.

    Args:
        sight: what the view shows.
        albedo: [S, S, 3] linear.
        weights: [S, S].
        prior: [9, 3] the first guess.

    Returns:
        [9, 3].
    """
    used = weights > 0
    weight = weights[used].astype(np.float64)
    basis = sh_basis(torch.from_numpy(sight.normals[used]).double()).numpy()
    light = prior.double().numpy().copy()
    for channel in range(3):
        design = basis * albedo[used][:, channel, None]
        missing = sight.radiance[used][:, channel] - design @ light[:, channel]
        normal = (design * weight[:, None]).T @ design
        normal += _LIGHT_RIDGE * weight.sum() * np.eye(SH_BANDS) * (albedo[used][:, channel] ** 2).mean()
        light[:, channel] += np.linalg.solve(normal, (design * weight[:, None]).T @ missing)
    return torch.from_numpy(light).to(prior)


def _view(shot: Shot, sight: Sight, albedo: Array, plain: Array) -> tuple[Tensor, Array, Array]:
    """Return a photograph's light [9, 3], the logarithm of its shading [S, S], and the trust in it [S, S]."""
    weights = sight.trust * plain * (1 - ramp(sight.radiance.max(-1), *_HIGHLIGHT))
    light = fit_light(sight, albedo, weights, shot.light)
    lit = shading(sight.normals, light)
    usual = np.median(lit.mean(-1)[plain > 0])
    weights *= ramp(lit.mean(-1), _SHADE[0] * usual, _SHADE[1] * usual)
    # In logarithms, with R, A and S for radiance, albedo and shading, R = A + S + detail.
    rest = np.log(sight.radiance.clip(_TINY)) - np.log(albedo.clip(_TINY)) - np.log(lit)
    detail = rest - blur(rest, weights, WIDE)
    brightness = detail.mean(-1)
    colour = blur(detail - brightness[..., None], weights, _GRAIN)
    weights /= 1 + (np.linalg.norm(colour, axis=-1) / _COLOUR) ** 2
    return light, np.log(lit).mean(-1) + brightness, weights


def _near(places: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return what is within _REACH of places [S, S]."""
    away = cv2.distanceTransform((~places).astype(np.uint8), cv2.DIST_L2, 5)
    return np.asarray(away < _REACH * len(places))


def plain_skin(texels: Texels, albedo: Array) -> Array:
    """Return 0 at brows, lips, eyes and nostrils, rising to 1 around them; [S, S]."""
    skin = in_regions(texels, TONE_REGIONS)
    bright = albedo.mean(-1)
    dark = bright < _DARK * np.median(bright[skin])
    features = texels.on_skin & (texels.pockets | dark | ~(skin | (texels.labels == 0)))
    away = cv2.distanceTransform((~features).astype(np.uint8), cv2.DIST_L2, 5)
    return ramp(away / len(away), *_FEATURES) * off_openings(texels)


def blur(values: Array, weights: Array, width: float) -> Array:
    """Return values [S, S] or [S, S, C] blurred where they have weights [S, S].

    Args:
        values: to blur.
        weights: not negative.
        width: standard deviation as a share of S.
    """
    sigma = width * len(weights)
    total = cv2.GaussianBlur(weights, (0, 0), sigma).clip(1e-6)
    if values.ndim == 2:
        return np.asarray(cv2.GaussianBlur(values * weights, (0, 0), sigma) / total)
    return np.asarray(cv2.GaussianBlur(values * weights[..., None], (0, 0), sigma) / total[..., None])
