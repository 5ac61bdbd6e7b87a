"""The paper's way of computing, ported plainly: the other side of benchmarks.step and benchmarks.involution.

The same network, weights, face model and losses, computed as research code for them usually does it: the
involution unfolds its input; each view is shaded, drawn and compared by itself; a z-buffer in plain torch
draws one picture after another and leaves the gradient to autograd; samples are aligned one after another;
Adam loops over the parameters. PyTorch3D's rasteriser, which is what research code draws with, would be a
thousand times slower than this z-buffer on a CPU (benchmarks.render), so it is left out in the port's favour.
"""

from __future__ import annotations

import copy
import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from dfmvr.geometry.camera import NEAR, project, to_camera
from dfmvr.geometry.mesh import vertex_normals
from dfmvr.lighting import linear_to_srgb, shade
from dfmvr.losses.landmark import (
    landmark_2d_loss,
    landmark_map_loss,
    landmark_weights,
    seen_landmark_loss,
    yaw_of,
)
from dfmvr.losses.mask import mask_loss
from dfmvr.losses.photo import photo_loss
from dfmvr.losses.regularisation import (
    albedo_unevenness,
    expression_prior,
    light_colour,
    normal_prior,
    range_penalty,
)
from dfmvr.losses.total import LossSettings
from dfmvr.networks.involution import Involution
from dfmvr.networks.landmark_maps import expected_places
from dfmvr.reconstructor import Reconstructor
from dfmvr.training.optim import OptimiserSettings
from dfmvr.types import REGION_NAMES, FaceParams, ViewBatch


