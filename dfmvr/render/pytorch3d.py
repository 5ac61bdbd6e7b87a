"""An adapter to PyTorch3D's rasteriser, for comparison and for those who trust it; nothing else needs it.

PyTorch3D has no wheels for Python 3.11 on the package index; its own source builds with torch 2.13, in about
half an hour on two cores:

    pip install --no-build-isolation "git+https://github.com/facebookresearch/pytorch3d.git@stable"
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dfmvr.geometry.camera import project
from dfmvr.render.base import flatten_inputs, usable_vertices
from dfmvr.types import RenderOutput


@dataclass(frozen=True)
class PyTorch3DRenderer:
    """See base.Renderer; the mesh must have a triangle."""

    def __post_init__(self) -> None:
        try:
            import pytorch3d.renderer.mesh.rasterize_meshes  # noqa: F401  # is it there, with its extension?
        except ImportError as error:
            raise ImportError(
                "PyTorch3DRenderer: expected the package pytorch3d, which has to be built from source: "
                'pip install --no-build-isolation "git+https://github.com/facebookresearch/pytorch3d.git@stable"'
            ) from error

    def __call__(
        self,
        vertices_camera: Tensor,
        triangles: Tensor,
        attributes: Tensor,
        intrinsics: Tensor,
        image_size: int,
    ) -> RenderOutput:
        """Render; see base.Renderer."""
        from pytorch3d.renderer.mesh.rasterize_meshes import rasterize_meshes
        from pytorch3d.structures import Meshes

        flat = flatten_inputs(vertices_camera, triangles, attributes, intrinsics, image_size)
        usable = usable_vertices(flat.vertices)
        vertices = torch.where(usable.unsqueeze(-1), flat.vertices, torch.ones_like(flat.vertices))
        # Normalised coordinates of the image: x to the left, y up, from -1 to 1; depth stays in mm.
        plane = 1.0 - 2.0 * project(vertices, flat.intrinsics) / image_size
        faces = flat.triangles.expand(len(vertices), -1, -1)
        # A triangle that may not be drawn shrinks to a point, which the rasteriser leaves out.
        faces = torch.where(usable[:, flat.triangles].all(-1, keepdim=True), faces, 0)
        found, depth, weights, _ = rasterize_meshes(
            Meshes(verts=torch.cat((plane, vertices[..., 2:]), -1), faces=faces),
            image_size=image_size,
            faces_per_pixel=1,
            perspective_correct=True,
        )
        found, depth, weights = found[..., 0], depth[..., 0], weights[..., 0, :]
        mask = found >= 0
        ids = torch.where(mask, found % max(len(flat.triangles), 1), -1)
        weights = torch.where(mask.unsqueeze(-1), weights, 0.0)
        batch = torch.arange(len(vertices), device=ids.device).view(-1, 1, 1, 1)
        corners = flat.attributes[batch, flat.triangles[ids.clamp_min(0)]]
        image = (weights.unsqueeze(-1) * corners).sum(-2)
        return flat.unflatten(image, ids, weights, torch.where(mask, depth, 0.0))
