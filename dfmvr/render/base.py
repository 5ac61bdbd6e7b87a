"""What every renderer promises, and the checks and reshaping that they share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from dfmvr.geometry.camera import NEAR
from dfmvr.types import RenderOutput

MIN_SHADOW = 1e-4
"""In mm^2: twice the least area of a triangle's shadow along a ray; below, rounding decides what is hit."""
MIN_FLATNESS = 1e-6
"""Least ratio of twice that area to the sum of the corners' squared distances (mm^2) from the ray."""


LIMIT = 1e9
"""In mm: a vertex with a coordinate beyond this is not usable; products of coordinates stay finite."""


class Renderer(Protocol):
    """Draws triangle meshes that share one topology, seen from the camera, by hard rasterisation.

    Each pixel's centre sees the nearest triangle, whatever side it shows; a tie goes to the lower id. Which
    triangle that is, is a constant; the barycentric weights, the depth and the attributes are perspective
    correct and differentiable with respect to the vertices and the attributes.

    A triangle is not drawn if one of its vertices is not usable (see usable_vertices) or if it is degenerate;
    its vertices then get no gradient from it.
    """

    def __call__(
        self,
        vertices_camera: Tensor,
        triangles: Tensor,
        attributes: Tensor,
        intrinsics: Tensor,
        image_size: int,
    ) -> RenderOutput:
        """Render.

        Args:
            vertices_camera: [*L, N, 3] mm, camera space.
            triangles: [F, 3] integer vertex ids.
            attributes: [*L, N, C] per vertex; finite where they are to be seen.
            intrinsics: [*L, 3, 3] pinhole matrices in pixels, last row (0, 0, 1); constants, no gradient.
            image_size: H = W in pixels.

        Returns:
            RenderOutput; the leading dimensions of the three batched arguments broadcast.

        Raises:
            ValueError: if a shape does not fit, or a triangle names a vertex that does not exist.
        """
        ...


@dataclass(frozen=True)
class FlatInputs:
    """A renderer's inputs with one leading dimension B, contiguous, of one floating type."""

    vertices: Tensor
    """[B, N, 3] mm, camera space."""
    triangles: Tensor
    """[F, 3] int64."""
    attributes: Tensor
    """[B, N, C]."""
    intrinsics: Tensor
    """[B, 3, 3], detached."""
    leading: torch.Size
    """The dimensions *L that B stands for."""

    def unflatten(
        self, attributes: Tensor, triangle_ids: Tensor, barycentrics: Tensor, depth: Tensor
    ) -> RenderOutput:
        """Give flat results [B, H, W, ...] their leading dimensions back."""

        def restore(flat: Tensor) -> Tensor:
            return flat.reshape(*self.leading, *flat.shape[1:])

        return RenderOutput(
            attributes=restore(attributes),
            mask=restore(triangle_ids >= 0),
            triangle_ids=restore(triangle_ids),
            barycentrics=restore(barycentrics),
            depth=restore(depth),
        )


def usable_vertices(vertices: Tensor) -> Tensor:
    """Say which vertices [*L, N, 3] are finite, within LIMIT and beyond the near plane; [*L, N]."""
    return (vertices.abs() < LIMIT).all(-1) & (vertices[..., 2] > NEAR)  # false for NaN


def flatten_inputs(
    vertices_camera: Tensor, triangles: Tensor, attributes: Tensor, intrinsics: Tensor, image_size: int
) -> FlatInputs:
    """Check a renderer's inputs and flatten their leading dimensions; see Renderer.__call__."""
    _check_shapes(vertices_camera, triangles, attributes, intrinsics, image_size)
    n_vertices = vertices_camera.shape[-2]
    if triangles.numel():
        lowest, highest = (int(bound) for bound in torch.aminmax(triangles))
        if lowest < 0 or highest >= n_vertices:
            raise ValueError(
                f"triangles: expected vertex ids in [0, {n_vertices}), got {lowest} to {highest}"
            )
    leading = torch.Size(
        np.broadcast_shapes(vertices_camera.shape[:-2], attributes.shape[:-2], intrinsics.shape[:-2])
    )
    real = torch.promote_types(torch.promote_types(vertices_camera.dtype, attributes.dtype), torch.float32)

    def flat(tensor: Tensor) -> Tensor:
        rows, columns = tensor.shape[-2:]
        count = leading.numel()
        return tensor.to(real).expand(*leading, rows, columns).reshape(count, rows, columns).contiguous()

    return FlatInputs(
        vertices=flat(vertices_camera),
        triangles=triangles.long().contiguous(),
        attributes=flat(attributes),
        intrinsics=flat(intrinsics.detach()),
        leading=leading,
    )


def _check_shapes(
    vertices: Tensor, triangles: Tensor, attributes: Tensor, intrinsics: Tensor, image_size: int
) -> None:
    if vertices.dim() < 2 or vertices.shape[-1] != 3:
        raise ValueError(f"vertices_camera: expected [*L, N, 3], got {list(vertices.shape)}")
    if triangles.dim() != 2 or triangles.shape[-1] != 3 or triangles.is_floating_point():
        raise ValueError(
            f"triangles: expected integers [F, 3], got {triangles.dtype} {list(triangles.shape)}"
        )
    if attributes.dim() < 2 or attributes.shape[-2] != vertices.shape[-2]:
        raise ValueError(f"attributes: expected [*L, {vertices.shape[-2]}, C], got {list(attributes.shape)}")
    if intrinsics.shape[-2:] != (3, 3):
        raise ValueError(f"intrinsics: expected [*L, 3, 3], got {list(intrinsics.shape)}")
    if image_size < 1:
        raise ValueError(f"image_size: expected a positive number of pixels, got {image_size}")
