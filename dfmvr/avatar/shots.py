"""The given photographs as the texture needs them: finely cut, with what they show and where."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dfmvr.data.preprocess.crop import Crop, five_points
from dfmvr.networks.parser import FaceParser
from dfmvr.predictor import Photo, PreparedViews
from dfmvr.types import FaceParams, Reconstruction

SHOT_SIZE = 1024
"""Side in pixels of the crops that colours are taken from: 4.6 pixels a millimetre."""
_JAW_POINTS = 17
"""The first iBUG points lie on the visible outline, not on fixed places of the head: they do not count."""


@dataclass(frozen=True, eq=False)
class Shot:
    """One view of the head, and how it was seen."""

    image: NDArray[np.uint8]
    """[S, S, 3] sRGB."""
    shown: NDArray[np.bool_]
    """[S, S]: the picture shows the face here, no hair, background or edge of the photograph."""
    intrinsics: Tensor
    """[3, 3] pixels of the image."""
    rotation: Tensor
    """[3, 3] as FaceParams."""
    translation: Tensor
    """[3] mm."""
    light: Tensor
    """[9, 3]."""
    expected: NDArray[Any] | None = None
    """[K, 2] pixels: where the reconstruction has its landmarks."""
    found: NDArray[Any] | None = None
    """[K, 2] pixels: where they were found in the photograph."""


def take_shots(photos: Mapping[str, Photo], views: PreparedViews, face: Reconstruction) -> list[Shot]:
    """Cut each given photograph anew, as finely as it is.

    Args:
        photos: by view name, as they were prepared.
        views: what `Predictor.prepare` made of them.
        face: what `Predictor.reconstruct` made of that.
    """
    parser = FaceParser.load()
    params = face.params.to("cpu")
    return [
        _take_shot(photos[name], views.crops[v], face, params, v, parser)
        for v, name in enumerate(views.names)
        if name in photos
    ]


def _take_shot(
    photo: Photo, crop: Crop, face: Reconstruction, params: FaceParams, view: int, parser: FaceParser
) -> Shot:
    scale = SHOT_SIZE / crop.size
    fine = dataclasses.replace(crop, size=SHOT_SIZE, to_crop=crop.to_crop * scale)
    pixels = photo.image
    if pixels.dtype != np.uint8:
        pixels = np.round(pixels * 255).astype(np.uint8)
    image = fine.cut(np.ascontiguousarray(pixels))
    if photo.mask is None:
        labels = parser(torch.from_numpy(image).permute(2, 0, 1)[None] / 255)[0].numpy()
        labels = labels * fine.cut_mask(np.ones(pixels.shape[:2], np.uint8))
    else:
        labels = fine.cut_mask(photo.mask.astype(np.uint8))
    intrinsics = face.intrinsics[view].cpu().clone()
    intrinsics[:2] *= scale
    points = face.landmarks_2d[view].cpu() * scale
    found = None if photo.points is None else fine.points_to_crop(photo.points)
    expected = points if found is None or len(found) == len(points) else five_points(points)
    if found is not None and len(found) == len(points):
        expected, found = points[_JAW_POINTS:], found[_JAW_POINTS:]
    return Shot(
        image,
        labels > 0,
        intrinsics,
        params.rotation[view],
        params.translation[view],
        params.light[view],
        expected.numpy(),
        found,
    )
