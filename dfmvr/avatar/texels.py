"""The texture as a grid: what lies under each texel, where that is on the face, and values spread over it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dfmvr.avatar.atlas import PARTS
from dfmvr.avatar.head import Head
from dfmvr.render.zbuffer import ZBufferRenderer
from dfmvr.types import REGION_NAMES

Array = NDArray[Any]

TEXTURE_SIZE = 1024
"""Side of the texture in texels."""
TONE_REGIONS = ("skin", "nose")
"""Regions with the skin's own colour."""

_OUTER_FADE, _OPENING_FADE = 0.04, 0.014
"""Shares of the texture's side over which photographs fade in from the face's border, and from eyes and
mouth."""
_FEATURES = ("right_brow", "left_brow", "upper_lip", "lower_lip")
_FEATURE_REACH = (0.008, 0.03)
"""Shares of the texture's side: what lies within the first of a brow, lip or eye belongs to it, what lies
beyond the second does not."""
_PICTURE_REGIONS = ("skin", "right_brow", "left_brow", "nose", "upper_lip", "lower_lip")


@dataclass(frozen=True, eq=False)
class Texels:
    """What lies under each texel of an atlas."""

    covered: Array
    """[S, S] bool."""
    corners: Tensor
    """[T, 3] the head's vertices around each covered texel."""
    weights: Tensor
    """[T, 3]."""
    on_skin: Array
    """[S, S] bool."""
    pockets: Array
    """[S, S] bool: mouth cavity and eye sockets."""
    labels: Array
    """[S, S] int64 region labels."""

    def spread(self, values: Tensor) -> Array:
        """Interpolate values [N, C] of the head's vertices: [S, S, C] float32, 0 where nothing is covered."""
        image = np.zeros((*self.covered.shape, values.shape[-1]), np.float32)
        image[self.covered] = (values[self.corners] * self.weights.unsqueeze(-1)).sum(1).numpy()
        return image


def find_texels(head: Head, size: int = TEXTURE_SIZE) -> Texels:
    """Find what lies under each texel."""
    atlas = head.atlas
    flat = torch.from_numpy(np.stack([atlas.uvs[:, 0], 1 - atlas.uvs[:, 1]], 1) * size)
    places = torch.nn.functional.pad(flat, (0, 1), value=1.0) * 2  # seen from two units away, pixel by unit
    # The back of an eyeball and the underside of teeth and tongue lie upside down below their fronts.
    upright = torch.from_numpy(_upright(atlas.uvs[atlas.triangles]))
    triangles = torch.from_numpy(atlas.triangles)[upright]
    drawn = ZBufferRenderer()(places, triangles, places[:, :1], torch.eye(3), size)
    covered = drawn.mask.numpy()
    ids = upright[drawn.triangle_ids[drawn.mask]]
    cut_corners = torch.from_numpy(atlas.triangles)[ids]
    weights = drawn.barycentrics[drawn.mask]
    nearest = cut_corners.gather(1, weights.argmax(1, keepdim=True))[:, 0]

    def image(values: Array) -> Array:
        out = np.zeros(covered.shape, values.dtype)
        out[covered] = values
        return out

    source = torch.from_numpy(atlas.source)
    return Texels(
        covered,
        source[cut_corners],
        weights,
        image(atlas.parts[ids] == PARTS.index("skin")),
        image(atlas.pockets[nearest]),
        image(head.model.labels[source[nearest]].numpy()),
    )


def _upright(corners: Array) -> Array:
    """Return the ids of the triangles [F, 3, 2] that go round counter-clockwise."""
    a, b, c = corners.transpose(1, 2, 0)
    return np.flatnonzero((b[0] - a[0]) * (c[1] - a[1]) > (b[1] - a[1]) * (c[0] - a[0]))


def look_up(image: Array, at: Array, interpolation: int = cv2.INTER_LINEAR) -> Array:
    """Return the values of an image [H, W, C] at places [*, *, 2], whole numbers at the pixels' centres.

    Places outside get the values of the image's edge.
    """
    x, y = np.moveaxis(at, -1, 0).astype(np.float32)
    return np.asarray(cv2.remap(image, x, y, interpolation, borderMode=cv2.BORDER_REPLICATE))


def in_regions(texels: Texels, regions: Sequence[str]) -> Array:
    """Say which texels of the skin lie in regions, [S, S]."""
    wanted = [REGION_NAMES.index(name) for name in regions]
    return texels.on_skin & ~texels.pockets & np.isin(texels.labels, wanted)


def ramp(values: Array, start: float, end: float) -> Array:
    """Rise smoothly from 0 at `start` to 1 at `end`."""
    way = ((values - start) / (end - start)).clip(0, 1)
    return np.asarray(way * way * (3 - 2 * way), np.float32)


def from_border(texels: Texels) -> Array:
    """Return each texel's distance from the skin outside the face, as a share of the texture's side."""
    outside = texels.on_skin & ~texels.pockets & (texels.labels == 0)
    return cv2.distanceTransform((~outside).astype(np.uint8), cv2.DIST_L2, 5) / len(outside)


def off_openings(texels: Texels) -> Array:
    """Return 0 at eyes and mouth, rising to 1 around them; [S, S]."""
    away = cv2.distanceTransform((~texels.pockets).astype(np.uint8), cv2.DIST_L2, 5)
    return ramp(away / len(away), 0, _OPENING_FADE)


def usable_places(texels: Texels) -> Array:
    """Return where photographs may be used, [S, S] in [0, 1]: on the face, away from eyes and mouth."""
    fade = ramp(from_border(texels), 0, _OUTER_FADE) * off_openings(texels)
    return np.asarray(fade * in_regions(texels, _PICTURE_REGIONS), np.float32)


def away_from_features(texels: Texels) -> Array:
    """Return 0 at brows, eyes and lips, which are dark by themselves, rising to 1 around them; [S, S]."""
    features = texels.pockets | in_regions(texels, _FEATURES)
    away = cv2.distanceTransform((~features).astype(np.uint8), cv2.DIST_L2, 5)
    return ramp(away / len(features), *_FEATURE_REACH)


def blurred(values: Array, weights: Array, width: float) -> Array:
    """Return values [S, S, 3] blurred where they have weights, and carried on from there.

    Args:
        values: logarithms of colours.
        weights: [S, S].
        width: standard deviation as a share of S.
    """
    # At an eighth of the size a wide blur costs nothing.
    size = len(weights)
    small = (max(1, size // 8),) * 2
    few = cv2.resize(np.dstack([values * weights[..., None], weights]), small, interpolation=cv2.INTER_AREA)
    few = cv2.GaussianBlur(few, (0, 0), width * small[0])
    few = few[..., :3] / few[..., 3:].clip(1e-6)
    return np.asarray(cv2.resize(few, (size, size), interpolation=cv2.INTER_LINEAR))


def padded(image: Array, covered: Array) -> Array:
    """Give empty texels the colour of the nearest covered one, so that filtering finds no edge."""
    from scipy.ndimage import distance_transform_edt

    rows, columns = distance_transform_edt(~covered, return_distances=False, return_indices=True)
    return np.asarray(image[rows, columns], np.float32)
