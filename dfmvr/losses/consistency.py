"""Consistency between views through the predicted geometry (MGCNet, Shang et al. 2020, for a baseline).

Every view predicts its own face and pose. A pixel of the target view a that shows the drawn face is a point
of a's face; posed as in the source view b it must look there as it does in a (pixel term) and lie on b's own
face (depth term). Since both faces share model space, a wrong pose alone moves the pixel term only: the point
and b's face move together. The depth term is about shapes.

Axis letters: B batch, V view, N vertex, F triangle, Q pair of views, H W image. Which pixels count is fixed,
without gradient.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from dfmvr.geometry.camera import from_camera, project, to_camera
from dfmvr.geometry.mesh import vertex_normals
from dfmvr.types import RenderOutput

SSIM_SHARE = 0.85
"""Weight of the structural term; the colour difference has the rest."""
DEPTH_AGREEMENT = 10.0
"""In mm: two surfaces further apart than this along b's axis hide each other. It also scales the depth term,
whose values are thus 0 to 1."""
MIN_FACING = 0.3
"""Least cosine between the surface's normal and the way to the camera (72.5 degrees); beyond, a pixel covers
too much surface to be compared."""
MIN_COVISIBLE = 0.05
"""Least share of the target's drawn pixels that must be covisible for a pair to count."""

_ALL = 1.0 - 1e-3
"""A bilinear sample of a mask above this touches no pixel outside the mask; the rest is rounding."""
_SSIM_MEAN, _SSIM_VARIANCE = 0.01**2, 0.03**2


@dataclass(frozen=True)
class ConsistencyTerms:
    """The mean of each term over the pairs of views; a pair that sees too little in common counts zero."""

    pixel: Tensor
    """[B] 0.85 (1 - SSIM) / 2 + 0.15 mean absolute difference of the colours; 0 to 1."""
    depth: Tensor
    """[B] mean absolute difference of the depths, in units of DEPTH_AGREEMENT; 0 to 1."""


def view_consistency(
    images: Float[Tensor, "B V 3 H W"],
    masks: Int[Tensor, "B V H W"] | None,
    drawn: RenderOutput,
    vertices_camera: Float[Tensor, "B V N 3"],
    rotation: Float[Tensor, "B V 3 3"],
    translation: Float[Tensor, "B V 3"],
    intrinsics: Float[Tensor, "B V 3 3"],
    triangles: Int[Tensor, "F 3"],
) -> ConsistencyTerms:
    """Compare each view with its neighbours in the order of the views (left, front, right), both ways.

    Args:
        images: [B, V, 3, H, W] sRGB in [0, 1], H = W.
        masks: [B, V, H, W] region labels, 0 where the picture shows no face; None: it shows one everywhere.
        drawn: the views as they were rendered, [B, V, ...]; whatever attributes they have do not matter.
        vertices_camera: [B, V, N, 3] mm, each view's own face posed by its own rotation and translation
            (geometry.camera.to_camera).
        rotation: [B, V, 3, 3] model space to view-aligned model space.
        translation: [B, V, 3] mm, view-aligned model axes.
        intrinsics: [B, V, 3, 3] pixels.
        triangles: [F, 3], counter-clockwise seen from outside.

    Raises:
        ValueError: if there is but one view, or a picture is not square.
    """
    views, height, width = images.shape[1], *images.shape[-2:]
    if views < 2:
        raise ValueError(f"images: expected [B, V, 3, H, W] with at least 2 views, got {list(images.shape)}")
    if height != width:
        raise ValueError(f"images: expected square pictures, got {height} x {width}")
    shown = _facing(drawn, vertices_camera, triangles) > MIN_FACING
    if masks is not None:
        shown = shown & (masks > 0)

    a, b = _neighbours(views, images.device)
    model = from_camera(_back_project(drawn.depth, intrinsics)[:, a], rotation[:, a], translation[:, a])
    moved = to_camera(model, rotation[:, b], translation[:, b])
    places = project(moved, intrinsics[:, b]).reshape(*moved.shape[:2], height, width, 2)
    layers = torch.cat([images, drawn.depth.unsqueeze(2), shown.to(images.dtype).unsqueeze(2)], 2)
    seen = _sample(layers[:, b], places)
    colours, depth = seen[:, :, :3], seen[:, :, 3]
    gap = (moved[..., 2].view_as(depth) - depth).abs() / DEPTH_AGREEMENT
    covisible = shown[:, a] & (seen[:, :, 4].detach() > _ALL) & (gap.detach() < 1.0)

    share = covisible.sum((-2, -1)) / drawn.mask[:, a].sum((-2, -1)).clamp_min(1)
    counted = covisible & (share >= MIN_COVISIBLE)[..., None, None]
    difference = pixel_difference(images[:, a], colours, counted)
    return ConsistencyTerms(
        pixel=_masked_mean(difference, counted).mean(-1), depth=_masked_mean(gap, counted).mean(-1)
    )


