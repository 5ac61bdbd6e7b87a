"""Finding faces and landmarks: with dlib on a photograph, and given."""

from __future__ import annotations

import sys
from collections.abc import Callable

import cv2
import numpy as np
import pytest

from dfmvr.data.preprocess import detect
from dfmvr.data.preprocess.detect import Face, PackageMissing, PictureRejected, choose_face, dlib_file
from dfmvr.data.preprocess.landmark import (
    MIRROR_68,
    DlibFinder,
    Landmarks,
    build_finder,
    landmark_weights,
    parse_landmarks,
)

FIVE_BY_EYE = np.array([[203, 101], [247, 104], [224, 125], [203, 140], [246, 141]], float)
"""The astronaut's eyes, tip of the nose and corners of the mouth."""


def five(points: np.ndarray) -> np.ndarray:
    return np.stack([points[36:42].mean(0), points[42:48].mean(0), points[30], points[48], points[54]])


@pytest.fixture(scope="module")
def finder() -> DlibFinder:
    return DlibFinder(0.5)


def test_dlib_finds_the_landmarks_of_a_photograph(finder: DlibFinder, astronaut: np.ndarray) -> None:
    (found,) = finder([astronaut])
    assert isinstance(found, Landmarks)
    assert np.abs(five(found.points) - FIVE_BY_EYE).max() < 6
    assert found.points[0, 0] < found.points[16, 0]  # the subject's right is the picture's left
    assert found.weights.tolist() == [1.0] * 68


def test_larger_mirrored_and_faceless_pictures_in_one_batch(
    finder: DlibFinder, astronaut: np.ndarray
) -> None:
    large = cv2.resize(astronaut, (2048, 2048), interpolation=cv2.INTER_CUBIC)
    mirrored = np.ascontiguousarray(astronaut[:, ::-1])
    noise = np.random.default_rng(0).integers(0, 256, (200, 300, 3), np.uint8)
    once, big, other, none = finder([astronaut, large, mirrored, noise])
    assert np.abs(big.points / 4 - once.points).max() < 6
    swapped = other.points[MIRROR_68] * [-1, 1] + [512, 0]
    assert np.abs(swapped - once.points).max() < 6
    assert isinstance(none, PictureRejected)
    assert str(none) == "no face: expected one face, found none"


def test_two_faces_are_refused_and_a_passer_by_is_not(finder: DlibFinder, astronaut: np.ndarray) -> None:
    face = astronaut[:260, 100:350]
    two, _ = finder([np.concatenate([face, face], 1), face])
    assert isinstance(two, PictureRejected)
    assert two.reason == "several faces"
    assert "expected one face, found 2: " in two.detail


def test_the_one_face_is_chosen() -> None:
    def face(side: float, score: float) -> Face:
        return Face(np.array([0, 0, side, side]), score)

    sure, small, doubtful = face(100, 1.0), face(45, 0.9), face(120, 0.1)
    assert choose_face([sure, small], 0.5) is sure
    assert choose_face([doubtful, sure], 0.5) is sure
    assert choose_face([doubtful], 0.5) is doubtful
    with pytest.raises(PictureRejected, match=r"several faces: expected one face, found 2: 100 px .*, 45"):
        choose_face([sure, small], 0.4)
    with pytest.raises(PictureRejected, match="no face"):
        choose_face([], 0.5)


def test_mirroring_twice_is_nothing(project_mean: Callable[[float, int], np.ndarray]) -> None:
    np.testing.assert_array_equal(MIRROR_68[MIRROR_68], np.arange(68))
    left, right = project_mean(-30, 100), project_mean(30, 100)
    np.testing.assert_allclose(left[MIRROR_68] * [-1, 1] + [100, 0], right, atol=1.5)


def test_a_missing_package_is_told_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "dlib", None)
        with pytest.raises(PackageMissing, match=r"dlib-bin.* pip install 'dfmvr\[photos-dlib\]'"):
            build_finder("auto", 0.5)
        patch.setitem(sys.modules, "face_alignment", None)
        with pytest.raises(PackageMissing, match=r"face-alignment; pip install 'dfmvr\[photos\]'"):
            build_finder("face_alignment", 0.5)
    monkeypatch.setattr(detect.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(PackageMissing, match=r"face-recognition-models with its file models/a.dat, got none"):
        dlib_file("a.dat")
    with pytest.raises(ValueError, match="expected auto, dlib or face_alignment, got 'mtcnn'"):
        build_finder("mtcnn", 0.5)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"[[1, 2]]", r"p.json: expected a JSON list of 68 \(or 5\) pairs .* got numbers of shape \[1, 2\]"),
        (b"{", "p.json: expected .* got something else"),
        (b"[[1, 2], [3]]", "p.json: expected .* got something else"),
        (b"[[1, NaN], [1, 2], [1, 2], [1, 2], [1, 2]]", "finite"),
    ],
)
def test_wrong_landmark_files_are_refused(data: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_landmarks(data, "p.json")


def test_landmark_files_are_read() -> None:
    assert parse_landmarks(str(FIVE_BY_EYE.tolist()).encode(), "p.json").tolist() == FIVE_BY_EYE.tolist()


def test_landmarks_that_the_head_hides_count_less() -> None:
    normals = np.zeros((68, 3))
    normals[:, 2] = 1
    normals[[2, 40], 2] = -1
    weights = landmark_weights(normals, np.eye(3), np.full(68, 0.8, np.float32))
    assert weights[[0, 2, 40, 60]].tolist() == pytest.approx([0.8, 0.12, 0.4, 0.8])
