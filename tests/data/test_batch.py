"""Samples to varied batches: settings, collation, augmentation."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from dfmvr.data.augment import augment, step_generator
from dfmvr.data.collate import collate
from dfmvr.data.preprocess.weight_map import weight_map
from dfmvr.data.sample import Sample
from dfmvr.data.settings import DataSettings
from dfmvr.types import ViewBatch

MakeSample = Callable[..., Sample]
SETTINGS = DataSettings(image_size=32)


@pytest.fixture
def batch(make_sample: MakeSample) -> ViewBatch:
    return collate([make_sample(k) for k in range(4)], SETTINGS)


def test_a_batch_holds_its_samples(make_sample: MakeSample) -> None:
    samples = [make_sample(0), make_sample(1, landmarks_3d=None)]
    batch = collate(samples, SETTINGS)
    assert batch.images.shape == (2, 3, 3, 32, 32)
    for b, sample in enumerate(samples):
        np.testing.assert_allclose(
            batch.images[b].numpy(), np.moveaxis(sample.images, -1, 1) / 255, atol=1e-6
        )
        np.testing.assert_array_equal(batch.masks[b].numpy(), sample.masks)
        np.testing.assert_array_equal(batch.weight_maps[b].numpy(), weight_map(sample.masks))
        np.testing.assert_array_equal(batch.landmarks_2d[b].numpy(), sample.landmarks_2d)
        np.testing.assert_array_equal(batch.landmarks_2d_weights[b].numpy(), sample.landmarks_2d_weights)
        np.testing.assert_array_equal(batch.intrinsics[b].numpy(), sample.intrinsics)
        np.testing.assert_array_equal(batch.view_yaws[b].numpy(), sample.view_yaws)
    assert batch.landmarks_3d_valid.tolist() == [True, False]
    assert not batch.landmarks_3d[1].any()
    assert batch.masks.dtype == torch.int64
    assert batch.sample_ids == ("s000-e00", "s001-e00")


def test_samples_that_do_not_fit_together_are_refused(make_sample: MakeSample) -> None:
    with pytest.raises(ValueError, match="expected at least one sample"):
        collate([], SETTINGS)
    with pytest.raises(
        ValueError, match=r"expected views .* of shape \(3, 32, 32, 3\) as in sample 's000-e00'"
    ):
        collate([make_sample(0), make_sample(1, image_size=64)], SETTINGS)


def test_only_images_are_varied_and_the_seed_decides(batch: ViewBatch) -> None:
    varied = augment(batch, SETTINGS, step_generator(0, 1, 2))
    again = augment(batch, SETTINGS, step_generator(0, 1, 2))
    other = augment(batch, SETTINGS, step_generator(0, 1, 3))
    torch.testing.assert_close(varied.images, again.images, rtol=0, atol=0)
    assert (varied.images - other.images).abs().mean() > 0.01
    assert (varied.images - batch.images).abs().mean() > 0.01
    assert varied.images.min() >= 0
    assert varied.images.max() <= 1
    for field in dataclasses.fields(ViewBatch):
        if field.name != "images":
            assert getattr(varied, field.name) is getattr(batch, field.name)


def test_views_of_a_sample_share_their_draw_and_samples_do_not(batch: ViewBatch) -> None:
    same = batch.images[:1, :1].expand_as(batch.images)
    settings = dataclasses.replace(SETTINGS, blur_probability=0.5)
    varied = augment(dataclasses.replace(batch, images=same), settings, step_generator(3)).images
    torch.testing.assert_close(varied[:, 1], varied[:, 0])
    torch.testing.assert_close(varied[:, 2], varied[:, 0])
    for b in range(1, 4):
        assert (varied[b] - varied[0]).abs().mean() > 0.005


def test_each_factor_does_what_it_says(batch: ViewBatch) -> None:
    from kornia import enhance

    settings = dataclasses.replace(SETTINGS, blur_probability=0.0)
    varied = augment(batch, settings, step_generator(5)).images
    factors = 0.5 + torch.rand(4, 4, generator=step_generator(5)).repeat_interleave(3, dim=1)
    expected = batch.images.flatten(0, 1)
    expected = enhance.adjust_brightness_accumulative(expected, factors[0])
    expected = enhance.adjust_contrast_with_mean_subtraction(expected, factors[1])
    expected = enhance.adjust_saturation_with_gray_subtraction(expected, factors[2])
    expected = enhance.sharpness(expected, factors[3])
    torch.testing.assert_close(varied.flatten(0, 1), expected)


def test_the_share_of_blurred_samples(batch: ViewBatch) -> None:
    noise = torch.rand(200, 1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    settings = dataclasses.replace(SETTINGS, colour_jitter=0.0)
    varied = augment(dataclasses.replace(batch, images=noise), settings, step_generator(0)).images
    changed = ((varied - noise).abs().amax((1, 2, 3, 4)) > 1e-4).float().mean()
    assert 0.2 < changed < 0.4  # p = 0.3
    nothing = dataclasses.replace(settings, blur_probability=0.0)
    torch.testing.assert_close(
        augment(dataclasses.replace(batch, images=noise), nothing, step_generator(0)).images, noise
    )


def many(batch: ViewBatch, count: int) -> ViewBatch:
    """The first sample, again and again."""
    fields = {f.name: getattr(batch, f.name) for f in dataclasses.fields(ViewBatch)}
    tensors = {name: value for name, value in fields.items() if isinstance(value, torch.Tensor)}
    return ViewBatch(
        **{name: value[:1].repeat(count, *[1] * (value.ndim - 1)) for name, value in tensors.items()}
    )


def test_a_share_of_the_samples_loses_its_masks(batch: ViewBatch) -> None:
    samples = many(batch, 400)
    varied = augment(samples, dataclasses.replace(SETTINGS, missing_mask_share=0.25), step_generator(1))
    lost = (varied.masks == 0).flatten(1).all(1)
    assert 0.2 < lost.float().mean() < 0.3
    assert torch.equal(varied.masks[~lost], samples.masks[~lost])


def test_the_front_view_stands_in_for_every_set_of_missing_views_alike(batch: ViewBatch) -> None:
    samples = many(batch, 900)
    varied = augment(samples, dataclasses.replace(SETTINGS, missing_view_share=1 / 3), step_generator(2))
    left, front, right = (samples.landmarks_2d[0, v] for v in range(3))
    forms = {"none": [left, front, right], "left": [front, front, right], "right": [left, front, front]}
    forms["both"] = [front, front, front]
    is_form = {
        name: (varied.landmarks_2d == torch.stack(views)).flatten(1).all(1) for name, views in forms.items()
    }
    shares = {name: float(found.float().mean()) for name, found in is_form.items()}
    assert sum(shares.values()) == pytest.approx(1.0)
    assert shares["none"] == pytest.approx(2 / 3, abs=0.05)
    for name in ("left", "right", "both"):
        assert shares[name] == pytest.approx(1 / 9, abs=0.04), name
    only_front = is_form["both"].nonzero()[0, 0]
    for name in ("images", "masks", "weight_maps", "landmarks_2d_weights", "intrinsics", "view_yaws"):
        views = getattr(varied, name)[only_front]
        assert torch.equal(views[0], views[1]), name
        assert torch.equal(views[2], views[1]), name


def test_no_loss_looks_at_a_view_whose_absence_is_told(batch: ViewBatch) -> None:
    samples = many(batch, 900)
    settings = dataclasses.replace(SETTINGS, missing_view_share=1 / 3, tell_missing_views=True)
    varied = augment(samples, settings, step_generator(2))
    present = varied.view_present
    assert present is not None
    assert present[:, 1].all()
    for form in ([True, True, False], [False, True, True], [False, True, False]):
        share = float((present == torch.tensor(form)).all(1).float().mean())
        assert share == pytest.approx(1 / 9, abs=0.04), form
    assert not varied.masks[~present].any()
    assert not varied.landmarks_2d_weights[~present].any()
    assert torch.equal(varied.masks[present], samples.masks[present])
    assert torch.equal(varied.landmarks_2d_weights[present], samples.landmarks_2d_weights[present])


def test_a_batch_has_as_many_views_as_chance_says_and_each_sample_others(batch: ViewBatch) -> None:
    samples = many(batch, 60)
    settings = dataclasses.replace(SETTINGS, fewest_views=2, colour_jitter=0.0, blur_probability=0.0)
    numbers = []
    for step in range(20):
        varied = augment(samples, settings, step_generator(4, step))
        again = augment(samples, settings, step_generator(4, step))
        assert torch.equal(varied.view_yaws, again.view_yaws)
        numbers.append(varied.n_views)
        chosen = [tuple(yaws) for yaws in varied.view_yaws.tolist()]
        assert all(len(set(yaws)) == varied.n_views for yaws in chosen)
        assert len(set(chosen)) == 6  # ordered pairs out of three views, or orders of all three
        places = (varied.view_yaws[..., None] == samples.view_yaws[:, None]).float().argmax(2)
        for name in ("images", "masks", "weight_maps", "landmarks_2d", "landmarks_2d_weights", "intrinsics"):
            for b in range(3):
                assert torch.allclose(
                    getattr(varied, name)[b], getattr(samples, name)[b][places[b]], atol=1e-5
                ), name
    assert set(numbers) == {2, 3}


def test_a_share_of_the_samples_loses_its_yaws(batch: ViewBatch) -> None:
    samples = many(batch, 400)
    varied = augment(samples, dataclasses.replace(SETTINGS, untold_yaw_share=0.25), step_generator(1))
    untold = varied.view_yaws.isnan()
    assert torch.equal(untold.any(1), untold.all(1))
    assert 0.2 < untold[:, 0].float().mean() < 0.3
    assert torch.equal(varied.view_yaws[~untold], samples.view_yaws[~untold])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"uri": ""}, "data.uri: expected a path or URI, got ''"),
        ({"views": ("left", "top")}, "data.views: expected one or more of left_75, .*, right_75, each once"),
        ({"views": ()}, "data.views"),
        ({"views": ("left", "left")}, "data.views"),
        ({"batch_size": 0}, "data.batch_size: expected at least 1, got 0"),
        ({"max_bad_share": 1.5}, r"data.max_bad_share: expected a share in \[0, 1\], got 1.5"),
        ({"colour_jitter": 1.0}, "data.colour_jitter"),
        ({"missing_mask_share": -0.1}, r"data.missing_mask_share: expected a share in \[0, 1\], got -0.1"),
        (
            {"missing_view_share": 0.1, "views": ("left", "right")},
            "data.missing_view_share: expected 0 for views without 'front', got 0.1",
        ),
        ({"fewest_views": 4}, "data.fewest_views: expected 0 to 3, got 4"),
        ({"fewest_views": 1, "missing_view_share": 0.1}, "data.fewest_views: expected 0 to 0, got 1"),
        ({"untold_yaw_share": 2.0}, r"data.untold_yaw_share: expected a share in \[0, 1\], got 2.0"),
        ({"weight_dilation": -1.0}, "data.weight_dilation"),
    ],
)
def test_wrong_settings_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DataSettings(**changes)
