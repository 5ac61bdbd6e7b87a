"""Where the faces of a picture are."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

DETECTION_SIDE = 640
"""Pictures are looked at with their longer side shrunk to this: faces down to an eighth of it are found."""
MIN_SCORE = 0.0
SURE_SCORE = 0.3
"""A second face below this score is more often a pattern than a face."""
BYSTANDER_SHARE = 0.5
"""Further faces in a picture are passers-by when smaller than this share of the largest one's side."""

Reason = Literal["unreadable", "no face", "several faces", "blurred", "missing view", "landmark disagreement"]
Picture8 = NDArray[np.uint8]


class PictureRejected(ValueError):
    """A picture yields no sample; `reason` is one of a few words, the message says more."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}"


class PackageMissing(ValueError):
    """A backend's package or weights are not there; the message says how to get them."""


@dataclass(frozen=True, eq=False)
class Face:
    """One face of a picture."""

    box: NDArray[np.float64]
    """[4] pixels: left, top, right, bottom."""
    score: float
    """Larger is surer; above SURE_SCORE it is hardly ever a mistake."""
    mirrored: bool = False
    """It was seen better in the mirror image (the box is the picture's own)."""

    @property
    def side(self) -> float:
        """Mean side of the box in pixels."""
        return float(self.box[2:].sum() - self.box[:2].sum()) / 2


def choose_face(faces: Sequence[Face], bystander_share: float) -> Face:
    """Return the picture's one face, leaving passers-by aside.

    Args:
        faces: all that were found.
        bystander_share: faces smaller than this share of the largest one's side do not count.

    Raises:
        PictureRejected: there is none, or more than one.
    """
    if not faces:
        raise PictureRejected("no face", "expected one face, found none")
    largest = max(faces, key=lambda face: face.side)
    rivals = [
        face for face in faces if face.score >= SURE_SCORE and face.side >= bystander_share * largest.side
    ]
    if len(rivals) > 1:
        boxes = ", ".join(f"{face.side:.0f} px at x={face.box[0]:.0f} y={face.box[1]:.0f}" for face in rivals)
        raise PictureRejected("several faces", f"expected one face, found {len(rivals)}: {boxes}")
    return rivals[0] if rivals else max(faces, key=lambda face: face.score)


class DlibDetector:
    """dlib's detector of gradients: heads turned by up to some 40 degrees.

    Raises:
        PackageMissing: dlib-bin is not installed.
    """

    def __init__(self) -> None:
        self._detector = load_dlib().get_frontal_face_detector()

    def __call__(self, image: Picture8) -> list[Face]:
        """Return the faces of a picture [H, W, 3], the surest first.

        The mirror image is looked at too, as heads turned to one side are seen better than to the other.
        """
        small, scale = shrink(image, DETECTION_SIDE)
        width = image.shape[1]
        seen = [Face(box / scale, score) for box, score in self._run(small)]
        for (left, top, right, bottom), score in self._run(np.ascontiguousarray(small[:, ::-1])):
            box = np.array([width - right / scale, top / scale, width - left / scale, bottom / scale])
            seen.append(Face(box, score, mirrored=True))
        return _without_doubles(seen)

    def _run(self, image: Picture8) -> list[tuple[NDArray[np.float64], float]]:
        boxes, scores, _ = self._detector.run(image, 0, MIN_SCORE)
        edges = [(box.left(), box.top(), box.right() + 1, box.bottom() + 1) for box in boxes]
        return [(np.array(box, np.float64), float(score)) for box, score in zip(edges, scores, strict=True)]


def load_dlib() -> Any:
    """Return the module dlib.

    Raises:
        PackageMissing: it is not installed.
    """
    try:
        import dlib
    except ImportError as error:
        raise PackageMissing(
            "expected the package dlib-bin, which finds faces and landmarks; pip install 'dfmvr[photos-dlib]'"
        ) from error
    return dlib


def dlib_file(name: str) -> Path:
    """Return where a file of face-recognition-models lies; the package itself cannot be imported any more.

    Raises:
        PackageMissing: it is not installed.
    """
    spec = importlib.util.find_spec("face_recognition_models")
    folders = list(spec.submodule_search_locations or ()) if spec else []
    for folder in folders:
        path = Path(folder) / "models" / name
        if path.is_file():
            return path
    raise PackageMissing(
        f"expected the package face-recognition-models with its file models/{name}, got "
        f"{'no such file in ' + folders[0] if folders else 'none'}; pip install 'dfmvr[photos-dlib]'"
    )


def shrink(image: Picture8, side: int) -> tuple[Picture8, float]:
    """Shrink a picture so that its longer side has at most `side` pixels; return it and the factor."""
    import cv2

    scale = min(1.0, side / max(image.shape[:2]))
    if scale == 1.0:
        return np.ascontiguousarray(image), 1.0
    size = tuple(max(1, round(length * scale)) for length in image.shape[1::-1])
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.uint8), scale


def _without_doubles(faces: Sequence[Face]) -> list[Face]:
    """Keep the surest of faces whose centres lie within one another."""
    kept: list[Face] = []
    for face in sorted(faces, key=lambda face: -face.score):
        centre = (face.box[:2] + face.box[2:]) / 2
        if not any((k.box[:2] <= centre).all() and (centre <= k.box[2:]).all() for k in kept):
            kept.append(face)
    return kept