def pixel_difference(
    target: Float[Tensor, "*L 3 H W"], other: Float[Tensor, "*L 3 H W"], covisible: Bool[Tensor, "*L H W"]
) -> Float[Tensor, "*L H W"]:
    """Return 0.85 (1 - SSIM) / 2 + 0.15 L1 at each pixel, averaged over the channels.

    SSIM's windows are 3 x 3 pixels, of which those that are not covisible are left out. Values where
    `covisible` is false mean nothing.
    """
    inside = covisible.unsqueeze(-3).to(target.dtype)
    pooled_inside = _pool(inside).clamp_min(1.0 / 9.0)

    def local_mean(values: Tensor) -> Tensor:
        return _pool(values * inside) / pooled_inside

    mean_a, mean_b = local_mean(target), local_mean(other)
    variances = local_mean(target**2) - mean_a**2 + local_mean(other**2) - mean_b**2
    covariance = local_mean(target * other) - mean_a * mean_b
    alike = (2 * mean_a * mean_b + _SSIM_MEAN) * (2 * covariance + _SSIM_VARIANCE)
    scale = (mean_a**2 + mean_b**2 + _SSIM_MEAN) * (variances + _SSIM_VARIANCE)
    structure = ((1.0 - alike / scale) / 2.0).clamp(0.0, 1.0)
    return (SSIM_SHARE * structure + (1.0 - SSIM_SHARE) * (target - other).abs()).mean(-3)


def _pool(values: Tensor) -> Tensor:
    """Average over 3 x 3 windows, zeros around the picture."""
    flat = values.reshape(-1, *values.shape[-3:])
    return functional.avg_pool2d(flat, 3, stride=1, padding=1).reshape(values.shape)


@torch.no_grad()
def _facing(drawn: RenderOutput, vertices_camera: Tensor, triangles: Tensor) -> Tensor:
    """Return the cosines of the pixels' normals and ways to the camera, [*L, H, W]; 0 beside the face."""
    to_eye = -functional.normalize(vertices_camera, dim=-1)
    cosines = (vertex_normals(vertices_camera, triangles) * to_eye).sum(-1)
    corners = triangles[drawn.triangle_ids.clamp_min(0)]
    at_corners = cosines.gather(-1, corners.flatten(-3)).view_as(corners)
    return (at_corners * drawn.barycentrics).sum(-1)


def _masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Average over the pixels of the mask, [*L, H, W] -> [*L]; 0 where there is none."""
    return (values * mask).sum((-2, -1)) / mask.sum((-2, -1)).clamp_min(1)


def _neighbours(views: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return targets and sources of the ordered pairs of views that stand side by side, [Q = 2 (V - 1)]."""
    first = torch.arange(views - 1, device=device)
    return torch.cat([first, first + 1]), torch.cat([first + 1, first])


def _back_project(depth: Tensor, intrinsics: Tensor) -> Tensor:
    """Return the points of camera space that pixels' centres see at depths [*L, H, W]: [*L, H * W, 3] mm."""
    y, x = (torch.arange(size, device=depth.device, dtype=depth.dtype) + 0.5 for size in depth.shape[-2:])
    centres = torch.cartesian_prod(y, x).flip(-1)
    rays = functional.pad(centres, (0, 1), value=1.0) @ intrinsics.to(depth.dtype).inverse().mT
    return depth.flatten(-2).unsqueeze(-1) * rays


def _sample(layers: Tensor, places: Tensor) -> Tensor:
    """Return bilinear samples of [B, Q, C, H, W] at places [B, Q, h, w, 2] in pixels; zeros lie outside."""
    size = places.new_tensor((layers.shape[-1], layers.shape[-2]))
    grid = 2.0 * places / size - 1.0
    flat = functional.grid_sample(layers.flatten(0, 1), grid.flatten(0, 1), align_corners=False)
    return flat.reshape(*layers.shape[:3], *places.shape[2:4])
