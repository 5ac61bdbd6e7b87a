"""The training loss: every term by name, and their weighted sum.

Axis letters: B batch, V view, N vertex, K landmark, H W image.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from dfmvr.losses.landmark import (
    landmark_2d_loss,
    landmark_3d_loss,
    landmark_map_loss,
    landmark_weights,
    seen_landmark_loss,
    yaw_of,
)
from dfmvr.losses.mask import mask_loss
from dfmvr.losses.photo import photo_loss
from dfmvr.losses.regularisation import (
    albedo_unevenness,
    expression_prior,
    light_colour,
    normal_prior,
    range_penalty,
)
from dfmvr.morphable.model import MorphableModel
from dfmvr.networks.landmark_maps import expected_places
from dfmvr.types import REGION_NAMES, FaceParams, ViewBatch

_SKIN = REGION_NAMES.index("skin")


@dataclass(frozen=True)
class LossSettings:
    """The weight of each term; a term of weight 0 is left out, not computed.

    The defaults are the paper's and its released code's. They fit because the terms have the units that the
    paper's have: colours in [0, 1], pixels at 224 px, coefficients in standard deviations; and because the 3D
    landmarks are compared in mm.
    """

    photo: float = 24.0
    """Weighted mean colour difference in [0, 1]."""
    mask: float = 8.0
    """Difference between the region maps, 0 to 2. The paper's weight is 1 for a cross-entropy, which is about
    eight times this difference near the truth."""
    landmarks_2d: float = 0.02
    """Squared distance in pixels at 224 px, nose and inner mouth 20-fold."""
    seen_landmarks: float = 20.0
    """Distance in pixels at 224 px between the data's landmarks and where the network's heat maps see them;
    not for networks without such maps (network.landmark_maps). As strong as the other terms together, which
    also pull at the maps' places and would make something else than landmarks of them."""
    landmark_maps: float = 20.0
    """Cross-entropy of those heat maps."""
    landmarks_3d: float = 1.0
    """Squared distance in mm^2 after alignment, over the samples that have 3D landmarks."""
    landmarks_3d_with_scale: bool = True
    """Align the size of the 3D landmarks as well, as the paper does. Then nothing but the priors and
    perspective hold a face's size, and a network drifts off in size and distance together; where landmarks
    are in true mm, false ends that."""
    identity_prior: float = 3e-4
    """Sum of squared standard deviations (paper: w_reg x w_alpha)."""
    expression_prior: float = 0.8 * 3e-4
    """Squared Mahalanobis distance (paper: w_reg x w_beta)."""
    expression_range: float = 1.0
    """Sum of squares of what leaves [0, 1]; not in the paper, whose basis has no range. As strong as the
    landmarks: an activation of -0.3 costs as much as 2 px at every ordinary landmark."""
    albedo_prior: float = 0.017 * 3e-4
    """Sum of squared standard deviations (paper: w_reg x w_gamma)."""
    light_colour: float = 10.0
    """Mean squared distance of the light from grey (not in the paper; its released code)."""
    albedo_unevenness: float = 5.0
    """Variance of the skin's albedo (not in the paper; its released code, there of shaded colour)."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            weight = getattr(self, field.name)
            if field.type == "float" and not (math.isfinite(weight) and weight >= 0):
                raise ValueError(f"losses.{field.name}: expected a finite weight of at least 0, got {weight}")

    @property
    def needs_rendering(self) -> bool:
        """Whether a term looks at the rendered face."""
        return self.photo > 0 or self.mask > 0

    def without_rendering(self) -> LossSettings:
        """Return the weights without the terms that look at the rendered face."""
        return dataclasses.replace(self, photo=0.0, mask=0.0)


class Prediction(Protocol):
    """What the losses look at (reconstructor.Prediction)."""

    @property
    def params(self) -> FaceParams:
        """Parameters with leading shape [B]."""

    @property
    def albedo(self) -> Tensor:
        """[B, N, 3] linear."""

    @property
    def landmarks_3d(self) -> Tensor:
        """[B, 101, 3] mm, model space."""

    @property
    def landmarks_2d(self) -> Tensor:
        """[B, V, 68, 2] pixels."""

    @property
    def image(self) -> Tensor:
        """[B, V, H, W, 3] sRGB."""

    @property
    def regions(self) -> Tensor:
        """[B, V, H, W, 10] interpolated one-hot region labels."""

    @property
    def mask(self) -> Tensor:
        """[B, V, H, W] bool: the face was drawn."""


def total_loss(
    prediction: Prediction, batch: ViewBatch, face_model: MorphableModel, settings: LossSettings
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the loss, and the weighted terms that it is the sum of (detached, by name)."""
    terms = loss_terms(prediction, batch, face_model, settings)
    weighted = {name: getattr(settings, name) * term for name, term in terms.items()}
    # Distributed training asks for a gradient of every parameter, also where no term looks at its group.
    groups = [getattr(prediction.params, field.name) for field in dataclasses.fields(prediction.params)]
    nothing = 0.0 * torch.stack([group.sum() for group in groups if group is not None]).sum()
    loss = nothing + sum(weighted.values())
    return loss, {name: term.detach() for name, term in weighted.items()}