def unfold_involution(x: Tensor, kernels: Tensor, kernel_size: int, stride: int = 1) -> Tensor:
    """See dfmvr.networks.involution.involution."""
    batch, channels = x.shape[:2]
    groups, taps, rows, columns = kernels.shape[1:]
    patches = functional.unfold(x, kernel_size, padding=kernel_size // 2, stride=stride)
    patches = patches.view(batch, groups, channels // groups, taps, rows, columns)
    return torch.einsum("bgcthw,bgthw->bgchw", patches, kernels).flatten(1, 2)


class UnfoldInvolution(nn.Module):
    """An Involution's layers around unfold_involution."""

    def __init__(self, ours: Involution) -> None:
        super().__init__()
        self.kernels = ours.kernels
        self.kernel_size, self.stride, self.groups = ours.kernel_size, ours.stride, ours.groups

    def forward(self, x: Tensor) -> Tensor:
        kernels = self.kernels(x).unflatten(1, (self.groups, self.kernel_size**2))
        return unfold_involution(x, kernels, self.kernel_size, self.stride)


@dataclass(frozen=True)
class PortResult:
    """What is compared with ours."""

    params: FaceParams
    images: Tensor
    """[B, V, H, W, 3] sRGB."""
    terms: dict[str, Tensor]
    """Weighted, by name."""


class Port:
    """The port of a reconstructor, with a copy of its network.

    Args:
        reconstructor: ours.
        losses: those that the port has; others raise.
        optimiser: Adam's settings.
    """

    def __init__(
        self, reconstructor: Reconstructor, losses: LossSettings, optimiser: OptimiserSettings
    ) -> None:
        if losses.consistency_pixel or losses.consistency_depth or losses.mask_source != "regions":
            raise ValueError("losses: expected no consistency and mask_source `regions`, which the port has")
        if losses.alignment != "umeyama" or losses.unevenness_of != "albedo":
            raise ValueError("losses: expected alignment `umeyama` and unevenness_of `albedo`")
        self.network = copy.deepcopy(reconstructor.network)
        for parent in list(self.network.modules()):
            for name, child in parent.named_children():
                if isinstance(child, Involution):
                    setattr(parent, name, UnfoldInvolution(child))
        # Ours hands the pictures over channels last; plain code does not think of it.
        self.network.fusion.register_forward_pre_hook(lambda module, inputs: (inputs[0].contiguous(),))
        self.model = reconstructor.face_model
        self.labels = functional.one_hot(self.model.labels, len(REGION_NAMES)).float()
        self.losses, self.clip_norm = losses, optimiser.clip_norm
        self.adam = torch.optim.Adam(
            self.network.parameters(),
            lr=optimiser.learning_rate,
            betas=(optimiser.beta1, optimiser.beta2),
            foreach=False,
        )

    def step(self, batch: ViewBatch) -> None:
        """Train by one batch."""
        self.adam.zero_grad()
        torch.stack([*self(batch).terms.values()]).sum().backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), self.clip_norm, foreach=False)
        self.adam.step()

    def __call__(self, batch: ViewBatch) -> PortResult:
        """Predict, draw and compare."""
        params = self.network(batch.images, batch.masks, batch.view_present)
        vertices = self.model.vertices(params.identity, params.expression)
        albedo = self.model.albedo(params.albedo)
        terms = self._terms_of_faces(params, vertices, albedo, batch)
        images = []
        for view in range(batch.n_views):
            image, of_view = self._draw_and_compare(params, vertices, albedo, batch, view)
            images.append(image)
            for name, term in of_view.items():
                terms[name] = terms.get(name, 0) + term / batch.n_views
        weights = dataclasses.asdict(self.losses)
        weighted = {name: weights[name] * term for name, term in terms.items() if weights[name]}
        return PortResult(params, torch.stack(images, 1), weighted)

    def _terms_of_faces(
        self, params: FaceParams, vertices: Tensor, albedo: Tensor, batch: ViewBatch
    ) -> dict[str, Tensor]:
        model = self.model
        prior = expression_prior(params.expression, model.expression_mean, model.expression_precision)
        return {
            "identity_prior": normal_prior(params.identity).mean(),
            "expression_prior": prior.mean(),
            "expression_range": range_penalty(params.expression).mean(),
            "albedo_prior": normal_prior(params.albedo).mean(),
            "light_colour": light_colour(params.light).mean(),
            "albedo_unevenness": albedo_unevenness(albedo, model.labels == REGION_NAMES.index("skin")).mean(),
            "landmarks_3d": self._landmarks_3d(vertices[:, model.landmarks_101], batch),
        }

    def _landmarks_3d(self, predicted: Tensor, batch: ViewBatch) -> Tensor:
        losses = [predicted.new_zeros(())]
        few = self.model.align_7_in_101
        for points, target, valid in zip(
            predicted, batch.landmarks_3d, batch.landmarks_3d_valid, strict=True
        ):
            if valid:
                moved = align(points, target, few, self.losses.landmarks_3d_with_scale)
                losses.append((moved - target).square().sum(-1).mean())
        return torch.stack(losses).sum() / max(len(losses) - 1, 1)

    def _draw_and_compare(
        self, params: FaceParams, vertices: Tensor, albedo: Tensor, batch: ViewBatch, view: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        model, size = self.model, batch.images.shape[-1]
        rotation, intrinsics = params.rotation[:, view], batch.intrinsics[:, view]
        camera = to_camera(vertices, rotation, params.translation[:, view])
        normals = vertex_normals(vertices @ rotation.mT, model.triangles)
        colours = shade(albedo, normals, params.light[:, view])
        attributes = torch.cat([colours, self.labels.expand(len(colours), -1, -1)], -1)
        pictures = [
            draw(*one, model.triangles, size) for one in zip(camera, attributes, intrinsics, strict=True)
        ]
        drawn, mask = (torch.stack(maps) for maps in zip(*pictures, strict=True))
        image, regions = linear_to_srgb(drawn[..., :3]) * mask.unsqueeze(-1), drawn[..., 3:]
        labels, landmarks = batch.masks[:, view], batch.landmarks_2d[:, view]
        shared = mask & (labels > 0)
        confidence = batch.landmarks_2d_weights[:, view]
        yaws = batch.view_yaws[:, view]
        yaws = torch.where(yaws.isnan(), yaw_of(rotation).detach(), yaws)
        weights = landmark_weights(yaws, self.losses.landmark_weights) * confidence
        seen = project(camera[:, model.landmarks_68], intrinsics)
        photo = photo_loss(image, batch.images[:, view].movedim(1, -1), batch.weight_maps[:, view], shared)
        terms = {
            "photo": photo.mean(),
            "mask": mask_loss(regions, labels, shared).mean(),
            "landmarks_2d": landmark_2d_loss(seen, landmarks, weights, size).mean(),
        }
        if params.landmark_scores is not None:
            scores = params.landmark_scores[:, view]
            places = size * expected_places(scores)
            terms["seen_landmarks"] = seen_landmark_loss(places, landmarks, confidence, size).mean()
            terms["landmark_maps"] = landmark_map_loss(scores, landmarks, confidence, size).mean()
        return image, terms


def align(points: Tensor, target: Tensor, few: Tensor, with_scale: bool) -> Tensor:
    """Move points [K, 3] onto a target by the similarity that fits a few of them best (Umeyama, 1991)."""
    source, aim = points[few], target[few]
    source_mean, aim_mean = source.mean(0), aim.mean(0)
    u, singular, vh = torch.linalg.svd((aim - aim_mean).T @ (source - source_mean))
    signs = torch.stack([torch.ones(()), torch.ones(()), torch.det(u @ vh).sign()]).to(u)
    scale = (signs * singular).sum() / (source - source_mean).square().sum() if with_scale else 1.0
    return scale * (points - source_mean) @ (u @ torch.diag(signs) @ vh).T + aim_mean


def draw(
    vertices: Tensor, attributes: Tensor, intrinsics: Tensor, triangles: Tensor, size: int
) -> tuple[Tensor, Tensor]:
    """Draw one mesh with autograd's own gradient.

    Args:
        vertices: [N, 3] mm, camera space.
        attributes: [N, C].
        intrinsics: [3, 3].
        triangles: [F, 3].
        size: H = W in pixels.

    Returns:
        The attributes [H, W, C], and where something is drawn [H, W].
    """
    with torch.no_grad():
        ids = nearest_triangles(vertices, intrinsics, triangles, size)
    pixels = (ids >= 0).nonzero().squeeze(1)
    corner_ids = triangles[ids[pixels]]
    corners = vertices[corner_ids]
    weights, _ = weigh(project(corners, intrinsics), corners[..., 2], centres(pixels, size))
    image = attributes.new_zeros(size * size, attributes.shape[-1])
    image = image.index_put((pixels,), (weights.unsqueeze(-1) * attributes[corner_ids]).sum(1))
    return image.view(size, size, -1), (ids >= 0).view(size, size)


def nearest_triangles(vertices: Tensor, intrinsics: Tensor, triangles: Tensor, size: int) -> Tensor:
    """Return which triangle each pixel sees, [H * W], -1 for none: every pixel in every triangle's box."""
    corners = project(vertices, intrinsics)[triangles]
    low = (corners.amin(1) - 0.5).ceil().clamp_min(0).long()
    high = (corners.amax(1) - 0.5).floor().clamp_max(size - 1).long()
    sides = (high - low + 1).clamp_min(0) * (vertices[triangles, 2] > NEAR).all(1, keepdim=True)
    counts = sides.prod(1)
    owners = torch.repeat_interleave(torch.arange(len(triangles)), counts)
    order = torch.arange(len(owners)) - (counts.cumsum(0) - counts)[owners]
    columns = sides[owners, 0]
    pixels = (low[owners, 1] + order // columns) * size + low[owners, 0] + order % columns
    weights, depths = weigh(corners[owners], vertices[triangles, 2][owners], centres(pixels, size))
    inside = (weights >= 0).all(1)
    owners, pixels, depths = owners[inside], pixels[inside], depths[inside]
    nearest = depths.new_full((size * size,), torch.inf).scatter_reduce(0, pixels, depths, "amin")
    winners = depths == nearest[pixels]
    none = torch.full((size * size,), len(triangles))
    ids = none.scatter_reduce(0, pixels[winners], owners[winners], "amin")
    return torch.where(ids == len(triangles), -1, ids)


def centres(pixels: Tensor, size: int) -> Tensor:
    """Return the centres [P, 2] of pixels, numbered row by row."""
    return torch.stack((pixels % size, pixels // size), -1) + 0.5


def weigh(corners: Tensor, depths: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
    """Return perspective-correct weights [P, 3] and depth [P] of points [P, 2] in triangles [P, 3, 2]."""
    a, b, c = (corners - points.unsqueeze(1)).unbind(1)
    areas = torch.stack([p[:, 0] * q[:, 1] - p[:, 1] * q[:, 0] for p, q in ((b, c), (c, a), (a, b))], -1)
    over_depth = areas / areas.sum(-1, keepdim=True) / depths
    depth = 1 / over_depth.sum(-1)
    return over_depth * depth.unsqueeze(-1), depth
