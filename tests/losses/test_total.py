"""The terms together, on the real face model and renderer."""

import dataclasses

import pytest
import torch
from torch import Tensor, nn

from dfmvr.geometry.camera import default_intrinsics
from dfmvr.geometry.rotation import euler_to_matrix
from dfmvr.lighting import AMBIENT
from dfmvr.losses.mask import drawn_regions, mask_loss
from dfmvr.losses.total import LossSettings, loss_terms, total_loss
from dfmvr.morphable.model import MorphableModel
from dfmvr.reconstructor import Prediction, Reconstructor
from dfmvr.render.zbuffer import ZBufferRenderer
from dfmvr.types import FaceParams, ViewBatch

SIZE = 48
YAWS = (-0.6, 0.0, 0.6)

SHAPE = {"identity", "expression"}
POSE = {"rotation", "translation"}
REACHES = {
    "photo": SHAPE | POSE | {"albedo", "light"},
    "mask": SHAPE | POSE,
    "landmarks_2d": SHAPE | POSE,
    "seen_landmarks": {"landmark_scores"},
    "landmark_maps": {"landmark_scores"},
    "landmarks_3d": SHAPE,
    "identity_prior": {"identity"},
    "expression_prior": {"expression"},
    "expression_range": {"expression"},
    "albedo_prior": {"albedo"},
    "light_colour": {"light"},
    "albedo_unevenness": {"albedo"},
    "consistency_pixel": SHAPE | POSE,
    "consistency_depth": SHAPE | POSE,
}
ALL = LossSettings(consistency_pixel=1.0, consistency_depth=1.0)
RENDERED = {"photo", "mask", "consistency_pixel", "consistency_depth"}


@pytest.fixture(scope="module")
def reconstructor() -> Reconstructor:
    return Reconstructor(nn.Identity(), MorphableModel.load(), ZBufferRenderer())


def draw_leaves(seed: int, batch: int = 2) -> dict[str, Tensor]:
    """Parameters near the truth of any face, as leaves; rotation stands for its Euler angles."""
    torch.manual_seed(seed)
    light = 0.1 * torch.randn(batch, 3, 9, 3)
    light[:, :, 0] += AMBIENT
    angles = 0.05 * torch.randn(batch, 3, 3)
    angles[..., 1] += torch.tensor(YAWS)
    leaves = {
        "identity": torch.randn(batch, 80),
        "expression": 0.2 * torch.randn(batch, 64),
        "albedo": torch.randn(batch, 80),
        "light": light,
        "rotation": angles,
        "translation": 3 * torch.randn(batch, 3, 3),
        "landmark_scores": torch.randn(batch, 3, 68, 12, 12),
    }
    return {name: value.requires_grad_() for name, value in leaves.items()}


def as_params(leaves: dict[str, Tensor]) -> FaceParams:
    return FaceParams(**{**leaves, "rotation": euler_to_matrix(leaves["rotation"])})


def draw(reconstructor: Reconstructor, leaves: dict[str, Tensor]) -> Prediction:
    params = as_params(leaves)
    intrinsics = default_intrinsics(SIZE).expand(*params.translation.shape[:2], 3, 3)
    return reconstructor.draw(params, intrinsics, SIZE)


def regions_of(reconstructor: Reconstructor, prediction: Prediction) -> Tensor:
    model = reconstructor.face_model
    return drawn_regions(prediction.drawn, model.triangles, model.labels)


@pytest.fixture(scope="module")
def batch(reconstructor: Reconstructor) -> ViewBatch:
    with torch.no_grad():
        truth = draw(reconstructor, draw_leaves(seed=1))
    count = len(truth.mask)
    return ViewBatch(
        images=truth.image.movedim(-1, 2),
        masks=torch.where(truth.mask, regions_of(reconstructor, truth).argmax(-1), 0),
        weight_maps=torch.where(truth.mask, 0.5, 0.125),
        landmarks_2d=truth.landmarks_2d,
        landmarks_2d_weights=torch.ones(count, 3, 68),
        landmarks_3d=truth.landmarks_3d,
        landmarks_3d_valid=torch.ones(count, dtype=torch.bool),
        intrinsics=default_intrinsics(SIZE).expand(count, 3, 3, 3),
        view_yaws=torch.tensor(YAWS).expand(count, 3),
    )


