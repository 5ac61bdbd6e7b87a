"""Refinement: its derivatives, where it ends, and when it leaves the network's answer alone."""

import dataclasses

import numpy as np
import pytest
import torch
from torch.func import jacfwd

from dfmvr.confidence import Calibration, Case
from dfmvr.geometry.camera import default_intrinsics
from dfmvr.geometry.rotation import euler_to_matrix
from dfmvr.morphable.model import MorphableModel
from dfmvr.predictor import NOT_REFINED, Photo, Predictor
from dfmvr.reconstructor import decode_landmarks
from dfmvr.refine import ONE_VIEW_SHARE, OUTLIER, LandmarkFit, refine_params
from dfmvr.types import VIEW_NAMES, FaceParams, ViewBatch

SIZE = 112


@pytest.fixture(scope="module")
def model() -> MorphableModel:
    return MorphableModel.load(level=1)


@pytest.fixture
def truth(model: MorphableModel) -> FaceParams:
    generator = torch.Generator().manual_seed(0)
    angles = torch.tensor([[0.1, -0.7, 0.0], [0.05, 0.05, 0.1], [0.0, 0.8, -0.1]])
    return FaceParams(
        identity=torch.randn(1, 80, generator=generator),
        expression=model.expression_mean[None] + 0.3 * torch.rand(1, 64, generator=generator),
        albedo=torch.zeros(1, 80),
        light=torch.zeros(1, 3, 9, 3),
        rotation=euler_to_matrix(angles)[None],
        translation=torch.tensor([[[5.0, -8.0, 20.0], [0.0, 3.0, -30.0], [-4.0, 0.0, 10.0]]]),
    )


@pytest.fixture
def batch(truth: FaceParams, model: MorphableModel) -> ViewBatch:
    """The views of `truth`, with its exact landmarks; the pictures do not matter."""
    intrinsics = default_intrinsics(SIZE).expand(1, 3, 3, 3)
    return ViewBatch(
        images=torch.zeros(1, 3, 3, SIZE, SIZE),
        masks=torch.zeros(1, 3, SIZE, SIZE, dtype=torch.int64),
        weight_maps=torch.ones(1, 3, SIZE, SIZE),
        landmarks_2d=decode_landmarks(truth, intrinsics, model)[1],
        landmarks_2d_weights=torch.ones(1, 3, 68),
        landmarks_3d=torch.zeros(1, 101, 3),
        landmarks_3d_valid=torch.zeros(1, dtype=torch.bool),
        intrinsics=intrinsics,
        view_yaws=torch.zeros(1, 3),
    )


@pytest.fixture
def disturbed(truth: FaceParams) -> FaceParams:
    generator = torch.Generator().manual_seed(1)
    turns = euler_to_matrix(0.08 * torch.randn(1, 3, 3, generator=generator))
    return dataclasses.replace(
        truth,
        identity=truth.identity + 0.7 * torch.randn(1, 80, generator=generator),
        rotation=turns @ truth.rotation,
        translation=truth.translation + 10 * torch.randn(1, 3, 3, generator=generator),
    )


def shape_error(params: FaceParams, truth: FaceParams, model: MorphableModel) -> float:
    offset = model.vertices(params.identity, params.expression) - model.vertices(
        truth.identity, truth.expression
    )
    offset = offset - offset.mean(-2, keepdim=True)
    return float(offset.square().sum(-1).mean().sqrt())


def test_derivatives_agree_with_finite_differences(
    disturbed: FaceParams, batch: ViewBatch, model: MorphableModel
):
    fit = LandmarkFit(disturbed, batch, model)
    n_unknowns = len(fit.precision)
    assert n_unknowns == 80 + 64 + 3 * 6
    unknowns = 0.02 * torch.randn(n_unknowns, generator=torch.Generator().manual_seed(2)).double()
    oracle = jacfwd(fit.residuals)(unknowns)
    torch.testing.assert_close(fit.jacobian(unknowns), oracle, rtol=1e-9, atol=1e-9)
    gradient, hessian = fit.normal_equations(unknowns, OUTLIER)
    assert gradient.dtype == torch.float64
    steps = 1e-6 * torch.eye(n_unknowns).double()
    numeric = torch.stack(
        [fit.objective(unknowns + s, OUTLIER) - fit.objective(unknowns - s, OUTLIER) for s in steps]
    )
    torch.testing.assert_close(gradient, numeric / 2e-6, rtol=1e-5, atol=1e-5)
    assert torch.linalg.eigvalsh(hessian)[0] > 0


def test_landmarks_are_those_of_the_reconstruction(
    truth: FaceParams, disturbed: FaceParams, batch: ViewBatch, model: MorphableModel
):
    fit = LandmarkFit(disturbed, batch, model)
    nothing = torch.zeros(len(fit.precision)).double()
    drawn = decode_landmarks(disturbed, batch.intrinsics, model)[1][0]
    expected = (drawn - batch.landmarks_2d[0]) * 224 / SIZE / 2.0
    torch.testing.assert_close(fit.residuals(nothing).float(), expected, rtol=1e-3, atol=1e-3)


def test_the_truth_stays_where_it_is(truth: FaceParams, batch: ViewBatch, model: MorphableModel):
    refined = refine_params(truth, batch, model).params
    torch.testing.assert_close(refined.identity, truth.identity, rtol=0, atol=1e-3)
    torch.testing.assert_close(refined.translation, truth.translation, rtol=0, atol=1e-2)


