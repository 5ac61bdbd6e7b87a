"""The camera: from model space to camera space (the one conversion), and to pixels.

Model space is x to the subject's left, y up, z out of the face; camera space is OpenCV's, x right, y down,
z forward; both in millimetres. Pixels have their origin at the top-left pixel's top-left corner.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

FOCAL_AT_224 = 1015.0
"""Focal length in pixels of the default camera at an image size of 224 px."""
SUBJECT_DISTANCE = 1000.0
"""Distance in mm from the camera to the model's origin under zero translation."""
NEAR = 1.0
"""Distance in mm of the near plane; what does not lie beyond it is not seen."""


def default_intrinsics(image_size: int) -> Float[Tensor, "3 3"]:
    """Return the default pinhole matrix for square images.

    Args:
        image_size: side of the image in pixels.

    Returns:
        [3, 3] float32, in pixels: the focal length scales with the size, the principal point is the centre.

    Raises:
        ValueError: if `image_size` is not positive.
    """
    if image_size < 1:
        raise ValueError(f"image_size: expected a positive number of pixels, got {image_size}")
    focal, centre = FOCAL_AT_224 * image_size / 224.0, image_size / 2.0
    return torch.tensor([[focal, 0.0, centre], [0.0, focal, centre], [0.0, 0.0, 1.0]])


def to_camera(
    vertices: Float[Tensor, "*#L N 3"],
    rotation: Float[Tensor, "*#L 3 3"],
    translation: Float[Tensor, "*#L 3"],
) -> Float[Tensor, "*L N 3"]:
    """Pose points of model space and express them in camera space.

    Args:
        vertices: [*L, N, 3] mm, model space.
        rotation: [*L, 3, 3] model space to view-aligned model space; identity is frontal.
        translation: [*L, 3] mm, in view-aligned model axes.

    Returns:
        [*L, N, 3] mm, camera space. The leading dimensions of the three arguments broadcast.
    """
    posed = vertices @ rotation.mT + translation.unsqueeze(-2)
    return posed * posed.new_tensor((1.0, -1.0, -1.0)) + posed.new_tensor((0.0, 0.0, SUBJECT_DISTANCE))


def from_camera(
    points_camera: Float[Tensor, "*#L K 3"],
    rotation: Float[Tensor, "*#L 3 3"],
    translation: Float[Tensor, "*#L 3"],
) -> Float[Tensor, "*L K 3"]:
    """Take points of camera space back to model space: the inverse of `to_camera`.

    Args:
        points_camera: [*L, K, 3] mm.
        rotation: [*L, 3, 3] as in `to_camera`.
        translation: [*L, 3] mm, as in `to_camera`.

    Returns:
        [*L, K, 3] mm, model space. The leading dimensions of the three arguments broadcast.
    """
    centred = points_camera - points_camera.new_tensor((0.0, 0.0, SUBJECT_DISTANCE))
    posed = centred * centred.new_tensor((1.0, -1.0, -1.0))
    return (posed - translation.unsqueeze(-2)) @ rotation


def project(
    points_camera: Float[Tensor, "*#L K 3"], intrinsics: Float[Tensor, "*#L 3 3"]
) -> Float[Tensor, "*L K 2"]:
    """Project points of camera space to pixels.

    Points before the near plane are projected as if they lay on it, so that nothing becomes infinite; their
    pixels mean nothing.

    Args:
        points_camera: [*L, K, 3] mm.
        intrinsics: [*L, 3, 3] pinhole matrices in pixels, last row (0, 0, 1).

    Returns:
        [*L, K, 2] pixels.
    """
    on_plane = points_camera[..., :2] / points_camera[..., 2:].clamp_min(NEAR)
    return on_plane @ intrinsics[..., :2, :2].mT + intrinsics[..., None, :2, 2]
