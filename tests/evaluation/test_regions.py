from __future__ import annotations

import numpy as np
import pytest
import trimesh

from dfmvr.evaluation.regions import REGIONS, UNMEASURED, face_regions, nearest_regions, seen_from_outside
from dfmvr.morphable.model import MorphableModel
from dfmvr.types import REGION_NAMES


@pytest.fixture(scope="module")
def regions(dense_model: MorphableModel) -> np.ndarray:
    return face_regions(
        dense_model.mean_shape.numpy(),
        dense_model.triangles.numpy(),
        dense_model.labels.numpy(),
        dense_model.landmarks_68.numpy(),
    )


def at_landmark(regions: np.ndarray, model: MorphableModel, index: int) -> str:
    return REGIONS[regions[model.landmarks_68[index]]]


@pytest.mark.parametrize(
    ("landmark", "name"),
    [
        (30, "nose"),
        (27, "nose"),
        (8, "chin"),
        (37, "eyes_brows"),
        (24, "eyes_brows"),
        (48, "mouth"),
        (57, "mouth"),
    ],
)
def test_landmarks_lie_where_their_names_say(
    regions: np.ndarray, dense_model: MorphableModel, landmark: int, name: str
) -> None:
    assert at_landmark(regions, dense_model, landmark) == name


def test_every_region_is_there_and_none_swallows_the_face(
    regions: np.ndarray, dense_model: MorphableModel
) -> None:
    shares = np.bincount(regions[regions != UNMEASURED], minlength=len(REGIONS)) / len(regions)
    assert shares.min() > 0.02
    assert shares.max() < 0.5


def test_the_inside_of_the_mouth_is_not_measured(regions: np.ndarray, dense_model: MorphableModel) -> None:
    inside = dense_model.labels.numpy() == REGION_NAMES.index("mouth")
    assert (regions[inside] == UNMEASURED).all()
    skin = dense_model.labels.numpy() == REGION_NAMES.index("skin")
    assert (regions[skin] != UNMEASURED).mean() > 0.95


def test_the_backs_of_the_eyeballs_are_not_measured(regions: np.ndarray, dense_model: MorphableModel) -> None:
    eye = np.flatnonzero(dense_model.labels.numpy() == REGION_NAMES.index("left_eye"))
    depth = dense_model.mean_shape.numpy()[eye, 2]
    assert regions[eye[depth.argmax()]] == REGIONS.index("eyes_brows")
    assert regions[eye[depth.argmin()]] == UNMEASURED


def test_only_the_near_side_of_a_shell_is_seen(sphere: trimesh.Trimesh) -> None:
    inner = len(sphere.vertices)
    vertices = np.concatenate([sphere.vertices, 0.8 * sphere.vertices])
    seen = seen_from_outside(vertices, np.concatenate([sphere.faces, sphere.faces + inner]))
    assert not seen[inner:].any()
    assert seen[:inner][sphere.vertices[:, 2] > 0].all()


def test_regions_are_symmetric(regions: np.ndarray, dense_model: MorphableModel) -> None:
    assert np.mean(regions == regions[dense_model.mirror.numpy()]) > 0.99


def test_cheeks_lie_beside_and_the_forehead_above(regions: np.ndarray, dense_model: MorphableModel) -> None:
    shape = dense_model.mean_shape.numpy()
    middle = {name: shape[regions == index].mean(axis=0) for index, name in enumerate(REGIONS)}
    assert middle["forehead"][1] > middle["eyes_brows"][1] > middle["nose"][1] > middle["mouth"][1]
    assert middle["mouth"][1] > middle["chin"][1]
    assert np.abs(shape[regions == REGIONS.index("cheeks"), 0]).mean() > 30


def test_points_take_the_region_of_the_nearest_vertex() -> None:
    vertices = np.array([[0.0, 0, 0], [10, 0, 0]])
    points = np.array([[1.0, 0, 0], [9, 1, 0], [4, 0, 0]])
    np.testing.assert_array_equal(nearest_regions(points, vertices, np.array([3, 5], np.int8)), [3, 5, 3])
