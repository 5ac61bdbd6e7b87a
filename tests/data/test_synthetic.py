"""The synthetic samples: deterministic, true where they claim to be, and out of the face model's reach."""

from __future__ import annotations

import dataclasses
import hashlib
import subprocess
import sys

import numpy as np
import pytest
import torch

from dfmvr.data.datasets.detector import detect_landmarks, parse_regions
from dfmvr.data.datasets.light import sample_light
from dfmvr.data.datasets.people import Hair, Person, load_assets, sample_person
from dfmvr.data.datasets.picture import Camera, Setting, draw_view
from dfmvr.data.datasets.scene import build_scene
from dfmvr.data.datasets.synthetic import SPLITS, SyntheticSettings, render_sample, split_of
from dfmvr.data.sample import Sample, check_sample, samples_to_parquet
from dfmvr.geometry.camera import default_intrinsics, project, to_camera
from dfmvr.geometry.rotation import euler_to_matrix
from dfmvr.morphable.model import MorphableModel
from dfmvr.types import NINE_VIEWS, VIEW_NAMES

SIZE = 112
SETTINGS = SyntheticSettings(n_subjects=40, image_size=SIZE)
EXACT = SyntheticSettings(
    n_subjects=40,
    image_size=SIZE,
    **dict.fromkeys(
        (
            *("yaw_jitter", "pitch_jitter", "roll_jitter", "shift_jitter", "distance_jitter", "focal_jitter"),
            *("landmark_noise", "landmark_outliers", "mask_noise", "mask_blunders", "landmark_3d_noise"),
            *("glasses_share", "cloth_mask_share", "occluder_share", "degradation"),
        ),
        0.0,
    ),
)
BARE = Hair(thickness=0.0, density=0.0, hairline=0.0, fringe=0.0, length=0.0, cover=0.0, beard=0.0)


def subject_in(split: str, skip: int = 0) -> int:
    return [i for i in range(SETTINGS.n_subjects) if split_of(SETTINGS, i) == split][skip]


@pytest.fixture(scope="module")
def test_sample() -> Sample:
    return render_sample(EXACT, 7, subject_in("test"), 1)


def bare_view(yaw: float, size: int = SIZE, light_seed: int = 0):
    """A bald, bare head seen by a known camera: its vertices, camera and view."""
    assets = load_assets()
    rng = np.random.default_rng(3)
    person = dataclasses.replace(sample_person(assets, rng), hair=BARE)
    activations = np.zeros(len(assets.population.unit_names), np.float32)
    head = assets.population.vertices(person.subject, activations, 1, "head")
    scene = build_scene(assets, person, head, rng, cloth_mask=False)
    rotation = euler_to_matrix(torch.tensor([0.0, yaw, 0.0])).numpy()
    camera = Camera(rotation, np.zeros(3, np.float32), default_intrinsics(size).numpy())
    setting = Setting(sample_light(np.random.default_rng(light_seed)), np.full((4, 3), 0.2, np.float32), None)
    view = draw_view(rng, scene, setting, camera, size, supersample=2, occluder=False, degradation=0.0)
    return assets, head, camera, view


def test_the_same_sample_whatever_the_order_and_the_process() -> None:
    small = dataclasses.replace(SETTINGS, image_size=48)
    first, second = (subject_in("train", k) for k in (0, 1))
    forward = [render_sample(small, 1, i, 1) for i in (first, second)]
    backward = [render_sample(small, 1, i, 1) for i in (second, first)][::-1]
    data = samples_to_parquet(forward)
    assert data == samples_to_parquet(backward)
    script = (
        "import hashlib, sys, torch; torch.set_num_threads(1)\n"
        "from dfmvr.data.datasets.synthetic import SyntheticSettings, render_sample\n"
        "from dfmvr.data.sample import samples_to_parquet\n"
        f"s = SyntheticSettings(n_subjects={small.n_subjects}, image_size=48)\n"
        f"data = samples_to_parquet([render_sample(s, 1, i, 1) for i in ({first}, {second})])\n"
        "sys.stdout.write(hashlib.sha256(data).hexdigest())"
    )
    other = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert other.stdout == hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize(("seed", "subject", "expression"), [(2, 0, 0), (1, 1, 0), (1, 0, 1)])
def test_seed_subject_and_expression_all_matter(seed: int, subject: int, expression: int) -> None:
    small = dataclasses.replace(SETTINGS, image_size=32)
    reference, other = render_sample(small, 1, 0, 0), render_sample(small, seed, subject, expression)
    assert reference.landmarks_3d is not None
    assert other.landmarks_3d is not None
    assert np.abs(reference.landmarks_3d - other.landmarks_3d).mean() > 0.3
    assert (reference.images != other.images).mean() > 0.5


