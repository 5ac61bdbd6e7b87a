"""What the paper's released code does otherwise, and its defects: each is a switch, and off by default."""

import dataclasses
import math

import pytest
import torch
from torch import Tensor, nn

from dfmvr.geometry.camera import default_intrinsics
from dfmvr.geometry.rotation import euler_to_matrix
from dfmvr.lighting import AMBIENT
from dfmvr.losses.landmark import landmark_3d_loss, landmark_weights
from dfmvr.losses.total import LossSettings, loss_terms
from dfmvr.morphable.model import MorphableModel
from dfmvr.reconstructor import Prediction, Reconstructor
from dfmvr.render.zbuffer import ZBufferRenderer
from dfmvr.types import FaceParams, ViewBatch

SIZE = 48
TURN = math.pi / 2


MODEL = MorphableModel.load()


def reconstructor(*shade_in_view: str) -> Reconstructor:
    return Reconstructor(nn.Identity(), MODEL, ZBufferRenderer(), *shade_in_view)


def draw(model: Reconstructor, yaws: tuple[float, ...], lit_from: float = 0.5) -> Prediction:
    """Draw the mean face in some views, lit from the viewer's right as well as from everywhere."""
    light = torch.zeros(1, len(yaws), 9, 3)
    light[:, :, 0], light[:, :, 3] = AMBIENT, lit_from
    angles = torch.zeros(1, len(yaws), 3)
    angles[..., 1] = torch.tensor(yaws)
    params = FaceParams(
        identity=torch.zeros(1, 80),
        expression=torch.zeros(1, 64),
        albedo=torch.zeros(1, 80),
        light=light.requires_grad_(),
        rotation=euler_to_matrix(angles),
        translation=torch.zeros(1, len(yaws), 3),
    )
    return model.draw(params, default_intrinsics(SIZE).expand(1, len(yaws), 3, 3), SIZE)


def batch_of(prediction: Prediction) -> ViewBatch:
    views = prediction.mask.shape[1]
    return ViewBatch(
        images=prediction.image.detach().movedim(-1, 2),
        masks=prediction.mask.long(),
        weight_maps=torch.ones(1, views, SIZE, SIZE),
        landmarks_2d=prediction.landmarks_2d.clone(),
        landmarks_2d_weights=torch.ones(1, views, 68),
        landmarks_3d=prediction.landmarks_3d + torch.randn(1, 101, 3, generator=torch.Generator()),
        landmarks_3d_valid=torch.ones(1, dtype=torch.bool),
        intrinsics=default_intrinsics(SIZE).expand(1, views, 3, 3),
        view_yaws=torch.zeros(1, views),
    )


def term(prediction: Prediction, name: str, settings: LossSettings) -> Tensor:
    return loss_terms(prediction, batch_of(prediction), MODEL, settings)[name]


def test_views_are_shaded_in_the_last_ones_pose_only_where_asked_for() -> None:
    yaws = (-TURN, 0.0, TURN)
    own, last = draw(reconstructor(), yaws), draw(reconstructor("last"), yaws)
    assert own.shaded is not None
    assert last.shaded is not None
    torch.testing.assert_close(own.shaded, draw(reconstructor("own"), yaws).shaded)
    assert not torch.allclose(own.shaded[:, 0], own.shaded[:, 2], atol=0.1)
    torch.testing.assert_close(last.shaded, own.shaded[:, 2:].expand_as(own.shaded))
    assert (own.image[:, 0] - last.image[:, 0]).abs().max() > 0.1
    torch.testing.assert_close(own.image[:, 2], last.image[:, 2])


def test_unevenness_sees_shadows_only_where_asked_for() -> None:
    lit, flat = draw(reconstructor(), (0.0,)), draw(reconstructor(), (0.0,), lit_from=0.0)
    shaded = LossSettings(unevenness_of="shaded")
    seen, unseen = (term(lit, "albedo_unevenness", settings) for settings in (shaded, LossSettings()))
    assert seen > 2 * unseen
    (gradient,) = torch.autograd.grad(seen, lit.params.light)
    assert gradient.abs().max() > 0
    assert not unseen.requires_grad
    assert unseen == term(flat, "albedo_unevenness", LossSettings())
    flat_seen = term(flat, "albedo_unevenness", shaded)
    torch.testing.assert_close(flat_seen, AMBIENT**2 * unseen)


