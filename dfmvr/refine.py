"""Refinement on the spot: a face fitted to the landmarks of its pictures, starting from the network's answer.

Where the 68 landmarks are known to a pixel, they say more about this one face than the network has read out
of its pictures. What is found is the most probable face: landmarks are off by a normal error, now and then by
far more (the robust loss of Geman and McClure, 1985), and the truth lies around the network's answer as
widely as people differ from the mean face. A landmark is linear in the coefficients and nearly so in a small
motion: a few Levenberg-Marquardt steps with the exact Jacobian end there within a fraction of a second.

Axis letters: V view, K landmark, P unknown.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import jacfwd, vmap

from dfmvr.geometry.camera import project, to_camera
from dfmvr.geometry.rotation import euler_to_matrix
from dfmvr.losses.landmark import PAPER_IMAGE_SIZE, landmark_weights, yaw_of
from dfmvr.morphable.model import MorphableModel
from dfmvr.types import FaceParams, ViewBatch

STEPS = 8
"""Steps after which nothing changes any more."""
LANDMARK_SPREAD = 2.0
"""How far a landmark is off, one standard deviation in pixels at 224 px."""
OUTLIER = 3.0
"""Number of those deviations beyond which a landmark pulls the less, the farther it is off."""
FIRST_OUTLIER = 24.0
"""The same for the first step; each step halves it. So a bad start is not taken for bad landmarks."""
TURN_SPREAD = 0.1
"""How far the network's poses are off, one standard deviation in radians about each axis."""
SHIFT_SPREAD = 20.0
"""How far its translations are off, one standard deviation in mm along each axis."""
MIN_FITTING = 0.5
"""The landmarks are another face's, or none, when a smaller share of their weight ends within OUTLIER."""
ONE_VIEW_SHARE = 0.7
"""How far to go towards the optimum where one view alone has landmarks, which tells little of depth. The
whole way makes 3 of 400 validation people worse by more than 0.1 mm; this makes none, for 25 % of gain, not
29."""
_DAMPING = 1e-4
_MAX_DAMPING = 1e4
"""Factors on the Hessian's diagonal: the first one, and one at which no way down is left."""


