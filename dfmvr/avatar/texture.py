"""The albedo texture: photographs carried onto the unfolded head, without their light.

What the photographs show well is taken from them, what only the other half of the face shows is mirrored, and
the rest is the face model's albedo in the photographs' tone. Away from details the tone over the face follows
the model's: an estimated light is never exact, and its errors would stay as stains and seams.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from dfmvr.avatar.head import Head
from dfmvr.avatar.shots import Shot
from dfmvr.avatar.sight import look
from dfmvr.avatar.texels import (
    TEXTURE_SIZE,
    TONE_REGIONS,
    Texels,
    away_from_features,
    blurred,
    find_texels,
    in_regions,
    off_openings,
    padded,
    ramp,
)

Array = NDArray[Any]

_EDGE_FADE = 0.02
"""Share of the texture's side over which photographs fade in from the edges of what they show."""
_LEAST_TRUST = 0.1
"""A photograph trusted less than this shows through only in part."""
_TONE_WIDTH = 0.05
"""Standard deviation, as a share of the texture's side, of the blur that separates tone from detail."""
_SHADE_WIDTH = 0.01
_SHADE_KEPT = 0.4
"""The same for folds and shadows, of which this share is kept, and no colour: more would stay when the face
moves."""
_GLOSS = 0.08
_GLOSS_KEPT = 0.2
"""Where a photograph's logarithm of brightness is above the model's by more than the first, there is a
highlight: this share of the rest is kept."""
_TONE_RANGE = 0.7
"""Largest logarithm of a photograph's tone over the model's that the whole head follows."""


@dataclass(frozen=True, eq=False)
class Texture:
    """The head's colours."""

    albedo: Array
    """[S, S, 3] float32 linear RGB in [0, 1]; no texel is empty."""
    seen: Array
    """[S, S] float32 in [0, 1]: the share that photographs (not mirrored) have in the texel."""


def paint_texture(
    head: Head,
    vertices: Tensor,
    albedo: Tensor,
    shots: Sequence[Shot],
    size: int = TEXTURE_SIZE,
) -> Texture:
    """Make the texture of a head.

    Args:
        head: the rig.
        vertices: [N, 3] mm, model space: the head with the expression of the photographs.
        albedo: [N, 3] linear, the model's.
        shots: the photographs; may be none.
        size: side of the texture in texels.
    """
    texels = find_texels(head, size)
    model = texels.spread(albedo)
    sights = [look(shot, head, texels, vertices, model) for shot in shots]
    tints, trusts = [sight.tint for sight in sights], [sight.trust for sight in sights]
    tone = _common_tone(tints, trusts, texels)
    fill = model * np.exp(texels.on_skin[..., None] * tone)
    detail, total = np.zeros_like(model), np.zeros(model.shape[:2], np.float32)
    for tint, trust in zip(tints, trusts, strict=True):
        detail += _detail(tint, trust, texels) * trust[..., None]
        total += trust
    detail /= total.clip(1e-6)[..., None]
    seen = _opaque(total, texels)
    # The sheet is symmetric: its mirror image shows each place's counterpart.
    mirrored = _opaque(total, texels)[:, ::-1] * (1 - seen)
    change = detail * seen[..., None] + detail[:, ::-1] * mirrored[..., None]
    return Texture(padded((fill * np.exp(change)).clip(0, 1), texels.covered), seen)


def _median(values: Array, where: Array) -> Array:
    """Return the median of values [S, S, C] where `where` [S, S] holds; zeros where it never does."""
    return np.median(values[where], 0) if where.any() else np.zeros(values.shape[-1])


def _common_tone(tints: Sequence[Array], trusts: Sequence[Array], texels: Texels) -> Array:
    """Return the logarithm [3] of the photographs' tone over the model's."""
    skin = in_regions(texels, TONE_REGIONS)
    tones = [_median(tint, skin & (trust > 0.3)) for tint, trust in zip(tints, trusts, strict=True)]
    return np.mean(tones, 0).clip(-_TONE_RANGE, _TONE_RANGE) if tones else np.zeros(3)


def _detail(tint: Array, trust: Array, texels: Texels) -> Array:
    """Return what a photograph shows beyond its tone, [S, S, 3]; highlights and most of its shades go too."""
    skin = trust * in_regions(texels, TONE_REGIONS)
    detail = tint - blurred(tint, skin, _TONE_WIDTH)
    excess = (detail.mean(-1, keepdims=True) - _GLOSS).clip(0)
    detail = detail - (1 - _GLOSS_KEPT) * excess
    shades = blurred(detail, skin, _SHADE_WIDTH)
    plain = away_from_features(texels)[..., None]
    kept = _SHADE_KEPT * shades.mean(-1, keepdims=True)
    return np.asarray(detail - plain * (shades - kept), np.float32)


def _opaque(trust: Array, texels: Texels) -> Array:
    """Turn trust [S, S] into a share that fades out before trust ends, and towards eyes and mouth."""
    size = len(trust)
    off = off_openings(texels)
    enough = (trust > _LEAST_TRUST) | (off < 1)  # an opening is no edge that needs a second fade
    inside = cv2.distanceTransform(enough.astype(np.uint8), cv2.DIST_L2, 5)
    return ramp(inside, 0, _EDGE_FADE * size) * ramp(trust, 0, _LEAST_TRUST) * off
