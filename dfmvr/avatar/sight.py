"""What one photograph shows of the head, carried onto the texture, and how far to trust it there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dfmvr.avatar.head import Head
from dfmvr.avatar.shots import Shot
from dfmvr.avatar.texels import (
    TONE_REGIONS,
    Texels,
    away_from_features,
    from_border,
    in_regions,
    look_up,
    ramp,
    usable_places,
)
from dfmvr.geometry.camera import project, to_camera
from dfmvr.geometry.mesh import vertex_normals
from dfmvr.lighting import sh_basis, srgb_to_linear
from dfmvr.render.zbuffer import ZBufferRenderer

Array = NDArray[Any]

LEAST_SHADING = 0.15
"""Darker shading tells no albedo."""

_DEPTH_SLACK = 3.0
"""In mm: a texel may lie this far behind what the camera sees first."""
_GRAZING, _FACING = 0.15, 0.5
"""Cosines of the angle between surface and sight: unused below the first, fully trusted above the second."""
_SHARPNESS = 3
"""Power of that cosine by which views are weighed against each other."""
_HAIR_ZONE = (0.1, 0.2)
"""Shares of the texture's side from the face's border: hair is looked for up to the first, and nowhere beyond
the second."""
_HAIR_DARKNESS = (0.35, 0.65)
"""Drop of the logarithm of brightness from the skin's: no hair up to the first, hair beyond the second."""
_SHIFT_CELLS = 64
"""Cells a side of the grid on which the shift between landmarks is computed."""
_TINY = 1e-3


@dataclass(frozen=True, eq=False)
class Sight:
    """A photograph's view of the texture."""

    radiance: Array
    """[S, S, 3] float32 linear RGB: what the photograph shows at each texel."""
    normals: Array
    """[S, S, 3] float32 unit normals in the view's model-aligned axes; zero where nothing is covered."""
    tint: Array
    """[S, S, 3] logarithm of the photograph's albedo over the model's."""
    trust: Array
    """[S, S] float32 in [0, 1]: seen, not grazing, and skin."""


def look(shot: Shot, head: Head, texels: Texels, vertices: Tensor, albedo: Array) -> Sight:
    """Carry a photograph onto the texture.

    Args:
        shot: the photograph.
        head: the rig.
        texels: of its atlas.
        vertices: [N, 3] mm, model space: the head with the expression of the photograph.
        albedo: [S, S, 3] linear, the model's.
    """
    camera = to_camera(vertices, shot.rotation, shot.translation)
    place = texels.spread(camera)
    normals = skin_normals(head, texels, vertices) @ shot.rotation.numpy().T
    sight = place / np.linalg.norm(place, axis=-1, keepdims=True).clip(1e-6)
    facing = -(normals * (1, -1, -1) * sight).sum(-1)
    at = np.full((*texels.covered.shape, 2), -1, np.float32)
    at[texels.covered] = project(torch.from_numpy(place[texels.covered]), shot.intrinsics).numpy() - 0.5
    first = look_up(_first_depths(shot, head, camera), at, cv2.INTER_NEAREST)
    at += _landmark_shift(shot, at)
    linear = srgb_to_linear(torch.from_numpy(shot.image).float() / 255).numpy()
    radiance = look_up(linear, at)
    shown = cv2.GaussianBlur(cv2.erode(shot.shown.astype(np.float32), np.ones((9, 9))), (0, 0), 3)
    shown[[0, -1]], shown[:, [0, -1]] = 0, 0
    trust = look_up(shown, at) * (place[..., 2] < first + _DEPTH_SLACK) * ramp(facing, _GRAZING, _FACING)
    trust = trust * facing.clip(0) ** _SHARPNESS * usable_places(texels)
    tint = np.log((radiance / shading(normals, shot.light)).clip(_TINY)) - np.log(albedo.clip(_TINY))
    return Sight(radiance, normals, tint, trust * _not_hair(tint, trust, texels))


def skin_normals(head: Head, texels: Texels, vertices: Tensor) -> Array:
    """Return the unit normals [S, S, 3] of a head [N, 3]; zero where nothing is covered."""
    normals = texels.spread(vertex_normals(vertices, head.model.triangles))
    return np.asarray(normals / np.linalg.norm(normals, axis=-1, keepdims=True).clip(1e-6))


def shading(normals: Array, light: Tensor) -> Array:
    """Return what light [9, 3] makes of white with normals [S, S, 3]: [S, S, 3], never nearly dark."""
    return np.asarray((sh_basis(torch.from_numpy(normals)) @ light).numpy().clip(LEAST_SHADING))


def _first_depths(shot: Shot, head: Head, camera: Tensor) -> Array:
    """Return the depth [H, W] in mm of what the camera sees first, of the nearest within two pixels."""
    size = len(shot.image)
    drawn = ZBufferRenderer()(camera, head.model.triangles, camera[:, :1], shot.intrinsics, size)
    first = torch.where(drawn.mask, drawn.depth, torch.inf).numpy()
    return cv2.erode(first, np.ones((5, 5), np.uint8))  # what hides something, hides its edge too


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


def _not_hair(tint: Array, trust: Array, texels: Texels) -> Array:
    """Return 1 where a photograph shows skin and 0 where it is dark as hair is, near the face's border."""
    border = from_border(texels)
    inner = in_regions(texels, TONE_REGIONS) & (trust > 0.3) & (border > _HAIR_ZONE[0])
    usual = np.median(tint[inner], 0) if inner.any() else np.zeros(tint.shape[-1])
    drop = (usual - tint).mean(-1)
    where = (1 - ramp(border, *_HAIR_ZONE)) * away_from_features(texels)
    hair = ramp(cv2.GaussianBlur(drop, (0, 0), 2), *_HAIR_DARKNESS) * where
    # Hair is thin: what lies beside it is its shadow.
    return 1 - cv2.GaussianBlur(cv2.dilate(hair, np.ones((9, 9))), (0, 0), 4)
