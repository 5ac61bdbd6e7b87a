"""Records to samples: what is given is kept, what is bad is told with its reason, frames agree."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from dfmvr.data.datasets.records import Picture, Record
from dfmvr.data.preprocess import pipeline
from dfmvr.data.preprocess.crop import fit_crop
from dfmvr.data.preprocess.detect import PackageMissing
from dfmvr.data.preprocess.pipeline import Preprocessor, subject_split
from dfmvr.data.preprocess.settings import PreprocessSettings
from dfmvr.data.preprocess.views import CroppedView, crop_intrinsics, measure_sharpness, view_disagreement
from dfmvr.data.sample import check_sample
from dfmvr.geometry.camera import default_intrinsics
from dfmvr.morphable.model import MorphableModel
from dfmvr.types import VIEW_NAMES

ProjectMean = Callable[[float, int], np.ndarray]
SIZE = 48
YAWS = dict(zip(VIEW_NAMES, (-40.0, 0.0, 40.0), strict=True))
SETTINGS = PreprocessSettings(image_size=SIZE, parser="landmarks")
PLACE = np.array([75.0, 25.0])
NOISE = np.random.default_rng(0).integers(0, 256, (200, 300, 3), np.uint8)


@pytest.fixture(scope="module")
def preprocessor() -> Preprocessor:
    return Preprocessor(SETTINGS)


@pytest.fixture
def record(tmp_path: Path, project_mean: ProjectMean) -> Record:
    """Three photographs of noise in which the mean face is, 100 px wide, at x 150, y 100."""
    pictures = {}
    for name, yaw in YAWS.items():
        path = tmp_path / f"{name}.png"
        cv2.imwrite(str(path), NOISE)
        pictures[name] = Picture(str(path), landmarks=project_mean(yaw, 150) + PLACE)
    return Record("s1", "smile", pictures, landmarks_3d=np.ones((101, 3)))


def with_picture(record: Record, view: str, **changes: object) -> Record:
    picture = dataclasses.replace(record.pictures[view], **changes)
    return dataclasses.replace(record, pictures={**record.pictures, view: picture})


def test_a_good_record_becomes_a_sample(preprocessor: Preprocessor, record: Record) -> None:
    (outcome,) = preprocessor([record])
    sample = outcome.sample
    assert sample is not None
    assert outcome.rejects == ()
    check_sample(sample, SIZE)
    assert (sample.sample_id, sample.subject_id, sample.expression_id) == ("s1-smile", "s1", "smile")
    assert sample.view_names == VIEW_NAMES
    assert np.degrees(sample.view_yaws) == pytest.approx(list(YAWS.values()), abs=2)
    inner = sample.landmarks_2d[:, 17:]
    assert ((inner > 0) & (inner < SIZE)).all()
    np.testing.assert_allclose(sample.intrinsics, np.stack([default_intrinsics(SIZE)] * 3))
    # In a turned head, the outline of the far side counts least.
    assert sample.landmarks_2d_weights[0, 0] < 0.2
    assert sample.landmarks_2d_weights[2, 16] < 0.2
    assert sample.landmarks_2d_weights[1, 30] == 1
    assert (sample.landmarks_3d == 1).all()
    assert sample.scan_vertices is None


def test_a_stored_yaw_is_kept(preprocessor: Preprocessor, record: Record) -> None:
    (outcome,) = preprocessor([with_picture(record, "left", yaw=-0.6)])
    assert outcome.sample.view_yaws[0] == np.float32(-0.6)


def test_a_bad_record_stops_no_other(preprocessor: Preprocessor, record: Record, tmp_path: Path) -> None:
    broken = with_picture(record, "front", uri=str(tmp_path / "none.png"))
    outcomes = preprocessor([broken, record])
    assert outcomes[0].sample is None
    assert outcomes[1].sample is not None
    alone = preprocessor([record])[0].sample
    np.testing.assert_array_equal(outcomes[1].sample.masks, alone.masks)
    rejects = {reject.view: reject for reject in outcomes[0].rejects}
    assert {view: r.reason for view, r in rejects.items()} == {
        "left": "missing view",
        "front": "unreadable",
        "right": "missing view",
    }
    assert rejects["front"].uri == str(tmp_path / "none.png")
    assert "no such file" in rejects["front"].detail
    assert rejects["left"].detail == "its record cannot be used: front view: unreadable"


def grey_picture(path: Path) -> Path:
    cv2.imwrite(str(path), np.full((200, 300, 3), 90, np.uint8))
    return path


def test_each_reason_is_told(
    preprocessor: Preprocessor, record: Record, tmp_path: Path, project_mean: ProjectMean
) -> None:
    text = tmp_path / "text.jpg"
    text.write_text("no picture")
    dull = grey_picture(tmp_path / "dull.png")
    right = record.pictures["right"].landmarks
    cases = {
        "unreadable": with_picture(record, "front", uri=str(text)),
        "blurred": with_picture(record, "front", uri=str(dull)),
        "no face": with_picture(record, "front", landmarks=NOISE[:68, 0, :2].astype(float)),
        "landmark disagreement": with_picture(record, "left", landmarks=right),
        "missing view": dataclasses.replace(record, pictures={"front": record.pictures["front"]}),
    }
    for reason, outcome in zip(cases, preprocessor(list(cases.values())), strict=True):
        assert outcome.sample is None
        assert reason in {reject.reason for reject in outcome.rejects}, reason
    (nothing,) = preprocessor([dataclasses.replace(record, pictures={})])
    assert [reject.reason for reject in nothing.rejects] == ["missing view"]


def test_views_of_different_faces_disagree(
    preprocessor: Preprocessor, record: Record, project_mean: ProjectMean
) -> None:
    opened = project_mean(0.0, 150) + PLACE
    opened[[*range(55, 60), *range(65, 68)], 1] += 22  # the jaw drops by an inch between the pictures
    (outcome,) = preprocessor([with_picture(record, "front", landmarks=opened)])
    assert {reject.reason for reject in outcome.rejects} == {"landmark disagreement"}
    assert "expected views of one rigid face to 3.5 mm, got" in outcome.rejects[0].detail


def test_projections_of_one_face_agree_and_others_do_not(project_mean: ProjectMean) -> None:
    model = MorphableModel.load(level=1)

    def view(yaw: float, change: float) -> CroppedView:
        points = project_mean(yaw, SIZE)
        points[48:, 1] += change
        crop = fit_crop(points, model, SIZE, np.radians(yaw))
        landmarks = crop.points_to_crop(points).astype(np.float32)
        return CroppedView(
            np.zeros((SIZE, SIZE, 3), np.uint8), landmarks, np.ones(68, np.float32), np.eye(3), crop
        )

    views = [view(yaw, 0) for yaw in YAWS.values()]
    assert view_disagreement(views) < 0.5
    assert view_disagreement(views[:1]) == 0
    assert view_disagreement([views[0], view(0, 5), views[2]]) > 2


def test_pictures_are_turned_before_their_landmarks_are_used(
    preprocessor: Preprocessor, record: Record, tmp_path: Path
) -> None:
    path = tmp_path / "sideways.png"
    cv2.imwrite(str(path), np.ascontiguousarray(NOISE.swapaxes(0, 1)))
    (turned,) = preprocessor([with_picture(record, "front", uri=str(path), turn="cw90_mirror")])
    (upright,) = preprocessor([record])
    np.testing.assert_array_equal(turned.sample.images, upright.sample.images)


def test_a_known_camera_is_carried_into_the_crop(
    preprocessor: Preprocessor, record: Record, project_mean: ProjectMean
) -> None:
    """A point projects to the crop as it does to the photograph and from there to the crop."""
    camera = np.array([[700.0, 0, 150], [0, 700.0, 100], [0, 0, 1]])
    crop = fit_crop(record.pictures["front"].landmarks, MorphableModel.load(level=1), SIZE)
    point = np.array([20.0, -30.0, 900.0])
    in_photo = (camera @ point)[:2] / point[2]
    roll = crop.to_crop[:, :2] / crop.scale
    rolled = np.array([*(roll @ point[:2]), point[2]])
    in_crop = (crop_intrinsics(camera, crop) @ rolled)[:2] / point[2]
    np.testing.assert_allclose(in_crop, crop.points_to_crop(in_photo[None])[0], atol=1e-6)
    known = with_picture(record, "front", intrinsics=camera, distortion=np.zeros(4))
    sample = preprocessor([known])[0].sample
    np.testing.assert_allclose(sample.intrinsics[1], crop_intrinsics(camera, crop), rtol=1e-4)


def test_sharpness_falls_with_blur(astronaut: np.ndarray) -> None:
    face = astronaut[60:200, 150:290]
    values = [
        measure_sharpness(face if sigma == 0 else cv2.GaussianBlur(face, (0, 0), sigma))
        for sigma in (0, 2, 5)
    ]
    assert values[0] > values[1] > SETTINGS.min_sharpness > values[2]


def test_dlib_is_used_where_nothing_is_given(preprocessor: Preprocessor, astronaut_file: Path) -> None:
    settings = dataclasses.replace(SETTINGS, views=("front",))
    (outcome,) = Preprocessor(settings)([Record("a", "0", {"front": Picture(str(astronaut_file))})])
    assert outcome.sample is not None
    assert abs(np.degrees(outcome.sample.view_yaws[0])) < 15
    assert set(np.unique(outcome.sample.masks)) >= {0, 1, 2, 3, 6, 8, 9}


def test_given_landmarks_need_no_backend(
    record: Record, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def missing(*_: object) -> None:
        raise PackageMissing("not here")

    monkeypatch.setattr(pipeline, "build_finder", missing)
    assert Preprocessor(SETTINGS)([record])[0].sample is not None
    bare = with_picture(record, "front", landmarks=None)
    with pytest.raises(PackageMissing, match="not here"):
        Preprocessor(SETTINGS)([bare])
    given = Preprocessor(dataclasses.replace(SETTINGS, landmarks="given"))
    (outcome,) = given([bare])
    assert "expected landmarks in" in next(r.detail for r in outcome.rejects if r.view == "front")
    (tmp_path / "front.json").write_text(str(record.pictures["front"].landmarks.tolist()))
    assert given([bare])[0].sample is not None


def test_subjects_are_split_by_their_name() -> None:
    splits = [subject_split(f"s{k}", (0.8, 0.1, 0.1)) for k in range(1000)]
    assert splits == [subject_split(f"s{k}", (0.8, 0.1, 0.1)) for k in range(1000)]
    for split, share in zip(("train", "validation", "test"), (0.8, 0.1, 0.1), strict=True):
        assert splits.count(split) / 1000 == pytest.approx(share, abs=0.03)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_size": 8}, "preprocess.image_size: expected at least 16 pixels, got 8"),
        ({"views": ("front", "front")}, "preprocess.views"),
        ({"landmarks": "mtcnn"}, "preprocess.landmarks: expected one of auto, dlib, face_alignment, given"),
        ({"parser": "x"}, "preprocess.parser: expected one of auto, bisenet, landmarks, got 'x'"),
        ({"bystander_share": 2}, "preprocess.bystander_share: expected a share"),
        ({"min_sharpness": -1}, "preprocess.min_sharpness: expected at least 0"),
        ({"split_shares": (0.5, 0.2, 0.2)}, "preprocess.split_shares: expected 3 shares that sum to 1"),
    ],
)
def test_settings_are_checked(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PreprocessSettings(**changes)
