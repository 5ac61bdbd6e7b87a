import cv2
import numpy as np
import pytest
import torch

from dfmvr.morphable.model import MorphableModel
from dfmvr.visualize import BACKDROP, REGION_COLOURS, draw_face, draw_face_model_sheet


@pytest.fixture(scope="module")
def face():
    return MorphableModel.load(level=1)


def test_a_face_is_drawn_where_its_vertices_project(face):
    labels = torch.tensor(REGION_COLOURS)[face.labels]
    picture, pixels = draw_face(face, face.mean_shape, labels, image_size=96)
    assert picture.shape == (96, 96, 3)
    assert pixels.shape == (len(face.mean_shape), 2)
    np.testing.assert_allclose(picture[0, 0], BACKDROP, atol=1e-6)
    column, row = pixels[face.landmarks_68[30]].astype(int)
    nose = picture[row, column]
    assert nose[2] > nose[0], "the nose's label is blue"


@pytest.mark.parametrize(("yaw", "shown"), [(-0.8, "left"), (0.8, "right")])
def test_yaw_shows_the_side_that_the_conventions_say(face, yaw, shown):
    _, pixels = draw_face(face, face.mean_shape, face.mean_albedo, yaw, 64)
    tip, between = pixels[face.landmarks_68[30]], pixels[face.landmarks_68[27]]
    assert (tip[0] < between[0]) == (shown == "left")


@pytest.mark.slow
def test_sheet(tmp_path):
    draw_face_model_sheet(tmp_path / "new" / "sheet.png")
    picture = cv2.imread(str(tmp_path / "new" / "sheet.png"))
    assert picture.shape[1] == 2000
    assert picture.std() > 20