class LandmarkFit:
    """One face's landmarks as a problem of least squares; its unknowns are offsets from a first answer.

    The unknowns [P], float64: identity, expression, then for each view a turn (Euler angles, radians, applied
    after the first answer's rotation) and for each view a shift (mm).

    Args:
        params: the first answer for one face, leading shape [1].
        batch: of that face; landmarks_2d, landmarks_2d_weights, intrinsics and the images' size are read.
        face_model: whose coefficients they are, at any level.
    """

    def __init__(self, params: FaceParams, batch: ViewBatch, face_model: MorphableModel) -> None:
        self._first = params
        params = params.sample(0)
        ids = face_model.landmarks_68
        bases = torch.cat([face_model.identity_basis[:, ids], face_model.expression_basis[:, ids]]).double()
        coefficients = torch.cat([params.identity, params.expression]).double()
        self._bases = bases.flatten(1)
        self._points = face_model.mean_shape[ids].double() + (coefficients @ self._bases).unflatten(
            -1, (-1, 3)
        )
        self._rotation, self._translation = params.rotation.double(), params.translation.double()
        self._intrinsics = batch.intrinsics[0].double()
        self._pixel = LANDMARK_SPREAD * batch.images.shape[-1] / PAPER_IMAGE_SIZE
        self._target = batch.landmarks_2d[0].double()
        # Detectors draw the far side's jaw on the outline; what counts 20-fold in training counts 1 here.
        fading = landmark_weights(yaw_of(params.rotation)).clamp_max(1.0)
        self.weights = (fading * batch.landmarks_2d_weights[0]).double()
        views, expression = len(self._rotation), face_model.expression_precision.double()
        pose = [torch.full((3 * views,), spread**-2.0) for spread in (TURN_SPREAD, SHIFT_SPREAD)]
        self.precision = torch.block_diag(
            torch.eye(len(params.identity)).to(expression), expression, torch.cat(pose).diag().to(expression)
        )
        """[P, P] inverse covariance of the unknowns, before a landmark is seen."""

    def residuals(self, unknowns: Tensor) -> Tensor:
        """Return how far the landmarks [V, K, 2] are off, in units of LANDMARK_SPREAD."""
        coefficients, turns, shifts = self._split(unknowns)
        points = self._points + (coefficients @ self._bases).unflatten(-1, (-1, 3))
        camera = to_camera(
            points.unsqueeze(0), euler_to_matrix(turns) @ self._rotation, self._translation + shifts
        )
        return (project(camera, self._intrinsics) - self._target) / self._pixel

    def jacobian(self, unknowns: Tensor) -> Tensor:
        """Return the residuals' derivatives [V, K, 2, P], written out: a pose moves its own view alone."""
        coefficients, turns, shifts = self._split(unknowns)
        points = self._points + (coefficients @ self._bases).unflatten(-1, (-1, 3))
        turn = euler_to_matrix(turns)
        rotation = turn @ self._rotation
        x, y, z = to_camera(points.unsqueeze(0), rotation, self._translation + shifts).unbind(-1)
        zero = torch.zeros_like(z)
        onto_plane = torch.stack([1 / z, zero, -x / z**2, zero, 1 / z, -y / z**2], -1).unflatten(-1, (2, 3))
        # Per mm of a posed point, before the camera's axes flip y and z.
        by_mm = self._intrinsics[:, None, :2, :2] @ onto_plane * z.new_tensor((1.0, -1.0, -1.0)) / self._pixel
        by_point = by_mm @ rotation.unsqueeze(1)
        by_coefficient = torch.einsum("vkic,pkc->vkip", by_point, self._bases.unflatten(-1, (-1, 3)))
        turning = vmap(jacfwd(euler_to_matrix))(turns)
        by_turn = torch.einsum("vkij,vjla,vlc,kc->vkia", by_mm, turning, self._rotation, points)
        poses = [_block_by_view(by_turn), _block_by_view(by_mm)]
        return torch.cat([by_coefficient, *poses], -1)

    def objective(self, unknowns: Tensor, outlier: float) -> Tensor:
        """Return minus the log posterior, up to a constant."""
        squared = self.residuals(unknowns).square().sum(-1)
        robust = squared / (1 + squared / outlier**2)
        return 0.5 * ((self.weights * robust).sum() + unknowns @ self.precision @ unknowns)

    def normal_equations(self, unknowns: Tensor, outlier: float) -> tuple[Tensor, Tensor]:
        """Return the objective's gradient [P], and its Hessian [P, P] as Gauss and Newton approximate it."""
        residuals = self.residuals(unknowns)
        jacobian = self.jacobian(unknowns)
        weights = self.weights / (1 + residuals.square().sum(-1) / outlier**2).square()
        weighted = (weights[..., None, None] * jacobian).flatten(0, 2)
        gradient = weighted.mT @ residuals.flatten() + self.precision @ unknowns
        return gradient, weighted.mT @ jacobian.flatten(0, 2) + self.precision

    def covariance(self, unknowns: Tensor) -> Tensor:
        """Return the [P, P] covariance of the coefficients' errors around an optimum (Laplace)."""
        n_coefficients = len(unknowns) - 6 * len(self._rotation)
        hessian = self.normal_equations(unknowns, OUTLIER)[1]
        return torch.linalg.inv(hessian)[:n_coefficients, :n_coefficients]

    def share_fitting(self, unknowns: Tensor) -> float:
        """Return the share of the landmarks' weight that lies within OUTLIER."""
        near = self.residuals(unknowns).norm(dim=-1) < OUTLIER
        return float((self.weights * near).sum() / self.weights.sum())

    def moved(self, unknowns: Tensor) -> FaceParams:
        """Return the first answer, moved."""
        coefficients, turns, shifts = self._split(unknowns)
        first = self._first
        identity, expression = coefficients.float().split(
            [first.identity.shape[1], first.expression.shape[1]]
        )
        return dataclasses.replace(
            first,
            identity=first.identity + identity,
            expression=first.expression + expression,
            rotation=(euler_to_matrix(turns) @ self._rotation).float().unsqueeze(0),
            translation=first.translation + shifts.float(),
        )

    def _split(self, unknowns: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the coefficients' offsets, the turns [V, 3] and the shifts [V, 3]."""
        poses = 3 * len(self._rotation)
        coefficients, turns, shifts = unknowns.split([len(unknowns) - 2 * poses, poses, poses])
        return coefficients, turns.unflatten(0, (-1, 3)), shifts.unflatten(0, (-1, 3))


@dataclass(frozen=True)
class Refined:
    """Where a refinement ended."""

    params: FaceParams
    """The network's answer itself where there are no landmarks, or no face fits them."""
    covariance: Tensor | None
    """[P, P] float64 of identity's and expression's errors, as the objective's curvature has it (poses
    integrated out); None where the network's answer stayed."""


def refine_params(
    params: FaceParams, batch: ViewBatch, face_model: MorphableModel, steps: int = STEPS
) -> Refined:
    """Fit identity, expression and poses to the landmarks of one sample; albedo and light stay.

    Landmarks of one view alone move the answer by ONE_VIEW_SHARE of the way.

    Args:
        params: the network's answer for one sample, leading shape [1].
        batch: of that sample. A view whose landmarks all weigh 0 keeps its pose.
        face_model: whose coefficients they are, at any level.
        steps: at most this many.

    Raises:
        ValueError: `steps` is negative, or the batch holds several samples.
    """
    if steps < 0:
        raise ValueError(f"steps: expected at least 0, got {steps}")
    if len(batch.images) != 1:
        raise ValueError(f"batch: expected one sample, got {len(batch.images)}")
    fit = LandmarkFit(params, batch, face_model)
    if not fit.weights.any():
        return Refined(params, None)
    unknowns = _solve(fit, steps)
    if fit.share_fitting(unknowns) < MIN_FITTING:
        return Refined(params, None)
    one_view = int(fit.weights.any(-1).sum()) == 1
    moved = fit.moved(ONE_VIEW_SHARE * unknowns if one_view else unknowns)
    return Refined(moved, fit.covariance(unknowns))


def _solve(fit: LandmarkFit, steps: int) -> Tensor:
    """Walk down from the first answer (Levenberg, 1944; Marquardt, 1963)."""
    unknowns = torch.zeros(len(fit.precision)).to(fit.precision)
    damping = _DAMPING
    for step in range(steps):
        outlier = max(OUTLIER, FIRST_OUTLIER / 2**step)
        gradient, hessian = fit.normal_equations(unknowns, outlier)
        before = fit.objective(unknowns, outlier)
        while damping < _MAX_DAMPING:
            damped = hessian + damping * hessian.diagonal().diag()
            candidate = unknowns - torch.linalg.solve(damped, gradient)
            if fit.objective(candidate, outlier) < before:
                unknowns, damping = candidate, max(_DAMPING, damping / 10)
                break
            damping *= 10
    return unknowns


def _block_by_view(own: Tensor) -> Tensor:
    """Return derivatives [V, K, 2, 3 V] for all views' poses from those [V, K, 2, 3] for each view's own."""
    views = torch.arange(len(own), device=own.device)
    blocks = own.new_zeros(*own.shape[:-1], len(own), 3)
    blocks[views, :, :, views] = own
    return blocks.flatten(-2)
