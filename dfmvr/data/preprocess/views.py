"""One cropped view of a sample, and whether several of them show one sharp, rigid face."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from dfmvr.data.preprocess.crop import Crop
from dfmvr.data.preprocess.detect import Picture8
from dfmvr.geometry.camera import FOCAL_AT_224, SUBJECT_DISTANCE

SHARPNESS_SIDE = 112
"""Pixels a side at which sharpness is measured, whatever the crops' own size."""
_JAW_POINTS = 17


@dataclass(frozen=True, eq=False)
class CroppedView:
    """One view as a sample holds it, but for its mask."""

    image: Picture8
    """[S, S, 3]."""
    landmarks: NDArray[np.float32]
    """[68, 2] pixels of the crop."""
    weights: NDArray[np.float32]
    """[68] in [0, 1]."""
    intrinsics: NDArray[np.float32]
    """[3, 3]."""
    crop: Crop


def measure_sharpness(image: Picture8) -> float:
    """Return the variance of the Laplacian of a crop [S, S, 3], seen at SHARPNESS_SIDE."""
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    if len(grey) != SHARPNESS_SIDE:
        grey = cv2.resize(grey, (SHARPNESS_SIDE, SHARPNESS_SIDE), interpolation=cv2.INTER_AREA)
    return float(cv2.Laplacian(grey, cv2.CV_64F).var())


def view_disagreement(views: Sequence[CroppedView]) -> float:
    """Return how far the views' landmarks lie from the projections of the rigid points that fit them best.

    The points are found by least squares in the poses that the crops were fitted with; the outline does not
    count, as it is another line of the head in each view.

    Returns:
        Root-mean-square distance in mm; 0 for a single view.
    """
    if len(views) < 2:
        return 0.0
    size = views[0].crop.size
    mm_per_pixel = SUBJECT_DISTANCE / (FOCAL_AT_224 * size / 224)
    flips = np.array([1.0, -1.0])  # y: down in pictures, up in space
    seen = [
        (view.landmarks[_JAW_POINTS:].astype(np.float64) - size / 2) * mm_per_pixel * flips for view in views
    ]
    rotations = [view.crop.rotation.astype(np.float64) for view in views]
    axes = np.concatenate([rotation[:2] for rotation in rotations])  # [2V, 3]
    depths = [np.ones(len(points)) for points in seen]
    for _ in range(3):  # nearer points look larger: their places tell the depths, and those the places
        flat = [points * depth[:, None] for points, depth in zip(seen, depths, strict=True)]
        centred = np.concatenate([(points - points.mean(0)).T for points in flat])  # [2V, K]
        shape = np.linalg.lstsq(axes, centred, rcond=None)[0]
        depths = [1 - (rotation[2] @ shape) / SUBJECT_DISTANCE for rotation in rotations]
    residual = centred - axes @ shape
    return float(np.sqrt((residual**2).sum() / (len(views) * residual.shape[1])))


def crop_intrinsics(intrinsics: NDArray[np.floating], crop: Crop) -> NDArray[np.float64]:
    """Return a crop's pinhole matrix from its photograph's; the crop's turn becomes the camera's roll."""
    changed = np.array(intrinsics, np.float64)
    changed[:2] *= crop.scale
    changed[:2, 2] = crop.points_to_crop(np.asarray(intrinsics, np.float64)[None, :2, 2])[0]
    return changed
