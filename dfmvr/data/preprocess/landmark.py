"""The 68 landmarks of a face: found by dlib or by face_alignment, or given."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from dfmvr.data.preprocess.detect import (
    DETECTION_SIDE,
    DlibDetector,
    Face,
    PackageMissing,
    Picture8,
    PictureRejected,
    choose_face,
    dlib_file,
    load_dlib,
    shrink,
)
from dfmvr.types import N_LANDMARKS

LANDMARK_SIDE = 224
"""Side in pixels that a face is shrunk to before dlib looks for its landmarks."""

MIRROR_68 = np.array(
    [
        *range(16, -1, -1),  # outline
        *range(26, 16, -1),  # brows
        *range(27, 31),  # ridge of the nose
        *range(35, 30, -1),  # its bottom
        *(45, 44, 43, 42, 47, 46, 39, 38, 37, 36, 41, 40),  # eyes
        *(*range(54, 47, -1), *range(59, 54, -1)),  # outer lips
        *(*range(64, 59, -1), *range(67, 64, -1)),  # inner lips
    ]
)
"""Landmark k of a mirrored picture is landmark MIRROR_68[k] of the picture."""

DLIB_PREDICTOR = "shape_predictor_68_face_landmarks.dat"
_FAN_WEIGHTS = ("s3fd-619a316812.pth", "3DFAN4-7835d9f11d.pth.tar")
_NO_FACE_ALIGNMENT = "expected the package face-alignment; pip install 'dfmvr[photos]', or use dlib"
_FAN_SOURCE = "https://www.adrianbulat.com/downloads/python-fan"


@dataclass(frozen=True, eq=False)
class Landmarks:
    """The landmarks of one face."""

    points: NDArray[np.float64]
    """[68, 2] pixels, iBUG order."""
    weights: NDArray[np.float32]
    """[68] confidences in [0, 1]."""


class LandmarkFinder(Protocol):
    """Finds the one face of each picture, and its landmarks."""

    def __call__(self, images: Sequence[Picture8]) -> list[Landmarks | PictureRejected]:
        """Return for each picture [H, W, 3] its face's landmarks, or why there are none."""
        ...


class DlibFinder:
    """dlib's detector and its 68-point shape predictor; works offline, on the CPU.

    Args:
        bystander_share: as `choose_face` takes it.

    Raises:
        PackageMissing: dlib-bin or face-recognition-models is not installed.
    """

    def __init__(self, bystander_share: float) -> None:
        self._bystander_share = bystander_share
        self._dlib = load_dlib()
        path = dlib_file(DLIB_PREDICTOR)
        self._detect = DlibDetector()
        self._predict = self._dlib.shape_predictor(str(path))

    def __call__(self, images: Sequence[Picture8]) -> list[Landmarks | PictureRejected]:
        """Return for each picture [H, W, 3] its face's landmarks, or why there are none."""
        return [self._find(image) for image in images]

    def _find(self, image: Picture8) -> Landmarks | PictureRejected:
        try:
            face = choose_face(self._detect(image), self._bystander_share)
        except PictureRejected as rejected:
            return rejected
        small, scale = shrink(image, round(LANDMARK_SIDE * max(image.shape[:2]) / face.side))
        box, width = face.box * scale, small.shape[1]
        if face.mirrored:
            box = np.array([width - box[2], box[1], width - box[0], box[3]])
            mirrored = self._points(np.ascontiguousarray(small[:, ::-1]), box)
            points = mirrored[MIRROR_68] * [-1, 1] + [width, 0]
        else:
            points = self._points(small, box)
        return Landmarks(points / scale, np.ones(N_LANDMARKS, np.float32))

    def _points(self, image: Picture8, box: NDArray[np.float64]) -> NDArray[np.float64]:
        left, top, right, bottom = np.round(box).astype(int).tolist()
        shape = self._predict(image, self._dlib.rectangle(left, top, right - 1, bottom - 1))
        # dlib puts a pixel's centre at whole numbers, this project at +0.5.
        return np.array([(part.x + 0.5, part.y + 0.5) for part in shape.parts()], np.float64)


