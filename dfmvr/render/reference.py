"""A slow renderer for tests: every triangle against every pixel, in float64, with autograd's own gradients.

It takes another way than the z-buffer on purpose: corners are projected to the image, weights are found
there, and are made perspective correct by dividing by depth.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dfmvr.geometry.camera import project
from dfmvr.render.base import flatten_inputs, usable_vertices
from dfmvr.types import RenderOutput


@dataclass(frozen=True)
class ReferenceRenderer:
    """See base.Renderer; for small meshes and images only."""

    def __call__(
        self,
        vertices_camera: Tensor,
        triangles: Tensor,
        attributes: Tensor,
        intrinsics: Tensor,
        image_size: int,
    ) -> RenderOutput:
        """Render; see base.Renderer."""
        flat = flatten_inputs(vertices_camera, triangles, attributes, intrinsics, image_size)
        images = [
            _render_one(vertices, flat.triangles, values, camera, image_size)
            for vertices, values, camera in zip(
                flat.vertices.double(), flat.attributes.double(), flat.intrinsics.double(), strict=True
            )
        ]
        results = [torch.stack(maps) for maps in zip(*images, strict=True)]
        real = flat.vertices.dtype
        return flat.unflatten(results[0].to(real), results[1], results[2].to(real), results[3].to(real))


def _render_one(
    vertices: Tensor, triangles: Tensor, attributes: Tensor, camera: Tensor, size: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return attributes [H, W, C], triangle ids [H, W], weights [H, W, 3] and depth [H, W]."""
    centres = torch.arange(size, dtype=vertices.dtype) + 0.5
    pixels = torch.stack(torch.meshgrid(centres, centres, indexing="xy"), -1).reshape(-1, 2)
    with torch.no_grad():
        ids = _visible_ids(vertices, triangles, camera, pixels)
    seen = (ids >= 0).nonzero().squeeze(1)
    corner_ids = triangles[ids[seen]]
    corners = vertices[corner_ids]
    seen_weights, seen_depth, _ = _weights(project(corners, camera), corners[..., 2], pixels[seen])
    image = attributes.new_zeros(size * size, attributes.shape[-1])
    image = image.index_put((seen,), (seen_weights.unsqueeze(-1) * attributes[corner_ids]).sum(-2))
    weights = vertices.new_zeros(size * size, 3).index_put((seen,), seen_weights)
    depth = vertices.new_zeros(size * size).index_put((seen,), seen_depth)
    return (
        image.view(size, size, attributes.shape[-1]),
        ids.view(size, size),
        weights.view(size, size, 3),
        depth.view(size, size),
    )


def _visible_ids(vertices: Tensor, triangles: Tensor, camera: Tensor, pixels: Tensor) -> Tensor:
    """Return the nearest triangle of each pixel, -1 where there is none; [H * W]."""
    nearest = torch.full((len(pixels),), torch.inf, dtype=vertices.dtype)
    ids = torch.full((len(pixels),), -1)
    drawable = usable_vertices(vertices)[triangles].all(-1).nonzero().squeeze(1)
    corners = vertices[triangles]
    for start in range(0, len(drawable), 64):
        some = drawable[start : start + 64]
        projected = project(corners[some], camera).unsqueeze(1)
        weights, depth, area = _weights(projected, corners[some, None, :, 2], pixels)
        hit = (weights >= 0).all(-1) & (area != 0)
        depth = torch.where(hit, depth, torch.inf)
        closest = depth.amin(0)
        lowest = torch.where(depth == closest, some.unsqueeze(1), len(triangles)).amin(0)
        nearer = closest < nearest
        ids[nearer], nearest[nearer] = lowest[nearer], closest[nearer]
    return ids


def _weights(corners: Tensor, depths: Tensor, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Weigh the corners of triangles as seen through pixels.

    Args:
        corners: [*L, 1 or K, 3, 2] projected corners.
        depths: [*L, 1 or K, 3] their depths.
        pixels: [K, 2].

    Returns:
        Perspective-correct weights [*L, K, 3], depth [*L, K], and twice the signed area in the image [*L, 1].
    """
    a, b, c = corners.unbind(-2)
    area = _cross(b - a, c - a)
    flat = torch.stack((_cross(b - pixels, c - pixels), _cross(c - pixels, a - pixels)), -1) / area.unsqueeze(
        -1
    )
    flat = torch.cat((flat, 1.0 - flat.sum(-1, keepdim=True)), -1)
    over_depth = flat / depths
    depth = 1.0 / over_depth.sum(-1)
    return over_depth * depth.unsqueeze(-1), depth, area


def _cross(a: Tensor, b: Tensor) -> Tensor:
    return a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0]