def terms_of(reconstructor: Reconstructor, batch: ViewBatch, leaves: dict[str, Tensor]) -> dict[str, Tensor]:
    return loss_terms(draw(reconstructor, leaves), batch, reconstructor.face_model, ALL)


def test_every_weight_is_a_term():
    weights = {field.name for field in dataclasses.fields(LossSettings) if field.type == "float"}
    assert weights == set(REACHES)


def test_each_term_reaches_the_parameters_that_it_should_and_no_other(reconstructor, batch):
    leaves = draw_leaves(seed=2)
    terms = terms_of(reconstructor, batch, leaves)
    assert set(terms) == set(REACHES)
    reached = {}
    for name, term in terms.items():
        gradients = torch.autograd.grad(term, list(leaves.values()), retain_graph=True, allow_unused=True)
        assert all(gradient is None or gradient.isfinite().all() for gradient in gradients), name
        reached[name] = {
            group
            for group, gradient in zip(leaves, gradients, strict=True)
            if gradient is not None and gradient.abs().max() > 0
        }
    assert reached == REACHES


def test_region_maps_are_the_drawn_one_hot_labels(reconstructor):
    """Drawing the labels as vertex attributes gives the same maps."""
    prediction = draw(reconstructor, draw_leaves(seed=1))
    model, camera = reconstructor.face_model, prediction.vertices_camera
    one_hot = nn.functional.one_hot(model.labels, 10).float().expand(*camera.shape[:2], -1, -1)
    intrinsics = default_intrinsics(SIZE).expand(*camera.shape[:2], 3, 3)
    expected = reconstructor.renderer(camera, model.triangles, one_hot, intrinsics, SIZE).attributes
    torch.testing.assert_close(regions_of(reconstructor, prediction), expected)


def test_what_was_predicted_in_inference_mode_can_be_drawn(reconstructor):
    leaves = draw_leaves(seed=1)
    with torch.inference_mode():
        params = FaceParams(
            **{name: value.clone() for name, value in vars(as_params(leaves)).items() if value is not None}
        )
    intrinsics = default_intrinsics(SIZE).expand(*params.translation.shape[:2], 3, 3)
    found = reconstructor.draw(params, intrinsics, SIZE).image
    torch.testing.assert_close(found, draw(reconstructor, leaves).image.detach())


def test_every_view_and_sample_is_reached(reconstructor, batch):
    leaves = draw_leaves(seed=2)
    terms = terms_of(reconstructor, batch, leaves)
    for name, group in (
        *((name, "translation") for name in (*RENDERED, "landmarks_2d")),
        ("landmark_maps", "landmark_scores"),
    ):
        (gradient,) = torch.autograd.grad(terms[name], leaves[group], retain_graph=True)
        assert (gradient.flatten(2).abs().amax(-1) > 0).all(), name


def test_the_truth_costs_nothing_but_its_priors(reconstructor, batch):
    terms = terms_of(reconstructor, batch, draw_leaves(seed=1))
    assert terms["photo"] < 1e-6
    assert terms["landmarks_2d"] < 1e-6
    assert terms["landmarks_3d"] < 1e-6
    assert terms["mask"] < 0.03  # the drawing's borders are soft, the mask's are not
    away = terms_of(reconstructor, batch, draw_leaves(seed=2))
    assert all(away[name] > 3 * terms[name] for name in ("photo", "mask", "landmarks_2d", "landmarks_3d"))


@pytest.mark.parametrize("shift_mm", [-12.0, -4.0, 4.0, 12.0])
@pytest.mark.parametrize("axis", [0, 1])
def test_the_mask_loss_pulls_a_shifted_face_back(reconstructor, batch, shift_mm, axis):
    """Its gradient is the slope that the loss really has, visibility included, but for coarse pixels."""
    leaves = draw_leaves(seed=1)
    offset = torch.zeros(3)
    offset[axis] = shift_mm

    def loss(extra: float) -> tuple[Tensor, Tensor]:
        step = torch.tensor(extra, requires_grad=True)
        moved = leaves["translation"].detach() + offset + step * torch.eye(3)[axis]
        prediction = draw(reconstructor, {**leaves, "translation": moved})
        shared = prediction.mask & (batch.masks > 0)
        return mask_loss(regions_of(reconstructor, prediction), batch.masks, shared).mean(), step

    here, step = loss(0.0)
    (gradient,) = torch.autograd.grad(here, step)
    slope = (loss(2.0)[0] - loss(-2.0)[0]).item() / 4.0
    assert slope * shift_mm > 0
    assert gradient.item() == pytest.approx(slope, rel=0.6)


