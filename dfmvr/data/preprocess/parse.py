"""Region labels of face crops: by a network, or drawn from the 68 landmarks.

Axis letters: N pictures, S side of a crop, K landmark.
"""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from dfmvr.data.preprocess.settings import PreprocessSettings
from dfmvr.networks.parser import SHIPPED, FaceParser
from dfmvr.types import REGION_NAMES

Array = NDArray[Any]

CELEBAMASK_19 = (
    *("background", "skin", "left_brow", "right_brow", "left_eye", "right_eye", "background", "background"),
    *("background", "background", "nose", "mouth", "upper_lip", "lower_lip"),
    *("background", "background", "background", "background", "background"),
)
"""Our region for each class of networks trained on CelebAMask-HQ: background, skin, brows, eyes, glasses,
ears, earring, nose, mouth, lips, neck, necklace, cloth, hair, hat. Programs disagree about left and right."""

_EXPORTED_SIDE = 512
_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_LABEL = {name: label for label, name in enumerate(REGION_NAMES)}
_EYES, _BROWS = (
    ((range(36, 42), "right_eye"), (range(42, 48), "left_eye")),
    (
        (range(17, 22), "right_brow"),
        (range(22, 27), "left_brow"),
    ),
)
_FOREHEAD = 0.55
"""Height of the forehead above the brows, in lengths from the brows to the bottom of the nose."""
_BROW_THICKNESS = 0.07
"""Of a brow, in the same lengths times two."""
_SHIFT = 4
"""Bits of a pixel's fraction in OpenCV's drawing."""


class Parser(Protocol):
    """Labels the pixels of face crops."""

    def __call__(self, images: Array, landmarks: Array) -> NDArray[np.uint8]:
        """Return labels 0-9 [N, S, S] of crops [N, S, S, 3] uint8 with landmarks [N, 68, 2] pixels."""
        ...


def build_parser(settings: PreprocessSettings, device: str | None = None) -> Parser:
    """Return the parser that the settings name.

    Args:
        settings: parser and parser_weights.
        device: for networks; None takes the GPU where there is one.

    Raises:
        WeightsError: weights are missing or damaged.
        ValueError: a file of weights is no exported network.
    """
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    name, weights = resolve_parser(settings), settings.parser_weights
    match name:
        case "landmarks":
            return draw_regions
        case "bisenet" if weights.endswith(".pt2"):
            return ExportedParser(weights, device)
        case "bisenet":
            return NetworkParser(FaceParser.load(weights or SHIPPED).to(device), device)
        case _:
            raise ValueError(f"preprocess.parser: expected bisenet or landmarks, got {name!r}")


def resolve_parser(settings: PreprocessSettings) -> str:
    """Return which parser `auto` stands for here, or the one that is named."""
    if settings.parser != "auto":
        return settings.parser
    return "bisenet" if settings.parser_weights else "landmarks"


class NetworkParser:
    """A BiSeNet of this project."""

    def __init__(self, network: FaceParser, device: str) -> None:
        self._network, self._device = network, device

    def __call__(self, images: Array, landmarks: Array) -> NDArray[np.uint8]:
        """As Parser; the landmarks are not looked at."""
        return self._network(_as_tensor(images).to(self._device)).to(torch.uint8).cpu().numpy()


