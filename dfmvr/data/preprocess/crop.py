"""From a photograph and a few points on the face to the square crop that the network was trained on.

The network expects a face seen by the default camera (geometry/camera.py) from 1 m, upright, with the face
model's origin in the centre. Which scale, shift and turn of the photograph comes nearest to that is found by
posing the face model's mean points so that a similarity carries their projection onto the given points.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dfmvr.geometry.camera import FOCAL_AT_224, SUBJECT_DISTANCE, default_intrinsics, project, to_camera
from dfmvr.geometry.rotation import euler_to_matrix
from dfmvr.morphable.model import MorphableModel

FIVE_POINTS = "right eye, left eye, tip of the nose, right corner of the mouth, left corner of the mouth"
"""Order of the five points; right and left are the subject's (the right eye is at the image's left)."""

_FIVE_IN_68 = ((36, 39), (42, 45), (30,), (48,), (54,))
"""The iBUG points whose mean each of the five is; an eye is the middle of its corners."""
_JAW_POINTS = 17
"""The first iBUG points lie on the visible outline, not on fixed places of the head: they do not count."""

POINT_SPREAD_MM = 4.0
"""How far people's points lie from the mean face's, one standard deviation."""
PITCH_SPREAD = np.radians(15.0)
YAW_SPREAD = np.radians(20.0)
"""How far heads turn from a view's nominal pose, one standard deviation."""
MAX_MISFIT_MM = 15.0
"""Root-mean-square misfit above which the points are no face's."""

_GRID_STEPS = np.radians([6.0, 1.5, 0.4])
"""Spacing of the coarse grid of poses and of the two that refine it."""


@dataclass(frozen=True)
class Crop:
    """Where a square crop lies in its photograph, and how the head is turned in it."""

    to_crop: NDArray[np.float64]
    """[2, 3] photograph's pixels to the crop's pixels: a similarity."""
    size: int
    """Side of the crop in pixels."""
    rotation: NDArray[np.float32]
    """[3, 3] rough pose of the head in the crop, without roll; model space to view-aligned model space."""
    misfit_mm: float
    """Root-mean-square distance of the given points from the posed mean face's."""

    @property
    def scale(self) -> float:
        """Pixels of the crop for each pixel of the photograph."""
        return float(np.hypot(*self.to_crop[:, 0]))

    @property
    def yaw(self) -> float:
        """Rough yaw in radians; negative when the nose points to the image's left."""
        return float(np.arctan2(self.rotation[0, 2], self.rotation[2, 2]))

    def cut(self, photo: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Cut the crop out of its photograph [H, W, 3], smoothed where it shrinks.

        What lies outside the photograph repeats its border.
        """
        import cv2

        # Most of a large photograph's pixels are only averaged: that is quicker than a wide blur.
        (height, width), shrink = photo.shape[:2], min(1.0, 2 * self.scale)
        size = (max(1, round(width * shrink)), max(1, round(height * shrink)))
        if shrink < 1:
            photo = np.asarray(cv2.resize(photo, size, interpolation=cv2.INTER_AREA), np.uint8)
        left = self.scale / shrink
        if left <= 0.99:
            photo = np.asarray(cv2.GaussianBlur(photo, (0, 0), 0.5 * (left**-2 - 1) ** 0.5), np.uint8)
        matrix = self.to_crop.copy()
        matrix[:, :2] *= [width / photo.shape[1], height / photo.shape[0]]
        return self._warp(photo, matrix, cv2.INTER_LINEAR, cv2.BORDER_REPLICATE)

    def cut_mask(self, mask: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Cut a mask [H, W] of the photograph; what lies outside is background."""
        import cv2

        return self._warp(mask, self.to_crop, cv2.INTER_NEAREST, cv2.BORDER_CONSTANT)

    def _warp(
        self, image: NDArray[Any], to_crop: NDArray[np.float64], interpolation: int, border: int
    ) -> NDArray[np.uint8]:
        import cv2

        # OpenCV puts a pixel's centre at whole numbers, this project at +0.5.
        matrix = to_crop.copy()
        matrix[:, 2] += to_crop[:, :2].sum(1) * 0.5 - 0.5
        size = (self.size, self.size)
        return np.asarray(
            cv2.warpAffine(image, matrix, size, flags=interpolation, borderMode=border), np.uint8
        )

    def points_to_crop(self, points: NDArray[np.floating]) -> NDArray[np.float64]:
        """Carry points [K, 2] from the photograph's pixels to the crop's."""
        return np.asarray(points @ self.to_crop[:, :2].T + self.to_crop[:, 2], np.float64)

    def points_to_photo(self, points: NDArray[np.floating]) -> NDArray[np.float64]:
        """Carry points [K, 2] from the crop's pixels to the photograph's."""
        return np.asarray((points - self.to_crop[:, 2]) @ np.linalg.inv(self.to_crop[:, :2]).T, np.float64)


def five_points(landmarks_68: Tensor) -> Tensor:
    """Return the five points [*L, 5, D] of 68 landmarks [*L, 68, D]."""
    return torch.stack([landmarks_68[..., list(ids), :].mean(-2) for ids in _FIVE_IN_68], -2)


def fit_crop(
    points: NDArray[np.floating], face_model: MorphableModel, size: int, nominal_yaw: float = 0.0
) -> Crop:
    """Find the crop that shows a face as the network expects it.

    Only two angles need a search: for each pitch and yaw of the mean face, the best similarity between its
    projection and the points is known in closed form (its rotation is the roll). The misfit, and how far the
    head turns from the view's nominal pose, weigh as people vary.

    Args:
        points: [5, 2] in FIVE_POINTS' order, or [68, 2] in iBUG order; the photograph's pixels.
        face_model: any level.
        size: side of the crop in pixels.
        nominal_yaw: the view's usual yaw in radians.

    Raises:
        ValueError: the shape is wrong, a point is not finite, or the points do not fit a face.
    """
    points = np.asarray(points, np.float64)
    if points.shape not in ((5, 2), (68, 2)):
        raise ValueError(
            f"points: expected [5, 2] ({FIVE_POINTS}) or [68, 2] (iBUG), got {list(points.shape)}"
        )
    if not np.isfinite(points).all():
        raise ValueError("points: expected finite pixels, got NaN or infinity")
    model_points = face_model.mean_shape[face_model.landmarks_68].cpu().double()
    if len(points) == 5:
        model_points = five_points(model_points)
    else:
        model_points, points = model_points[_JAW_POINTS:], points[_JAW_POINTS:]
    target = points @ np.array([1, 1j])
    centre = np.array([0.0, nominal_yaw])
    half_width = np.radians([36.0, 60.0])
    for step in _GRID_STEPS:
        angles = _grid(centre, half_width, step)
        fits = _fit_similarities(angles, model_points, target, size)
        prior = (angles[:, 0] / PITCH_SPREAD) ** 2 + ((angles[:, 1] - nominal_yaw) / YAW_SPREAD) ** 2
        best = int(np.argmin((fits.misfit_mm / POINT_SPREAD_MM) ** 2 * len(points) + prior))
        centre, half_width = angles[best], np.array([step, step])
    misfit = float(fits.misfit_mm[best])
    if not misfit <= MAX_MISFIT_MM:
        raise ValueError(
            f"points: expected a face's {FIVE_POINTS if len(points) == 5 else '68 landmarks'}, "
            f"got points that lie {misfit:.0f} mm off any pose of one (at most {MAX_MISFIT_MM:.0f})"
        )
    return Crop(
        to_crop=_inverse_similarity(fits.factor[best], fits.shift[best]),
        size=size,
        rotation=_rotations(angles[best : best + 1])[0].float().numpy(),
        misfit_mm=misfit,
    )


@cache
def nominal_crop(size: int, nominal_yaw: float) -> Crop:
    """Return the identity crop of a picture that already is one, with the view's usual pose."""
    rotation = _rotations(np.array([[0.0, nominal_yaw]]))[0].float().numpy()
    return Crop(np.eye(2, 3), size, rotation, 0.0)


@dataclass(frozen=True)
class _Similarities:
    """For each pose: photograph = factor * crop + shift, in complex numbers x + iy."""

    factor: NDArray[np.complex128]
    shift: NDArray[np.complex128]
    misfit_mm: NDArray[np.float64]


def _grid(centre: NDArray[np.float64], half_width: NDArray[np.float64], step: float) -> NDArray[np.float64]:
    """Return (pitch, yaw) pairs [G, 2] around a centre."""
    axes = [
        middle + np.arange(-np.ceil(half / step), np.ceil(half / step) + 1) * step
        for middle, half in zip(centre, half_width, strict=True)
    ]
    return np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 2)