def test_further_views_leave_the_usual_ones_as_they_are() -> None:
    three = dataclasses.replace(SETTINGS, image_size=32)
    nine = dataclasses.replace(three, view_yaws=(-75, -60, -45, -20, 0, 20, 45, 60, 75))
    few, all_views = (render_sample(settings, 1, 0, 1) for settings in (three, nine))
    assert few.view_names == VIEW_NAMES
    assert all_views.view_names == NINE_VIEWS
    check_sample(all_views, 32)
    same = [NINE_VIEWS.index(name) for name in VIEW_NAMES]
    for name in ("images", "masks", "landmarks_2d", "landmarks_2d_weights", "view_yaws"):
        np.testing.assert_array_equal(getattr(all_views, name)[same], getattr(few, name), err_msg=name)
    np.testing.assert_array_equal(all_views.landmarks_3d, few.landmarks_3d)
    assert len({view.tobytes() for view in all_views.images}) == 9


def test_a_person_is_the_same_in_all_samples() -> None:
    assets = load_assets()
    one, two = (sample_person(assets, np.random.default_rng([1, 5])) for _ in range(2))
    assert one.hair == two.hair
    np.testing.assert_array_equal(one.subject.sliders, two.subject.sliders)
    np.testing.assert_array_equal(one.paint.albedo, two.paint.albedo)


def test_samples_fit_the_stored_schema(test_sample: Sample) -> None:
    check_sample(test_sample, SIZE)
    train = render_sample(SETTINGS, 0, subject_in("train"), 0)
    check_sample(train, SIZE)
    assert train.scan_vertices is None
    assert train.dense_vertices is None


def test_landmarks_are_the_projected_truth(test_sample: Sample) -> None:
    model = MorphableModel.load(level=1, part="face")
    assert test_sample.dense_vertices is not None
    points = torch.from_numpy(test_sample.dense_vertices)[model.landmarks_68]
    angles = torch.deg2rad(torch.tensor([[0.0, yaw, 0.0] for yaw in EXACT.view_yaws]))
    seen = to_camera(points.expand(3, -1, -1), euler_to_matrix(angles), torch.zeros(3, 3))
    pixels = project(seen, torch.from_numpy(test_sample.intrinsics)).numpy()
    np.testing.assert_allclose(test_sample.landmarks_2d, pixels, atol=0.02)
    np.testing.assert_allclose(test_sample.landmarks_3d, test_sample.dense_vertices[model.landmarks_101])


def test_landmark_noise_has_the_stated_size() -> None:
    rng = np.random.default_rng(0)
    truth = np.zeros((68, 2))
    visible = np.ones(68, bool)
    found = np.stack([detect_landmarks(rng, truth, visible, 1.5, 0.0)[0] for _ in range(200)])
    assert found.std() == pytest.approx(1.5, rel=0.1)
    wild = np.stack([detect_landmarks(rng, truth, visible, 1.5, 0.05)[0] for _ in range(200)])
    assert np.abs(wild).max() > 15 > np.abs(found).max()


def test_the_hidden_side_of_the_outline_hardly_counts() -> None:
    assets = load_assets()
    sample = render_sample(EXACT, 2, 0, 0)
    left, front, right = sample.landmarks_2d_weights
    assert left[:5].mean() < 0.3 < 0.8 < left[11:16].mean(), "the left view hides the subject's right side"
    assert right[12:17].mean() < 0.3 < 0.8 < right[1:6].mean()
    assert front[17:].mean() > 0.9
    assert len(assets.landmarks_68) == 68


def test_masks_show_the_regions_of_the_true_head() -> None:
    assets, head, camera, view = bare_view(0.0)
    projected = camera.project(head)
    columns, rows = projected[:, 0].astype(int), projected[:, 1].astype(int)
    inside = (columns >= 0) & (columns < SIZE) & (rows >= 0) & (rows < SIZE)
    for region in (1, 2, 3, 4, 5, 6, 8, 9):
        chosen = np.flatnonzero((assets.labels == region) & inside)
        front = view.depth[rows[chosen], columns[chosen]]
        chosen = chosen[projected[chosen, 2] < front + 1]
        agree = (view.labels[rows[chosen], columns[chosen]] == region).mean()
        assert agree > (0.9 if region in (1, 6) else 0.6), f"region {region}: {agree:.2f} of {len(chosen)}"


