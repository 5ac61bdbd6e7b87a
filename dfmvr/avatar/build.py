"""From a reconstruction and its photographs to an avatar."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dfmvr.avatar.atlas import PARTS
from dfmvr.avatar.detail import find_detail
from dfmvr.avatar.head import ARKIT_UNITS, Head
from dfmvr.avatar.normal_map import draw_normal_map
from dfmvr.avatar.shots import take_shots
from dfmvr.avatar.texels import TEXTURE_SIZE
from dfmvr.avatar.texture import paint_texture
from dfmvr.geometry.mesh import vertex_normals
from dfmvr.lighting import linear_to_srgb
from dfmvr.predictor import Photo, PreparedViews
from dfmvr.types import Reconstruction

Array = NDArray[Any]


@dataclass(frozen=True, eq=False)
class Avatar:
    """A head at rest that can move its face."""

    vertices: Array
    """[M, 3] float32 mm, model space: the person without an expression."""
    normals: Array
    """[M, 3] float32 unit vectors; equal on both sides of the texture's cut."""
    source: Array
    """[M] int64 from 0, without gaps: vertices of the same number are one, divided by the texture's cut."""
    uvs: Array
    """[M, 2] float32, origin at the bottom left."""
    parts: Mapping[str, Array]
    """By atlas.PARTS: [F, 3] int64, counter-clockwise seen from outside. No two parts share a vertex."""
    targets: Mapping[str, Array]
    """By head.ARKIT_UNITS: [M, 3] float32 mm that full activation adds."""
    texture: NDArray[np.uint8]
    """[S, S, 3] sRGB albedo, the first row at the top (v = 1)."""
    relief: Array | None = None
    """[R, R] float32 mm that the skin stands out along its normals, laid out as the texture; None: smooth."""
    normal_map: NDArray[np.uint8] | None = None
    """[R, R, 3] the same as a normal map (normal_map.py)."""


def build_avatar(
    head: Head,
    photos: Mapping[str, Photo],
    views: PreparedViews,
    face: Reconstruction,
    texture_size: int = TEXTURE_SIZE,
    detail: bool = False,
) -> Avatar:
    """Make an avatar of a reconstructed face.

    Args:
        head: of the face model that the reconstruction comes from.
        photos: by view name, as they were prepared.
        views: what `Predictor.prepare` made of them.
        face: what `Predictor.reconstruct` made of that.
        texture_size: texels a side.
        detail: find the skin's relief, too.
    """
    params = face.params.to("cpu")
    with torch.inference_mode():
        shots = take_shots(photos, views, face)
        seen = head.model.vertices(params.identity, params.expression)
        albedo = head.model.albedo(params.albedo)
        relief = find_detail(head, seen, albedo, shots) if detail else None
        texture = paint_texture(head, seen, albedo, shots, texture_size)
        colours = linear_to_srgb(torch.from_numpy(texture.albedo)).numpy()
        return pose_head(head, params.identity, np.round(colours * 255).astype(np.uint8), relief)


def pose_head(
    head: Head, identity: Tensor, texture: NDArray[np.uint8], relief: Array | None = None
) -> Avatar:
    """Give a person's head at rest its texture and relief.

    Args:
        head: the rig.
        identity: [80].
        texture: [S, S, 3] sRGB.
        relief: [R, R] mm; None: smooth skin.
    """
    vertices = head.model.vertices(identity, identity.new_zeros(len(head.model.expression_basis)))
    return pose_vertices(head, vertices, texture, relief)


def pose_vertices(
    head: Head, vertices: Tensor, texture: NDArray[np.uint8], relief: Array | None = None
) -> Avatar:
    """Give a head in any shape [N, 3] mm, which is its rest, a texture and relief as `pose_head` does."""
    atlas = head.atlas
    normals = vertex_normals(vertices, head.model.triangles)
    return Avatar(
        vertices=vertices.numpy()[atlas.source],
        normals=normals.numpy()[atlas.source],
        source=np.unique(atlas.source, return_inverse=True)[1],
        uvs=atlas.uvs,
        parts={name: atlas.triangles[atlas.parts == index] for index, name in enumerate(PARTS)},
        targets={
            name: unit[atlas.source] for name, unit in zip(ARKIT_UNITS, head.units.numpy(), strict=True)
        },
        texture=texture,
        relief=relief,
        normal_map=None if relief is None else draw_normal_map(head, vertices, relief),
    )


def image_at(image: Array, uvs: Array) -> Array:
    """Return the values [K, C] at texture coordinates [K, 2] of an image [S, S, C] laid out like it."""
    from scipy.ndimage import map_coordinates

    size = len(image)
    places = np.stack([size * (1 - uvs[:, 1]) - 0.5, size * uvs[:, 0] - 0.5])
    channels = np.moveaxis(image, -1, 0)
    values = [map_coordinates(channel, places, np.float32, order=1, mode="nearest") for channel in channels]
    return np.stack(values, 1)