def loss_terms(
    prediction: Prediction, batch: ViewBatch, face_model: MorphableModel, settings: LossSettings
) -> dict[str, Tensor]:
    """Return every term of non-zero weight, unweighted: the mean over the samples and views, by name."""
    params = prediction.params
    shared = prediction.mask & (batch.masks > 0)
    terms: dict[str, Callable[[], Tensor]] = {
        "photo": lambda: photo_loss(
            prediction.image, batch.images.movedim(2, -1), batch.weight_maps, shared
        ).mean(),
        "mask": lambda: mask_loss(prediction.regions, batch.masks, shared).mean(),
        "landmarks_2d": lambda: _landmarks_2d(prediction, batch),
        "seen_landmarks": lambda: _seen_landmarks(params.landmark_scores, batch),
        "landmark_maps": lambda: _landmark_maps(params.landmark_scores, batch),
        "landmarks_3d": lambda: _landmarks_3d(
            prediction, batch, face_model, settings.landmarks_3d_with_scale
        ),
        "identity_prior": lambda: normal_prior(params.identity).mean(),
        "expression_prior": lambda: expression_prior(
            params.expression, face_model.expression_mean, face_model.expression_precision
        ).mean(),
        "expression_range": lambda: range_penalty(params.expression).mean(),
        "albedo_prior": lambda: normal_prior(params.albedo).mean(),
        "light_colour": lambda: light_colour(params.light).mean(),
        "albedo_unevenness": lambda: albedo_unevenness(prediction.albedo, face_model.labels == _SKIN).mean(),
    }
    if params.landmark_scores is None:
        del terms["seen_landmarks"], terms["landmark_maps"]
    return {name: term() for name, term in terms.items() if getattr(settings, name) > 0}


def _seen_landmarks(scores: Tensor | None, batch: ViewBatch) -> Tensor:
    assert scores is not None  # the caller leaves this term out
    image_size = batch.images.shape[-1]
    seen = image_size * expected_places(scores)
    return seen_landmark_loss(seen, batch.landmarks_2d, batch.landmarks_2d_weights, image_size).mean()


def _landmark_maps(scores: Tensor | None, batch: ViewBatch) -> Tensor:
    assert scores is not None  # the caller leaves this term out
    image_size = batch.images.shape[-1]
    return landmark_map_loss(scores, batch.landmarks_2d, batch.landmarks_2d_weights, image_size).mean()


def _landmarks_2d(prediction: Prediction, batch: ViewBatch) -> Tensor:
    """Weigh the landmarks by the stored yaw of each view, or the predicted one where it is unknown."""
    predicted_yaws = yaw_of(prediction.params.rotation).detach()
    yaws = torch.where(batch.view_yaws.isnan(), predicted_yaws, batch.view_yaws)
    weights = landmark_weights(yaws) * batch.landmarks_2d_weights
    image_size = batch.images.shape[-1]
    return landmark_2d_loss(prediction.landmarks_2d, batch.landmarks_2d, weights, image_size).mean()


def _landmarks_3d(
    prediction: Prediction, batch: ViewBatch, face_model: MorphableModel, with_scale: bool
) -> Tensor:
    """Average over the samples that have 3D landmarks; the others are compared with themselves."""
    valid = batch.landmarks_3d_valid
    target = torch.where(valid[:, None, None], batch.landmarks_3d, prediction.landmarks_3d.detach())
    align = face_model.align_7_in_101
    losses = landmark_3d_loss(prediction.landmarks_3d, target, align, with_scale)
    return (losses * valid).sum() / valid.sum().clamp_min(1)
