"""The Predictor, with a small untrained network: shapes, frames, missing views, and every refusal."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from dfmvr.geometry.camera import default_intrinsics, project, to_camera
from dfmvr.geometry.rotation import euler_to_matrix
from dfmvr.morphable.model import MorphableModel
from dfmvr.networks.face_network import build_network
from dfmvr.networks.settings import NetworkSettings
from dfmvr.networks.weights import ModelCard, WeightsError, save_model
from dfmvr.predictor import SHIPPED_MODEL, Photo, Predictor
from dfmvr.types import NINE_VIEWS, VIEW_NAMES

SIZE = 64
FULL = default_intrinsics(224)
POINTS = np.array([[203, 101], [247, 104], [224, 125], [203, 140], [246, 141]], float)


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    settings = NetworkSettings(width=1 / 16)
    card = ModelCard(
        network=settings,
        image_size=SIZE,
        view_names=VIEW_NAMES,
        face_model_hash=MorphableModel.load(level=1).hash,
        face_model_level=1,
        run_id="test",
        step=0,
        config_hash="",
        licence="CC0-1.0",
    )
    save_model(folder, build_network(settings), card)
    return folder


@pytest.fixture(scope="module")
def predictor(model_dir: Path) -> Predictor:
    return Predictor.load(model_dir)


@pytest.fixture
def photo() -> Photo:
    noise = np.random.default_rng(0).integers(0, 255, (300, 400, 3), np.uint8)
    return Photo(noise, POINTS)


def test_three_photographs_give_a_face_in_millimetres(predictor: Predictor, photo: Photo):
    face = predictor(dict.fromkeys(VIEW_NAMES, photo))
    n_vertices = len(predictor.face_model.mean_shape)
    assert face.mesh.vertices.shape == (n_vertices, 3)
    assert n_vertices > 30_000
    extent = face.mesh.vertices.amax(0) - face.mesh.vertices.amin(0)
    assert ((extent > 60) & (extent < 300)).all()
    assert face.mesh.colours is not None
    assert 0 <= face.mesh.colours.min() <= face.mesh.colours.max() <= 1
    assert face.landmarks_3d.shape == (68, 3)
    assert face.landmarks_2d.shape == (3, 68, 2)
    assert face.params.rotation.shape == (3, 3, 3)
    assert face.params.identity.shape == (80,)


def test_landmarks_in_pixels_are_the_projected_landmarks_in_millimetres(predictor: Predictor, photo: Photo):
    face = predictor({"front": photo})
    camera = to_camera(face.landmarks_3d, face.params.rotation, face.params.translation)
    torch.testing.assert_close(project(camera, face.intrinsics), face.landmarks_2d, atol=1e-3, rtol=0)
    torch.testing.assert_close(face.mesh.vertices[predictor.face_model.landmarks_68], face.landmarks_3d)


def test_a_batch_gives_the_same_faces_as_its_samples(predictor: Predictor, photo: Photo):
    one = predictor.prepare({"front": photo}).batch
    other = dataclasses.replace(one, images=one.images.flip(-1))
    both = dataclasses.replace(
        one,
        images=torch.cat([one.images, other.images]),
        masks=one.masks.repeat(2, 1, 1, 1),
        intrinsics=one.intrinsics.repeat(2, 1, 1, 1),
    )
    faces = predictor.predict_batch(both)
    for face, batch in zip(faces, (one, other), strict=True):
        alone = predictor.predict_batch(batch)[0]
        torch.testing.assert_close(face.mesh.vertices, alone.mesh.vertices, atol=1e-2, rtol=0)


def test_a_missing_view_is_filled_by_the_nearest_and_said_so(predictor: Predictor, photo: Photo):
    dark = Photo(photo.image // 4, POINTS)
    views = predictor.prepare({"left": dark, "front": photo})
    assert views.sources == ("left", "front", "front")
    assert torch.equal(views.batch.images[0, 1], views.batch.images[0, 2])
    face = predictor.reconstruct(views)
    assert any("no right view: the front view stands in for it" in text for text in face.warnings)
    complete = predictor(dict.fromkeys(VIEW_NAMES, photo))
    assert not any("stands in" in text for text in complete.warnings)


def test_a_network_with_view_flags_is_told_of_a_missing_view(
    tmp_path: Path, predictor: Predictor, photo: Photo
):
    torch.manual_seed(0)
    settings = NetworkSettings(width=1 / 16, view_flags=True)
    card = dataclasses.replace(predictor.card, network=settings)
    save_model(tmp_path, build_network(settings), card)
    telling = Predictor.load(tmp_path)
    views = telling.prepare({"left": photo, "front": photo})
    assert views.batch.view_present is not None
    assert views.batch.view_present.tolist() == [[True, True, False]]
    face = telling.reconstruct(views)
    assert any("no right view: nothing stands in for it" in text for text in face.warnings)
    dark = dataclasses.replace(
        views.batch, images=views.batch.images * torch.tensor([1, 1, 0]).view(3, 1, 1, 1)
    )
    assert torch.equal(telling.predict_params(dark).identity[0], face.params.identity)


def test_swapped_sides_are_pointed_out(predictor: Predictor, photo: Photo):
    turned = torch.tensor([[0.77, 0, 0.64], [0, 1, 0], [-0.64, 0, 0.77]])  # the nose to the image's right
    landmarks = predictor.face_model.mean_shape[predictor.face_model.landmarks_68]
    points = project(to_camera(landmarks, turned, torch.zeros(3)), default_intrinsics(224)).numpy()
    face = predictor({"left": Photo(photo.image, points), "front": photo})
    assert any("left view: the nose points to the image's right" in text for text in face.warnings)


def test_a_small_face_is_pointed_out(predictor: Predictor, photo: Photo):
    assert any("enlarged" in text for text in predictor({"front": Photo(photo.image, POINTS / 5)}).warnings)


def test_a_cropped_picture_needs_no_points(predictor: Predictor):
    image = np.random.default_rng(1).random((SIZE, SIZE, 3))
    views = predictor.prepare({"front": Photo(image)})
    np.testing.assert_allclose(views.batch.images[0, 1].permute(1, 2, 0), image, atol=0.6 / 255)


def test_without_a_mask_the_network_gets_none(predictor: Predictor, photo: Photo):
    assert not predictor.prepare({"front": Photo(photo.image, POINTS)}).batch.masks.any()


def test_a_given_mask_is_carried_into_the_crop(predictor: Predictor, photo: Photo):
    mask = np.full(photo.image.shape[:2], 7, np.uint8)
    views = predictor.prepare({"front": Photo(photo.image, POINTS, mask)})
    assert (views.batch.masks == 7).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"image": np.zeros((8, 8), np.uint8)}, r"image: expected \[H, W, 3\] RGB, got \[8, 8\]"),
        ({"image": np.full((8, 8, 3), 255.0)}, r"floating values in \[0, 1\], got float64 values from 255"),
        ({"image": np.full((8, 8, 3), np.nan)}, "floating values"),
        ({"image": np.zeros((8, 8, 3), np.int64)}, "got int64"),
        ({"image": np.zeros((8, 8, 3), np.uint8), "mask": np.zeros((4, 4))}, r"mask: expected \[8, 8\]"),
        ({"image": np.zeros((8, 8, 3), np.uint8), "mask": np.full((8, 8), 10)}, "expected labels 0 to 9"),
    ],
)
def test_photographs_are_checked(arguments: dict, message: str):
    with pytest.raises(ValueError, match=message):
        Photo(**arguments)


@pytest.mark.parametrize(
    ("photos", "message"),
    [
        ({}, "expected at least one of the views left, front, right, got"),
        ({"top": Photo(np.zeros((SIZE, SIZE, 3), np.uint8))}, "left, front, right, got \\['top'\\]"),
        ({"left": Photo(np.zeros((90, 80, 3), np.uint8))}, "left view: expected points.*got 80 x 90 without"),
        (
            {"front": Photo(np.zeros((90, 80, 3), np.uint8), np.zeros((3, 2)))},
            r"front view: points.*\[3, 2\]",
        ),
    ],
)
def test_views_are_checked(predictor: Predictor, photos: dict[str, Photo], message: str):
    with pytest.raises(ValueError, match=message):
        predictor(photos)


def test_a_model_of_another_face_model_is_refused(model_dir: Path, tmp_path: Path):
    card = json.loads((model_dir / "model.json").read_text())
    (tmp_path / "model.json").write_text(json.dumps(card | {"face_model_hash": "0" * 64}))
    (tmp_path / "weights.safetensors").write_bytes((model_dir / "weights.safetensors").read_bytes())
    with pytest.raises(WeightsError, match="trained with face model 000000000000"):
        Predictor.load(tmp_path)


def test_a_missing_model_is_an_error_not_random_weights(tmp_path: Path):
    with pytest.raises(WeightsError, match=r"model\.json: no such file"):
        Predictor.load(tmp_path)


@pytest.mark.skipif(not SHIPPED_MODEL.is_dir(), reason="this copy comes without trained weights")
def test_the_shipped_model_loads_and_is_small():
    predictor = Predictor.load()
    assert predictor.n_views == 3
    assert sum(path.stat().st_size for path in SHIPPED_MODEL.iterdir()) <= 25e6


@pytest.fixture(scope="module")
def any_views(tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    folder = tmp_path_factory.mktemp("any_views")
    torch.manual_seed(0)
    settings = NetworkSettings("set_rednet", width=1 / 16, landmark_maps=True, n_views=9, view_flags=True)
    face_model = MorphableModel.load(level=1).hash
    card = ModelCard(settings, SIZE, NINE_VIEWS, face_model, 1, "test", 0, "", "CC0-1.0")
    save_model(folder, build_network(settings), card)
    return Predictor.load(folder)


def crops(count: int) -> list[Photo]:
    noise = np.random.default_rng(1).integers(0, 255, (count, SIZE, SIZE, 3), np.uint8)
    return [Photo(image) for image in noise]


def test_any_number_of_photographs_in_any_order_makes_the_same_face(any_views: Predictor):
    photos = crops(5)
    face, turned = any_views(photos), any_views(photos[::-1])
    assert face.params.rotation.shape == (5, 3, 3)
    torch.testing.assert_close(turned.mesh.vertices, face.mesh.vertices, rtol=0, atol=1e-3)
    torch.testing.assert_close(turned.params.rotation, face.params.rotation.flip(0), rtol=0, atol=1e-4)
    assert any_views(photos[:1]).params.rotation.shape == (1, 3, 3)
    named = any_views({"a": photos[0], "b": photos[1]})
    torch.testing.assert_close(named.mesh.vertices, any_views(photos[:2]).mesh.vertices, rtol=0, atol=0)


def test_yaws_are_given_named_found_or_unknown(any_views: Predictor, photo: Photo):
    crop = crops(1)[0]
    given = dataclasses.replace(crop, yaw=0.4)
    views = any_views.prepare({"left_60": crop, "someone": crop, "given": given, "found": photo})
    assert views.names == views.sources == ("left_60", "someone", "given", "found")
    yaws = views.batch.view_yaws[0]
    assert yaws[:3].tolist() == pytest.approx([-np.radians(60), np.nan, 0.4], nan_ok=True)
    assert abs(yaws[3]) < 0.3
    assert views.batch.view_present is not None
    assert views.batch.view_present.all()


def test_a_profile_without_a_name_is_found_where_it_is(any_views: Predictor):
    model = any_views.face_model
    for degrees in (-70, 65):
        rotation = euler_to_matrix(torch.deg2rad(torch.tensor([0.0, degrees, 0.0])))
        points = project(to_camera(model.mean_shape[model.landmarks_68], rotation, torch.zeros(3)), FULL)
        large = Photo(np.zeros((224, 224, 3), np.uint8), points.numpy())
        yaw = any_views.prepare([large]).batch.view_yaws[0, 0]
        assert np.degrees(float(yaw)) == pytest.approx(degrees, abs=3)


def test_only_a_network_for_any_views_takes_a_list(predictor: Predictor):
    assert not predictor.takes_any_views
    with pytest.raises(ValueError, match="expected a mapping by the views left, front, right, got a list"):
        predictor(crops(3))
