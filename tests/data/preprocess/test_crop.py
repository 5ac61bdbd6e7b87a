"""Crops from points: the pose and the similarity that a projected face was made with come back."""

import numpy as np
import pytest
import torch

from dfmvr.data.preprocess.crop import Crop, fit_crop, five_points
from dfmvr.geometry.camera import default_intrinsics, project, to_camera
from dfmvr.geometry.rotation import euler_to_matrix
from dfmvr.morphable.model import MorphableModel

SIZE = 112
FRONTAL_POINTS = np.array([[203, 101], [247, 104], [224, 125], [203, 140], [246, 141]], float)
"""Of scikit-image's astronaut."""


@pytest.fixture(scope="module")
def face_model() -> MorphableModel:
    return MorphableModel.load(level=1)


def project_mean(face_model: MorphableModel, pitch: float, yaw: float) -> torch.Tensor:
    """Return the mean face's 68 landmarks in a crop, posed in degrees."""
    rotation = euler_to_matrix(torch.deg2rad(torch.tensor([pitch, yaw, 0.0])))
    camera = to_camera(face_model.mean_shape[face_model.landmarks_68], rotation, torch.zeros(3))
    return project(camera, default_intrinsics(SIZE))


def move(points: np.ndarray, scale: float, degrees: float, shift: tuple[float, float]) -> np.ndarray:
    """Carry points of a crop into a photograph."""
    turn = np.exp(1j * np.radians(degrees)) * scale
    moved = (points @ [1, 1j]) * turn + complex(*shift)
    return np.stack([moved.real, moved.imag], -1)


@pytest.mark.parametrize(("pitch", "yaw", "nominal"), [(0, 0, 0), (12, 25, 0), (-8, -50, -45), (5, 40, 45)])
@pytest.mark.parametrize("n_points", [5, 68])
def test_pose_and_similarity_come_back(
    face_model: MorphableModel, pitch: float, yaw: float, nominal: float, n_points: int
):
    in_crop = project_mean(face_model, pitch, yaw)
    all_in_crop = in_crop.numpy().astype(float)
    given = five_points(in_crop).numpy() if n_points == 5 else in_crop.numpy()
    photo_points = move(given.astype(float), 3.0, 20.0, (400.0, 150.0))
    crop = fit_crop(photo_points, face_model, SIZE, np.radians(nominal))
    degrees = 4.5 if n_points == 5 else 1.0  # five points leave room for the prior
    expected = euler_to_matrix(torch.deg2rad(torch.tensor([pitch, yaw, 0.0]))).numpy()
    angle = np.degrees(np.arccos(np.clip((np.trace(crop.rotation @ expected.T) - 1) / 2, -1, 1)))
    assert angle < degrees
    all_moved = move(all_in_crop, 3.0, 20.0, (400.0, 150.0))
    error = np.abs(crop.points_to_crop(all_moved) - all_in_crop).max()
    assert error < (3.5 if n_points == 5 else 0.5)
    assert crop.scale == pytest.approx(1 / 3, rel=0.06)


def test_points_go_to_the_crop_and_back(face_model: MorphableModel):
    crop = fit_crop(FRONTAL_POINTS, face_model, SIZE)
    np.testing.assert_allclose(crop.points_to_photo(crop.points_to_crop(FRONTAL_POINTS)), FRONTAL_POINTS)


def test_pictures_and_points_are_carried_alike(face_model: MorphableModel):
    """A dot at a point of the photograph lies at the carried point of the crop, to a part of a pixel."""
    crop = fit_crop(FRONTAL_POINTS, face_model, SIZE)
    rows, columns = np.mgrid[0:300, 0:400] + 0.5  # pixel centres
    for point in FRONTAL_POINTS:
        blob = 255 * np.exp(-((columns - point[0]) ** 2 + (rows - point[1]) ** 2) / (2 * 3.0**2))
        cut = crop.cut(np.repeat(blob[..., None], 3, -1).astype(np.uint8))[..., 0].astype(float)
        ys, xs = np.mgrid[0:SIZE, 0:SIZE] + 0.5
        centre = np.array([(xs * cut).sum(), (ys * cut).sum()]) / cut.sum()
        np.testing.assert_allclose(centre, crop.points_to_crop(point[None])[0], atol=0.1)


def test_shrinking_does_not_alias():
    stripes = np.zeros((400, 400, 3), np.uint8)
    stripes[:, ::2] = 255
    crop = Crop(np.array([[0.26, 0, 0], [0, 0.26, 0]]), 100, np.eye(3, dtype=np.float32), 0.0)
    assert np.ptp(crop.cut(stripes)[10:90, 10:90].astype(int)) < 30


def test_masks_keep_their_labels():
    mask = np.zeros((50, 50), np.uint8)
    mask[10:40, 10:40] = 9
    crop = Crop(np.array([[1.3, 0.2, -5], [-0.2, 1.3, 5]]), 60, np.eye(3, dtype=np.float32), 0.0)
    assert set(np.unique(crop.cut_mask(mask))) == {0, 9}


@pytest.mark.parametrize(
    ("points", "message"),
    [
        (np.zeros((4, 2)), r"expected \[5, 2\].*right eye.*or \[68, 2\].*got \[4, 2\]"),
        (np.full((5, 2), np.nan), "expected finite pixels"),
        (np.zeros((5, 2)), "off any pose"),
        (FRONTAL_POINTS[[1, 0, 2, 4, 3]], r"tip of the nose.* off any pose"),
        (FRONTAL_POINTS[[0, 1, 2, 4, 3]], "off any pose"),
        (FRONTAL_POINTS * [1, -1], "off any pose"),
    ],
)
def test_points_of_no_face_are_refused(face_model: MorphableModel, points: np.ndarray, message: str):
    with pytest.raises(ValueError, match=message):
        fit_crop(points, face_model, SIZE)