def test_a_disturbed_face_comes_back_in_spite_of_outliers(
    truth: FaceParams, disturbed: FaceParams, batch: ViewBatch, model: MorphableModel
):
    batch.landmarks_2d[0, :, [3, 30, 50]] += 25.0
    refined = refine_params(disturbed, batch, model).params
    before, after = (shape_error(params, truth, model) for params in (disturbed, refined))
    assert after < 0.6 * before
    assert (refined.rotation - truth.rotation).norm() < 0.5 * (disturbed.rotation - truth.rotation).norm()
    torch.testing.assert_close(refined.rotation.det(), torch.ones(1, 3))
    assert torch.equal(refined.albedo, truth.albedo)
    again = refine_params(disturbed, batch, model).params
    assert torch.equal(again.identity, refined.identity)


def test_the_covariance_is_the_curvature_with_poses_integrated_out(
    truth: FaceParams, batch: ViewBatch, model: MorphableModel
):
    fit = LandmarkFit(truth, batch, model)
    nothing = torch.zeros(len(fit.precision)).double()
    hessian = fit.normal_equations(nothing, OUTLIER)[1]
    shape, poses, both = hessian[:144, :144], hessian[144:, 144:], hessian[:144, 144:]
    marginal = shape - both @ torch.linalg.solve(poses, both.mT)
    covariance = fit.covariance(nothing)
    torch.testing.assert_close(covariance @ marginal, torch.eye(144).double(), rtol=0, atol=1e-6)
    found = refine_params(truth, batch, model).covariance
    assert found is not None
    torch.testing.assert_close(found, covariance, rtol=1e-2, atol=1e-4)
    prior = torch.linalg.inv(fit.precision)[:144, :144]
    assert torch.linalg.eigvalsh(prior - covariance)[0] > -1e-9


def test_a_view_without_landmarks_keeps_its_pose(
    disturbed: FaceParams, batch: ViewBatch, model: MorphableModel
):
    batch.landmarks_2d_weights[0, 2] = 0.0
    batch.landmarks_2d[0, 2] = 0.0
    refined = refine_params(disturbed, batch, model).params
    torch.testing.assert_close(refined.rotation[0, 2], disturbed.rotation[0, 2])
    assert not torch.allclose(refined.rotation[0, 0], disturbed.rotation[0, 0])


def test_landmarks_of_one_view_move_the_answer_less_far(
    disturbed: FaceParams, batch: ViewBatch, model: MorphableModel, monkeypatch: pytest.MonkeyPatch
):
    batch.landmarks_2d_weights[0, 1:] = 0.0
    near = refine_params(disturbed, batch, model).params.identity - disturbed.identity
    monkeypatch.setattr("dfmvr.refine.ONE_VIEW_SHARE", 1.0)
    whole = refine_params(disturbed, batch, model).params.identity - disturbed.identity
    torch.testing.assert_close(near, ONE_VIEW_SHARE * whole)
    assert whole.norm() > 0.1


@pytest.mark.parametrize("landmarks", ["none", "of nothing"])
def test_without_landmarks_of_a_face_the_answer_stays(
    landmarks: str, disturbed: FaceParams, batch: ViewBatch, model: MorphableModel
):
    if landmarks == "none":
        batch.landmarks_2d_weights.zero_()
    else:
        batch.landmarks_2d.copy_(SIZE * torch.rand(1, 3, 68, 2, generator=torch.Generator().manual_seed(3)))
    stayed = refine_params(disturbed, batch, model)
    assert stayed.params is disturbed
    assert stayed.covariance is None


def test_what_cannot_be_refined_is_refused(disturbed: FaceParams, batch: ViewBatch, model: MorphableModel):
    with pytest.raises(ValueError, match="steps: expected at least 0, got -1"):
        refine_params(disturbed, batch, model, steps=-1)
    with pytest.raises(ValueError, match="expected one sample, got 2"):
        refine_params(disturbed, ViewBatch.concatenate([batch, batch]), model)


def test_the_predictor_fits_the_landmarks_of_photographs():
    predictor = Predictor.load()
    size = 2 * predictor.image_size
    image = np.full((size, size, 3), 128, np.uint8)
    grey = {name: Photo(image[::2, ::2]) for name in VIEW_NAMES}
    plain = predictor.refine(predictor.prepare(grey))
    assert NOT_REFINED in plain.warnings
    points = {"front": Photo(image, 2.0 * plain.landmarks_2d[1].numpy() + [3.0, 1.0])}
    views = predictor.prepare(points)
    assert views.batch.landmarks_2d_weights[0].sum(-1).tolist() == [0, 68, 0]
    before, after = predictor.reconstruct(views), predictor.refine(views)
    assert NOT_REFINED not in after.warnings
    target = views.batch.landmarks_2d[0, 1]
    off = [(face.landmarks_2d[1] - target).norm(dim=-1).mean() for face in (before, after)]
    assert off[1] < 0.6 * off[0]
    assert after.mesh.vertices.shape == before.mesh.vertices.shape
    predictor.calibration = Calibration("", {"1_views": Case({"face": 2.0}, scale=1.0, floor_mm=0.1)})
    assert predictor.reconstruct(views).expected_error_mm == {"face": 2.0}
    assert predictor.refine(predictor.prepare(grey)).expected_error_mm == {"face": 2.0}
    expected = predictor.refine(views).expected_error_mm
    assert expected is not None
    assert {"face", "skin", "nose", "upper_lip"} < set(expected)
    assert min(expected.values()) > 0.1
    predictor.calibration = None
    assert predictor.refine(views).expected_error_mm is None