def test_without_rendering_the_terms_that_look_at_pictures_are_left_out(reconstructor, batch):
    leaves = draw_leaves(seed=2)
    intrinsics = default_intrinsics(SIZE).expand(2, 3, 3, 3)
    settings = ALL.without_rendering()
    assert not settings.needs_rendering
    for name in RENDERED:
        assert dataclasses.replace(settings, **{name: 1.0}).needs_rendering
    blank = reconstructor.draw(as_params(leaves), intrinsics, SIZE, render=False)
    assert not blank.mask.any()
    assert not blank.image.any()
    _, terms = total_loss(blank, batch, reconstructor.face_model, settings)
    _, full = total_loss(draw(reconstructor, leaves), batch, reconstructor.face_model, ALL)
    assert set(full) - set(terms) == RENDERED
    torch.testing.assert_close(terms, {name: full[name] for name in terms})


def empty(batch: ViewBatch) -> ViewBatch:
    return dataclasses.replace(
        batch,
        masks=torch.zeros_like(batch.masks),
        weight_maps=torch.zeros_like(batch.weight_maps),
        landmarks_2d=torch.zeros_like(batch.landmarks_2d),
        landmarks_2d_weights=torch.zeros_like(batch.landmarks_2d_weights),
        landmarks_3d=torch.zeros_like(batch.landmarks_3d),
        landmarks_3d_valid=torch.zeros_like(batch.landmarks_3d_valid),
        view_yaws=torch.full_like(batch.view_yaws, float("nan")),
    )


def test_a_batch_without_any_target_is_finite_and_leaves_only_the_priors(reconstructor, batch):
    leaves = draw_leaves(seed=2)
    prediction = draw(reconstructor, leaves)
    loss, terms = total_loss(prediction, empty(batch), reconstructor.face_model, ALL)
    loss.backward()
    assert loss.isfinite()
    assert all(leaf.grad.isfinite().all() for leaf in leaves.values())
    assert all(terms[name] == 0 for name in (*RENDERED, "landmarks_2d", "landmarks_3d", "landmark_maps"))


def test_a_face_outside_the_picture_is_finite(reconstructor, batch):
    leaves = draw_leaves(seed=2)
    leaves["translation"].data[..., 0] += 500.0
    prediction = draw(reconstructor, leaves)
    assert not prediction.mask.any()
    loss, terms = total_loss(prediction, batch, reconstructor.face_model, ALL)
    loss.backward()
    assert all(leaf.grad.isfinite().all() for leaf in leaves.values())
    assert all(terms[name] == 0 for name in RENDERED)
    assert (leaves["translation"].grad[..., 0] > 0).all()  # the landmarks call it back


def test_samples_without_3d_landmarks_do_not_count(reconstructor, batch):
    prediction = draw(reconstructor, draw_leaves(seed=2))

    def loss(valid: list[bool]) -> Tensor:
        partial = dataclasses.replace(batch, landmarks_3d_valid=torch.tensor(valid))
        return loss_terms(prediction, partial, reconstructor.face_model, LossSettings())["landmarks_3d"]

    torch.testing.assert_close(loss([True, True]), (loss([True, False]) + loss([False, True])) / 2)


def test_unknown_yaws_are_taken_from_the_prediction(reconstructor, batch):
    leaves = draw_leaves(seed=2)
    leaves["rotation"].data = torch.zeros(2, 3, 3)
    leaves["rotation"].data[..., 1] = torch.tensor(YAWS)
    unknown = dataclasses.replace(batch, view_yaws=torch.full((2, 3), float("nan")))
    known, predicted = (terms_of(reconstructor, each, leaves)["landmarks_2d"] for each in (batch, unknown))
    torch.testing.assert_close(known, predicted)
    frontal = dataclasses.replace(batch, view_yaws=torch.zeros(2, 3))
    assert terms_of(reconstructor, frontal, leaves)["landmarks_2d"] > known


