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
import torch
from numpy.typing import NDArray
from torch import Tensor

from dfmvr.avatar.atlas import PARTS
from dfmvr.avatar.head import Head
from dfmvr.avatar.shots import Shot
from dfmvr.geometry.camera import project, to_camera
from dfmvr.geometry.mesh import vertex_normals
from dfmvr.lighting import sh_basis, srgb_to_linear
from dfmvr.render.zbuffer import ZBufferRenderer
from dfmvr.types import REGION_NAMES

Array = NDArray[Any]

TEXTURE_SIZE = 1024
"""Side of the texture in texels."""

_DEPTH_SLACK = 3.0
"""In mm: a texel may lie this far behind what the camera sees first."""
_GRAZING, _FACING = 0.15, 0.5
"""Cosines of the angle between surface and sight: unused below the first, fully trusted above the second."""
_SHARPNESS = 3
"""Power of that cosine by which views are weighed against each other."""
_LEAST_SHADING = 0.15
"""Darker shading tells no albedo."""
_OUTER_FADE, _OPENING_FADE = 0.04, 0.014
"""Shares of the texture's side over which photographs fade in from the face's border, and from eyes and
mouth."""
_HAIR_ZONE = (0.1, 0.2)
"""The same for where hair is looked for: up to the first, and nowhere beyond the second."""
_HAIR_DARKNESS = (0.35, 0.65)
"""Drop of the logarithm of brightness from the skin's: no hair up to the first, hair beyond the second."""
_EDGE_FADE = 0.02
"""The same at the edges of what photographs show."""
_LEAST_TRUST = 0.1
"""A photograph trusted less than this shows through only in part."""
_TONE_WIDTH = 0.05
"""Standard deviation, as a share of the texture's side, of the blur that separates tone from detail."""
_SHADE_WIDTH = 0.01
_SHADE_KEPT = 0.4
"""The same for folds and shadows, of which this share is kept, and no colour: more would stay when the face
moves."""
_FEATURES = ("right_brow", "left_brow", "upper_lip", "lower_lip")
_FEATURE_REACH = (0.008, 0.03)
"""Shares of the texture's side: what lies within the first of a brow, lip or eye belongs to it, what lies
beyond the second does not."""
_GLOSS = 0.08
_GLOSS_KEPT = 0.2
"""Where a photograph's logarithm of brightness is above the model's by more than the first, there is a
highlight: this share of the rest is kept."""
_TONE_RANGE = 0.7
"""Largest logarithm of a photograph's tone over the model's that the whole head follows."""
_SHIFT_CELLS = 64
"""Cells a side of the grid on which the shift between landmarks is computed."""
_PICTURE_REGIONS = ("skin", "right_brow", "left_brow", "nose", "upper_lip", "lower_lip")
_TONE_REGIONS = ("skin", "nose")
_TINY = 1e-3


@dataclass(frozen=True, eq=False)
class Texture:
    """The head's colours."""

    albedo: Array
    """[S, S, 3] float32 linear RGB in [0, 1]; no texel is empty."""
    seen: Array
    """[S, S] float32 in [0, 1]: the share that photographs (not mirrored) have in the texel."""


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


