"""A picture of a reconstruction over its photographs, to judge by eye where it fits and where it does not."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dfmvr.geometry.camera import to_camera
from dfmvr.geometry.mesh import vertex_normals
from dfmvr.lighting import SH_BANDS, linear_to_srgb, shade
from dfmvr.render.base import Renderer
from dfmvr.types import Reconstruction

LANDMARK_COLOUR = (40, 230, 90)
SUPERSAMPLING = 2
CLAY = 0.5
"""Linear albedo of the plain grey face."""
CLAY_LIGHT = (0.55, 0.25, 0.45, -0.1)
"""Its light, from above and before: bands 1, y, z, x."""


def draw_overlay(
    images: NDArray[np.uint8], image_size: int, face: Reconstruction, renderer: Renderer
) -> NDArray[np.uint8]:
    """Draw one row a view: photograph with landmarks, fitted face, plain shape.

    Args:
        images: [V, T, T, 3] sRGB crops, at any size T.
        image_size: side in pixels of the views that the face's intrinsics belong to.
        face: the reconstruction from these views.
        renderer: draws the face.

    Returns:
        [V, T, 3 * T, 3] sRGB.
    """
    n_views, tile = images.shape[:2]
    scale = tile / image_size
    radiance = torch.cat([_lit(face), _clay(face)], -1)
    intrinsics = face.intrinsics.clone()
    intrinsics[:, :2] *= scale * SUPERSAMPLING
    drawn = renderer(_in_camera(face), face.mesh.triangles, radiance, intrinsics, tile * SUPERSAMPLING)
    hit = drawn.mask.unsqueeze(-1)
    colours = _shrink(linear_to_srgb(drawn.attributes.clamp(0, 1)) * hit) * 255
    cover = _shrink(hit.float())
    rows = [
        [
            _with_points(images[v], face.landmarks_2d[v].cpu().numpy() * scale),
            np.round(colours[v, ..., :3] + images[v] * (1 - cover[v])).astype(np.uint8),
            np.round(colours[v, ..., 3:] + 255 * (1 - cover[v])).astype(np.uint8),
        ]
        for v in range(n_views)
    ]
    return np.stack([np.concatenate(row, axis=1) for row in rows])


def _shrink(pixels: Tensor) -> NDArray[np.float32]:
    """Average supersampled pixels [V, H, W, C]."""
    channels_first = pixels.movedim(-1, 1)
    return torch.nn.functional.avg_pool2d(channels_first, SUPERSAMPLING).movedim(1, -1).cpu().numpy()


def _in_camera(face: Reconstruction) -> Tensor:
    """Return the mesh in each view's camera [V, N, 3]."""
    return to_camera(face.mesh.vertices, face.params.rotation, face.params.translation)


def _normals(face: Reconstruction) -> Tensor:
    """Return normals in each view's axes [V, N, 3]."""
    return vertex_normals(face.mesh.vertices, face.mesh.triangles) @ face.params.rotation.mT


def _lit(face: Reconstruction) -> Tensor:
    """Return the radiance [V, N, 3] under the light that was found."""
    if face.mesh.colours is None:
        raise ValueError("face.mesh.colours: expected albedo [N, 3], got None")
    return shade(face.mesh.colours.expand(len(face.params.light), -1, -1), _normals(face), face.params.light)


def _clay(face: Reconstruction) -> Tensor:
    """Return the radiance [V, N, 3] of a plain grey face."""
    normals = _normals(face)
    light = normals.new_zeros(len(normals), SH_BANDS, 3)
    light[:, : len(CLAY_LIGHT)] = normals.new_tensor(CLAY_LIGHT)[:, None]
    return shade(torch.full_like(normals, CLAY), normals, light)


def _with_points(image: NDArray[np.uint8], points: NDArray[Any]) -> NDArray[np.uint8]:
    """Draw points [K, 2] as small squares."""
    marked = image.copy()
    half = max(1, len(image) // 224)
    for x, y in np.floor(points[np.isfinite(points).all(1)]).astype(int):
        marked[max(y - half, 0) : max(y + half, 0), max(x - half, 0) : max(x + half, 0)] = LANDMARK_COLOUR
    return marked