@pytest.mark.parametrize("left_out", sorted(REACHES))
def test_every_group_has_a_gradient_whatever_is_left_out(reconstructor, batch, left_out):
    """Distributed training waits for one from every parameter."""
    leaves = draw_leaves(seed=2)
    keep = {"light_colour": 0.0, "albedo_prior": 0.0, left_out: 0.0}
    settings = LossSettings(**keep).without_rendering()
    loss, _ = total_loss(draw(reconstructor, leaves), batch, reconstructor.face_model, settings)
    loss.backward()
    assert all(leaf.grad is not None for leaf in leaves.values())


def test_total_is_the_sum_of_the_weighted_terms(reconstructor, batch):
    prediction = draw(reconstructor, draw_leaves(seed=2))
    settings = LossSettings(photo=2.0, mask=0.0, landmarks_3d=0.5)
    loss, weighted = total_loss(prediction, batch, reconstructor.face_model, settings)
    terms = loss_terms(prediction, batch, reconstructor.face_model, LossSettings())
    assert set(weighted) == set(terms) - {"mask"}
    torch.testing.assert_close(weighted["photo"], 2.0 * terms["photo"].detach())
    torch.testing.assert_close(loss.detach(), torch.stack(list(weighted.values())).sum())
    assert not any(term.requires_grad for term in weighted.values())


# ---- views that were split into samples, each with a face of its own


def split_leaves(leaves: dict[str, Tensor]) -> dict[str, Tensor]:
    """The parameters of the views one by one, as leaves; those of the face are repeated for each."""
    of_views = ("light", "rotation", "translation", "landmark_scores")
    split = {
        name: value.flatten(0, 1).unsqueeze(1) if name in of_views else value.repeat_interleave(3, 0)
        for name, value in leaves.items()
    }
    return {name: value.detach().clone().requires_grad_() for name, value in split.items()}


def consistency_of(reconstructor: Reconstructor, batch: ViewBatch, leaves: dict[str, Tensor]) -> Tensor:
    """The pixel term and the depth term."""
    terms = terms_of(reconstructor, batch, leaves)
    return torch.stack([terms["consistency_pixel"], terms["consistency_depth"]])


def test_split_views_of_one_face_are_as_consistent_as_before_the_split(reconstructor, batch):
    leaves = draw_leaves(seed=2)
    together = consistency_of(reconstructor, batch, leaves)
    apart = consistency_of(reconstructor, batch.split_views(), split_leaves(leaves))
    torch.testing.assert_close(apart, together)
    assert together[1] < 0.05  # all views share one face


def test_split_views_are_compared_within_their_sample_and_in_their_order(reconstructor, batch):
    split = batch.split_views()
    leaves = split_leaves(draw_leaves(seed=1))
    truth = consistency_of(reconstructor, split, leaves)
    with torch.no_grad():
        leaves["identity"][4] += 2.0  # the second sample's front view is another person
    assert (consistency_of(reconstructor, split, leaves) > 1.05 * truth).all()
    with torch.no_grad():
        leaves["identity"][3:] = leaves["identity"][4]  # all of that sample's are
    assert consistency_of(reconstructor, split, leaves)[1] < 1.5 * truth[1]


def test_each_split_view_learns_its_face_and_pose_from_the_others(reconstructor, batch):
    leaves = split_leaves(draw_leaves(seed=2))
    with torch.no_grad():
        leaves["identity"] += 0.3 * torch.randn(6, 80, generator=torch.Generator().manual_seed(0))
    for term in consistency_of(reconstructor, batch.split_views(), leaves):
        for group in ("identity", "rotation", "translation"):
            (gradient,) = torch.autograd.grad(term, leaves[group], retain_graph=True)
            assert gradient.isfinite().all()
            assert (gradient.flatten(1).abs().amax(-1) > 0).all(), group


def test_a_missing_view_and_a_front_view_alone_are_compared_with_nothing(reconstructor, batch):
    present = torch.tensor([[True, True, True], [False, True, False]])
    lacking = dataclasses.replace(batch, masks=batch.masks * present[..., None, None], view_present=present)
    leaves = split_leaves(draw_leaves(seed=2))
    consistency_of(reconstructor, lacking.split_views(), leaves).sum().backward()
    reached = leaves["identity"].grad.abs().amax(-1) > 0
    assert reached.tolist() == [True, True, True, False, False, False]


@pytest.mark.parametrize("weight", [-1.0, float("nan"), float("inf")])
def test_wrong_weights_are_refused(weight):
    with pytest.raises(ValueError, match=r"losses\.mask: expected a finite weight of at least 0, got"):
        LossSettings(mask=weight)