def test_the_subjects_left_is_on_the_viewers_right() -> None:
    _, _, _, view = bare_view(0.0)
    centre = {region: np.argwhere(view.labels == region)[:, 1].mean() for region in (2, 3, 4, 5)}
    assert centre[2] < centre[3]
    assert centre[4] < centre[5]


def test_a_negative_yaw_turns_the_nose_to_the_images_left() -> None:
    _, _, _, view = bare_view(-0.7)
    nose, skin = (np.argwhere(view.labels == region)[:, 1].mean() for region in (6, 1))
    assert nose < skin - 5


def test_a_cloth_mask_hides_nose_and_mouth() -> None:
    masked = render_sample(dataclasses.replace(EXACT, cloth_mask_share=1.0), 2, 0, 1)
    plain = render_sample(EXACT, 2, 0, 1)
    count = lambda sample: np.isin(sample.masks, (6, 7, 8, 9)).sum()  # noqa: E731
    assert count(masked) < 0.3 * count(plain)
    assert (masked.masks == 4).sum() > 0


def test_region_noise_moves_boundaries_only() -> None:
    labels = np.zeros((64, 64), np.uint8)
    labels[16:48, 16:48] = 6
    noisy = parse_regions(np.random.default_rng(0), labels, noise=1.0, blunders=0.0)
    changed = np.argwhere(noisy != labels)
    assert 10 < len(changed) < 400
    edge = np.minimum(np.abs(changed - 15.5).min(1), np.abs(changed - 47.5).min(1))
    assert edge.max() < 6
    missed = parse_regions(np.random.default_rng(0), np.full((8, 8), 9, np.uint8), noise=0.0, blunders=1.0)
    assert (missed == 1).all()


def test_the_truth_is_out_of_the_models_reach(test_sample: Sample) -> None:
    model = MorphableModel.load(level=1, part="face")
    assert test_sample.dense_vertices is not None
    bases = torch.cat([model.identity_basis, model.expression_basis])[:, ::4].flatten(1).T.double()
    offset = (torch.from_numpy(test_sample.dense_vertices) - model.mean_shape)[::4].flatten().double()
    best = bases @ torch.linalg.lstsq(bases, offset[:, None]).solution
    residual = (offset[:, None] - best).view(-1, 3).norm(dim=1).square().mean().sqrt()
    assert residual > 0.1


def test_scans_carry_their_landmarks(test_sample: Sample) -> None:
    scan, landmarks = test_sample.scan_vertices, test_sample.scan_landmarks_7
    assert scan is not None
    assert landmarks is not None
    distance = np.linalg.norm(scan[None] - landmarks[:, None], axis=2).min(1)
    assert distance.max() == 0
    left_eye, right_mouth = landmarks[3], landmarks[5]
    assert left_eye[0] > 30 > 0 > right_mouth[0]


def test_people_are_split_once_for_all() -> None:
    large = SyntheticSettings(n_subjects=1000)
    splits = [split_of(large, i) for i in range(1000)]
    shares = [splits.count(name) / 1000 for name in SPLITS]
    np.testing.assert_allclose(shares, large.split_shares, atol=0.01)
    assert [split_of(SETTINGS, i) for i in range(40)] == splits[:40]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_subjects": 0}, "synthetic.n_subjects: expected at least 1, got 0"),
        ({"image_size": 8}, "synthetic.image_size: expected at least 16 pixels, got 8"),
        ({"split_shares": (0.5, 0.5, 0.5)}, "synthetic.split_shares: expected 3 shares that sum to 1"),
        ({"glasses_share": 1.5}, r"synthetic.glasses_share: expected a share in \[0, 1\], got 1.5"),
        ({"landmark_noise": -1.0}, "synthetic.landmark_noise: expected at least 0"),
        ({"view_yaws": (0.0,)}, "synthetic.view_yaws: expected 3 or 9 angles"),
    ],
)
def test_wrong_settings_are_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SyntheticSettings(**change)  # type: ignore[arg-type]


def test_indices_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match="subject_index: expected 0 to 39, got 40"):
        render_sample(SETTINGS, 0, 40, 0)
    with pytest.raises(ValueError, match="expression_index: expected 0 to 1, got 2"):
        render_sample(SETTINGS, 0, 0, 2)


def test_person_record_holds_the_hair() -> None:
    person = sample_person(load_assets(), np.random.default_rng(0))
    assert isinstance(person, Person)
    assert 0 <= person.hair.density <= 1