def _rotations(angles: NDArray[np.float64]) -> Tensor:
    """Return [G, 3, 3] float64 rotations of (pitch, yaw) pairs [G, 2], without roll."""
    return euler_to_matrix(torch.from_numpy(np.pad(angles, ((0, 0), (0, 1)))))


def _fit_similarities(
    angles: NDArray[np.float64], model_points: Tensor, target: NDArray[np.complex128], size: int
) -> _Similarities:
    """Least squares of target = factor * projection + shift for every pose."""
    rotations = _rotations(angles)
    camera = to_camera(model_points, rotations, rotations.new_zeros(3))
    pixels = project(camera, default_intrinsics(size).double()).numpy() @ np.array([1, 1j])
    centred = pixels - pixels.mean(-1, keepdims=True)
    centred_target = target - target.mean()
    factor = (centred.conj() * centred_target).sum(-1) / (abs(centred) ** 2).sum(-1)
    residual = abs(factor[:, None] * centred - centred_target)
    mm_per_crop_pixel = SUBJECT_DISTANCE / (FOCAL_AT_224 * size / 224)
    with np.errstate(divide="ignore", invalid="ignore"):
        misfit = np.sqrt((residual**2).mean(-1)) / abs(factor) * mm_per_crop_pixel
    return _Similarities(factor, target.mean() - factor * pixels.mean(-1), np.nan_to_num(misfit, nan=np.inf))


def _inverse_similarity(factor: complex, shift: complex) -> NDArray[np.float64]:
    """Return the inverse of z -> factor * z + shift as a real matrix [2, 3]."""
    inverse, back = 1 / factor, -shift / factor
    return np.array([[inverse.real, -inverse.imag, back.real], [inverse.imag, inverse.real, back.imag]])