def test_unevenness_of_shaded_colour_begins_with_rendering() -> None:
    only = dataclasses.replace(LossSettings(photo=0.0, mask=0.0), unevenness_of="shaded")
    assert only.needs_rendering
    assert only.without_rendering().albedo_unevenness == 0
    assert not only.without_rendering().needs_rendering
    assert not dataclasses.replace(only, unevenness_of="albedo").needs_rendering
    assert LossSettings().without_rendering().albedo_unevenness > 0


ALIGN = torch.arange(7)


def faces(seed: int) -> Tensor:
    return 40 * torch.randn(3, 20, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_rms_alignment_is_the_ratio_of_sizes() -> None:
    """Written out for one face at a time, with the rotation of Kabsch."""
    target = faces(0)
    predicted = 0.5 * target @ euler_to_matrix(torch.tensor([0.3, 1.0, -2.0]).double()).mT + 0.2 * faces(1)
    losses = landmark_3d_loss(predicted, target, ALIGN, alignment="rms")
    for source, aim, loss in zip(predicted, target, losses, strict=True):
        centred = source - source[ALIGN].mean(0)
        wanted = aim - aim[ALIGN].mean(0)
        u, _, vh = torch.linalg.svd(wanted[ALIGN].T @ centred[ALIGN])
        flip = torch.diag(torch.tensor([1.0, 1.0, torch.linalg.det(u @ vh).sign().item()]).double())
        scale = wanted[ALIGN].norm() / centred[ALIGN].norm()
        expected = (scale * centred @ (u @ flip @ vh).T - wanted).square().sum(-1).mean()
        torch.testing.assert_close(loss, expected)
    everywhere = torch.arange(20)  # over all points nothing fits better than least squares
    best = landmark_3d_loss(predicted, target, everywhere)
    assert (landmark_3d_loss(predicted, target, everywhere, alignment="rms") > 1.001 * best).all()
    torch.testing.assert_close(best, landmark_3d_loss(predicted, target, everywhere, alignment="umeyama"))


def test_rms_alignment_has_its_gradient() -> None:
    target, predicted = faces(0), (faces(0) + 0.2 * faces(1)).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda points: landmark_3d_loss(points, target, ALIGN, alignment="rms"), predicted
    )
    collapsed = torch.zeros_like(target)
    assert landmark_3d_loss(collapsed, collapsed, ALIGN, alignment="rms").isfinite().all()


def test_the_settings_choose_the_alignment() -> None:
    prediction = draw(reconstructor(), (0.0,))
    values = {
        name: term(prediction, "landmarks_3d", LossSettings(alignment=name)) for name in ("umeyama", "rms")
    }
    assert values["umeyama"] == term(prediction, "landmarks_3d", LossSettings())
    assert values["umeyama"] != values["rms"]


def test_the_settings_choose_the_landmarks_that_count_most() -> None:
    ridge, eyes, inner_mouth = set(range(27, 31)), set(range(36, 48)), set(range(60, 68))
    weights = landmark_weights(torch.zeros(2), "code")
    assert set(torch.nonzero(weights[1] == 20).flatten().tolist()) == ridge | eyes | inner_mouth
    assert (weights == 1).sum() == 2 * (68 - 4 - 12 - 8)
    prediction = draw(reconstructor(), (0.0,))
    batch = batch_of(prediction)
    batch.landmarks_2d[0, 0, 40] += 3.0  # a point of an eye
    losses = {
        name: loss_terms(prediction, batch, MODEL, LossSettings(landmark_weights=name))["landmarks_2d"]
        for name in ("paper", "code")
    }
    torch.testing.assert_close(losses["code"], 20 * losses["paper"])
    assert LossSettings() == LossSettings(landmark_weights="paper")


@pytest.mark.parametrize("name", ["alignment", "landmark_weights", "unevenness_of"])
def test_a_wrong_choice_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=rf"losses\.{name}: expected one of \(.*\), got 'best'"):
        LossSettings(**{name: "best"})


def test_rms_alignment_cannot_keep_the_size() -> None:
    with pytest.raises(ValueError, match=r"losses\.landmarks_3d_with_scale: expected true for alignment rms"):
        LossSettings(alignment="rms", landmarks_3d_with_scale=False)
