from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator

import pytest
import torch

from dfmvr.data.datasets.synthetic import SyntheticSettings
from dfmvr.data.on_the_fly.generator import TRAINING, VALIDATION, OnTheFly, place_generator, planned_manifest
from dfmvr.data.settings import DataSettings
from dfmvr.geometry.camera import project, to_camera
from dfmvr.geometry.rotation import euler_to_matrix
from dfmvr.morphable.model import MorphableModel
from dfmvr.types import ViewBatch
from ray_jobs.making import made_batches, made_validation_batches

DATA = DataSettings(image_size=32, batch_size=2, on_the_fly=True)
SYNTHETIC = SyntheticSettings(n_subjects=10, expressions_per_subject=1, supersample=1)
_NO_NOISE = (
    *("yaw_jitter", "pitch_jitter", "roll_jitter", "shift_jitter", "distance_jitter", "focal_jitter"),
    *("landmark_noise", "landmark_outliers", "mask_noise", "mask_blunders", "landmark_3d_noise"),
    *("occluder_share", "degradation"),
)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tensors are small here: more threads only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def maker() -> OnTheFly:
    return OnTheFly(DATA, SYNTHETIC)


@pytest.fixture(scope="module")
def exact() -> OnTheFly:
    """No errors of any kind."""
    return OnTheFly(DATA, dataclasses.replace(SYNTHETIC, **dict.fromkeys(_NO_NOISE, 0.0)))


def same(one: ViewBatch, two: ViewBatch) -> bool:
    fields = [field.name for field in dataclasses.fields(ViewBatch)]
    pairs = [(getattr(one, name), getattr(two, name)) for name in fields]
    return all(torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b for a, b in pairs)


def test_a_batch_is_as_others_are(maker: OnTheFly) -> None:
    batch, truth = maker.make(2, place_generator("cpu", 0, TRAINING, 0))
    assert batch.images.shape == (2, 3, 3, 32, 32)
    assert batch.images.dtype == torch.float32
    assert batch.masks.dtype == torch.int64
    assert batch.images.min() >= 0
    assert batch.images.max() <= 1
    assert batch.images.flatten(2).std(-1).min() > 0.02, "something is drawn in every view"
    assert ((batch.masks > 0).float().mean((-2, -1)) > 0.1).all()
    assert all((batch.masks[:, 1] == region).any() for region in range(10) if region != 7)
    assert truth.shape == MorphableModel.load(level=1).mean_shape.expand(2, -1, -1).shape
    for field in dataclasses.fields(ViewBatch):
        value = getattr(batch, field.name)
        assert not isinstance(value, torch.Tensor) or value.isfinite().all(), field.name


def test_landmarks_are_the_projected_truth(exact: OnTheFly) -> None:
    batch, truth = exact.make(2, place_generator("cpu", 0, TRAINING, 1))
    model = MorphableModel.load(level=1)
    rotation = euler_to_matrix(torch.deg2rad(torch.tensor([[0.0, yaw, 0.0] for yaw in (-45, 0, 45)])))
    seen = to_camera(truth[:, None, model.landmarks_68], rotation, torch.zeros(3, 3))
    torch.testing.assert_close(batch.landmarks_2d, project(seen, batch.intrinsics), rtol=0, atol=0.02)
    torch.testing.assert_close(batch.landmarks_3d, truth[:, model.landmarks_101], rtol=0, atol=1e-3)
    left, front, right = batch.landmarks_2d_weights.mean(0)
    assert left[:5].mean() < 0.4 < 0.7 < left[12:16].mean(), "the left view hides the subject's right side"
    assert right[12:17].mean() < 0.4 < 0.7 < right[1:5].mean()
    assert front[27:].mean() > 0.9


def test_regions_lie_where_their_landmarks_are(exact: OnTheFly) -> None:
    batch, _ = exact.make(4, place_generator("cpu", 0, TRAINING, 2))
    marks, grid = batch.landmarks_2d[:, 1], torch.arange(32) + 0.5
    for region, points in ((2, slice(17, 22)), (3, slice(22, 27)), (4, slice(36, 42)), (5, slice(42, 48))):
        inside = (batch.masks[:, 1] == region).float()
        total = inside.sum((-2, -1))
        centre = torch.stack([(inside.sum(-2) * grid).sum(-1), (inside.sum(-1) * grid).sum(-1)], -1)
        distance = (centre / total.unsqueeze(-1) - marks[:, points].mean(1)).norm(dim=-1)
        assert distance[total > 3].max() < 2, region


def test_seed_epoch_rank_and_place_all_matter(maker: OnTheFly) -> None:
    def first(**changes: int) -> ViewBatch:
        return next(made_batches(maker, DATA, 8, **{"epoch": 0, "seed": 0, "world_size": 2} | changes))

    assert same(first(), first())
    for change in ({"epoch": 1}, {"seed": 1}, {"rank": 1}, {"skip_batches": 1}):
        assert (first().landmarks_3d - first(**change).landmarks_3d).abs().mean() > 0.3, change


def test_a_run_that_stops_within_an_epoch_goes_on_exactly(maker: OnTheFly) -> None:
    whole = list(made_batches(maker, DATA, 7, epoch=3, seed=1))
    assert len(whole) == 3
    rest = list(made_batches(maker, DATA, 7, epoch=3, seed=1, skip_batches=2))
    assert len(rest) == 1
    assert same(rest[0], whole[2])


def test_validation_is_the_same_whoever_makes_it_and_nobody_in_it_trains(maker: OnTheFly) -> None:
    alone = list(made_validation_batches(maker, DATA, 5, seed=0))
    assert [len(batch.views.images) for batch in alone] == [2, 2, 1]
    second = list(made_validation_batches(maker, DATA, 5, seed=0, rank=1, world_size=2))
    assert len(second) == 1
    assert same(second[0].views, alone[1].views)
    assert second[0].dense_vertices is not None
    plain = dataclasses.replace(DATA, augment=False)
    trained = next(made_batches(maker, plain, 2, epoch=0, seed=0))
    assert not torch.equal(trained.landmarks_3d, alone[0].views.landmarks_3d)
    assert VALIDATION != TRAINING


def test_supersampling_softens_edges_and_moves_nothing(exact: OnTheFly) -> None:
    fine = copy.copy(exact)
    fine.synthetic = dataclasses.replace(exact.synthetic, supersample=2)
    batches = [way.make(1, place_generator("cpu", 0, TRAINING, 4))[0] for way in (exact, fine)]
    rough, smooth = (batch.images for batch in batches)
    assert torch.equal(batches[0].masks, batches[1].masks)
    assert 0 < (rough - smooth).abs().mean() < 0.02
    shifted = (rough[..., 1:] - smooth[..., :-1]).abs().mean()
    assert (rough - smooth).abs().mean() < 0.5 * shifted


def test_the_plan_counts_what_a_stored_set_would_have() -> None:
    settings = SyntheticSettings(n_subjects=8000, split_shares=(0.96, 0.02, 0.02))
    assert planned_manifest(DATA, settings).rows == {"train": 15360, "validation": 320, "test": 320}


def test_a_view_without_a_camera_is_named() -> None:
    with pytest.raises(ValueError, match=r"data\.views: expected some of .* got \['left_75'\]"):
        OnTheFly(dataclasses.replace(DATA, views=("front", "left_75")), SYNTHETIC)