class FaceAlignmentFinder:
    """The package face_alignment: its S3FD detector and its network FAN, on the GPU where there is one.

    The points are projections of the head's own (3DFAN), as the synthetic set has them.

    Args:
        bystander_share: as `choose_face` takes it.
        device: where to compute; None takes the GPU where there is one.

    Raises:
        PackageMissing: the package is not installed, or weights are missing and cannot be downloaded.
    """

    def __init__(self, bystander_share: float, device: str | None = None) -> None:
        try:
            import face_alignment
        except ImportError as error:
            raise PackageMissing(_NO_FACE_ALIGNMENT) from error
        self._bystander_share = bystander_share
        folder = Path(torch.hub.get_dir()) / "checkpoints"
        try:
            self._network = face_alignment.FaceAlignment(
                face_alignment.LandmarksType.TWO_HALF_D,
                device=device or ("cuda" if torch.cuda.is_available() else "cpu"),
                flip_input=False,
                compile=False,
            )
        except OSError as error:  # urllib's errors are OSErrors
            missing = [name for name in _FAN_WEIGHTS if not (folder / name).is_file()]
            raise PackageMissing(
                f"expected the weights {' and '.join(missing) or 'of face_alignment'} in {folder}, got none, "
                f"and they cannot be downloaded ({error}); put {_FAN_SOURCE}/NAME there"
            ) from error

    def __call__(self, images: Sequence[Picture8]) -> list[Landmarks | PictureRejected]:
        """Return for each picture [H, W, 3] its face's landmarks, or why there are none."""
        return [self._find(image) for image in images]

    def _find(self, image: Picture8) -> Landmarks | PictureRejected:
        small, scale = shrink(image, DETECTION_SIDE)
        boxes = self._network.face_detector.detect_from_image(small)
        faces = [Face(np.array(box[:4], np.float64) / scale, float(box[4])) for box in boxes]
        try:
            face = choose_face(faces, self._bystander_share)
        except PictureRejected as rejected:
            return rejected
        found, scores, _ = self._network.get_landmarks_from_image(
            image, [face.box], return_landmark_score=True
        )
        return Landmarks(np.array(found[0], np.float64), np.clip(scores[0], 0, 1).astype(np.float32))


def build_finder(backend: str, bystander_share: float, device: str | None = None) -> LandmarkFinder:
    """Return what finds landmarks.

    Args:
        backend: dlib, face_alignment, or auto, which is dlib.
        bystander_share: as `choose_face` takes it.
        device: for networks; None takes the GPU where there is one.

    Raises:
        PackageMissing: its package or its weights are missing.
    """
    match backend:
        case "auto" | "dlib":
            return DlibFinder(bystander_share)
        case "face_alignment":
            return FaceAlignmentFinder(bystander_share, device)
        case _:
            raise ValueError(f"landmarks: expected auto, dlib or face_alignment, got {backend!r}")


def check_finder(backend: str) -> None:
    """Check that a backend is installed, without loading it; its weights may be missing still.

    Raises:
        PackageMissing: it is not.
    """
    if backend in ("auto", "dlib"):
        load_dlib()
        dlib_file(DLIB_PREDICTOR)
    elif backend == "face_alignment" and importlib.util.find_spec("face_alignment") is None:
        raise PackageMissing(_NO_FACE_ALIGNMENT)


def parse_landmarks(data: bytes, name: str) -> NDArray[np.float64]:
    """Read landmarks that a user wrote: JSON, a list of 68 (or five) pairs of pixels.

    Returns:
        [68, 2] in iBUG order, or [5, 2].

    Raises:
        ValueError: it is something else; the message names the file.
    """
    expected = "a JSON list of 68 (or 5) pairs [x, y] of finite pixels"
    try:
        points = np.array(json.loads(data), np.float64)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{name}: expected {expected}, got something else ({error})") from error
    if points.shape not in ((N_LANDMARKS, 2), (5, 2)) or not np.isfinite(points).all():
        raise ValueError(f"{name}: expected {expected}, got numbers of shape {list(points.shape)}")
    return points


def landmark_weights(
    normals: NDArray[np.floating], rotation: NDArray[np.floating], found: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Lower the confidence of landmarks that the head hides from the camera.

    Args:
        normals: [68, 3] of the mean face at the landmarks, model space.
        rotation: [3, 3] the head's rough pose.
        found: [68] confidences of the finder.

    Returns:
        [68] in [0, 1].
    """
    from dfmvr.data.datasets.detector import JAW, OCCLUDED_JAW_WEIGHT, OCCLUDED_WEIGHT

    hidden = (normals @ rotation.T)[:, 2] < 0
    weights: Any = np.where(hidden, OCCLUDED_WEIGHT, 1.0)
    weights[JAW] = np.where(hidden[JAW], OCCLUDED_JAW_WEIGHT, 1.0)
    return np.asarray(found * weights, np.float32)