class ExportedParser:
    """Any network saved by `torch.export.save`, of our 10 classes or CelebAMask-HQ's 19.

    It takes one picture [1, 3, 512, 512], normalised by ImageNet's mean and deviation, and returns scores
    [1, classes, h, w] (or a sequence whose first item they are).

    Args:
        path: the file (.pt2).
        device: where to compute.

    Raises:
        ValueError: the file is no exported network.
    """

    def __init__(self, path: str, device: str) -> None:
        if not Path(path).is_file() or not zipfile.is_zipfile(path):
            raise ValueError(
                f"{path}: expected a network saved by torch.export.save (.pt2), got something else"
            )
        try:
            self._network = torch.export.load(path).module().to(device)
        except (RuntimeError, ValueError, KeyError, OSError, TypeError) as error:
            raise ValueError(
                f"{path}: expected a network saved by torch.export.save, got: {error}"
            ) from error
        self._path, self._device = path, device

    @torch.no_grad()
    def __call__(self, images: Array, landmarks: Array) -> NDArray[np.uint8]:
        """As Parser; landmarks decide which brow and which eye a pixel belongs to.

        Raises:
            ValueError: the network returns neither 10 nor 19 classes.
        """
        mean, std = (torch.tensor(values)[:, None, None] for values in (_IMAGENET_MEAN, _IMAGENET_STD))
        scaled = functional.interpolate(
            _as_tensor(images), (_EXPORTED_SIDE,) * 2, mode="bilinear", antialias=True
        )
        labels = [self._labels(image, images.shape[1]) for image in ((scaled - mean) / std)[:, None]]
        return np.stack([_sided(*pair) for pair in zip(labels, landmarks, strict=True)])

    def _labels(self, image: torch.Tensor, size: int) -> NDArray[np.uint8]:
        result = self._network(image.to(self._device))
        scores = result if isinstance(result, torch.Tensor) else result[0]
        classes = scores.shape[1]
        if classes not in (len(REGION_NAMES), len(CELEBAMASK_19)):
            raise ValueError(
                f"{self._path}: expected scores of {len(REGION_NAMES)} or {len(CELEBAMASK_19)} classes, "
                f"got {classes}"
            )
        found = functional.interpolate(scores, (size, size), mode="bilinear").argmax(1)[0].cpu().numpy()
        names = REGION_NAMES if classes == len(REGION_NAMES) else CELEBAMASK_19
        return np.array([_LABEL[name] for name in names], np.uint8)[found]


def draw_regions(images: Array, landmarks: Array) -> NDArray[np.uint8]:
    """Draw the regions as polygons through the landmarks: a Parser that needs no weights.

    Hair, hands and glasses before the face are not seen, and the forehead's height is a guess.
    """
    side = images.shape[1]
    return np.stack([_draw(np.asarray(points, np.float64), side) for points in landmarks])


def _draw(points: NDArray[np.float64], side: int) -> NDArray[np.uint8]:
    labels = np.zeros((side, side), np.uint8)
    brows = points[17:27]
    length = float(np.linalg.norm(brows.mean(0) - points[33]))
    up = (brows.mean(0) - points[33]) / max(length, 1e-6)
    outline = np.concatenate([points[:17], brows + up * length * _FOREHEAD])
    _fill(labels, cv2.convexHull(outline.astype(np.float32))[:, 0], "skin")
    _fill(labels, points[[27, 31, 32, 33, 34, 35]], "nose")
    for ids, name in _BROWS:
        thickness = max(1, round(2 * length * _BROW_THICKNESS))
        cv2.polylines(labels, [_fixed(points[ids])], False, _LABEL[name], thickness, shift=_SHIFT)
    for ids, name in _EYES:
        _fill(labels, points[ids], name)
    _fill(labels, points[[*range(48, 55), 64, 63, 62, 61, 60]], "upper_lip")
    _fill(labels, points[[48, *range(59, 53, -1), 64, 65, 66, 67, 60]], "lower_lip")
    _fill(labels, points[60:68], "mouth", border=False)
    return labels


def _fill(labels: NDArray[np.uint8], polygon: Array, name: str, border: bool = True) -> None:
    """Fill a polygon [K, 2]; without its border, a closed mouth has no inside."""
    x, y = polygon[:, 0], polygon[:, 1]
    area = abs(float(x @ np.roll(y, 1) - y @ np.roll(x, 1))) / 2
    if border or area > len(polygon):
        cv2.fillPoly(labels, [_fixed(polygon)], _LABEL[name], shift=_SHIFT)


def _fixed(points: Array) -> NDArray[np.int32]:
    """Points as OpenCV draws them: fixed-point, a pixel's centre at whole numbers."""
    return np.round((np.asarray(points, np.float64) - 0.5) * 2**_SHIFT).astype(np.int32)


def _sided(labels: NDArray[np.uint8], points: Array) -> NDArray[np.uint8]:
    """Give every pixel of brows and eyes to the side whose landmarks are nearer."""
    rows, columns = np.indices(labels.shape) + 0.5
    for (right_ids, right), (left_ids, left) in (_BROWS, _EYES):
        here = (labels == _LABEL[right]) | (labels == _LABEL[left])
        distances = [
            np.hypot(columns - points[list(ids), 0].mean(), rows - points[list(ids), 1].mean())
            for ids in (right_ids, left_ids)
        ]
        labels[here] = np.where(distances[0] <= distances[1], _LABEL[right], _LABEL[left])[here]
    return labels


def _as_tensor(images: Array) -> torch.Tensor:
    """Pictures [N, S, S, 3] uint8 -> [N, 3, S, S] float32 in [0, 1]."""
    return torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float() / 255
