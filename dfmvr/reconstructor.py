"""The model that is trained: network, face model, pose, light and renderer in one forward pass.

Axis letters: B batch, V view, N vertex, F triangle, K landmark, H W image (see dfmvr/types.py).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dfmvr.geometry.camera import project, to_camera
from dfmvr.geometry.mesh import vertex_normals
from dfmvr.lighting import linear_to_srgb, shade_views
from dfmvr.morphable.model import FaceModelSettings, MorphableModel
from dfmvr.networks.face_network import build_network
from dfmvr.networks.settings import NetworkSettings
from dfmvr.recompute import recomputed
from dfmvr.render.base import Renderer
from dfmvr.render.zbuffer import ZBufferRenderer
from dfmvr.types import FaceParams, Mesh, Reconstruction, RenderOutput, ViewBatch

SHADINGS = ("own", "last")
"""Views in whose pose a view is shaded."""


@dataclass(frozen=True)
class Prediction:
    """Everything that the losses compare with the input."""

    params: FaceParams
    vertices: Tensor
    """[B, N, 3] mm, model space."""
    vertices_camera: Tensor
    """[B, V, N, 3] mm, camera space."""
    albedo: Tensor
    """[B, N, 3] linear."""
    landmarks_3d: Tensor
    """[B, 101, 3] mm, model space."""
    landmarks_2d: Tensor
    """[B, V, 68, 2] pixels."""
    image: Tensor
    """[B, V, H, W, 3] sRGB; black where nothing was drawn."""
    mask: Tensor
    """[B, V, H, W] bool: the face was drawn."""
    drawn: RenderOutput | None
    """Where each pixel lies on the face, [B, V, ...]; None if there was no rendering."""
    shaded: Tensor | None
    """[B, V, N, 3] linear colour in each view's light; None if there was no rendering."""


class Reconstructor(nn.Module):
    """Network + face model + light + renderer.

    Only the network holds parameters; the face model's constants are non-persistent buffers, so that the
    module's state is the network's state.

    Args:
        network: a batch's pictures, masks and present views -> FaceParams.
        face_model: decodes them.
        renderer: draws what was decoded.
        shade_in_view: `own`: each view is shaded in its own pose. `last`: all are in the last view's, as if
            the head had not turned (a defect of the paper's released code, kept for comparison).
    """

    def __init__(
        self,
        network: nn.Module,
        face_model: MorphableModel,
        renderer: Renderer,
        shade_in_view: str = "own",
    ) -> None:
        super().__init__()
        self.network = network
        self.face_model = face_model
        self.renderer = renderer
        self.shade_in_view = shade_in_view

    def forward(self, batch: ViewBatch, render: bool = True, *, bf16: bool = False) -> Prediction:
        """Predict the faces of a batch and draw them into its views.

        Args:
            batch: B samples.
            render: see `draw`.
            bf16: let the network compute in bfloat16 (autocast); all that follows it stays in float32.
        """
        with torch.autocast(batch.images.device.type, torch.bfloat16, enabled=bf16):
            params: FaceParams = self.network(batch.images, batch.masks, batch.view_present, batch.view_yaws)
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
        camera = recomputed(to_camera, vertices.unsqueeze(1), params.rotation, params.translation)
        drawn = shaded = None
        if render:
            shaded = recomputed(self._shade, vertices, albedo, params)
            drawn = self.renderer(camera, model.triangles, shaded, intrinsics, image_size)
            image = linear_to_srgb(drawn.attributes) * drawn.mask.unsqueeze(-1)
            mask = drawn.mask
        else:
            image, mask = _blank(vertices, (*camera.shape[:2], image_size, image_size))
        return Prediction(
            params=params,
            vertices=vertices,
            vertices_camera=camera,
            albedo=albedo,
            landmarks_3d=vertices[:, model.landmarks_101],
            landmarks_2d=project(camera[:, :, model.landmarks_68], intrinsics),
            image=image,
            mask=mask,
            drawn=drawn,
            shaded=shaded,
        )

    def _shade(self, vertices: Tensor, albedo: Tensor, params: FaceParams) -> Tensor:
        """Return the vertices' linear colours in every view, [B, V, N, 3]."""
        rotation = params.rotation if self.shade_in_view == "own" else params.rotation[:, -1:]
        normals = vertex_normals(vertices, self.face_model.triangles)
        return shade_views(albedo, normals, params.light, rotation.expand_as(params.rotation))


def _blank(like: Tensor, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Return an image and a mask in which nothing was drawn, without memory of their own."""
    zero = like.new_zeros(())
    return zero.expand(*shape, 3), zero.bool().expand(shape)


def build_reconstructor(
    network: NetworkSettings, face_model: FaceModelSettings, shade_in_view: str = "own"
) -> Reconstructor:
    """Build the model that the settings name; the network's weights come from torch's global random state."""
    model = MorphableModel.load(face_model.path or None, face_model.level)
    return Reconstructor(build_network(network), model, ZBufferRenderer(), shade_in_view)


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
    landmarks_3d, landmarks_2d = decode_landmarks(params, intrinsics, face_model)
    return [
        Reconstruction(
            mesh=Mesh(vertices[b], face_model.triangles, albedo[b], face_model.uvs),
            params=params.sample(b),
            landmarks_3d=landmarks_3d[b],
            landmarks_2d=landmarks_2d[b],
            intrinsics=intrinsics[b],
        )
        for b in range(vertices.shape[0])
    ]


def decode_landmarks(
    params: FaceParams, intrinsics: Tensor, face_model: MorphableModel
) -> tuple[Tensor, Tensor]:
    """Decode the 68 landmarks alone, at a fraction of the mesh's cost.

    Args:
        params: as `reconstructions`.
        intrinsics: likewise.
        face_model: at any level.

    Returns:
        [B, 68, 3] mm in model space, and [B, V, 68, 2] pixels of the views.
    """
    landmarks_3d = face_model.vertices(params.identity, params.expression, face_model.landmarks_68)
    camera = to_camera(landmarks_3d.unsqueeze(1), params.rotation, params.translation)
    return landmarks_3d, project(camera, intrinsics)