def paint_texture(
    head: Head, vertices: Tensor, albedo: Tensor, shots: Sequence[Shot], size: int = TEXTURE_SIZE
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
    usable = _usable(texels)
    tints, trusts = [], []
    for shot in shots:
        tint, trust = _seen_by(shot, head, texels, vertices)
        trust = trust * usable
        tint = np.log(tint.clip(_TINY)) - np.log(model.clip(_TINY))
        tints.append(tint)
        trusts.append(trust * _not_hair(tint, trust, texels))
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
    return Texture(_padded((fill * np.exp(change)).clip(0, 1), texels.covered), seen)


def look_up(image: Array, at: Array, interpolation: int = cv2.INTER_LINEAR) -> Array:
    """Return the values of an image [H, W, C] at places [*, *, 2], whole numbers at the pixels' centres.

    Places outside get the values of the image's edge.
    """
    x, y = np.moveaxis(at, -1, 0).astype(np.float32)
    return np.asarray(cv2.remap(image, x, y, interpolation, borderMode=cv2.BORDER_REPLICATE))


def _in(texels: Texels, regions: Sequence[str]) -> Array:
    """Say which texels of the skin lie in regions, [S, S]."""
    wanted = [REGION_NAMES.index(name) for name in regions]
    return texels.on_skin & ~texels.pockets & np.isin(texels.labels, wanted)


def _ramp(values: Array, start: float, end: float) -> Array:
    """Rise smoothly from 0 at `start` to 1 at `end`."""
    way = ((values - start) / (end - start)).clip(0, 1)
    return np.asarray(way * way * (3 - 2 * way), np.float32)


def _from_border(texels: Texels) -> Array:
    """Return each texel's distance from the skin outside the face, as a share of the texture's side."""
    outside = texels.on_skin & ~texels.pockets & (texels.labels == 0)
    return cv2.distanceTransform((~outside).astype(np.uint8), cv2.DIST_L2, 5) / len(outside)


def _off_openings(texels: Texels) -> Array:
    """Return 0 at eyes and mouth, rising to 1 around them; [S, S]."""
    away = cv2.distanceTransform((~texels.pockets).astype(np.uint8), cv2.DIST_L2, 5)
    return _ramp(away / len(away), 0, _OPENING_FADE)


def _usable(texels: Texels) -> Array:
    """Return where photographs may be used, [S, S] in [0, 1]: on the face, away from eyes and mouth."""
    fade = _ramp(_from_border(texels), 0, _OUTER_FADE) * _off_openings(texels)
    return np.asarray(fade * _in(texels, _PICTURE_REGIONS), np.float32)


def _seen_by(shot: Shot, head: Head, texels: Texels, vertices: Tensor) -> tuple[Array, Array]:
    """Return the albedo [S, S, 3] that a photograph shows, and how far to trust it [S, S]."""
    model, size = head.model, len(shot.image)
    camera = to_camera(vertices, shot.rotation, shot.translation)
    drawn = ZBufferRenderer()(camera, model.triangles, camera[:, :1], shot.intrinsics, size)
    first = torch.where(drawn.mask, drawn.depth, torch.inf).numpy()
    first = cv2.erode(first, np.ones((5, 5), np.uint8))  # what hides something, hides its edge too
    normals = vertex_normals(vertices, model.triangles) @ shot.rotation.T
    place, normal = texels.spread(camera), texels.spread(normals)
    normal /= np.linalg.norm(normal, axis=-1, keepdims=True).clip(1e-6)
    pixels = project(torch.from_numpy(place[texels.covered]), shot.intrinsics).numpy()
    at = np.full((*texels.covered.shape, 2), -1, np.float32)
    at[texels.covered] = pixels - 0.5
    sight = place / np.linalg.norm(place, axis=-1, keepdims=True).clip(1e-6)
    facing = -(normal * (1, -1, -1) * sight).sum(-1)
    hidden_behind = look_up(first, at, cv2.INTER_NEAREST)
    at += _landmark_shift(shot, at)
    colours = srgb_to_linear(torch.from_numpy(shot.image).float() / 255).numpy()
    colours = look_up(colours, at)
    shown = cv2.GaussianBlur(cv2.erode(shot.shown.astype(np.float32), np.ones((9, 9))), (0, 0), 3)
    shown[[0, -1]], shown[:, [0, -1]] = 0, 0
    trust = look_up(shown, at)
    trust = trust * (place[..., 2] < hidden_behind + _DEPTH_SLACK) * _ramp(facing, _GRAZING, _FACING)
    shading = (sh_basis(torch.from_numpy(normal)) @ shot.light).numpy().clip(_LEAST_SHADING)
    return colours / shading, trust * facing.clip(0) ** _SHARPNESS


def _landmark_shift(shot: Shot, at: Array) -> Array:
    """Return how far from places `at` [S, S, 2] in the reconstruction's view the photograph shows them."""
    if shot.found is None or shot.expected is None:
        return np.zeros_like(at)
    from scipy.interpolate import RBFInterpolator

    # A coarse grid is enough: the field is smooth, and there are a million texels.
    step = len(shot.image) / _SHIFT_CELLS
    axis = np.arange(_SHIFT_CELLS + 1) * step
    grid = np.stack(np.meshgrid(axis, axis), -1)
    away = shot.found - shot.expected
    field = RBFInterpolator(shot.expected, away, kernel="linear", smoothing=1.0, degree=0)
    shifts = field(grid.reshape(-1, 2)).reshape(grid.shape).astype(np.float32)
    return look_up(shifts, at / step)


def _median(values: Array, where: Array) -> Array:
    """Return the median of values [S, S, C] where `where` [S, S] holds; zeros where it never does."""
    return np.median(values[where], 0) if where.any() else np.zeros(values.shape[-1])


def _not_hair(tint: Array, trust: Array, texels: Texels) -> Array:
    """Return 1 where a photograph shows skin and 0 where it is dark as hair is, near the face's border."""
    border = _from_border(texels)
    inner = _in(texels, _TONE_REGIONS) & (trust > 0.3) & (border > _HAIR_ZONE[0])
    drop = (_median(tint, inner) - tint).mean(-1)
    where = (1 - _ramp(border, *_HAIR_ZONE)) * _away_from_features(texels)
    hair = _ramp(cv2.GaussianBlur(drop, (0, 0), 2), *_HAIR_DARKNESS) * where
    # Hair is thin: what lies beside it is its shadow.
    return 1 - cv2.GaussianBlur(cv2.dilate(hair, np.ones((9, 9))), (0, 0), 4)


def _common_tone(tints: Sequence[Array], trusts: Sequence[Array], texels: Texels) -> Array:
    """Return the logarithm [3] of the photographs' tone over the model's."""
    skin = _in(texels, _TONE_REGIONS)
    tones = [_median(tint, skin & (trust > 0.3)) for tint, trust in zip(tints, trusts, strict=True)]
    return np.mean(tones, 0).clip(-_TONE_RANGE, _TONE_RANGE) if tones else np.zeros(3)


def _detail(tint: Array, trust: Array, texels: Texels) -> Array:
    """Return what a photograph shows beyond its tone, [S, S, 3]; highlights and most of its shades go too."""
    skin = trust * _in(texels, _TONE_REGIONS)
    detail = tint - _blurred(tint, skin, _TONE_WIDTH)
    excess = (detail.mean(-1, keepdims=True) - _GLOSS).clip(0)
    detail = detail - (1 - _GLOSS_KEPT) * excess
    shades = _blurred(detail, skin, _SHADE_WIDTH)
    plain = _away_from_features(texels)[..., None]
    kept = _SHADE_KEPT * shades.mean(-1, keepdims=True)
    return np.asarray(detail - plain * (shades - kept), np.float32)


def _away_from_features(texels: Texels) -> Array:
    """Return 0 at brows, eyes and lips, which are dark by themselves, rising to 1 around them; [S, S]."""
    features = texels.pockets | _in(texels, _FEATURES)
    away = cv2.distanceTransform((~features).astype(np.uint8), cv2.DIST_L2, 5)
    return _ramp(away / len(features), *_FEATURE_REACH)


def _blurred(values: Array, weights: Array, width: float) -> Array:
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


def _opaque(trust: Array, texels: Texels) -> Array:
    """Turn trust [S, S] into a share that fades out before trust ends, and towards eyes and mouth."""
    size = len(trust)
    off = _off_openings(texels)
    enough = (trust > _LEAST_TRUST) | (off < 1)  # an opening is no edge that needs a second fade
    inside = cv2.distanceTransform(enough.astype(np.uint8), cv2.DIST_L2, 5)
    return _ramp(inside, 0, _EDGE_FADE * size) * _ramp(trust, 0, _LEAST_TRUST) * off


def _padded(image: Array, covered: Array) -> Array:
    """Give empty texels the colour of the nearest covered one, so that filtering finds no edge."""
    from scipy.ndimage import distance_transform_edt

    rows, columns = distance_transform_edt(~covered, return_distances=False, return_indices=True)
    return np.asarray(image[rows, columns], np.float32)
