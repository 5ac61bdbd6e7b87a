"""The model that is trained: network, face model, pose, light and renderer in one forward pass.

Axis letters: B batch, V view, N vertex, F triangle, K landmark, H W image (see dfmvr/types.py).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dfmvr.geometry.camera import project, to_camera
from dfmvr.geometry.mesh import vertex_normals
from dfmvr.lighting import linear_to_srgb, shade
from dfmvr.morphable.model import FaceModelSettings, MorphableModel
from dfmvr.networks.face_network import build_network
from dfmvr.networks.settings import NetworkSettings
from dfmvr.render.base import Renderer
from dfmvr.render.zbuffer import ZBufferRenderer
from dfmvr.types import REGION_NAMES, FaceParams, Mesh, Reconstruction, ViewBatch


@dataclass(frozen=True)
class Prediction:
    """Everything that the losses compare with the input."""

    params: FaceParams
    vertices: Tensor
    """[B, N, 3] mm, model space."""
    albedo: Tensor
    """[B, N, 3] linear."""
    landmarks_3d: Tensor
    """[B, 101, 3] mm, model space."""
    landmarks_2d: Tensor
    """[B, V, 68, 2] pixels."""
    image: Tensor
    """[B, V, H, W, 3] sRGB; black where nothing was drawn."""
    regions: Tensor
    """[B, V, H, W, 10] interpolated one-hot region labels; zeros where nothing was drawn."""
    mask: Tensor
    """[B, V, H, W] bool: the face was drawn."""


class Reconstructor(nn.Module):
    """Network + face model + light + renderer.

    Only the network holds parameters; the face model's constants are non-persistent buffers, so that the
    module's state is the network's state.
    """

    def __init__(self, network: nn.Module, face_model: MorphableModel, renderer: Renderer) -> None:
        super().__init__()
        self.network = network
        self.face_model = face_model
        self.renderer = renderer
        one_hot = nn.functional.one_hot(face_model.labels, len(REGION_NAMES)).float()
        self.register_buffer("region_attributes", one_hot, persistent=False)
        self.region_attributes: Tensor

    def forward(self, batch: ViewBatch, render: bool = True, *, bf16: bool = False) -> Prediction:
        """Predict the faces of a batch and draw them into its views.

        Args:
            batch: B samples.
            render: see `draw`.
            bf16: let the network compute in bfloat16 (autocast); all that follows it stays in float32.
        """
        with torch.autocast(batch.images.device.type, torch.bfloat16, enabled=bf16):
            params: FaceParams = self.network(batch.images, batch.masks, batch.view_present)
        return self.draw(params, batch.intrinsics, batch.images.shape[-1], render)

    def draw(
        self, params: FaceParams, intrinsics: Tensor, image_size: int, render: bool = True
    ) -> Prediction:
        """Decode parameters and render them.

        Args:
            params: parameters with leading shape [B].
            intrinsics: [B, V, 3, 3] pixels.
            image_size: height and width in pixels.
            render: False leaves the pictures empty, for losses that do not look at them.
        """
        model = self.face_model
        vertices = model.vertices(params.identity, params.expression)
        albedo = model.albedo(params.albedo)
        camera = to_camera(vertices.unsqueeze(1), params.rotation, params.translation)
        if render:
            image, regions, mask = self._render(vertices, albedo, camera, params, intrinsics, image_size)
        else:
            image, regions, mask = _blank(vertices, (*camera.shape[:2], image_size, image_size))
        return Prediction(
            params=params,
            vertices=vertices,
            albedo=albedo,
            landmarks_3d=vertices[:, model.landmarks_101],
            landmarks_2d=project(camera[:, :, model.landmarks_68], intrinsics),
            image=image,
            regions=regions,
            mask=mask,
        )

    def _render(
        self,
        vertices: Tensor,
        albedo: Tensor,
        camera: Tensor,
        params: FaceParams,
        intrinsics: Tensor,
        image_size: int,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return Prediction's image, regions and mask."""
        triangles = self.face_model.triangles
        normals = vertex_normals(vertices, triangles).unsqueeze(1) @ params.rotation.transpose(-1, -2)
        radiance = shade(albedo.unsqueeze(1), normals, params.light)
        regions = self.region_attributes.expand(*radiance.shape[:-1], -1)
        output = self.renderer(camera, triangles, torch.cat([radiance, regions], -1), intrinsics, image_size)
        image = linear_to_srgb(output.attributes[..., :3]) * output.mask.unsqueeze(-1)
        return image, output.attributes[..., 3:], output.mask


def _blank(like: Tensor, shape: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor]:
    """Return an image, regions and a mask in which nothing was drawn, without memory of their own."""
    zero = like.new_zeros(())
    return zero.expand(*shape, 3), zero.expand(*shape, len(REGION_NAMES)), zero.bool().expand(shape)


def build_reconstructor(network: NetworkSettings, face_model: FaceModelSettings) -> Reconstructor:
    """Build the model that the settings name; the network's weights come from torch's global random state."""
    model = MorphableModel.load(face_model.path or None, face_model.level)
    return Reconstructor(build_network(network), model, ZBufferRenderer())


def reconstructions(
    params: FaceParams, intrinsics: Tensor, face_model: MorphableModel
) -> list[Reconstruction]:
    """Decode a batch of parameters into one Reconstruction a sample.

    Args:
        params: parameters with leading shape [B].
        intrinsics: [B, V, 3, 3] pixels of the views that the parameters came from.
        face_model: the model, at the level wanted for the mesh.
    """
    vertices = face_model.vertices(params.identity, params.expression)
    albedo = face_model.albedo(params.albedo)
    landmarks_3d = vertices[:, face_model.landmarks_68]
    camera = to_camera(landmarks_3d.unsqueeze(1), params.rotation, params.translation)
    landmarks_2d = project(camera, intrinsics)
    return [
        Reconstruction(
            mesh=Mesh(vertices[b], face_model.triangles, albedo[b], face_model.uvs),
            params=FaceParams(
                params.identity[b],
                params.expression[b],
                params.albedo[b],
                params.light[b],
                params.rotation[b],
                params.translation[b],
            ),
            landmarks_3d=landmarks_3d[b],
            landmarks_2d=landmarks_2d[b],
            intrinsics=intrinsics[b],
        )
        for b in range(vertices.shape[0])
    ]
